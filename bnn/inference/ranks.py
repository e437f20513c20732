"""One fit on several ranks: what each of them does, and how that becomes the answer of all.

A method that minimises a loss shares the rows of every step; members of an ensemble and chains are shared out whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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

from bnn.approximations import Approximation, Chains, Draws, Mixture
from bnn.data import ArraySource, Batch, Data, LoaderSource, Place, Source
from bnn.distributed import RankError, World, alone, permutation
from bnn.forward import depends_on_mode
from bnn.history import History
from bnn.inference.base import GradientMethod, Method, Run
from bnn.inference.objective import Objective
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import other_seed, seed_generators
from bnn.streams import StreamSource

if TYPE_CHECKING:
    from bnn.inference.ensemble import Ensemble


def same_model(ranks: World, method: Method, model: BNN) -> BNN:
    """The model with rank 0's parameters and buffers, on all ranks.

    Raises:
        ValueError: The ranks were not given the same method, or the same network.
    """
    if ranks.size == 1:
        return model
    shapes = {name: (tuple(t.shape), str(t.dtype)) for name, t in model.net.state_dict().items()}
    for what, value in (("methods", method.settings()), ("networks", shapes)):
        for rank, other in enumerate(ranks.gather(value)):
            if other != value:
                raise ValueError(f"the ranks fit different {what}: rank {ranks.rank} has {value}, rank {rank} {other}")
    model = model.copy()
    ranks.broadcast_([*model.net.parameters(), *model.net.buffers()])
    return model


def fit_on(ranks: World, method: Method, model: BNN, data: Data, run: Run) -> Posterior:
    """`Method.fit`, by all ranks together; the same posterior on all.

    Raises:
        ValueError: What has no meaning on several ranks, in words.
    """
    from bnn.inference.ensemble import Ensemble

    if ranks.size == 1:
        return method.fit(model, data, run)
    if isinstance(data, DataLoader) and not isinstance(method, GradientMethod | Ensemble):
        with_own = isinstance(data.dataset, IterableDataset) or isinstance(data.sampler, DistributedSampler)
        if with_own:
            raise ValueError(
                f"{type(method).__name__} reads all rows on every rank, and this loader gives each rank its own: give "
                "arrays, a Dataset or a stream"
            )
    if isinstance(method, Ensemble):
        return _members(ranks, method, model, data, run)
    if method.makes_chains:
        return _chains(ranks, method, model, data, run)
    return method.fit(model, data, run)


# Rows shared by the ranks ---------------------------------------------------------------------------------------------


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
        return _SharedArrays(source, ranks)
    if isinstance(source, StreamSource):
        return source.shared(ranks)
    assert isinstance(source, LoaderSource)
    return _shared_loader(source, ranks)


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


class _SharedArrays(Source):
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


def _shared_loader(source: LoaderSource, ranks: World) -> Source:
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
        for parts in zip(*[self.batches() for _ in range(members)], strict=True):
            leaves = zip(*(part.leaves for part in parts), strict=True)
            joined = Batch.rebuild(parts[0].structure, [torch.stack(same) for same in leaves])
            yield replace(joined, share=parts[0].share)

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


# Chains and members, each with a rank ---------------------------------------------------------------------------------


def _chains(ranks: World, method: Any, model: BNN, data: Data, run: Run) -> Posterior:
    """Chains shared out over the ranks, and gathered on all.

    Rank 0's have the numbers of a run of that many chains alone; other ranks have a seed of their own.
    """
    if run.store is not None:
        raise ValueError("store= is one file, and chains on several ranks write several: leave it out")
    own = _shared_out(ranks, method.chains, "chains")
    seed = run.seed if not ranks.rank else other_seed(run.seed, f"rank {ranks.rank}")
    mine = replace(method, chains=len(own), init=_their_starts(method.init, own, method.chains))
    with ranks.together("the chains of all ranks"), alone():
        posterior = mine.fit(model, data, replace(run, seed=seed, checkpoint=_own_place(ranks, run)))
    joined = _gathered(ranks, posterior)
    joined.settings |= {**method.settings(), "seed": run.seed}
    return joined


def _members(ranks: World, method: Ensemble, model: BNN, data: Data, run: Run) -> Posterior:
    """Members shared out over the ranks, and gathered on all."""
    own = _shared_out(ranks, method.members, "members")
    with ranks.together("the members of all ranks"), alone():
        posterior = method.fit_some(own, model, data, replace(run, checkpoint=_own_place(ranks, run)))
    joined = _gathered(ranks, posterior)
    joined.settings |= method.settings()
    return joined


def _shared_out(ranks: World, count: int, what: str) -> range:
    own = ranks.share(range(count))
    assert isinstance(own, range)
    if count < ranks.size:
        raise ValueError(f"{count} {what} cannot be shared out over {ranks.size} ranks: take as many, or fewer ranks")
    return own


def _own_place(ranks: World, run: Run) -> Any:
    """A rank's own folder of states: chains and members of different ranks are not equally far."""
    if run.checkpoint is None:
        return None
    return run.checkpoint.part(f"rank-{ranks.rank}", {"ranks": ranks.size, "rank": ranks.rank})


