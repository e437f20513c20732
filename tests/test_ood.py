"""Scores of what is unusual, how they are judged, and selective prediction."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf
from torch import nn

import bnn
from bnn.analysis import detection, feature_distance, features, risk_coverage, rmse, selective, under_shift, unusualness
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.prediction import Prediction
from bnn.random import isolated


def test_scores_of_classes_by_brute_force():
    with isolated(0):
        prediction = Prediction(Categorical(), 2 * torch.randn(5, 6, 3).double(), {})
    found = unusualness(prediction)
    for i in range(6):
        logits = prediction.outputs[:, i].numpy()
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        total, aleatoric = stats.entropy(p.mean(0)), stats.entropy(p, axis=-1).mean()
        expected = {
            "entropy": total,
            "mutual_information": total - aleatoric,
            "confidence": 1 - p.mean(0).max(),
            "energy": -np.log(np.exp(logits).sum(-1)).mean(),
        }
        assert {name: value[i].item() for name, value in found.items()} == pytest.approx(expected, rel=1e-9)


def test_scores_of_numbers_and_of_yes_or_no():
    outputs = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).double()
    found = unusualness(Prediction(Gaussian(), outputs, {"likelihood.scale": torch.tensor([1.0, 3.0]).double()}))
    assert found["epistemic"].tolist() == [1.0, 0.0]
    assert found["variance"].tolist() == [6.0, 5.0]
    two = unusualness(Prediction(Bernoulli(), torch.randn(4, 3, 2), {}))
    assert set(two) == {"entropy", "mutual_information", "confidence"}
    assert all(value.shape == (3,) for value in two.values())


def test_detection_by_brute_force():
    with isolated(1):
        inside, outside = torch.randn(40).round(decimals=1), torch.randn(30).round(decimals=1) + 1
    found = detection(inside, outside)
    wins = [(b > a) + 0.5 * (b == a) for a in inside.tolist() for b in outside.tolist()]
    assert found.auroc == pytest.approx(sum(wins) / len(wins))
    # Precision at every distinct threshold, weighted by the recall that it adds.
    area = recall = 0.0
    for t in sorted({*outside.tolist(), *inside.tolist()}, reverse=True):
        hit, false = int((outside >= t).sum()), int((inside >= t).sum())
        area += (hit / 30 - recall) * hit / (hit + false)
        recall = hit / 30
    assert found.aupr == pytest.approx(area)
    thresholds = [t for t in outside.tolist() if (outside >= t).double().mean() >= 0.95]
    assert found.fpr95 == pytest.approx(min((inside >= t).double().mean().item() for t in thresholds))


def test_the_error_of_the_auroc_is_that_over_repeated_data():
    with isolated(2):
        found = [detection(torch.randn(60), torch.randn(40) + 0.8) for _ in range(150)]
    spread = np.std([one.auroc for one in found], ddof=1)
    assert np.mean([one.auroc_error for one in found]) / spread == pytest.approx(1, abs=4 / math.sqrt(2 * 149))
    exact = stats.norm.cdf(0.8 / math.sqrt(2))
    assert np.mean([one.auroc for one in found]) == pytest.approx(exact, abs=5 * spread / math.sqrt(150))


def trained(quick):
    with isolated(3):
        x = torch.randn(80, 2)
        y = (x[:, 0] > 0).long()
        net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), Categorical())
    return quick(model, (x, y), bnn.MeanField(epochs=3)), x, y


@pytest.mark.parametrize("by_class", [True, False])
def test_feature_distance_by_scipy(quick, by_class):
    posterior, x, y = trained(quick)
    distance = feature_distance(posterior, "1", x, y if by_class else None, draws=3)
    new = torch.randn(5, 2)
    expected = np.zeros(5)
    for i in range(3):
        net = posterior.net(i)
        seen, other = (net[:2](part).detach().double().numpy() for part in (x, new))
        groups = [y.numpy() == 0, y.numpy() == 1] if by_class else [np.ones(80, dtype=bool)]
        centres = [seen[group].mean(0) for group in groups]
        left = np.concatenate([seen[group] - centre for group, centre in zip(groups, centres, strict=True)])
        inverse = np.linalg.inv(ledoit_wolf(left, assume_centered=True)[0])
        for j in range(5):
            expected[j] += min(mahalanobis(other[j], centre, inverse) ** 2 for centre in centres) / 3
    assert distance(new).numpy() == pytest.approx(expected, rel=1e-6)
    assert detection(distance(x), distance(x + 8)).auroc > 0.95
    with pytest.raises(ValueError, match="no layer 'head': it has 0, 1, 2"):
        feature_distance(posterior, "head", x)


def test_control_distances_to_the_wrong_centre(patch_line, quick):
    posterior, x, y = trained(quick)
    right = feature_distance(posterior, "1", x, y, draws=1)(x)
    patch_line(features.FeatureDistance, "__call__", "np.min", "np.max")
    assert (feature_distance(posterior, "1", x, y, draws=1)(x) > right + 1e-6).all()


def test_nothing_of_the_network_is_altered(quick):
    posterior, x, _ = trained(quick)
    before = torch.get_rng_state()
    distance = feature_distance(posterior, "1", x, draws=2)
    distance(x)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(module._forward_hooks for net, _, _ in distance._fits for module in net.modules())


def test_risk_coverage_by_brute_force():
    with isolated(4):
        uncertainty, loss = torch.randn(25), torch.rand(25).double()
    found = risk_coverage(uncertainty, loss)
    order = sorted(range(25), key=lambda i: uncertainty[i].item())
    risks = [sum(loss[j].item() for j in order[: i + 1]) / (i + 1) for i in range(25)]
    best = [sum(sorted(loss.tolist())[: i + 1]) / (i + 1) for i in range(25)]
    assert found.risk.tolist() == pytest.approx(risks)
    assert found.coverage.tolist() == pytest.approx([(i + 1) / 25 for i in range(25)])
    assert found.aurc == pytest.approx(sum(risks) / 25)
    assert found.excess == pytest.approx(sum(risks) / 25 - sum(best) / 25)
    assert found.retained.tolist() == pytest.approx([r * (i + 1) / 25 for i, r in enumerate(risks)])
    assert found.retention == pytest.approx(found.retained.mean().item())
    assert risk_coverage(loss, loss).excess == pytest.approx(0, abs=1e-12)


def test_ties_are_left_out_in_random_order(patch_line):
    loss = torch.tensor([1.0, 0, 0, 1])
    assert risk_coverage(torch.zeros(4), loss).risk.tolist() == pytest.approx([0.5] * 4)
    patch_line(selective, "_shared", "means.repeat_interleave(counts)", "loss[uncertainty.argsort()]")
    assert selective.risk_coverage(torch.zeros(4), loss).risk.tolist() != pytest.approx([0.5] * 4)


def test_scores_under_shift():
    def predict(x):
        return Prediction(Gaussian(), x.unsqueeze(0), {"likelihood.scale": torch.ones(1).double()})

    x = torch.arange(10.0).double()
    found = under_shift(predict, {"none": (x, x), "by 2": (x, x + 2)}, level=0.5)
    assert found["by 2"]["rmse"].mean == pytest.approx(2)
    assert found["none"]["rmse"].mean == rmse(predict(x), x).mean == 0
    assert found["none"]["coverage"].mean > found["by 2"]["coverage"].mean


def test_bad_input_is_told_in_words():
    with pytest.raises(ValueError, match="outside holds no scores"):
        detection(torch.ones(3), torch.ones(0))
    with pytest.raises(ValueError, match="not finite"):
        detection(torch.tensor([math.nan]), torch.ones(2))
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\)"):
        risk_coverage(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        risk_coverage(torch.ones(1), torch.tensor([math.inf]))
