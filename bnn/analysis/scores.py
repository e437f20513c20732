"""Scores of predictions: how far off, how dense, how well calibrated.

`n` rows, `k` outputs or classes. Every function takes a `bnn.Prediction` and the targets of its rows; one that does not
apply raises `AttributeError` and names the likelihood.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnn.inputs import as_tensor, check_finite
from bnn.prediction import Prediction


class Estimate(NamedTuple):
    """A mean over rows and its standard error."""

    mean: float
    #: ``std / sqrt(n)``: how far the mean would move with other rows of the same kind; NaN for a single row.
    standard_error: float

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.standard_error:{spec.replace('+', '')}}"


class CalibrationBins(NamedTuple):
    """Rows sorted by the probability of their predicted class, in bins of equal width."""

    #: ``(bins + 1,)``.
    edges: Tensor
    #: ``(bins,)``: rows.
    counts: Tensor
    #: ``(bins,)``: mean probability of the predicted class; NaN where there is no row.
    confidence: Tensor
    #: ``(bins,)``: share of rows whose predicted class is right; NaN where there is no row.
    accuracy: Tensor


def rmse(prediction: Prediction, y: Any) -> float:
    """Root mean squared error of the predictive mean, over rows and outputs, in the units of y.

    Args:
        prediction: Of n rows.
        y: ``(n,)`` or ``(n, k)``, shaped as ``prediction.mean``.
    """
    from sklearn.metrics import root_mean_squared_error

    mean = prediction.mean
    return float(root_mean_squared_error(_numbers(_targets(prediction, y)), _numbers(mean)))


def accuracy(prediction: Prediction, y: Any) -> float:
    """Share of rows whose most probable class is the right one (for k labels a row: share of the labels).

    Args:
        prediction: Of n rows.
        y: ``(n,)``, integer labels; for Bernoulli 0 or 1, ``(n,)`` or ``(n, k)``.
    """
    from sklearn.metrics import accuracy_score

    predicted, _ = top_class(prediction)
    return float(accuracy_score(_numbers(_targets(prediction, y)), _numbers(predicted)))


def log_density(prediction: Prediction, y: Any) -> Estimate:
    """Mean over rows of log p(y | x, data), natural logarithm; that of y in its own units.

    Args:
        prediction: Of n rows.
        y: Targets, ``(n,)`` or ``(n, k)``.
    """
    return estimate(prediction.log_prob(y))


def estimate(values: Tensor) -> Estimate:
    """The mean of ``(n,)`` values, one a row, and its standard error."""
    values = values.double()
    spread = values.std().item() if len(values) > 1 else math.nan
    return Estimate(values.mean().item(), spread / math.sqrt(len(values)))


def interval_coverage(prediction: Prediction, y: Any, level: float = 0.9) -> float:
    """Share of targets inside their equal-tailed interval of this level; a calibrated prediction has `level` of them.

    Args:
        prediction: Of n rows, with quantiles.
        y: ``(n,)`` or ``(n, k)``; outputs count one by one.
        level: Between 0 and 1.
    """
    low, high = prediction.interval(level)
    y = _targets(prediction, y)
    return ((y >= low) & (y <= high)).double().mean().item()


def pit(prediction: Prediction, y: Any) -> Tensor:
    """P(Y <= y | x, data), the probability integral transform: uniform on (0, 1) if the prediction is calibrated.

    Dawid, JRSS A 147 (1984). For continuous y, the interval of level L holds y where ``|2 pit - 1| <= L``.

    Args:
        prediction: Of n rows, with quantiles.
        y: ``(n,)`` or ``(n, k)``.

    Returns:
        The shape of y.

    Raises:
        AttributeError: The likelihood is not of a continuous y.
    """
    if "quantile" not in prediction.likelihood.fields:
        raise AttributeError(f"the probability integral transform needs quantiles; {prediction!r} has none")
    y = _targets(prediction, y)
    stacked = y.expand(prediction.num_draws, *y.shape).flatten(0, 1)
    below = prediction.marginal().cdf(stacked)
    return below.reshape(prediction.num_draws, *y.shape).mean(0)


def expected_calibration_error(prediction: Prediction, y: Any, bins: int = 10) -> float:
    """Mean over rows of |accuracy - confidence| of the row's bin; 0 for a calibrated prediction, up to chance.

    Confidence is the probability of the predicted class; bins have equal width. Naeini, Cooper and Hauskrecht (2015);
    Guo et al. (2017), arXiv:1706.04599.

    Args:
        prediction: Of n rows, with class probabilities.
        y: As in `accuracy`.
        bins: Number of bins on [0, 1].
    """
    table = calibration_bins(prediction, y, bins)
    gap = (table.accuracy - table.confidence).abs().nan_to_num(0.0)
    return ((table.counts * gap).sum() / table.counts.sum()).item()


def calibration_bins(prediction: Prediction, y: Any, bins: int = 10) -> CalibrationBins:
    """Confidence and accuracy in bins of equal width, each closed on the right.

    Args:
        prediction: Of n rows, with class probabilities.
        y: As in `accuracy`.
        bins: Number of bins on [0, 1], at least 1.
    """
    if bins < 1:
        raise ValueError(f"bins is at least 1, not {bins}")
    predicted, confidence = (value.flatten() for value in top_class(prediction))
    correct = (predicted == _targets(prediction, y).flatten()).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=correct.device)
    which = torch.bucketize(confidence.double(), edges[1:-1])

    def total(weights: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64, device=correct.device).index_add_(0, which, weights)

    counts = total(torch.ones_like(correct))
    return CalibrationBins(edges, counts.long(), total(confidence.double()) / counts, total(correct) / counts)


def top_class(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """The most probable class and its probability: ``(n,)`` each; for Bernoulli (classes 0 and 1) in the shape of y."""
    probs = prediction.probs
    if prediction.likelihood.labels:
        top = probs.max(-1)
        return top.indices, top.values
    return (probs > 0.5).to(probs.dtype), torch.maximum(probs, 1 - probs)


def _targets(prediction: Prediction, y: Any) -> Tensor:
    """Targets as a tensor beside the prediction, checked against its shape."""
    y = prediction.likelihood.convert(as_tensor(y, "y", prediction.outputs), prediction.outputs.dtype)
    check_finite(y, "y")
    prediction.likelihood.check(prediction.outputs[0], y)
    return y


def _numbers(value: Tensor) -> Any:
    """One flat array: scikit-learn would average the scores of several outputs, or count rows right in all."""
    return value.detach().cpu().flatten().numpy()
