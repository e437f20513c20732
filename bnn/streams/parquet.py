"""Parquet files, as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bnn.streams.base import MEMORY, Piece, Stream

if TYPE_CHECKING:
    import polars

#: Pieces that fill the memory: fewer than of arrays, since each is found by decoding what stands before it on its page.
_PIECES = 8


class Parquet(Stream):
    """Parquet files, read with polars some rows at a time; of a file only the row groups that hold them.

    Args:
        path: A file, a pattern such as ``"train/*.parquet"``, or several files. They have the same columns.
        target: The column of the targets, or several.
        features: The columns of the inputs, in this order; ``None``: all others.
        weight: The column of the sample weights.
        piece: Rows read at once; ``None``: an eighth of `memory`, at four bytes a number.
        memory: Bytes held at a time.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column that is not there (with the nearest names), or has no numbers; no rows.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *,
        target: str | Sequence[str],
        features: Sequence[str] | None = None,
        weight: str | None = None,
        piece: int | None = None,
        memory: int = MEMORY,
    ):
        self.memory, self._target, self._weight = memory, target, weight
        if piece is not None and piece < 1:
            raise ValueError(f"piece is a number of rows from 1, not {piece}")
        paths = _files(path)
        others = [*([target] if isinstance(target, str) else target), *([weight] if weight is not None else [])]
        self.features = list(features) if features is not None else _features(paths[0], others)
        piece = piece or max(1, memory // _PIECES // (4 * (len(self.features) + len(others))))
        self._places: list[tuple[Path, int, int]] = []
        for file in paths:
            rows = _check_columns(file, [*self.features, *others])
            self._places += [(file, start, min(piece, rows - start)) for start in range(0, rows, piece)]
        if not self._places:
            raise ValueError(f"{', '.join(map(str, paths))} has no rows")

    @property
    def pieces(self) -> list[int]:
        """See `Stream`."""
        return [rows for _, _, rows in self._places]

    def read(self, piece: int) -> Piece:
        """See `Stream`."""
        import polars as pl

        file, start, rows = self._places[piece]
        targets = [self._target] if isinstance(self._target, str) else list(self._target)
        columns = [*self.features, *targets, *([self._weight] if self._weight is not None else [])]
        try:
            frame = pl.scan_parquet(file).slice(start, rows).select(columns).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise OSError(f"{file} cannot be read at row {start}: {error}") from error
        if len(frame) != rows:
            raise OSError(f"{file} has changed: {len(frame)} of {rows} rows from row {start} on are left")
        y = frame[targets[0]] if isinstance(self._target, str) else frame.select(targets)
        weight = None if self._weight is None else frame[self._weight].to_numpy()
        return Piece(np.ascontiguousarray(frame.select(self.features).to_numpy()), y.to_numpy(), weight)

    def place(self, piece: int, row: int) -> str:
        """See `Stream`."""
        file, start, _ = self._places[piece]
        return f"{file}, row {start + row}"


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    import glob

    wanted = [path] if isinstance(path, str | Path) else list(path)
    found = []
    for one in wanted:
        files = [Path(one)] if Path(one).exists() else sorted(Path(name) for name in glob.glob(str(one)))
        if not files:
            raise FileNotFoundError(f"there is no file {one}")
        found += files
    return found


def _schema(file: Path) -> polars.Schema:
    import polars as pl

    try:
        return pl.scan_parquet(file).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error


def _features(file: Path, others: list[str]) -> list[str]:
    return [name for name in _schema(file) if name not in others]


def _check_columns(file: Path, columns: list[str]) -> int:
    """The number of rows of a file that has these columns, with numbers in them."""
    import difflib

    import polars as pl

    schema = _schema(file)
    for name in columns:
        if name not in schema:
            near = difflib.get_close_matches(name, schema, n=3)
            hint = f"; the nearest are {', '.join(near)}" if near else f"; it has {', '.join(schema)}"
            raise ValueError(f"{file} has no column {name!r}{hint}")
        if not (schema[name].is_numeric() or schema[name] == pl.Boolean):
            raise ValueError(f"column {name!r} of {file} has no numbers but {schema[name]}: leave it out, or encode it")
    return int(pl.scan_parquet(file).select(pl.len()).collect().item())
