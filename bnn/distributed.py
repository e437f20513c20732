"""Several processes at one fit: the one place that speaks to ``torch.distributed``.

``torchrun`` starts a script several times; each process is a rank. `init` joins them, and from then on `bnn.fit` is a
call that all ranks make together. Without `init` nothing here does anything.
"""

from __future__ import annotations

import atexit
import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from bnn.random import generator
from bnn.rendezvous import fresh

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: What torchrun tells each process.
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankError(RuntimeError):
    """Another rank stopped, or did not come in time; its own output says why."""


@dataclass(frozen=True)
class World:
    """The ranks that fit together, and which of them this process is."""

    rank: int = 0
    size: int = 1

    @property
    def device(self) -> torch.device:
        """Where this rank computes, if it is to have an accelerator of its own: ``cuda:LOCAL_RANK``, else the CPU.

        For ``bnn.fit(device=)``. ``device="auto"`` is where the network is, under ranks too.
        """
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        return torch.device("cuda", local) if local < torch.cuda.device_count() else torch.device("cpu")

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """This rank's part: contiguous, in order, and of ranks that cannot have equally many the first ones have more.

        One rank's part may be empty.
        """
        each, more = divmod(len(items), self.size)
        start = self.rank * each + min(self.rank, more)
        return items[start : start + each + (self.rank < more)]

    @torch.no_grad()
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over the ranks in the place of each tensor, in one flat call: the same bits on all ranks.

        Args:
            tensors: Floating, of the same shapes on all ranks.
        """
        if self.size == 1 or not tensors:
            return
        dtype = max((t.dtype for t in tensors), key=lambda dtype: torch.finfo(dtype).bits)
        flat = torch.cat([t.reshape(-1).to(dtype) for t in tensors])
        flat = flat.to(_wire(flat.device))
        with _told("the sum of the gradients"):
            distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over the ranks in the place of each tensor; see `sum_`."""
        for tensor in tensors:
            tensor.div_(self.size)
        self.sum_(tensors)

    @torch.no_grad()
    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Put rank 0's values in the place of these tensors, which have the same shapes and dtypes on all ranks."""
        if self.size == 1:
            return
        for tensor in tensors:
            sent = tensor.to(_wire(tensor.device)).reshape(-1).contiguous()
            with _told("rank 0's values"):
                distributed.broadcast(sent.view(torch.uint8), 0)  # as bytes: not every backend knows every dtype
            tensor.copy_(sent.view_as(tensor))

    def decide(self, value: float) -> float:
        """Rank 0's number, on all ranks: whether to stop, a score, a seed below 2^53."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        self.broadcast_([told])
        return float(told)

    def sum(self, *values: float) -> list[float]:
        """The sums over the ranks."""
        if self.size == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64).to(_wire(torch.device("cpu")))
        with _told("a sum"):
            distributed.all_reduce(told)
        return told.tolist()

    def gather(self, value: _Result) -> list[_Result]:
        """What every rank has, by rank, on all ranks. It travels as a pickle, between processes of one job only."""
        if self.size == 1:
            return [value]
        every: list[Any] = [None] * self.size
        with _told("the results of all"):
            distributed.all_gather_object(every, value)
        return every

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.sum(0.0)

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """A block that ends well on all ranks or on none: where one raises, the others raise `RankError`.

        For what no rank waits in for another, such as checks of the data.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.size > 1:
            told = self.gather(None if error is None else f"{type(error).__name__}: {error}")
            if error is None:
                for rank, message in enumerate(told):
                    if message is not None:
                        raise RankError(f"{what}: rank {rank} stopped with {message}")
        if error is not None:
            raise error


