"""Predictive distributions: each field against the mixture it stands for, worked out by brute force with scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from scipy import integrate, optimize, special, stats
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bnn
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.prediction import Prediction
from bnn.random import isolated

F64 = torch.float64
S, ROWS = 7, 5  # draws and rows: with 7 draws the mixtures are far from Gaussian


def gaussian_prediction(outputs_shape=(S, ROWS)):
    """Outputs that spread widely against the noise, and another noise scale under each draw."""
    outputs = 2 * torch.randn(outputs_shape, dtype=F64)
    scale = torch.linspace(0.2, 0.9, S, dtype=F64)
    return Prediction(Gaussian(), outputs, {"likelihood.scale": scale})


def mixture(prediction, row, output=None):
    """scipy's distributions of one target under each draw: one array of s locations and scales."""
    locs = prediction.outputs[:, row] if output is None else prediction.outputs[:, row, output]
    return stats.norm(locs.numpy(), prediction.latents["likelihood.scale"].numpy())


def cells(prediction):
    """Every single target: its index, and the mixture there."""
    if prediction.outputs.dim() == 2:
        return [((row,), mixture(prediction, row)) for row in range(ROWS)]
    k = prediction.outputs.shape[2]
    return [((row, j), mixture(prediction, row, j)) for row in range(ROWS) for j in range(k)]


SHAPES = pytest.mark.parametrize("shape", [(S, ROWS), (S, ROWS, 1), (S, ROWS, 3)], ids=str)


def check_moments(prediction):
    """Against integrals over y of the mean density of the draws."""
    for index, law in cells(prediction):
        y = np.linspace(law.mean().min() - 10, law.mean().max() + 10, 20_001)  # 11 noise scales beyond every draw
        density = law.pdf(y[:, None]).mean(1)
        mean = integrate.trapezoid(y * density, y)
        variance = integrate.trapezoid((y - mean) ** 2 * density, y)
        assert prediction.mean[index].item() == pytest.approx(mean, abs=1e-9)
        assert prediction.variance.total[index].item() == pytest.approx(variance, rel=1e-9)
        assert prediction.std[index].item() == pytest.approx(math.sqrt(variance), rel=1e-9)


@SHAPES
def test_moments_are_those_of_the_mixture(shape):
    check_moments(gaussian_prediction(shape))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self._over_draws(quantiles.variance(fn)).mean(0)", "0 * self._over_draws(quantiles.variance(fn)).mean(0)"),
        (".var(0, correction=0)", ".var(0)"),
        ("quantiles.variance(fn)", "fn.stddev"),
    ],
    ids=["noise left out", "sample variance", "standard deviation for variance"],
)
def test_control_moments(old, new, patch_line):
    patch_line(Prediction, "variance", old, new)
    with pytest.raises(AssertionError):
        check_moments(gaussian_prediction())


@SHAPES
def test_decomposition_of_variance(shape):
    """Known by construction: epistemic from the means alone, aleatoric from the noise alone."""
    prediction = gaussian_prediction(shape)
    total, epistemic, aleatoric = prediction.variance
    torch.testing.assert_close(total, epistemic + aleatoric)
    expected = (prediction.latents["likelihood.scale"] ** 2).mean()
    torch.testing.assert_close(aleatoric, expected.expand(shape[1:]))
    np.testing.assert_allclose(epistemic, np.var(prediction.outputs.numpy(), axis=0), rtol=1e-12)


def test_certain_weights_have_no_epistemic_part():
    outputs = torch.randn(1, ROWS, dtype=F64).expand(S, ROWS)
    prediction = Prediction(Gaussian(), outputs, {"likelihood.scale": torch.full((S,), 0.3, dtype=F64)})
    assert float(prediction.variance.epistemic.max()) < 1e-30
    logits = torch.randn(1, ROWS, 4, dtype=F64).expand(S, ROWS, 4)
    assert float(Prediction(Categorical(), logits, {}).entropy.epistemic.max()) < 1e-12


def check_quantiles(prediction):
    """Against the root of the mixture's distribution function."""
    levels = [0.05, 0.5, 0.9]
    found = prediction.quantile(levels)
    for index, law in cells(prediction):
        for level, q in zip(levels, found, strict=True):
            root = optimize.brentq(lambda y, law=law, level=level: law.cdf(y).mean() - level, -50, 50, xtol=1e-13)
            assert q[index].item() == pytest.approx(root, abs=1e-9)


@SHAPES
def test_quantiles_are_those_of_the_mixture(shape):
    check_quantiles(gaussian_prediction(shape))


