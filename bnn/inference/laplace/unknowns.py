"""What a Laplace approximation makes of a model's unknowns: weights, which are Gaussian, and hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

from bnn.distributions import base, loc_and_scale
from bnn.layout import Layout
from bnn.model import BNN
from bnn.priors.elastic_net import ElasticNetLaw

Scales = Literal["model", "group", "layer"]
Values = dict[str, Tensor]
Trace = Any  # of Pyro, whose nodes have no types


@dataclass(frozen=True)
class Hyper:
    """Values of the hyper-parameters."""

    #: Random ones: prior scales, noise scales, ``{site: value}``.
    latents: Values
    #: The likelihood's learned points.
    points: Values
    #: By which number the prior scale of a weight is multiplied.
    factors: Values


class Unknowns:
    """Weights and hyper-parameters of a model.

    Hyper-parameters are the latents that are no weights, the likelihood's own learned points (under a flat prior) and,
    where asked for, a factor on the scale of each Gaussian prior, by group or by layer (under a flat prior of its
    logarithm). They are one vector of unconstrained numbers.

    Args:
        model: Any.
        scales: ``"model"``: no factors. ``"group"``, ``"layer"``: one factor for each prior group, or for each module
            that holds weights.
        tuned: Whether anything is tuned: without it, the likelihood's points are learned with the weights.

    Raises:
        ValueError: A prior that is not centred, or, with factors, one that is not Gaussian.
    """

    def __init__(self, model: BNN, scales: Scales = "model", *, tuned: bool = True):
        sites = model.sites()
        own = {name for name, _ in model.net.named_parameters()}
        shifted = [site.name for site in sites.latents if site.name.removesuffix(".z") in own - {site.name}]
        if shifted:
            raise ValueError(
                f"{shifted[0]!r} has a prior with centred=False, under which the mode is that of other coordinates: "
                "give centred=True, which is the same prior"
            )
        self.weights = Layout([site for site in sites.latents if site.name in own])
        latents = [site for site in sites.latents if site.name not in own]
        points = [site for site in sites.points if site.name not in own] if tuned else []
        self._latents, self._points = [site.name for site in latents], [site.name for site in points]
        self._layout = Layout([*latents, *points])
        self.groups = _groups(model, self.weights, scales) if tuned else {}
        self.size = self._layout.size + len(self.groups)

    def start(self, values: Mapping[str, Tensor]) -> Tensor:
        """The vector to start from, ``(size,)``: given values, else the median of each prior; all factors 1."""
        like = self._layout.flatten({site.name: values.get(site.name, site.value) for site in self._layout.sites})
        return torch.cat([like, like.new_zeros(len(self.groups))])

    def hyper(self, vector: Tensor) -> Hyper:
        """What a vector ``(size,)`` of unconstrained numbers stands for."""
        own, logs = vector.split([self._layout.size, len(self.groups)])
        values = self._layout.unflatten(own)
        factors = {
            name: log.exp() for names, log in zip(self.groups.values(), logs.unbind(), strict=True) for name in names
        }
        latents, points = ({name: values[name] for name in names} for names in (self._latents, self._points))
        return Hyper(latents, points, factors)

    def record(self, vector: Tensor) -> dict[str, float | list[float]]:
        """The hyper-parameters for the settings of a posterior: ``{name: value}``, factors as ``scale of GROUP``."""
        hyper = self.hyper(vector.detach())
        named = {**hyper.latents, **hyper.points}
        named |= {f"scale of {group} times": hyper.factors[names[0]] for group, names in self.groups.items()}
        return {name: value.tolist() for name, value in named.items()}


def _groups(model: BNN, weights: Layout, scales: Scales) -> dict[str, list[str]]:
    """The weights that share a factor on their prior scale."""
    if scales == "model":
        return {}
    _, trace = unknowns_trace(model, {site.name: site.value for site in weights.sites}, Hyper({}, {}, {}), {})
    groups: dict[str, list[str]] = {}
    for name in weights.names:
        family = base(trace.nodes[name]["fn"])
        if not isinstance(family, dist.Normal):
            raise ValueError(
                f"scales={scales!r} tunes the scale of Gaussian priors; that of {name!r} is {type(family).__name__}"
            )
        groups.setdefault(name.rpartition(".")[0] if scales == "layer" else _group_of(model, name), []).append(name)
    return groups


def _group_of(model: BNN, name: str) -> str:
    return next(group for group, _, members in model._groups if name in members)


def unknowns_trace(
    model: BNN, weights: Mapping[str, Tensor], hyper: Hyper, points: Mapping[str, Tensor]
) -> tuple[Values, Trace]:
    """The model before the data, at these values: the likelihood's own unknowns, and the trace with the priors."""
    program = poutine.condition(model.sample_unknowns, data={**weights, **hyper.latents})
    program = poutine.substitute(program, data={**points, **hyper.points})
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        trace: Trace = poutine.trace(program).get_trace()
    return trace.nodes["_RETURN"]["value"][1], trace


def log_prior(trace: Trace, name: str, factor: Tensor | None) -> Tensor:
    """The log-density of one site at its value, its scale multiplied by a factor: a scalar."""
    node = trace.nodes[name]
    if factor is None:
        return node["fn"].log_prob(node["value"]).sum()
    loc, scale = loc_and_scale(node["fn"])
    return dist.Normal(loc, scale * factor).log_prob(node["value"]).sum()


def correlated(trace: Trace, names: list[str]) -> bool:
    """Whether some site's numbers are not independent under the prior (those of a posterior as prior)."""
    return any(bool(base(trace.nodes[name]["fn"]).event_shape) for name in names)


def prior_precision(trace: Trace, name: str, factor: Tensor | None) -> Tensor:
    """The curvature of a site's negative log prior at its value, ``(numel,)``; for a Gaussian 1 / scale^2.

    Raises:
        ValueError: A Laplace prior, or one under which the numbers of a site are not independent.
    """
    node = trace.nodes[name]
    fn, value = base(node["fn"]), node["value"]
    if isinstance(fn, dist.Normal):
        scale = loc_and_scale(node["fn"])[1]
        return (scale if factor is None else scale * factor).expand(value.shape).reshape(-1).square().reciprocal()
    if isinstance(fn, dist.Laplace | ElasticNetLaw):
        raise ValueError(
            f"the prior of {name!r} is a {type(fn).__name__}, with an L1 penalty in it, which has no curvature: its "
            "logarithm is straight, with a kink at the centre. A Laplace approximation needs a smooth prior, such as "
            "bnn.priors.Normal; or name other weights in weights="
        )
    if fn.event_shape:
        raise ValueError(f"the prior of {name!r} ({type(fn).__name__}) is not one of independent numbers")

    def slope(values: Tensor) -> Tensor:
        return torch.func.grad(lambda w: fn.log_prob(w).sum())(values)

    # The numbers are independent: the sum over a row of the Hessian is its diagonal.
    return -torch.func.grad(lambda w: slope(w).sum())(value.detach()).reshape(-1)
