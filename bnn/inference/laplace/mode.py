"""The mode of the weights at given hyper-parameters: by training, or from a network that is trained already."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bnn.approximations import Approximation, Draws
from bnn.capture import Backend
from bnn.data import Batch, Data
from bnn.history import History
from bnn.inference.base import Run
from bnn.inference.divergence import negative_log_prior
from bnn.inference.laplace.unknowns import Hyper, Unknowns, Values, log_prior
from bnn.inference.loop import Progress, optimise
from bnn.inference.map import MAP
from bnn.inference.objective import Objective, Params, Terms
from bnn.layout import Layout
from bnn.model import BNN
from bnn.posterior import Posterior

#: The buffer of the (copied) network that carries the hyper-parameters into captured programs.
_BUFFER = "bnn_hyper"

#: Where the mode comes from: how to train, a posterior of one draw, or the network as it is.
Of = MAP | Posterior | Literal["net"]


@dataclass(frozen=True)
class Mode:
    """A trained network."""

    #: ``{parameter: value}`` of the weights that have a prior.
    weights: Values
    #: ``(size,)``, the hyper-parameters, unconstrained.
    hyper: Tensor
    #: Learned points, the likelihood's among them.
    points: Values
    #: Buffers and frozen parameters.
    state: Values
    history: History
    input_shapes: list[tuple[int, ...]] | None = None
    #: What earlier calls of this fit took, before it went on.
    earlier_seconds: float = 0.0


class ModeLoss(Objective):
    """The loss of MAP over the weights alone, at hyper-parameters that may be changed between steps (`set_hyper`)."""

    method: MAP

    def __init__(self, method: MAP, model: BNN, n_data: int, backend: Backend, unknowns: Unknowns):
        self.unknowns = unknowns
        model = model.copy()
        self._weights = unknowns.weights
        known = {}
        if isinstance(method.init, Posterior):
            drawn = method.init.draws()
            known = {name: value.mean(0) for name, value in drawn.items()} | dict(method.init.points)
        model.net.register_buffer(_BUFFER, unknowns.start(known).to(model.like))
        super().__init__(method, model, n_data, backend)

    def initial(self) -> dict[str, Tensor]:
        """One flat vector."""
        if not self._weights.size:
            raise ValueError("no parameter has a prior: there is nothing to approximate but points, which MAP fits")
        return {"theta": self.method.start(self.model, self._weights)}

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The density of the weights; `kl` is their negative log prior."""
        hyper = self.unknowns.hyper(state[_BUFFER])
        values = self._weights.unflatten(params["theta"])
        nll, trace = self.data_nll({**values, **hyper.latents}, {**points, **hyper.points}, batch, state)
        if not hyper.factors:
            return Terms(nll, negative_log_prior(self._weights, trace, params["theta"]))
        return Terms(nll, -torch.stack([log_prior(trace, n, hyper.factors.get(n)) for n in self._weights.names]).sum())

    def approximation(self, params: Params) -> Approximation:
        """A single draw."""
        values = {**self._weights.unflatten(params["theta"]), **self.hyper().latents}
        return Draws({name: value[None, None] for name, value in values.items()})

    def hyper(self) -> Hyper:
        """The hyper-parameters at present."""
        return self.unknowns.hyper(self.state[_BUFFER])

    def set_hyper(self, vector: Tensor) -> None:
        """Change the hyper-parameters, ``(size,)``."""
        self.state[_BUFFER] = vector.detach().to(self.state[_BUFFER])
        if self.points.size:  # for predictions on the way: their gradient is zero
            values = self.points.unflatten(self.points_vector.detach())
            self.points_vector.data.copy_(self.points.flatten({**values, **self.hyper().points}))

    def mode(self) -> Mode:
        """The present point."""
        posterior = self.posterior()
        return _mode(posterior, self.unknowns, self.state[_BUFFER])


def _mode(posterior: Posterior, unknowns: Unknowns, hyper: Tensor) -> Mode:
    values = posterior.draws(1)
    return Mode(
        {name: values[name][0] for name in unknowns.weights.names},
        hyper.detach().clone(),
        {**posterior.points, **unknowns.hyper(hyper).points},
        {name: value for name, value in posterior.state.items() if name != _BUFFER},
        posterior.history,
        posterior.input_shapes,
    )


def find_mode(
    of: Of,
    model: BNN,
    data: Data,
    run: Run,
    unknowns: Unknowns,
    retune: Callable[[Mode], Tensor] | None = None,
    every: int = 1,
) -> Mode:
    """Train, or take what is trained.

    Args:
        of: See `Of`.
        model: Not altered.
        data: As in `bnn.fit`.
        run: As in `bnn.fit`.
        unknowns: Of the model.
        retune: From the mode so far to new hyper-parameters; called while training.
        every: After so many epochs each.

    Raises:
        ValueError: A posterior of several draws, or of another model.
    """
    if isinstance(of, str):
        sites = model.sites()
        values = {site.name: site.value for site in [*sites.latents, *sites.points]}
        weights = {name: values[name].clone() for name in unknowns.weights.names}
        points = {site.name: site.value for site in sites.points}
        hyper = unknowns.start({})
        return Mode(weights, hyper, {**points, **unknowns.hyper(hyper).points}, model.state(), History())
    if isinstance(of, Posterior):
        return _of_posterior(of, model, unknowns)
    objectives: list[ModeLoss] = []

    def build(model: BNN, n_data: int, backend: Backend) -> Objective:
        objectives.append(ModeLoss(of, model, n_data, backend, unknowns))
        return objectives[0]

    def tune(progress: Progress) -> None:
        if retune is not None and progress.epoch % every == 0 and progress.epoch < progress.epochs:
            objectives[0].set_hyper(retune(objectives[0].mode()))

    place = None if run.checkpoint is None else run.checkpoint.part("mode")
    run = dataclasses.replace(run, callbacks=(tune, *run.callbacks), checkpoint=place)
    started = time.perf_counter()
    posterior = optimise(of, build, model, data, run)
    earlier = posterior.history.seconds - (time.perf_counter() - started) if place is not None else 0.0
    mode = _mode(posterior, unknowns, objectives[0].state[_BUFFER])
    return dataclasses.replace(mode, earlier_seconds=max(0.0, earlier))


def _of_posterior(of: Posterior, model: BNN, unknowns: Unknowns) -> Mode:
    if of.num_draws != 1:
        raise ValueError(f"of= takes a posterior of one draw, such as MAP's; {of!r} is not a point")
    values = {name: value[0] for name, value in of.draws().items()} | of.points
    expected = {site.name: site.value.shape for site in [*model.sites().latents, *model.sites().points]}
    other = [name for name in unknowns.weights.names if name not in values or values[name].shape != expected[name]]
    if other:
        raise ValueError(f"the posterior in of= is of another model: {other} are not there, or of another shape")
    return _mode(of, unknowns, unknowns.start(values))


def random_layout(model: BNN) -> Layout:
    """Of all latents of a model."""
    return Layout(model.sites().latents)
