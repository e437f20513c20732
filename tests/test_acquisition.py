"""Acquisition, decisions and attribution: brute force, closed forms of Gaussians and of a linear model."""

import itertools
import math

import numpy as np
import pytest
import torch
from linear import NOISE, linear_regression
from scipy import integrate, stats
from torch import nn

import bnn
from bnn.analysis import (
    acquisition,
    attribution,
    bald,
    batch_bald,
    decide,
    decide_by_draws,
    decisions,
    epistemic_variance,
    expected_improvement,
    improvement_of_mean,
    sobol,
    thompson,
    variance_gradients,
)
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.prediction import Prediction
from bnn.random import isolated


def classes(draws: int = 6, rows: int = 5, k: int = 3) -> Prediction:
    with isolated(0):
        return Prediction(Categorical(), 2 * torch.randn(draws, rows, k).double(), {})


def numbers(draws: int = 6, rows: int = 5) -> Prediction:
    with isolated(1):
        return Prediction(Gaussian(), torch.randn(draws, rows).double(), {"likelihood.scale": 0.3 + torch.rand(draws)})


def information(prediction: Prediction, rows: list[int]) -> float:
    """Mutual information of the labels at some rows and the draw, joint label by joint label."""
    logits = prediction.outputs[:, rows].numpy()
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    s, b, k = p.shape
    total = 0.0
    for labels in itertools.product(range(k), repeat=b):
        by_draw = [math.prod(p[i, j, label] for j, label in enumerate(labels)) for i in range(s)]
        mean = sum(by_draw) / s
        total += sum(q * math.log(q / mean) for q in by_draw) / s
    return total


def test_bald_of_labels_by_brute_force():
    prediction = classes()
    assert bald(prediction).tolist() == pytest.approx([information(prediction, [i]) for i in range(5)], rel=1e-9)


def test_bald_of_gaussians_by_quadrature():
    prediction = numbers()
    scale = prediction.latents["likelihood.scale"].numpy()
    for i, found in enumerate(bald(prediction).tolist()):
        parts = stats.norm(prediction.outputs[:, i].numpy(), scale)

        def entropy(y, parts=parts):
            p = parts.pdf(y).mean()
            return -p * math.log(p) if p > 0 else 0.0

        total, _ = integrate.quad(entropy, -12, 12, epsabs=1e-10, limit=300)
        assert found == pytest.approx(total - parts.entropy().mean(), rel=2e-3)


def test_batch_bald_is_greedy_on_the_exact_joint_information():
    prediction = classes()
    found = batch_bald(prediction, 3)
    rows: list[int] = []
    for step in range(3):
        gains = {i: information(prediction, [*rows, i]) for i in range(5) if i not in rows}
        rows.append(max(gains, key=gains.get))
        assert found.rows[: step + 1].tolist() == rows
        assert found.information[step].item() == pytest.approx(gains[rows[-1]], rel=1e-9)


def test_batch_bald_in_chunks_and_of_yes_or_no(monkeypatch):
    logits = classes(k=1).outputs[..., 0]
    pairs = Prediction(Categorical(), torch.stack([torch.zeros_like(logits), logits], -1), {})
    found = batch_bald(Prediction(Bernoulli(), logits, {}), 3)
    assert found.information.tolist() == pytest.approx(
        [information(pairs, found.rows[: i + 1].tolist()) for i in range(3)]
    )
    monkeypatch.setattr(acquisition, "_OUTCOMES", 60)
    assert batch_bald(pairs, 3).rows.tolist() == found.rows.tolist()
    with pytest.raises(ValueError, match="16 joint values: too many"):
        batch_bald(pairs, 4)


def test_batch_bald_does_not_take_the_same_input_twice(patch_line):
    """Two copies of the best candidate, and an independent one: the copy tells less. Marginal scores take the copy."""
    outputs = torch.zeros(4, 3, 2).double()
    outputs[:, 0, 0] = outputs[:, 1, 0] = torch.tensor([4.0, 4, -4, -4])
    outputs[:, 2, 0] = torch.tensor([3.0, -3, 3, -3])
    prediction = Prediction(Categorical(), outputs, {})
    assert sorted(batch_bald(prediction, 2).rows.tolist()) == [0, 2]
    patch_line(acquisition, "batch_bald", "_joint_entropy(joint, probs)", "_joint_entropy(joint[:, :1] * 0 + 1, probs)")
    assert sorted(acquisition.batch_bald(prediction, 2).rows.tolist()) == [0, 1]


