"""The settings and the data of `weight_decay.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from frame import which
from sklearn.datasets import load_diabetes
from torch import Tensor, nn


@dataclass(frozen=True)
class Overfit:
    """Of part (e). Twice as many weights as rows: 10-40-1 has 481, half of the data has 221."""

    hidden: int = 40
    strengths: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)  # of all but L1, which gets a tenth
    steps: int = 2000  # of all rows at once
    lr: float = 0.01
    every: int = 50  # steps between two looks at the rows that are held out


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from. N = 442 rows, 10 inputs, all of unit variance."""

    # The noise scale of the Gaussian likelihood: least squares leaves R^2 = 0.52, and sqrt(1 - 0.52) = 0.69.
    noise_scale: float = 0.7
    # The coefficient that all optimisers are given. With MSELoss, c = 2 * 0.7^2 = 0.98, so that the prior's scale is
    # sqrt(c / (N * 0.1)) = sqrt(0.98 / 44.2) = 0.15: the least-squares weights reach 0.49, so the penalty is felt.
    weight_decay: float = 0.1

    # (a) 30 epochs of ceil(442 / 64) = 7 steps are 210 steps; the last batch of an epoch is ragged: 442 - 6 * 64 = 58.
    follow_epochs: int = 30
    follow_batch: int = 64
    follow_lr: float = 0.02  # with momentum 0.9 as good as 0.2 without
    momentum: float = 0.9

    # (b, c) The smallest curvature of the MSE is 2 * 0.0086 (the inputs are collinear), that of the penalised loss
    # 0.017 + 0.1 = 0.117: SGD at an effective rate of 0.02 / (1 - 0.9) = 0.2 takes 1 / (0.2 * 0.117) = 43 steps for a
    # factor e. AdamW without a penalty has but the 0.017, and needs most of these steps.
    steps: int = 5000
    sgd_lr: float = 0.02
    adam_lr: float = 0.01  # falls linearly to 0: 5000 steps could move a weight by 25, and it has to move by 0.5
    batch_sizes: tuple[int, ...] = (32, 128)  # 14 and 4 batches an epoch; beside these, all rows at once

    # (d) From no effect to almost all weights at 0: the L1 path is empty from 2 max|X'y| / N = 1.17 on.
    l2_strengths: tuple[float, ...] = tuple(float(s) for s in np.logspace(-3, 1, 9))  # two a decade
    l1_strengths: tuple[float, ...] = tuple(float(s) for s in np.logspace(-3, 0.0, 7))
    map_epochs: int = 2000  # one step an epoch: all rows at once
    mean_field_epochs: int = 2000
    path_lr: float = 0.02  # falls linearly to 0, so that an L1 weight of 0 is met to about 1e-4
    average: float = 0.25  # the last 500 steps, whose gradient noise is averaged out
    seed: int = 0

    # (e)
    halves: int = which(4)  # repetitions, each with other rows
    overfit: Overfit = field(default_factory=Overfit)


QUICK = Config(  # (a) stays as it is; the others are less precise
    halves=1,
    overfit=Overfit(hidden=20, strengths=(0.03,), steps=300),
    steps=500,
    adam_lr=0.02,
    batch_sizes=(32,),
    l2_strengths=(0.1,),
    l1_strengths=(0.1,),
    map_epochs=300,
    mean_field_epochs=250,
)


@dataclass(frozen=True)
class Data:
    x: Tensor  # (442, 10), mean 0 and variance 1 a column
    y: Tensor  # (442,), likewise
    names: list[str]

    @property
    def n(self) -> int:
        return len(self.y)


def load() -> Data:
    """Ten measurements of 442 patients, and the progression of their diabetes a year later."""
    bunch = load_diabetes()
    x, y = (torch.from_numpy((a - a.mean(0)) / a.std(0)) for a in (bunch.data, bunch.target))
    return Data(x, y, list(bunch.feature_names))


def linear() -> nn.Module:
    """y = x w: the data have mean 0, so that there is no need of a bias. Starts at w = 0."""
    net = nn.Sequential(nn.Linear(10, 1, bias=False), nn.Flatten(0)).double()
    nn.init.zeros_(net[0].weight)
    return net


def linear_decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
