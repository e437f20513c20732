"""What a step costs as the parameters grow, and what an epoch costs as the rows grow, streamed from disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bnn
from benchmarks.frame import Ready, timed
from benchmarks.processes import fresh
from benchmarks.torch_steps import epoch, training
from bnn.inference.loop import Training

BATCH = 128


def _net(hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def _fit(hidden: int, data: object, batch: int, backend: str) -> Training:
    model = bnn.BNN(_net(hidden), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    method = bnn.MeanField(batch_size=batch, epochs=100_000, lr=1e-3)
    return training(method, model, data, backend)


def parameters(who: str, hidden: int, steps: int) -> Ready:
    """A step, by the width of 8-h-h-1."""
    x, y = torch.randn(BATCH * steps, 8), torch.randn(BATCH * steps, 1)
    if who == "plain":
        net = _net(hidden)
        optimizer, loss_fn = torch.optim.Adam(net.parameters(), lr=1e-3), nn.MSELoss()

        def run() -> None:
            for rows in torch.randperm(len(y)).split(BATCH):
                optimizer.zero_grad()
                loss_fn(net(x.index_select(0, rows)), y.index_select(0, rows)).backward()
                optimizer.step()

    else:
        fit = _fit(hidden, (x, y), BATCH, "inductor")

        def run() -> None:
            epoch(fit)

    run()  # warm
    return Ready(lambda: timed(run, steps))


def streaming(rows: int) -> dict[str, float]:
    """Milliseconds of an epoch over so many rows on disk, and memory beyond that of the fit before it."""
    from bnn.streams import MemoryMapped

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.npy" for name in "xy"]
        rng = np.random.default_rng(0)
        for path, width in zip(paths, (8, 1), strict=True):
            made = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
            for start in range(0, rows, 1 << 20):
                part = made[start : start + (1 << 20)]
                part[:] = rng.standard_normal(part.shape, dtype=np.float32)
            made.flush()
            del made
        fit = _fit(50, MemoryMapped(*(np.load(path, mmap_mode="r") for path in paths)), min(4096, rows), "graph")
        if rows <= 100_000:
            epoch(fit)  # warm
        return {"ms": timed(lambda: epoch(fit), 1)}


def rows(count: int) -> Ready:
    """An epoch over streamed rows, in a process of its own."""
    told: dict[str, float] = {}

    def run() -> float:
        found = fresh("growth:streaming", {"rows": count})
        told["peak_mb"] = found["peak"] / 1e6
        return float(found["ms"]) * 1e3 / count

    return Ready(run, notes=told)