@pytest.mark.parametrize("goal", ["max", "min"])
def test_expected_improvement_by_quadrature(goal):
    prediction, sign = numbers(), {"max": 1, "min": -1}[goal]
    scale = prediction.latents["likelihood.scale"].numpy()
    found = expected_improvement(prediction, 0.4, goal)
    for i in range(5):
        parts = stats.norm(prediction.outputs[:, i].numpy(), scale)
        ends = (0.4, 15) if goal == "max" else (-15, 0.4)
        expected, _ = integrate.quad(
            lambda y, p=parts: sign * (y - 0.4) * p.pdf(y).mean(), *ends, epsabs=1e-11, limit=200
        )
        assert found[i].item() == pytest.approx(expected, rel=1e-6)
        ahead = [max(0.0, sign * (f - 0.4)) for f in prediction.outputs[:, i].tolist()]
        assert improvement_of_mean(prediction, 0.4, goal)[i].item() == pytest.approx(sum(ahead) / 6)


def test_control_expected_improvement_of_one_gaussian_is_another(patch_line):
    prediction = numbers()
    right = expected_improvement(prediction, 0.4)
    patch_line(acquisition, "expected_improvement", "unit.cdf(z)", "1")
    assert not torch.allclose(acquisition.expected_improvement(prediction, 0.4), right, rtol=1e-3)


def test_thompson_draws_and_variance():
    prediction = numbers()
    assert thompson(prediction).tolist() == prediction.outputs.argmax(1).tolist()
    assert thompson(prediction, "min").tolist() == prediction.outputs.argmin(1).tolist()
    assert epistemic_variance(prediction).tolist() == pytest.approx(prediction.outputs.var(0, correction=0).tolist())


def test_acquisition_that_does_not_apply_says_so():
    with pytest.raises(AttributeError, match="Gaussian under each draw"):
        expected_improvement(classes(), 0.0)
    with pytest.raises(AttributeError, match="chosen for its labels"):
        batch_bald(numbers(), 2)
    with pytest.raises(ValueError, match="goal is 'max' or 'min'"):
        thompson(numbers(), "best")
    with pytest.raises(ValueError, match="number of candidates, 5, not 6"):
        batch_bald(classes(), 6)


# ---------------------------------------------------------------------------------------------------------- decisions


def test_decisions_by_brute_force():
    prediction = classes()
    loss = [[0.0, 5, 1], [2.0, 0, 1], [9.0, 3, 1]]
    found = decide(prediction, loss)
    for i, p in enumerate(prediction.probs.tolist()):
        expected = [sum(p[c] * loss[c][a] for c in range(3)) for a in range(3)]
        assert found.expected_loss[i].tolist() == pytest.approx(expected)
        assert found.action[i].item() == expected.index(min(expected))
    assert torch.equal(decide(prediction, 1 - torch.eye(3)).action, prediction.probs.argmax(-1))
    with pytest.raises(ValueError, match=r"each of 3 classes, not of shape \(2, 2\)"):
        decide(prediction, torch.eye(2))


def test_yes_or_no_is_said_where_the_costs_say_so():
    """A miss costs nine times a false alarm: yes from a probability of 0.1 on."""
    probs = torch.tensor([0.05, 0.09, 0.11, 0.6]).double()
    found = decide(Prediction(Bernoulli(), probs.logit().unsqueeze(0), {}), [[0, 1], [9, 0]])
    assert found.action.tolist() == [0, 0, 1, 1]


