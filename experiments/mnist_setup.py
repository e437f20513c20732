"""What mnist.py is set up with: every number, and the two networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from frame import which
from images import Images
from torch import Tensor, nn
from torch.nn import functional as F

import bnn


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    nets: tuple[str, ...] = which(("mlp-400", "lenet"))  # mlp-WIDTH: two hidden layers
    #: Of the fully connected net: mean-field under a prior, or a point; "shifted": on images that are shifted.
    laws: tuple[str, ...] = which(("point", "cold mixture", "mixture", "shifted point", "shifted cold mixture"))
    methods: tuple[str, ...] = which(("ensemble", "MC dropout", "SWAG", "Laplace"))  # of LeNet-5
    source: str = "mnist"  # or digits: scikit-learn's, magnified
    rows: int = 50_000  # of training; the 10,000 after them are for validation
    batch_size: int = 128  # as in the paper
    epochs: int = 100  # of cold mean-field over the fully connected net; the paper took 600 without a falling rate
    warm_epochs: int = 30  # the same at temperature 1, which is Bayes
    lr: float = 1e-3
    init_scale: float = 0.1
    start_epochs: int = 10  # of the mode at which mean-field starts: it saves it the time in which all is noise
    start_prior: float = 0.2  # standard deviation, of that mode
    wide: float = 0.14  # the mixture, out of the paper's grid: exp(-2), exp(-6), 1/4
    narrow: float = 0.0025
    weight: float = 0.25
    cold: float = 0.1  # temperature, see `mean_field`
    gaussian: float = 0.1  # standard deviation
    lenet_epochs: int = 36
    lenet_lr: float = 2e-3
    lenet_prior: float = 0.3  # standard deviation: for 50,000 rows a weight decay of 2e-4
    shift: int = 2  # pixels by which training images are shifted at most, anew in every step: LeNet's, and where said
    members: int = 5  # published: ten
    dropout: float = 0.2
    draws: int = 50
    shift_rows: int = 2000  # of the test set
    rotations: tuple[float, ...] = (15.0, 30.0, 45.0, 60.0, 90.0)  # degrees
    noises: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)  # standard deviations of pixels in (0, 1)
    removed: tuple[float, ...] = (0.0, 0.5, 0.75, 0.95, 0.98)  # shares of the weights, as in the paper
    seed: int = 0


QUICK = Config(
    nets=("mlp-50", "lenet"),
    source="digits",
    laws=("shifted cold mixture", "Gaussian"),
    methods=("ensemble", "MC dropout"),
    rows=600,
    batch_size=50,
    epochs=10,
    warm_epochs=10,
    start_epochs=6,
    start_prior=1.0,
    lenet_epochs=3,
    lenet_prior=1.0,
    members=2,
    draws=4,
    shift_rows=100,
    rotations=(90.0,),
    noises=(0.5,),
    removed=(0.0, 0.5, 0.98),
)
ALL = Config(
    nets=("mlp-400", "mlp-800", "lenet"),
    laws=("point", "cold mixture", "mixture", "shifted point", "shifted cold mixture", "shifted mixture", "Gaussian"),
    methods=("ensemble", "MC dropout", "SWAG", "Laplace", "mean field"),
    members=10,
)


class Pixels(nn.Module):
    """Images as rows of numbers from 0 to 2, as in the paper, which divides by 126."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * (255 / 126)


class Shifted(nn.Module):
    """While it is trained, every image is shifted by whole pixels, in each direction up to `most`; black comes in."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def extra_repr(self) -> str:
        return f"most={self.most}"

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.most:
            return x
        size, wide = x.shape[-1], x.shape[-1] + 2 * self.most
        by = (torch.rand(2, len(x), 1, device=x.device) * (2 * self.most + 1)).floor().long()
        row, column = by + torch.arange(size, device=x.device)  # (n, size) each
        places = (row.unsqueeze(2) * wide + column.unsqueeze(1)).flatten(1)
        return F.pad(x, (self.most,) * 4).flatten(1).gather(1, places).reshape(x.shape)


class ShiftedBatches:
    """Batches of shifted images, for a network that may draw no random numbers but those of its dropout."""

    def __init__(self, images: Images, batch_size: int, most: int):
        self.images, self.batch_size, self.shifted = images, batch_size, Shifted(most)

    def __len__(self) -> int:
        return math.ceil(len(self.images.y) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.images.y)).split(self.batch_size):
            x, y = self.images.rows(rows)
            yield self.shifted(x), y


def mlp(width: int, shift: int = 0) -> nn.Module:
    hidden = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    net = nn.Sequential(Pixels(), *hidden, nn.Linear(width, 10))
    return nn.Sequential(Shifted(shift), net) if shift else net


def lenet(shift: int = 0, dropout: float = 0.0) -> nn.Module:
    """LeNet-5 with rectifiers; dropout before its last two layers."""
    net: nn.Module = bnn.nets.lenet(size=28, activation="relu")
    for name in ("linear2", "out") if dropout else ():
        setattr(net, name, nn.Sequential(nn.Dropout(dropout), getattr(net, name)))
    return nn.Sequential(Shifted(shift), net)


def decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
