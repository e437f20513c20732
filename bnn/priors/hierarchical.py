"""A scale for every parameter, layer or unit: with a hyper-prior, or learned as a point (empirical Bayes)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from bnn.distributions import cast, check_positive, expanded
from bnn.priors.base import Prior, check_numbers, fan_in
from bnn.priors.groups import group_shape


@dataclass(frozen=True, eq=False, repr=False)
class Hierarchical(Prior):
    """Gaussian weights whose scale is unknown, one for every parameter, layer or unit; site ``prior.GROUP.scale.KEY``.

    KEY is the parameter's name, or what stands before its last dot, the layer's. Under ``per="unit"`` each parameter has
    a vector of them, one for each index of its first dimension: a unit's incoming weights, so that outputs that mean
    different things (a mean, a log-scale) have scales of their own. One scale for all parameters of a
    pattern is ``Normal(hyper)``.

    Args:
        hyper: The hyper-prior of a scale, a Pyro distribution of one positive number: half-Cauchy (Gelman, Bayesian
            Analysis 1, 2006), Gamma, ...; or ``"learned"``: a point that is trained beside the posterior
            (empirical Bayes; with a variational bound as the evidence). MCMC refuses points, and methods that seek a mode
            refuse both: the joint density of weights and scale grows without bound as they go to 0 together.
        per: ``"parameter"``, ``"layer"`` or ``"unit"``.
        scaling: ``"fan_in"`` divides the scale by the square root of each parameter's fan-in, so that one scale suits
            layers of different widths.
        start: Where a learned point starts.
        centred: ``False`` samples ``NAME.z`` from a standard Gaussian: weights and their scale are strongly dependent
            where the data say little (the funnel of Neal, 2003).

    Raises:
        ValueError: A hyper-prior that is none.
    """  # noqa: E501

    hyper: TorchDistributionMixin | Literal["learned"] = field(default_factory=lambda: dist.HalfCauchy(1.0))
    per: Literal["parameter", "layer", "unit"] = "parameter"
    scaling: Literal["none", "fan_in"] = "none"
    start: float = 1.0
    centred: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.hyper, TorchDistributionMixin):
            check_positive("hyper", self.hyper)
            shape = self.hyper.batch_shape + self.hyper.event_shape
            if shape.numel() != 1:
                raise ValueError(f"hyper is the distribution of one scale, not of shape {tuple(shape)}")
            if self.start != 1.0:
                raise ValueError("start belongs to hyper='learned'")
        elif self.hyper != "learned":
            raise ValueError(f"hyper is a Pyro distribution or 'learned', not {self.hyper!r}")
        check_numbers(start=self.start)
        if self.per not in ("parameter", "layer", "unit"):
            raise ValueError(f"per is 'parameter', 'layer' or 'unit', not {self.per!r}")
        if self.scaling not in ("none", "fan_in"):
            raise ValueError(f"scaling is 'none' or 'fan_in', not {self.scaling!r}")

    def learned_scale(self) -> bool:
        """It is."""
        return True

    def __call__(self, params: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
        """Sample (or look up) every scale, then the weights; see `Prior`."""
        scales: dict[str, Tensor] = {}
        weights = {}
        for name, param in params.items():
            key = (name.rpartition(".")[0] or name) if self.per == "layer" else name
            if key not in scales:
                scales[key] = self._scale(f"prior.{group}.scale.{key}", param)
            weights[name] = self._sample(name, param, scales[key].to(param))
        return weights

    def _scale(self, site: str, like: Tensor) -> Tensor:
        groups = group_shape("units", site, like.shape) if self.per == "unit" else torch.Size()
        if isinstance(self.hyper, TorchDistributionMixin):
            hyper = cast(self.hyper, like)
            if self.per == "unit":
                hyper = hyper.expand_by(groups[:1]) if not hyper.batch_shape else hyper.expand(groups[:1])
            value: Tensor = pyro.sample(site, hyper.to_event(len(hyper.batch_shape)))
        else:
            start = like.new_full(groups[:1], self.start)
            value = pyro.param(site, start, constraint=constraints.positive)
        return value.reshape(groups)

    def _sample(self, name: str, param: Tensor, scale: Tensor) -> Tensor:
        scale = scale / math.sqrt(fan_in(param.shape)) if self.scaling == "fan_in" else scale
        zero = param.new_zeros(())
        if self.centred:
            weight: Tensor = pyro.sample(name, expanded(dist.Normal, zero, scale, param.shape))
            return weight
        z = pyro.sample(f"{name}.z", expanded(dist.Normal, zero, torch.ones_like(zero), param.shape))
        return pyro.deterministic(name, scale * z, event_dim=param.dim())
