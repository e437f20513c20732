"""Recalibration on held-out rows, and what chance does to a reliability diagram."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from bnn.analysis import (
    brier,
    calibration,
    expected_calibration_error,
    fit_probability_map,
    fit_quantile_map,
    fit_temperature,
    fit_widening,
    interval_coverage,
    isotonic,
    log_density,
    nll,
    reliability,
)
from bnn.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian
from bnn.prediction import Prediction, Spread
from bnn.random import isolated


def labelled(rows: int, factor: float, seed: int = 0, draws: int = 4) -> tuple[Prediction, torch.Tensor]:
    """Logits that are `factor` times those of the labels' law, under every draw a little other."""
    with isolated(seed):
        logits = torch.randn(rows, 3).double()
        y = torch.distributions.Categorical(logits=logits).sample()
        return Prediction(Categorical(), factor * (logits + 0.01 * torch.randn(draws, rows, 3).double()), {}), y


def numbers(rows: int, factor: float, seed: int = 0) -> tuple[Prediction, torch.Tensor]:
    """Standard deviations that are `factor` times the right ones, half epistemic."""
    with isolated(seed):
        shift = torch.tensor([-1.0, 1.0]).double()
        f = torch.randn(rows).double()
        y = f + shift[torch.randint(2, (rows,))] + torch.randn(rows).double()
    outputs = f + factor * shift.unsqueeze(1)
    return Prediction(Gaussian(), outputs, {"likelihood.scale": torch.full((2,), factor).double()}), y


def test_temperature_is_the_best_one_and_is_found():
    prediction, y = labelled(2000, 3.0)
    found = fit_temperature(prediction, y)
    logits = prediction.outputs.numpy()

    def loss(t: float) -> float:
        scaled = np.exp(logits / t)
        p = (scaled / scaled.sum(-1, keepdims=True)).mean(0)
        return -np.log(p[np.arange(2000), y.numpy()]).mean()

    grid = optimize.brute(lambda t: loss(t[0]), [slice(1, 6, 0.05)], finish=optimize.fmin)
    assert found.temperature == pytest.approx(float(grid[0]), rel=1e-3)
    new, wanted = labelled(2000, 3.0, seed=1)
    applied = found.apply(new)
    assert applied.probs.numpy() == pytest.approx((new.outputs / found.temperature).softmax(-1).mean(0).numpy())
    assert nll(applied, wanted).mean < nll(new, wanted).mean - 0.1
    assert expected_calibration_error(applied, wanted).mean < 0.3 * expected_calibration_error(new, wanted).mean


def test_temperature_of_yes_or_no():
    with isolated(3):
        logits = torch.randn(1, 4000).double()
        y = (torch.rand(4000) < logits[0].sigmoid()).double()
    found = fit_temperature(Prediction(Bernoulli(), 2 * logits, {}), y)
    assert found.temperature == pytest.approx(2, rel=0.2)  # its standard error is about 4 %


def test_widening_finds_the_factor_and_keeps_the_shape():
    prediction, y = numbers(4000, 0.5)
    found = fit_widening(prediction, y)
    assert found.factor == pytest.approx(2, rel=0.06)  # five standard errors, 1 / sqrt(2 n) each
    new, wanted = numbers(4000, 0.5, seed=1)
    wide = found.apply(new)
    assert wide.mean.numpy() == pytest.approx(new.mean.numpy(), abs=1e-9)
    for part in ("total", "epistemic", "aleatoric"):
        before, after = (getattr(one.variance, part).numpy() for one in (new, wide))
        assert after == pytest.approx(found.factor**2 * before, rel=1e-9)
    assert interval_coverage(wide, wanted).mean == pytest.approx(0.9, abs=5 * math.sqrt(0.09 / 4000) + 0.01)
    assert interval_coverage(new, wanted).mean < 0.8
    stretched = new.mean + found.factor * (new.quantile(0.8) - new.mean)
    assert wide.quantile(0.8).numpy() == pytest.approx(stretched.numpy(), rel=1e-6)


def test_control_noise_left_as_it_was_is_refused(patch_line):
    prediction, y = numbers(200, 0.5)
    patch_line(calibration.Widening, "apply", "self.factor * scale", "scale")
    with pytest.raises(AttributeError, match="can be widened"):
        fit_widening(prediction, y)


def test_widening_of_a_closed_form_prediction():
    outputs, covariance = torch.zeros(1, 3).double(), torch.full((1, 3, 1, 1), 4.0).double()
    spread = Spread(covariance, lambda num: 2 * torch.randn(num, 3).double())
    prediction = Prediction(Gaussian(), outputs, {"likelihood.scale": torch.ones(1).double()}, spread)
    wide = calibration.Widening(3.0).apply(prediction)
    assert wide.std.tolist() == pytest.approx([3 * math.sqrt(5)] * 3)
    drawn = wide.sample(4000)
    assert drawn.std().item() == pytest.approx(3 * math.sqrt(5), rel=5 / math.sqrt(2 * 12000))


