"""The continuous ranked probability score of a mixture over draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal

from bnn.distributions import base
from bnn.prediction import Prediction

_CHUNK = 4_000_000  # numbers at a time


def crps_of(prediction: Prediction, y: Tensor, num: int, seed: int) -> Tensor:
    """The score of each number of y, ``(n,)`` or ``(n, k)``, float64; see `bnn.analysis.crps`.

    Args:
        prediction: Of n rows, with quantiles.
        y: Checked targets.
        num: Draws of y, where its distribution under a draw is not Gaussian.
        seed: Of these.
    """
    fn = base(prediction.marginal())
    if isinstance(fn, Normal):
        loc, scale = (
            value.expand(fn.batch_shape).reshape(prediction.num_draws, *y.shape).flatten(1).double()
            for value in (fn.loc, fn.scale)
        )
        return _in_chunks(loc, scale, y.flatten().double()).reshape(y.shape)
    if num < 2:
        raise ValueError(f"num is at least 2 draws of y, not {num}")
    drawn = prediction.sample(num, seed).double()
    return sample_crps(drawn.flatten(1), y.flatten().double()).reshape(y.shape)


def gaussian_mixture_crps(loc: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """Of the equal mixture of ``Normal(loc, scale)``: Grimit et al., QJRMS 132 (2006), equation 5.

    Args:
        loc: ``(s, n)``.
        scale: ``(s, n)``.
        y: ``(n,)``.

    Returns:
        ``(n,)``.
    """
    s = len(loc)
    near = _absolute_mean(y - loc, scale).mean(0)
    i, j = torch.triu_indices(s, s, offset=1, device=loc.device)
    between = _absolute_mean(loc[i] - loc[j], (scale[i].square() + scale[j].square()).sqrt()).sum(0)
    own = scale.sum(0) * (2 / math.sqrt(math.pi))  # E|Y - Y'| of two draws from one component
    return near - (2 * between + own) / (2 * s * s)


def sample_crps(drawn: Tensor, y: Tensor) -> Tensor:
    """From draws of y: ``mean|Y - y| - mean|Y - Y'| / 2`` over pairs of different draws (Ferro, QJRMS 140, 2014).

    Args:
        drawn: ``(m, n)``.
        y: ``(n,)``.

    Returns:
        ``(n,)``.
    """
    m = len(drawn)
    # The sum over pairs of |Y_i - Y_j| is sum_i (2i - m - 1) Y_(i), with i from 1 in ascending order.
    weights = 2 * torch.arange(1, m + 1, dtype=drawn.dtype, device=drawn.device) - m - 1
    between = (weights.unsqueeze(-1) * drawn.sort(0).values).sum(0) * 2 / (m * (m - 1))
    return (drawn - y).abs().mean(0) - between / 2


def _absolute_mean(loc: Tensor, scale: Tensor) -> Tensor:
    """E|Z| of Z ~ Normal(loc, scale): a folded normal."""
    ratio = loc / (scale * math.sqrt(2))
    return loc * ratio.erf() + scale * math.sqrt(2 / math.pi) * (-ratio * ratio).exp()


def _in_chunks(loc: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """`gaussian_mixture_crps` over some columns at a time: it goes over all pairs of draws."""
    step = max(1, _CHUNK // (len(loc) * len(loc)))
    columns = [slice(i, i + step) for i in range(0, len(y), step)]
    return torch.cat([gaussian_mixture_crps(loc[:, at], scale[:, at], y[at]) for at in columns])
