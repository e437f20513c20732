"""Numbers with standard errors: what each row contributes, their mean, and how far it would move with other rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bnn.prediction import Prediction


@dataclass(frozen=True)
class Estimate:
    """A score over n rows and its standard error.

    A score that is no plain mean (a root, an error over bins) is taken apart by its influence function (Hampel, JASA
    69, 1974): contributions whose mean is the score exactly, and whose spread gives the standard error of the delta
    method. So two models are compared row by row whatever the score is: `paired`.
    """

    #: The score.
    mean: float
    #: ``std(rows) / sqrt(n)``: how far the score would move with other rows of the same kind; NaN for a single row.
    standard_error: float
    #: ``(n,)``, float64: what each row contributes; their mean is `mean`.
    rows: Tensor = field(repr=False, compare=False)

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.standard_error:{spec.replace('+', '')}}"

    def __float__(self) -> float:
        return self.mean


def estimate(values: Tensor) -> Estimate:
    """The mean of ``(n,)`` values, one a row, and its standard error.

    Raises:
        ValueError: There is no value, or they are not one a row.
    """
    if values.dim() != 1 or not len(values):
        raise ValueError(f"an estimate is made of one value a row; these have shape {tuple(values.shape)}")
    values = values.detach().double().cpu()
    spread = values.std().item() if len(values) > 1 else math.nan
    return Estimate(values.mean().item(), spread / math.sqrt(len(values)), values)


def paired(first: Estimate, second: Estimate) -> Estimate:
    """How much `first` is above `second`, where both are the same score of the same rows.

    The standard error is that of the difference row by row: what makes a row hard for both models drops out of it.

    Args:
        first: A score of one model, over n rows.
        second: The same score of another model, over the same rows in the same order.

    Raises:
        ValueError: The numbers of rows differ.
    """
    if len(first.rows) != len(second.rows):
        raise ValueError(
            f"a paired difference needs the same rows: one score has {len(first.rows)}, the other {len(second.rows)}"
        )
    return estimate(first.rows - second.rows)


def targets(prediction: Prediction, y: Any) -> Tensor:
    """Targets as a tensor beside the prediction, checked: the predicted quantity itself, known in every row.

    Of a likelihood of intervals, the values at which both ends lie.

    Raises:
        ValueError: They do not fit, some are missing, or are known only to lie in an interval.
    """
    y = prediction.targets(y)
    if prediction.likelihood.intervals:
        low, high = y.unbind(-1)
        wide = (low != high).reshape(len(y), -1).any(1)
        if bool(wide.any()):
            raise ValueError(
                f"y is known only to lie in an interval in {int(wide.sum())} of {len(y)} rows: this score needs it "
                "exactly, leave these rows out (log_density takes intervals as they are)"
            )
        return low
    absent = prediction.likelihood.absent(y)
    if bool(absent.any()):
        rows = int(absent.reshape(len(y), -1).any(1).sum())
        raise ValueError(f"y is missing in {rows} of {len(y)} rows: this score needs it known, leave these rows out")
    return y


def by_row(values: Tensor) -> Tensor:
    """The mean over outputs of ``(n, ...)`` values: ``(n,)``, float64."""
    return values.double().flatten(1).mean(1) if values.dim() > 1 else values.double()


def checked_level(level: float) -> float:
    """A probability strictly between 0 and 1; `ValueError` for any other."""
    if not 0 < level < 1:
        raise ValueError(f"a level lies strictly between 0 and 1, not {level}")
    return level
