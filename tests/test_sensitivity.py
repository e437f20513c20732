"""What a posterior owes its prior: power scaling, against conjugate regression and against ArviZ itself."""

import dataclasses
import importlib
import logging
import math

import arviz_stats
import numpy as np
import pytest
import torch
from linear import NOISE, linear_regression
from pyro import distributions as dist
from scipy import stats
from torch import Tensor, nn

import bnn
from bnn.analysis import sensitivity
from bnn.approximations import Draws
from bnn.likelihoods import Gaussian
from bnn.posterior import Posterior
from bnn.prior_predictive import prior_as_posterior
from bnn.priors import Normal


def check_close(got: float, expected: float, error: float, sigmas: float = 4.5) -> None:
    assert abs(got - expected) < sigmas * error, f"{got} is not {expected} within {sigmas} times {error}"


@dataclasses.dataclass(frozen=True)
class Conjugate:
    """Linear regression under a Gaussian prior, with exact draws of its posterior and its power-scaled means."""

    posterior: Posterior
    x: Tensor
    y: Tensor
    scale: float

    def law(self, row: int, *, prior: float = 1.0, likelihood: float = 1.0) -> tuple[float, float]:
        """Mean and standard deviation of f at a row, with prior and likelihood raised to these powers."""
        precision = likelihood * self.x.T @ self.x / NOISE**2 + prior * torch.eye(3).double() / self.scale**2
        mean = torch.linalg.solve(precision, likelihood * self.x.T @ self.y / NOISE**2).squeeze(-1)
        x = self.x[row]
        return float(x @ mean), math.sqrt(float(x @ torch.linalg.solve(precision, x)))

    def distance(self, row: int, part: str) -> float:
        """ArviZ's distance, from the exact distribution functions on the range of the draws."""
        f = (self.posterior.draws()["weight"][:, 0] @ self.x[row]).numpy()
        base = self.law(row)
        return (
            sum(cjs(base, self.law(row, **{part: a}), f.min(), f.max()) / abs(math.log2(a)) for a in (0.99, 1.01)) / 2
        )

    def shift(self, row: int, part: str) -> float:
        low, high = (self.law(row, **{part: 2.0**step})[0] for step in (-1e-3, 1e-3))
        return (high - low) / 2e-3 / self.law(row)[1]


def cjs(first: tuple[float, float], second: tuple[float, float], low: float, high: float) -> float:
    """Cumulative Jensen-Shannon distance of two Gaussians (Nguyen and Vreeken, 2015), by the trapezoid rule."""

    def one(sign: int) -> float:
        t = np.linspace(*((low, high) if sign > 0 else (-high, -low)), 20_001)
        p, q = (stats.norm.cdf(t, sign * loc, scale) for loc, scale in (first, second))

        def divergence(a, b):
            return np.trapezoid(a * np.log2(2 * a / (a + b)) + (b - a) / (2 * math.log(2)), t)

        return math.sqrt(max(divergence(p, q) + divergence(q, p), 0) / np.trapezoid(p + q, t))

    return max(one(1), one(-1))


