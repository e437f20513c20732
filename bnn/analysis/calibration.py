"""Calibration: is a miss more than chance, and how is a prediction corrected on held-out rows?

`n` rows, `k` outputs or classes. Held-out rows are ones that the posterior has not seen; the corrected predictions are
then scored on yet others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnn.analysis.classification import Binning, CalibrationBins, calibration_bins, top_class
from bnn.analysis.estimate import checked_level, targets
from bnn.likelihoods import Bernoulli, Categorical
from bnn.prediction import Prediction, Spread
from bnn.random import isolated, other_seed

_RANGE = 100.0  # factors and temperatures lie between 1 / _RANGE and _RANGE


class Reliability(NamedTuple):
    """How often the predicted class is right by its probability, and what chance alone would do."""

    bins: CalibrationBins
    #: ``(bins,)``: where the accuracy of a bin lies if the probabilities are right; NaN where there is no row.
    low: Tensor
    high: Tensor
    #: Calibration errors of as many data sets for which the probabilities are right, ascending: ``(num,)``.
    errors: Tensor


def reliability(
    prediction: Prediction,
    y: Any,
    bins: int = 10,
    binning: Binning = "width",
    *,
    level: float = 0.95,
    num: int = 1000,
    seed: int = 0,
) -> Reliability:
    """Accuracy by confidence with consistency bands: Bröcker and Smith, Weather and Forecasting 22 (2007).

    Data sets are drawn for which the prediction is right: each row's predicted class is right with the probability that
    it was given. The bands hold `level` of their bins' accuracies, and `errors` are their calibration errors: that of y
    is evidence of miscalibration as far as it lies above them.

    Args:
        prediction: Of n rows, with class probabilities.
        y: ``(n,)``, integer labels; for Bernoulli 0 or 1, ``(n,)`` or ``(n, k)``, taken for independent.
        bins: Number of bins, at least 1.
        binning: As in `bnn.analysis.expected_calibration_error`.
        level: Of the bands.
        num: Data sets.
        seed: Of these.
    """
    checked_level(level)
    table = calibration_bins(prediction, y, bins, binning)
    confidence = top_class(prediction)[1].flatten().double()
    which = torch.bucketize(confidence, table.edges[1:-1])
    with isolated(other_seed(seed, "reliability"), confidence.device):
        hits = torch.stack([_hits(confidence, which, len(table.counts)) for _ in range(num)])
    tails = hits.new_tensor([(1 - level) / 2, (1 + level) / 2])
    # Ends are data sets' own values: shares of a bin's rows are steps.
    low, high = (hits / table.counts).quantile(tails, 0, interpolation="nearest")
    said = (table.confidence * table.counts).nan_to_num(0.0)
    return Reliability(table, low, high, ((hits - said).abs().sum(1) / len(confidence)).sort().values)


def _hits(confidence: Tensor, which: Tensor, bins: int) -> Tensor:
    """Right answers by bin, of one data set for which the confidence is right."""
    right = (torch.rand_like(confidence) < confidence).to(confidence)
    return confidence.new_zeros(bins).index_add_(0, which, right)


@dataclass(frozen=True)
class Temperature:
    """Outputs divided by one number before the softmax; see `fit_temperature`."""

    #: Above 1: the prediction was too sure.
    temperature: float

    def apply(self, prediction: Prediction) -> Prediction:
        """The mixture over draws with all its logits divided: a prediction with the same draws.

        Raises:
            AttributeError: The likelihood's outputs are no logits.
        """
        if not isinstance(prediction.likelihood, Categorical | Bernoulli):
            raise AttributeError(f"a temperature divides logits; {prediction!r} has none")
        return Prediction(prediction.likelihood, prediction.outputs / self.temperature, prediction.latents)


def fit_temperature(prediction: Prediction, y: Any) -> Temperature:
    """Temperature scaling: Guo et al. (2017), arXiv:1706.04599; by the log-density of the whole mixture.

    Args:
        prediction: Of n held-out rows, Categorical or Bernoulli.
        y: Their labels.

    Raises:
        ValueError: No temperature is best: all labels are predicted right, or none better than by chance.
    """
    y = targets(prediction, y)
    return Temperature(_best(lambda t: Temperature(t).apply(prediction).log_prob(y), "temperature"))


@dataclass(frozen=True)
class Widening:
    """A predictive distribution stretched about its mean; see `fit_widening`."""

    #: Of the predictive standard deviation. Above 1: the prediction was too sure.
    factor: float

    def apply(self, prediction: Prediction) -> Prediction:
        """All draws' means moved away from their mean, and their noise scaled: a prediction with as many draws.

        Epistemic and aleatoric standard deviations are multiplied by `factor`, and the shape stays what it was.

        Raises:
            AttributeError: The likelihood is not one of outputs as means, with a scale ``likelihood.scale``.
        """
        scale, fields = prediction.latents.get("likelihood.scale"), prediction.likelihood.fields
        refused = f"only outputs that are means, with a noise scale, can be widened; those of {prediction!r} are not"
        if scale is None or not {"mean", "variance"} <= fields or prediction.mean.shape != prediction.outputs.shape[1:]:
            raise AttributeError(refused)
        latents = {**prediction.latents, "likelihood.scale": self.factor * scale}
        mean, std = prediction.mean, self.factor * prediction.std
        outputs = mean + self.factor * (prediction.outputs - mean)
        wider = Prediction(prediction.likelihood, outputs, latents, self._widened(prediction.spread, mean))
        # What a likelihood makes of its outputs is its own affair: that it did what was meant is looked at.
        if not (torch.allclose(wider.std, std, rtol=1e-3) and bool(((wider.mean - mean).abs() <= 1e-3 * std).all())):
            raise AttributeError(refused)
        return wider

    def _widened(self, spread: Spread | None, mean: Tensor) -> Spread | None:
        if spread is None:
            return None
        return Spread(self.factor**2 * spread.covariance, lambda num: mean + self.factor * (spread.draw(num) - mean))


def fit_widening(prediction: Prediction, y: Any) -> Widening:
    """One factor for all predictive standard deviations, by the log-density of the whole mixture.

    Kuleshov, Fenner and Ermon (2018) call for recalibration of regressions; Levi et al., Sensors 22 (2022), for this
    simplest form of it.

    Args:
        prediction: Of n held-out rows, with a likelihood of a location and a scale.
        y: Their targets, ``(n,)`` or ``(n, k)``.

    Raises:
        ValueError: No factor is best: every target equals its prediction.
    """
    y = targets(prediction, y)
    return Widening(_best(lambda factor: Widening(factor).apply(prediction).log_prob(y), "factor"))


def _best(log_density: Callable[[float], Tensor], what: str) -> float:
    """The positive number under which the mean log-density is largest."""
    from scipy.optimize import minimize_scalar

    def loss(log: float) -> float:
        return -log_density(math.exp(log)).double().mean().item()

    edge = math.log(_RANGE)
    found = minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-6})
    # Where any small number is as good, the search stops anywhere.
    if abs(found.x) > edge - 1e-3 or found.fun >= min(loss(-edge), loss(edge)):
        raise ValueError(
            f"no {what} between {1 / _RANGE:g} and {_RANGE:g} is best on these rows: it takes more of them, "
            "some of which are predicted right and some wrong"
        )
    return math.exp(found.x)
