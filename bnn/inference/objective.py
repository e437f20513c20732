"""The training loss of a method, as a module: captured once, and then a flat tensor program."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from bnn.approximations import Approximation
from bnn.capture import Backend, Captured
from bnn.data import Batch, as_batch
from bnn.forward import maps_well, one_by_one
from bnn.inference.base import GradientMethod, IterativeMethod
from bnn.inputs import Inputs, named_leaves, row_shapes
from bnn.layout import Layout, Site
from bnn.likelihoods import refuse_training_weights
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.precision import autocast_for_network
from bnn.random import isolated
from bnn.readings import MEAN, SITE

Params = Mapping[str, Tensor]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Terms:
    """What a loss is made of, summed over the whole data set: scalars, or one a member (`Objective.members`)."""

    #: Negative log-likelihood, scaled to N rows.
    nll: Tensor
    #: Divergence from the prior.
    kl: Tensor


class Objective(nn.Module, ABC):
    """The loss of a method: parameters, and ``forward(x, y)`` -> ``(nll + temperature * kl) / N``.

    For one's own training loop: any torch optimiser, Lightning or DDP; `posterior` ends it. The parameters are a few
    flat vectors, so that an optimiser's step costs the same for 2 layers and for 200; optimisers that need the shapes
    of the weights (Muon) do not apply.

    A subclass writes its mathematics: `initial`, `terms` and `approximation`.

    Args:
        method: Its settings; `temperature` is T in ``nll + T * kl``: the target is ``p(y | w)^(1/T) p(w)``.
        model: Copied; the user's network stays as it is.
        n_data: N, the number of rows of the whole training set.
        backend: See `bnn.capture.Captured`.
    """

    #: How many copies of the parameters there are, each with rows of its own: parameters, buffers and the tensors of
    #: a batch then have this leading dimension. None: one, without it.
    members: int | None = None
    #: Objectives that do a part of the work: in a tuple, so that their parameters do not count as this module's.
    parts: tuple[Objective, ...] = ()
    #: Sites beside the model's own: unknowns a row, where all rows are among the latents.
    local: Sequence[Site] = ()
    #: Whether batches have to tell which rows of the data they are.
    needs_rows: bool = False
    #: Whether the loss, at temperature 1, is a bound on the evidence: -ELBO / N.
    bound: ClassVar[bool] = False
    #: Whether vmap takes the random draws of `terms`; Pyro's own `rsample` it does not take.
    draws_map: ClassVar[bool] = True

    def __init__(self, method: IterativeMethod, model: BNN, n_data: int, backend: Backend = "auto"):
        super().__init__()
        self.method = method
        #: What the posterior keeps for the record.
        self.settings = method.settings()
        if n_data < 1:
            raise ValueError(f"n_data is the number of training rows, at least 1, not {n_data}")
        self.model = model.copy()
        if not self.model.net.training:  # a net left in training mode keeps submodules that the user froze in eval
            self.model.net.train()
        if self.model.readings is not None:
            refuse_training_weights(self.model.likelihood, "a likelihood averaged over uncertain inputs")
        sites = self.model.sites()
        self.n_data = n_data
        #: Draws of uncertain inputs a row, over which its likelihood is averaged.
        self.input_draws = method.input_draws if isinstance(method, GradientMethod) else 1
        self.latents = Layout([*sites.latents, *self.local])
        self.points = Layout(sites.points)
        self.backend: Backend = backend
        self.temperature = torch.tensor(method.temperature, dtype=model.like.dtype, device=model.like.device)
        self.state = self.model.state()
        #: The buffers, which a step may change.
        self.buffers_moved = [name for name, _ in self.model.net.named_buffers()]
        if self.members is not None:
            for name in self.buffers_moved:
                self.state[name] = self.state[name].expand(self.members, *self.state[name].shape).clone()
        self.notes: list[str] = []
        self._maps = True  # until torch could not
        #: What the method gathers from step to step (`after_step`), one a member if there are members; `approximation`
        #: finds it among its parameters.
        self.gathered: dict[str, Tensor] = {}
        #: What it remembers from step to step besides tensors: numbers as JSON.
        self.remembered: dict[str, Any] = {}
        #: The shapes of one row of each input, once there was one.
        self.input_shapes: list[tuple[int, ...]] | None = None
        for name, value in self.initial().items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))
        if self.points.size and self.members is None:
            self.points_vector = nn.Parameter(self.points.flatten({s.name: s.value for s in sites.points}))
        #: Tensors that `terms` finds among its parameters and that have no gradient, such as noise; see `renew`.
        self.given_tensors = self.given()
        self._programs: dict[Any, Captured] = {}

    @abstractmethod
    def initial(self) -> dict[str, Tensor]:
        """The starting values of the parameters, in a fixed order."""

    @abstractmethod
    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The loss at these parameters; the buffers among `state` may be changed in place."""

    @abstractmethod
    def approximation(self, params: Params) -> Approximation:
        """The distribution over the latents that these parameters describe."""

    def given(self) -> dict[str, Tensor]:
        """What `terms` is to find among its parameters besides these, where a method needs that."""
        return {}

    def renew(self, given: dict[str, Tensor]) -> None:
        """Called with these tensors before each evaluation, to change them in place."""

    def renew_all(self) -> None:
        """Have the next evaluation depend on no number of the last one."""

    def forward(self, x: Any, y: Any, rows: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """The loss per datum of a batch: a scalar that knows its gradient.

        Args:
            x: Inputs, rows first.
            y: Targets.
            rows: ``(n,)``, indices of the rows in the whole set, for models with unknowns a row.
            weight: ``(n,)``, sample weights.
        """
        if self.model.readings is not None:
            x = self.model.read(x, rows=rows)
        batch = as_batch(x, y, self.model.likelihood, self.model.like, weight)
        batch = Batch(batch.x, batch.y, rows, batch.weight)
        self.input_shapes = self.input_shapes or row_shapes(batch.x)
        if self.members is not None:
            leaves = [leaf.expand(self.members, *leaf.shape).contiguous() for leaf in batch.leaves]
            batch = Batch.rebuild(batch.structure, leaves)
        with autocast_for_network(self.temperature.device):
            loss: Tensor = _CapturedLoss.apply(self, batch, *self.parameters())
        return loss

    def gradients(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """One captured evaluation; buffers move on.

        Returns:
            The gradients, one a parameter, and ``(3,)``: loss, nll and kl per datum.
        """
        program = self.program(batch)
        parameters = self._vectors()
        self.renew(self.given_tensors)
        given = self.given_tensors.values()
        results = program(*parameters, *self.state.values(), *given, self.temperature, *batch.leaves)
        count = len(parameters)
        if self.training:
            for name, value in zip(self.buffers_moved, results[count + 1 :], strict=True):
                self.state[name] = value
        return list(results[:count]), results[count]

    def _vectors(self) -> list[Tensor]:
        """The parameters as they are: this module's own, for which `parameters()` would look through every other."""
        return [p.detach() for p in self._parameters.values() if p is not None]

    def after_step(self, step: int, steps: int, params: Params) -> None:
        """Called after optimiser step `step` of `steps`, for what a method gathers on the way (see `gathered`).

        Args:
            step: From 1.
            steps: Of the whole fit.
            params: The parameters now; with members, of all of them.
        """

    @property
    def batchable(self) -> bool:
        """Whether several sets of parameters are best mapped over, rather than taken one after the other."""
        return self._maps and self.draws_map and maps_well(self.model.net)

    def mapped(self, call: Callable[[], Result]) -> Result | None:
        """What a call gives that maps over several sets of parameters; None where they are better taken one by one.

        That torch has no rule for something that the network does is said in `notes`, and not tried again. Where the
        inputs are at fault, taking them one by one raises once more.
        """
        if not self.batchable:
            return None
        try:
            return call()
        except RuntimeError as error:
            self._maps = False
            self.notes.append(one_by_one(self.model.net, error))
            return None

    def one_member(self, batch: Batch) -> Batch:
        """The rows of one member."""
        if self.members is None:
            return batch
        return Batch.rebuild(batch.structure, [leaf[0] for leaf in batch.leaves])

    def program(self, batch: Batch) -> Captured:
        """The captured function for batches of this structure, in the present mode."""
        key = (batch.structure, self.training)
        if key not in self._programs:
            structure = batch.structure
            count, states, given = len(list(self.parameters())), list(self.state), list(self.given_tensors)
            before = count + len(states) + len(given)

            def evaluate(*tensors: Tensor) -> Sequence[Tensor]:
                state = dict(zip(states, tensors[count:], strict=False))
                named = dict(zip(given, tensors[count + len(states) :], strict=False))
                temperature, *leaves = tensors[before:]
                return self._evaluate(tensors[:count], named, state, temperature, Batch.rebuild(structure, leaves))

            def check(*tensors: Tensor) -> None:
                self.check(self.one_member(Batch.rebuild(structure, tensors[before + 1 :])))

            what = f"the {type(self).__name__} of this network"
            self._programs[key] = Captured(evaluate, self.backend, what, check)
        return self._programs[key]

    def check(self, batch: Batch) -> None:
        """Run the Pyro model once on a batch, validation on, so that what does not fit is told in words."""
        # Before Pyro adds its shapes to a message.
        if len(batch.y) > self.n_data:
            raise ValueError(f"n_data, the rows of the whole set, is {self.n_data}, but this batch has {len(batch.y)}")
        self.check_rows(batch)

    def check_rows(self, batch: Batch) -> None:
        """As `check`, of rows that need not be among the N."""
        self.model.likelihood.check(self.outputs(batch.x), batch.y)
        values, points, state = self._start
        with isolated(device=self.temperature.device), torch.no_grad(), pyro.validation_enabled(True):
            self.model.trace(values, points, batch.x, batch.y, rows=batch.rows, weight=batch.weight, state=state)

    def outputs(self, x: Inputs) -> Tensor:
        """The network's outputs at the start, ``(n,)`` or ``(n, k)``; nothing moves.

        Raises:
            ValueError: The network cannot take such inputs.
        """
        values, points, state = self._start
        with isolated(device=self.temperature.device), torch.no_grad():
            weights = self.model.weights(values, points)
            try:
                return self.model.forward(weights, self.model.expected(x), state)
            except (RuntimeError, ValueError, IndexError, AttributeError) as error:
                shown = ", ".join(f"{name} {tuple(leaf.shape)} of {leaf.dtype}" for name, leaf in named_leaves(x))
                raise ValueError(f"the network cannot take these inputs ({shown}): {error}") from error

    @property
    def _start(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """The values that latents and points start from, and a copy of one member's state."""
        stacked = set() if self.members is None else set(self.buffers_moved)
        return (
            {site.name: site.value for site in self.latents.sites},
            {site.name: site.value for site in self.points.sites},
            {name: (value[0] if name in stacked else value).clone() for name, value in self.state.items()},
        )

    @property
    def backends(self) -> list[str]:
        """What each captured program runs on, in the order in which they were made."""
        return [backend for captured in self._programs.values() for backend in captured.backends]

    def prepare(self, batch: Batch, calls: int | None = None) -> None:
        """Capture for batches like this one; see `bnn.capture.Captured.prepare`."""
        parameters = self._vectors()
        given = self.given_tensors.values()
        self.program(batch).prepare(
            *parameters, *self.state.values(), *given, self.temperature, *batch.leaves, calls=calls
        )

    def _evaluate(
        self, params: Sequence[Tensor], given: Params, state: dict[str, Tensor], temperature: Tensor, batch: Batch
    ) -> Sequence[Tensor]:
        names = [name for name, _ in self.named_parameters()]

        def loss(values: list[Tensor]) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
            named = dict(zip(names, values, strict=True))
            moving = {name: value.clone() for name, value in state.items()}
            points = self.take_points(named)
            terms = self.terms({**named, **given}, points, batch, moving)
            nll, kl = terms.nll / self.n_data, terms.kl / self.n_data
            total = nll + temperature * kl
            stats = torch.stack([total, nll, kl])
            if self.members is not None:  # the members' gradients are independent of each other
                total, stats = total.sum(), stats.mean(1)
            return total, (stats, [moving[name] for name in self.buffers_moved])

        gradients, (_, (stats, moved)) = torch.func.grad_and_value(loss, has_aux=True)(list(params))
        return [*gradients, stats.detach(), *[value.detach() for value in moved]]

    def take_points(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """The learned points; their vector is taken out of the parameters, which are the method's own then."""
        has_own = self.points.size and self.members is None
        return self.points.unflatten(named.pop("points_vector")) if has_own else {}

    def posterior(self, params: Params | None = None) -> Posterior:
        """The posterior at the present parameters (or at these), with copies of all that it needs."""
        with torch.no_grad(), pyro.validation_enabled(False):
            named = {name: p.detach().clone() for name, p in (params or dict(self.named_parameters())).items()}
            points = self.take_points(named)
            approximation = self.approximation({**named, **self.gathered})
            own = set() if self.members is None else set(self.buffers_moved)  # these are part of each draw
        return Posterior(
            self.model,
            approximation,
            points=points,
            state={name: value for name, value in self.state.items() if name not in own},
            settings={**self.settings, "n_data": self.n_data},
            input_shapes=self.input_shapes,
        )

    def data_nll(
        self, values: Params, points: Params, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[Tensor, pyro.poutine.Trace]:
        """The scaled negative log-likelihood at given latents, and the trace it comes from.

        Where inputs are uncertain and not among the latents, the likelihood is averaged over draws of them.
        """
        if self.model.readings is not None and SITE not in values:
            return self._nll_over_inputs(values, points, batch, state)
        trace = self.model.trace(
            values,
            points,
            batch.x,
            batch.y,
            n_data=self.n_data,
            rows=batch.rows,
            weight=batch.weight,
            state=state,
        )
        y: Any = trace.nodes["y"]
        return -scale_and_mask(y["fn"].log_prob(y["value"]), y["scale"], y["mask"]).sum(), trace

    def _nll_over_inputs(
        self, values: Params, points: Params, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[Tensor, pyro.poutine.Trace]:
        """``-log (1/K) sum_k p(y | x_k)`` a row, x_k drawn given the reading; see `GradientMethod.input_draws`.

        K rows stand for each row, in one call of the network.
        """
        assert isinstance(batch.x, Mapping)
        assert self.model.readings is not None
        mean, draws, n = batch.x[MEAN], self.input_draws, len(batch.y)
        z = torch.randn((draws, *mean.shape), dtype=mean.dtype, device=mean.device)
        x = self.model.readings.true_inputs(batch.x, z)
        trace = self.model.given_inputs().trace(
            values,
            points,
            x.flatten(0, 1),
            batch.y.repeat(draws, *[1] * (batch.y.dim() - 1)),
            n_data=draws * self.n_data,  # the plate's scale is N/n then, as it is to be
            weight=None if batch.weight is None else batch.weight.repeat(draws),
            state=state,
        )
        y: Any = trace.nodes["y"]
        each = y["fn"].log_prob(y["value"]).unflatten(0, (draws, n))
        by_row = (y["scale"], y["mask"])
        scale, mask = (part[:n] if isinstance(part, Tensor) and part.dim() else part for part in by_row)
        return -scale_and_mask(each.logsumexp(0) - math.log(draws), scale, mask).sum(), trace

    def _apply(self, fn: Any, recurse: bool = True) -> Objective:
        """``.to(device)`` moves what is not a parameter too; programs are made anew."""
        super()._apply(fn, recurse)
        for part in self.parts:
            part._apply(fn, recurse)
        self.model.net._apply(fn)
        self.state = {name: fn(value) for name, value in self.state.items()}
        self.given_tensors = {name: fn(value) for name, value in self.given_tensors.items()}
        self.temperature = fn(self.temperature)
        sites = self.model.sites()
        self.latents, self.points = Layout([*sites.latents, *self.local]), Layout(sites.points)
        self._programs.clear()
        return self

    def train(self, mode: bool = True) -> Objective:
        """Training or evaluation mode, for the network too (dropout, batch statistics)."""
        super().train(mode)
        for part in self.parts:
            part.train(mode)
        self.model.net.train(mode)
        return self


class _CapturedLoss(torch.autograd.Function):
    """A loss whose gradient came with its value."""

    @staticmethod
    def forward(ctx: Any, objective: Objective, batch: Batch, *params: Tensor) -> Tensor:
        gradients, stats = objective.gradients(batch)
        ctx.save_for_backward(*gradients)
        return stats[0].clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        return None, None, *[outputs[0] * gradient for gradient in ctx.saved_tensors]
