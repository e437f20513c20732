"""Data in the three forms that people have them: arrays, a Dataset, a loader. One interface: batches, and N."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from bnn.checkpoint import digest
from bnn.inputs import (
    ArrayLike,
    Inputs,
    as_inputs,
    as_loader,
    as_tensor,
    check_finite,
    input_leaves,
    named_leaves,
)
from bnn.likelihoods import Likelihood

Data = Any  # (x, y) of tensors or arrays, a torch Dataset, or a loader

#: How a place in an epoch is found again. "count": by drawing the epoch anew from the random state that it was drawn
#: from, and counting. "own": the loader keeps it. "start": not at all, but for the place before the first batch.
Place = Literal["count", "own", "start"]


@runtime_checkable
class Stateful(Protocol):
    """A loader or a dataset that can tell where it is, as torchdata's ``StatefulDataLoader`` does."""

    def state_dict(self) -> dict[str, Any]:
        """Where it is: after the last batch that it gave."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Have the next iteration begin there."""


@dataclass(frozen=True)
class Batch:
    """Rows of a data set: inputs, targets, and where known their indices and sample weights."""

    x: Inputs
    y: Tensor
    rows: Tensor | None = None
    weight: Tensor | None = None
    #: Where several ranks share a step: which part of the step's rows these are.
    share: float = 1.0

    @property
    def leaves(self) -> list[Tensor]:
        """Every tensor, in a fixed order: inputs, targets, rows, weights."""
        optional = [t for t in (self.rows, self.weight) if t is not None]
        return [*input_leaves(self.x), self.y, *optional]

    @property
    def structure(self) -> tuple[Any, ...]:
        """What `rebuild` needs besides the leaves; equal for batches that differ in numbers and sizes only."""
        names = tuple(self.x) if isinstance(self.x, Mapping) else len(self.x) if isinstance(self.x, tuple) else None
        return names, self.rows is not None, self.weight is not None

    @staticmethod
    def rebuild(structure: tuple[Any, ...], leaves: Sequence[Tensor]) -> Batch:
        """The batch of this structure with these leaves."""
        names, has_rows, has_weight = structure
        rest = list(leaves)
        x: Inputs
        if names is None:
            x = rest.pop(0)
        elif isinstance(names, int):
            x = tuple(rest.pop(0) for _ in range(names))
        else:
            x = {name: rest.pop(0) for name in names}
        y = rest.pop(0)
        rows = rest.pop(0) if has_rows else None
        return Batch(x, y, rows, rest.pop(0) if has_weight else None)


class Source(ABC):
    """A data set that hands out batches on the model's device."""

    #: N, the number of rows.
    n: int

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """One epoch, in an order drawn from torch's present random state."""

    @abstractmethod
    def member_batches(self, members: int) -> Iterator[Batch]:
        """One epoch for several members at once, each in an order of its own: tensors ``(members, n, ...)``."""

    @abstractmethod
    def check_targets(self, check: Callable[[Tensor], None]) -> None:
        """Have all targets checked: those in memory now, a loader's as they come."""

    @property
    @abstractmethod
    def sizes(self) -> dict[int, int] | None:
        """How often each batch size comes in an epoch; None where only the loader knows."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells these data from others, as JSON."""

    @abstractmethod
    def place(self, members: int | None) -> Place:
        """How a place in an epoch is found again; `members` as in `member_batches`, None for `batches`."""

    def state(self) -> Any:
        """Where in its epoch a loader is that can tell; None for others."""
        return None

    def rest(self, state: Any) -> Iterator[Batch]:
        """The rest of an epoch, from such a state; what is drawn to begin it is drawn at once."""
        raise NotImplementedError(f"{type(self).__name__} keeps no place of its own")


