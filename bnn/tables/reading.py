"""CSV, TSV, Parquet, Feather and standard input as a `Table`, errors in one sentence.

Text is parsed by the standard library's reader: polars' fills short rows with nothing, and says nothing.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import errno
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from bnn.tables.table import Table, TableError

#: What stands for "not known" in a text table.
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")
#: Suffixes, and how a file of that name is read.
FORMATS = {
    ".csv": "text", ".tsv": "text", ".txt": "text", ".parquet": "parquet", ".pq": "parquet", ".feather": "feather",
    ".arrow": "feather", ".ipc": "feather",
}  # fmt: skip
_SEPARATORS = (",", "\t", ";", "|")
_CHUNK = 50_000  # rows


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
    table = Table(name, columns, hashlib.sha256(content).hexdigest())
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
