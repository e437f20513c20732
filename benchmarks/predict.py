"""What a prediction costs: 100 draws in hand at 1,000 rows, against 100 plain forward passes.

    python benchmarks/predict.py [--rounds 15] [--threads 2] [--json runs/benchmarks/predict.json]

Rounds are interleaved; the ratio is the median over rounds. What drawing costs stands beside it, as do other chunk
sizes than the one that `predict` chooses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import WORK, Work, model_of

import bnn

DRAWS, ROWS = 100, 1000


def contenders(work: Work) -> dict[str, Callable[[], Any]]:
    torch.manual_seed(0)
    net = work.net().eval()
    x = torch.randn(ROWS, *work.inputs)
    posterior = bnn.MeanField().loss(model_of(work, net), 1000, compile="eager").posterior()
    draws = posterior.draws(DRAWS)

    def plain() -> None:
        with torch.no_grad():
            for _ in range(DRAWS):
                net(x)

    chunks = {f"predict, {k} at once": (lambda k=k: posterior.predict(x, draws, at_once=k)) for k in (1, 10)}
    return {
        "plain forward passes": plain,
        "predict": lambda: posterior.predict(x, draws),
        **chunks,
        "drawing": lambda: posterior.draws(DRAWS),
    }


def measure(work: Work, rounds: int) -> list[dict[str, Any]]:
    runs = contenders(work)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if round_:  # the first is a warm-up
                times[name].append(time.perf_counter() - started)
    base = times["plain forward passes"]
    return [
        {
            "work": work.name.split(",")[0],
            "contender": name,
            "ms": statistics.median(own) * 1e3,
            "to_plain": statistics.median(a / b for a, b in zip(own, base, strict=True)),
        }
        for name, own in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--nets", default=",".join(WORK))
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/predict.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    print(f"{DRAWS} draws, {ROWS} rows\n\n| net | | ms | to {DRAWS} plain forward passes |\n|---|---|---|---|")
    for name in options.nets.split(","):
        for row in measure(WORK[name], options.rounds):
            rows.append(row)
            print(f"| {row['work']} | {row['contender']} | {row['ms']:.2f} | {row['to_plain']:.2f} |", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    record = {"torch": torch.__version__, "threads": options.threads, "rows": rows}
    options.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
