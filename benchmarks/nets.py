"""The networks of `benchmarks.problems` in torch, and the loop around a step that all torch contenders share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import bnn
from benchmarks.frame import Ready, timed
from benchmarks.problems import NOISE, REPEATS, Problem

Step = Callable[[Tensor, Tensor], Any]


class _Attention(nn.Module):
    """A Transformer layer, the mean over tokens, and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def net_of(problem: Problem) -> nn.Module:
    """The network, perceptrons at `Problem.start`."""
    torch.manual_seed(0)
    if problem.sizes is not None:
        layers: list[nn.Module] = []
        for a, b in pairwise(problem.sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        net = nn.Sequential(*layers[:-1])
        net.load_state_dict({name: torch.from_numpy(value) for name, value in problem.start().items()})
        return net
    if problem.name == "lenet":
        return bnn.nets.lenet(size=28)
    if problem.name == "resnet":
        return bnn.nets.resnet(10, blocks=1, norm="group")
    if problem.name == "transformer":
        return _Attention()
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 25, 10),
    )  # fmt: skip


def data_of(problem: Problem) -> tuple[Tensor, Tensor]:
    x, y = problem.data()
    return torch.from_numpy(x), torch.from_numpy(y)


def model_of(problem: Problem, net: nn.Module) -> bnn.BNN:
    likelihood = bnn.likelihoods.Categorical() if problem.classes else bnn.likelihoods.Gaussian(NOISE)
    return bnn.BNN(net, bnn.priors.Normal(1.0), likelihood)


def criterion(problem: Problem) -> nn.Module:
    """The negative log-likelihood per datum, less `constant`."""
    return nn.CrossEntropyLoss() if problem.classes else nn.MSELoss()


def constant(problem: Problem) -> float:
    """What the squared error leaves out of the negative log-likelihood per datum."""
    return 0.0 if problem.classes else 0.5 * math.log(2 * math.pi * NOISE**2)


def point(problem: Problem, size: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`Problem.point` as tensors: means and scales by name."""
    loc, scale = ({k: torch.from_numpy(v) for k, v in part.items()} for part in problem.point(size).values())
    return loc, scale


def looped(problem: Problem, data: tuple[Tensor, Tensor], step: Step, **ready: Any) -> Ready:
    """A contender that makes a step of each batch: an epoch in random order is a round."""
    x, y = data

    def epoch() -> None:
        for rows in torch.randperm(len(y)).split(problem.batch):
            step(x.index_select(0, rows), y.index_select(0, rows))

    epoch()  # warm
    return Ready(lambda: timed(epoch, problem.steps), **ready)


def nll(problem: Problem, net: nn.Module) -> Callable[[float], list[float]]:
    """``Ready.loss`` of a contender whose loss is the likelihood's alone: of `net` at the problem's start."""
    loss_fn = criterion(problem)

    def loss(size: float) -> list[float]:
        net.load_state_dict({name: torch.from_numpy(value) for name, value in problem.start().items()})
        x, y = (part[: problem.batch] for part in data_of(problem))
        return [float(loss_fn(net(x), y).detach()) + constant(problem)]

    return loss


def losses(
    problem: Problem, place: Callable[[dict[str, Tensor], dict[str, Tensor]], None], value: Callable[[Any, Any], Any]
) -> Callable[[float], Sequence[float]] | None:
    """`Ready.loss` of a variational contender; None for networks that are no perceptrons.

    Args:
        problem: The work.
        place: Sets means and scales, by name.
        value: The loss per datum of a batch.
    """
    if problem.sizes is None:
        return None

    def loss(size: float) -> list[float]:
        place(*point(problem, size))
        x, y = (part[: problem.batch] for part in data_of(problem))
        torch.manual_seed(4)
        return [float(value(x, y)) + constant(problem) for _ in range(REPEATS[size])]

    return loss
