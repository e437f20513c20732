"""Scores and their kin for targets of every kind: pixels, intervals, missing ones, laws without moments."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import bnn
from bnn import analysis
from bnn import likelihoods as family
from bnn.prediction import Prediction, Spread


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pixels() -> tuple[Prediction, torch.Tensor, Prediction, torch.Tensor]:
    """Labels of 2 x 5 pixels a row, and the same labels as rows of their own."""
    outputs = random(4, 30, 3, 2, 5)  # (s, n, k, height, width)
    y = torch.randint(0, 3, (30, 2, 5), generator=torch.Generator().manual_seed(1))
    flat = outputs.movedim(2, -1).flatten(1, 3)
    return Prediction(family.Categorical(), outputs, {}), y, Prediction(family.Categorical(), flat, {}), y.flatten()


def test_scores_of_pixels_are_those_of_as_many_rows():
    image, y, rows, labels = pixels()
    found, expected = analysis.scores(image, y), analysis.scores(rows, labels)
    for name in set(expected) - {"log_density", "nll"}:  # these two are of a row's pixels together
        assert found[name].mean == pytest.approx(expected[name].mean, rel=1e-9), name
        assert found[name].rows.shape == (30,), name
    parts = zip(analysis.brier_decomposition(image, y), analysis.brier_decomposition(rows, labels), strict=True)
    for one, other in parts:
        assert one.mean == pytest.approx(other.mean, rel=1e-9)
    distances = (analysis.distance(image, image), analysis.distance(image, Prediction(*_moved(image))))
    assert (distances[0].agreement, distances[0].total_variation) == (1, 0)
    assert distances[1].agreement < 1
    for name, value in analysis.unusualness(image).items():
        expected_rows = analysis.unusualness(rows)[name].reshape(30, -1).mean(1)
        torch.testing.assert_close(value, expected_rows, msg=name)
    with pytest.raises(ValueError, match="one label a row"):
        analysis.split_sets(image, y)


def _moved(prediction: Prediction):
    return prediction.likelihood, prediction.outputs.flip(2), prediction.latents


def test_distances_of_several_labels_are_means_over_them():
    one, two = (Prediction(family.Bernoulli(), random(4, 6, 2, seed=s), {}) for s in (0, 1))
    found = analysis.distance(one, two)
    gap = one.probs - two.probs
    assert found.total_variation == pytest.approx(float(gap.abs().mean()))
    assert found.agreement == pytest.approx(float(((one.probs > 0.5) == (two.probs > 0.5)).double().mean()))


def test_censored_targets_that_are_known_are_scored_as_numbers():
    latents = {"likelihood.scale": torch.full((5,), 0.7).double()}
    outputs, y = random(5, 8), random(8, seed=1)
    plain = Prediction(family.Gaussian(), outputs, latents)
    censored = Prediction(family.Censored(family.Gaussian()), outputs, latents)
    ends = torch.stack([y, y], -1)
    expected = analysis.scores(plain, y)
    for name, found in analysis.scores(censored, ends).items():
        assert found.mean == pytest.approx(expected[name].mean, rel=1e-9), name
    ends[2, 1] = math.inf
    with pytest.raises(ValueError, match="an interval in 1 of 8 rows"):
        analysis.crps(censored, ends)
    above = torch.distributions.Normal(outputs[:, 2], 0.7).cdf(y[2]).neg().add(1).mean().log()
    assert float(analysis.log_density(censored, ends).rows[2]) == pytest.approx(float(above))


def test_rows_of_which_nothing_is_known_are_no_perfect_predictions():
    prediction = Prediction(
        family.Gaussian(missing="mask"), random(5, 6, 2), {"likelihood.scale": torch.ones(5).double()}
    )
    y = random(6, 2, seed=1)
    y[1, 0] = math.nan
    assert analysis.log_density(prediction, y).mean < 0
    y[0] = math.nan
    with pytest.raises(ValueError, match="missing in 1 of 6 rows as a whole"):
        analysis.log_density(prediction, y)


@pytest.mark.parametrize("df", [1.0, 2.0])
def test_residuals_of_a_law_without_variance_have_no_unit(df):
    latents = {"likelihood.df": torch.full((4,), df).double(), "likelihood.scale": torch.ones(4).double()}
    prediction = Prediction(family.StudentT(), random(4, 20, 1), latents)
    with pytest.raises(ValueError, match="finite mean"):
        analysis.split_intervals(prediction, random(20, 1))
    if df > 1:
        low, high = analysis.split_intervals(prediction, random(20, 1), "absolute").interval(prediction, 0.8)
        assert bool((low < high).all())


def test_a_unit_that_does_not_exist_is_told_before_any_fit():
    def refit(x, y):
        raise AssertionError("fitted")

    with pytest.raises(ValueError, match="unit is one of"):
        analysis.cv_plus(refit, random(10, 1), random(10, 1), unit="scaled")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quantile_map_of_targets_far_outside_asks_for_levels_that_exist(dtype):
    """Ten standard deviations out, the transform of y is 0 or 1 in single precision."""
    outputs = 0.1 * random(20, 50, 1).to(dtype)
    prediction = Prediction(family.Gaussian(), outputs, {"likelihood.scale": torch.full((20,), 0.1, dtype=dtype)})
    y = 3 * random(50, 1, seed=1).to(dtype)
    mended = analysis.fit_quantile_map(prediction, y).apply(prediction)
    before, after = (high - low for low, high in (prediction.interval(0.9), mended.interval(0.9)))
    assert bool(after.isfinite().all())
    assert bool((after > 2 * before).all())
    low, high = mended.interval(0.9999999)
    assert bool((low < high).all())


def test_an_average_without_draws_tells_nothing_of_the_weights():
    """Its single component is no draw: as one, the mutual information would be 0 everywhere."""
    prediction = Prediction(
        family.Gaussian(),
        torch.zeros(1, 6, 1),
        {"likelihood.scale": torch.full((1,), 0.5)},
        Spread(torch.rand(1, 6, 1, 1), lambda num: torch.randn(num, 6, 1)),
    )
    with pytest.raises(ValueError, match="draws=200"):
        analysis.bald(prediction)


def test_replicates_some_at_a_time_are_as_good(monkeypatch):
    import importlib

    module = importlib.import_module("bnn.analysis.coverage")
    prediction = Prediction(family.Gaussian(), random(50, 40), {"likelihood.scale": torch.full((50,), 0.3).double()})
    y = prediction.sample(1, seed=3)[0]
    whole = analysis.surprise(prediction, y)
    monkeypatch.setattr(module, "_CHUNK", 40 * 300)
    parts = analysis.surprise(prediction, y)
    assert parts.value == whole.value
    assert parts.p_value == pytest.approx(whole.p_value, abs=4 * math.sqrt(2 * 0.25 / 2000))
    assert parts.expected == pytest.approx(whole.expected, abs=0.02)


def test_families_that_differ_inside_cannot_be_stacked():
    def posterior(likelihood):
        return SimpleNamespace(model=SimpleNamespace(likelihood=likelihood))

    def stacked(*pair):
        return analysis.stack(dict(zip("ab", map(posterior, pair), strict=True)), {"a": 0.5, "b": 0.5})

    normal, heavy = family.Gaussian(0.1), family.Laplace()
    for pair in (
        (family.Censored(normal), family.Censored(heavy)),
        (family.Truncated(normal, low=0.0), family.Truncated(normal, low=1.0)),
        (family.Ordinal(3), family.Ordinal(4)),
    ):
        with pytest.raises(ValueError, match="these likelihoods differ"):
            stacked(*pair)
    stacked(
        family.Censored(normal), family.Censored(family.Gaussian())
    )  # unknowns may differ: they come with the draws


def test_log_likelihoods_of_uncertain_inputs_are_averaged_over_them_everywhere(quick):
    model = bnn.BNN(nn.Sequential(nn.Linear(2, 1)), bnn.priors.Normal(1.0), family.Gaussian(0.3), input_noise=0.5)
    x, y = random(12, 2).float(), random(12, 1, seed=1).float()
    posterior = quick(model, (x, y), bnn.MeanField(epochs=2))
    tree = analysis.to_arviz(posterior, x, y, num=10)["log_likelihood"]["y"].values[0]
    np.testing.assert_allclose(analysis.log_likelihood(posterior, x, y, num=10).numpy(), tree, rtol=1e-5)
