"""Arrays in files, as a stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from bnn.streams.base import MEMORY, PIECES, Piece, Stream
from bnn.streams.mapped import Mapped, is_mapped


class MemoryMapped(Stream):
    """Arrays that are mapped from files: ``np.memmap``, or ``np.load(path, mmap_mode="r")``.

    They are read from their files, and not through the mapping, of which every page that was touched would count as
    this process's memory.

    Args:
        x: Inputs, rows first: an array, a tuple or a dict of arrays. Those that are not mapped are taken as they are,
            and anything that gives rows by ``x[start:stop]`` can stand here (h5py, zarr).
        y: Targets, rows first.
        weight: ``(n,)``, sample weights.
        piece: Rows read at once; ``None``: a 64th of `memory`.
        memory: Bytes held at a time.

    Raises:
        ValueError: No rows, or numbers of rows that differ; an array stored column by column.
    """

    def __init__(self, x: Any, y: Any, *, weight: Any = None, piece: int | None = None, memory: int = MEMORY):
        self._structure = tuple(x) if isinstance(x, Mapping) else len(x) if isinstance(x, tuple) else None
        leaves = list(x.values()) if isinstance(x, Mapping) else list(x) if isinstance(x, tuple) else [x]
        names = [f"x[{name!r}]" for name in x] if isinstance(x, Mapping) else [f"x[{i}]" for i in range(len(leaves))]
        named = dict(zip(names if self._structure is not None else ["x"], leaves, strict=True)) | {"y": y}
        named |= {} if weight is None else {"weight": weight}
        self._weighted, self.memory = weight is not None, memory
        self._leaves = {name: Mapped(leaf, name) if is_mapped(leaf) else _sliced(leaf) for name, leaf in named.items()}
        rows = {name: leaf.shape[0] if leaf.shape else 0 for name, leaf in named.items()}
        if len(set(rows.values())) > 1 or not rows["y"]:
            raise ValueError(f"arrays have rows first, one at least and equally many; these have {rows}")
        bytes_a_row = sum(math.prod(leaf.shape[1:]) * np.dtype(_numpy(leaf)).itemsize for leaf in named.values())
        self.piece = piece or max(1, memory // PIECES // max(1, bytes_a_row))
        full, left = divmod(rows["y"], self.piece)
        self._pieces = [self.piece] * full + [left] * (left > 0)

    @property
    def pieces(self) -> list[int]:
        """See `Stream`."""
        return self._pieces

    def read(self, piece: int) -> Piece:
        """See `Stream`."""
        start = piece * self.piece
        read = [leaf(start, start + self._pieces[piece]) for leaf in self._leaves.values()]
        weight = read.pop() if self._weighted else None
        y = read.pop()
        if self._structure is None:
            return Piece(read[0], y, weight)
        x = tuple(read) if isinstance(self._structure, int) else dict(zip(self._structure, read, strict=True))
        return Piece(x, y, weight)

    def place(self, piece: int, row: int) -> str:
        """See `Stream`."""
        return f"row {piece * self.piece + row}"


def as_stream(x: Any, y: Any, weight: Any) -> MemoryMapped | None:
    """A stream of arrays of which at least one is mapped from a file; None where all are in memory."""
    leaves = [*(x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple) else [x]), y]
    return MemoryMapped(x, y, weight=weight) if any(is_mapped(leaf) for leaf in leaves) else None


def _sliced(leaf: Any) -> Callable[[int, int], Any]:
    return lambda start, stop: leaf[start:stop]


def _numpy(leaf: Any) -> Any:
    return leaf.numpy().dtype if isinstance(leaf, Tensor) else leaf.dtype