class ArraySource(Source):
    """Tensors in memory, shuffled by indices: a tenth of a DataLoader's cost.

    Args:
        batch: All rows.
        batch_size: Rows a batch; ``None``: all.
        member_targets: ``(members, n, ...)``, in the place of the targets for each of several members.
    """

    def __init__(self, batch: Batch, batch_size: int | None, *, member_targets: Tensor | None = None):
        self.n = len(batch.y)
        self.batch_size = min(batch_size or self.n, self.n)
        self.whole, self.member_targets = batch if self.batch_size < self.n else _placed(batch), member_targets
        self._repeated: list[Tensor] | None = None

    @property
    def sizes(self) -> dict[int, int]:
        """Full batches, and a last one of what is left."""
        full, left = divmod(self.n, self.batch_size)
        return {self.batch_size: full} | ({left: 1} if left else {})

    def identity(self) -> dict[str, Any]:
        """The number of rows, and a digest of all that there is of them."""
        whole = self.whole
        leaves = {f"{i}": leaf for i, leaf in enumerate(whole.leaves)}
        return {"rows": self.n, "weighted": whole.weight is not None, "arrays": digest(leaves)}

    def place(self, members: int | None) -> Place:
        """By counting."""
        return "count"

    def check_targets(self, check: Callable[[Tensor], None]) -> None:
        """All at once."""
        check(self.whole.y)

    def batches(self) -> Iterator[Batch]:
        """A permutation an epoch; the whole set as it is where one batch holds it."""
        if self.batch_size == self.n:
            yield self.whole
            return
        structure, leaves = self.whole.structure, self.whole.leaves
        device = leaves[0].device
        order = torch.randperm(self.n, device=device)
        for rows in order.split(self.batch_size):
            yield Batch.rebuild(structure, [leaf.index_select(0, rows) for leaf in leaves])

    def member_batches(self, members: int) -> Iterator[Batch]:
        """A permutation a member; where one batch holds all rows, the same for all."""
        structure, leaves = self.whole.structure, self.whole.leaves
        own = self.member_targets
        y = len(input_leaves(self.whole.x))  # the place of the targets among the leaves
        if self.batch_size == self.n:
            if self._repeated is None or len(self._repeated[0]) != members:
                self._repeated = [leaf.expand(members, *leaf.shape).contiguous() for leaf in leaves]
                if own is not None:
                    self._repeated[y] = own
            yield Batch.rebuild(structure, self._repeated)
            return
        device = leaves[0].device
        order = torch.stack([torch.randperm(self.n, device=device) for _ in range(members)])
        first = self.n * torch.arange(members, device=device).unsqueeze(1)
        for rows in order.split(self.batch_size, dim=1):
            flat = rows.reshape(-1)
            taken = [leaf.index_select(0, flat).view(members, rows.shape[1], *leaf.shape[1:]) for leaf in leaves]
            if own is not None:
                taken[y] = own.flatten(0, 1).index_select(0, (rows + first).reshape(-1)).view(taken[y].shape)
            yield Batch.rebuild(structure, taken)


def _placed(batch: Batch) -> Batch:
    """The same numbers where torch would put them.

    The last bit of a matrix product goes by where its numbers lie, and numpy's lie elsewhere in every process.
    """
    leaves = [leaf.clone() if leaf.data_ptr() % 64 else leaf for leaf in batch.leaves]
    return Batch.rebuild(batch.structure, leaves)


def numbered(source: Source) -> Source:
    """The same data, whose batches tell which rows they are.

    Raises:
        ValueError: A loader, which does not tell.
    """
    if not isinstance(source, ArraySource):
        raise ValueError("parameters for every row need to know which rows a batch has: give (x, y) in arrays")
    whole = source.whole
    rows = torch.arange(source.n, device=whole.y.device)
    batch = Batch(whole.x, whole.y, rows, whole.weight)
    return ArraySource(batch, source.batch_size, member_targets=source.member_targets)


