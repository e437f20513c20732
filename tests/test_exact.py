"""Methods against the exact posterior of Bayesian linear regression, with controls that break the real code.

Minibatches of half the rows, so that the factor N/n is at work.
"""

import functools
import math

import pytest
import torch
from linear import Exact, linear_regression
from marks import some
from torch import Tensor

import bnn
import bnn.approximations
from bnn.inference import objective as objective_module

SEEDS = 8


def decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-3)


@functools.cache
def exact() -> Exact:
    return linear_regression()


def mean_field(seed: int, **settings: object) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the fitted Gaussian. The second half of the iterates is averaged."""
    problem = exact()
    method = bnn.MeanField(
        epochs=250, batch_size=30, lr=0.03, schedule=decay, average=0.5, draws=16, **settings  # type: ignore[arg-type]
    )  # fmt: skip
    posterior = bnn.fit(problem.model, (problem.x, problem.y), method, seed=seed, compile="graph", progress=False)
    tensors = posterior.approximation.tensors()
    return tensors["loc"], tensors["log_scale"].exp()


def check_mean_field(**settings: object) -> None:
    """The known answer: the exact mean, and variances 1 / diag(precision) (Bishop 2006, section 10.1.2).

    The error bar comes from independent seeds: a mean over S of them deviates by more than t * sd / sqrt(S) with
    probability 1e-3, t the two-sided quantile of Student's t with S - 1 degrees of freedom, Bonferroni over entries.
    It also has to be able to reject an error of 10 % in a standard deviation.
    """
    problem = exact()
    fits = [mean_field(seed, **settings) for seed in range(SEEDS)]
    locs, scales = (torch.stack([fit[i] for fit in fits]) for i in (0, 1))
    sd = problem.precision.diagonal().rsqrt()
    entries = 2 * len(sd)
    quantile = _student_quantile(1 - 1e-3 / entries / 2, SEEDS - 1)
    for got, expected, name in ((locs / sd, problem.mean / sd, "mean"), (scales / sd, torch.ones(3), "deviation")):
        error = quantile * got.std(0) / math.sqrt(SEEDS)
        assert ((got.mean(0) - expected).abs() < error + 1e-3).all(), (
            f"{name}: {got.mean(0)} against {expected} +- {error}"
        )
        assert (error < 0.1).all(), f"the {name} is too noisy to tell 10 % of a standard deviation: {error}"


def _student_quantile(p: float, degrees: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(p, degrees))


@pytest.mark.parametrize("estimator", some(["weights", "local", "flipout"], {"weights"}))
def test_mean_field_finds_the_exact_mean_field_answer(estimator: str) -> None:
    check_mean_field(estimator=estimator)


@pytest.mark.slow
def test_control_mean_field_without_n_over_n_fails(patch_line) -> None:
    patch_line(objective_module.Objective, "data_nll", "n_data=self.n_data", "n_data=None")
    with pytest.raises(AssertionError, match="against"):
        check_mean_field()


def test_control_mean_field_with_the_divergence_counted_twice_fails(patch_line) -> None:
    patch_line(objective_module.Objective, "_evaluate", "total = nll + temperature * kl", "total = nll + 2 * kl")
    with pytest.raises(AssertionError, match="against"):
        check_mean_field()


def check_map() -> None:
    """The mode is the exact mean; full batches make it a deterministic optimum, found to rounding by LBFGS."""
    problem = exact()
    method = bnn.MAP(
        epochs=20,
        batch_size=None,
        lr=1.0,
        optimizer=functools.partial(
            torch.optim.LBFGS, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15
        ),
    )
    posterior = bnn.fit(problem.model, (problem.x, problem.y), method, progress=False)
    torch.testing.assert_close(posterior.draws()["weight"].flatten(), problem.mean, rtol=1e-7, atol=1e-9)


def test_map_finds_the_exact_mode() -> None:
    check_map()


@pytest.mark.parametrize(
    ("old", "new"), [("terms.nll / self.n_data, terms.kl", "terms.nll / self.n_data, 2 * terms.kl")]
)
def test_control_map_with_the_prior_counted_twice_fails(patch_line, old: str, new: str) -> None:
    patch_line(objective_module.Objective, "_evaluate", old, new)
    with pytest.raises(AssertionError):
        check_map()


def test_control_map_with_minibatches_and_no_n_over_n_fails(patch_line) -> None:
    patch_line(objective_module.Objective, "data_nll", "n_data=self.n_data", "n_data=2 * self.n_data")
    with pytest.raises(AssertionError):
        check_map()


def test_the_predictive_distribution_of_the_exact_answer_is_the_closed_form() -> None:
    """With draws of N(m, S), the mean over draws of x w has mean x m and variance x S x' + noise^2."""
    problem = exact()
    draws = 4000
    root = torch.linalg.cholesky(problem.covariance)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(draws, 3, generator=generator, dtype=torch.float64)
    weights = (problem.mean + noise @ root.T).reshape(1, draws, 1, 3)
    posterior = bnn.Posterior(
        problem.model, bnn.approximations.Draws({"weight": weights}), points={}, state=problem.model.state()
    )
    prediction = posterior.predict(problem.x)
    variance = ((problem.x @ problem.covariance) * problem.x).sum(1, keepdim=True)
    # Standard errors: sqrt(v / s) of the mean, v sqrt(2 / s) of the variance; 120 comparisons, 5 of them is 1e-4.
    assert ((prediction.mean - problem.x @ problem.mean[:, None]).abs() < 5 * (variance / draws).sqrt()).all()
    assert ((prediction.variance.epistemic / variance - 1).abs() < 5 * math.sqrt(2 / draws)).all()
    torch.testing.assert_close(prediction.variance.aleatoric, torch.full_like(variance, 0.25))
