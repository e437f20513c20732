"""Scores against brute force, second libraries and quadrature; standard errors against repeated data."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from scipy import integrate, special, stats
from torch import Tensor

from bnn import analysis
from bnn.analysis import (
    Estimate,
    accuracy,
    brier,
    brier_decomposition,
    calibration_bins,
    classification,
    classwise_calibration_error,
    coverage_by_level,
    crps,
    estimate,
    expected_calibration_error,
    interval_coverage,
    interval_score,
    log_density,
    mae,
    mixture_crps,
    nll,
    paired,
    pit,
    regression,
    rmse,
    scores,
    sharpness,
    top_class,
)
from bnn.likelihoods import Bernoulli, Categorical, Censored, Gaussian, Likelihood
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
    assert rmse(prediction, y).mean == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=1e-12)


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
    found = log_density(prediction, y)
    assert (found.mean, found.standard_error) == pytest.approx((mean, error), rel=1e-10)
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
        share = sum(inside) / len(inside)
        assert interval_coverage(prediction, y, level).mean == pytest.approx(share, abs=1e-12)
        assert coverage_by_level(prediction, y, [level])[level].mean == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(("factor", "covers"), [(1.0, True), (0.5, False)])
def test_coverage_of_targets_from_the_prediction_itself(factor, covers):
    """Within five binomial standard errors of the level; the control states half of the noise and falls outside."""
    rows, level = 4000, 0.9
    f, generator = random(5, 1).expand(5, rows), torch.Generator().manual_seed(4)
    chosen = f[torch.randint(5, (rows,), generator=generator), torch.arange(rows)]
    y = chosen + random(rows, seed=5)
    stated = Prediction(Gaussian(), f, {"likelihood.scale": torch.full((5,), factor, dtype=torch.float64)})
    error = math.sqrt(level * (1 - level) / rows)
    assert (abs(interval_coverage(stated, y, level).mean - level) < 5 * error) is covers


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
    assert accuracy(prediction, y).mean == pytest.approx(sum(right) / 50)
    expected = brute_calibration([max(row) for row in probs], right, bins)
    assert expected_calibration_error(prediction, y, bins).mean == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("outputs", [(), (2,)])
def test_accuracy_and_calibration_error_of_yes_or_no(outputs):
    prediction = Prediction(Bernoulli(), 2 * random(6, 50, *outputs), {})
    y = (random(50, *outputs, seed=6) > 0).double()
    p = (1 / (1 + (-prediction.outputs).exp())).mean(0).flatten().tolist()
    right = [(value > 0.5) == (target == 1) for value, target in zip(p, y.flatten().tolist(), strict=True)]
    assert accuracy(prediction, y).mean == pytest.approx(sum(right) / len(right))
    expected = brute_calibration([max(value, 1 - value) for value in p], right, 10)
    assert expected_calibration_error(prediction, y).mean == pytest.approx(expected, abs=1e-12)
    assert top_class(prediction)[0].shape == y.shape


def test_calibration_error_of_known_cases():
    """Four rows at confidence 3/4, three of them right: no error. All wrong: an error of 3/4."""
    logit = math.log(3.0)
    prediction = Prediction(Bernoulli(), torch.full((1, 4), logit, dtype=torch.float64), {})
    assert expected_calibration_error(prediction, torch.tensor([1.0, 1, 1, 0])).mean == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(prediction, torch.zeros(4)).mean == pytest.approx(0.75, abs=1e-12)


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


# ------------------------------------------------------------------------------------------------- numbers: mixtures


class Counts(Likelihood):
    """Binomial counts, to have a discrete y with a distribution function."""

    fields = frozenset({"mean", "variance", "quantile"})

    def distribution(self, outputs, latents):
        return CountsLaw(10, logits=outputs)

    def check(self, outputs, y):
        assert y.shape == outputs.shape


class CountsLaw(dist.Binomial):
    def cdf(self, value):
        return torch.from_numpy(stats.binom.cdf(value.numpy(), 10, self.probs.numpy()))

    def icdf(self, value):
        return torch.from_numpy(stats.binom.ppf(value.numpy(), 10, self.probs.numpy()))


class Heavy(Likelihood):
    """Student's t noise with 5 degrees of freedom."""

    fields = frozenset({"mean", "variance", "quantile"})

    def distribution(self, outputs, latents):
        return HeavyLaw(5.0, outputs, 1.0)

    def check(self, outputs, y):
        assert y.shape == outputs.shape


