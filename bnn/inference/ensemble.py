"""Ensembles: one method fitted several times from different starts, all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from bnn.approximations import Draws
from bnn.capture import Backend
from bnn.data import Data, Source
from bnn.inference.anchors import anchor_shifts, noisy_targets
from bnn.inference.base import GradientMethod, Init, Method, Run
from bnn.inference.loop import optimise
from bnn.inference.map import MAP
from bnn.inference.objective import Objective
from bnn.inference.readings import refuse_uncertain_inputs
from bnn.inference.replicated import ReplicatedLoss
from bnn.inference.some_members import some_members
from bnn.model import BNN
from bnn.posterior import Posterior

#: What torch's modules call the method that draws their parameters anew.
_RESETS = ("reset_parameters", "_reset_parameters")


@dataclass(frozen=True, kw_only=True)
class Ensemble(Method):
    """A method fitted several times, from different starts and with different orders of the rows: a mixture of them.

    Of `MAP`, a deep ensemble: Lakshminarayanan et al. (2017), arXiv:1612.01474; its draws are the members. Of a method
    with a continuous posterior, the equal mixture of those: draw i comes from member i modulo K (of `SWAG`, that is
    MultiSWAG: Wilson and Izmailov 2020, arXiv:2002.08791). The members are
    trained at once, in one captured program, with rows, dropout masks and draws of their own; their learned points and
    buffers (batch statistics) belong to them, and are part of each draw. Optimisers that treat each number by itself
    (all the common ones) do to a member what they would do to it alone.

    ``anchored=True`` is randomised maximum a posteriori: each member has a centre of its own in the place of the
    prior's mean, drawn from the prior, and, under a `bnn.likelihoods.Gaussian` of fixed scale, targets with noise of
    their own of that scale. For a model that is linear in its weights each member is then an exact, independent draw
    from the posterior: Pearce et al. (2020), arXiv:1810.05546; Lu and Van Roy (2017), arXiv:1705.07347. Under other
    likelihoods only the centres are drawn, and the history says so.

    Args:
        members: K.
        of: The method of each member, with its settings.
        anchored: See above; `of` is a `MAP`, and all priors are Gaussian with fixed scales.
        start: ``"reset"``: the parameters that each module's own ``reset_parameters()`` draws; those that no module
            draws keep the network's value, and the history says which. ``"prior"``: draws from the prior (of
            parameters without one, as ``"reset"``). ``"net"``: the network's own weights for all. A `Posterior`: member
            i starts from its draw i.

    Raises (from `fit`):
        ValueError: What `of` raises; an anchored ensemble under another prior, or on a loader, which does not tell
            which rows it gives.
    """

    members: int = 5
    of: GradientMethod = field(default_factory=MAP)
    anchored: bool = False
    start: Init | Literal["reset"] = "reset"

    def __post_init__(self) -> None:
        """Raise for a setting that makes no sense, with its name."""
        members, of = (getattr(self, name) for name in ("members", "of"))
        if not isinstance(members, int) or members < 1:
            raise ValueError(f"members is a whole number from 1, not {members!r}")
        if not isinstance(of, GradientMethod):
            raise TypeError(f"of is a method that minimises a loss, such as bnn.MAP(), not {of!r}")
        if self.of.init != "net":
            raise ValueError(
                "where the members of an ensemble start is its own setting: start=, not init of the method"
            )
        if not isinstance(self.start, Posterior) and self.start not in ("reset", "prior", "net"):
            raise ValueError(f"start is 'reset', 'prior', 'net' or a Posterior, not {self.start!r}")
        if self.anchored and not isinstance(self.of, MAP):
            raise ValueError(f"an anchored ensemble is one of bnn.MAP, not of {type(self.of).__name__}")

    def fit(self, model: BNN, data: Data, run: Run) -> Posterior:
        """Train all members; see `bnn.fit`."""
        return self.fit_some(range(self.members), model, data, run)

    def fit_some(self, own: range, model: BNN, data: Data, run: Run) -> Posterior:
        """Train some of the members, as they start and (where nothing else is random) go on among all."""
        if self.anchored:
            refuse_uncertain_inputs(model, "an anchored ensemble")

        def build(model: BNN, n_data: int, backend: Backend) -> Objective:
            return self._objective(own, model, n_data, backend)

        def adapt(source: Source, objective: Objective) -> Source:
            if self.anchored:
                source = noisy_targets(source, objective, self.members)
            return source if len(own) == self.members else some_members(self, source, objective, own, run.seed)

        return optimise(self.of, build, model, data, run, adapt)

    def _objective(self, own: range, model: BNN, n_data: int, backend: Backend) -> Objective:
        if self.start == "net":  # one objective stands for all
            members, notes = [self.of.objective(model, n_data, backend)] * self.members, []
        else:
            starts = [self._start(model, k) for k in range(self.members)]
            members = [replace(self.of, init=init).objective(own, n_data, backend) for own, init, _ in starts]
            notes = starts[0][2]
        given = {"shift": anchor_shifts(members[0], self.members)} if self.anchored else {}
        taken = slice(own.start, own.stop)
        objective = ReplicatedLoss(members[taken], {name: value[taken] for name, value in given.items()})
        objective.settings = self.settings()
        objective.notes += notes
        return objective

    def _start(self, model: BNN, k: int) -> tuple[BNN, Init, list[str]]:
        """A copy of the model in which member k starts, the `init` of its method there, and notes."""
        if isinstance(self.start, Posterior):
            own = model.copy()
            one = _single(self.start, k, self.members)
            own.net.load_state_dict(one.net(0).state_dict(), strict=False)  # a thinned network has masks besides
            return own, one, []
        own, kept = _reset(model)
        if self.start == "prior":
            sampled = {site.name for site in own.sites().latents}
            return own, "prior", _kept([name for name in kept if not {name, f"{name}.z"} & sampled])
        trainable = sum(p.requires_grad for p in own.net.parameters())
        if len(kept) == trainable:
            raise ValueError(
                "no module of this network draws its own parameters (none has reset_parameters()), so that all members "
                "would start at the same weights: use start='prior'"
            )
        return own, "net", _kept(kept)


def _kept(names: list[str]) -> list[str]:
    return [f"no module draws {names}: all members start from the network's own values there"] if names else []


def _reset(model: BNN) -> tuple[BNN, list[str]]:
    """A copy of a model whose modules have drawn their parameters anew, and the names of those that none has drawn.

    What is frozen stays. Parameters are NaN beforehand, so that those which nobody writes can be told.
    """
    own = model.copy()
    net, before = own.net, {name: t.detach().clone() for name, t in _tensors(own.net)}
    learned = {name for name, p in net.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name in learned:
                p.fill_(torch.nan)
        # The modules of a module first: what it does to them afterwards is the last word.
        for module in reversed(list(net.modules())):
            if any(p.requires_grad for p in module.parameters()):
                for reset in _RESETS:
                    if callable(draw := getattr(module, reset, None)):
                        draw()
        kept = [name for name, p in net.named_parameters() if name in learned and bool(p.isnan().any())]
        frozen = {name for name, p in net.named_parameters() if name not in learned}
        frozen |= {
            name for name, buffer in net.named_buffers() if bool(buffer.isnan().any()) or _frozen_owner(net, name)
        }
        for name, tensor in _tensors(net):
            if name in frozen or name in kept:
                tensor.copy_(before[name])
    return own, kept


def _tensors(net: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


def _frozen_owner(net: nn.Module, buffer: str) -> bool:
    """Whether a buffer's module has parameters, and all are frozen."""
    own = list(net.get_submodule(buffer.rpartition(".")[0]).parameters(recurse=False))
    return bool(own) and not any(p.requires_grad for p in own)


def _single(posterior: Posterior, k: int, members: int) -> Posterior:
    """A posterior of nothing but draw k, with the points and buffers that belong to it."""
    have = posterior.num_draws
    if have is not None and have < members:
        raise ValueError(f"the posterior to start from has {have} draws, fewer than the {members} members")
    values = {name: value[k] for name, value in posterior.draws(members).items()}
    sites = {site.name for site in posterior.model.sites().latents}
    own = set(posterior.model.state())
    return Posterior(
        posterior.model,
        Draws({name: value[None, None] for name, value in values.items() if name in sites | own}),
        points=posterior.points | {n: v for n, v in values.items() if n not in sites | own},
        state=posterior.state,
    )
