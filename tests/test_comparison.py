"""Comparison, weights and mixtures of posteriors: against closed forms, ArviZ and brute force."""

import importlib
import math

import numpy as np
import pytest
import torch
import xarray
from linear import NOISE, linear_regression
from test_convergence import exact_draws, exact_gaussian, held_out, layout_of, posterior_of
from torch.distributions import Normal

import bnn
from bnn.analysis import (
    bma_weights,
    log_likelihood,
    loo,
    pseudo_bma_weights,
    stacking_weights,
)
from bnn.analysis.compatibility import ranking
from bnn.approximations import Draws, Gaussian

density = importlib.import_module("bnn.analysis.density")


def table(rows: int = 200, seed: int = 0) -> dict[str, torch.Tensor]:
    """Three forecasters of one standard normal variable: shifted left, shifted right, too wide."""
    y = torch.randn(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    laws = {"left": Normal(-1.0, 1.0), "right": Normal(1.0, 1.0), "wide": Normal(0.0, 3.0)}
    return {name: law.log_prob(y) for name, law in laws.items()}


def score(densities: dict[str, torch.Tensor], weights: dict[str, float]) -> float:
    terms = torch.stack([densities[name] + math.log(max(weight, 1e-300)) for name, weight in weights.items()])
    return float(terms.logsumexp(0).mean())


def test_stacking_is_the_best_mixture():
    """Against a grid over the simplex, and against its optimality condition."""
    densities = table()
    weights = stacking_weights(densities)
    assert sum(weights.values()) == pytest.approx(1)
    grid = [(a / 40, b / 40, 1 - a / 40 - b / 40) for a in range(41) for b in range(41 - a)]
    best = max(score(densities, dict(zip(densities, point, strict=True))) for point in grid)
    assert score(densities, weights) >= best - 1e-9
    mixed = sum(weight * densities[name].exp() for name, weight in weights.items())
    gains = {name: float((value.exp() / mixed).mean()) for name, value in densities.items()}
    assert max(gains.values()) < 1 + 1e-5
    assert 0.3 < weights["left"] < 0.7


def test_a_model_that_another_contains_gets_nothing_and_equal_ones_do_not_matter():
    densities = table()
    worse = {"good": densities["left"], "worse": densities["left"] - 1}
    assert stacking_weights(worse) == pytest.approx({"good": 1, "worse": 0}, abs=1e-5)
    assert pseudo_bma_weights(worse) == pytest.approx({"good": 1, "worse": 0}, abs=1e-5)
    with pytest.raises(ValueError, match="same rows"):
        stacking_weights({"a": densities["left"], "b": densities["left"][:5]})
    with pytest.raises(ValueError, match="not finite"):
        stacking_weights({"a": densities["left"] / 0})


def trees(columns: dict[str, torch.Tensor]):
    """Draws that all have the same log-likelihood: leave-one-out is then that itself."""
    from arviz_base import dict_to_dataset

    made = {}
    rng = np.random.default_rng(0)
    for name, value in columns.items():
        y = np.broadcast_to(value.numpy(), (2, 100, len(value))) + 1e-6 * rng.standard_normal((2, 100, len(value)))
        data = dict_to_dataset({"y": y}, dims={"y": ["row"]}, sample_dims=["chain", "draw"])
        draws = dict_to_dataset({"w": rng.standard_normal((2, 100))}, sample_dims=["chain", "draw"])
        made[name] = xarray.DataTree.from_dict({"log_likelihood": data, "posterior": draws})
    return made


def test_weights_are_those_of_arviz():
    """Stacking by ArviZ's optimiser; pseudo-BMA+ from 1,000 other bootstrap samples, so within their error."""
    import arviz_stats

    densities = table(60)
    densities["right"] = densities["right"] + 0.05
    made = trees(densities)
    theirs = {name: row.weight for name, row in ranking(made).items()}
    assert stacking_weights(densities) == pytest.approx(theirs, abs=2e-3)
    boot = arviz_stats.compare(made, method="bb-pseudo-bma")["weight"]
    assert pseudo_bma_weights(densities) == pytest.approx({name: float(boot[name]) for name in densities}, abs=0.06)


def test_bma_weights_are_those_of_the_evidence():
    problem = linear_regression()
    posteriors = {}
    for name, value in (("a", -60.0), ("b", -61.0)):
        settings = {"evidence": {"kind": "laplace", "value": value}}
        layout = layout_of(problem.model)
        gaussian = Gaussian(layout, problem.mean, torch.zeros(3).double())
        posteriors[name] = posterior_of(problem.model, gaussian, **settings)
    assert bma_weights(posteriors) == pytest.approx({"a": 1 / (1 + math.exp(-1)), "b": 1 / (1 + math.e)})
    assert bma_weights(posteriors | {"c": exact_gaussian(problem)}) is None


def candidates():
    problem = linear_regression()
    draws = exact_draws(problem, 0)
    narrow = exact_gaussian(problem, 0.1)
    shifted = exact_draws(problem, 1).approximation.vectors + 0.5
    wrong = posterior_of(problem.model, Draws({"weight": shifted.unsqueeze(2)}))
    draws.history.seconds = 12.5
    return problem, {"wrong": wrong, "draws": draws, "narrow": narrow}


def test_compare_is_paired_row_by_row():
    problem, posteriors = candidates()
    x, y = held_out(problem, 3)
    found = bnn.compare(posteriors, (x, y), draws=300)
    rows = {}
    for name, posterior in posteriors.items():
        drawn = posterior.draws(None if posterior.num_draws else 300)["weight"]
        f = torch.einsum("ni,sji->sn", x, drawn)
        each = Normal(f, NOISE).log_prob(y[:, 0])
        rows[name] = each.logsumexp(0) - math.log(len(each))
    best = max(rows, key=lambda name: float(rows[name].mean()))
    assert found.best == best
    assert list(found.rows) == sorted(rows, key=lambda name: -float(rows[name].mean()))
    for name, row in found.rows.items():
        gap = rows[name] - rows[best]
        assert row.log_density.mean == pytest.approx(float(rows[name].mean()), rel=1e-9)
        assert row.difference.mean == pytest.approx(float(gap.mean()), abs=1e-9)
        assert row.difference.standard_error == pytest.approx(float(gap.std()) / math.sqrt(len(y)), rel=1e-6, abs=1e-12)
    assert found.stacking == pytest.approx(stacking_weights(rows), abs=1e-4)
    low, high = posteriors["draws"].predict(x).interval(0.9)
    inside = ((y >= low) & (y <= high)).double().mean()
    assert found.rows["draws"].calibration.mean == pytest.approx(float(inside))
    assert found.rows["draws"].seconds == 12.5
    said = str(found)
    assert "log-density a row" in said
    assert "in 90%" in said
    assert len(said.splitlines()) == 4


def test_compare_by_leave_one_out():
    problem, posteriors = candidates()
    two = {name: posteriors[name] for name in ("draws", "narrow")}
    found = bnn.compare(two, (problem.x, problem.y), by="loo")
    for name, posterior in two.items():
        alone = loo(posterior, problem.x, problem.y)
        assert found.rows[name].log_density.mean * len(problem.y) == pytest.approx(alone.elpd)
        assert found.rows[name].bad == alone.bad
    assert "bad k" in str(found)


def test_compare_names_the_posterior_that_does_not_fit(quick, model, regression):
    problem, posteriors = candidates()
    with pytest.raises(ValueError, match="no posterior"):
        bnn.compare({}, regression)
    with pytest.raises(ValueError, match="other: "):
        bnn.compare({"other": quick(model, regression, bnn.MAP(epochs=1))}, (problem.x, problem.y[:5]))
    with pytest.raises(ValueError, match="by is"):
        bnn.compare(posteriors, regression, by="guess")


# Mixtures.


def check_stack() -> None:
    """Weights that are multiples of 1 / draws: the mixture is then exact, moments and densities alike."""
    problem, posteriors = candidates()
    x, y = held_out(problem, 5, rows=20)
    parts = {name: posteriors[name] for name in ("draws", "wrong")}
    weights = {"draws": 0.75, "wrong": 0.25}
    few = {
        "draws": parts["draws"],
        "wrong": posterior_of(problem.model, Draws({"weight": parts["wrong"].draws(5)["weight"][None]})),
    }
    found = bnn.stack(few, weights).predict(x, draws=1600)
    assert found.num_draws == 1600
    alone = {"draws": few["draws"].predict(x), "wrong": few["wrong"].predict(x)}
    mean = sum(weights[name] * p.mean for name, p in alone.items())
    density_ = sum(weights[name] * p.log_prob(y).exp() for name, p in alone.items())
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.log_prob(y), density_.log())
    second = sum(weights[name] * (p.variance.total + p.mean**2) for name, p in alone.items())
    torch.testing.assert_close(found.variance.total, second - mean**2)


