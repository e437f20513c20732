"""Tables in files: CSV, TSV, Parquet, Feather and standard input as polars columns, checked, errors in one sentence.

Text is parsed by the standard library's reader: polars' fills short rows with nothing, and says nothing.
Rows are counted from 1, the header not among them: that is what `TableError` says of a row.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import errno
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

#: What a column holds. "empty": nothing in any row.
Kind = Literal["number", "category", "boolean", "date", "empty"]

#: What stands for "not known" in a text table.
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")
#: Suffixes, and how a file of that name is read.
FORMATS = {
    ".csv": "text", ".tsv": "text", ".txt": "text", ".parquet": "parquet", ".pq": "parquet", ".feather": "feather",
    ".arrow": "feather", ".ipc": "feather",
}  # fmt: skip
#: A text column of which at least this share can be read as numbers is one of numbers with a mistake in it.
_MOSTLY = 0.5
_SEPARATORS = (",", "\t", ";", "|")
_CHUNK = 50_000  # rows
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


def read_table(source: str | Path, stdin: io.BufferedIOBase | Any = None) -> Table:
    """Read a table, and check what can be checked without knowing what it is for.

    Args:
        source: A file whose suffix tells its format (see `FORMATS`), or ``-`` for standard input, of which the first
            bytes tell it.
        stdin: What ``-`` stands for.

    Raises:
        TableError: No such file, a directory, a format that is not known, bytes that are not UTF-8 (with the position),
            a damaged or truncated file, no rows, rows with more or fewer values than columns, names that come twice.
    """
    if str(source) == "-":
        return parse(stdin.read(), "standard input")
    path = Path(source)
    form = FORMATS.get(path.suffix.lower())
    try:
        if path.is_dir():
            raise TableError(f"{path} is a directory, and a table is a file")
        if form is None and path.exists():
            raise TableError(f"{path} is of no format that is known: the name of a table ends in {', '.join(FORMATS)}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise TableError(f"there is no file {path}{_beside(path)}") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {os.strerror(error.errno or errno.EIO)}") from error
    except ValueError as error:
        if isinstance(error, TableError):
            raise
        raise TableError(f"{str(source)!r} is no name of a file") from error
    return parse(content, path.name, form)


def parse(content: bytes, name: str, form: str | None = None) -> Table:
    """A table from its bytes; see `read_table`. Without a format, the first bytes tell it."""
    if not content.strip():
        raise TableError(f"{name} is empty")
    if form is None:
        form = "parquet" if content[:4] == b"PAR1" else "feather" if content[:6] == b"ARROW1" else "text"
    columns = _text_columns(content, name) if form == "text" else _binary_columns(content, name, form)
    if not columns:
        raise TableError(f"{name} has no columns")
    table = Table(name, columns)
    if not len(table):
        raise TableError(f"{name} has a header, but no rows")
    return table


def _beside(path: Path) -> str:
    """For a message: a file of nearly this name in the same folder."""
    try:
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1, cutoff=0.7)
    except OSError:
        return ""
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""


def _binary_columns(content: bytes, name: str, form: str) -> dict[str, pl.Series]:
    read = pl.read_parquet if form == "parquet" else pl.read_ipc
    title = form.capitalize()
    ends = (b"PAR1", b"PAR1") if form == "parquet" else (b"ARROW1", b"ARROW1")
    if content[: len(ends[0])] != ends[0]:
        raise TableError(f"{name} is not a {title} file, whatever its name says")
    if content[-len(ends[1]) :] != ends[1]:
        raise TableError(f"{name} is a {title} file that is cut off: its end is missing")
    try:
        frame = read(io.BytesIO(content))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # polars' panics derive from it
        said = " ".join(str(error).split())[:120]
        raise TableError(f"{name} is a damaged {title} file ({said})") from error
    return {column: _plain(frame[column]) for column in frame.columns}


def _plain(series: pl.Series) -> pl.Series:
    """Categories as texts, decimals as floats, NaN as missing."""
    if series.dtype in (pl.Categorical, pl.Enum):
        return series.cast(pl.String)
    if series.dtype == pl.Decimal:
        return series.cast(pl.Float64)
    return series.fill_nan(None) if series.dtype.is_float() else series


def _text_columns(content: bytes, name: str) -> dict[str, pl.Series]:
    text = _decoded(content, name)
    start = text.find("\n", 0, 1_000_000)
    separator = _separator(text[: start if start >= 0 else len(text)])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = _rows(reader, name)
    header = [field.strip() for field in next(rows, [])]
    if not any(header):
        raise TableError(f"{name} has no header: its first line names the columns")
    names = [field or f"column{i}" for i, field in enumerate(header, start=1)]
    twice = [field for field, count in Counter(names).items() if count > 1]
    if twice:
        raise TableError(f"{name} has {len(twice)} column names that come more than once, the first is {twice[0]!r}")
    parts: list[list[pl.Series]] = [[] for _ in names]
    for chunk in _chunks(_checked(rows, names, reader, name)):
        for part, values in zip(parts, zip(*chunk, strict=True), strict=True):
            part.append(_stripped(pl.Series(values, dtype=pl.String)))
    return {
        column: pl.concat(part, rechunk=True) if part else pl.Series(dtype=pl.String)
        for column, part in zip(names, parts, strict=True)
    }


def _decoded(content: bytes, name: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TableError(f"{name} is in UTF-16 (byte 0 is {content[0]:#04x}): save it as UTF-8")
    if content.startswith((b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0", b"PAR1", b"ARROW1")):
        raise TableError(f"{name} is not text: it begins like a spreadsheet, an archive or a binary table")
    start = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    try:
        text = content[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        line = content.count(b"\n", 0, at) + 1
        raise TableError(
            f"{name} is not in UTF-8: byte {at} ({content[at]:#04x}, line {line}) cannot be read"
        ) from None
    if "\0" in text:
        raise TableError(f"{name} is not text: there is a zero at character {text.index(chr(0))}")
    return text


def _separator(header: str) -> str:
    """The one that parts the header into most names, quoted parts left out."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(_SEPARATORS, key=bare.count)


def _rows(reader: Any, name: str) -> Iterator[list[str]]:
    """Rows that are not blank."""
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise TableError(f"{name}, line {reader.line_num}: {_in_words(str(error))}") from None
        if row:
            yield row


def _in_words(error: str) -> str:
    if "unexpected end" in error:
        return "a quotation mark was opened and never closed, or the file is cut off"
    if "expected after" in error:
        return "there is text after a closing quotation mark"
    return "a quotation mark was opened and never closed" if "field larger" in error else error


def _checked(rows: Iterator[list[str]], names: list[str], reader: Any, name: str) -> Iterator[list[str]]:
    for i, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise TableError(
                f"{name} has {len(names)} column{'s' * (len(names) > 1)}, but row {i} (line {reader.line_num}) has "
                f"{len(row)} value{'s' * (len(row) > 1)}"
            )
        yield row


def _chunks(rows: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _stripped(series: pl.Series) -> pl.Series:
    series = series.str.strip_chars()
    return series.set(series.is_in(list(MISSING)), None)


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
