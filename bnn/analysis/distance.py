"""How far one predictive distribution is from another, taken as the reference (a long run of a sampler)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnn.analysis.classification import top_class
from bnn.prediction import Prediction
from bnn.random import isolated

#: Points of the quadrature of the total variation, over +-6 standard deviations of the wider of two.
_GRID = 400


@dataclass(frozen=True)
class Distance:
    """Figures of a prediction against a reference at the same inputs; None: does not apply to this likelihood."""

    #: Root mean square of (mean - mean of the reference), in units of the reference's predictive standard deviation.
    mean: float | None
    #: Geometric mean of the ratio of predictive standard deviations, noise included; 1 is right.
    std: float | None
    #: The same without the noise.
    epistemic: float | None
    #: Of labels: the share of them for which both have the same most probable class (Wilson et al. 2022).
    agreement: float | None
    #: Mean over inputs of ``1/2 int |p(y) - q(y)| dy``: 0 is right, 1 the largest. Of y with one number a row; of
    #: several labels a row the mean over them.
    total_variation: float | None

    def __str__(self) -> str:
        named = {
            "mean off by": self.mean,
            "sd ratio": self.std,
            "epistemic sd ratio": self.epistemic,
            "agreement": self.agreement,
            "total variation": self.total_variation,
        }
        return ", ".join(f"{name} {value:.3g}" for name, value in named.items() if value is not None)


def distance(prediction: Prediction, reference: Prediction, *, grid: int = _GRID) -> Distance:
    """How far a prediction is from a reference at the same inputs.

    Agreement and total variation as in Wilson et al. (2022), "Evaluating approximate inference in Bayesian deep
    learning"; the total variation of continuous y by the trapezoidal rule.

    Args:
        prediction: n rows.
        reference: At the same rows, under the same likelihood.
        grid: Points of the quadrature.

    Raises:
        ValueError: The predictions are not of the same rows and outputs.
    """
    if prediction.num_rows != reference.num_rows or type(prediction.likelihood) is not type(reference.likelihood):
        raise ValueError(f"{prediction!r} and {reference!r} are not predictions of the same rows")
    fields = prediction.likelihood.fields
    moments = {"mean", "variance"} <= fields and "probs" not in fields
    off = std = epistemic = agreement = None
    if moments:
        off = float(((prediction.mean - reference.mean) / reference.std).square().mean().sqrt())
        std, epistemic = (
            float((own.sqrt() / other.sqrt()).log().mean().exp())
            for own, other in zip(prediction.variance[:2], reference.variance[:2], strict=True)
        )
    if "probs" in fields:
        agreement = float((top_class(prediction)[0] == top_class(reference)[0]).double().mean())
        gap = (prediction.probs - reference.probs).abs()
        tv: float | None = float(0.5 * gap.sum(-1).mean() if prediction.likelihood.labels else gap.mean())
    else:
        one = math.prod(prediction.event) == 1 and not prediction.likelihood.intervals
        tv = _total_variation(prediction, reference, grid) if moments and one else None
    return Distance(off, std, epistemic, agreement, tv)


def _total_variation(prediction: Prediction, reference: Prediction, grid: int) -> float:
    """By the trapezoidal rule around the reference's mean; of counts, the sum over those in the same reach."""
    mean, std = reference.mean, reference.std
    width = 6 * torch.maximum(prediction.std, std) + (prediction.mean - mean).abs()
    if prediction.discrete:
        low = int((mean - width).min().floor().clamp(min=0))
        values = torch.arange(low, int((mean + width).max().ceil()) + 1, dtype=mean.dtype, device=mean.device)
        gap = (
            _densities(prediction, values.expand(len(mean), -1)) - _densities(reference, values.expand(len(mean), -1))
        ).abs()
        return float(0.5 * gap.sum(1).mean())
    mean, width = mean.reshape(-1, 1), width.reshape(-1, 1)
    points = mean + width * torch.linspace(-1, 1, grid).to(mean)  # (n, g)
    gap = (_densities(prediction, points) - _densities(reference, points)).abs()
    return float(0.5 * torch.trapezoid(gap, points, dim=1).mean())


def _densities(prediction: Prediction, points: Tensor) -> Tensor:
    """p(y | x) at points ``(n, g)`` of y, for each row: ``(n, g)``; 0 where y cannot be."""
    support = prediction.likelihood.support
    there = torch.ones_like(points, dtype=torch.bool) if support is None else support.holds(points)
    inside = torch.where(there, points, points[there].median() if bool(there.any()) else points)
    columns = [prediction.log_prob(inside[:, i].reshape(-1, *prediction.event)).exp() for i in range(points.shape[1])]
    return torch.stack(columns, dim=1) * there


def sliced_wasserstein(draws: Tensor, reference: Tensor, *, projections: int = 200, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of two sets of vectors: Bonneel et al. (2015), J. Math. Imaging Vis. 51.

    The root of the mean, over random directions, of the squared distance between projections: of
    ``N(a, S)`` and ``N(b, S)`` in d dimensions it is ``|a - b| / sqrt(d)``. For function values at several inputs
    jointly: ``prediction.outputs``, or ``prediction.sample(s)``.

    Args:
        draws: ``(s, ...)``; what follows the draws is one vector.
        reference: ``(t, ...)``.
        projections: Random directions.
        seed: Of the directions.

    Returns:
        In the units of the values; two sets of s draws of one distribution are some ``1 / sqrt(s)`` standard deviations
        apart.

    Raises:
        ValueError: The vectors have different lengths.
    """
    one, two = (values.detach().flatten(1).double() for values in (draws, reference))
    if one.shape[1] != two.shape[1]:
        raise ValueError(f"the vectors have {one.shape[1]} and {two.shape[1]} numbers: they cannot be compared")
    with isolated(seed, one.device):
        directions = torch.randn(one.shape[1], projections, dtype=one.dtype, device=one.device)
    directions = directions / directions.norm(dim=0)
    count = max(len(one), len(two))
    levels = (torch.arange(count, dtype=one.dtype, device=one.device) + 0.5) / count
    ends = [_at_levels((values @ directions).sort(0).values, levels) for values in (one, two.to(one))]
    return float((ends[0] - ends[1]).square().mean().sqrt())


def _at_levels(ordered: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of sorted columns: those themselves where there are as many as levels."""
    return ordered[(levels * len(ordered)).floor().long().clamp(max=len(ordered) - 1)]