def _their_starts(init: Any, own: range, chains: int) -> Any:
    """Of a finite posterior, the draws that these chains would start from among all."""
    if not isinstance(init, Posterior) or init.num_draws is None:
        return init
    values = init.draws(min(chains, init.num_draws))
    rows = [k % len(next(iter(values.values()))) for k in own]
    sites = {site.name for site in init.model.sites().latents}
    drawn = {name: value[rows].unsqueeze(0) for name, value in values.items() if name in sites}
    return Posterior(init.model, Draws(drawn), points=init.points, state=init.state)


def _gathered(ranks: World, posterior: Posterior) -> Posterior:
    """The posteriors of all ranks as one, on all of them."""
    approximation, device = posterior.approximation, posterior.model.like.device
    tensors = {name: value.cpu() for name, value in approximation.tensors().items()}
    told = ranks.gather((tensors, posterior.history))
    parts = [
        approximation if rank == ranks.rank else _rebuilt(approximation, {n: v.to(device) for n, v in table.items()})
        for rank, (table, _) in enumerate(told)
    ]
    return Posterior(
        posterior.model,
        _together(parts),
        points=posterior.points,
        state=posterior.state,
        history=_history([history for _, history in told]),
        settings=posterior.settings,
        input_shapes=posterior.input_shapes,
    )


def _rebuilt(like: Approximation, tensors: dict[str, Tensor]) -> Approximation:
    """Another rank's, of the same kind."""
    if isinstance(like, Draws):
        return Draws(tensors)
    if isinstance(like, Chains):
        return Chains.restore(tensors, like.layout)
    assert isinstance(like, Mixture)
    return like.another(tensors)


def _together(parts: Sequence[Approximation]) -> Approximation:
    chains = [part for part in parts if isinstance(part, Chains)]
    if chains:
        draws = min(part.shape[1] for part in chains)  # fewer where Ctrl-C came first
        vectors = torch.cat([part.vectors[:, :draws] for part in chains])
        names = chains[0].statistics
        return Chains(
            chains[0].layout, vectors, {n: torch.cat([p.statistics[n][:, :draws] for p in chains]) for n in names}
        )
    if all(isinstance(part, Draws) for part in parts):
        tables = [part.tensors() for part in parts]
        return Draws({name: torch.cat([table[name] for table in tables], dim=1) for name in tables[0]})
    mixtures = [part for part in parts if isinstance(part, Mixture)]
    own = {name: torch.cat([part.own[name] for part in mixtures]) for name in mixtures[0].own}
    return Mixture([part for mixture in mixtures for part in mixture.parts], own)


def _history(histories: Sequence[History]) -> History:
    """Rank 0's, the longest time, and what there is to know of any."""
    notes = list(dict.fromkeys(note for history in histories for note in history.notes))
    return replace(
        histories[0],
        seconds=max(history.seconds for history in histories),
        notes=[*notes, f"fitted on {len(histories)} ranks; the losses are those of rank 0's part"],
        interrupted=any(history.interrupted for history in histories),
    )


def some_members(method: Ensemble, source: Source, objective: Objective, own: range, seed: int) -> Source:
    """Rows for a rank's members of an ensemble.

    Where the order of the rows is all that is random, each member has the one that it would have among all. Else the
    members of each rank have noise of their own.
    """
    from bnn.inference.map import MAP
    from bnn.inference.swag import SWAG

    model = objective.model
    if type(method.of) in (MAP, SWAG) and not depends_on_mode(model.net) and model.readings is None:
        return _SomeMembers(source, own, method.members)
    if own.start:
        seed_generators(other_seed(seed, f"member {own.start}"), model.like.device)
    return _SomeMembers(source, own, method.members)


class _SomeMembers(Source):
    """Rows for some members of an ensemble, such that each has the order that it would have among all.

    Args:
        source: For all members.
        own: Which they are.
        total: How many there are in all.
    """

    def __init__(self, source: Source, own: range, total: int):
        self._source, self._own, self._total, self.n = source, own, total, source.n

    @property
    def sizes(self) -> dict[int, int] | None:
        """Those of the source."""
        return self._source.sizes

    def identity(self) -> dict[str, Any]:
        """That of the source."""
        return self._source.identity()

    def place(self, members: int | None) -> Place:
        """As the source."""
        return self._source.place(members)

    def check_targets(self, check: Callable[[Tensor], None]) -> None:
        """As the source."""
        self._source.check_targets(check)

    def batches(self) -> Iterator[Batch]:
        """As the source."""
        return self._source.batches()

    def member_batches(self, members: int) -> Iterator[Batch]:
        """Of these members."""
        for batch in self._source.member_batches(self._total):
            leaves = [leaf[self._own.start : self._own.stop] for leaf in batch.leaves]
            yield Batch.rebuild(batch.structure, leaves)
