"""The scores that apply to a prediction, in one table."""

from __future__ import annotations

from typing import Any

from bnn.analysis.classification import (
    accuracy,
    brier,
    classwise_calibration_error,
    expected_calibration_error,
    nll,
)
from bnn.analysis.estimate import Estimate, by_row, estimate
from bnn.analysis.regression import crps, interval_coverage, interval_score, mae, rmse, sharpness
from bnn.prediction import Prediction


def log_density(prediction: Prediction, y: Any) -> Estimate:
    """Mean over rows of log p(y | x, data), natural logarithm; that of y in its own units.

    Args:
        prediction: Of n rows.
        y: Targets, ``(n,)`` or ``(n, k)``.

    Raises:
        ValueError: Nothing of y is known in some rows, which would count as predicted with a density of one.
    """
    absent = prediction.likelihood.absent(prediction.targets(y)).reshape(prediction.num_rows, -1).all(1)
    if bool(absent.any()):
        raise ValueError(f"y is missing in {int(absent.sum())} of {len(absent)} rows as a whole: leave these rows out")
    return estimate(prediction.log_prob(y))


def scores(prediction: Prediction, y: Any, *, level: float = 0.9, bins: int = 10, seed: int = 0) -> dict[str, Estimate]:
    """Every score that the likelihood has, each with its standard error.

    Two models are compared by ``paired(scores(a, y)[name], scores(b, y)[name])``.

    Args:
        prediction: Of n rows.
        y: Their targets.
        level: Of the intervals: `interval_score`, `coverage`, `sharpness`.
        bins: Of the calibration errors.
        seed: Of what is drawn; see `crps`.

    Returns:
        ``{name: score}``. Always ``log_density``. Of class probabilities ``accuracy``, ``nll``, ``brier``, ``ece``,
        ``ece_mass`` (bins of equal mass), ``ece_classwise``, ``ece_adaptive`` (classwise, of equal mass), ``entropy``.
        Of numbers ``rmse``, ``mae`` (with a mean), ``crps``, ``interval_score``, ``coverage``, ``sharpness`` (with
        quantiles).
    """
    fields = prediction.likelihood.fields
    found = {"log_density": log_density(prediction, y)}
    if "probs" in fields:
        return found | {
            "nll": nll(prediction, y),
            "accuracy": accuracy(prediction, y),
            "brier": brier(prediction, y),
            "ece": expected_calibration_error(prediction, y, bins),
            "ece_mass": expected_calibration_error(prediction, y, bins, "mass"),
            "ece_classwise": classwise_calibration_error(prediction, y, bins),
            "ece_adaptive": classwise_calibration_error(prediction, y, bins, "mass"),
            "entropy": estimate(by_row(prediction.entropy.total)),
        }
    if "mean" in fields:
        found |= {"rmse": rmse(prediction, y), "mae": mae(prediction, y)}
    if "quantile" in fields:
        found |= {
            "crps": crps(prediction, y, seed=seed),
            "interval_score": interval_score(prediction, y, level),
            "coverage": interval_coverage(prediction, y, level),
            "sharpness": sharpness(prediction, level),
        }
    return found