#: Whether `init` was called, and who made the group.
_joined = False
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def init(*, timeout: float = 600.0, backend: str | None = None) -> World:
    """Join the ranks that ``torchrun`` started; from now on `bnn.fit` is a call that all of them make together.

    Where torch.distributed is initialised already (by Lightning, say), its group of all ranks is taken. A group that is
    made here ends with the process, or by `end`.

    Args:
        timeout: Seconds that a rank waits for the others, after which it raises `RankError`.
        backend: Of torch.distributed; ``None``: nccl for tensors on CUDA devices if each rank of this machine has one
            of its own, and gloo otherwise.

    Raises:
        ValueError: The process was not started by torchrun; a timeout that is not positive.
        RankError: The others did not come.
    """
    global _joined
    if not timeout > 0:
        raise ValueError(f"timeout is a positive number of seconds, not {timeout}")
    if not distributed.is_available():
        raise ValueError("this build of torch has no torch.distributed")
    if not distributed.is_initialized():
        from torch.distributed.rendezvous import rendezvous

        missing = [name for name in _VARIABLES if name not in os.environ]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} is not set: start the script by `torchrun --nproc-per-node 2 script.py`, or "
                "leave bnn.distributed.init() out"
            )
        own = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])) <= torch.cuda.device_count()
        if own and backend is None:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", os.environ["RANK"])))
        with _told(f"the start of {os.environ['WORLD_SIZE']} ranks"):
            until = datetime.timedelta(seconds=timeout)
            found, rank, size = next(iter(rendezvous("env://", timeout=until)))
            distributed.init_process_group(
                backend or ("cpu:gloo,cuda:nccl" if own else "gloo"),
                store=fresh(found, rank, size, timeout),
                rank=rank,
                world_size=size,
                timeout=until,
            )
        atexit.register(end)
    _joined = True
    return world()


def end() -> None:
    """Leave the ranks: `bnn.fit` is this process's own affair again."""
    global _joined
    _joined = False
    atexit.unregister(end)
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def world() -> World:
    """The ranks that fit together: one, before `init` and inside `alone`."""
    if not _joined or _alone.get() or not distributed.is_initialized():
        return World()
    return World(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this rank fits by itself: ``with bnn.distributed.alone(): bnn.fit(...)``."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """``[function(item) for item in items]``, the items spread over the ranks, and all results on all ranks.

    For folds, settings, data sets: inside `function` each rank is `alone`. Results travel as pickles.

    Args:
        function: Of one item; what is random in it has a seed of its own, since ranks run at the same time.
        items: The same on all ranks.

    Raises:
        RankError: Another rank's call raised; the rank itself raises its own error.
    """
    here = world()
    with here.together("a call on another rank"), alone():
        own = [function(item) for item in here.share(list(items))]
    return [result for part in here.gather(own) for result in part]


def permutation(n: int, device: torch.device, ranks: World, several: int | None = None) -> Tensor:
    """A permutation of n rows, the same on all ranks: the one that rank 0 draws from its present random state.

    The random states of the other ranks stay as they are.

    Args:
        n: Rows.
        device: Where it is drawn.
        ranks: All take part.
        several: So many permutations, ``(several, n)``; ``None``: one, ``(n,)``.
    """
    own = generator(device)
    state = own.get_state()
    ranks.broadcast_([state])
    common = own if ranks.rank == 0 else torch.Generator(device)
    if ranks.rank:
        common.set_state(state)
    drawn = [torch.randperm(n, device=device, generator=common) for _ in range(several or 1)]
    return drawn[0] if several is None else torch.stack(drawn)


def _wire(device: torch.device) -> torch.device:
    """Where a tensor has to be to travel: gloo takes those on the CPU, nccl those on a CUDA device."""
    backends = distributed.get_backend_config()
    if device.type == "cuda" and "cuda:nccl" in backends:
        return device
    if "cpu:gloo" in backends or "nccl" not in backends:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What goes wrong between ranks, in words."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            f"this rank waited for {what}, and the others did not come: one of them stopped or raised (its own output "
            f"says why), or took longer than the timeout of bnn.distributed.init(). torch says: {error}"
        ) from error
