"""Logarithms of distribution functions, differentiable and stable in both tails: for censored and truncated targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from bnn.likelihoods.weibull import WeibullLaw


class Tails(NamedTuple):
    """A family of single numbers."""

    #: From its distribution and y to log P(Y <= y) and log P(Y > y).
    logs: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    #: The lower end of its support.
    least: float = -math.inf


def log_ndtr(z: Tensor) -> Tensor:
    """log of the standard normal distribution function.

    By ``erfcx(x) = exp(x^2) erfc(x)`` on the left: the gradient of `torch.special.log_ndtr` subtracts two numbers of
    size z^2 / 2, which leaves nothing of it in single precision beyond z = -1000.
    """
    left = z < 0
    low, high = torch.where(left, z, -1.0), torch.where(left, 1.0, z)
    lower = (0.5 * torch.special.erfcx(-low / math.sqrt(2))).log() - 0.5 * low * low
    return torch.where(left, lower, torch.log1p(-0.5 * torch.special.erfc(high / math.sqrt(2))))


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(-x))`` for x > 0: Maechler (2012), "Accurately computing log(1 - exp(-|a|))"."""
    x = x.clamp(min=torch.finfo(x.dtype).tiny)
    small = x < math.log(2)
    near, far = torch.where(small, x, 0.5), torch.where(small, 1.0, x)
    return torch.where(small, (-torch.expm1(-near)).log(), torch.log1p(-torch.exp(-far)))


def _normal(fn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    z = (y - fn.loc) / fn.scale
    return log_ndtr(z), log_ndtr(-z)


def _log_normal(fn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    z = (y.log() - fn.loc) / fn.scale
    return log_ndtr(z), log_ndtr(-z)


def _asymmetric(z: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Exponential on both sides of 0, with these scales: ``left / (left + right)`` of the probability lies below."""
    below = z < 0
    low, high = torch.where(below, z / left, -1.0), torch.where(below, 1.0, z / right)
    share, other = left / (left + right), right / (left + right)
    log_below, log_above = low + share.log(), other.log() - high
    return (
        torch.where(below, log_below, torch.log1p(-other * torch.exp(-high))),
        torch.where(below, torch.log1p(-share * torch.exp(low)), log_above),
    )


def _laplace(fn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    return _asymmetric(y - fn.loc, fn.scale, fn.scale)


def _asymmetric_laplace(fn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    return _asymmetric(y - fn.loc, fn.left_scale, fn.right_scale)


def _weibull(fn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    power, hazard = fn.log_hazard(y), fn.hazard(y)
    tiny = power < -15  # log(1 - exp(-h)) is log h - h / 2, of an h that may be too small for a number
    return torch.where(tiny, power - 0.5 * hazard, log1mexp(torch.where(tiny, 1.0, hazard))), -hazard


#: A dict from the family: what is not in it has no distribution function that torch can differentiate.
TAILS: dict[type[Distribution], Tails] = {
    dist.Normal: Tails(_normal),
    dist.LogNormal: Tails(_log_normal, 0.0),
    dist.Laplace: Tails(_laplace),
    dist.AsymmetricLaplace: Tails(_asymmetric_laplace),
    WeibullLaw: Tails(_weibull, 0.0),
}


def tails_of(fn: Distribution) -> Tails:
    """The tails of a family.

    Raises:
        ValueError: They are not known.
    """
    known = TAILS.get(type(fn))
    if known is None:
        names = ", ".join(family.__name__.removesuffix("Law") for family in TAILS)
        raise ValueError(
            f"{type(fn).__name__} has no distribution function that can be differentiated, which censored and "
            f"truncated targets need; known are {names}"
        )
    return known


def log_interval(fn: Distribution, low: Tensor, high: Tensor, inside: float) -> Tensor:
    """log P(low < Y <= high), elementwise; infinite ends are none.

    Args:
        fn: Of single numbers.
        low: Lower ends.
        high: Upper ends, above the lower ones.
        inside: Any number in the support.
    """
    tails = tails_of(fn)
    no_low, no_high = low <= tails.least, high == math.inf
    below_low, above_low = tails.logs(fn, torch.where(no_low, inside, low))
    below_high, above_high = tails.logs(fn, torch.where(no_high, inside, high))
    # A difference of the two smaller logarithms loses the least.
    both = ~(no_low | no_high)
    right = both & (above_low < math.log(0.5))
    left = both & ~right
    by_right = above_low + log1mexp(torch.where(right, above_low - above_high, 1.0))
    by_left = below_high + log1mexp(torch.where(left, below_high - below_low, 1.0))
    one_sided = torch.where(no_low, below_high, above_low)
    open_ = torch.where(no_low & no_high, torch.zeros_like(one_sided), one_sided)
    return torch.where(right, by_right, torch.where(left, by_left, open_))
