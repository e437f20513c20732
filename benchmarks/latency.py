"""A prediction by batch size: `predict`, exported files, a distilled student, one plain forward pass."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import bnn
from benchmarks.frame import Ready, timed

Call = Callable[[torch.Tensor], Any]


@lru_cache(maxsize=1)
def _contenders(draws: int) -> dict[str, Call]:
    """Each gives mean and standard deviation; where it says so, three quantiles."""
    torch.manual_seed(0)
    x = torch.randn(500, 8)
    y = torch.sin(x).sum(1, keepdim=True) + 0.1 * torch.randn(500, 1)
    net = bnn.nets.mlp(8, (50, 50), 1)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    posterior = bnn.fit(model, (x, y), bnn.MeanField(epochs=100), compile="graph", progress=False)
    values = posterior.draws(draws)
    distilled = bnn.distil(posterior, torch.randn(4000, 8), epochs=50)
    with tempfile.TemporaryDirectory() as folder:
        moments = torch.export.load(posterior.export(Path(folder) / "a.pt2", draws=draws, quantiles=())).module()
        quantiles = torch.export.load(posterior.export(Path(folder) / "b.pt2", draws=draws)).module()

    def numbers(rows: torch.Tensor) -> Any:
        found = posterior.predict(rows, values)
        return found.mean, found.std

    return {
        "predict": numbers,
        "predict, quantiles": lambda rows: posterior.predict(rows, values).quantile((0.05, 0.5, 0.95)),
        "exported": moments,
        "exported, quantiles": quantiles,
        "distilled": distilled.net,
        "plain forward": net.eval(),
    }


def call(name: str, draws: int, rows: int) -> Ready:
    """Milliseconds of a call."""
    one = _contenders(draws)[name]
    torch.manual_seed(1)
    x = torch.randn(rows, 8)
    repeats = max(1, 2000 // (rows + 20))

    def run() -> None:
        with torch.inference_mode():
            for _ in range(repeats):
                one(x)

    run()  # warm
    return Ready(lambda: timed(run, repeats))