class HeavyLaw(dist.StudentT):
    def cdf(self, value):
        return torch.from_numpy(stats.t.cdf((value - self.loc).numpy(), 5))

    def icdf(self, value):
        return self.loc + torch.from_numpy(stats.t.ppf(value.numpy(), 5))


def mixture_of(prediction: Prediction, row: int) -> Callable[[float], float]:
    """The distribution function of one row, by scipy."""
    loc, scale = prediction.outputs[:, row].numpy(), prediction.latents["likelihood.scale"].numpy()
    return lambda t: float(stats.norm.cdf(t, loc, scale).mean())


def crps_by_quadrature(cdf: Callable[[float], float], y: float) -> float:
    """The integral of (F(t) - [t >= y])^2: another formula than the one in use."""
    below, _ = integrate.quad(lambda t: cdf(t) ** 2, -30, y, epsabs=1e-11, limit=200)
    above, _ = integrate.quad(lambda t: (1 - cdf(t)) ** 2, y, 30, epsabs=1e-11, limit=200)
    return below + above


def test_crps_is_that_of_the_mixture():
    prediction, y = gaussian(rows=6), random(6, seed=3)
    expected = [crps_by_quadrature(mixture_of(prediction, i), t) for i, t in enumerate(y.tolist())]
    found = crps(prediction, y)
    assert found.rows.tolist() == pytest.approx(expected, abs=1e-9)
    assert found.mean == pytest.approx(sum(expected) / 6, abs=1e-9)


def test_crps_of_one_fitted_gaussian_would_be_seen():
    prediction, y = gaussian(rows=6), random(6, seed=3)
    one = [
        crps_by_quadrature(stats.norm(m, s).cdf, t)
        for m, s, t in zip(prediction.mean.tolist(), prediction.std.tolist(), y.tolist(), strict=True)
    ]
    assert crps(prediction, y).rows.tolist() != pytest.approx(one, abs=1e-3)


@pytest.mark.parametrize(
    ("old", "new"),
    [("2 * between + own", "between + own"), ("scale[i].square() + scale[j].square()", "scale[i].square()")],
)
def test_control_a_wrong_term_of_crps_is_seen(patch_line, old, new):
    prediction, y = gaussian(rows=2), random(2, seed=3)
    patch_line(mixture_crps, "gaussian_mixture_crps", old, new)
    expected = [crps_by_quadrature(mixture_of(prediction, i), t) for i, t in enumerate(y.tolist())]
    assert crps(prediction, y).rows.tolist() != pytest.approx(expected, abs=1e-3)


def test_crps_of_gaussians_agrees_with_scoringrules_in_chunks_too(monkeypatch):
    scoringrules = pytest.importorskip("scoringrules", reason="scoringrules is not installed")
    prediction, y = gaussian(draws=30, outputs=(2,)), random(40, 2, seed=3)
    scale = prediction.latents["likelihood.scale"].reshape(30, 1, 1).expand(30, 40, 2)
    expected = scoringrules.crps_mixnorm(
        y.numpy(), prediction.outputs.permute(1, 2, 0).numpy(), scale.permute(1, 2, 0).numpy(), m_axis=-1
    )
    monkeypatch.setattr(mixture_crps, "_CHUNK", 10_000)
    assert crps(prediction, y).rows.numpy() == pytest.approx(expected.mean(-1), rel=1e-9)


def test_crps_by_draws_is_scoringrules_fair_form_and_agrees_with_quadrature():
    """Within five standard errors over seeds; the control leaves out the half of the second term."""
    drawn, y = random(50, 8, seed=2), random(8, seed=3)
    pairs = (drawn.unsqueeze(0) - drawn.unsqueeze(1)).abs().sum((0, 1)) / (50 * 49)
    brute = (drawn - y).abs().mean(0) - pairs / 2
    assert mixture_crps.sample_crps(drawn, y).tolist() == pytest.approx(brute.tolist(), rel=1e-12)
    prediction, y = Prediction(Heavy(), random(7, 3), {}), random(3, seed=3)
    loc = prediction.outputs.numpy()
    expected = np.array(
        [
            crps_by_quadrature(lambda v, i=i: float(stats.t.cdf(v - loc[:, i], 5).mean()), t)
            for i, t in enumerate(y.tolist())
        ]
    )
    found = np.stack([crps(prediction, y, num=700, seed=seed).rows.numpy() for seed in range(40)])
    error = found.std(0, ddof=1) / math.sqrt(40)
    assert (np.abs(found.mean(0) - expected) < 5 * error).all()
    assert (np.abs(found.mean(0) - 0.9 * expected) > 5 * error).all()


