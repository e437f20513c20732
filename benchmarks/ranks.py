"""What data-parallel fitting costs and sends: seconds a step on one and two ranks, bytes a step against the formula.

    python benchmarks/ranks.py [--rounds 3] [--json runs/benchmarks/ranks.json]

Every process has one thread. A round times each size on one rank and on two, one after the other; a ratio is the
median over rounds. Bytes are those of the loopback device, of all ranks together, while nothing else should use it:
``4 P 2 (k - 1)`` is what k ranks send in all if each of P float32 numbers goes around a ring (each rank
``4 P 2 (k - 1) / k``).
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import parser, ratios, write
from torch import nn

import bnn
from bnn import distributed


@dataclass(frozen=True)
class Work:
    """A network of two hidden layers, the rows of a step of all ranks, and the steps that are timed."""

    inputs: int
    hidden: int
    batch: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.inputs}-{self.hidden}-{self.hidden}-1, {self.batch} rows"

    def model(self) -> bnn.BNN:
        h = self.hidden
        layers = [nn.Linear(self.inputs, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, 1), nn.Flatten(0)]
        return bnn.BNN(nn.Sequential(*layers), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))


SIZES = (Work(8, 50, 128, 60), Work(8, 50, 8192, 20), Work(64, 256, 1024, 20), Work(256, 1024, 1024, 4))


def seconds_a_step(work: Work) -> float:
    """The median over epochs but the first, of mean-field VI."""
    times: list[float] = []
    data = torch.randn(work.batch * work.steps, work.inputs)
    method = bnn.MeanField(epochs=5, batch_size=work.batch)
    bnn.fit(
        work.model(),
        (data, data.sum(1)),
        method,
        compile="graph",
        progress=False,
        callbacks=[lambda _: times.append(time.perf_counter())],
    )
    return statistics.median(b - a for a, b in itertools.pairwise(times)) / work.steps if times else 0.0


def sent() -> int:
    """Bytes that have gone over the loopback device."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def bytes_a_step(here: distributed.World, numbers: int, repeats: int = 20) -> float:
    """Of one sum over the ranks, of all of them together."""
    tensor, found = torch.zeros(numbers), []
    for _ in range(5):
        here.barrier()
        before = sent()
        for _ in range(repeats):
            here.sum_([tensor])
        here.barrier()
        found.append((sent() - before) / repeats)
    return min(found)  # what others send only adds


def worker(out: Path, what: str, rounds: int) -> None:
    torch.set_num_threads(1)
    here = distributed.init()
    if what == "bytes":
        rows: list[Any] = [
            {"ranks": here.size, "numbers": n, "bytes": bytes_a_step(here, n)} for n in (10_000, 100_000, 1_000_000)
        ]
    else:
        rows = []
        for work in SIZES:
            one, two = [], []
            for _ in range(rounds):
                if here.rank == 0:
                    with distributed.alone():
                        one.append(seconds_a_step(work))
                here.barrier()
                two.append(seconds_a_step(work))
            rows.append({"name": work.name, "one": one, "two": two})
    if here.rank == 0:
        out.write_text(json.dumps(rows))


def start(ranks: int, what: str, rounds: int) -> list[dict[str, Any]]:
    """The worker's rows, from so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, "--worker", str(out), what, str(rounds)]
        processes = [subprocess.Popen(command, env=os.environ | common | {"RANK": str(r)}) for r in range(ranks)]
        for process in processes:
            assert process.wait() == 0
        rows: list[dict[str, Any]] = json.loads(out.read_text())
        return rows


def main() -> None:
    options = parser(__doc__ or "", 3, "runs/benchmarks/ranks.json").parse_args()
    options.threads = 1
    rows: list[dict[str, Any]] = []
    print("| ranks | numbers P | bytes a step, all ranks | 4 P 2 (k - 1) | ratio |\n|---|---|---|---|---|")
    for ranks in (2, 3, 4):
        for row in start(ranks, "bytes", options.rounds):
            formula = 8 * row["numbers"] * (ranks - 1)
            rows.append(row | {"formula": formula})
            print(
                f"| {ranks} | {row['numbers']:,} | {row['bytes']:,.0f} | {formula:,} | {row['bytes'] / formula:.2f} |"
            )
    print(
        "\n| network, batch | parameters | one rank, ms a step | two ranks | ratio (quartiles) |\n|---|---|---|---|---|"
    )
    for row, work in zip(start(2, "seconds", options.rounds), SIZES, strict=True):
        numbers = sum(p.numel() for p in work.model().net.parameters())
        ratio, quartiles = ratios(row["two"], row["one"])
        rows.append(row | {"ratio": ratio, "quartiles": quartiles, "parameters": numbers})
        one, two = (1e3 * statistics.median(row[key]) for key in ("one", "two"))
        spread = f"{ratio:.2f} ({quartiles[0]:.2f} to {quartiles[1]:.2f})"
        print(f"| {work.name} | {numbers:,} | {one:.2f} | {two:.2f} | {spread} |")
    write(options, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