def test_control_quantiles(patch_line):
    """The mean of the draws' quantiles is no quantile of their mixture."""
    patch_line(
        Prediction,
        "_quantile",
        "low, high = ends[0].reshape(shape).min(0).values, ends[1].reshape(shape).max(0).values",
        "low = high = ends[0].reshape(shape).mean(0)",
    )
    with pytest.raises(AssertionError):
        check_quantiles(gaussian_prediction())


def test_shapes_of_quantiles():
    prediction = gaussian_prediction((S, ROWS, 3))
    assert prediction.quantile(0.5).shape == (ROWS, 3)
    assert prediction.quantile([0.5]).shape == (1, ROWS, 3)
    assert prediction.quantile(torch.tensor([[0.1, 0.2]])).shape == (1, 2, ROWS, 3)
    assert torch.equal(prediction.quantile([0.1, 0.5])[1], prediction.quantile(0.5))


@SHAPES
def test_intervals_hold_their_probability_between_equal_tails(shape):
    prediction = gaussian_prediction(shape)
    low, high = prediction.interval(0.8)
    assert low.shape == high.shape == shape[1:]
    for index, law in cells(prediction):
        assert law.cdf(low[index].item()).mean() == pytest.approx(0.1, abs=1e-9)
        assert law.cdf(high[index].item()).mean() == pytest.approx(0.9, abs=1e-9)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 90, math.nan])
def test_levels_are_shares(level):
    prediction = gaussian_prediction()
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        prediction.interval(level)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        prediction.quantile([0.5, level])


def check_log_prob(prediction, y):
    """log of the mean over draws of the product over outputs."""
    density = [
        np.prod([law.pdf(y[index].item()) for index, law in cells(prediction) if index[0] == row], axis=0).mean()
        for row in range(ROWS)
    ]
    np.testing.assert_allclose(prediction.log_prob(y), np.log(density), rtol=1e-10)


@SHAPES
def test_log_prob_is_that_of_the_mixture(shape):
    check_log_prob(gaussian_prediction(shape), torch.randn(shape[1:], dtype=F64))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".logsumexp(0) - math.log(self.num_draws)", ".mean(0)"),
        (" - math.log(self.num_draws)", ""),
    ],
    ids=["mean of logs", "sum of densities"],
)
def test_control_log_prob(old, new, patch_line):
    patch_line(Prediction, "log_prob", old, new)
    with pytest.raises(AssertionError):
        check_log_prob(gaussian_prediction(), torch.randn(ROWS, dtype=F64))


def test_log_prob_far_from_every_draw_is_finite():
    """100 noise scales away densities underflow in float64; the nearest draw decides, less log s."""
    prediction = Prediction(
        Gaussian(), torch.tensor([[0.0], [1.0]], dtype=F64), {"likelihood.scale": torch.full((2,), 0.1, dtype=F64)}
    )
    expected = stats.norm.logpdf(11.0, 1.0, 0.1) - math.log(2)
    assert prediction.log_prob([11.0]).item() == pytest.approx(expected, rel=1e-12)


def test_log_prob_of_several_outputs_joins_them_before_the_mean():
    """Two draws, each sure of both outputs: the joint density is not the product of the outputs' mixtures."""
    outputs = torch.tensor([[[0.0, 0.0]], [[9.0, 9.0]]], dtype=F64)
    prediction = Prediction(Gaussian(), outputs, {"likelihood.scale": torch.ones(2, dtype=F64)})
    both, crossed = (prediction.log_prob([[0.0, b]]).item() for b in (0.0, 9.0))
    assert both == pytest.approx(2 * stats.norm.logpdf(0) - math.log(2))
    assert crossed == pytest.approx(stats.norm.logpdf(0) + stats.norm.logpdf(9), abs=1e-9)  # twice, halved


def test_scale_an_output():
    outputs, scale = torch.randn(S, ROWS, 2, dtype=F64), torch.rand(S, 2, dtype=F64) + 0.1
    prediction = Prediction(Gaussian(dist.HalfCauchy(torch.ones(2))), outputs, {"likelihood.scale": scale})
    np.testing.assert_allclose(prediction.variance.aleatoric[0], (scale**2).mean(0), rtol=1e-12)
    y = torch.randn(ROWS, 2, dtype=F64)
    expected = stats.norm.logpdf(y.numpy(), outputs.numpy(), scale.numpy()[:, None]).sum(2)
    np.testing.assert_allclose(prediction.log_prob_draws(y), expected, rtol=1e-10)


# -------------------------------------------------------------------------------------------------------------- classes


