"""A loader read by several ranks: one that all have is divided, and of those that differ each rank gives its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from bnn.data import Batch, LoaderSource, Place, Source, side_by_side
from bnn.distributed import RankError, World, permutation


class _RankBatches(BatchSampler):
    """The rows of this rank's part of every batch, for a loader of a map-style dataset."""

    def __init__(self, n: int, batch_size: int, ranks: World, *, shuffle: bool, drop_last: bool):
        self._n, self._batch_size, self._ranks, self._shuffle, self._drop = n, batch_size, ranks, shuffle, drop_last

    def __iter__(self) -> Iterator[list[int]]:
        order = permutation(self._n, torch.device("cpu"), self._ranks) if self._shuffle else torch.arange(self._n)
        for rows in order.split(self._batch_size):
            own = self._ranks.share(rows.tolist())
            if own and not (self._drop and len(rows) < self._batch_size):
                yield list(own)

    def __len__(self) -> int:
        return self._n // self._batch_size if self._drop else math.ceil(self._n / self._batch_size)


def shared_loader(source: LoaderSource, ranks: World) -> Source:
    """A loader of a map-style dataset divides each of its batches; others give each rank its own rows already."""
    loader = source.loader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return _SharedLoader(source, ranks, "start")
    if isinstance(loader.sampler, DistributedSampler) or isinstance(
        getattr(loader.batch_sampler, "sampler", None), DistributedSampler
    ):
        return _SharedLoader(source, ranks, "start")
    sampler = loader.sampler
    random = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == source.n
    known = random or isinstance(loader.sampler, SequentialSampler)
    if type(loader.batch_sampler) is not BatchSampler or not known:
        raise ValueError(
            f"a loader with {type(loader.sampler).__name__} and {type(loader.batch_sampler).__name__} would give every "
            "rank all rows: give it sampler=DistributedSampler(dataset), or give the Dataset itself"
        )
    assert loader.batch_size is not None
    divided: DataLoader[Any] = DataLoader(
        loader.dataset,
        batch_sampler=_RankBatches(source.n, loader.batch_size, ranks, shuffle=random, drop_last=loader.drop_last),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )
    return _SharedLoader(source.reading(divided), ranks, "count")


class _SharedLoader(Source):
    """A loader's batches, of which each rank gives those it has: before each, the ranks tell each other their rows.

    A rank whose loader has ended takes part with no rows, until all have.
    """

    def __init__(self, source: LoaderSource, ranks: World, place: Place):
        self._source, self._ranks, self._place, self.n = source, ranks, place, source.n

    @property
    def sizes(self) -> None:
        """Not known beforehand."""

    def identity(self) -> dict[str, Any]:
        """That of the loader."""
        return self._source.identity()

    def place(self, members: int | None) -> Place:
        """By counting, if all ranks take parts of one order."""
        return self._place

    def check_targets(self, check: Callable[[Tensor], None]) -> None:
        """Batch by batch, from the next epoch on."""
        self._source.check_targets(check)

    def batches(self) -> Iterator[Batch]:
        """This rank's batches, and empty ones while others have some."""
        self._tell_epoch()
        items, last = self._source.batches(), None
        while True:
            batch = self._next(items)
            own = 0 if batch is None else len(batch.y)
            (total,) = self._ranks.sum(own)
            if math.isnan(total):
                raise RankError("another rank could not read its data; its own output says why")
            if not total:
                return
            last = batch or last
            if last is None:
                raise ValueError("this rank's loader gave no batch, and others' did: every rank needs some rows")
            yield replace(last if batch else _none_of(last), share=own / total)

    def member_batches(self, members: int) -> Iterator[Batch]:
        """The loader read once a member, side by side."""
        return side_by_side(self, members)

    def _next(self, items: Iterator[Batch]) -> Batch | None:
        try:
            return next(items, None)
        except Exception:
            with suppress(RankError):
                self._ranks.sum(math.nan)
            raise

    def _tell_epoch(self) -> None:
        """A DistributedSampler draws the same order in every epoch unless it is told which one it is."""
        loader = self._source.loader
        for sampler in (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", 0), "sampler", 0)):
            if isinstance(sampler, DistributedSampler):
                sampler.set_epoch(int(self._ranks.decide(float(torch.randint(2**31, ())))))
                return


def _none_of(batch: Batch) -> Batch:
    return Batch.rebuild(batch.structure, [leaf[:0] for leaf in batch.leaves])