def test_fair_form_agrees_with_scoringrules():
    scoringrules = pytest.importorskip("scoringrules", reason="scoringrules is not installed")
    drawn, y = random(50, 8, seed=2), random(8, seed=3)
    expected = scoringrules.crps_ensemble(y.numpy(), drawn.T.numpy(), estimator="fair")
    assert mixture_crps.sample_crps(drawn, y).numpy() == pytest.approx(expected, rel=1e-9)


def test_crps_of_counts_is_the_ranked_probability_score():
    prediction, y = Prediction(Counts(), random(5, 4), {}), torch.tensor([0.0, 3, 5, 10], dtype=torch.float64)
    grid = np.arange(11)
    cdf = stats.binom.cdf(grid[:, None, None], 10, special.expit(prediction.outputs.numpy())).mean(1)
    expected = ((cdf - (grid[:, None] >= y.numpy())) ** 2).sum(0)
    found = np.stack([crps(prediction, y, num=1000, seed=seed).rows.numpy() for seed in range(20)])
    error = found.std(0, ddof=1) / math.sqrt(20)
    assert (np.abs(found.mean(0) - expected) < 5 * error + 1e-12).all()


@pytest.mark.parametrize("outputs", [(), (3,)])
def test_mae_interval_score_and_sharpness(outputs):
    prediction, y = gaussian(outputs=outputs), random(40, *outputs, seed=3)
    low, high = (end.flatten().tolist() for end in prediction.interval(0.8))
    flat = y.flatten().tolist()
    expected = [
        (b - a) + (10 * (a - t) if t < a else 0) + (10 * (t - b) if t > b else 0)
        for a, b, t in zip(low, high, flat, strict=True)
    ]
    assert interval_score(prediction, y, 0.8).mean == pytest.approx(sum(expected) / len(expected), rel=1e-10)
    widths = [b - a for a, b in zip(low, high, strict=True)]
    assert sharpness(prediction, 0.8).mean == pytest.approx(sum(widths) / len(widths), rel=1e-10)
    errors = [abs(a - b) for a, b in zip(prediction.mean.flatten().tolist(), flat, strict=True)]
    assert mae(prediction, y).mean == pytest.approx(sum(errors) / len(errors), rel=1e-12)


def test_interval_score_agrees_with_scoringrules():
    scoringrules = pytest.importorskip("scoringrules", reason="scoringrules is not installed")
    prediction, y = gaussian(), random(40, seed=3)
    low, high = (end.numpy() for end in prediction.interval(0.7))
    expected = scoringrules.interval_score(y.numpy(), low, high, 0.3)
    assert interval_score(prediction, y, 0.7).rows.numpy() == pytest.approx(expected, rel=1e-9)


def test_rmse_and_mae_agree_with_scikit_learn():
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error

    prediction, y = gaussian(), random(40, seed=3)
    assert rmse(prediction, y).mean == pytest.approx(root_mean_squared_error(y, prediction.mean), rel=1e-12)
    assert mae(prediction, y).mean == pytest.approx(mean_absolute_error(y, prediction.mean), rel=1e-12)


def uniform_p_value(values: Tensor) -> float:
    return stats.kstest(values.numpy(), "uniform").pvalue


def test_pit_of_counts_is_randomised_and_uniform(patch_line):
    """Of 4,000 counts drawn from the prediction; without the random place it is not uniform."""
    prediction = Prediction(Counts(), random(5, 1).expand(5, 4000), {})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        chosen = prediction.outputs[torch.randint(5, (4000,)), torch.arange(4000)]
        y = dist.Binomial(10, logits=chosen).sample()
    assert uniform_p_value(pit(prediction, y)) > 1e-3
    assert pit(prediction, y, seed=1).tolist() != pit(prediction, y).tolist()
    assert abs(coverage_by_level(prediction, y, [0.5])[0.5].mean - 0.5) < 5 * math.sqrt(0.25 / 4000)
    patch_line(regression, "pit", "u * (below", "0 * (below")
    assert uniform_p_value(regression.pit(prediction, y)) < 1e-6


