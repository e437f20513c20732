"""Conformal prediction on top of any posterior: intervals and sets that hold y as often as they say.

Whatever the posterior is worth, a new y lies inside with at least the stated probability, if the rows are exchangeable
and the calibration rows were not used in the fit. The probability is over the calibration rows too, and over all new
rows together, not for each x. Vovk, Gammerman and Shafer (2005); Angelopoulos and Bates (2023), arXiv:2107.07511.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bnn.analysis.estimate import checked_level, targets
from bnn.prediction import Prediction
from bnn.random import isolated, other_seed

#: From a prediction to the unit in which a residual is measured, ``(n,)`` or ``(n, k)``.
_UNITS: dict[str, Callable[[Prediction], Tensor]] = {
    "normalised": lambda prediction: prediction.std,
    "absolute": lambda prediction: torch.ones_like(prediction.mean),
}
Unit = Literal["normalised", "absolute"]


@dataclass(frozen=True)
class SplitIntervals:
    """Intervals around the predictive mean: see `split_intervals`."""

    #: ``(n,)`` or ``(n, k)``: the residuals of the calibration rows in their unit, in ascending order.
    residuals: Tensor
    unit: Unit

    def interval(self, prediction: Prediction, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, shaped as ``prediction.mean``; infinite where the calibration rows are too few.

        The interval holds y with probability ``ceil((n + 1) level) / (n + 1)`` or more; exactly, where no two
        residuals are equal.

        Args:
            prediction: Of new rows.
            level: Between 0 and 1.
        """
        far = smallest(self.residuals, level) * _UNITS[self.unit](prediction)
        return prediction.mean - far, prediction.mean + far


def split_intervals(prediction: Prediction, y: Any, unit: Unit = "normalised") -> SplitIntervals:
    """Split conformal intervals, from rows that the posterior has not seen.

    Papadopoulos et al. (2002); Lei et al., JASA 113 (2018), whose section 5.2 has the normalised ones.

    Args:
        prediction: Of n calibration rows, with mean and variance.
        y: Their targets, ``(n,)`` or ``(n, k)``. Each output has intervals of its own, right for that output.
        unit: ``"normalised"``: residuals in units of the predictive standard deviation, so that the intervals are wide
            where the posterior is unsure; ``"absolute"``: in units of y, all intervals equally wide.
    """
    return SplitIntervals(_residuals(prediction, y, _checked_unit(unit)).sort(0).values, unit)


@dataclass(frozen=True)
class CVIntervals:
    """Intervals from fits that each left a part of the rows out: see `cv_plus`."""

    #: One a fold: from inputs to the prediction of the fit without it.
    predictors: list[Callable[[Any], Prediction]]
    #: One a fold: the residuals of the rows that the fit left out, in their unit.
    residuals: list[Tensor]
    unit: Unit

    def interval(self, x: Any, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, ``(m,)`` or ``(m, k)``, for m new rows; infinite where the rows of the fit are too few.

        Barber et al. (2021), equation 13: the interval holds y with probability ``2 level - 1`` or more, less a term
        that vanishes with n (see there, theorem 4); in practice near `level`.

        Args:
            x: New inputs, as `predictors` take them.
            level: Between 0 and 1.
        """
        below, above = [], []
        for predict, residuals in zip(self.predictors, self.residuals, strict=True):
            prediction = predict(x)
            far = residuals.unsqueeze(1) * _UNITS[self.unit](prediction)  # (rows left out, m, ...)
            below.append(far - prediction.mean)
            above.append(far + prediction.mean)
        ends = (smallest(torch.cat(part).sort(0).values, level) for part in (below, above))
        low, high = ends
        return -low, high


Refit = Callable[[Any, Any], Callable[[Any], Prediction]]


def cv_plus(refit: Refit, x: Any, y: Any, *, folds: int = 10, unit: Unit = "normalised", seed: int = 0) -> CVIntervals:
    """CV+ intervals: every row is left out once, so that none is kept aside, at the price of `folds` fits.

    Barber, Candès, Ramdas and Tibshirani, Annals of Statistics 49 (2021), arXiv:1905.02928; with `folds` equal to the
    number of rows, the jackknife+, whose guarantee is ``2 level - 1`` without a further term.

    Args:
        refit: From the (x, y) of some rows to a function from inputs to a `bnn.Prediction`:
            ``lambda x, y: bnn.fit(model, (x, y), method, seed=0).predict``.
        x: Inputs, rows first: an array or a tensor, or a tuple or dict of these.
        y: Targets, ``(n,)`` or ``(n, k)``.
        folds: At least 2, at most n.
        unit: As in `split_intervals`.
        seed: Of the split into folds.

    Raises:
        ValueError: More folds than rows, or fewer than 2; x and y of different lengths.
    """
    _checked_unit(unit)
    predictors, residuals = [], []
    for inside, left_out in _folds(len(y), folds, seed):
        predict = refit(_rows(x, inside), _rows(y, inside))
        residuals.append(_residuals(predict(_rows(x, left_out)), _rows(y, left_out), unit))
        predictors.append(predict)
    return CVIntervals(predictors, residuals, unit)


def smallest(values: Tensor, level: float) -> Tensor:
    """The ``ceil((n + 1) level)``-th smallest of sorted ``(n, ...)`` values; infinite where n is less than that."""
    checked_level(level)
    # A level such as 0.9 is a little more or less than nine tenths, and must not count one up for that.
    rank = math.ceil((len(values) + 1) * level - 1e-9)
    return values[rank - 1] if rank <= len(values) else torch.full_like(values.sum(0), math.inf)


def _residuals(prediction: Prediction, y: Any, unit: Unit) -> Tensor:
    """``|y - mean|`` in its unit, shaped as y.

    Raises:
        ValueError: Means or units that are no numbers to measure with: of a law without moments, or without spread.
    """
    mean, size = prediction.mean, _UNITS[unit](prediction)
    wrong = ~(mean.isfinite() & size.isfinite() & (size > 0))
    if bool(wrong.any()):
        rows = wrong.reshape(len(wrong), -1).any(1).nonzero().flatten()
        hint = "; unit='absolute' needs no standard deviation" if unit == "normalised" else ""
        raise ValueError(
            f"residuals need a finite mean and a finite, positive unit, which {prediction!r} lacks at {len(rows)} "
            f"rows, the first of them row {int(rows[0])}{hint}"
        )
    return (targets(prediction, y) - mean).abs() / size


def _checked_unit(unit: Unit) -> Unit:
    if unit not in _UNITS:
        raise ValueError(f"unit is one of {list(_UNITS)}, not {unit!r}")
    return unit


def _folds(n: int, folds: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows inside and rows left out, ascending, fold by fold: parts of sizes that differ by one at most."""
    if not 2 <= folds <= n:
        raise ValueError(f"folds is at least 2 and at most the number of rows, {n}, not {folds}")
    with isolated(other_seed(seed, "folds")):
        fold = torch.randperm(n) % folds
    for i in range(folds):
        yield (fold != i).nonzero().flatten(), (fold == i).nonzero().flatten()


def _rows(value: Any, rows: Tensor) -> Any:
    """Some rows of an input or of targets."""
    if isinstance(value, Mapping):
        return {name: _rows(part, rows) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_rows(part, rows) for part in value)
    tensor = torch.as_tensor(value)
    return tensor[rows.to(tensor.device)]