def conjugate(scale: float, draws: int = 4000) -> Conjugate:
    exact = linear_regression()
    model = bnn.BNN(exact.model.net, Normal(scale), Gaussian(NOISE))
    precision = exact.x.T @ exact.x / NOISE**2 + torch.eye(3).double() / scale**2
    mean = torch.linalg.solve(precision, exact.x.T @ exact.y / NOISE**2).squeeze(-1)
    torch.manual_seed(1)
    drawn = torch.distributions.MultivariateNormal(mean, precision_matrix=precision).sample((4, draws // 4))
    posterior = Posterior(model, Draws({"weight": drawn.unsqueeze(2)}), points={}, state={})
    return Conjugate(posterior, exact.x, exact.y, scale)


def power_scaled(scale: float, part: str) -> None:
    """Distances to 15 % and 0.003 (4,000 draws), shifts to 4.5 errors of a covariance."""
    case = conjugate(scale)
    found = sensitivity(case.posterior, case.x, case.y)
    assert len(found.functions) == 20
    for row in (0, 30, 57):
        moves = found[f"f[{row}]"]
        shift = {"prior": moves.prior_shift, "likelihood": moves.likelihood_shift}[part]
        distance = {"prior": moves.prior, "likelihood": moves.likelihood}[part]
        expected = case.shift(row, part)
        # sd of the product of two standard normals is 1, and log p has a standard deviation of a few nats
        check_close(shift, expected, math.log(2) * math.hypot(3.0, 2 * expected) / math.sqrt(4000))
        assert distance == pytest.approx(case.distance(row, part), rel=0.2, abs=0.003)


@pytest.mark.parametrize("part", ["prior", "likelihood"])
@pytest.mark.parametrize("scale", [1.3, 0.05])
def test_power_scaling_of_linear_regression_is_the_known_one(scale, part):
    power_scaled(scale, part)


def test_a_part_that_is_left_out_would_be_seen(patch_line):
    sensitivity_module = importlib.import_module("bnn.analysis.sensitivity")
    patch_line(sensitivity_module, "_log_prior", ").sum(0)", ").sum(0) * 0.5")
    with pytest.raises(AssertionError):
        power_scaled(0.05, "prior")


def test_a_strong_prior_is_flagged_and_a_weak_one_is_not():
    weak, strong = (conjugate(scale) for scale in (1.3, 0.05))
    found = sensitivity(weak.posterior, weak.x, weak.y)
    assert not any(row.prior_matters for row in found.functions)
    assert all(row.reading == "the data decide" for row in found.functions)
    assert found.reading == "The prior moves 0 of 20 function values."
    found = sensitivity(strong.posterior, strong.x, strong.y)
    assert all(row.prior_matters for row in found.functions)
    assert "The prior moves 20 of 20 function values" in found.reading
    assert "in conflict" in str(found)


def test_the_table_is_that_of_arviz(caplog):
    case = conjugate(0.05, draws=400)
    with caplog.at_level(logging.ERROR):
        tree = case.posterior.to_arviz(case.x, case.y, log_prior=True)
        prior, data = (arviz_stats.psense(tree, group=group)["weight"].values[0] for group in ("prior", "likelihood"))
    # At unit vectors f is one weight.
    found = sensitivity(case.posterior, case.x, case.y, at=torch.eye(3).double())
    np.testing.assert_allclose([row.prior for row in found.functions], prior, rtol=1e-10)
    np.testing.assert_allclose([row.likelihood for row in found.functions], data, rtol=1e-10)


def test_the_log_prior_group_has_every_site():
    model = bnn.BNN(nn.Linear(1, 1), Normal(dist.HalfNormal(2.0), centred=False), Gaussian())
    posterior = prior_as_posterior(model, 6)
    tree = posterior.to_arviz(log_prior=True)
    draws = posterior.draws()
    sites = ["prior.all.scale", "weight.z", "bias.z", "likelihood.scale"]
    assert sorted(tree["log_prior"].data_vars) == sorted(sites)
    expected = dist.HalfNormal(2.0).log_prob(draws["prior.all.scale"])
    np.testing.assert_allclose(tree["log_prior"]["prior.all.scale"].values[0], expected, rtol=1e-6)
    expected = dist.Normal(0.0, 1.0).log_prob(draws["weight.z"]).sum((1, 2))
    np.testing.assert_allclose(tree["log_prior"]["weight.z"].values[0], expected, rtol=1e-6)
    assert "log_prior" not in posterior.to_arviz().children


def test_hyper_parameters_are_in_the_table_and_their_prior_alone_can_be_scaled(quick, regression):
    model = bnn.BNN(nn.Linear(3, 1), Normal(dist.HalfNormal(1.0)), Gaussian())
    posterior = quick(model, regression, bnn.MeanField(epochs=50))
    found = sensitivity(posterior, *regression, num=500)
    assert {"prior.all.scale", "likelihood.scale"} < {row.name for row in found.rows}
    alone = sensitivity(posterior, *regression, num=500, sites=["prior.all.scale"])
    assert alone["prior.all.scale"].prior != found["prior.all.scale"].prior
    assert alone["prior.all.scale"].likelihood == found["prior.all.scale"].likelihood
    with pytest.raises(ValueError, match="sites are some of"):
        sensitivity(posterior, *regression, sites=["0.weight"])


def test_what_power_scaling_does_not_take_is_told(quick, regression, model):
    few = quick(model, regression, bnn.MAP(epochs=1))
    with pytest.raises(ValueError, match="1 are too few: 100 at least"):
        sensitivity(few, *regression)
    cold = quick(model, regression, bnn.MeanField(epochs=1, temperature=0.5))
    with pytest.raises(ValueError, match="power scaling needs the posterior itself"):
        sensitivity(cold, *regression)