def test_a_stack_is_the_weighted_mixture():
    check_stack()


def test_control_a_stack_that_forgets_the_weights(patch_line):
    stacking = importlib.import_module("bnn.analysis.stacking")
    patch_line(stacking.Stack, "counts", "weight * draws for name", "draws / len(self.weights) for name")
    with pytest.raises(AssertionError):
        check_stack()


def test_counts_are_off_by_less_than_one_draw():
    _, posteriors = candidates()
    stack = bnn.stack(posteriors, {"wrong": 0.001, "draws": 0.6666, "narrow": 0.3324})
    for draws in (1, 7, 100, 1000):
        counts = stack.counts(draws)
        assert sum(counts.values()) == draws
        assert all(abs(counts[name] - weight * draws) < 1 for name, weight in stack.weights.items())
    assert stack.predict(linear_regression().x, draws=7).num_draws == 7


def test_what_cannot_be_stacked_is_told_in_words(quick, regression):
    _, posteriors = candidates()
    with pytest.raises(ValueError, match="add up to 1"):
        bnn.stack(posteriors, {"wrong": 0.5, "draws": 0.2, "narrow": 0.2})
    with pytest.raises(ValueError, match="weights are for"):
        bnn.stack(posteriors, {"wrong": 1.0})
    net = torch.nn.Linear(3, 1)
    fits = {
        str(one): quick(bnn.BNN(net, bnn.priors.Normal(1.0), one), regression, bnn.MAP(epochs=1))
        for one in (bnn.likelihoods.Gaussian(0.1), bnn.likelihoods.StudentT(5.0, 0.1))
    }
    with pytest.raises(ValueError, match="these likelihoods differ"):
        bnn.stack(fits, dict.fromkeys(fits, 0.5))


