"""Tables as people have them, column by column: numbers with NaN where one is missing, or texts with None.

Frames (pandas, polars, and all that narwhals reads) tell the kind of a column; arrays are numbers.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data

#: A text column of which at least this share can be read as numbers is one of numbers with a mistake in it.
_MOSTLY = 0.5
#: How many columns, or values, a message shows.
SHOWN = 5


@dataclass(frozen=True)
class Column:
    """One column of a table: either numbers ``(n,)`` with NaN for missing ones, or texts with None."""

    name: str
    numbers: NDArray[np.float64] | None = None
    texts: NDArray[np.object_] | None = None

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which rows have no value."""
        if self.numbers is not None:
            return np.isnan(self.numbers)
        assert self.texts is not None
        return np.array([text is None for text in self.texts], dtype=bool)

    def as_numbers(self) -> NDArray[np.float64]:
        """Its numbers; `ValueError` with row and value for a text that is none."""
        if self.numbers is not None:
            return self.numbers
        assert self.texts is not None
        found = [None if text is None else _number(text) for text in self.texts]
        for row, (text, number) in enumerate(zip(self.texts, found, strict=True)):
            if text is not None and number is None:
                raise ValueError(f"column {self.name!r} holds numbers, but row {row} has the text {text!r}")
        return np.array([np.nan if number is None else number for number in found], dtype=np.float64)

    def as_texts(self) -> NDArray[np.object_]:
        """Its values as texts: 3 and 3.0 are both ``"3"``."""
        if self.texts is not None:
            return self.texts
        assert self.numbers is not None
        shown = [None if np.isnan(v) else str(int(v)) if v.is_integer() else repr(float(v)) for v in self.numbers]
        return _objects(shown)


def read_columns(estimator: Any, X: Any, categorical: Collection[str | int], *, reset: bool) -> list[Column]:
    """The columns of a table, checked by scikit-learn's rules, against those of the fit unless `reset`.

    Args:
        estimator: Is given ``n_features_in_`` and ``feature_names_in_`` under `reset`.
        X: A frame, or what NumPy makes numbers ``(n, d)`` of.
        categorical: Columns that hold categories whatever their type: names, or positions.
        reset: Whether this is a fit.

    Raises:
        ValueError: Columns that are missing, new, in another order or there twice; infinite numbers; no rows.
        TypeError: Something that is no table of numbers and texts.
    """
    try:
        frame = nw.from_native(X, eager_only=True, pass_through=True)
    except nw.exceptions.DuplicateError as error:
        raise ValueError(f"the table has several columns of one name. {error}") from None
    if not isinstance(frame, nw.DataFrame):
        try:
            values = validate_data(estimator, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")
        except ValueError as error:
            if "could not convert string" not in str(error):
                raise
            raise ValueError(f"{error}. An array holds numbers; columns of texts need a data frame") from None
        columns = [Column(f"x{i}", values[:, i]) for i in range(values.shape[1])]
    else:
        columns = _frame_columns(estimator, X, frame, reset=reset)
    chosen = _chosen(categorical, [column.name for column in columns])
    return [Column(c.name, texts=c.as_texts()) if i in chosen else c for i, c in enumerate(columns)]


def _frame_columns(estimator: Any, X: Any, frame: Any, *, reset: bool) -> list[Column]:
    names = [str(name) for name in frame.columns]
    try:
        validate_data(estimator, X, reset=reset, skip_check_array=True)
    except ValueError as error:
        raise ValueError(f"{error}{_nearest(estimator, names)}") from None
    rows, width = frame.shape
    if not rows or not width:
        raise ValueError(f"Found array with {rows} sample(s) and {width} feature(s): the table is empty")
    return [_frame_column(frame[:, i], name) for i, name in enumerate(names)]


def _nearest(estimator: Any, names: list[str]) -> str:
    """For a message: what the missing columns may be called here."""
    known = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
    lost, new = [name for name in known if name not in names], [name for name in names if name not in known]
    if not known or (not lost and not new):
        return ""
    pairs = [(name, difflib.get_close_matches(name, new or names, n=1, cutoff=0.5)) for name in lost]
    near = [f"for {name!r} there is {found[0]!r}" for name, found in pairs if found]
    return f"Nearest names: {'; '.join(near[:SHOWN])}.\n" if near else ""


def _frame_column(series: Any, name: str) -> Column:
    kind = series.dtype
    if kind.is_numeric():
        numbers = np.asarray(series.cast(nw.Float64).to_numpy(), dtype=np.float64)
        _check_finite(numbers, name)
        return Column(name, numbers)
    if isinstance(kind, nw.String | nw.Categorical | nw.Enum | nw.Boolean | nw.Object):
        return _text_column(series.to_list(), name)
    raise TypeError(f"column {name!r} is of type {kind}: a column holds numbers, texts, categories or true and false")


def _text_column(values: Sequence[Any], name: str) -> Column:
    """Texts; or numbers, where all are there as numbers under a general type."""
    missing = [value is None or _is_nan(value) for value in values]
    there = [value for value, gone in zip(values, missing, strict=True) if not gone]
    if there and all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in there):
        numbers = np.array([np.nan if gone else v for v, gone in zip(values, missing, strict=True)], dtype=np.float64)
        _check_finite(numbers, name)
        return Column(name, numbers)
    for row, (value, gone) in enumerate(zip(values, missing, strict=True)):
        if not gone and not isinstance(value, str | bool | int | float | np.generic):
            raise TypeError(
                f"column {name!r}, row {row}: argument must be a string or a number, not {type(value).__name__!r}"
            )
    return Column(name, texts=_objects([None if gone else str(v) for v, gone in zip(values, missing, strict=True)]))


def refuse_mixed(column: Column) -> None:
    """Raise `ValueError`, with row and value, for texts most of which are numbers: a mistake in a numeric column."""
    if column.texts is None:
        return
    there = [(row, text) for row, text in enumerate(column.texts) if text is not None]
    wrong = [(row, text) for row, text in there if _number(text) is None]
    if wrong and len(there) - len(wrong) >= _MOSTLY * len(there):
        row, text = wrong[0]
        raise ValueError(
            f"column {column.name!r} holds numbers, but {len(wrong)} of {len(there)} values are none, the first in row "
            f"{row}: {text!r}. Mend or remove them, or name the column in categorical= if these are categories"
        )


def _chosen(categorical: Collection[str | int], names: list[str]) -> set[int]:
    """The positions of the columns that were named."""
    found = set()
    for which in categorical:
        if isinstance(which, str) and which not in names:
            near = difflib.get_close_matches(which, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"categorical names the column {which!r}, which is not there{hint}")
        if not isinstance(which, str) and not 0 <= which < len(names):
            raise ValueError(f"categorical has position {which}, but there are columns 0 to {len(names) - 1}")
        found.add(names.index(which) if isinstance(which, str) else int(which))
    return found


def _check_finite(numbers: NDArray[np.float64], name: str) -> None:
    rows = np.flatnonzero(np.isinf(numbers))
    if len(rows):
        raise ValueError(f"column {name!r} contains infinity, in {len(rows)} rows, the first of them row {rows[0]}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_nan(value: Any) -> bool:
    """Whether this is NaN, or one of pandas's marks of a missing value."""
    return type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)


def _objects(values: Sequence[str | None]) -> NDArray[np.object_]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
