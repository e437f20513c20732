"""What an ensemble costs: 10 members trained at once, against 10 fits in turn, in each backend.

    python benchmarks/ensemble.py [--rounds 15] [--threads 2] [--members 10] [--json runs/benchmarks/ensemble.json]

A network 8-50-1, 500 rows, batches of 32, maximum a posteriori with Adam; both sides by the loop behind ``bnn.fit``.
Rounds are interleaved: each times some epochs of the ensemble and as many of every fit in turn; a ratio is the median
over rounds of (ensemble / in turn). Setting up is capture, and compilation, from an empty cache: what the second fit
in turn takes, which finds inductor's work of the first, stands for the others. The last column is that of fits of 500
epochs, set-up included.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from functools import partial
from typing import Any

import torch
from common import epoch, parser, ratios, write
from torch import nn

import bnn
from bnn.data import as_source
from bnn.inference.base import Run
from bnn.inference.loop import Training

EPOCHS = 500  # of the fit whose total is reported; what `bnn.MAP` has by default
ROUND = 10  # epochs in a round


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(500, 8)
    return x, x.sum(1, keepdim=True).sin() + 0.1 * torch.randn(500, 1)


def fit_of(method: Any, backend: str) -> tuple[Training, float]:
    """A fit that is ready for its first step, and the seconds that this took."""
    started = time.perf_counter()
    x, y = data()
    net = nn.Sequential(nn.Linear(8, 50), nn.ReLU(), nn.Linear(50, 1))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.1))
    if isinstance(method, bnn.Ensemble):
        of, build = method.of, partial(method._objective, range(method.members))
    else:
        of, build = method, method.objective
    source = as_source((x, y), model.likelihood, model.like, of.batch_size)
    objective = build(model, source.n, backend)
    fit = Training(of, objective, source, None, Run(seed=0, progress=False), started)
    if set(objective.backends) != {backend}:
        raise RuntimeError(f"asked for {backend}, ran {objective.backends}")
    return fit, time.perf_counter() - started


def seconds(fit: Training, epochs: int) -> float:
    started = time.perf_counter()
    for _ in range(epochs):
        epoch(fit)
    return time.perf_counter() - started


def measure(backend: str, members: int, rounds: int) -> dict[str, Any]:
    of = bnn.MAP(batch_size=32)
    with empty_cache():
        together, setup = fit_of(bnn.Ensemble(members=members, of=of), backend)
    with empty_cache():
        alone, first = fit_of(of, backend)
        _, further = fit_of(of, backend)
    for fit in (together, alone):
        seconds(fit, 3)  # warm
    times = [(seconds(together, ROUND), seconds(alone, ROUND * members)) for _ in range(rounds)]
    ratio, quartiles = ratios(*zip(*times, strict=True))
    epoch, epoch_in_turn = (statistics.median(t[i] for t in times) / ROUND for i in (0, 1))
    setup_in_turn = first + (members - 1) * further
    return {
        "backend": backend,
        "members": members,
        "epoch_ms": epoch * 1e3,
        "epoch_in_turn_ms": epoch_in_turn * 1e3,
        "ratio": ratio,
        "ratio_quartiles": quartiles,
        "setup_s": setup,
        "setup_in_turn_s": setup_in_turn,
        "setup_first_s": first,
        "setup_further_s": further,
        "total_s": setup + EPOCHS * epoch,
        "total_in_turn_s": setup_in_turn + EPOCHS * epoch_in_turn,
        "total_ratio": (setup + EPOCHS * epoch) / (setup_in_turn + EPOCHS * epoch_in_turn),
    }


class empty_cache:
    """Inductor's cache in a folder of its own."""

    def __enter__(self) -> None:
        self.before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        self.folder = tempfile.TemporaryDirectory()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = self.folder.name

    def __exit__(self, *error: object) -> None:
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
        if self.before is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = self.before
        self.folder.cleanup()


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| backend | epoch, ms | in turn, ms | ratio (quartiles) | set-up, s | in turn, s | 500 epochs with set-up |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['backend']} | {row['epoch_ms']:.1f} | {row['epoch_in_turn_ms']:.1f} "
            f"| {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {row['setup_s']:.1f} | {row['setup_in_turn_s']:.1f} "
            f"| {row['total_s']:.1f} s / {row['total_in_turn_s']:.1f} s = {row['total_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    options_of = parser(__doc__, 15, "runs/benchmarks/ensemble.json")
    options_of.add_argument("--members", type=int, default=10)
    options_of.add_argument("--backends", default="graph,inductor")
    options = options_of.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    rows = []
    for backend in options.backends.split(","):
        rows.append(measure(backend, options.members, options.rounds))
        print(table(rows[-1:]), flush=True)
    write(options, rows)


if __name__ == "__main__":
    main()
