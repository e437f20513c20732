"""Fits that several processes make together, and alone: what tests/test_ranks.py compares.

Run as ``python tests/ranks.py FOLDER JOB ...`` with the variables of torchrun: the results of each job go to
``FOLDER/JOB-RANK.pt``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

import bnn
from bnn import distributed, streams
from bnn.checkpoint import Checkpoint, digest
from bnn.inference import loop

ROWS = 101  # odd, and 5 more than three batches of 32: parts are uneven, and the last batch too
Result = dict[str, Any]


def rows(n: int = ROWS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=generator)
    return x, torch.sin(x.sum(1)) + 0.1 * torch.randn(n, generator=generator)


def network(seed: int = 0, *, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle: list[nn.Module] = [nn.BatchNorm1d(6)] if norm else []
        return nn.Sequential(nn.Linear(3, 6), *middle, nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0))


def model(seed: int = 0, *, norm: bool = False) -> bnn.BNN:
    return bnn.BNN(network(seed, norm=norm), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.1))


def fit(data: Any, method: Any, of: bnn.BNN | None = None, **options: Any) -> tuple[bnn.Posterior, list[str]]:
    """A fit, and a digest of all parameters after each step."""
    steps: list[str] = []
    step = loop.Training._step

    def told(self: loop.Training, group: Any) -> None:
        step(self, group)
        steps.append(digest({str(i): p for i, p in enumerate(self.params)}))

    loop.Training._step = told  # type: ignore[method-assign]
    try:
        posterior = bnn.fit(of or model(), data, method, progress=False, compile="graph", **options)
    finally:
        loop.Training._step = step  # type: ignore[method-assign]
    return posterior, steps


def kept(posterior: bnn.Posterior, steps: list[str]) -> Result:
    return {
        "values": posterior.approximation.tensors(),
        "state": dict(posterior.state),
        "loss": posterior.history.loss,
        "steps": steps,
        "epochs": posterior.history.epochs,
        "notes": posterior.history.notes,
    }


def map_batches(folder: Path) -> Result:
    """Networks that start elsewhere on each rank: rank 0's counts."""
    return kept(*fit(rows(), bnn.MAP(epochs=3, batch_size=32), model(distributed.world().rank)))


def map_whole(folder: Path) -> Result:
    """All rows, sample weights, averaged gradients that are clipped, a schedule."""
    method = bnn.MAP(
        epochs=6, batch_size=40, accumulate=2, clip_norm=0.5, schedule=torch.optim.lr_scheduler.CosineAnnealingLR
    )
    return kept(*fit(rows(), method, weight=torch.linspace(0.5, 2, ROWS)))


def map_search(folder: Path) -> Result:
    """An optimiser that evaluates the loss several times a step."""
    return kept(*fit(rows(), bnn.MAP(epochs=2, batch_size=None, optimizer=torch.optim.LBFGS, lr=0.1)))


def map_one_row_left(folder: Path) -> Result:
    """The last batch has one row, so that one rank has none."""
    return kept(*fit(rows(65), bnn.MAP(epochs=2, batch_size=32)))


def map_norm(folder: Path) -> Result:
    return kept(*fit(rows(100), bnn.MAP(epochs=2, batch_size=50), model(norm=True)))


def map_dataset(folder: Path) -> Result:
    return kept(*fit(TensorRows(*rows()), bnn.MAP(epochs=3, batch_size=ROWS)))


def map_loader(folder: Path) -> Result:
    return kept(*fit(DataLoader(TensorRows(*rows()), batch_size=ROWS), bnn.MAP(epochs=3)))


