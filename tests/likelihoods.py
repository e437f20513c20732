"""Every likelihood, with what the contract needs to know of it. A new one is one line of `TABLE`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from pyro import distributions as dist
from torch import Tensor, nn

import bnn
from bnn import likelihoods as bl

F64 = torch.float64

#: Where one number of y lies: "real", "positive", "unit", counts up to a number, or labels.
Place = Literal["real", "positive", "unit", "counts", "labels", "binary"]


@dataclass(frozen=True)
class Enrolled:
    """One line of the table."""

    likelihood: bl.Likelihood
    #: The shape of one row's outputs.
    outputs: tuple[int, ...]
    place: Place
    #: Values of its unknowns, for the checks of one density.
    latents: dict[str, float | list] = field(default_factory=dict)
    #: Of one row's target.
    event: tuple[int, ...] = ()
    #: Labels, or counts that are likely enough to matter.
    numbers: int = 0
    #: A target outside the support, and what is said of it.
    wrong: tuple[float, str] | None = None
    #: Bounds of y, where there are any.
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def values(self, dtype: torch.dtype = F64) -> dict[str, Tensor]:
        return {f"likelihood.{name}": torch.tensor(value, dtype=dtype) for name, value in self.latents.items()}

    def rows(self, n: int, dtype: torch.dtype = F64) -> Tensor:
        return torch.randn(n, *self.outputs, dtype=dtype)

    def targets(self, outputs: Tensor) -> Tensor:
        y = self.likelihood.observation(outputs, self.values(outputs.dtype)).sample()
        return y.long() if self.likelihood.labels else y


def _root(rho: float) -> list:
    """The Cholesky factor of a correlation."""
    return [[1.0, 0.0], [rho, math.sqrt(1 - rho * rho)]]


FIXED = torch.tensor([[1.0, 0.4], [0.4, 0.5]])

TABLE: dict[str, Enrolled] = {
    "gaussian": Enrolled(bl.Gaussian(), (), "real", {"scale": 0.6}),
    "gaussian, two": Enrolled(
        bl.Gaussian(dist.HalfCauchy(torch.ones(2))), (2,), "real", {"scale": [0.6, 0.9]}, event=(2,)
    ),
    "multivariate": Enrolled(
        bl.MultivariateGaussian(2),
        (2,),
        "real",
        {"scale": [0.6, 0.9], "correlation": _root(0.5)},
        event=(2,),
    ),
    "multivariate, fixed": Enrolled(
        bl.MultivariateGaussian(covariance=FIXED),
        (2,),
        "real",
        {"scale": FIXED.diagonal().sqrt().tolist(), "correlation": _root(0.4 / math.sqrt(0.5))},
        event=(2,),
    ),
    "heteroscedastic": Enrolled(bl.HeteroscedasticGaussian(), (2,), "real"),
    "heteroscedastic, two": Enrolled(bl.HeteroscedasticGaussian(), (4,), "real", event=(2,)),
    "student t": Enrolled(bl.StudentT(df=9.0), (), "real", {"scale": 0.6, "df": 9.0}),
    "student t, df unknown": Enrolled(
        bl.StudentT(df=dist.Gamma(2.0, 0.1)), (2,), "real", {"scale": 0.6, "df": 9.0}, event=(2,)
    ),
    "heteroscedastic t": Enrolled(bl.HeteroscedasticStudentT(7.0), (2,), "real", {"excess": 7.0}),
    "heteroscedastic t, two": Enrolled(bl.HeteroscedasticStudentT(), (4,), "real", {"excess": 7.0}, event=(2,)),
    "laplace": Enrolled(bl.Laplace(), (), "real", {"scale": 0.6}),
    "quantile": Enrolled(bl.Quantile(0.8), (), "real", {"scale": 0.3}),
    "mixture": Enrolled(bl.MixtureDensity(2), (6,), "real"),
    "mixture, two": Enrolled(bl.MixtureDensity(2), (10,), "real", event=(2,)),
    "truncated": Enrolled(
        bl.Truncated(bl.Gaussian(), -0.5), (), "real", {"scale": 0.6}, bounds=(-0.5, math.inf), wrong=(-1.0, "between")
    ),
    "truncated, both": Enrolled(
        bl.Truncated(bl.Laplace(), -1.0, 1.5), (), "real", {"scale": 0.6}, bounds=(-1.0, 1.5), wrong=(2.0, "between")
    ),
    "truncated, weibull": Enrolled(
        bl.Truncated(bl.Weibull(), high=2.0),
        (),
        "positive",
        {"concentration": 1.5},
        bounds=(0.0, 2.0),
        wrong=(3.0, "between"),
    ),
    "gamma": Enrolled(bl.Gamma(), (), "positive", {"dispersion": 0.4}, wrong=(0.0, "positive numbers")),
    "log-normal": Enrolled(bl.LogNormal(), (), "positive", {"scale": 0.6}, wrong=(-1.0, "positive numbers")),
    "weibull": Enrolled(bl.Weibull(), (), "positive", {"concentration": 1.5}, wrong=(0.0, "positive numbers")),
    "beta": Enrolled(bl.Beta(), (), "unit", {"precision": 5.0}, wrong=(1.0, "strictly between 0 and 1")),
    "bernoulli": Enrolled(bl.Bernoulli(), (2,), "binary", event=(2,), numbers=2, wrong=(0.5, "0 or 1")),
    "binomial": Enrolled(bl.Binomial(7), (), "counts", numbers=8, wrong=(8.0, "counts from 0 to 7")),
    "poisson": Enrolled(bl.Poisson(), (), "counts", numbers=80, wrong=(1.5, "counts: 0, 1, 2")),
    "negative binomial": Enrolled(
        bl.NegativeBinomial(), (), "counts", {"dispersion": 0.4}, numbers=400, wrong=(-1.0, "counts: 0, 1, 2")
    ),
    "categorical": Enrolled(bl.Categorical(), (3,), "labels", numbers=3, wrong=(3, r"0\.\.2")),
    "categorical, smoothed": Enrolled(bl.Categorical(0.1), (3,), "labels", numbers=3, wrong=(-1, r"0\.\.2")),
    "categorical, pixels": Enrolled(
        bl.Categorical(), (3, 2, 2), "labels", event=(2, 2), numbers=3, wrong=(3, r"0\.\.2")
    ),
    "ordinal": Enrolled(bl.Ordinal(4), (), "labels", {"levels": [0.1, 0.4, 0.2, 0.3]}, numbers=4, wrong=(4, r"0\.\.3")),
    "function": Enrolled(
        bl.Function(lambda outputs, scale: dist.Logistic(outputs, scale), scale=dist.HalfNormal(1.0)),
        (),
        "real",
        {"scale": 0.5},
    ),
    "censored": Enrolled(bl.Censored(bl.Gaussian()), (), "real", {"scale": 0.6}),
    "censored, weibull": Enrolled(bl.Censored(bl.Weibull()), (), "positive", {"concentration": 1.5}),
    "masked": Enrolled(bl.Gaussian(missing="mask"), (2,), "real", {"scale": 0.6}, event=(2,)),
}


def grid(line: Enrolled, around: Tensor) -> tuple[Tensor, Tensor]:
    """Points over all of y's space and their weights: sums over them are integrals (trapezoids) over y.

    Args:
        line: Of the table.
        around: ``(*event,)``, near the middle of y.

    Returns:
        ``(m, *event)`` and ``(m,)``.
    """
    numbers = math.prod(line.event)
    if line.place in ("counts", "labels", "binary"):
        values = torch.arange(line.numbers)
        points = torch.tensor(list(itertools.product(values.tolist(), repeat=numbers)))
        points = points if line.place == "labels" else points.to(F64)
        return points.reshape(-1, *line.event), torch.ones(len(points), dtype=F64)
    axes = [_axis(line, float(c), 4001 if numbers == 1 else 401) for c in around.reshape(-1)]
    points = torch.cartesian_prod(*[a for a, _ in axes]).reshape(-1, *line.event)
    weights = torch.cartesian_prod(*[w for _, w in axes]).reshape(len(points), -1).prod(1)
    return points, weights


def _axis(line: Enrolled, centre: float, size: int) -> tuple[Tensor, Tensor]:
    """One dimension: evenly spaced after a map that is dense around the middle and reaches far."""
    low, high = line.bounds
    if not math.isinf(low) and not math.isinf(high):
        y = torch.linspace(low, high, 4 * size + 1, dtype=F64)
        weights = torch.full_like(y, (high - low) / (4 * size))
        weights[[0, -1]] /= 2
        inner = slice(1, None) if line.place == "positive" else slice(None)
        return y[inner], weights[inner]
    if line.place == "real" and not math.isinf(low):
        u = torch.linspace(-20, 12, 4 * size, dtype=F64)
        return low + u.exp(), u.exp() * (u[1] - u[0])
    if line.place == "real":
        u = torch.linspace(-9, 9, size, dtype=F64)
        return centre + u.sinh() / 4, u.cosh() / 4 * (u[1] - u[0])
    u = torch.linspace(-40, 12 if line.place == "positive" else 40, 4 * size, dtype=F64)
    if line.place == "positive":
        return u.exp(), u.exp() * (u[1] - u[0])
    inside = u.sigmoid()
    keep = (inside > 0) & (inside < 1)
    return inside[keep], (inside * (-u).sigmoid() * (u[1] - u[0]))[keep]


class Pixels(nn.Module):
    """A class for each of 2 x 2 pixels, of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).reshape(-1, 3, 2, 2)


def model_of(line: Enrolled) -> bnn.BNN:
    """A linear network with the right outputs."""
    if len(line.outputs) > 1:
        net: nn.Module = Pixels()
    elif line.outputs:
        net = nn.Sequential(nn.Linear(2, line.outputs[0]))
    else:
        net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    return bnn.BNN(net, bnn.priors.Normal(1.0), line.likelihood)