def test_classes_against_direct_sums():
    logits = 2 * torch.randn(S, ROWS, 4, dtype=F64)
    prediction, p = Prediction(Categorical(), logits, {}), special.softmax(logits.numpy(), axis=2)
    mean = p.mean(0)
    np.testing.assert_allclose(prediction.probs, mean, rtol=1e-12)
    total, expected = -(mean * np.log(mean)).sum(1), -(p * np.log(p)).sum(2).mean(0)
    np.testing.assert_allclose(prediction.entropy.total, total, rtol=1e-10)
    np.testing.assert_allclose(prediction.entropy.aleatoric, expected, rtol=1e-10)
    # Mutual information, as a divergence: the mean over draws of KL(p_s || mean).
    information = (p * np.log(p / mean)).sum(2).mean(0)
    np.testing.assert_allclose(prediction.entropy.epistemic, information, rtol=1e-8)
    y = torch.tensor([0, 1, 2, 3, 0])
    np.testing.assert_allclose(prediction.log_prob(y), np.log(mean[np.arange(ROWS), y]), rtol=1e-10)


@pytest.mark.parametrize("shape", [(S, ROWS), (S, ROWS, 3)], ids=str)
def test_yes_or_no_against_direct_sums(shape):
    logits = 2 * torch.randn(shape, dtype=F64)
    prediction, p = Prediction(Bernoulli(), logits, {}), special.expit(logits.numpy())
    mean = p.mean(0)
    np.testing.assert_allclose(prediction.probs, mean, rtol=1e-12)
    np.testing.assert_allclose(prediction.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(prediction.variance.total, mean * (1 - mean), rtol=1e-10)
    np.testing.assert_allclose(prediction.variance.aleatoric, (p * (1 - p)).mean(0), rtol=1e-10)
    np.testing.assert_allclose(prediction.entropy.total, special.entr(mean) + special.entr(1 - mean), rtol=1e-10)
    aleatoric = (special.entr(p) + special.entr(1 - p)).mean(0)
    np.testing.assert_allclose(prediction.entropy.aleatoric, aleatoric, rtol=1e-10)
    information = special.entr(mean) + special.entr(1 - mean) - aleatoric
    np.testing.assert_allclose(prediction.entropy.epistemic, information, rtol=1e-8)
    y = (torch.randn(shape[1:]) > 0).double()
    joint = np.where(y.numpy() == 1, p, 1 - p).reshape(S, ROWS, -1).prod(2).mean(0)
    np.testing.assert_allclose(prediction.log_prob(y), np.log(joint), rtol=1e-10)


def test_information_is_complete_where_sure_draws_disagree():
    """Four draws, each sure of another class: log 4 nats, all of it epistemic."""
    prediction = Prediction(Categorical(), 1000 * torch.eye(4, dtype=F64)[:, None], {})
    assert prediction.entropy.epistemic.item() == pytest.approx(math.log(4), rel=1e-9)
    assert prediction.entropy.aleatoric.item() == pytest.approx(0, abs=1e-9)


FIELDS = {
    Gaussian(): {"probs", "entropy"},
    Categorical(): {"mean", "variance", "std", "quantile", "interval"},
    Bernoulli(): {"quantile", "interval"},
}


@pytest.mark.parametrize("likelihood", FIELDS, ids=repr)
def test_fields_that_do_not_apply_name_the_likelihood(likelihood):
    prediction = Prediction(likelihood, torch.randn(S, ROWS, 2), {"likelihood.scale": torch.ones(S)})
    for field in FIELDS[likelihood]:
        with pytest.raises(
            AttributeError, match=f"under {type(likelihood).__name__} has no {field}: it has .*log_prob"
        ):
            getattr(prediction, field)(0.5) if field in ("quantile", "interval") else getattr(prediction, field)


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (torch.zeros(ROWS, 1), ValueError, r"y has shape \(5, 1\) but the network gives \(5,\)"),
        (torch.zeros(4), ValueError, r"y has shape \(4,\) but the network gives \(5,\)"),
        ([0, 1, math.nan, 0, math.inf], ValueError, "y has NaN or infinite values in 2 of 5 rows: 2, 4"),
        (["a"] * 5, TypeError, "y cannot be read as numbers: it holds text, as 'a'.*BayesianClassifier"),
    ],
)
def test_targets_that_do_not_fit(y, error, words):
    with pytest.raises(error, match=words):
        gaussian_prediction().log_prob(y)


