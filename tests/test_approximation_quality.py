"""k-hat, width, calibration by simulation, the guard of the loss, distances: against closed forms and brute force."""

import importlib
import math

import numpy as np
import pytest
import torch
from linear import NOISE, PRIOR, linear_regression
from test_convergence import exact_gaussian, layout_of, posterior_of
from torch import nn
from torch.distributions import HalfCauchy, MultivariateNormal, Normal

import bnn
from bnn import approximations
from bnn.analysis import (
    check_history,
    check_loss,
    diagnose,
    distance,
    layer_spread,
    psis,
    sbc,
    sliced_wasserstein,
    width,
)
from bnn.analysis import surprise as surprise_of
from bnn.analysis.density import log_q, rows_of, whitened
from bnn.approximations.blocks import Dense, Diagonal, Kronecker
from bnn.inference import Method
from bnn.prediction import Prediction

density = importlib.import_module("bnn.analysis.density")
objective = importlib.import_module("bnn.inference.objective")
model_module = importlib.import_module("bnn.model")
mean_field = importlib.import_module("bnn.inference.mean_field")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def small() -> bnn.BNN:
    """Six weights and a noise scale, in doubles."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1, bias=False)).double()
    return bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())


# Densities.


def covariance(draw, size: int) -> torch.Tensor:
    """Of a linear map of standard noise, from its action on unit vectors."""
    root = draw(torch.eye(size, dtype=torch.float64)).mT
    return root @ root.mT


def blocks() -> dict[str, object]:
    orthogonal = [torch.linalg.qr(random(k, k, seed=k))[0] for k in (2, 3)]
    lower = random(6, 6).tril() + 3 * torch.eye(6).double()
    scale = random(2, 3, seed=5).abs() + 0.1
    none = torch.zeros(0, 0).double()
    return {
        "lower": Dense(lower),
        "upper": Dense(lower.mT.contiguous()),
        "diagonal": Diagonal(scale.flatten()),
        "kronecker": Kronecker(*orthogonal, scale),
        "kronecker, one basis": Kronecker(none, orthogonal[1], scale),
    }


@pytest.mark.parametrize("name", blocks())
def test_whitening_undoes_spreading_and_log_q_is_the_normal_density(name, small):
    block = blocks()[name]
    noise = random(4, 6, seed=1)
    torch.testing.assert_close(whitened(block, block.spread(noise)), noise)
    layout = layout_of(small)
    centre = random(layout.size, seed=2)
    where = torch.arange(6)
    q = approximations.LocalGaussian(layout, centre, where, [block], linear=False)
    vectors = centre.repeat(5, 1)
    vectors[:, :6] += random(5, 6, seed=3)
    expected = MultivariateNormal(centre[:6], covariance(block.spread, 6)).log_prob(vectors[:, :6])
    torch.testing.assert_close(log_q(q, vectors), expected)


def test_log_q_of_the_other_kinds(small):
    layout = layout_of(small)
    size = layout.size
    loc, log_scale, deviations = random(size), 0.3 * random(size, seed=1), random(3, size, seed=2)
    vectors = random(5, size, seed=3)
    low = approximations.LowRank(layout, loc, log_scale, random(size, 2, seed=4))
    full = approximations.FullRank(layout, loc, 0.3 * random(size, size, seed=5))
    swag = approximations.Iterates(layout, loc, log_scale.exp(), deviations)
    diagonal = approximations.Gaussian(layout, loc, log_scale)
    expected = {
        low: covariance(lambda n: low.deviation(torch.cat([n, torch.zeros(size, 2).double()], 1)), size)
        + covariance(lambda n: low.deviation(torch.cat([torch.zeros(size, size).double(), n[:, :2]], 1)), size),
        full: covariance(full.deviation, size),
        swag: torch.diag(log_scale.exp() / 2) + deviations.T @ deviations / 4,
        diagonal: torch.diag((2 * log_scale).exp()),
    }
    for q, matrix in expected.items():
        torch.testing.assert_close(log_q(q, vectors), MultivariateNormal(loc, matrix).log_prob(vectors))
    mixture = approximations.Mixture([diagonal, low], {})
    parts = torch.stack([log_q(diagonal, vectors), log_q(low, vectors)])
    torch.testing.assert_close(log_q(mixture, vectors), parts.exp().mean(0).log())
    with pytest.raises(TypeError, match="known by its draws"):
        log_q(approximations.Draws({}), vectors)


def check_log_joint(model: bnn.BNN) -> None:
    """By hand: normal weights, half-Cauchy scale and the Jacobian of its logarithm, Gaussian rows."""
    x, y = random(7, 1, seed=8), random(7, 1, seed=9)
    layout = layout_of(model)
    vectors = random(4, layout.size, seed=10)
    posterior = posterior_of(model, approximations.Gaussian(layout, vectors[0], vectors[0]))
    found = density.log_joint(posterior, vectors, rows_of(posterior, x, y))
    for vector, value in zip(vectors, found, strict=True):
        own = layout.unflatten(vector)
        scale = own.pop("likelihood.scale")
        f = torch.tanh(x @ own["0.weight"].T + own["0.bias"]) @ own["2.weight"].T
        weights = torch.cat([part.flatten() for part in own.values()])
        expected = Normal(0.0, 1.0).log_prob(weights).sum() + HalfCauchy(1.0).log_prob(scale) + scale.log()
        expected = expected + Normal(f, scale).log_prob(y).sum()
        assert float(value) == pytest.approx(float(expected), abs=1e-6)


def test_the_log_joint_has_the_jacobian_of_the_scale(small):
    check_log_joint(small)


def test_control_a_log_joint_without_the_jacobian(small, patch_line):
    patch_line(density, "log_joint", "if not layout.plain:", "if False:")
    with pytest.raises(AssertionError):
        check_log_joint(small)


# k-hat and width.


def test_an_exact_approximation_has_no_tail_and_the_exact_evidence():
    problem = linear_regression()
    found = psis(exact_gaussian(problem), problem.x, problem.y, num=200)
    cover = NOISE**2 * torch.eye(len(problem.x)) + PRIOR**2 * problem.x @ problem.x.T
    evidence = float(MultivariateNormal(torch.zeros(len(cover)).double(), cover).log_prob(problem.y[:, 0]))
    assert found.k == -math.inf
    assert found.good
    assert found.elbo == pytest.approx(evidence, abs=1e-6)


def test_too_narrow_is_seen_by_k_and_too_wide_is_not():
    """p / q of variances 1 and c^2 has the tail 1 - c^2 in one dimension; a wider q has bounded ratios."""
    problem = linear_regression(features=1)
    for factor, low, high in ((0.4, 0.84 - 0.3, 0.84 + 0.3), (2.0, -math.inf, 0.2)):
        ks = [psis(exact_gaussian(problem, factor), problem.x, problem.y, seed=s).k for s in range(4)]
        assert low < np.mean(ks) < high, ks
    assert not psis(exact_gaussian(linear_regression(features=20), 0.5), *_data(20)).good


def _data(features: int):
    problem = linear_regression(features=features)
    return problem.x, problem.y


def check_width(factor: float, expected: float) -> None:
    """Of Gaussians ``N(m, c^2 S)`` against ``N(m, S)`` it is c^2, with the error ``c^2 sqrt(2 / (D draws))``."""
    problem = linear_regression(features=4)
    found = [width(exact_gaussian(problem, factor), problem.x, problem.y, seed=s) for s in range(8)]
    error = factor**2 * math.sqrt(2 / (4 * 200))
    assert all(0.6 * error < one.error < 1.6 * error for one in found)
    assert np.mean([one.value for one in found]) == pytest.approx(expected, abs=4 * error / math.sqrt(8))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_the_width_is_the_ratio_of_variances(factor):
    check_width(factor, factor**2)


def test_control_draws_half_as_wide_as_they_say(patch_line):
    """k-hat sees no more than the density; the width and the calibration see the draws."""
    patch_line(approximations.FullRank, "deviation", "noise @", "0.5 * noise @")
    check_width_is(0.25)
    with pytest.raises(AssertionError):
        check_width(1.0, 1.0)
    problem = linear_regression()
    assert "too_narrow" in diagnose(exact_gaussian(problem), problem.x, problem.y).names


def check_width_is(value: float) -> None:
    problem = linear_regression(features=20)
    assert width(exact_gaussian(problem), problem.x, problem.y).value == pytest.approx(value, abs=0.1)


def test_what_was_made_for_another_target_is_refused(quick, model, regression):
    tempered = quick(model, regression, bnn.MeanField(epochs=1, temperature=0.5))
    with pytest.raises(ValueError, match="temperature"):
        psis(tempered, *regression)
    with pytest.raises(TypeError, match="known by its draws"):
        psis(quick(model, regression, bnn.MAP(epochs=1)), *regression)


# Calibration by simulation.


class Exact(Method):
    """Linear regression solved, as a method."""

    def fit(self, model, data, run):
        x, y = data
        precision = x.T @ x / NOISE**2 + torch.eye(x.shape[1]).double() / PRIOR**2
        mean = torch.linalg.solve(precision, x.T @ y / NOISE**2).squeeze(-1)
        problem = linear_regression()
        return exact_gaussian(type(problem)(model, x, y, mean, precision))


def calibration(simulations: int = 150):
    problem = linear_regression()
    return sbc(problem.model, problem.x[:8], Exact(), simulations, seed=1)


@pytest.fixture(scope="module")
def calibrated():
    return calibration()


def test_the_exact_posterior_is_calibrated(calibrated):
    found = calibrated
    assert found.calibrated, str(found)
    assert found.ranks.shape == (150, 3)
    assert found.counts.sum() == 450
    assert found.extremes == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 150))  # rows of one fit are alike


def test_control_a_posterior_too_narrow_is_not_calibrated(patch_line):
    patch_line(approximations.FullRank, "deviation", "noise @", "0.5 * noise @")
    found = calibration(60)
    assert not found.calibrated
    assert "too narrow" in str(found)


def test_the_chi_square_of_ranks_is_that_of_their_histogram(calibrated):
    from scipy import stats

    found = calibrated
    expected = [stats.chisquare(counts).pvalue for counts in found.counts]
    np.testing.assert_allclose(found.p_values, expected, rtol=1e-9)
    with pytest.raises(ValueError, match="10 at least"):
        sbc(linear_regression().model, linear_regression().x, Exact(), 5)


# The guard of the loss.

METHODS = {"mean field": bnn.MeanField(), "map": bnn.MAP(), "full rank": bnn.FullRank()}


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_the_model_s(name, model, regression):
    found = check_loss(METHODS[name], model, regression)
    assert found.good, str(found)
    assert found.nll_epoch == pytest.approx(found.nll_whole, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_without_n_over_n_is_caught_by_name(name, model, regression, patch_line):
    patch_line(model_module, "_data_plate", 'pyro.plate("data", n_data or n, subsample=rows)', 'pyro.plate("data", n)')
    found = check_loss(METHODS[name], model, regression)
    assert found.flags == ("n_over_batch",)
    assert "N / n is missing" in str(found)


def test_a_kl_term_that_counts_twice_is_caught_by_name(model, regression, patch_line):
    patch_line(mean_field.MeanFieldLoss, "_one", "return Terms(nll, kl)", "return Terms(nll, 2 * kl)")
    found = check_loss(bnn.MeanField(), model, regression)
    assert found.flags == ("kl_weight",)
    assert found.kl_loss / found.kl_model == pytest.approx(2, abs=0.2)


def test_a_loss_with_another_kl_weight_than_it_reports_is_caught(model, regression, patch_line):
    patch_line(objective.Objective, "_evaluate", "total = nll + temperature * kl", "total = nll + 0.1 * kl")
    assert check_loss(bnn.MeanField(), model, regression).flags == ("kl_weight",)


def fitted_in_batches(seed: int = 0):
    problem = linear_regression()
    data = (problem.x, problem.y)
    method = bnn.MeanField(epochs=60, batch_size=16, lr=0.1)
    return bnn.fit(problem.model, data, method, seed=seed, compile="graph", progress=False), data


def test_a_fit_in_batches_is_right_after_the_fact():
    posterior, data = fitted_in_batches()
    found = check_history(posterior, *data)
    assert found is not None
    assert not found.flagged, str(found)
    names = diagnose(posterior, *data).names
    assert not {"n_over_batch", "bound_disagrees"} & set(names)


def test_a_fit_without_n_over_n_is_caught_after_the_fact(patch_line):
    patch_line(model_module, "_data_plate", 'pyro.plate("data", n_data or n, subsample=rows)', 'pyro.plate("data", n)')
    posterior, data = fitted_in_batches()
    names = diagnose(posterior, *data).names
    assert "n_over_batch" in names
    assert "bound_disagrees" in names


# Collapse.


def test_information_is_the_divergence_of_gaussians(small):
    layout = layout_of(small)
    loc, log_scale = 0.7 * random(layout.size), 0.4 * random(layout.size, seed=1) - 1
    found = layer_spread(posterior_of(small, approximations.Gaussian(layout, loc, log_scale)), num=800)
    kl = 0.5 * ((2 * log_scale).exp() + loc**2 - 1) - log_scale
    for name, part in zip(layout.names, kl.split(layout.sizes), strict=True):
        if name in found:
            assert found[name].information == pytest.approx(float(part.mean()), abs=0.15)
    prior = approximations.Gaussian(layout, torch.zeros(layout.size).double(), torch.zeros(layout.size).double())
    assert all(layer.is_prior for layer in layer_spread(posterior_of(small, prior)).values())


# Distances.


def gaussian(mean: float, sd: float, outputs: tuple[int, ...] = (1,)) -> Prediction:
    f = torch.full((1, 3, *outputs), mean).double()
    return Prediction(bnn.likelihoods.Gaussian(), f, {"likelihood.scale": torch.tensor([sd]).double()})


def test_distances_of_gaussians():
    found = distance(gaussian(1.0, 1.0), gaussian(0.0, 1.0))
    assert found.total_variation == pytest.approx(float(2 * Normal(0.0, 1.0).cdf(torch.tensor(0.5)) - 1), abs=1e-3)
    assert found.mean == pytest.approx(1.0)
    assert found.agreement is None
    assert distance(gaussian(0.0, 2.0, ()), gaussian(0.0, 1.0, ())).std == pytest.approx(2.0)
    assert distance(gaussian(0.0, 2.0, (2,)), gaussian(0.0, 1.0, (2,))).total_variation is None


def test_distances_are_those_of_the_study_to_the_last_digit():
    """The formulas as experiments/posterior_fidelity.py had them, on mixtures in single precision."""
    scales = {"likelihood.scale": 0.3 + torch.rand(30)}
    pred = Prediction(bnn.likelihoods.Gaussian(), torch.randn(30, 9, 1), scales)
    truth = Prediction(bnn.likelihoods.Gaussian(), torch.randn(30, 9, 1), {"likelihood.scale": 0.3 + torch.rand(30)})
    width = 6 * torch.maximum(pred.std, truth.std) + (pred.mean - truth.mean).abs()
    grid = truth.mean + width * torch.linspace(-1, 1, 400)

    def densities(one):
        return torch.stack([one.log_prob(grid[:, i, None]).exp() for i in range(400)], dim=1)

    tv = 0.5 * torch.trapezoid((densities(pred) - densities(truth)).abs(), grid, dim=1).mean()
    parts = [
        (p.sqrt() / t.sqrt()).log().mean().exp() for p, t in zip(pred.variance[:2], truth.variance[:2], strict=True)
    ]
    found = distance(pred, truth)
    assert found.total_variation == float(tv)
    assert found.mean == float(((pred.mean - truth.mean) / truth.std).square().mean().sqrt())
    assert (found.std, found.epistemic) == (float(parts[0]), float(parts[1]))


def test_distances_of_labels_and_counts():
    logits = [random(4, 6, 3, seed=s) for s in (0, 1)]
    one, two = (Prediction(bnn.likelihoods.Categorical(), value, {}) for value in logits)
    probs = [value.softmax(-1).mean(0) for value in logits]
    found = distance(one, two)
    assert found.total_variation == pytest.approx(float(0.5 * (probs[0] - probs[1]).abs().sum(1).mean()))
    assert found.agreement == pytest.approx(float((probs[0].argmax(1) == probs[1].argmax(1)).double().mean()))
    rates = [value[:, :, 0].abs() for value in logits]
    counts = [Prediction(bnn.likelihoods.Poisson(), rate.log(), {}) for rate in rates]
    grid = torch.arange(60.0).double()
    masses = [torch.distributions.Poisson(r.unsqueeze(-1)).log_prob(grid).exp().mean(0) for r in rates]
    expected = float(0.5 * (masses[0] - masses[1]).abs().sum(1).mean())
    assert distance(*counts).total_variation == pytest.approx(expected, abs=1e-4)


def test_sliced_wasserstein_of_shifted_gaussians():
    """|a - b| / sqrt(d) on average over directions; of equal sizes each projection is the mean of sorted gaps."""
    draws, shift = random(2000, 3), torch.tensor([1.0, 2.0, -2.0]).double()
    found = sliced_wasserstein(draws + shift, draws, projections=2000)
    assert found == pytest.approx(3 / math.sqrt(3), rel=0.05)
    one, two = random(50, 1, seed=1), random(50, 1, seed=2)
    gaps = (one.sort(0).values - two.sort(0).values).square().mean().sqrt()
    assert sliced_wasserstein(one, two, projections=3) == pytest.approx(float(gaps), rel=1e-9)
    assert sliced_wasserstein(draws, draws) == 0


# Held-out rows.


def test_the_p_value_of_held_out_rows_is_uniform_where_the_posterior_is_right():
    """Rows that share one draw of the weights, which a binomial test would take for independent."""
    f = random(200, 1).expand(200, 40)
    prediction = Prediction(bnn.likelihoods.Gaussian(), f, {"likelihood.scale": torch.full((200,), 0.3).double()})
    data = prediction.sample(200, seed=7)
    p = np.array([surprise_of(prediction, y, seed=s).p_value for s, y in enumerate(data[:40])])
    assert 0.25 < p.mean() < 0.75
    assert p.min() > 1e-3
    narrow = Prediction(bnn.likelihoods.Gaussian(), 0.1 * f, {"likelihood.scale": torch.full((200,), 0.3).double()})
    hits = sum(surprise_of(narrow, y).p_value < 1e-3 for y in data[:18])
    assert hits > 6


def test_confidence_of_labels_is_tested():
    logits = 2 * random(20, 200, 3)
    prediction = Prediction(bnn.likelihoods.Categorical(), logits, {})
    right = prediction.sample(1, seed=3)[0]
    found = surprise_of(prediction, right)
    assert found.kind == "confidence"
    assert found.p_value > 1e-3
    sure = Prediction(bnn.likelihoods.Categorical(), 10 * logits.mean(0, keepdim=True), {})
    assert surprise_of(sure, right).p_value < 1e-3
