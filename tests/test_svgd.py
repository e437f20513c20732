"""SVGD against what its fixed points are known to satisfy, on Bayesian linear regression.

At a fixed point phi(x_i) = 0 for every particle. For a Gaussian posterior (mean m, precision A) that gives identities
without any Monte Carlo error: the tolerance is how far the optimiser has converged.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from linear import NOISE, PRIOR, linear_regression
from torch import Tensor, nn

import bnn
from bnn.approximations import Draws
from bnn.inference import svgd as svgd_module
from bnn.inference.svgd import linear, rbf

PARTICLES = 8
#: In standard deviations of the posterior; gradient descent with momentum converges geometrically.
CONVERGED = 1e-4


def particles(kernel: str, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Particles ``(n, 2)`` at the fixed point, and the exact mean and precision of p(y | w)^(1/T) p(w).

    The covariance under the linear kernel relaxes at the rate 2 lr T / N, and badly if the mean is far from 0: the
    temperatures are high, and the targets are residuals.
    """
    problem = linear_regression(features=2)
    y = problem.y - 0.9 * problem.x @ problem.mean[:, None]
    prior = torch.eye(2).double() / PRIOR**2
    precision = (problem.precision - prior) / temperature + prior
    mean = torch.linalg.solve(precision, (problem.x.T @ y).squeeze(1) / NOISE**2 / temperature)
    spread = 0.3 * torch.randn(PARTICLES, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    values = {"weight": (mean + 0.1 + spread).view(1, PARTICLES, 1, 2)}
    start = bnn.Posterior(problem.model, Draws(values), points={}, state=problem.model.state())
    method = bnn.SVGD(
        particles=PARTICLES,
        kernel=kernel,  # type: ignore[arg-type]
        init=start,
        epochs=700,
        lr=0.03,
        optimizer=functools.partial(torch.optim.SGD, momentum=0.9),
        batch_size=None,
        temperature=temperature,
    )
    posterior = bnn.fit(problem.model, (problem.x, y), method, compile="graph", progress=False)
    return posterior.draws()["weight"].flatten(1), mean, precision


def check_linear(temperature: float = 20.0) -> None:
    """Mean and covariance (divided by n) are exact: Liu and Wang (2018), section 3.2.

    phi(x) = (mean_j s_j x_j' + I) x + mean_j s_j, s = -A (x - m), is 0 at D + 1 points in general position only if
    both coefficients are: mean_j x_j = m and A mean_j (x_j - m) x_j' = I.
    """
    x, mean, precision = particles("linear", temperature)
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x)
    root = torch.linalg.cholesky(precision)
    torch.testing.assert_close(root.T @ (x.mean(0) - mean), torch.zeros(2).double(), rtol=0, atol=CONVERGED)
    torch.testing.assert_close(root.T @ covariance @ root, torch.eye(2).double(), rtol=0, atol=CONVERGED)


def check_rbf(temperature: float = 20.0) -> None:
    """Two identities of the fixed point, from sum_i phi(x_i) = 0 and sum_i phi(x_i) x_i' = 0.

    In both the repulsion is antisymmetric in its pair: in the first it cancels, so that the mean of the particles
    weighted by sum_i k(x_i, x_j) is m; in the second it leaves
    A sum_ij k_ij (x_j - m) x_i' = (1 / h) sum_ij k_ij (x_i - x_j) (x_i - x_j)'.
    """
    x, mean, precision = particles("rbf", temperature)
    differences = x[:, None] - x
    squared = differences.square().sum(2)
    pairs = squared[tuple(torch.triu_indices(len(x), len(x), 1))]
    h = pairs.median() / math.log(len(x))
    k = (-squared / h).exp()
    root = torch.linalg.cholesky(precision)
    weighted = (k.sum(0) @ x) / k.sum()
    torch.testing.assert_close(root.T @ (weighted - mean), torch.zeros(2).double(), rtol=0, atol=CONVERGED)
    pulled = root.T @ torch.einsum("ij,ja,ib->ab", k, x - mean, x - mean) @ root
    pushed = torch.linalg.solve(root, torch.einsum("ij,ija,ijb->ab", k, differences, differences) / h @ root)
    size = float(pulled.abs().max())
    torch.testing.assert_close(pulled, pushed, rtol=0, atol=CONVERGED * size)


@pytest.mark.parametrize("temperature", [20.0, 60.0])
@pytest.mark.parametrize("check", [check_linear, check_rbf])
def test_the_fixed_point_has_what_theory_says(check, temperature) -> None:
    check(temperature)


@pytest.mark.parametrize("check", [check_linear, check_rbf])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("heat * repulsion", "0.8 * heat * repulsion"),
        ("heat = self.temperature / self.n_data", "heat = 1.1 * self.temperature / self.n_data"),
        ("k @ gradient / len(theta)", "gradient"),
    ],
)
def test_control_a_wrong_direction_fails(patch_line, check, old, new) -> None:
    """The first two are 10 % and 5 % of a standard deviation."""
    patch_line(svgd_module.SteinLoss, "terms", old, new)
    with pytest.raises(AssertionError, match="not close"):
        check()