def test_labels_that_do_not_fit():
    prediction = Prediction(Categorical(), torch.randn(S, ROWS, 4), {})
    with pytest.raises(ValueError, match=r"0..3.*row 1 with label 4"):
        prediction.log_prob(torch.tensor([0, 4, 0, 0, 0]))
    with pytest.raises(TypeError, match=r"y has dtype torch.float32: y.long\(\)"):
        prediction.log_prob(torch.zeros(ROWS))


# ------------------------------------------------------------------------------------------------------------- sampling


def check_joint(seed=0):
    """Covariance of y over two rows: that of the outputs over draws, since the noise of two rows is independent.

    Every draw of the weights is used equally often (num is a multiple of s), so that only the noise e is random:
    (d1 + e1)(d2 + e2) has variance E[d1^2] v + E[d2^2] v + v^2 around d1 d2, for noise of variance v.
    """
    outputs = torch.linspace(-2, 2, S, dtype=F64)[:, None] * torch.tensor([1.0, -0.7], dtype=F64) + 3
    noise, num = 0.5, S * 3000
    prediction = Prediction(Gaussian(noise), outputs, {"likelihood.scale": torch.full((S,), noise, dtype=F64)})
    deviations = outputs - outputs.mean(0)
    y = prediction.sample(num, seed=seed) - outputs.mean(0)
    variances = deviations.square().mean(0) * noise**2
    error = math.sqrt(float(variances.sum() + noise**4) / num)
    theory = float((deviations[:, 0] * deviations[:, 1]).mean())
    assert abs(theory) > 10 * error  # the check can tell
    assert abs(float((y[:, 0] * y[:, 1]).mean()) - theory) < 4 * error


def test_samples_are_joint_over_rows():
    check_joint()


def test_control_joint(patch_line):
    """Other weights for every row: each row by itself is still right."""
    patch_line(
        Prediction,
        "sample",
        "self.distribution(draws=chosen).sample()",
        "torch.cat([self.distribution(slice(i, i + 1), chosen[torch.randperm(num)]).sample()[:, None]"
        " for i in range(self.num_rows)], 1).flatten()",
    )
    with pytest.raises(AssertionError):
        check_joint()


def check_law_of_samples():
    """Kolmogorov-Smirnov against the mixture, at one row; strata (equal use of all draws) only bring it closer."""
    prediction = gaussian_prediction()
    law = mixture(prediction, 2)
    y = prediction.sample(S * 1000)[:, 2].numpy()
    assert stats.kstest(y, lambda v: law.cdf(v[:, None]).mean(1)).pvalue > 1e-4


def test_samples_follow_the_mixture():
    check_law_of_samples()


def test_control_law_of_samples(patch_line):
    patch_line(Gaussian, "distribution", 'latents["likelihood.scale"]', '0.5 * latents["likelihood.scale"]')
    with pytest.raises(AssertionError):
        check_law_of_samples()


def test_samples_use_every_draw_equally():
    outputs = torch.arange(S, dtype=F64)[:, None]
    prediction = Prediction(Gaussian(1e-9), outputs, {"likelihood.scale": torch.full((S,), 1e-9, dtype=F64)})
    assert prediction.sample(S).round().flatten().sort().values.tolist() == list(range(S))
    assert len(set(prediction.sample(3).round().flatten().tolist())) == 3


@pytest.mark.parametrize("likelihood", [Gaussian(), Categorical(), Bernoulli()], ids=repr)
def test_shapes_and_seeds_of_samples(likelihood):
    prediction = Prediction(likelihood, torch.randn(S, ROWS, 2), {"likelihood.scale": torch.ones(S)})
    shape = (9, ROWS) if isinstance(likelihood, Categorical) else (9, ROWS, 2)
    before = torch.get_rng_state()
    y = prediction.sample(9, seed=3)
    assert y.shape == shape
    assert torch.equal(y, prediction.sample(9, seed=3))
    assert not torch.equal(y, prediction.sample(9, seed=4))
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="at least once, not 0 times"):
        prediction.sample(0)


def check_noise_is_new():
    """Weights and noise from the same seed share no random numbers: no correlation at any shift between the two.

    Over the 2m shifts, correlations of m independent pairs are below 6.5 / sqrt(m) but with probability 2m * 8e-11.
    """
    size = 64
    with isolated(0):
        weights = torch.cat([torch.randn(size) for _ in range(200)])
    noise = Prediction(Gaussian(1.0), torch.zeros(200, 64), {"likelihood.scale": torch.ones(200)}).sample(200, seed=0)
    a, b = (v - v.mean() for v in (weights.numpy(), noise.flatten().numpy()))
    m = len(a)
    shifted = np.fft.irfft(np.fft.rfft(a, 2 * m) * np.fft.rfft(b, 2 * m).conj()) / m
    assert np.abs(shifted).max() < 6.5 / math.sqrt(m)


