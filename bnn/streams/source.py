"""A stream as what the methods of inference read: checked batches, shuffled in constant memory."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnn.data import Batch, Place, Source, as_batch, side_by_side
from bnn.distributed import World
from bnn.likelihoods import Likelihood
from bnn.streams.base import Piece, Stream, cut


class StreamSource(Source):
    """Batches of a stream; see `Stream` for their order.

    Args:
        stream: The data.
        likelihood: Of the model, which converts the targets.
        like: Gives dtype and device.
        batch_size: Rows a step, of all ranks together; ``None``: all, which are then held in memory.
        ranks: Where there are several, each reads pieces of its own, the same ones in every epoch.
    """

    def __init__(
        self, stream: Stream, likelihood: Likelihood, like: Tensor, batch_size: int | None, ranks: World | None = None
    ):
        self.stream, self.ranks, self.n = stream, ranks or World(), stream.n
        self._likelihood, self._like = likelihood, like
        self.batch_size = min(batch_size or self.n, self.n)
        self._check: Callable[[Tensor], None] | None = None
        self._whole: Batch | None = None
        self._dealt = _dealt(stream.pieces, self.ranks.size)
        self._rows = [sum(stream.pieces[i] for i in pieces) for pieces in self._dealt]
        self._share_of_memory = 1
        if not all(self._rows):
            raise ValueError(
                f"{self.ranks.size} ranks share {len(stream.pieces)} pieces of the data, so that one has none: give "
                "the stream a smaller piece="
            )

    def shared(self, ranks: World) -> StreamSource:
        """The same, each rank with pieces of its own."""
        return StreamSource(self.stream, self._likelihood, self._like, self.batch_size, ranks)

    @property
    def sizes(self) -> dict[int, int]:
        """Of this rank's batches."""
        counts: dict[int, int] = {}
        for own, _ in self._steps():
            counts[own] = counts.get(own, 0) + 1
        return counts

    def identity(self) -> dict[str, Any]:
        """The number of rows and of pieces: the files are not read for this."""
        return {"rows": self.n, "stream": type(self.stream).__name__, "pieces": len(self.stream.pieces)}

    def place(self, members: int | None) -> Place:
        """By counting: the seed of an epoch is drawn as it begins."""
        return "count"

    def check_targets(self, check: Callable[[Tensor], None]) -> None:
        """Piece by piece, from the next epoch on."""
        self._check = check

    def batches(self) -> Iterator[Batch]:
        """Shuffled, under a seed that is drawn when the epoch begins; in order where one batch holds all."""
        seed = int(torch.randint(2**62, ()))
        if self.batch_size == self.n:
            self._whole = self._whole or next(self._cut_from(self._held(None)))
            yield self._whole
            return
        yield from self._cut_from(self._held(torch.Generator().manual_seed(seed)))

    def member_batches(self, members: int) -> Iterator[Batch]:
        """The stream read once a member, side by side, each in an order of its own and with its part of the memory."""
        self._share_of_memory = members
        return side_by_side(self, members)

    def _steps(self) -> Iterator[tuple[int, float]]:
        """This rank's rows in each step, and which part of all rows of the step they are."""
        count, ranks = math.ceil(self.n / self.batch_size), self.ranks
        for step in range(count):
            if ranks.size == 1:
                yield min(self.batch_size, self.n - step * self.batch_size), 1.0
                continue
            rows = [own * (step + 1) // count - own * step // count for own in self._rows]
            yield rows[ranks.rank], rows[ranks.rank] / sum(rows)

    def _cut_from(self, held: Iterator[tuple[Batch, Tensor]]) -> Iterator[Batch]:
        """Batches of what is held, each a copy: what is held makes room for what comes next."""
        rows, order = next(held)
        for own, share in self._steps():
            parts, left = [], own
            while True:
                parts.append([leaf.index_select(0, order[:left]) for leaf in rows.leaves])
                order, left = order[left:], left - len(order[:left])
                if not left:
                    break
                rows, order = next(held)
            leaves = parts[0] if len(parts) == 1 else [torch.cat(same) for same in zip(*parts, strict=True)]
            yield replace(Batch.rebuild(rows.structure, leaves), share=share)

    def _held(self, generator: torch.Generator | None) -> Iterator[tuple[Batch, Tensor]]:
        """This rank's rows, as many pieces at a time as the memory takes, and the order in which to give them out.

        All are put in one place: memory that is taken and given back again and again is not all given back.
        """
        pieces = self._dealt[self.ranks.rank]
        order = range(len(pieces)) if generator is None else torch.randperm(len(pieces), generator=generator).tolist()
        space, count = None, 0
        for i, place in enumerate(order, 1):
            read = self._read(pieces[place])
            bytes_a_row = sum(leaf.nbytes for leaf in read.leaves) / len(read.y)
            enough = self.stream.memory / (bytes_a_row * self._share_of_memory)
            if space is None:
                most = math.ceil(enough) + max(self.stream.pieces[piece] for piece in pieces)
                space = _space(read, min(most, self._rows[self.ranks.rank]))
            self._put(read, space, count, pieces[place])
            count += len(read.y)
            if count >= enough or i == len(pieces):
                rows = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
                yield space, rows.to(read.y.device)
                count = 0

    def _put(self, read: Batch, space: Batch, start: int, piece: int) -> None:
        """Copy a piece to where it belongs.

        Raises:
            ValueError: It has numbers of another kind or shape than those before.
        """
        if read.structure != space.structure:
            raise ValueError(f"{self.stream.place(piece, 0)}: {read.structure} does not go with {space.structure}")
        for leaf, into in zip(read.leaves, space.leaves, strict=True):
            was, now = ((t.dtype, tuple(t.shape[1:])) for t in (into, leaf))
            if was != now:
                raise ValueError(
                    f"{self.stream.place(piece, 0)}: rows of {now[0]} and shape {now[1]}, and others have {was[0]} "
                    f"and {was[1]}: store all of them alike"
                )
            into[start : start + len(leaf)] = leaf

    def _read(self, piece: int) -> Batch:
        read = self.stream.read(piece)
        try:
            return self._checked(read)
        except (ValueError, TypeError) as error:
            row, told = _first_wrong(lambda rows: self._checked(Piece(*[cut(part, rows) for part in read])), read)
            raise type(error)(f"{self.stream.place(piece, row)}: {told or error}") from None

    def _checked(self, read: Piece) -> Batch:
        batch = as_batch(read.x, read.y, self._likelihood, self._like, read.weight)
        if self._check is not None:
            self._check(batch.y)
        return batch


def _space(like: Batch, rows: int) -> Batch:
    """Room for so many rows."""
    return Batch.rebuild(like.structure, [leaf.new_empty(rows, *leaf.shape[1:]) for leaf in like.leaves])


def _dealt(pieces: list[int], size: int) -> list[list[int]]:
    """Which pieces each rank reads: the largest first, always to the rank with the fewest rows."""
    dealt: list[list[int]] = [[] for _ in range(size)]
    rows = [0] * size
    for piece in sorted(range(len(pieces)), key=lambda i: -pieces[i]):
        rank = rows.index(min(rows))
        dealt[rank].append(piece)
        rows[rank] += pieces[piece]
    return [sorted(own) for own in dealt]


def _first_wrong(check: Callable[[slice], Any], read: Piece) -> tuple[int, str]:
    """The first row that a check refuses, found by halving, and what the check says of it alone."""
    first, last = 0, len(read.y)
    while last - first > 1:
        middle = (first + last) // 2
        if _says(check, slice(first, middle)):
            last = middle
        else:
            first = middle
    return first, re.sub(r" in 1 of 1 rows: 0$", "", _says(check, slice(first, last)))


def _says(check: Callable[[slice], Any], rows: slice) -> str:
    try:
        check(rows)
    except (ValueError, TypeError) as error:
        return str(error)
    return ""