class LoaderSource(Source):
    """Anything that can be iterated over several times and gives ``(x, y)`` or ``(x1, x2, ..., y)``."""

    def __init__(self, loader: Iterable[Any], n: int, convert: Callable[[Any], Batch]):
        self.loader, self.n, self._convert = loader, n, convert
        self._check: Callable[[Tensor], None] | None = None
        self._stateful = _stateful(loader)

    def reading(self, loader: Iterable[Any]) -> LoaderSource:
        """The same from another loader."""
        return LoaderSource(loader, self.n, self._convert)

    def identity(self) -> dict[str, Any]:
        """The number of rows: a loader is not read for this."""
        found = {"rows": self.n, "loader": type(self.loader).__name__}
        if isinstance(self.loader, DataLoader):  # of others only they know what their batches depend on
            found |= {"batch_size": self.loader.batch_size, "drop_last": self.loader.drop_last}
            found |= {"sampler": type(self.loader.sampler).__name__}
        return found

    def place(self, members: int | None) -> Place:
        """What the loader can do; one that is read several times at once can keep no place."""
        if self._stateful is not None and members is None:
            return "own"
        return "count" if _repeats(self.loader) else "start"

    def state(self) -> Any:
        """See `Source`."""
        return None if self._stateful is None else self._stateful.state_dict()

    def rest(self, state: Any) -> Iterator[Batch]:
        """See `Source`."""
        assert self._stateful is not None
        self._stateful.load_state_dict(state)
        return self._converted(iter(self.loader))

    def check_targets(self, check: Callable[[Tensor], None]) -> None:
        """Batch by batch, from the next epoch on."""
        self._check = check

    @property
    def sizes(self) -> None:
        """Not known beforehand."""

    def batches(self) -> Iterator[Batch]:
        """The loader's own batches in its own order."""
        empty = True
        for batch in self._converted(self.loader):
            empty = False
            yield batch
        if empty:
            raise ValueError("the loader gave no batch: it is empty, or it can be iterated over only once")

    def _converted(self, items: Iterable[Any]) -> Iterator[Batch]:
        for item in items:
            batch = self._convert(item)
            if self._check is not None:
                self._check(batch.y)
            yield batch

    def member_batches(self, members: int) -> Iterator[Batch]:
        """The loader read once a member, side by side: its shuffling gives each another order."""
        return side_by_side(self, members)


def side_by_side(source: Source, members: int) -> Iterator[Batch]:
    """One epoch of a source, read once a member: the batches of all members stacked."""
    for parts in zip(*[source.batches() for _ in range(members)], strict=True):
        leaves = zip(*(part.leaves for part in parts), strict=True)
        joined = Batch.rebuild(parts[0].structure, [torch.stack(same) for same in leaves])
        yield replace(joined, share=parts[0].share)


def _stateful(loader: Iterable[Any]) -> Stateful | None:
    """What keeps the place in an epoch: the loader, or the dataset that streams its items into it."""
    if isinstance(loader, Stateful):
        return loader
    dataset = getattr(loader, "dataset", None)
    streams = isinstance(loader, DataLoader) and isinstance(dataset, IterableDataset) and not loader.num_workers
    return dataset if streams and isinstance(dataset, Stateful) else None


def _repeats(loader: Iterable[Any]) -> bool:
    """Whether an epoch that begins with the same random state of torch gives the same batches, as far as is known."""
    if type(loader) in (list, tuple):
        return True
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset) or loader.persistent_workers:
        return False
    samplers = [loader.sampler, *([] if loader.batch_sampler is None else [loader.batch_sampler])]
    own = all(type(sampler) in (SequentialSampler, RandomSampler, BatchSampler) for sampler in samplers)
    return own and all(getattr(part, "generator", None) is None for part in (loader, loader.sampler))


