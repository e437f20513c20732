"""The data sets of the demonstration, parted into training, validation and test rows, and networks for them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from bnn.likelihoods import Bernoulli, Gaussian
from bnn.model import BNN
from bnn.priors import Normal
from bnn.random import isolated

#: Shares of all rows. The validation rows are taken from the training part; no setting was chosen by the test rows.
_TEST, _VALIDATION = 0.25, 0.15
#: Units of the hidden layer. Of 5, 10 and 20, five have the largest evidence lower bound on the training rows of both
#: sets: with a few hundred rows, each further unit costs more divergence than it explains.
_HIDDEN = 5


@dataclass(frozen=True)
class Problem:
    """A data set and the model of it. Inputs are ``(n, d)``, targets ``(n,)``, both in their own units."""

    name: str
    #: What the target is, with its unit.
    target: str
    regression: bool
    model: BNN
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor]

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return self.name.replace(" ", "-")


class Standardise(nn.Module):
    """Inputs to mean 0 and standard deviation 1, by those of the training rows.

    A layer of the network, so that predictions, plots and files never see anything but the inputs' own units.

    Args:
        x: ``(n, d)``, the training rows.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, x: Tensor):
        super().__init__()
        std = x.std(0)
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("std", torch.where(std > 0, std, 1.0))  # a constant input stays 0

    def forward(self, x: Tensor) -> Tensor:
        """``(n, d)`` to ``(n, d)``."""
        return (x - self.mean) / self.std


class InUnitsOf(nn.Module):
    """The network's standardised output in the target's own units.

    The likelihood follows this layer: its noise scale, and so the log-density, is that of y itself, and not of a
    standardised y, whose density would have to be divided by the standard deviation.

    Args:
        y: ``(n,)``, the targets of the training rows.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, y: Tensor):
        super().__init__()
        self.register_buffer("mean", y.mean())
        self.register_buffer("std", y.std())

    def forward(self, f: Tensor) -> Tensor:
        """``(n, 1)`` to ``(n,)``."""
        return f.squeeze(-1) * self.std + self.mean


def diabetes(seed: int, column: str | None = None) -> Problem:
    """Progression of diabetes a year after ten measurements, 442 patients (Efron et al., Ann. Statist. 32, 2004).

    Args:
        seed: Of the parting and of the initial weights.
        column: One of the measurements, to take it alone.
    """
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    x = torch.tensor(data.data, dtype=torch.float32)
    if column is not None:
        index = data.feature_names.index(column)
        x = x[:, index : index + 1]
    y = torch.tensor(data.target, dtype=torch.float32)
    parts = _parts(x, y, seed)
    x_train, y_train = parts["train"]
    net = _net(x_train, seed, last=InUnitsOf(y_train))
    # The same prior of the noise for both methods. Its median is the spread of y: what a model that knows nothing sees.
    noise = Gaussian(scale=dist.HalfCauchy(y_train.std()))
    model = BNN(net, prior=Normal("fan_in"), likelihood=noise)
    return Problem("diabetes", "disease progression (score from 25 to 346)", True, model, **parts)


def breast_cancer(seed: int) -> Problem:
    """Malignant or benign, from 30 measurements of cell nuclei: 569 tumours (Street, Wolberg and Mangasarian, 1993).

    Args:
        seed: Of the parting and of the initial weights.
    """
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    parts = _parts(torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target), seed)
    net = _net(parts["train"][0], seed, last=nn.Flatten(0))
    # Clear cases have log-odds of 5 and more, which an output layer at the scale of fan-in would rule out. Of the gains
    # 1, 4 and 10, four has the largest evidence lower bound on the training rows.
    prior = {"hidden.*": Normal("fan_in"), "output.*": Normal("fan_in", gain=4.0)}
    model = BNN(net, prior=prior, likelihood=Bernoulli())
    return Problem("breast cancer", "benign (1) or malignant (0)", False, model, **parts)


def _net(x: Tensor, seed: int, last: nn.Module) -> nn.Module:
    """One hidden layer between what standardises the inputs and what gives the output its form."""
    with isolated(seed):
        layers: list[tuple[str, nn.Module]] = [
            ("standardise", Standardise(x)),
            ("hidden", nn.Linear(x.shape[1], _HIDDEN)),
            ("tanh", nn.Tanh()),
            ("output", nn.Linear(_HIDDEN, 1)),
            ("last", last),
        ]
    return nn.Sequential(OrderedDict(layers))


def _parts(x: Tensor, y: Tensor, seed: int) -> dict[str, Any]:
    """The rows in random order, parted by shares."""
    with isolated(seed):
        order = torch.randperm(len(y))
    test, validation = round(_TEST * len(y)), round(_VALIDATION * len(y))
    sizes = [test, validation, len(y) - test - validation]
    rows = zip(("test", "validation", "train"), order.split(sizes), strict=True)
    return {name: (x[index], y[index]) for name, index in rows}