# Log-likelihoods row by row.


def test_log_likelihoods_in_chunks_are_those_at_once(monkeypatch):
    problem = linear_regression()
    posterior = exact_draws(problem, 0)
    whole = log_likelihood(posterior, problem.x, problem.y)
    f = torch.einsum("ni,sji->sn", problem.x, posterior.draws()["weight"])
    torch.testing.assert_close(whole, Normal(f, NOISE).log_prob(problem.y[:, 0]))
    before = loo(posterior, problem.x, problem.y)
    monkeypatch.setattr(density, "_CHUNK", 4 * 400 * 7)  # seven rows at a time
    torch.testing.assert_close(log_likelihood(posterior, problem.x, problem.y), whole)
    assert loo(posterior, problem.x, problem.y).elpd == pytest.approx(before.elpd, rel=1e-12)
    assert before.rows.sum() == pytest.approx(before.elpd)


def test_every_method_has_log_likelihoods(quick, model, regression):
    for method in (
        bnn.MAP(epochs=1),
        bnn.MeanField(epochs=1),
        bnn.Laplace(of=bnn.MAP(epochs=1)),
        bnn.SVGD(epochs=1, particles=3),
    ):
        found = log_likelihood(quick(model, regression, method), *regression, num=None)
        assert found.shape[1] == 20
        assert found.isfinite().all()
