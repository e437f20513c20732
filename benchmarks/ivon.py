"""What an IVON step costs, against Adam on the same net and batch: 784-400-400-10, batch 128.

    python benchmarks/ivon.py [--rounds 15] [--threads 2] [--json docs/measurements/ivon.json] [--backend inductor]

Contenders: a plain PyTorch loop with Adam; MAP and MeanField (bnn.fit's own loop); IVON. A step is batch selection,
gradient and optimiser. Rounds are interleaved: each times every contender in turn, and a ratio is the median over
rounds of (contender / base in the same round), for two bases: the plain loop, and MAP, which is Adam in our loop.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import pyro
import torch
from common import epoch, parser, ratios, write
from torch import Tensor, nn

import bnn
from bnn.data import as_source
from bnn.inference.base import GradientMethod, Run
from bnn.inference.loop import Training

BATCH, STEPS = 128, 20

Contender = Callable[[], None]  # runs STEPS steps


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(BATCH * STEPS, 784), torch.randint(0, 10, (BATCH * STEPS,))


def plain(x: Tensor, y: Tensor) -> Contender:
    """The loop that everybody writes."""
    own = net()
    loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(own.parameters(), lr=1e-3)

    def run() -> None:
        for rows in torch.randperm(len(y)).split(BATCH):
            xb, yb = x.index_select(0, rows), y.index_select(0, rows)
            optimizer.zero_grad()
            loss_fn(own(xb), yb).backward()
            optimizer.step()

    return run


def ours(method: GradientMethod, backend: Any, x: Tensor, y: Tensor) -> Contender:
    """Epochs of the loop behind ``bnn.fit``."""
    model = bnn.BNN(net(), bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    source = as_source((x, y), model.likelihood, model.like, BATCH)
    objective = method.objective(model, source.n, backend)
    fit = Training(method, objective, source, None, Run(seed=0, progress=False), time.perf_counter())

    def run() -> None:
        epoch(fit)
        if objective.backends != [backend]:
            raise RuntimeError(f"asked for {backend}, ran {objective.backends}")

    return run


def measure(rounds: int, backend: str) -> list[dict[str, Any]]:
    x, y = data()
    methods: dict[str, GradientMethod] = {
        "MAP": bnn.MAP(lr=1e-3, batch_size=BATCH),
        "MeanField": bnn.MeanField(lr=1e-3, batch_size=BATCH),
        "IVON": bnn.IVON(batch_size=BATCH, epochs=100_000),
    }
    runs = {"plain PyTorch, Adam": plain(x, y)}
    runs |= {f"{name} {backend}": ours(method, backend, x, y) for name, method in methods.items()}
    for run in runs.values():
        run()  # warm
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / STEPS * 1e3)
    rows = []
    for name, own in times.items():
        row: dict[str, Any] = {"contender": name, "step_ms": statistics.median(own)}
        for what, base in (("to_plain", "plain PyTorch, Adam"), ("to_map", f"MAP {backend}")):
            row[what], row[f"{what}_quartiles"] = ratios(own, times[base])
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| contender | step, ms | to the plain loop (quartiles) | to MAP (quartiles) |", "|---|---|---|---|"]
    for row in rows:
        cells = [
            f"{row[what]:.2f} ({row[f'{what}_quartiles'][0]:.2f} to {row[f'{what}_quartiles'][1]:.2f})"
            for what in ("to_plain", "to_map")
        ]
        lines.append(f"| {row['contender']} | {row['step_ms']:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    options_of = parser(__doc__, 15, "docs/measurements/ivon.json")
    options_of.add_argument("--backend", default="inductor")
    options = options_of.parse_args()
    torch.set_num_threads(options.threads)
    pyro.enable_validation(False)
    warnings.simplefilter("ignore")
    rows = measure(options.rounds, options.backend)
    print(table(rows), flush=True)
    write(options, rows)


if __name__ == "__main__":
    main()