def test_what_cannot_be_widened_or_tempered_says_so():
    prediction, _ = numbers(5, 1.0)
    with pytest.raises(AttributeError, match="a temperature divides logits"):
        calibration.Temperature(2.0).apply(prediction)
    classes, y = labelled(5, 1.0)
    with pytest.raises(AttributeError, match="can be widened"):
        calibration.Widening(2.0).apply(classes)
    other = Prediction(HeteroscedasticGaussian(), torch.zeros(2, 5, 2), {})
    with pytest.raises(AttributeError, match="can be widened"):
        calibration.Widening(2.0).apply(other)
    sure = Prediction(Categorical(), 3 * torch.eye(3)[y].unsqueeze(0), {})
    with pytest.raises(ValueError, match="no temperature between"):
        fit_temperature(sure, y)


def test_isotonic_quantiles_are_right_on_other_rows():
    held_out, new = numbers(4000, 0.5), numbers(4000, 0.5, seed=1)
    made = fit_quantile_map(*held_out).apply(new[0])
    low, high = made.interval(0.8)
    inside = ((new[1] >= low) & (new[1] <= high)).double().mean().item()
    assert inside == pytest.approx(0.8, abs=5 * math.sqrt(2 * 0.16 / 4000))
    assert interval_coverage(new[0], new[1], 0.8).mean < 0.65
    assert made.quantile(0.5).shape == (4000,)
    assert (made.quantile([0.2, 0.6]).diff(dim=0) >= 0).all()
    narrow = fit_quantile_map(numbers(30, 0.5)[0], numbers(30, 0.5)[1])
    assert narrow.apply(new[0]).quantile([0.001, 0.999]).isfinite().all()


def test_isotonic_quantiles_are_the_empirical_distribution_of_the_pit():
    """Of a single Gaussian, with a formula of its own: the quantile of y is that of the level that was exceeded."""
    with isolated(4):
        y = 2 * torch.randn(99).double()
    prediction = Prediction(Gaussian(), torch.zeros(1, 99).double(), {"likelihood.scale": torch.ones(1).double()})
    made = fit_quantile_map(prediction, y).apply(prediction)
    for rank in (10, 50, 90):
        assert made.quantile(rank / 100)[0].item() == pytest.approx(y.sort().values[rank - 1].item(), abs=1e-5)


def test_isotonic_probabilities_mend_what_temperature_cannot():
    def bent(rows: int, seed: int) -> tuple[Prediction, torch.Tensor]:
        with isolated(seed):
            p = torch.rand(rows).double()
            y = (torch.rand(rows) < p).double()
        return Prediction(Bernoulli(), p.square().logit().unsqueeze(0), {}), y

    held_out, new = bent(4000, 5), bent(4000, 6)
    mapped = fit_probability_map(*held_out).apply(new[0])
    assert (mapped.probs - new[0].probs.sqrt()).abs().mean() < 0.03
    assert brier(mapped, new[1]).mean < brier(new[0], new[1]).mean - 0.02
    assert log_density(mapped, new[1]).mean > log_density(new[0], new[1]).mean
    classes, y = labelled(1500, 3.0)
    other, wanted = labelled(1500, 3.0, seed=1)
    again = fit_probability_map(classes, y).apply(other)
    assert again.probs.sum(-1).numpy() == pytest.approx(np.ones(1500), abs=1e-6)
    assert nll(again, wanted).mean < nll(other, wanted).mean - 0.1
    assert math.isfinite(nll(again, wanted).mean)


def test_control_a_map_that_is_not_applied_is_seen(patch_line):
    patch_line(isotonic.ProbabilityMap, "apply", "one.predict(column)", "column")
    held_out, new = labelled(500, 3.0), labelled(500, 3.0, seed=1)
    assert nll(fit_probability_map(*held_out).apply(new[0]), new[1]).mean > nll(new[0], new[1]).mean - 0.1


def test_consistency_bands_are_binomial_where_confidence_is_equal():
    """All rows at 0.7: quantiles of a binomial, with the Monte Carlo error of 1,000 data sets."""
    prediction = Prediction(Bernoulli(), torch.full((1, 60), math.log(0.7 / 0.3)).double(), {})
    found = reliability(prediction, torch.ones(60), level=0.9)
    there = found.bins.counts > 0
    low, high = (end[there].item() * 60 for end in (found.low, found.high))
    assert low == pytest.approx(stats.binom.ppf(0.05, 60, 0.7), abs=1)
    assert high == pytest.approx(stats.binom.ppf(0.95, 60, 0.7), abs=1)
    assert found.low[~there].isnan().all()
    mean = stats.binom(60, 0.7).expect(lambda hits: abs(hits / 60 - 0.7))
    assert found.errors.mean().item() == pytest.approx(mean, abs=5 * found.errors.std().item() / math.sqrt(1000))


@pytest.mark.parametrize(("factor", "inside"), [(1.0, True), (3.0, False)])
def test_the_calibration_error_of_a_calibrated_prediction_is_one_that_chance_gives(factor, inside):
    prediction, y = labelled(400, factor, seed=7)
    error = expected_calibration_error(prediction, y).mean
    errors = reliability(prediction, y).errors
    assert (error < errors.quantile(0.999)) == inside