def as_source(
    data: Data,
    likelihood: Likelihood,
    like: Tensor,
    batch_size: int | None,
    *,
    n_data: int | None = None,
    weight: Any = None,
) -> Source:
    """Data of any accepted form as a `Source` on the device of `like` and in its dtype.

    Raises:
        ValueError: No rows, lengths that differ, NaN or infinite values (with their rows), labels outside the classes,
            a loader whose number of rows is not known.
        TypeError: Something that is no data.
    """
    from bnn.streams import Stream, StreamSource, as_stream

    if isinstance(data, TensorDataset):
        *x, y = data.tensors
        if not x:
            raise ValueError("a TensorDataset of one tensor has no targets: give TensorDataset(x, y)")
        data = (x[0] if len(x) == 1 else tuple(x), y)
    batches = isinstance(data, list) and all(isinstance(item, tuple) for item in data)
    if isinstance(data, tuple | list) and len(data) == 2 and not batches:
        data = as_stream(data[0], data[1], weight) or data
    if isinstance(data, Stream):
        if n_data not in (None, data.n):
            raise ValueError(f"n_data is {n_data}, but the stream has {data.n} rows")
        return StreamSource(data, likelihood, like, batch_size)
    if isinstance(data, tuple | list) and len(data) == 2 and not batches:
        whole = as_batch(data[0], data[1], likelihood, like, weight)
        if n_data not in (None, len(whole.y)):
            raise ValueError(f"n_data is {n_data}, but the arrays have {len(whole.y)} rows")
        return ArraySource(whole, batch_size)
    if weight is not None:
        raise ValueError("weight goes with arrays; a loader would have to give it row by row")
    if isinstance(data, tuple):
        raise TypeError(f"data is (x, y), not a tuple of {len(data)}; several inputs go together, as in ((x1, x2), y)")
    if isinstance(data, Iterator):
        raise TypeError(f"data of type {type(data).__name__} can be read only once: give a Dataset or a DataLoader")
    if not isinstance(data, Iterable | Dataset) or isinstance(data, str | bytes | Mapping | ArrayLike):
        raise TypeError(f"data is (x, y), a torch Dataset or a DataLoader, not {type(data).__name__}")
    rows = _loader_rows(data, n_data)
    if isinstance(data, Dataset):
        data = as_loader(data, min(batch_size or rows, rows), shuffle=not isinstance(data, IterableDataset))
    return LoaderSource(data, rows, lambda item: _from_item(item, likelihood, like))


def as_batch(x: Any, y: Any, likelihood: Likelihood, like: Tensor, weight: Any = None) -> Batch:
    """All rows as one checked batch in the dtype and on the device of `like`."""
    inputs = as_inputs(x, like)
    targets = likelihood.convert(as_tensor(y, "y", like), like.dtype)
    if targets.dim() == 0:
        raise ValueError("y is a single number; it needs one target a row")
    weights = None if weight is None else as_tensor(weight, "weight", like).to(like.dtype)
    leaves = named_leaves(inputs) + ([("weight", weights)] if weights is not None else [])
    if len(targets) == 0:
        raise ValueError("the data set is empty: y has no rows")
    for name, leaf in leaves:
        if leaf.dim() == 0 or len(leaf) != len(targets):
            raise ValueError(f"{name} has shape {tuple(leaf.shape)} but y has {len(targets)} rows")
    for name, leaf in leaves:
        check_finite(leaf, name)
    likelihood.check_numbers(targets)
    if weights is not None and (weights.dim() != 1 or bool((weights < 0).any())):
        least = "" if weights.dim() != 1 else f" and its smallest number is {weights.min().item():.4g}"
        raise ValueError(f"weight is one non-negative number a row; it has shape {tuple(weights.shape)}{least}")
    return Batch(inputs, targets, weight=weights)


def _from_item(item: Any, likelihood: Likelihood, like: Tensor) -> Batch:
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise TypeError(f"a loader gives (x, y) or (x1, x2, ..., y); it gave a {type(item).__name__}")
    *x, y = item
    return as_batch(x[0] if len(x) == 1 else tuple(x), y, likelihood, like)


def _loader_rows(loader: Iterable[Any] | Dataset[Any], n_data: int | None) -> int:
    dataset = getattr(loader, "dataset", loader if isinstance(loader, Dataset) else None)
    if isinstance(loader, DataLoader) and loader.batch_sampler is None:
        dataset = None  # it hands the items on as they are, so that the dataset's length counts batches
    if n_data is None:
        if not isinstance(dataset, Sized):
            raise ValueError("the loader does not say how many rows there are: give n_data=, the size of the whole set")
        n_data = len(dataset)
    if n_data < 1:
        raise ValueError(f"the data set is empty: {n_data} rows")
    return n_data
