"""Prediction with draws in hand, against plain forward passes and against reading the draws once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

import bnn
from benchmarks.frame import Ready, timed
from benchmarks.nets import model_of, net_of
from benchmarks.problems import PROBLEMS


@lru_cache(maxsize=1)
def _prepared(problem: str, draws: int) -> tuple[nn.Module, bnn.Posterior, dict[str, Tensor]]:
    """The net, a posterior, and draws from it, shared by the contenders of a piece of work."""
    work = PROBLEMS[problem]
    net = net_of(work).eval()
    posterior = bnn.MeanField().loss(model_of(work, net), 1000, compile="eager").posterior()
    return net, posterior, posterior.draws(draws)


def _ready(call: Callable[[], Any], repeats: int) -> Ready:
    def run() -> None:
        with torch.no_grad():
            for _ in range(repeats):
                call()

    run()  # warm
    return Ready(lambda: timed(run, repeats))


def _repeats(problem: str, draws: int, rows: int) -> int:
    """Calls in a round, so that it takes some hundredths of a second."""
    weights = sum(p.numel() for p in _prepared(problem, draws)[0].parameters())
    return max(1, int(2e8 / (draws * (weights * rows + 2e5))))


def _inputs(problem: str, rows: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(rows, *PROBLEMS[problem].inputs)


def forwards(problem: str, draws: int, rows: int) -> Ready:
    """As many plain forward passes."""
    net, x = _prepared(problem, draws)[0], _inputs(problem, rows)

    def call() -> None:
        for _ in range(draws):
            net(x)

    return _ready(call, _repeats(problem, draws, rows))


def predict(problem: str, draws: int, rows: int, at_once: int | None = None) -> Ready:
    """`Posterior.predict`."""
    _, posterior, values = _prepared(problem, draws)
    x = _inputs(problem, rows)
    return _ready(lambda: posterior.predict(x, values, at_once=at_once), _repeats(problem, draws, rows))


def reading(problem: str, draws: int, rows: int) -> Ready:
    """Every byte of the draws once: their sum, which is as fast as memory gives them."""
    values = _prepared(problem, draws)[2]
    return _ready(lambda: [v.sum() for v in values.values()], _repeats(problem, draws, rows))
