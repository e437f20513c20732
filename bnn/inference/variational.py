"""Variational inference with any Pyro guide."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import constraints

from bnn.approximations import Approximation, Guide, Values
from bnn.capture import Backend, Captured
from bnn.data import Batch
from bnn.inference.base import GradientMethod
from bnn.inference.objective import Objective, Params, Terms
from bnn.layout import Layout, Site
from bnn.model import BNN


@dataclass(frozen=True, kw_only=True)
class Variational(GradientMethod):
    """Variational inference with a Pyro guide: minimises ``E_q[-log p(y | w)] + T E_q[log q(w) - log p(w)]``.

    Args:
        guide: A class of Pyro's autoguides (or a `functools.partial` of one, for its options); or a guide function,
            called as ``guide(x, y)``, with ``pyro.param`` and ``pyro.sample`` for every latent site. Every site has to
            be reparameterised (``rsample``).
        draws: Draws a step, over which the loss is averaged.
    """

    guide: Callable[..., Any]
    draws: int = 1

    def __post_init__(self) -> None:
        """See `GradientMethod`."""
        super().__post_init__()
        if not callable(self.guide):
            raise TypeError(f"guide is a class of Pyro's autoguides or a guide function, not {self.guide!r}")
        if self.draws < 1:
            raise ValueError(f"draws is at least 1, not {self.draws}")

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`."""
        return GuideLoss(self, model, n_data, backend)

    def restored_guide(self, model: BNN, params: Mapping[str, Tensor]) -> Approximation:
        """The guide at saved parameters.

        Raises:
            ValueError: They are not those of this guide.
        """
        objective = GuideLoss(self, model, 1, "eager")
        expected = {name: tuple(value.shape) for name, value in objective.initial().items()}
        got = {name: tuple(value.shape) for name, value in params.items()}
        if got != expected:
            raise ValueError(f"the saved guide has parameters {got}, this one {expected}")
        return objective.approximation(params)


class GuideLoss(Objective):
    """The negative evidence lower bound per datum, at draws of the guide: what Pyro's ``Trace_ELBO`` estimates."""

    method: Variational
    bound = True
    draws_map = False

    def initial(self) -> dict[str, Tensor]:
        """All of the guide's parameters, unconstrained, as one flat vector."""
        start = self.latents.unflatten(self.method.start(self.model, self.latents))
        make = _AutoGuide if _is_autoguide(self.method.guide) else _FunctionGuide
        self._guide: _AutoGuide | _FunctionGuide = make(self.method.guide, self.model, start)
        self._check(self._guide.trace(self._guide.layout.unflatten(self._guide.start)))
        return {"guide": self._guide.start}

    def _check(self, trace: poutine.Trace) -> None:
        sites: dict[str, Any] = dict(trace.iter_stochastic_nodes())
        missing = [name for name in self.latents.names if name not in sites]
        if missing:
            raise ValueError(f"the guide has no sample site for {missing}")
        fixed = [name for name, node in sites.items() if not node["fn"].has_rsample]
        if fixed:
            raise ValueError(
                f"the guide's sites {fixed} cannot be reparameterised (their distributions have no rsample)"
            )

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """log q - log p at the guide's draws, one after the other."""
        values = self._guide.layout.unflatten(params["guide"])
        nll = kl = params["guide"].new_zeros(())
        for _ in range(self.method.draws):
            guide = self._guide.trace(values)
            guide.compute_log_prob()
            data, trace = self.data_nll(_values(guide, self.latents.names), points, batch, state)
            trace.compute_log_prob(lambda name, site: name in self.latents.names)
            log_q = sum(node["log_prob_sum"] for _, node in guide.iter_stochastic_nodes())
            log_p = sum(trace.nodes[name]["log_prob_sum"] for name in self.latents.names)
            nll, kl = nll + data, kl + log_q - log_p
        return Terms(nll / self.method.draws, kl / self.method.draws)

    def approximation(self, params: Params) -> Approximation:
        """The guide at these parameters."""
        guide, names = self._guide, self.latents.names

        def draw(vector: Tensor) -> list[Tensor]:
            drawn = _values(guide.trace(guide.layout.unflatten(vector)), names)
            return [drawn[name].detach() for name in names]

        captured = Captured(draw, "graph", "the guide")
        return Guide(lambda: dict(zip(names, captured(params["guide"]), strict=True)), {"guide": params["guide"]})


class _AutoGuide:
    """One of Pyro's autoguides, its parameters taken from arguments and not from Pyro's global store."""

    def __init__(self, make: Callable[..., Any], model: BNN, start: Values):
        options = {}
        if "init_loc_fn" in inspect.signature(make).parameters and "init_loc_fn" not in getattr(make, "keywords", {}):
            options["init_loc_fn"] = pyro.infer.autoguide.init_to_value(values=start)
        points = {site.name: site.value for site in model.sites().points}
        with pyro.settings.context(module_local_params=True), pyro.get_param_store().scope():
            # The unknowns alone: a guide asks the model for their shapes and supports, not for the data.
            self._guide = make(poutine.substitute(model.sample_unknowns, data=points), **options)
            self._guide()
        parameters = {name: p.detach() for name, p in self._guide.named_parameters()}
        self.layout = Layout([Site(name, value, constraints.real) for name, value in parameters.items()])
        self.start = self.layout.flatten(parameters)

    def trace(self, values: Mapping[str, Tensor]) -> poutine.Trace:
        """The guide's trace at these parameters."""
        # The setting is read at each call: without it, one that comes after the fit writes into the global store.
        with pyro.settings.context(module_local_params=True):
            return poutine.trace(lambda: torch.func.functional_call(self._guide, dict(values), ())).get_trace()


class _FunctionGuide:
    """A guide function, its ``pyro.param`` statements substituted: read from the store they would have no gradient."""

    def __init__(self, guide: Callable[..., Any], model: BNN, start: Values):
        self._guide = guide
        required = [
            p
            for p in inspect.signature(guide).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        # All latents are global: a guide over them has the model's arguments by Pyro's convention, and no use for them.
        self._arguments = (None,) * len(required)
        with pyro.get_param_store().scope({"params": {}, "constraints": {}}):
            try:
                trace = poutine.trace(guide).get_trace(*self._arguments)
            except (TypeError, AttributeError) as error:
                raise ValueError(
                    f"the guide reads its arguments; over network weights it is called with None: {error}"
                ) from error
        nodes: dict[str, Any] = {name: node for name, node in trace.nodes.items() if node["type"] == "param"}
        sites = [
            Site(name, node["value"].detach().clone(), node["kwargs"].get("constraint", constraints.real))
            for name, node in nodes.items()
        ]
        self.layout = Layout(sites)
        self.start = self.layout.flatten({site.name: site.value for site in sites})

    def trace(self, values: Mapping[str, Tensor]) -> poutine.Trace:
        """The guide's trace at these parameters."""
        return poutine.trace(poutine.substitute(self._guide, data=dict(values))).get_trace(*self._arguments)


def _values(trace: poutine.Trace, names: list[str]) -> dict[str, Tensor]:
    return {name: cast(Tensor, trace.nodes[name]["value"]) for name in names}


def _is_autoguide(guide: Callable[..., Any]) -> bool:
    if isinstance(guide, AutoGuide):
        raise ValueError(f"give the class {type(guide).__name__} (or a functools.partial of it), not an instance")
    target = guide.func if isinstance(guide, functools.partial) else guide
    return isinstance(target, type) and issubclass(target, AutoGuide)
