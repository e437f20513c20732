"""Predictions of a stream, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bnn.streams.base import Stream, cut

if TYPE_CHECKING:
    from bnn.posterior import Posterior
    from bnn.prediction import Prediction


def predict(
    posterior: Posterior, data: Any, draws: int | None = None, seed: int = 0, *, rows: int = 1024
) -> Iterator[Prediction]:
    """Predictions batch by batch, in order, in memory that does not grow with the number of rows.

    ``posterior.predict(stream)`` reads a stream too, and holds the outputs of all its rows under all draws.

    Args:
        posterior: As in ``posterior.predict``; all batches meet the same draws.
        data: A stream, or an iterable of inputs or of ``(x, ..., y)``, such as a loader that does not shuffle.
        draws: See `bnn.Posterior.predict`.
        seed: See `bnn.Posterior.predict`.
        rows: Of a stream's pieces, at most so many at a time.
    """
    for item in data:
        if not isinstance(data, Stream):
            yield posterior.predict((one for one in [item]), draws, seed)  # as of a loader: its targets are left out
            continue
        x, y = item
        for start in range(0, len(y), rows):
            yield posterior.predict(cut(x, slice(start, start + rows)), draws, seed)
