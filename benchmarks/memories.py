"""Memory at its peak, of fits of 10 million weights, each in a process of its own."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from benchmarks.frame import Ready
from benchmarks.processes import fresh, resident

SIZES = (1000, 2500, 2850, 100)
ROWS, BATCH, EPOCHS = 160, 32, 2


def _net() -> nn.Module:
    torch.manual_seed(0)
    first, second, third = (nn.Linear(a, b) for a, b in pairwise(SIZES))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


def fit(who: str, backend: str) -> dict[str, Any]:
    """A fit; what the process had before it, in bytes, with everything imported and the net made."""
    import bnn

    torch.manual_seed(0)
    net = _net()
    x, y = torch.randn(ROWS, SIZES[0]), torch.randint(0, SIZES[-1], (ROWS,))
    weights = sum(p.numel() for p in net.parameters())
    if who == "plain":
        before = resident()
        _plain(net, x, y)
        return {"before": before, "weights": weights}
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    method = {"mean_field": bnn.MeanField, "ivon": bnn.IVON, "map": bnn.MAP}[who]
    before = resident()
    bnn.fit(model, (x, y), method(epochs=EPOCHS, batch_size=BATCH), compile=backend, progress=False)
    return {"before": before, "weights": weights}


def _plain(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer, loss_fn = torch.optim.Adam(net.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y)).split(BATCH):
            optimizer.zero_grad()
            loss_fn(net(x[rows]), y[rows]).backward()
            optimizer.step()


def beyond(who: str, backend: str = "inductor") -> Ready:
    """MB at the peak, beyond what the process had before the fit (torch, bnn, the data), the net's weights included."""

    def run() -> float:
        found = fresh("memories:fit", {"who": who, "backend": backend})
        return float(found["peak"] - found["before"] + 4 * found["weights"]) / 1e6

    return Ready(run)