# ------------------------------------------------------------------------------------------------------ probabilities


def test_brier_agrees_with_scikit_learn():
    from sklearn.metrics import brier_score_loss

    prediction, y = Prediction(Categorical(), 2 * random(6, 50, 4), {}), labels(50, 4)
    expected = brier_score_loss(y.numpy(), prediction.probs.numpy(), labels=[0, 1, 2, 3], scale_by_half=False)
    assert brier(prediction, y).mean == pytest.approx(expected, rel=1e-12)
    two, yes = Prediction(Bernoulli(), 2 * random(6, 50), {}), (random(50, seed=6) > 0).double()
    assert brier(two, yes).mean == pytest.approx(brier_score_loss(yes.numpy(), two.probs.numpy()), rel=1e-12)


def brute_decomposition(p: list[float], events: list[float], bins: int) -> tuple[float, float, float]:
    n, overall = len(p), sum(events) / len(p)
    reliability = resolution = 0.0
    for i in range(bins):
        inside = [j for j, value in enumerate(p) if i / bins < value <= (i + 1) / bins]
        if inside:
            said, often = sum(p[j] for j in inside) / len(inside), sum(events[j] for j in inside) / len(inside)
            reliability += len(inside) / n * (said - often) ** 2
            resolution += len(inside) / n * (often - overall) ** 2
    return reliability, resolution, overall * (1 - overall)


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_brier_is_taken_apart(bins):
    prediction, y = Prediction(Categorical(), 2 * random(6, 50, 4), {}), labels(50, 4)
    sums = np.sum(
        [brute_decomposition(prediction.probs[:, k].tolist(), (y == k).double().tolist(), bins) for k in range(4)],
        axis=0,
    )
    found = brier_decomposition(prediction, y, bins)
    assert [part.mean for part in found[1:4]] == pytest.approx(sums.tolist(), abs=1e-12)
    total = found.reliability.mean - found.resolution.mean + found.uncertainty.mean + found.within.mean
    assert total == pytest.approx(found.score.mean, abs=1e-12)
    assert found.score.mean == pytest.approx(brier(prediction, y).mean, abs=1e-12)


def test_nothing_is_within_bins_where_probabilities_are_equal():
    """Murphy's three terms suffice for a forecast of few values."""
    p = torch.tensor([0.1, 0.3, 0.8], dtype=torch.float64)[torch.arange(60) % 3]
    y = (random(60, seed=4) > 0).double()
    found = brier_decomposition(Prediction(Bernoulli(), p.logit().unsqueeze(0), {}), y)
    assert found.within.mean == pytest.approx(0, abs=1e-12)


def test_calibration_error_agrees_with_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    prediction, y = Prediction(Categorical(), 2 * random(6, 200, 4), {}), labels(200, 4)
    expected = torchmetrics.functional.classification.multiclass_calibration_error(
        prediction.probs, y, num_classes=4, n_bins=12, norm="l1"
    )
    assert expected_calibration_error(prediction, y, 12).mean == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_classwise_error_agrees_with_scikit_learn_s_curve(binning):
    """Class by class; with 200 rows in 8 bins every quantile is a datum or between two, and no row is on an edge."""
    from sklearn.calibration import calibration_curve

    prediction, y = Prediction(Categorical(), 2 * random(6, 201, 3), {}), labels(201, 3)
    strategy = {"width": "uniform", "mass": "quantile"}[binning]
    errors = []
    for k in range(3):
        p, event = prediction.probs[:, k].numpy(), (y == k).numpy()
        often, said = calibration_curve(event, p, n_bins=8, strategy=strategy)
        edges = np.linspace(0, 1, 9) if binning == "width" else np.percentile(p, np.linspace(0, 100, 9))
        counts = np.bincount(np.searchsorted(edges[1:-1], p), minlength=8)
        errors.append((np.abs(often - said) * counts[counts > 0]).sum() / 201)
    found = classwise_calibration_error(prediction, y, 8, binning)
    assert found.mean == pytest.approx(np.mean(errors), abs=1e-12)


