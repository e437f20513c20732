"""Scores of class probabilities: how often right, how far from the truth, whether they come true.

`n` rows, `k` classes. Every function takes a `bnn.Prediction` and the labels of its rows: ``(n,)`` integers, or for
Bernoulli 0 and 1, ``(n,)`` or ``(n, k)``. Several labels a row (of pixels, ``(n, height, width)``) count one by one and
are averaged. One that does not apply raises `AttributeError` and names the likelihood.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bnn.analysis.estimate import Estimate, by_row, estimate, targets
from bnn.prediction import Prediction

#: How probabilities are put into bins: of equal width on [0, 1], or of equally many rows.
Binning = Literal["width", "mass"]


class CalibrationBins(NamedTuple):
    """Rows sorted by the probability of their predicted class, in bins."""

    #: ``(bins + 1,)``.
    edges: Tensor
    #: ``(bins,)``: rows.
    counts: Tensor
    #: ``(bins,)``: mean probability of the predicted class; NaN where there is no row.
    confidence: Tensor
    #: ``(bins,)``: share of rows whose predicted class is right; NaN where there is no row.
    accuracy: Tensor


class BrierDecomposition(NamedTuple):
    """``score = reliability - resolution + uncertainty + within``, exactly."""

    score: Estimate
    #: Squared distance of the probabilities of a bin from how often they came true; 0 is calibrated.
    reliability: Estimate
    #: Squared distance of how often they came true in a bin from how often overall; larger is better.
    resolution: Estimate
    #: Of the labels themselves: the score of somebody who always says how often each class occurs.
    uncertainty: Estimate
    #: From probabilities that differ within a bin (Stephenson, Coelho and Jolliffe 2008); 0 with fine bins.
    within: Estimate


def accuracy(prediction: Prediction, y: Any) -> Estimate:
    """Share of rows whose most probable class is the right one (for k labels a row: share of the labels).

    Args:
        prediction: Of n rows.
        y: ``(n,)``, integer labels; for Bernoulli 0 or 1, ``(n,)`` or ``(n, k)``.
    """
    predicted, _ = top_class(prediction)
    return estimate(by_row(predicted == targets(prediction, y)))


def brier(prediction: Prediction, y: Any) -> Estimate:
    """Squared distance of the class probabilities from the label: 0 is best.

    Brier, Monthly Weather Review 78 (1950). For k classes the sum over classes, up to 2; for Bernoulli ``(p - y)^2``,
    up to 1, which is half of the sum over its two classes.

    Args:
        prediction: Of n rows, with class probabilities.
        y: As in `accuracy`.
    """
    probs, events = _probs_and_events(prediction, y)
    return estimate(_over_events(prediction, (probs - events).square()))


def brier_decomposition(prediction: Prediction, y: Any, bins: int = 10) -> BrierDecomposition:
    """The Brier score by its parts: Murphy (1973), with the term within bins of Stephenson et al. (2008).

    Each class by itself, in bins of equal width of its probability, summed over classes; k labels of Bernoulli are
    averaged. *Weather and Forecasting* 23.

    Args:
        prediction: Of n rows, with class probabilities.
        y: As in `accuracy`.
        bins: Number of bins on [0, 1], at least 1.
    """
    probs, events = _probs_and_events(prediction, y)
    columns = _columns(prediction, probs, events)
    reliability, resolution, uncertainty = probs.new_zeros(3, len(columns[0][0]), len(columns))
    for j, (p, e) in enumerate(columns):
        which = torch.bucketize(p, _edges(p, bins, "width")[1:-1])
        often = _bin_means(e, which, bins)[which]  # how often it came true in the row's bin
        gap = _bin_means(p - e, which, bins)[which]
        overall = e.mean()
        # Contributions by the influence function of each term, as in `Estimate`: their means are the terms.
        reliability[:, j] = 2 * gap * (p - e) - gap.square()
        resolution[:, j] = 2 * often * e - often.square() - 2 * overall * e + overall.square()
        uncertainty[:, j] = (1 - 2 * overall) * e + overall.square()
    score = (probs - events).square()
    parts = [part.reshape(probs.shape) for part in (reliability, resolution, uncertainty)]
    within = score - parts[0] + parts[1] - parts[2]
    return BrierDecomposition(*(estimate(_over_events(prediction, part)) for part in (score, *parts, within)))


def nll(prediction: Prediction, y: Any) -> Estimate:
    """Negative log-likelihood of the labels, ``-log p(y | x, data)``, in nats: 0 is best.

    Args:
        prediction: Of n rows.
        y: As in `accuracy`.
    """
    return estimate(-prediction.log_prob(y))


def expected_calibration_error(prediction: Prediction, y: Any, bins: int = 10, binning: Binning = "width") -> Estimate:
    """Mean over rows of |accuracy - confidence| of the row's bin; 0 for a calibrated prediction, up to chance.

    Confidence is the probability of the predicted class. Naeini, Cooper and Hauskrecht (2015); Guo et al. (2017),
    arXiv:1706.04599. With few rows a bin it is above 0 by chance alone (see `bnn.analysis.reliability`). The standard
    error takes it for known on which side of 0 each bin lies; where a bin is near 0, it is too large.

    Args:
        prediction: Of n rows, with class probabilities.
        y: As in `accuracy`.
        bins: Number of bins, at least 1.
        binning: ``"width"``: bins of equal width; ``"mass"``: of equally many rows (equal probabilities together).
    """
    predicted, confidence = top_class(prediction)
    correct = (predicted == targets(prediction, y)).double()
    gaps = _signed_gaps(confidence.double().flatten(), correct.flatten(), bins, binning)
    return estimate(by_row(gaps.reshape(correct.shape)))


def classwise_calibration_error(prediction: Prediction, y: Any, bins: int = 10, binning: Binning = "width") -> Estimate:
    """The calibration error of every class's probability, not of the predicted class alone, averaged over classes.

    Nixon et al. (2019), arXiv:1904.01685: with bins of equal width the static calibration error, of equal mass the
    adaptive one.

    Args:
        prediction: Of n rows, with class probabilities.
        y: As in `accuracy`.
        bins: Number of bins, at least 1.
        binning: As in `expected_calibration_error`.
    """
    probs, events = _probs_and_events(prediction, y)
    gaps = [_signed_gaps(p, e, bins, binning) for p, e in _columns(prediction, probs, events)]
    return estimate(by_row(torch.stack(gaps, -1).reshape(probs.shape)))


def calibration_bins(prediction: Prediction, y: Any, bins: int = 10, binning: Binning = "width") -> CalibrationBins:
    """Confidence and accuracy in bins, each closed on the right.

    Args:
        prediction: Of n rows, with class probabilities.
        y: As in `accuracy`.
        bins: Number of bins, at least 1; fewer come back where equal probabilities leave no edge between them.
        binning: As in `expected_calibration_error`.
    """
    predicted, confidence = (value.flatten() for value in top_class(prediction))
    correct = (predicted == targets(prediction, y).flatten()).double()
    confidence = confidence.double()
    edges = _edges(confidence, bins, binning)
    which = torch.bucketize(confidence, edges[1:-1])
    counts = which.bincount(minlength=len(edges) - 1)
    means = (_bin_means(value, which, len(edges) - 1) for value in (confidence, correct))
    return CalibrationBins(edges, counts, *means)


def top_class(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """The most probable class and its probability: ``(n,)`` each; for Bernoulli (classes 0 and 1) in the shape of y."""
    probs = prediction.probs
    if prediction.likelihood.labels:
        top = probs.max(-1)
        return top.indices, top.values
    return (probs > 0.5).to(probs.dtype), torch.maximum(probs, 1 - probs)


def class_probs(prediction: Prediction) -> Tensor:
    """Probabilities with one column a class: ``(n, k)``; for Bernoulli ``(n, 2)`` of no and yes.

    Raises:
        ValueError: There are several labels a row.
    """
    probs = prediction.probs
    labels = probs.shape[1:-1] if prediction.likelihood.labels else probs.shape[1:]
    if labels.numel() != 1:
        raise ValueError(f"one label a row is needed; this prediction has {tuple(labels)} a row")
    if prediction.likelihood.labels:
        return probs.reshape(len(probs), -1)
    probs = probs.reshape(-1)
    return torch.stack([1 - probs, probs], -1)


def _probs_and_events(prediction: Prediction, y: Any) -> tuple[Tensor, Tensor]:
    """Probabilities and whether they came true, 0 or 1: ``(n, ..., k)``; for Bernoulli in the shape of y."""
    probs, y = prediction.probs.double(), targets(prediction, y)
    if prediction.likelihood.labels:
        return probs, torch.nn.functional.one_hot(y.long(), probs.shape[-1]).to(probs)
    return probs, y.to(probs)


def _columns(prediction: Prediction, probs: Tensor, events: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Class by class (of all labels of all rows, such as pixels), or for Bernoulli label by label: ``(m,)`` each."""
    first = -1 if prediction.likelihood.labels else len(probs)
    last = probs.shape[-1] if prediction.likelihood.labels else -1
    columns = (value.reshape(first, last).T.contiguous() for value in (probs, events))
    return list(zip(*columns, strict=True))