def test_a_stock_is_ordered_at_the_quantile_of_the_costs(patch_line):
    """The newsvendor: too little costs 3, too much 1, so that the best quantity is the 0.75 quantile of y."""
    prediction = numbers()
    quantities = torch.linspace(-3, 3, 121).tolist()

    def loss(y, q):
        return 3 * (y - q).clamp(min=0) + (q - y).clamp(min=0)

    found = decide_by_draws(prediction, loss, quantities, num=4000)
    best = torch.tensor(quantities)[found.action].double()
    # The standard error of a quantile of 4,000 draws: sqrt(p (1 - p) / n) / density; and half a step of the grid.
    exact = prediction.quantile(0.75)
    density = prediction.log_prob(exact).exp()
    assert ((best - exact).abs() < 5 * math.sqrt(0.1875 / 4000) / density + 0.025).all()
    with pytest.raises(ValueError, match="no action"):
        decide_by_draws(prediction, loss, [])
    with pytest.raises(ValueError, match="one number for each draw and row"):
        decide_by_draws(prediction, lambda y, q: y.mean(0), [1.0])
    patch_line(decisions, "decide_by_draws", "prediction.sample(num, seed)", "prediction.mean.expand(num, -1)")
    one = decisions.decide_by_draws(prediction, loss, quantities, num=4000)
    assert ((torch.tensor(quantities)[one.action].double() - exact).abs() > 0.05).any()


# -------------------------------------------------------------------------------------------------------- attribution


def linear_posterior():
    """Draws of the exact posterior of a linear model, and their covariance."""
    exact = linear_regression()
    posterior = bnn.fit(exact.model, (exact.x, exact.y), bnn.MeanField(epochs=2), compile="eager", progress=False)
    values = posterior.draws(50, seed=0)["weight"].reshape(50, 3)
    centred = values - values.mean(0)
    return posterior, exact.x, centred.T @ centred / 50


def test_gradients_of_a_linear_model_s_variance(patch_line):
    """x' S x has the attributions x_j (S x)_j from the origin, which add up to it."""
    posterior, x, covariance = linear_posterior()
    found = variance_gradients(posterior, x, torch.zeros(3), steps=2, draws=50)
    assert found.numpy() == pytest.approx((x * (x @ covariance)).numpy(), rel=1e-6, abs=1e-12)
    total = posterior.predict(x, 50).variance.epistemic.reshape(-1)
    assert found.sum(1).numpy() == pytest.approx(total.numpy(), rel=1e-6)
    patch_line(attribution, "variance_gradients", "(i + 0.5)", "i")
    assert attribution.variance_gradients(posterior, x, torch.zeros(3), steps=2, draws=50).numpy() != pytest.approx(
        found.numpy(), rel=0.1
    )


def test_sobol_indices_of_a_linear_model_s_variance():
    """sum_j S_jj x_j^2 of independent normal x has shares S_jj^2; products of two features are interactions."""
    posterior, _, covariance = linear_posterior()
    with isolated(5):
        x = torch.randn(20000, 3).double()
    found = sobol(lambda rows: posterior.predict(rows, 50), x, num=2048)
    squares, products = 2 * covariance.diagonal().square(), 4 * covariance.triu(1).square()
    whole = squares.sum() + products.sum()
    assert found.first == pytest.approx((squares / whole).numpy(), abs=0.05)
    total = (squares + products.sum(0) + products.sum(1)) / whole
    assert found.total == pytest.approx(total.numpy(), abs=0.05)


def test_attribution_of_labels_and_of_a_network(quick):
    """Contributions add up for a net too; and a feature that the net does not see has none."""
    with isolated(6):
        x = torch.randn(30, 3)
        net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), Categorical())
    posterior = quick(model, (x, (x[:, 0] > 0).long()), bnn.MeanField(epochs=2))
    base = x.mean(0)
    found = variance_gradients(posterior, x[:4], base, steps=128, draws=20)
    ends = [posterior.predict(rows, 20).entropy.epistemic for rows in (x[:4], base.unsqueeze(0))]
    assert found.sum(1).numpy() == pytest.approx((ends[0] - ends[1]).numpy(), abs=2e-3)
    assert (variance_gradients(posterior, x[:1], x[0], steps=2, draws=5) == 0).all()
    with pytest.raises(ValueError, match=r"floating tensor \(n, d\)"):
        variance_gradients(posterior, x[0], base)


def test_a_linearised_posterior_is_sent_to_sobol(quick):
    exact = linear_regression(rows=20)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), Gaussian(NOISE))
    posterior = quick(model, (exact.x, exact.y), bnn.Laplace(of=bnn.MAP(epochs=3)))
    with pytest.raises(ValueError, match="sobol works on its predictions"):
        variance_gradients(posterior, exact.x, torch.zeros(3), draws=10)
    assert sobol(posterior.predict, exact.x, num=32).total.shape == (3,)
