"""Bayesian linear regression with known noise: the posterior is known exactly (Bishop 2006, section 3.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import bnn
from bnn.random import isolated

NOISE, PRIOR = 0.5, 1.3


@dataclass(frozen=True)
class Exact:
    """A model, data, and its Gaussian posterior."""

    model: bnn.BNN
    x: Tensor
    y: Tensor
    mean: Tensor
    precision: Tensor

    @property
    def covariance(self) -> Tensor:
        return torch.linalg.inv(self.precision)


def linear_regression(rows: int = 60, features: int = 3, seed: int = 0) -> Exact:
    """Correlated features, so that a mean-field posterior differs from the exact one."""
    with isolated(seed):
        mix = torch.eye(features) + 0.6 * torch.ones(features, features)
        x = (torch.randn(rows, features) @ mix).double()
        truth = torch.randn(features, 1).double()
        y = x @ truth + NOISE * torch.randn(rows, 1).double()
        net = nn.Linear(features, 1, bias=False).double()
    model = bnn.BNN(net, bnn.priors.Normal(PRIOR), bnn.likelihoods.Gaussian(NOISE))
    precision = x.T @ x / NOISE**2 + torch.eye(features).double() / PRIOR**2
    mean = torch.linalg.solve(precision, x.T @ y / NOISE**2).squeeze(-1)
    return Exact(model, x, y, mean, precision)
