"""A table in memory: what its columns hold, and their values as one kind, errors with row and value.

Rows are counted from 1, the header not among them: that is what `TableError` says of a row.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

#: What a column holds. "empty": nothing in any row.
Kind = Literal["number", "category", "boolean", "date", "empty"]

#: A text column of which at least this share can be read as numbers is one of numbers with a mistake in it.
_MOSTLY = 0.5
_SHOWN = 5
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?")
_COMMA = r"^[+-]?\d+,\d+$"


class TableError(ValueError):
    """A table that cannot be used, in one sentence."""


@dataclass(frozen=True)
class Table:
    """Columns as they were read: texts of a text table, typed columns of the other formats."""

    #: What messages call it: the file's name.
    name: str
    columns: dict[str, pl.Series]
    #: SHA-256 of the bytes that it was read from.
    sha256: str = ""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return list(self.columns)

    def column(self, name: str, what: str = "column") -> pl.Series:
        """One column; `TableError` with the nearest names where it is not there."""
        if name not in self.columns:
            raise TableError(f"{self.name} has no {what} {name!r}; {nearest(name, self.names)}")
        return self.columns[name]

    def kind(self, name: str) -> Kind:
        """What a column holds, from its values.

        Raises:
            TableError: Text among numbers, with row and value; numbers with a decimal comma; values of another type.
        """
        series = self.column(name)
        known = series.drop_nulls()
        if not len(known):
            return "empty"
        if known.dtype.is_numeric():
            return "number"
        if known.dtype == pl.Boolean:
            return "boolean"
        if known.dtype in (pl.Date, pl.Datetime):
            return "date"
        if known.dtype != pl.String:
            raise TableError(
                f"column {name!r} of {self.name} is of type {known.dtype}, and a column holds numbers, texts, dates or "
                "true and false: leave it out with --drop"
            )
        return self._kind_of_texts(name, series, known)

    def _kind_of_texts(self, name: str, series: pl.Series, known: pl.Series) -> Kind:
        numbers = int(_as_floats(known).is_not_null().sum())
        if numbers == len(known):
            return "number"
        if int(known.str.to_lowercase().is_in(["true", "false"]).sum()) == len(known):
            return "boolean"
        if all(_DATE.fullmatch(text) for text in known) and int(_as_days(known).is_not_null().sum()) == len(known):
            return "date"
        commas = int(known.str.contains(_COMMA).sum())
        if numbers + commas == len(known):
            raise TableError(
                f"column {name!r} of {self.name} has numbers with a decimal comma, such as {known[0]!r}: write "
                "them with a point"
            )
        if numbers >= _MOSTLY * len(known):
            wrong = _as_floats(series).is_null() & series.is_not_null()
            raise TableError(
                f"column {name!r} of {self.name} holds numbers, but {int(wrong.sum())} of {len(known)} values are not, "
                f"{_first(wrong, series)}: mend it, or name the column in --categorical if these are categories"
            )
        return "category"

    def values(self, name: str, kind: Kind) -> pl.Series:
        """A column as one of this kind: Float64, String or Boolean, null where a value is missing.

        Dates are days since 1970-01-01.

        Raises:
            TableError: A value that is not of this kind, with its row; infinity.
        """
        series = self.column(name)
        if kind == "category":
            return _as_texts(series)
        if kind == "boolean":
            found = _as_booleans(series)
        elif kind == "date":
            found = _as_days(series)
        else:
            found = _as_floats(series)
        wrong = found.is_null() & series.is_not_null()
        if wrong.any():
            held = {"number": "numbers", "boolean": "true and false", "date": "dates"}.get(kind, "nothing")
            raise TableError(f"column {name!r} of {self.name} holds {held}, but {_first(wrong, series)}")
        if kind in ("number", "date") and (wrong := found.is_infinite().fill_null(value=False)).any():
            raise TableError(f"column {name!r} of {self.name} has an infinite number, {_first(wrong, series)}")
        return found

    def frame(self, kinds: Mapping[str, Kind]) -> pl.DataFrame:
        """These columns, in this order, each as one of its kind.

        Raises:
            TableError: Columns that are not there, with the nearest names; see `values`.
        """
        lost = [name for name in kinds if name not in self.columns]
        if len(lost) > 1:
            shown = ", ".join(map(repr, lost[:_SHOWN])) + (", ..." if len(lost) > _SHOWN else "")
            raise TableError(f"{self.name} has no columns {shown}; {nearest(lost[0], self.names)}")
        return pl.DataFrame({name: self.values(name, kind).alias(name) for name, kind in kinds.items()})


def nearest(name: str, known: Sequence[str]) -> str:
    """For a message: what the name may have been meant to be."""
    lower = {other.lower(): other for other in known}
    near = [lower[found] for found in difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.6)]
    shown = near or list(known)[:8]
    more = ", ..." if not near and len(known) > len(shown) else ""
    return ("the nearest are " if len(near) > 1 else "did you mean " if near else "there are ") + (
        ", ".join(map(repr, shown)) + more + ("?" if len(near) == 1 else "")
    )


def _as_floats(series: pl.Series) -> pl.Series:
    if series.dtype == pl.String or series.dtype.is_numeric() or series.dtype == pl.Boolean:
        return series.cast(pl.Float64, strict=False).fill_nan(None)
    return pl.Series(series.name, [None] * len(series), dtype=pl.Float64)


def _as_booleans(series: pl.Series) -> pl.Series:
    if series.dtype == pl.Boolean:
        return series
    texts = _as_texts(series).str.to_lowercase()
    return texts.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)


def _as_days(series: pl.Series) -> pl.Series:
    if series.dtype == pl.String:
        texts = series.str.replace("T", " ", literal=True).str.replace(r"(Z|[+-]\d\d:?\d\d)$", "")
        days = texts.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Float64)
        times = texts.str.slice(11).str.split(":").list
        hours, minutes, seconds = (
            times.get(i, null_on_oob=True).cast(pl.Float64, strict=False).fill_null(0.0) for i in range(3)
        )
        return days + (hours + (minutes + seconds / 60) / 60) / 24
    if series.dtype == pl.Date:
        return series.cast(pl.Int32).cast(pl.Float64)
    if series.dtype == pl.Datetime:
        return series.dt.timestamp("us").cast(pl.Float64) / 86_400_000_000
    return pl.Series(series.name, [None] * len(series), dtype=pl.Float64)


def _as_texts(series: pl.Series) -> pl.Series:
    """3 and 3.0 are both ``"3"``."""
    if series.dtype == pl.String:
        return series
    if series.dtype.is_float():
        whole = [None if v is None else str(int(v)) if float(v).is_integer() else repr(float(v)) for v in series]
        return pl.Series(series.name, whole, dtype=pl.String)
    if series.dtype == pl.Boolean:
        return series.replace_strict({True: "True", False: "False"}, default=None, return_dtype=pl.String)
    return series.cast(pl.String)


def _first(wrong: pl.Series, series: pl.Series) -> str:
    """For a message: the first row of these, and its value."""
    row = int(np.flatnonzero(wrong.to_numpy())[0])
    shown = repr(series[row]) if series.dtype == pl.String else str(series[row])
    return f"the first in row {row + 1}: {shown if len(shown) <= 60 else shown[:57] + '...'}"


def repeated(series: pl.Series) -> Any:
    """The value that stands in every row; None where there are several, or where some are missing."""
    return series[0] if not series.null_count() and series.n_unique() == 1 else None


def as_floats(series: pl.Series) -> NDArray[np.float64]:
    """Numbers with NaN where one is missing."""
    return np.array(series.to_numpy(), dtype=np.float64)  # a copy, which may be written to