def test_bins_of_equal_mass():
    prediction, y = Prediction(Categorical(), 2 * random(6, 60, 4), {}), labels(60, 4)
    table = calibration_bins(prediction, y, 6, "mass")
    assert table.counts.tolist() == pytest.approx([10] * 6, abs=1)
    error = (table.counts * (table.accuracy - table.confidence).abs()).sum() / 60
    assert expected_calibration_error(prediction, y, 6, "mass").mean == pytest.approx(error.item(), abs=1e-12)
    same = Prediction(Categorical(), random(1, 1, 4).expand(1, 60, 4), {})
    assert calibration_bins(same, y, 6, "mass").counts.tolist() == [60]
    order = torch.randperm(60)
    moved = Prediction(Categorical(), prediction.outputs[:, order], {})
    again = expected_calibration_error(moved, y[order], 6, "mass").mean
    assert again == pytest.approx(error.item(), abs=1e-12)


def test_nll_is_the_cross_entropy():
    from sklearn.metrics import log_loss

    prediction, y = Prediction(Categorical(), 2 * random(6, 50, 4), {}), labels(50, 4)
    assert nll(prediction, y).mean == pytest.approx(log_loss(y, prediction.probs, labels=range(4)), rel=1e-9)


# --------------------------------------------------------------------------------------------------- standard errors


def regression_set(seed: int, rows: int = 400) -> tuple[Prediction, Prediction, Tensor]:
    """Two predictions of the same targets, the second shifted, and the targets."""
    f = random(5, rows, seed=2 * seed)
    scale = torch.ones(5, dtype=torch.float64)
    y = f[0] + 1.2 * random(rows, seed=2 * seed + 1)
    return (
        Prediction(Gaussian(), f, {"likelihood.scale": scale}),
        Prediction(Gaussian(), f + 0.3, {"likelihood.scale": scale}),
        y,
    )


def class_set(seed: int, rows: int = 400) -> tuple[Prediction, Prediction, Tensor]:
    logits = 1.5 * random(1, rows, 3, seed=2 * seed)
    gumbel = -(-torch.rand(rows, 3, generator=torch.Generator().manual_seed(seed)).double().log()).log()
    first, second = (Prediction(Categorical(), factor * logits, {}) for factor in (4, 6))
    return first, second, (logits[0] + gumbel).argmax(-1)


# A bin whose gap is near 0 is taken for one that lies surely on its side: too large a standard error, by the folding of
# a normal at 0. At most by 1 / sqrt(1 - 2 / pi) = 1 / 0.6.
FOLDED = {"ece": 1 / 0.6, "classwise": 1 / 0.6}

CASES = {
    "rmse": (regression_set, rmse),
    "mae": (regression_set, mae),
    "crps": (regression_set, crps),
    "interval_score": (regression_set, interval_score),
    "coverage": (regression_set, interval_coverage),
    "log_density": (regression_set, log_density),
    "accuracy": (class_set, accuracy),
    "brier": (class_set, brier),
    "ece": (class_set, lambda p, y: expected_calibration_error(p, y, 3)),
    "classwise": (class_set, lambda p, y: classwise_calibration_error(p, y, 3)),
    "reliability": (class_set, lambda p, y: brier_decomposition(p, y, 4).reliability),
    "resolution": (class_set, lambda p, y: brier_decomposition(p, y, 4).resolution),
}


@pytest.mark.parametrize("name", CASES)
def test_standard_errors_are_those_over_repeated_data(name):
    """Over `count` data sets, whose standard deviation has a relative error of ``1 / sqrt(2 count - 2)``."""
    make, score = CASES[name]
    count = 60 if name in ("interval_score", "coverage") else 150
    sets = [make(seed) for seed in range(count)]
    for pick in (lambda a, b, y: score(a, y), lambda a, b, y: paired(score(b, y), score(a, y))):
        found = [pick(*each) for each in sets]
        spread = np.std([one.mean for one in found], ddof=1)
        told = np.sqrt(np.mean([one.standard_error**2 for one in found]))
        if spread > 1e-12:  # accuracy does not know of temperatures: both models are equally right
            band = 4 / math.sqrt(2 * count - 2)
            assert 1 - band < told / spread < FOLDED.get(name, 1) + band


