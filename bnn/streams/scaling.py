"""Means and deviations of a stream's columns, in one pass, and values in their units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn.streams.base import Stream


@dataclass(frozen=True)
class Moments:
    """Means and standard deviations of the columns of an array: ``(d,)`` in double precision."""

    mean: np.ndarray[Any, Any]
    std: np.ndarray[Any, Any]

    def scale(self, values: Any) -> np.ndarray[Any, Any]:
        """Less the means, divided by the deviations (a constant column by 1), in the precision of `values`."""
        values = np.asarray(values)
        kind = values.dtype if values.dtype.kind == "f" else np.dtype(np.float32)
        scaled: np.ndarray[Any, Any] = ((values - self.mean) / np.where(self.std > 0, self.std, 1.0)).astype(kind)
        return scaled

    def unscale(self, values: Any) -> Any:
        """Back to the first units."""
        return values * np.where(self.std > 0, self.std, 1.0) + self.mean


def moments(stream: Stream) -> tuple[Moments, Moments]:
    """Means and standard deviations of a stream's inputs and targets, in one pass.

    Pieces are joined as in Chan, Golub and LeVeque (1983), The American Statistician 37(3), equation 2.1.

    Raises:
        ValueError: Inputs that are not one array of numbers; NaN or infinite values, with their place.
    """
    found: list[_Running] = [_Running(), _Running()]
    for piece in range(len(stream.pieces)):
        x, y, _ = stream.read(piece)
        if isinstance(x, Mapping | tuple):
            raise ValueError("moments are those of one array of inputs, and this stream has several")
        for name, values, running in zip(("x", "y"), (x, y), found, strict=True):
            table = np.asarray(values, dtype=np.float64)
            bad = ~np.isfinite(table).reshape(len(table), -1).all(1)
            if bad.any():
                raise ValueError(f"{stream.place(piece, int(bad.argmax()))}: {name} has NaN or infinite values")
            running.add(table)
    return found[0].moments(), found[1].moments()


class _Running:
    """Moments of what was seen so far."""

    def __init__(self) -> None:
        self._n = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, table: np.ndarray[Any, Any]) -> None:
        n, mean = len(table), table.mean(0)
        apart, total = mean - self._mean, self._n + n
        self._squares = self._squares + ((table - mean) ** 2).sum(0) + apart**2 * (self._n * n / total)
        self._mean = self._mean + apart * (n / total)
        self._n = total

    def moments(self) -> Moments:
        return Moments(np.asarray(self._mean), np.sqrt(np.asarray(self._squares) / self._n))
