"""The same family of prior at another scale: the law of ``centre + factor * (w - centre)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import singledispatch
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor

from bnn.priors.base import Prior
from bnn.priors.hierarchical import Hierarchical
from bnn.priors.horseshoe import Horseshoe, RegularisedHorseshoe
from bnn.priors.pretrained import Pretrained
from bnn.priors.scaled import Scaled


@singledispatch
def rescaled(prior: Prior, factor: float) -> Prior:
    """The prior of ``centre + factor * (w - centre)``, w being of this one.

    Args:
        prior: With a scale, fixed or learned.
        factor: A positive number.

    Raises:
        ValueError: It has no scale of its own, or a hyper-prior that is closed under no factor.
    """
    raise ValueError(
        f"{type(prior).__name__} has no scale that a factor could multiply: write it as one of bnn.priors that has, or "
        "work the scale out in it"
    )


@rescaled.register(Scaled)
def _(prior: Scaled, factor: float) -> Prior:
    name = "gain" if isinstance(prior.scale, str) else "scale"
    new: Prior = replace(prior, **{name: _times(getattr(prior, name), factor)})  # type: ignore[type-var]
    return new


@rescaled.register(Pretrained)
def _(prior: Pretrained, factor: float) -> Prior:
    name = "gain" if isinstance(prior.scale, str) else "scale"
    changes: dict[str, Any] = {name: _times(getattr(prior, name), factor)}
    return replace(prior, prefix="", **changes)  # its weights bear their prefix by now


@rescaled.register(Hierarchical)
def _(prior: Hierarchical, factor: float) -> Prior:
    if isinstance(prior.hyper, str):
        return replace(prior, start=prior.start * factor)
    return replace(prior, hyper=times(prior.hyper, factor))


@rescaled.register(Horseshoe)
def _(prior: Horseshoe, factor: float) -> Prior:
    return replace(prior, scale=prior.scale * factor)


@rescaled.register(RegularisedHorseshoe)
def _(prior: RegularisedHorseshoe, factor: float) -> Prior:
    return replace(prior, scale=prior.scale * factor, slab_scale=prior.slab_scale * factor)


def centres(prior: Prior, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``{name: centre}``, each a tensor that broadcasts to its parameter: what a factor on the scale leaves alone."""
    if isinstance(prior, Scaled):
        return prior.centres(params)
    return {name: param.new_zeros(()) for name, param in params.items()}


def _times(scale: Any, factor: float) -> Any:
    return scale * factor if isinstance(scale, int | float | Tensor) else times(scale, factor)


@singledispatch
def times(fn: Any, factor: float) -> Any:
    """The distribution of a positive number, times a factor.

    Raises:
        ValueError: It is of a family that is not closed under it.
    """
    raise ValueError(
        f"a hyper-prior that a factor can multiply is a HalfCauchy, HalfNormal, Exponential, Gamma, InverseGamma, "
        f"LogNormal, Weibull or Uniform, not {fn}"
    )


@times.register(dist.HalfCauchy)
@times.register(dist.HalfNormal)
def _half(fn: Any, factor: float) -> Any:
    return type(fn)(fn.scale * factor)


@times.register(dist.Exponential)
def _(fn: dist.Exponential, factor: float) -> Any:
    return dist.Exponential(fn.rate / factor)


@times.register(dist.Gamma)
def _(fn: dist.Gamma, factor: float) -> Any:
    return dist.Gamma(fn.concentration, fn.rate / factor)


@times.register(dist.InverseGamma)
def _(fn: dist.InverseGamma, factor: float) -> Any:
    return dist.InverseGamma(fn.concentration, fn.rate * factor)


@times.register(dist.LogNormal)
def _(fn: dist.LogNormal, factor: float) -> Any:
    return dist.LogNormal(fn.loc + torch.tensor(factor, dtype=fn.loc.dtype).log(), fn.scale)


@times.register(dist.Weibull)
def _(fn: dist.Weibull, factor: float) -> Any:
    return dist.Weibull(fn.scale * factor, fn.concentration)


@times.register(dist.Uniform)
def _(fn: dist.Uniform, factor: float) -> Any:
    return dist.Uniform(fn.low * factor, fn.high * factor)
