"""Numbers of a distribution at prediction time: distribution functions and quantiles that torch has not, and moments.

scipy's where torch has none, in double precision. What neither knows is taken from draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from bnn.distributions import base
from bnn.likelihoods.weibull import WeibullLaw
from bnn.random import isolated

#: Draws where a number has no closed form, and the seed of them: the same distribution gives the same number.
_DRAWS, _SEED = 1000, 0

#: Families whose distribution function and quantiles are torch's own (or of `bnn`), on any device.
_TORCH = (dist.Normal, dist.Laplace, dist.LogNormal, WeibullLaw)


def law(fn: Any) -> Any:
    """The frozen scipy distribution of a torch one; `KeyError` where there is none in the table."""
    from scipy import stats

    def make(family: Any, *numbers: Tensor, **named: Tensor) -> Any:
        return family(*map(_array, numbers), **{name: _array(value) for name, value in named.items()})

    table: dict[type[Distribution], Callable[[], Any]] = {
        dist.Normal: lambda: make(stats.norm, fn.loc, fn.scale),
        dist.Laplace: lambda: make(stats.laplace, fn.loc, fn.scale),
        dist.AsymmetricLaplace: lambda: make(stats.laplace_asymmetric, fn.asymmetry, fn.loc, fn.scale),
        dist.StudentT: lambda: make(stats.t, fn.df, fn.loc, fn.scale),
        dist.LogNormal: lambda: make(stats.lognorm, fn.scale, scale=fn.loc.exp()),
        WeibullLaw: lambda: make(stats.weibull_min, fn.concentration, scale=fn.log_scale.exp()),
        dist.Gamma: lambda: make(stats.gamma, fn.concentration, scale=1 / fn.rate),
        dist.Beta: lambda: make(stats.beta, fn.concentration1, fn.concentration0),
        dist.Poisson: lambda: make(stats.poisson, fn.rate),
        dist.NegativeBinomial: lambda: make(stats.nbinom, fn.total_count, torch.sigmoid(-fn.logits)),
        dist.Binomial: lambda: make(stats.binom, fn.total_count, fn.probs),
    }
    return table[type(fn)]()


def _array(value: Tensor) -> Any:
    return value.detach().cpu().double().numpy()


def cdf(fn: Any, y: Tensor) -> Tensor:
    """P(Y <= y) of single numbers, elementwise: y broadcasts against the batch shape of `fn`.

    Raises:
        NotImplementedError: It is not known.
    """
    if isinstance(fn, _TORCH):
        return fn.cdf(y)
    try:
        known = law(fn)
    except KeyError:
        return fn.cdf(y)
    with np.errstate(all="ignore"):  # scipy works out both sides of a formula, and the one not wanted may overflow
        return torch.as_tensor(known.cdf(_array(y))).to(y)


def quantile_range(fn: Any, level: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers between which the quantile of this level lies, of each distribution: equal where it is known.

    Args:
        fn: Of single numbers.
        level: A scalar.

    Raises:
        NotImplementedError: They are not known.
    """
    if isinstance(fn, torch.distributions.MixtureSameFamily):
        ends = fn.component_distribution.icdf(level)
        return ends.min(-1).values, ends.max(-1).values
    found = _icdf(fn, level)
    return found, found


def _icdf(fn: Any, level: Tensor) -> Tensor:
    if isinstance(fn, _TORCH):
        return fn.icdf(level).expand(fn.batch_shape)
    try:
        known = law(fn)
    except KeyError:
        return fn.icdf(level.expand(fn.batch_shape))
    with np.errstate(all="ignore"):
        return torch.as_tensor(known.ppf(level.item())).to(level)


def marginal(fn: Any) -> Distribution:
    """The distribution of each single number of y: batch shape that of y."""
    single = base(fn)
    if isinstance(single, torch.distributions.MultivariateNormal):
        return dist.Normal(single.mean, single.stddev)
    if isinstance(single, torch.distributions.MixtureSameFamily) and single.event_shape:
        parts: Any = base(single.component_distribution)
        k = parts.loc.shape[-1]
        logits = single.mixture_distribution.logits.unsqueeze(-2)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logits.expand(*logits.shape[:-2], k, logits.shape[-1])),
            dist.Normal(parts.loc.mT, parts.scale.mT),
        )
    return single


def mean(fn: Any) -> Tensor:
    """E[y], ``(n, ...)``: in closed form, or of 1,000 draws under a seed of their own."""
    single = base(fn)
    if isinstance(single, dist.StudentT):  # torch's own assigns by a mask, which no graph can hold
        return torch.where(single.df > 1, single.loc, torch.nan)
    try:
        return fn.mean
    except NotImplementedError:
        return draws(fn).mean(0)


def variance(fn: Any) -> Tensor:
    """Var[y], ``(n, ...)``, of each number: in closed form, or of 1,000 draws under a seed of their own."""
    single = base(fn)
    if isinstance(single, dist.StudentT):
        tail = torch.where(single.df > 2, single.df / (single.df - 2), torch.inf)
        return torch.where(single.df > 1, single.scale.square() * tail, torch.nan)
    try:
        return fn.variance
    except NotImplementedError:
        return draws(fn).var(0)


def draws(fn: Any) -> Tensor:
    """1,000 draws of y under a seed of their own; torch's random state stays as it was."""
    with isolated(_SEED, _device(fn)):
        return fn.sample((_DRAWS,))


def _device(fn: Distribution) -> torch.device:
    """Where its numbers are, whose generator the draws move."""
    parts = list(vars(fn).values())
    found = [part.device for part in parts if isinstance(part, Tensor)]
    found += [_device(part) for part in parts if isinstance(part, Distribution)]
    return next((device for device in found if device.type != "cpu"), torch.device("cpu"))


def is_discrete(fn: Distribution) -> bool:
    """Whether y is a count or a label."""
    return bool(fn.support.is_discrete)  # type: ignore[union-attr]