def map_sampler(folder: Path) -> Result:
    """Each rank has a loader of its own rows."""
    here, data = distributed.world(), TensorRows(*rows(100))
    sampler: Any = DistributedSampler(data, here.size, here.rank) if here.size > 1 else None
    return kept(*fit(DataLoader(data, batch_size=100 // here.size, sampler=sampler), bnn.MAP(epochs=3)))


def map_iterable(folder: Path) -> Result:
    """Batches of 30 rows; the ranks have different numbers of them."""
    here = distributed.world()
    first, last = (0, ROWS) if here.size == 1 else [(0, 71), (71, ROWS)][here.rank]
    loader = DataLoader(Rows(first, last), batch_size=30)
    return kept(*fit(loader, bnn.MAP(epochs=2), n_data=ROWS))


def map_stream(folder: Path) -> Result:
    """One step an epoch, of all rows."""
    path = folder / f"rows-{distributed.world().rank}.npy"
    x, y = rows()
    np.save(path, np.column_stack([x.numpy(), y.numpy()]))
    table = np.load(path, mmap_mode="r")
    return kept(*fit(streams.MemoryMapped(table[:, :3], table[:, 3], piece=10), bnn.MAP(epochs=3, batch_size=ROWS)))


def mean_field(folder: Path) -> Result:
    posterior, steps = fit(rows(), bnn.MeanField(epochs=2, batch_size=32, draws=2))
    return {**kept(posterior, steps), "evidence": posterior.settings["evidence"]["value"]}


def ivon(folder: Path) -> Result:
    return kept(*fit(rows(), bnn.IVON(epochs=2, batch_size=32)))


def stopped(folder: Path) -> Result:
    """A callback that only rank 0 calls, and patience."""
    called: list[int] = []

    def callback(progress: bnn.inference.Progress) -> bool:
        called.append(progress.epoch)
        return progress.epoch == 2

    method = bnn.MAP(epochs=5, batch_size=64, patience=4)
    result = kept(*fit(rows(), method, callbacks=[callback], validation=rows(20)))
    return {**result, "called": called}


def ensemble(folder: Path) -> Result:
    method = bnn.Ensemble(members=3, of=bnn.MAP(epochs=3, batch_size=32))
    return kept(*fit(rows(), method))


def anchored(folder: Path) -> Result:
    return kept(*fit(rows(), bnn.Ensemble(members=3, of=bnn.MAP(epochs=2, batch_size=None), anchored=True)))


def mixture(folder: Path) -> Result:
    """Members with noise of their own."""
    posterior, steps = fit(rows(), bnn.Ensemble(members=2, start="net", of=bnn.MeanField(epochs=2, batch_size=None)))
    return {**kept(posterior, steps), "draws": posterior.draws(4)}


def chains(folder: Path) -> Result:
    of = bnn.BNN(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    posterior, steps = fit(rows(), bnn.NUTS(num_samples=30, warmup=30, chains=3, max_depth=4), of)
    return kept(posterior, steps)


def resumed(folder: Path) -> Result:
    """Mean-field, stopped by an error in the middle of the second epoch on all ranks, and gone on with."""
    place = Checkpoint(folder / "resumed", steps=3)
    method = bnn.MeanField(epochs=3, batch_size=32)
    whole, _ = fit(rows(), method)
    stop(method, place)
    distributed.world().barrier()
    result = kept(*fit(rows(), method, checkpoint=place))
    return {**result, "whole": whole.approximation.tensors()}


def stop(method: Any, place: Checkpoint) -> None:
    """A fit that fails in its sixth step, in the second of three epochs."""
    step, done = loop.Training._step, []

    def failing(self: loop.Training, group: Any) -> None:
        done.append(1)
        if len(done) == 6:
            raise RuntimeError("power failure")
        step(self, group)

    loop.Training._step = failing  # type: ignore[method-assign]
    try:
        bnn.fit(model(), rows(), method, progress=False, compile="graph", checkpoint=place)
    except RuntimeError:
        pass
    finally:
        loop.Training._step = step  # type: ignore[method-assign]


#: Without noise, so that its answer does not depend on the number of ranks.
MOVED = bnn.MAP(epochs=3, batch_size=32)


def left(folder: Path) -> Result:
    """Stopped, for another number of ranks to go on with."""
    stop(MOVED, Checkpoint(folder / "left", steps=3))
    return {}


def taken_up(folder: Path) -> Result:
    """What another number of ranks has left."""
    return kept(*fit(rows(), MOVED, checkpoint=Checkpoint(folder / "left", steps=3)))


def together(folder: Path) -> Result:
    """Folds spread over ranks; and an error on one rank."""
    here = distributed.world()
    squares = distributed.each(lambda i: (i * i, distributed.world().size), range(5))
    try:
        distributed.each(_fails_at_three, range(4))
        told = ""
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    few = _message(lambda: bnn.fit(model(), rows(), bnn.Ensemble(members=1, of=bnn.MAP(epochs=1)), progress=False))
    other = _message(lambda: bnn.fit(model(), rows(), bnn.MAP(epochs=1 + here.rank), progress=False))
    return {"squares": squares, "told": told, "few": few, "other": other}


def killed(folder: Path) -> Result:
    """Rank 1 is killed in step 13, the first time; a state is written every 5 steps."""
    method = bnn.MeanField(epochs=5, batch_size=32)
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    step, done = loop.Training._step, []

    def dying(self: loop.Training, group: Any) -> None:
        done.append(1)
        if first and len(done) == 14 and distributed.world().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, group)

    loop.Training._step = dying  # type: ignore[method-assign]
    place = Checkpoint(folder / "killed", steps=5)
    posterior = bnn.fit(model(), rows(), method, progress=False, compile="graph", checkpoint=place)
    loop.Training._step = step  # type: ignore[method-assign]
    whole, steps = fit(rows(), method)
    return {**kept(posterior, steps), "whole": whole.approximation.tensors()}


def late(folder: Path) -> Result:
    """Rank 1 lives, and does not come."""
    here, began = distributed.world(), time.monotonic()
    if here.rank:
        time.sleep(25)
        return {}
    told = _message(lambda: here.sum(1.0))
    return {"told": told, "seconds": time.monotonic() - began}


def _fails_at_three(item: int) -> int:
    if item == 3:
        raise ValueError("three is bad")
    return item


def _message(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


class TensorRows(Dataset[Any]):
    """A map-style dataset, read row by row."""

    def __init__(self, *tensors: Tensor):
        self._rows = tensors

    def __len__(self) -> int:
        return len(self._rows[0])

    def __getitem__(self, index: int) -> Any:
        return tuple(t[index] for t in self._rows)


class Rows(IterableDataset[Any]):
    """Some rows, in order."""

    def __init__(self, first: int, last: int):
        self._span = first, last

    def __iter__(self) -> Iterator[Any]:
        x, y = rows()
        return iter([(x[i], y[i]) for i in range(*self._span)])


JOBS: dict[str, Callable[[Path], Result]] = {
    job.__name__: job
    for job in (
        map_batches,
        map_whole,
        map_search,
        map_one_row_left,
        map_norm,
        map_dataset,
        map_loader,
        map_sampler,
        map_iterable,
        map_stream,
        mean_field,
        ivon,
        stopped,
        ensemble,
        anchored,
        mixture,
        chains,
        resumed,
        left,
        taken_up,
        together,
        killed,
        late,
    )
}


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    here = distributed.init(timeout=float(os.environ.get("TIMEOUT", "120")))
    for name in names:
        torch.save(JOBS[name](Path(folder)), Path(folder) / f"{name}-{here.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
