"""Scores of predicted numbers: how far off, how dense, how wide, how often right.

`n` rows, `k` outputs. Every function takes a `bnn.Prediction` and the targets of its rows, ``(n,)`` or ``(n, k)``; the
outputs of a row are averaged. One that does not apply raises `AttributeError` and names the likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bnn.analysis.estimate import Estimate, by_row, checked_level, estimate, targets
from bnn.analysis.mixture_crps import crps_of
from bnn.prediction import Prediction
from bnn.random import isolated, other_seed


def rmse(prediction: Prediction, y: Any) -> Estimate:
    """Root mean squared error of the predictive mean, over rows and outputs, in the units of y.

    A row contributes ``r + (e_i - r^2) / 2r``, with e_i its squared error and r the score.

    Args:
        prediction: Of n rows.
        y: ``(n,)`` or ``(n, k)``, shaped as ``prediction.mean``.
    """
    mean = prediction.mean
    squares = by_row((targets(prediction, y) - mean).double().square())
    total = squares.mean()
    root = total.sqrt()
    return estimate(root + (squares - total) / (2 * root) if root > 0 else squares)


def mae(prediction: Prediction, y: Any) -> Estimate:
    """Mean absolute error of the predictive mean, over rows and outputs, in the units of y.

    Args:
        prediction: Of n rows.
        y: ``(n,)`` or ``(n, k)``, shaped as ``prediction.mean``.
    """
    mean = prediction.mean
    return estimate(by_row((targets(prediction, y) - mean).abs()))


def crps(prediction: Prediction, y: Any, *, num: int = 1000, seed: int = 0) -> Estimate:
    """Continuous ranked probability score of the mixture, ``E|Y - y| - E|Y - Y'| / 2``, in the units of y; 0 is best.

    Gneiting and Raftery, JASA 102 (2007), equation 21. Where every draw is Gaussian it is exact, from the means and
    scales of all pairs of draws (Grimit et al., QJRMS 132, 2006); else `num` draws of y stand for the mixture, by the
    estimator of Ferro, QJRMS 140 (2014). (They take all draws of the weights equally often, which leaves a bias of some
    ``E|Y - Y'| / 2 num`` at most.)

    Args:
        prediction: Of n rows, with quantiles. Outputs count one by one.
        y: ``(n,)`` or ``(n, k)``.
        num: Draws of y, where they are needed.
        seed: Of these.
    """
    _needs_quantiles(prediction, "the continuous ranked probability score")
    return estimate(by_row(crps_of(prediction, targets(prediction, y), num, seed)))


def interval_score(prediction: Prediction, y: Any, level: float = 0.9) -> Estimate:
    """Width of the equal-tailed interval, and ``2 / (1 - level)`` for every unit by which y lies outside.

    Winkler, JASA 67 (1972); Gneiting and Raftery, JASA 102 (2007), equation 43. In the units of y; lower is better.

    Args:
        prediction: Of n rows, with quantiles.
        y: ``(n,)`` or ``(n, k)``.
        level: Between 0 and 1.
    """
    low, high = prediction.interval(level)
    y = targets(prediction, y)
    outside = (low - y).clamp(min=0) + (y - high).clamp(min=0)
    return estimate(by_row(high - low + 2 / (1 - level) * outside))


def interval_coverage(prediction: Prediction, y: Any, level: float = 0.9) -> Estimate:
    """Share of targets inside their equal-tailed interval of this level; a calibrated prediction has `level` of them.

    Where y is discrete the interval holds at least `level`; `coverage_by_level` splits the probability of its ends.

    Args:
        prediction: Of n rows, with quantiles.
        y: ``(n,)`` or ``(n, k)``; outputs count one by one.
        level: Between 0 and 1.
    """
    low, high = prediction.interval(level)
    y = targets(prediction, y)
    return estimate(by_row((y >= low) & (y <= high)))


def coverage_by_level(
    prediction: Prediction, y: Any, levels: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95), *, seed: int = 0
) -> dict[float, Estimate]:
    """The share of targets inside the interval of each level, from one pass.

    Args:
        prediction: Of n rows, with quantiles.
        y: ``(n,)`` or ``(n, k)``; outputs count one by one.
        levels: Between 0 and 1.
        seed: Where y is discrete; see `pit`.
    """
    needed = (2 * pit(prediction, y, seed=seed).double() - 1).abs()
    return {level: estimate(by_row(needed <= checked_level(level))) for level in levels}


def sharpness(prediction: Prediction, level: float = 0.9) -> Estimate:
    """Mean width of the intervals of this level, in the units of y: of calibrated predictions the sharper is better.

    Gneiting, Balabdaoui and Raftery, JRSS B 69 (2007).

    Args:
        prediction: Of n rows, with quantiles.
        level: Between 0 and 1.
    """
    low, high = prediction.interval(level)
    return estimate(by_row(high - low))


def pit(prediction: Prediction, y: Any, *, seed: int = 0) -> Tensor:
    """P(Y <= y | x, data), the probability integral transform: uniform on (0, 1) if the prediction is calibrated.

    Dawid, JRSS A 147 (1984). For continuous y, the interval of level L holds y where ``|2 pit - 1| <= L``. A discrete y
    takes a random place within its own probability, ``P(Y < y) + u P(Y = y)``, which is uniform too (Czado, Gneiting
    and Held, Biometrics 65, 2009).

    Args:
        prediction: Of n rows, with quantiles.
        y: ``(n,)`` or ``(n, k)``.
        seed: Of u, where y is discrete.

    Returns:
        The shape of y.

    Raises:
        AttributeError: The likelihood is not of an ordered y.
    """
    _needs_quantiles(prediction, "the probability integral transform")
    y = targets(prediction, y)
    below = prediction.cdf(y)
    if not prediction.discrete:
        return below
    with isolated(other_seed(seed, "noise"), y.device):
        u = torch.rand(y.shape, dtype=below.dtype, device=y.device)
    return below - u * (below - prediction.cdf(y - 1))


def _needs_quantiles(prediction: Prediction, what: str) -> None:
    if "quantile" not in prediction.likelihood.fields:
        raise AttributeError(f"{what} needs quantiles; {prediction!r} has none")
