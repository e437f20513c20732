"""What data-parallel fitting costs and sends: a step on one and two ranks, and the bytes of a step.

Every process has one thread. Bytes are those of the loopback device, of all ranks together, while nothing else should
use it: ``4 P 2 (k - 1)`` is what k ranks send in all if each of P float32 numbers goes around a ring.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bnn
from benchmarks.frame import Ready
from benchmarks.processes import ROOT, environment
from bnn import distributed

NUMBERS = (10_000, 100_000, 1_000_000)


def _seconds_a_step(inputs: int, hidden: int, batch: int, steps: int) -> float:
    """The median over epochs but the first, of mean-field VI on 'graph'."""
    times: list[float] = []
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)]
    model = bnn.BNN(nn.Sequential(*layers, nn.Flatten(0)), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    data = torch.randn(batch * steps, inputs)
    bnn.fit(
        model,
        (data, data.sum(1)),
        bnn.MeanField(epochs=5, batch_size=batch),
        compile="graph",
        progress=False,
        callbacks=[lambda _: times.append(time.perf_counter())],
    )
    return statistics.median(b - a for a, b in itertools.pairwise(times)) / steps if times else 0.0


def _sent() -> int:
    """Bytes that have gone over the loopback device."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def _bytes_a_step(here: distributed.World, numbers: int, repeats: int = 20) -> float:
    """Of one sum over the ranks, of all of them together."""
    tensor, found = torch.zeros(numbers), []
    for _ in range(5):
        here.barrier()
        before = _sent()
        for _ in range(repeats):
            here.sum_([tensor])
        here.barrier()
        found.append((_sent() - before) / repeats)
    return min(found)  # what others send only adds


def _worker(out: Path, what: dict[str, int]) -> None:
    torch.set_num_threads(1)
    here = distributed.init()
    if what:
        found: Any = _seconds_a_step(**what)
    else:
        found = [{"numbers": n, "bytes": _bytes_a_step(here, n)} for n in NUMBERS]
    if here.rank == 0:
        out.write_text(json.dumps(found))


def start(ranks: int, what: dict[str, int] | None = None) -> Any:
    """What so many processes tell: seconds a step of this work, or (without any) the bytes of a sum by its numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        command = [sys.executable, "-m", "benchmarks.ranks", str(out), json.dumps(what or {})]
        processes = [
            subprocess.Popen(command, cwd=ROOT, env=environment(1) | common | {"RANK": str(r)}) for r in range(ranks)
        ]
        for process in processes:
            if process.wait():
                raise RuntimeError(f"a rank ended with {process.returncode}")
        return json.loads(out.read_text())


def step(ranks: int, **what: int) -> Ready:
    """Milliseconds of a step on so many ranks."""
    return Ready(lambda: 1e3 * float(start(ranks, what)))


def sending(ranks: int, numbers: int) -> Ready:
    """Bytes of a step, of all ranks together."""

    def run() -> float:
        return next(float(row["bytes"]) for row in start(ranks) if row["numbers"] == numbers)

    return Ready(run)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _worker(Path(sys.argv[1]), json.loads(sys.argv[2]))
