"""What an exported file says of one row: moments, quantiles, probabilities. Pure torch, so that it can be recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily

from bnn.likelihoods import quantiles
from bnn.likelihoods.tails import tails_of
from bnn.likelihoods.weibull import WeibullLaw
from bnn.prediction import Prediction

#: How often the bracket of a quantile is halved: about as often as the dtype can tell, since each is written out.
BISECTIONS = {torch.float32: 28, torch.float64: 44}


def summary(prediction: Prediction, levels: Tensor | None) -> dict[str, Tensor]:
    """The numbers of one row, by name.

    Args:
        prediction: Of a single row.
        levels: ``(q,)``, of quantiles; None: none.

    Returns:
        Each of the shape of the row's y, ``quantiles`` and ``probabilities`` with levels and classes last.

    Raises:
        NotImplementedError: A quantile of a family whose distribution function torch does not have.
    """
    fields, found = prediction.likelihood.fields, {}
    if "mean" in fields:
        found["mean"] = prediction.mean
    if "variance" in fields:
        parts = prediction.variance
        found |= {"sd": parts.total.sqrt(), "epistemic_sd": parts.epistemic.sqrt()}
        found["aleatoric_sd"] = parts.aleatoric.sqrt()
    if "probs" in fields:
        found["probabilities"] = prediction.probs
    if "entropy" in fields:
        measure = prediction.entropy
        found |= {"entropy": measure.total, "mutual_information": measure.epistemic}
    found = {name: value.squeeze(0) for name, value in found.items()}
    if "quantile" in fields and levels is not None:
        found["quantiles"] = mixture_quantiles(prediction, levels)
    return found


def mixture_quantiles(prediction: Prediction, levels: Tensor) -> Tensor:
    """Quantiles of the mixture over draws at one row, ``(*event, q)``: by a fixed number of bisections.

    The bracket is that of the draws: between the smallest and the largest of their quantiles, or of bounds of these.

    Raises:
        NotImplementedError: The family's distribution function is not known to torch.
    """
    fn: Any = prediction.marginal()  # batch shape (s, *event): one row
    below = _cdf(fn)
    ends = [_range(fn, level) for level in levels]
    low = torch.stack([end[0].min(0).values for end in ends])
    high = torch.stack([end[1].max(0).values for end in ends])
    target = levels.reshape(-1, *[1] * (low.dim() - 1))
    counts = quantiles.is_discrete(fn)
    low = low - 1 if counts else low
    width = high - low
    for _ in range(BISECTIONS.get(low.dtype, 44)):
        width = 0.5 * width
        middle = low + width
        low = torch.where(below(middle.unsqueeze(1)).mean(1) < target, middle, low)
    return ((low + width).floor() if counts else low + 0.5 * width).movedim(0, -1)


def _cdf(fn: Any) -> Callable[[Tensor], Tensor]:
    """The distribution function of single numbers."""
    if isinstance(fn, MixtureSameFamily | dist.Normal | dist.Laplace | dist.LogNormal | WeibullLaw):
        return fn.cdf
    if isinstance(fn, dist.AsymmetricLaplace):
        return lambda y: tails_of(fn).logs(fn, y)[0].exp()
    if isinstance(fn, dist.Gamma):
        return lambda y: torch.special.gammainc(fn.concentration, fn.rate * y.clamp(min=0))
    if isinstance(fn, dist.Poisson):
        return lambda y: torch.where(y < 0, 0.0, torch.special.gammaincc(y.floor().clamp(min=0) + 1, fn.rate))
    raise NotImplementedError(f"{type(fn).__name__} has no distribution function in torch")


def _range(fn: Distribution, level: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers between which the quantile of this level lies, under each draw."""
    if isinstance(fn, dist.Laplace | dist.LogNormal | WeibullLaw):
        return quantiles.quantile_range(fn, level)
    # Of Gaussians too: ONNX knows no inverse of the error function.
    # Cantelli's inequality: P(Y >= m + k s) and P(Y <= m - k s) are at most 1 / (1 + k^2).
    mean, sd = fn.mean, fn.variance.sqrt()
    return mean - sd * ((1 - level) / level).sqrt(), mean + sd * (level / (1 - level)).sqrt()