def test_noise_does_not_repeat_the_numbers_of_the_weights():
    check_noise_is_new()


def test_control_noise(patch_line):
    patch_line(Prediction, "sample", 'other_seed(seed, "noise")', "seed")
    with pytest.raises(AssertionError):
        check_noise_is_new()


# ------------------------------------------------------------------------------------------------------ chunks, loaders


@pytest.fixture
def posterior(model, regression, quick):
    return quick(model, regression, bnn.MeanField(epochs=2))


@pytest.mark.parametrize("at_once", [1, 2, 7, 100])
def test_results_do_not_depend_on_the_chunk_size(at_once, posterior, regression):
    x, _ = regression
    expected = posterior.predict(x, draws=13).outputs
    torch.testing.assert_close(posterior.predict(x, draws=13, at_once=at_once).outputs, expected)


def test_no_chunk_is_smaller_than_one(posterior, regression):
    with pytest.raises(ValueError, match="at_once is at least 1, not 0"):
        posterior.predict(regression[0], at_once=0)


def test_fields_do_not_depend_on_the_chunk_size(monkeypatch):
    prediction, y = gaussian_prediction((S, ROWS, 2)), torch.randn(ROWS, 2, dtype=F64)
    whole = prediction.quantile([0.1, 0.9]), prediction.log_prob(y), prediction.log_prob_draws(y)
    monkeypatch.setattr("bnn.prediction._CHUNK", S * 2 * 2)  # two rows at a time
    in_parts = prediction.quantile([0.1, 0.9]), prediction.log_prob(y), prediction.log_prob_draws(y)
    for a, b in zip(whole, in_parts, strict=True):
        assert torch.equal(a, b)


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


FORMS = {
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=6),
    "loader without targets": lambda x, y: DataLoader(TensorDataset(x), batch_size=6),
    "loader of bare rows": lambda x, y: DataLoader(list(x), batch_size=6),
    "TensorDataset": TensorDataset,
    "Dataset": Rows,
    "generator": lambda x, y: (part for part in x.split(6)),
    "array": lambda x, y: x.numpy(),
    "float64 array": lambda x, y: x.double().numpy(),
    "read-only array": lambda x, y: np.broadcast_to(x.numpy(), x.shape),
    "lists": lambda x, y: x.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_inputs_gives_the_same(form, posterior, regression):
    expected = posterior.predict(regression[0], draws=5).outputs
    torch.testing.assert_close(posterior.predict(FORMS[form](*regression), draws=5).outputs, expected)


def test_a_loader_that_shuffles_is_refused(posterior, regression):
    """Its rows would not be those of anybody's y."""
    with pytest.raises(ValueError, match=r"DataLoader that shuffles.*Give shuffle=False"):
        posterior.predict(DataLoader(TensorDataset(*regression), shuffle=True))


def test_data_frames_are_arrays(posterior, regression):
    pandas = pytest.importorskip("pandas")
    x, _ = regression
    torch.testing.assert_close(posterior.predict(pandas.DataFrame(x.numpy())).outputs, posterior.predict(x).outputs)


@pytest.mark.parametrize("with_targets", [True, False])
def test_loaders_of_several_inputs(with_targets, quick):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, a, b):
            return self.layer(a + b)

    a, b, y = torch.randn(9, 2), torch.randn(9, 2), torch.randn(9, 1)
    posterior = quick(bnn.BNN(Sum(), bnn.priors.Normal(1.0), Gaussian()), ((a, b), y), bnn.MAP(epochs=1))
    loader = DataLoader(TensorDataset(*((a, b, y) if with_targets else (a, b))), batch_size=4)
    torch.testing.assert_close(posterior.predict(loader).outputs, posterior.predict((a, b)).outputs)
    with pytest.raises(ValueError, match=r"x\[0\] has shape \(9, 2\), x\[1\] has shape \(8, 2\)"):
        posterior.predict((a, b[:8]))


def test_loaders_stream(posterior, regression, monkeypatch):
    """Batch by batch: each goes through the network before the next is asked for."""
    events = []

    def batches():
        for part in regression[0].split(5):
            events.append("batch")
            yield part

    forward = bnn.posterior.forward_over_draws
    monkeypatch.setattr("bnn.posterior.forward_over_draws", lambda *args: (events.append("forward"), forward(*args))[1])
    posterior.predict(batches())
    assert events == ["batch", "forward"] * 4
