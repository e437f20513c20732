"""Latency of a prediction by batch size: `predict`, the exported file, a distilled student, one plain forward pass.

    OMP_NUM_THREADS=1 python benchmarks/latency.py

Medians of repeated calls, in milliseconds, each with mean, standard deviation and (where it says so) three quantiles.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bnn

SIZES = (1, 10, 100, 1000, 10000)


def milliseconds(call: Callable[[], Any], least: float) -> float:
    """The median of calls over `least` seconds, three at least."""
    call()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < least:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken)


def numbers(prediction: bnn.Prediction) -> tuple[torch.Tensor, torch.Tensor]:
    """What all contenders give."""
    return prediction.mean, prediction.std


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each cell")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(500, 8)
    y = torch.sin(x).sum(1, keepdim=True) + 0.1 * torch.randn(500, 1)
    net = bnn.nets.mlp(8, (50, 50), 1)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    posterior = bnn.fit(model, (x, y), bnn.MeanField(epochs=100), compile="graph", progress=False)
    draws = posterior.draws(options.draws)
    distilled = bnn.distil(posterior, torch.randn(4000, 8), epochs=50)
    with tempfile.TemporaryDirectory() as folder:
        moments = _loaded(posterior.export(Path(folder) / "a.pt2", draws=options.draws, quantiles=()))
        quantiles = _loaded(posterior.export(Path(folder) / "b.pt2", draws=options.draws))
    plain = nn.Sequential(*net.children()) if isinstance(net, nn.Sequential) else net
    contenders: dict[str, Callable[[torch.Tensor], Any]] = {
        "predict": lambda rows: numbers(posterior.predict(rows, draws)),
        "predict, quantiles": lambda rows: posterior.predict(rows, draws).quantile((0.05, 0.5, 0.95)),
        "exported": moments,
        "exported, quantiles": quantiles,
        "distilled": distilled.net,
        "plain forward": plain.eval(),
    }
    print(f"{options.draws} draws of 8-50-50-1, {torch.get_num_threads()} threads, ms; {distilled}")
    print(f"| {'rows':>6} | " + " | ".join(contenders) + " |")
    for size in options.sizes:
        rows = torch.randn(size, 8)
        with torch.inference_mode():
            cells = [
                milliseconds(lambda call=call, rows=rows: call(rows), options.seconds) for call in contenders.values()
            ]
        print(f"| {size:>6} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |", flush=True)


def _loaded(path: Path) -> Callable[[torch.Tensor], Any]:
    module: Callable[[torch.Tensor], Any] = torch.export.load(path).module()
    return module


if __name__ == "__main__":
    main()
