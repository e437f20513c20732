"""Scores against brute force: loops over rows, draws and bins in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from bnn.analysis import (
    accuracy,
    calibration_bins,
    expected_calibration_error,
    interval_coverage,
    log_density,
    pit,
    rmse,
    top_class,
)
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.prediction import Prediction


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(draws: int = 7, rows: int = 40, outputs: tuple[int, ...] = ()) -> Prediction:
    scale = 0.5 + random(draws, seed=1).abs()
    return Prediction(Gaussian(), random(draws, rows, *outputs), {"likelihood.scale": scale})


def labels(rows: int, classes: int) -> Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(2))


def normal_cdf(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


@pytest.mark.parametrize("outputs", [(), (3,)])
def test_rmse_is_over_rows_and_outputs(outputs):
    prediction, y = gaussian(outputs=outputs), random(40, *outputs, seed=3)
    means = [sum(column) / len(column) for column in prediction.outputs.flatten(1).T.tolist()]
    squares = [(a - b) ** 2 for a, b in zip(means, y.flatten().tolist(), strict=True)]
    assert rmse(prediction, y) == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=1e-12)


def test_log_density_is_the_log_of_the_mean_density():
    prediction, y = gaussian(), random(40, seed=3)
    scales = prediction.latents["likelihood.scale"].tolist()
    rows = []
    for i, target in enumerate(y.tolist()):
        densities = [
            math.exp(-0.5 * ((target - f) / s) ** 2) / (s * math.sqrt(2 * math.pi))
            for f, s in zip(prediction.outputs[:, i].tolist(), scales, strict=True)
        ]
        rows.append(math.log(sum(densities) / len(densities)))
    mean = sum(rows) / 40
    error = math.sqrt(sum((row - mean) ** 2 for row in rows) / 39 / 40)
    assert log_density(prediction, y) == pytest.approx((mean, error), rel=1e-10)
    assert f"{log_density(prediction, y):.2f}" == f"{mean:.2f} ± {error:.2f}"
    assert math.isnan(log_density(gaussian(rows=1), y[:1]).standard_error)


@pytest.mark.parametrize("outputs", [(), (2,)])
def test_pit_and_coverage_agree_with_the_mixture_s_distribution_function(outputs):
    prediction, y = gaussian(outputs=outputs), random(40, *outputs, seed=3)
    scales = prediction.latents["likelihood.scale"].tolist()
    flat = prediction.outputs.flatten(1)
    expected = [
        sum(normal_cdf((t - f) / s) for f, s in zip(flat[:, i].tolist(), scales, strict=True)) / len(scales)
        for i, t in enumerate(y.flatten().tolist())
    ]
    assert pit(prediction, y).shape == y.shape
    assert pit(prediction, y).flatten().tolist() == pytest.approx(expected, abs=1e-12)
    for level in (0.3, 0.9):
        inside = [(1 - level) / 2 <= value <= (1 + level) / 2 for value in expected]
        assert interval_coverage(prediction, y, level) == pytest.approx(sum(inside) / len(inside), abs=1e-12)


@pytest.mark.parametrize(("factor", "covers"), [(1.0, True), (0.5, False)])
def test_coverage_of_targets_from_the_prediction_itself(factor, covers):
    """Within five binomial standard errors of the level; the control states half of the noise and falls outside."""
    rows, level = 4000, 0.9
    f, generator = random(5, 1).expand(5, rows), torch.Generator().manual_seed(4)
    chosen = f[torch.randint(5, (rows,), generator=generator), torch.arange(rows)]
    y = chosen + random(rows, seed=5)
    stated = Prediction(Gaussian(), f, {"likelihood.scale": torch.full((5,), factor, dtype=torch.float64)})
    error = math.sqrt(level * (1 - level) / rows)
    assert (abs(interval_coverage(stated, y, level) - level) < 5 * error) is covers


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def brute_calibration(confidence: list[float], right: list[bool], bins: int) -> float:
    error = 0.0
    for i in range(bins):
        inside = [j for j, c in enumerate(confidence) if i / bins < c <= (i + 1) / bins]
        if inside:
            gap = sum(right[j] for j in inside) / len(inside) - sum(confidence[j] for j in inside) / len(inside)
            error += abs(gap) * len(inside) / len(confidence)
    return error


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_accuracy_and_calibration_error_of_classes(bins):
    prediction, y = Prediction(Categorical(), 2 * random(6, 50, 4), {}), labels(50, 4)
    probs = []
    for i in range(50):
        by_draw = [softmax(prediction.outputs[s, i].tolist()) for s in range(6)]
        probs.append([sum(column) / 6 for column in zip(*by_draw, strict=True)])
    predicted = [row.index(max(row)) for row in probs]
    right = [a == b for a, b in zip(predicted, y.tolist(), strict=True)]
    assert accuracy(prediction, y) == pytest.approx(sum(right) / 50)
    expected = brute_calibration([max(row) for row in probs], right, bins)
    assert expected_calibration_error(prediction, y, bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("outputs", [(), (2,)])
def test_accuracy_and_calibration_error_of_yes_or_no(outputs):
    prediction = Prediction(Bernoulli(), 2 * random(6, 50, *outputs), {})
    y = (random(50, *outputs, seed=6) > 0).double()
    p = (1 / (1 + (-prediction.outputs).exp())).mean(0).flatten().tolist()
    right = [(value > 0.5) == (target == 1) for value, target in zip(p, y.flatten().tolist(), strict=True)]
    assert accuracy(prediction, y) == pytest.approx(sum(right) / len(right))
    expected = brute_calibration([max(value, 1 - value) for value in p], right, 10)
    assert expected_calibration_error(prediction, y) == pytest.approx(expected, abs=1e-12)
    assert top_class(prediction)[0].shape == y.shape


def test_calibration_error_of_known_cases():
    """Four rows at confidence 3/4, three of them right: no error. All wrong: an error of 3/4."""
    logit = math.log(3.0)
    prediction = Prediction(Bernoulli(), torch.full((1, 4), logit, dtype=torch.float64), {})
    assert expected_calibration_error(prediction, torch.tensor([1.0, 1, 1, 0])) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(prediction, torch.zeros(4)) == pytest.approx(0.75, abs=1e-12)


def test_calibration_bins_count_every_row_once():
    prediction, y = Prediction(Categorical(), 3 * random(3, 60, 3), {}), labels(60, 3)
    table = calibration_bins(prediction, y, bins=5)
    assert table.counts.sum() == 60
    assert table.edges.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    empty = table.counts == 0
    assert empty[0]  # the largest of three probabilities is above 1/3
    assert table.accuracy[empty].isnan().all()
    inside = (table.confidence > table.edges[:-1]) & (table.confidence <= table.edges[1:])
    assert inside[~empty].all()


def test_scores_that_do_not_apply_name_the_likelihood():
    with pytest.raises(AttributeError, match="Gaussian has no probs"):
        accuracy(gaussian(), torch.zeros(40))
    prediction = Prediction(Categorical(), random(2, 5, 3), {})
    with pytest.raises(AttributeError, match="Categorical has no mean"):
        rmse(prediction, labels(5, 3))
    with pytest.raises(AttributeError, match="Categorical"):
        pit(prediction, labels(5, 3))


def test_bad_targets_are_told_in_words():
    with pytest.raises(ValueError, match=r"\(40, 1\)"):
        rmse(gaussian(), torch.zeros(40, 1))
    with pytest.raises(ValueError, match="NaN or infinite"):
        interval_coverage(gaussian(), torch.full((40,), math.nan))
    with pytest.raises(ValueError, match="bins is at least 1"):
        calibration_bins(Prediction(Categorical(), random(2, 5, 3), {}), labels(5, 3), bins=0)