@pytest.mark.parametrize("name", CASES)
def test_contributions_of_rows_have_the_score_as_their_mean(name):
    make, score = CASES[name]
    prediction, _, y = make(0)
    found = score(prediction, y)
    assert found.rows.shape == (400,)
    assert found.rows.mean().item() == pytest.approx(found.mean, abs=1e-12)
    assert found.standard_error == pytest.approx(found.rows.std().item() / 20, rel=1e-9)


def test_control_contributions_without_the_root_s_slope_have_another_spread(patch_line):
    patch_line(regression, "rmse", "(2 * root)", "root")
    found = [regression.rmse(prediction, y) for prediction, _, y in map(regression_set, range(150))]
    spread = np.std([one.mean for one in found], ddof=1)
    assert np.mean([one.standard_error for one in found]) / spread > 1.5


def test_a_paired_difference_drops_what_both_models_share():
    first, second, y = regression_set(0)
    a, b = crps(first, y), crps(second, y)
    difference = paired(a, b)
    assert difference.mean == pytest.approx(a.mean - b.mean, abs=1e-12)
    assert difference.standard_error < 0.5 * math.hypot(a.standard_error, b.standard_error)
    with pytest.raises(ValueError, match="one score has 400, the other 3"):
        paired(a, estimate(torch.ones(3)))


# ---------------------------------------------------------------------------------------------------------- the table


def test_the_table_has_what_applies():
    prediction, _, y = regression_set(0, 60)
    names = {"log_density", "rmse", "mae", "crps", "interval_score", "coverage", "sharpness"}
    assert set(scores(prediction, y)) == names
    classes, _, wanted = class_set(0, 60)
    names = {"log_density", "nll", "accuracy", "brier", "ece", "ece_mass", "ece_classwise", "ece_adaptive", "entropy"}
    assert set(scores(classes, wanted)) == names
    assert all(isinstance(value, Estimate) for value in scores(classes, wanted).values())
    assert scores(prediction, y, level=0.5)["coverage"].mean == interval_coverage(prediction, y, 0.5).mean
    several = Prediction(Bernoulli(), random(6, 50, 2), {})
    assert scores(several, (random(50, 2, seed=6) > 0).double())["brier"].rows.shape == (50,)
    assert set(scores(Prediction(Counts(), random(5, 4), {}), torch.ones(4))) >= {"crps", "coverage", "rmse"}


def test_float32_predictions_are_scored_alike():
    prediction, _, y = regression_set(0, 60)
    single = Prediction(Gaussian(), prediction.outputs.float(), {k: v.float() for k, v in prediction.latents.items()})
    for name, value in scores(prediction, y).items():
        assert scores(single, y.float())[name].mean == pytest.approx(value.mean, rel=1e-4), name


def test_scores_leave_the_random_state_alone():
    before = torch.get_rng_state()
    prediction = Prediction(Counts(), random(5, 4), {})
    scores(prediction, torch.ones(4))
    pit(prediction, torch.ones(4))
    assert torch.equal(before, torch.get_rng_state())


def test_targets_that_are_not_the_quantity_itself_are_told_in_words():
    prediction = Prediction(Gaussian(0.5, missing="mask"), random(2, 5), {"likelihood.scale": torch.ones(2).double()})
    with pytest.raises(ValueError, match="y is missing in 2 of 5 rows"):
        crps(prediction, torch.tensor([0.0, math.nan, 1, math.nan, 2]))
    ends = Prediction(Censored(Gaussian(0.5)), random(2, 5), {"likelihood.scale": torch.ones(2).double()})
    with pytest.raises(ValueError, match="an interval in 5 of 5 rows"):
        rmse(ends, torch.tensor([0.0, 1.0]).expand(5, 2))


def test_control_a_bin_s_sign_matters(patch_line):
    prediction, y = Prediction(Categorical(), 2 * random(6, 50, 4), {}), labels(50, 4)
    before = expected_calibration_error(prediction, y).mean
    patch_line(classification, "_signed_gaps", ".sign()[which]", ".abs().sign()[which]")
    assert analysis.expected_calibration_error(prediction, y).mean < before - 0.01