@pytest.mark.parametrize(("old", "new"), [("(2 / h)", "(1 / h)"), ("/ math.log(n)", "")])
def test_control_a_wrong_kernel_fails(monkeypatch, patch_line, old, new) -> None:
    patch_line(svgd_module, "rbf", old, new)
    monkeypatch.setitem(svgd_module._REPULSIONS, "rbf", svgd_module.rbf)
    with pytest.raises(AssertionError):
        check_rbf()


@pytest.mark.parametrize("kernel", [rbf, linear])
def test_the_repulsion_is_the_gradient_of_the_kernel(kernel) -> None:
    """By autograd, with the bandwidth held: mean_j grad_{x_j} k(x_j, x_i)."""
    x = torch.randn(7, 3).double()
    squared = torch.cdist(x, x).square()
    h = squared[tuple(torch.triu_indices(7, 7, 1))].median() / math.log(7)

    def k(a: Tensor, b: Tensor) -> Tensor:
        return a @ b + 1 if kernel is linear else (-(a - b).square().sum() / h).exp()

    values, repulsion = kernel(x)
    gradient = torch.func.grad(k)
    torch.testing.assert_close(values, torch.stack([torch.stack([k(a, b) for b in x]) for a in x]))
    expected = torch.stack([torch.stack([gradient(b, a) for b in x]).mean(0) for a in x])
    torch.testing.assert_close(repulsion, expected)


# -------------------------------------------------------------------------------------------------- as any other fit

QUICK = {"particles": 5, "epochs": 10, "batch_size": 4}


def test_eager_and_graph_agree_and_a_seed_is_a_seed() -> None:
    """50 steps on minibatches, in doubles."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    data = (torch.randn(20, 3), torch.randn(20, 1))
    drawn = [
        bnn.fit(model, data, bnn.SVGD(**QUICK), compile=backend, seed=seed, progress=False).draws()
        for backend, seed in (("eager", 1), ("graph", 1), ("graph", 1), ("graph", 2))
    ]
    for name, value in drawn[0].items():
        torch.testing.assert_close(value, drawn[1][name], rtol=1e-4, atol=1e-8)
        assert torch.equal(drawn[1][name], drawn[2][name])
        assert not torch.equal(drawn[1][name], drawn[3][name])


def test_the_loss_is_the_mean_negative_log_joint(model, regression, quick) -> None:
    """At the start, over the unconstrained numbers: the density of the noise scale has its Jacobian."""
    x, y = regression
    starts = quick(model, regression, bnn.SVGD(particles=3, epochs=1, batch_size=None, lr=1e-12))
    drawn = starts.draws()
    joints = [
        model.log_joint({name: value[i] for name, value in drawn.items()}, x, y)
        + drawn["likelihood.scale"][i].log()  # d scale / d log scale
        for i in range(3)
    ]
    torch.testing.assert_close(starts.history.loss[0], -torch.stack(joints).mean() / 20, rtol=1e-4, atol=1e-4)


def test_particles_are_a_chain_of_draws_that_saves(model, regression, quick, tmp_path) -> None:
    posterior = quick(model, regression, bnn.SVGD(**QUICK))
    assert posterior.approximation.shape == (1, 5)
    posterior.save(tmp_path / "saved")
    loaded = bnn.load(tmp_path / "saved", model)
    assert torch.equal(loaded.predict(regression[0]).mean, posterior.predict(regression[0]).mean)


def test_batch_statistics_and_dropout_are_fixed(regression, quick) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    with pytest.raises(ValueError, match="never taken"):
        quick(model, regression, bnn.SVGD(**QUICK))
    net(regression[0])
    before = net[1].running_mean.clone()
    posterior = quick(model, regression, bnn.SVGD(**QUICK))
    assert all(torch.equal(mean, before) for mean in posterior.draws()["1.running_mean"])
    assert torch.equal(net[1].running_mean, before)


def test_particles_at_one_place_are_refused(model, regression, quick) -> None:
    with pytest.raises(ValueError, match="init='prior'"):
        bnn.SVGD(init="net")
    point = quick(model, regression, bnn.MAP(epochs=1))
    with pytest.raises(ValueError, match="start at one place"):
        quick(model, regression, bnn.SVGD(**QUICK, init=point))


def test_points_without_a_prior_are_refused(regression, quick) -> None:
    model = bnn.BNN(nn.Linear(3, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian("learned"))
    with pytest.raises(ValueError, match="have no prior"):
        quick(model, regression, bnn.SVGD(**QUICK))


@pytest.mark.parametrize(("settings", "words"), [({"particles": 1}, "from 2"), ({"kernel": "matern"}, "kernel is")])
def test_settings_that_make_no_sense_are_told(settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        bnn.SVGD(**settings)
