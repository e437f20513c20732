"""The rows of every step shared by the ranks: each takes its part of a batch, and the gradients are summed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnn.data import ArraySource, Batch, LoaderSource, Place, Source
from bnn.distributed import World, permutation
from bnn.inference.objective import Objective
from bnn.inference.shared_loaders import shared_loader
from bnn.random import other_seed, seed_generators
from bnn.streams import StreamSource


def begin(ranks: World, objective: Objective, source: Source, seed: int) -> Source:
    """Start a fit whose rows the ranks share: parameters and buffers are rank 0's, noise is each rank's own.

    With noise of its own, each rank adds draws to the estimate of the gradient, whose variance falls with their number.

    Returns:
        This rank's part of every batch.
    """
    if ranks.size == 1:
        return source
    ranks.broadcast_([*objective.parameters(), *objective.state.values(), *objective.given_tensors.values()])
    if ranks.rank:  # rank 0 goes on from the state that one process would have
        seed_generators(other_seed(seed, f"rank {ranks.rank}"), objective.model.like.device)
    if isinstance(source, ArraySource):
        return SharedArrays(source, ranks)
    if isinstance(source, StreamSource):
        return source.shared(ranks)
    assert isinstance(source, LoaderSource)
    return shared_loader(source, ranks)


def own_gradients(objective: Objective, batch: Batch) -> tuple[list[Tensor], Tensor]:
    """`Objective.gradients`, times the part of the step's rows that this rank has; of no rows, zeros."""
    if batch.share == 1.0:
        return objective.gradients(batch)
    if not batch.share:
        parameters = list(objective.parameters())
        return [torch.zeros_like(p) for p in parameters], parameters[0].new_zeros(3)
    gradients, stats = objective.gradients(batch)
    return [g * batch.share for g in gradients], stats * batch.share


def add_up(ranks: World, objective: Objective, gradients: Sequence[Any], stats: Tensor, group: list[Batch]) -> Tensor:
    """Sum what `own_gradients` gave over the ranks, in place and in one call, and average the buffers of the network.

    A buffer (a batch statistic) is the mean over the ranks, by rows; what is not floating (a count of batches) is this
    rank's own, which is the same on all that had rows.

    Returns:
        The stats.
    """
    if ranks.size == 1:
        return stats
    share, buffers = sum(batch.share for batch in group) / len(group), {}
    if objective.training:
        moved = {name: objective.state[name] for name in objective.buffers_moved}
        buffers = {name: value * share for name, value in moved.items() if value.is_floating_point()}
    stats = stats.clone()
    ranks.sum_([*gradients, stats, *buffers.values()])
    objective.state.update(buffers)
    return stats


class SharedArrays(Source):
    """Each rank takes its part of every batch of the one order that all have.

    Args:
        source: All rows, on every rank.
        ranks: Who shares.
    """

    def __init__(self, source: ArraySource, ranks: World):
        self._source, self._ranks, self.n = source, ranks, source.n
        self._leaves = source.whole.leaves
        if source.batch_size == source.n:
            self._whole = self._take(self._mine(torch.arange(self.n, device=self._leaves[0].device)), self.n)

    @property
    def sizes(self) -> dict[int, int]:
        """Of this rank's parts; one of no rows counts too."""
        counts: dict[int, int] = {}
        for size, times in self._source.sizes.items():
            own = len(self._ranks.share(range(size)))
            counts[own] = counts.get(own, 0) + times
        return counts

    def identity(self) -> dict[str, Any]:
        """That of all rows."""
        return self._source.identity()

    def place(self, members: int | None) -> Place:
        """By counting."""
        return "count"

    def check_targets(self, check: Callable[[Tensor], None]) -> None:
        """All rows, on every rank."""
        self._source.check_targets(check)

    def batches(self) -> Iterator[Batch]:
        """This rank's parts."""
        if self._source.batch_size == self.n:
            yield self._whole
            return
        order = permutation(self.n, self._leaves[0].device, self._ranks)
        for rows in order.split(self._source.batch_size):
            yield self._take(self._mine(rows), len(rows))

    def member_batches(self, members: int) -> Iterator[Batch]:
        """The same for several members, each with an order of its own."""
        device = self._leaves[0].device
        if self._source.batch_size == self.n:
            order = torch.arange(self.n, device=device).expand(members, -1)
        else:
            order = permutation(self.n, device, self._ranks, members)
        for rows in order.split(self._source.batch_size, dim=1):
            yield self._take(self._mine(rows), rows.shape[1])

    def _mine(self, rows: Tensor) -> Tensor:
        own = self._ranks.share(range(rows.shape[-1]))
        return rows[..., own[0] : own[-1] + 1] if own else rows[..., :0]

    def _take(self, rows: Tensor, whole: int) -> Batch:
        flat = rows.reshape(-1)
        taken = [leaf.index_select(0, flat).view(*rows.shape, *leaf.shape[1:]) for leaf in self._leaves]
        return replace(Batch.rebuild(self._source.whole.structure, taken), share=rows.shape[-1] / whole)
