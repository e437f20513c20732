"""Predictions in the target's own units: the affine map of the law, with its Jacobian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from estimators import QUICK

import bnn
from bnn.estimators import units
from bnn.estimators.units import in_units
from bnn.likelihoods import (
    Gaussian,
    HeteroscedasticGaussian,
    HeteroscedasticStudentT,
    Laplace,
    MixtureDensity,
    MultivariateGaussian,
    Poisson,
    Quantile,
    StudentT,
)

LOC, SCALE = 1e4, 250.0

SINGLE = {
    "Gaussian": Gaussian(0.4),
    "StudentT": StudentT(0.4),
    "Laplace": Laplace(0.4),
    "Quantile": Quantile(0.7, 0.4),
    "HeteroscedasticGaussian": HeteroscedasticGaussian(),
    "HeteroscedasticStudentT": HeteroscedasticStudentT(3.0),
    "MixtureDensity": MixtureDensity(2),
}
WIDTH = {"HeteroscedasticGaussian": 2, "HeteroscedasticStudentT": 2, "MixtureDensity": 6}


def standardised(name: str, draws: int = 5, rows: int = 3) -> bnn.Prediction:
    """A prediction of standardised targets, under a few draws."""
    torch.manual_seed(0)
    width = WIDTH.get(name)
    outputs = torch.randn(draws, rows) if width is None else 0.5 * torch.randn(draws, rows, width)
    likelihood = SINGLE[name]
    latents = {n: v.expand(draws, *v.shape) for n, v in likelihood.latents(outputs).items()}
    return bnn.Prediction(likelihood, outputs.double(), {n: v.double() for n, v in latents.items()})


def own(prediction: bnn.Prediction) -> bnn.Prediction:
    return in_units(prediction, np.array(LOC), np.array(SCALE))


def integral(name: str) -> float:
    """Of the density of the first row in own units, by the trapezoidal rule over 60 standard deviations."""
    grid = torch.linspace(LOC - 30 * SCALE, LOC + 30 * SCALE, 20_001, dtype=torch.float64)
    inside = standardised(name)
    first = inside.outputs[:, :1].expand(-1, len(grid), *inside.outputs.shape[2:])
    density = own(bnn.Prediction(inside.likelihood, first, inside.latents)).log_prob(grid).exp()
    return float(torch.trapezoid(density, grid))


@pytest.mark.parametrize("name", SINGLE)
def test_the_density_integrates_to_one_in_own_units(name):
    # Kinks of Laplace's density and the tails of Student's t: 30 deviations hold all but 1e-3 of them.
    assert integral(name) == pytest.approx(1, abs=2e-3)


def test_a_law_left_in_standardised_units_does_not(patch_line):
    old = "_mapped(self.of.distribution(outputs, latents), self.loc, self.scale)"
    patch_line(units.InUnits, "distribution", old, "self.of.distribution(outputs, latents)")

    assert integral("Gaussian") != pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", SINGLE)
def test_everything_follows_from_the_standardised_prediction(name):
    inside = standardised(name)
    outside = own(inside)
    z = torch.tensor([-0.5, 0.0, 1.5], dtype=torch.float64)
    y = LOC + SCALE * z

    assert torch.allclose(outside.log_prob(y), inside.log_prob(z) - math.log(SCALE))
    assert torch.allclose(outside.mean, LOC + SCALE * inside.mean)
    assert torch.allclose(outside.std, SCALE * inside.std)
    for part, whole in zip(outside.variance, inside.variance, strict=True):
        assert torch.allclose(part, SCALE**2 * whole)
    assert torch.allclose(outside.quantile([0.1, 0.9]), LOC + SCALE * inside.quantile([0.1, 0.9]))
    assert torch.allclose(outside.cdf(y), inside.cdf(z))
    assert torch.allclose(outside.sample(4), LOC + SCALE * inside.sample(4))


@pytest.mark.parametrize("likelihood", [Gaussian(0.4), MultivariateGaussian(covariance=torch.eye(2) + 0.5)])
def test_several_targets_have_a_jacobian_each(likelihood):
    loc, scale = np.array([3.0, -1e3]), np.array([2.0, 50.0])
    outputs = torch.randn(5, 4, 2, dtype=torch.float64)
    latents = {n: v.double().expand(5, *v.shape) for n, v in likelihood.latents(outputs).items()}
    inside = bnn.Prediction(likelihood, outputs, latents)
    outside = in_units(inside, loc, scale)
    z = torch.randn(4, 2, dtype=torch.float64)
    y = torch.as_tensor(loc) + torch.as_tensor(scale) * z

    assert torch.allclose(outside.log_prob(y), inside.log_prob(z) - float(np.log(scale).sum()))
    assert torch.allclose(outside.std, torch.as_tensor(scale) * inside.std)
    assert torch.allclose(outside.quantile(0.2), torch.as_tensor(loc) + torch.as_tensor(scale) * inside.quantile(0.2))


@pytest.mark.parametrize("targets", [None, 2])
def test_a_linearised_network_has_its_covariance_in_own_units(targets):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    y = 500 + 30 * x[:, 0] + rng.normal(size=40)
    y = y if targets is None else np.column_stack([y, y**2])
    fitted = bnn.BayesianRegressor((4,), method=bnn.Laplace(of=bnn.MAP()), epochs=5, compile="eager").fit(x, y)
    inside, outside = fitted.posterior_.predict(fitted.encoder_.transform(_columns(x))), fitted.predict_distribution(x)
    scale = torch.as_tensor(fitted.target_scale_)
    z = (torch.as_tensor(y) - torch.as_tensor(fitted.target_mean_)) / scale

    assert inside.spread is not None
    assert torch.allclose(outside.log_prob(y), inside.log_prob(z) - scale.log().sum())
    for part, whole in zip(outside.variance, inside.variance, strict=True):
        assert torch.allclose(part, scale**2 * whole)
    assert torch.allclose(outside.sample(3), torch.as_tensor(fitted.target_mean_) + scale * inside.sample(3))


def _columns(x):
    from bnn.estimators.columns import Column

    return [Column(f"x{i}", x[:, i]) for i in range(x.shape[1])]


def test_a_fit_in_own_units_is_the_fit_of_standardised_targets():
    """The same model, fitted by hand to standardised numbers, says the same less the log-Jacobian."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 2))
    y = 1e6 + 3e4 * x[:, 0] + 1e4 * rng.normal(size=30)
    fitted = bnn.BayesianRegressor((4,), **QUICK).fit(x, y)
    z, w = (y - y.mean()) / y.std(), (x - x.mean(0)) / x.std(0)
    by_hand = bnn.BayesianRegressor((4,), **QUICK, standardise=False).fit(w, z)

    assert np.allclose(fitted.target_mean_, y.mean())
    assert np.allclose(fitted.predict(x), y.mean() + y.std() * by_hand.predict(w))
    ours, theirs = fitted.predict_distribution(x).log_prob(y), by_hand.predict_distribution(w).log_prob(z)
    assert torch.allclose(ours, theirs - math.log(y.std()), atol=1e-6)


def test_counts_stay_in_their_own_units():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = rng.poisson(np.exp(1 + x[:, 0]))
    fitted = bnn.BayesianRegressor((4,), likelihood=Poisson(), **QUICK).fit(x, y)

    assert fitted.target_scale_ == 1
    assert fitted.target_mean_ == 0
    assert fitted.score(x, y) > 0.3
    assert np.array_equal(fitted.sample_y(x, 3), np.round(fitted.sample_y(x, 3)))
