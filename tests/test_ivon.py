"""IVON against the known mean-field answer, with controls on its update and on its gradients."""

import functools
import math

import pytest
import torch
from linear import Exact, linear_regression
from scipy import stats
from torch import Tensor

import bnn
from bnn.data import Batch
from bnn.inference import ivon as ivon_module
from bnn.inference import objective as objective_module
from bnn.random import isolated

SEEDS = 8


@functools.cache
def exact() -> Exact:
    return linear_regression()


def found(seed: int) -> Tensor:
    """Mean and standard deviation, ``(6,)``, in units of the mean-field answer 1 / sqrt(diag(precision))."""
    problem = exact()
    method = bnn.IVON(epochs=300, batch_size=30, draws=8, average=0.5)
    data = (problem.x, problem.y)
    posterior = bnn.fit(problem.model, data, method, seed=seed, compile="graph", progress=False)
    q = posterior.approximation.tensors()
    return torch.cat([q["loc"], q["log_scale"].exp()]) / problem.precision.diagonal().rsqrt().repeat(2)


def compare(got: Tensor, limit: Tensor | float) -> None:
    problem = exact()
    expected = torch.cat([problem.mean * problem.precision.diagonal().sqrt(), torch.ones(3)])
    assert ((got - expected).abs() < limit).all(), f"{got} against {expected} +- {limit}"


def test_ivon_finds_the_mean_field_answer() -> None:
    """The exact mean, and variances 1 / diag(precision); error bars over seeds as in test_exact."""
    fits = torch.stack([found(seed) for seed in range(SEEDS)])
    quantile = float(stats.t.ppf(1 - 1e-3 / fits.shape[1] / 2, SEEDS - 1))
    limit = quantile * fits.std(0) / math.sqrt(SEEDS) + 0.01  # the bias of a finite number of steps
    compare(fits.mean(0), limit)
    assert (limit < 0.1).all(), f"too noisy to tell 10 % of a standard deviation: {limit}"


def test_control_a_single_fit_is_within_what_has_to_be_rejected() -> None:
    compare(found(0), 0.1)


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"),
    [
        (objective_module.Objective, "data_nll", "n_data=self.n_data", "n_data=None"),
        (objective_module.Objective, "_evaluate", "total = nll + temperature * kl", "total = nll + 2 * kl"),
        (ivon_module.IVONLoss, "terms", "draw = q.loc + scale * own[0]", "draw = q.loc + 0.8 * scale * own[0]"),
        (ivon_module.IVONLoss, "approximation", 'params["precision"]', '2 * params["precision"]'),
    ],
)
def test_control_a_wrong_ivon_is_found(owner: object, name: str, old: str, new: str, patch_line) -> None:
    patch_line(owner, name, old, new)
    with pytest.raises(AssertionError, match="against"):
        compare(found(0), 0.1)


def test_the_gradients_are_those_of_algorithm_1() -> None:
    """N (g + d m), and p - N (d + h) with h = g e / s, at the same noise, g the gradient of the mean loss."""
    problem = exact()
    loss = bnn.IVON(init_scale=0.3).loss(problem.model, 60, compile="eager")
    n, weight_decay = 60, 1 / (60 * 1.3**2)
    batch = Batch(problem.x[:30], problem.y[:30])
    with isolated(3):
        (to_loc, to_precision), _ = loss.gradients(batch)
    with isolated(3):
        noise = torch.randn(1, 3, dtype=torch.float64)[0]
    m, p = loss.loc.detach(), loss.precision.detach()
    scale = p.rsqrt()
    draw = m + scale * noise
    gradient = problem.x[:30].T @ (problem.x[:30] @ draw - problem.y[:30, 0]) / 0.5**2 / 30
    torch.testing.assert_close(to_loc, n * (gradient + weight_decay * m))
    torch.testing.assert_close(to_precision, p - n * (weight_decay + gradient * noise / scale))


def update(m: Tensor, p: Tensor, g: list[Tensor], r: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Two steps of algorithm 1 as it is written, at learning rate 0.1."""
    v = torch.zeros_like(m)
    for t in (1, 2):
        v = 0.9 * v + 0.1 * g[t - 1]
        rho = 5 / (t + 100)
        p = p - rho * r[t - 1] + 0.5 * rho**2 * r[t - 1] ** 2 / p
        m = m - 0.1 * v / (1 - 0.9**t) / p
    return m, p


def test_the_update_is_algorithm_1() -> None:
    with isolated(0):
        m, g1, g2 = torch.randn(3, 5, dtype=torch.float64)
        p, r1, r2 = 1 + torch.rand(3, 5, dtype=torch.float64)
    r1, r2 = 0.2 * r1, -0.2 * r2  # below the limit of a step
    expected = update(m, p, [g1, g2], [r1, r2])
    loc, precision = torch.nn.Parameter(m.clone()), torch.nn.Parameter(p.clone())
    optimizer = ivon_module.IVONOptimizer([loc, precision], lr=0.1)
    for g, r in ((g1, r1), (g2, r2)):
        loc.grad, precision.grad = g, r
        optimizer.step()
    torch.testing.assert_close(loc.detach(), expected[0])
    torch.testing.assert_close(precision.detach(), expected[1])


def test_a_step_is_bounded() -> None:
    """One standard deviation of the mean, a tenth of the precision, as root mean squares."""
    loc, precision = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.full((4,), 25.0))
    loc.grad, precision.grad = torch.tensor([1e4, -1e4, 1e4, 1e4]), torch.tensor([-1e5, 1e5, 1e5, -1e5])
    ivon_module.IVONOptimizer([loc, precision], lr=0.1).step()
    torch.testing.assert_close(precision.detach(), 25 * torch.tensor([1.105, 0.905, 0.905, 1.105]))
    torch.testing.assert_close((loc.detach() * precision.detach().sqrt()).square().mean(), torch.tensor(1.0))


def test_the_precision_stays_positive_whatever_the_gradient() -> None:
    loc, precision = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.ones(4))
    optimizer = ivon_module.IVONOptimizer([loc, precision], lr=0.1)
    for size in (1e6, -1e6, 1e3, -1e3):
        loc.grad, precision.grad = torch.zeros(4), torch.tensor([1.0, -1.0, 0.5, -0.1]) * size
        optimizer.step()
        assert (precision > 0).all()
    assert {"momentum", "step"} == set(optimizer.state[loc])
    assert all(isinstance(value, Tensor) for value in optimizer.state[loc].values())