def _over_events(prediction: Prediction, values: Tensor) -> Tensor:
    """``(n,)`` from `_probs_and_events`: the sum over the classes of one label, the mean over several labels."""
    return by_row(values.sum(-1) if prediction.likelihood.labels else values)


def _edges(values: Tensor, bins: int, binning: Binning) -> Tensor:
    """``(bins + 1,)``; of equal mass fewer, where equal values would leave a bin empty."""
    if bins < 1:
        raise ValueError(f"bins is at least 1, not {bins}")
    even = torch.linspace(0, 1, bins + 1, dtype=values.dtype, device=values.device)
    if binning == "width":
        return even
    if binning != "mass":
        raise ValueError(f"binning is 'width' or 'mass', not {binning!r}")
    edges = values.quantile(even[1:-1], interpolation="lower").unique()
    return torch.cat([even[:1], edges[edges < values.max()], even[-1:]])


def _bin_means(values: Tensor, which: Tensor, bins: int) -> Tensor:
    """``(bins,)``: the mean of the rows of each bin, NaN where there is none."""
    totals = values.new_zeros(2, bins).index_add_(1, which, torch.stack([values, torch.ones_like(values)]))
    return totals[0] / totals[1]


def _signed_gaps(confidence: Tensor, correct: Tensor, bins: int, binning: Binning) -> Tensor:
    """``correct - confidence`` of each row, with the sign that its bin's has: their mean is the calibration error."""
    edges = _edges(confidence, bins, binning)
    which = torch.bucketize(confidence, edges[1:-1])
    gaps = correct - confidence
    return gaps * _bin_means(gaps, which, len(edges) - 1).sign()[which]
