"""Several members of one method, trained at once: one captured graph steps them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bnn.approximations import Approximation, joined
from bnn.data import Batch
from bnn.inference.objective import Objective, Params, Terms

_Arguments = tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]
_One = Callable[[dict[str, Tensor], list[Tensor], dict[str, Tensor]], tuple[Tensor, ...]]


class ReplicatedLoss(Objective):
    """The losses of K members of one objective, each with parameters, buffers, rows and random numbers of its own.

    The members' parameters, stacked, are those of this module: ``(K, ...)``. A step is one call of one program, whose
    matrix products carry the members as a batch dimension. Where vmap has no rule (recurrent layers, Pyro's guides) or
    a slow one (convolutions), the members stand one after the other in that program.

    Args:
        members: Objectives that differ in their starting points only. The first one's mathematics is used for all.
        given: ``{name: (K, ...)}``, constants of each member that `Objective.terms` finds among its parameters.
    """

    def __init__(self, members: Sequence[Objective], given: Mapping[str, Tensor] | None = None):
        first = members[0]
        self.parts = (first,)
        self.members = len(members)
        self._given = dict(given or {})
        self._starts = {
            name: torch.stack([dict(member.named_parameters())[name].detach() for member in members])
            for name, _ in first.named_parameters()
        }
        super().__init__(first.method, first.model, first.n_data, first.backend)
        for name in self.buffers_moved:
            self.state[name] = torch.stack([member.state[name] for member in members])
        self.notes = first.notes
        del self._starts

    @property
    def first(self) -> Objective:
        """The member whose mathematics is used for all; its own parameters are not trained."""
        return self.parts[0]

    def initial(self) -> dict[str, Tensor]:
        """The members' own starting values, stacked."""
        return self._starts

    def given(self) -> dict[str, Tensor]:
        """What one member is given, for each."""
        one = self.first.given()
        return {name: value.expand(self.members or 1, *value.shape).clone() for name, value in one.items()}

    def renew(self, given: dict[str, Tensor]) -> None:
        """As one member does, with numbers of its own for each."""
        self.first.renew(given)

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The terms of every member: ``(K,)`` each."""
        structure = batch.structure
        moved = {name: state[name] for name in self.buffers_moved}
        fixed = {name: value for name, value in state.items() if name not in moved}

        def one(own: dict[str, Tensor], leaves: list[Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, ...]:
            named, all_state = dict(own), {**fixed, **buffers}
            own_points = self.first.take_points(named)
            terms = self.first.terms(named, own_points, Batch.rebuild(structure, leaves), all_state)
            return terms.nll, terms.kl, *[all_state[name] for name in moved]

        arguments = ({**params, **self._given}, batch.leaves, moved)
        nll, kl, *buffers = self._mapped(one, arguments) or self._one_by_one(one, arguments)
        state.update(zip(moved, buffers, strict=True))
        return Terms(nll, kl)

    def _mapped(self, one: _One, arguments: _Arguments) -> tuple[Tensor, ...] | None:
        """All members in one call, on buffers that a call which fails may change; None: see `Objective.mapped`."""
        params, leaves, buffers = arguments
        many = torch.func.vmap(one, randomness="different")
        return self.first.mapped(lambda: many(params, leaves, {k: v.clone() for k, v in buffers.items()}))

    def _one_by_one(self, one: _One, arguments: _Arguments) -> tuple[Tensor, ...]:
        assert self.members is not None
        each = [one(*_member(arguments, k)) for k in range(self.members)]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True))

    def after_step(self, step: int, steps: int, params: Params) -> None:
        """What one member would gather, of all at once."""
        self.first.after_step(step, steps, params)
        self.gathered = self.first.gathered

    def approximation(self, params: Params) -> Approximation:
        """What the members' approximations make together, each with its own learned points and buffers."""
        assert self.members is not None
        parts, own = [], []
        for k in range(self.members):
            named = {name: value[k] for name, value in params.items()}
            points = self.first.take_points(named)
            parts.append(self.first.approximation(named))
            own.append(points | {name: self.state[name][k] for name in self.buffers_moved})
        return joined(parts, own)


def _member(arguments: _Arguments, k: int) -> _Arguments:
    params, leaves, buffers = arguments
    return (
        {name: value[k] for name, value in params.items()},
        [leaf[k] for leaf in leaves],
        {name: value[k] for name, value in buffers.items()},
    )
