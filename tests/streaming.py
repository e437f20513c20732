"""The peak resident memory of a process that fits to a file: ``python tests/streaming.py FILE HOW``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bnn
from bnn import streams

FEATURES = 32


def peak() -> int:
    """Bytes, of this process since it began."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def mapped(path: str) -> Any:
    table = np.load(path, mmap_mode="r")
    return streams.MemoryMapped(table[:, :-1], table[:, -1])


def in_memory(path: str) -> Any:
    """What a fit to arrays does, for comparison."""
    table = np.load(path)
    return table[:, :-1], table[:, -1]


HOW: dict[str, Callable[[str], Any]] = {
    "mapped": mapped,
    "parquet": lambda path: streams.Parquet(path, target="y"),
    "in_memory": in_memory,
}


def main(path: str, how: str) -> None:
    torch.set_num_threads(1)
    data = HOW[how](path)
    net = nn.Sequential(nn.Linear(FEATURES, 1), nn.Flatten(0))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    if isinstance(data, streams.Stream):
        x, _ = streams.moments(data)
        data = data.scaled(x)
    posterior = bnn.fit(model, data, bnn.MAP(epochs=1, batch_size=1024), progress=False, compile="graph")
    if isinstance(data, streams.Stream):
        assert sum(len(part.mean) for part in streams.predict(posterior, data)) == data.n
    print(peak())


if __name__ == "__main__":
    main(*sys.argv[1:])
