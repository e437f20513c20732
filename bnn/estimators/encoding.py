"""From the columns of a table to what a network takes: standardised numbers, indicators, one-hot levels, indices."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bnn.estimators.columns import SHOWN, Column, refuse_mixed

Encoding = Literal["onehot", "embedding"]
Unknown = Literal["warn", "error"]
Missing = Literal["impute", "error"]
Constant = Literal["error", "drop"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NumericColumn:
    """What is known of a column of numbers from the training rows."""

    name: str
    #: In the place of a missing number.
    median: float
    mean: float
    scale: float
    #: Whether numbers were missing: there is then an indicator of it beside the column.
    missing: bool


@dataclass(frozen=True)
class CategoricalColumn:
    """What is known of a column of categories from the training rows."""

    name: str
    levels: tuple[str, ...]
    #: Whether values were missing: that is then the last level.
    missing: bool

    @property
    def size(self) -> int:
        """How many levels there are, the one of missing values among them."""
        return len(self.levels) + self.missing

    def indices(self, texts: NDArray[np.object_], unknown: Unknown) -> NDArray[np.int64]:
        """0 for what was not there in training, then the levels from 1.

        Raises:
            ValueError: A new category under ``unknown="error"``.
        """
        known: dict[str | None, int] = {level: i for i, level in enumerate(self.levels, start=1)}
        if self.missing:
            known[None] = self.size
        found = np.array([known.get(text, 0) for text in texts], dtype=np.int64)
        rows = np.flatnonzero(found == 0)
        if len(rows):
            count = f"{len(rows)} row{'s' * (len(rows) > 1)}"
            new = list(dict.fromkeys("a missing value" if t is None else repr(t) for t in texts[rows]))
            words = (
                f"column {self.name!r} has categories that were not there in training: {', '.join(new[:SHOWN])}"
                f"{', ...' if len(new) > SHOWN else ''} ({count}, the first is row {rows[0]})"
            )
            if unknown == "error":
                raise ValueError(f"{words}; unknown='warn' predicts as for no known category")
            warnings.warn(f"{words}; they are taken as no known category", UserWarning, stacklevel=2)
        return found


@dataclass(frozen=True)
class Encoder:
    """What was learned of a table in training, as plain numbers and names, and how it is applied."""

    columns: tuple[NumericColumn | CategoricalColumn, ...]
    #: Positions of the columns that are used: constant ones may be left out.
    used: tuple[int, ...]
    encoding: Encoding
    unknown: Unknown
    missing: Missing

    @property
    def numeric(self) -> list[NumericColumn]:
        """The columns of numbers."""
        return [column for column in self.columns if isinstance(column, NumericColumn)]

    @property
    def categorical(self) -> list[CategoricalColumn]:
        """The columns of categories."""
        return [column for column in self.columns if isinstance(column, CategoricalColumn)]

    @property
    def embedded(self) -> list[int]:
        """For each column that is embedded how many vectors it needs: the first is that of an unknown category."""
        return [column.size + 1 for column in self.categorical] if self.encoding == "embedding" else []

    @property
    def width(self) -> int:
        """D, the length of the vector of numbers."""
        onehot = 0 if self.encoding == "embedding" else sum(column.size for column in self.categorical)
        return len(self.numeric) + sum(column.missing for column in self.numeric) + onehot

    def transform(self, table: Sequence[Column]) -> Floats | dict[str, NDArray[Any]]:
        """``(n, D)``; with embeddings a dict of that, ``"numeric"``, and of indices ``"categorical"``, ``(n, c)``.

        Numbers come first, in the order of the columns, then indicators of missing numbers, then one-hot levels.

        Raises:
            ValueError: Text in a numeric column (with row and value); new categories, or missing values, where these
                are errors.
        """
        given = [table[i] for i in self.used]
        pairs = list(zip(self.columns, given, strict=True))
        numbers, indicators, indices = [], [], []
        for known, column in pairs:
            if isinstance(known, CategoricalColumn):
                indices.append(known.indices(column.as_texts(), self.unknown))
                continue
            values = column.as_numbers()
            gone = np.isnan(values)
            self._check_missing(known, gone)
            numbers.append((np.where(gone, known.median, values) - known.mean) / known.scale)
            if known.missing:
                indicators.append(gone.astype(np.float64))
        n = len(given[0].missing) if given else 0
        onehot = [np.eye(k.size + 1)[i][:, 1:] for k, i in zip(self.categorical, indices, strict=True)]
        if self.encoding == "embedding" and indices:
            dense = np.column_stack([np.empty((n, 0)), *numbers, *indicators])
            return {"numeric": dense, "categorical": np.column_stack(indices)}
        return np.column_stack([np.empty((n, 0)), *numbers, *indicators, *onehot])

    def _check_missing(self, known: NumericColumn, gone: NDArray[np.bool_]) -> None:
        if gone.any() and self.missing == "error":
            raise _missing_error(known.name, gone)
        if gone.any() and not known.missing:
            warnings.warn(
                f"column {known.name!r} had no missing value in training, and has {gone.sum()} here, the first in row "
                f"{np.flatnonzero(gone)[0]}: the training median, {known.median:.4g}, stands for them",
                UserWarning,
                stacklevel=3,
            )


def fit_encoder(
    table: Sequence[Column],
    weight: Floats | None,
    *,
    encoding: Encoding,
    standardise: bool,
    unknown: Unknown,
    missing: Missing,
    constant: Constant,
    always: Collection[str | int] = (),
) -> Encoder:
    """Learn from training rows how to encode a table.

    Args:
        table: Its columns.
        weight: ``(n,)`` sample weights, positive; means, deviations and medians are weighted by them.
        encoding: Of categories: a column a level, or an index for an embedding.
        standardise: Whether numbers are brought to mean 0 and standard deviation 1.
        unknown: See `CategoricalColumn.indices`.
        missing: ``"impute"`` numbers by the median, with an indicator, and make categories a level; or ``"error"``.
        constant: Columns of one value: an ``"error"``, or ``"drop"`` them with a warning.
        always: Columns that the user says hold categories: any text is fine in them.

    Raises:
        ValueError: Columns of nothing or of one value; text among numbers; missing values where these are errors.
    """
    columns: list[NumericColumn | CategoricalColumn] = []
    used, dropped = [], []
    for i, column in enumerate(table):
        gone = column.missing
        if gone.all():
            raise ValueError(f"column {column.name!r} has no value in any of {len(gone)} rows: leave it out")
        if gone.any() and missing == "error":
            raise _missing_error(column.name, gone)
        if column.name not in always and i not in always:
            refuse_mixed(column)
        there = column.texts[~gone] if column.texts is not None else column.as_numbers()[~gone]
        if not gone.any() and len(there) > 1 and (there == there[0]).all():
            dropped.append(f"{column.name!r} ({there[0]})")
            continue
        used.append(i)
        if column.texts is not None:
            columns.append(CategoricalColumn(column.name, tuple(sorted(set(there))), bool(gone.any())))
        else:
            columns.append(_numeric(column, gone, weight, standardise=standardise))
    if dropped:
        words = f"{len(dropped)} of {len(table)} columns have the same value in every row: {', '.join(dropped[:SHOWN])}"
        if constant == "error" or not used:
            raise ValueError(f"{words}. Nothing can be learned from them: leave them out, or give constant='drop'")
        warnings.warn(f"{words}; they are left out", UserWarning, stacklevel=2)
    return Encoder(tuple(columns), tuple(used), encoding, unknown, missing)


def _numeric(column: Column, gone: NDArray[np.bool_], weight: Floats | None, *, standardise: bool) -> NumericColumn:
    values = column.as_numbers()[~gone]
    own = None if weight is None else weight[~gone]
    mean, scale = moments(values, own) if standardise else (0.0, 1.0)
    return NumericColumn(column.name, _median(values, own), float(mean), float(scale), bool(gone.any()))


def moments(values: Floats, weight: Floats | None) -> tuple[Any, Any]:
    """Weighted mean and standard deviation of each column; a deviation of 0 is given as 1."""
    largest = np.abs(values).max(axis=0)
    largest = np.where(largest == 0, 1.0, largest)
    shares = values / largest  # squares of large numbers would overflow, of small ones vanish
    mean = np.average(shares, axis=0, weights=weight)
    scale = np.sqrt(np.average((shares - mean) ** 2, axis=0, weights=weight))
    # Of numbers that differ by rounding only there is no deviation to divide by.
    return mean * largest, np.where(scale <= 1e-12, 1.0, scale * largest)


def _median(values: Floats, weight: Floats | None) -> float:
    if weight is None:
        return float(np.median(values))
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[order])
    low = values[order][np.searchsorted(total, total[-1] / 2)]
    high = values[order][min(np.searchsorted(total, total[-1] / 2, side="right"), len(values) - 1)]
    return float((low + high) / 2)


def _missing_error(name: str, gone: NDArray[np.bool_]) -> ValueError:
    return ValueError(
        f"column {name!r} has NaN, no value, in {gone.sum()} of {len(gone)} rows, the first is row "
        f"{np.flatnonzero(gone)[0]}; missing='impute' takes them"
    )
