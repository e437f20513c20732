"""Ten members trained at once, against ten fits in turn."""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from typing import Any

import torch
from torch import nn

import bnn
from benchmarks.frame import Ready, timed
from benchmarks.torch_steps import epoch, training
from bnn.inference.loop import Training

EPOCHS = 10  # in a round


def _training(method: Any, backend: str) -> tuple[Training, float]:
    """A fit that is ready for its first step, and the seconds that this took from an empty cache of inductor."""
    torch.manual_seed(0)
    x = torch.randn(500, 8)
    y = x.sum(1, keepdim=True).sin() + 0.1 * torch.randn(500, 1)
    net = nn.Sequential(nn.Linear(8, 50), nn.ReLU(), nn.Linear(50, 1))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.1))
    of, build = method, None
    if isinstance(method, bnn.Ensemble):
        of, build = method.of, partial(method._objective, range(method.members))
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        started = time.perf_counter()
        fit = training(of, model, (x, y), backend, build)
        seconds = time.perf_counter() - started
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR") if before is None else os.environ.update(
            TORCHINDUCTOR_CACHE_DIR=before
        )
    return fit, seconds


def _rounds(fit: Training, setup: float, times: int) -> Ready:
    def run() -> None:
        for _ in range(times * EPOCHS):
            epoch(fit)

    epoch(fit)  # warm
    return Ready(lambda: timed(run, EPOCHS), notes={"setup_s": setup})


def together(members: int, backend: str) -> Ready:
    """Epochs of all members, in one program."""
    return _rounds(*_training(bnn.Ensemble(members=members, of=bnn.MAP(batch_size=32)), backend), 1)


def in_turn(members: int, backend: str) -> Ready:
    """As many epochs of every member, one fit after the other."""
    return _rounds(*_training(bnn.MAP(batch_size=32), backend), members)
