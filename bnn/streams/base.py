"""What a stream is: rows on disk, in pieces that are read whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from bnn.streams.scaling import Moments

#: Bytes that a stream holds and shuffles at a time, if nothing else is said.
MEMORY = 16 * 2**20
#: Pieces that fill them, where pieces can have any size: many, since only pieces come in an order of their own.
PIECES = 64


class Piece(NamedTuple):
    """Some rows as they are on disk, in order."""

    x: Any
    y: Any
    weight: Any = None


class Stream(ABC):
    """Rows on disk, in pieces that are read whole.

    In a fit an epoch takes the pieces in a random order, holds as many as `memory` lets it, and shuffles their rows
    among each other. Rows of a file that is sorted (by label, by date) are mixed among the pieces held at one time
    only: such a file is best shuffled once on disk. Outside a fit, iterating gives ``(x, y)`` in the order on disk.
    """

    #: Bytes held at a time; at least a piece is.
    memory: int = MEMORY

    @property
    @abstractmethod
    def pieces(self) -> list[int]:
        """The rows of each piece."""

    @abstractmethod
    def read(self, piece: int) -> Piece:
        """One piece.

        Raises:
            OSError: The file is not there, or shorter than it was.
        """

    @abstractmethod
    def place(self, piece: int, row: int) -> str:
        """Where a row of a piece is, for messages."""

    @cached_property
    def n(self) -> int:
        """N, the number of rows."""
        return sum(self.pieces)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for piece in range(len(self.pieces)):
            x, y, _ = self.read(piece)
            yield x, y

    def scaled(self, x: Moments | None = None, y: Moments | None = None) -> Stream:
        """The same rows, inputs (and targets) less these means and divided by these deviations.

        Args:
            x: Of the inputs, as `moments` gives them; ``None``: as they are.
            y: Of the targets.
        """
        return _Scaled(self, x, y)


class _Scaled(Stream):
    """A stream in other units."""

    def __init__(self, stream: Stream, x: Moments | None, y: Moments | None):
        self._stream, self._x, self._y, self.memory = stream, x, y, stream.memory

    @property
    def pieces(self) -> list[int]:
        """See `Stream`."""
        return self._stream.pieces

    def read(self, piece: int) -> Piece:
        """See `Stream`."""
        x, y, weight = self._stream.read(piece)
        return Piece(x if self._x is None else self._x.scale(x), y if self._y is None else self._y.scale(y), weight)

    def place(self, piece: int, row: int) -> str:
        """See `Stream`."""
        return self._stream.place(piece, row)


def cut(part: Any, rows: slice) -> Any:
    """Some rows of a part of a piece."""
    if part is None:
        return None
    if isinstance(part, Mapping):
        return {name: value[rows] for name, value in part.items()}
    return tuple(value[rows] for value in part) if isinstance(part, tuple) else part[rows]
