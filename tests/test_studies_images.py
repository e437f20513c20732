"""The studies of images and of cost: what befalls an image, what is taken out of a posterior, exponents; quick runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import linregress
from test_experiments import run, script

import bnn


def by(rows: list[dict], *keys: str) -> dict:
    return {tuple(row[key] for key in keys): row for row in rows}


@pytest.fixture(scope="module")
def images():
    return script("images")


# --------------------------------------------------------------------------------------------------------------- images


def test_a_quarter_turn_is_anticlockwise(images):
    x = images.digits(size=28).test.x[:5]
    assert torch.allclose(images.rotated(x, 90), torch.rot90(x, 1, (-2, -1)), atol=1e-5)
    assert torch.equal(images.rotated(x, 0), x) or torch.allclose(images.rotated(x, 0), x, atol=1e-5)


def test_noise_has_its_size_and_stays_within_the_range(images):
    """Grey images, in which nothing is cut at sd 0.1 (five standard deviations): 100,000 pixels, four errors."""
    x = images.noised(torch.full((1000, 1, 10, 10), 0.5), 0.1)
    assert float(x.std()) == pytest.approx(0.1, abs=4 * 0.1 / math.sqrt(2e5))
    assert 0 <= float(images.noised(x, 3.0).min()) <= float(images.noised(x, 3.0).max()) <= 1


def test_parts_share_no_row(images):
    parts = images.digits(seed=1)
    assert [len(part.y) for part in parts] == [900, 300, 597]
    other = images.digits(seed=2)
    assert not torch.equal(parts.train.y, other.train.y)
    every = torch.cat([part.x.flatten(1).sum(1) for part in parts]).sort().values
    assert torch.equal(every, torch.cat([part.x.flatten(1).sum(1) for part in other]).sort().values)


def test_strangers_are_made_of_what_they_say(images):
    known = images.digits(size=28).test
    found = images.strangers(known)
    for name in ("blobs", "quarters"):  # the same ink in other places
        assert torch.equal(found[name].flatten(1).sort(1).values, known.x.flatten(1).sort(1).values)
        assert not torch.equal(found[name], known.x)
    handed = ~torch.isin(known.y, torch.tensor([0, 1, 8]))
    assert torch.equal(found["mirrored"].flip(-1), known.x[handed])
    assert torch.equal(found["quarters"][..., :14, :14], known.x[..., 14:, 14:])


# ---------------------------------------------------------------------------------------------------------------- mnist


@pytest.mark.parametrize("wrong", [False, True])
def test_the_weights_of_least_signal_to_noise_are_taken_out(wrong, patch_line):
    """Two weights of mean 2 that decide, and two of mean 9 that are noise: by size the wrong half would go."""
    study, own = script("mnist_scores"), script("images")
    if wrong:
        patch_line(study, "pruned", "mean[name].abs() / scale[name]", "mean[name].abs()")
    net = torch.nn.Linear(2, 2, bias=False)
    model = bnn.BNN(net, bnn.priors.Normal(10.0), bnn.likelihoods.Categorical())
    fitted = bnn.fit(model, (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])), bnn.MeanField(epochs=1), progress=False)
    fitted.approximation.loc = torch.tensor([20.0, 90.0, -20.0, 90.0])
    fitted.approximation.log_scale = torch.tensor([1e-3, 30.0, 1e-3, 30.0]).log()
    test = own.Images(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), torch.tensor([0, 1]))
    config = study.Config(removed=(0.5,), draws=50)
    (row,) = study.pruned(config, fitted, test)["rows"]
    assert row["kept"] == 2
    assert (row["error"] == 0) is not wrong


def test_mnist(tmp_path):
    """Half of the weights can go, but not 98 %; turned digits are not read; an ensemble is no worse than its members.

    The last holds without error: -log is convex. Differences of two errors of 897 rows: four standard errors.
    """
    found = run("mnist", tmp_path, "--quick")
    rows, removed = by(found["test"], "net", "method"), by(found["removed"], "net", "removed")
    four = 4 * 100 * math.sqrt(2 * 0.25 / 897)
    for key, row in rows.items():
        assert row["error"] < 90 - four, key
    for law in ("shifted cold mixture", "Gaussian"):
        none, half, most = (removed[f"mlp-50, {law}", share] for share in (0, 50, 98))
        assert none["error"] == rows["mlp-50", law]["error"]
        assert half["kept"] == 21_100
        assert abs(half["error"] - none["error"]) < four < most["error"] - none["error"]
    member = rows["lenet", "a member of the ensemble"]
    assert rows["lenet", "ensemble"]["nll"] <= member["nll"]
    shifts = by(found["units"]["lenet, ensemble"]["shifts"], "kind", "level")
    assert shifts["rotation", 90.0]["error"] > shifts["rotation", 0.0]["error"] + four
    strangers = by(found["strangers"], "net", "strangers")
    assert strangers["mlp-50, Gaussian", "uniform noise"]["entropy"] > 0.9
    again = run("mnist", tmp_path, "--quick")  # nothing is done twice
    assert again == found


def test_published_figures_stand_beside_ours(tmp_path):
    """From a file such as --data-dir has."""
    published = script("mnist_published")
    lines = ["dataset,model,method,metric,mean,stderr,source,verified,note"]
    lines += [f"MNIST,LeNet5 (60K),{m},nll,0.0{i},,s,yes," for i, m in enumerate(published._SAME, 1)]
    lines += [f"MNIST,LeNet5 (60K),{m},accuracy_pct,99.{i},,s,yes," for i, m in enumerate(published._SAME, 1)]
    lines += [
        "MNIST vs FMNIST,LeNet,MAP,ood_auroc_pct,98.9,0.0,s,yes,",
        "MNIST vs KMNIST,LeNet,MAP,ood_auroc_pct,1,,s,no,",
    ]
    lines += ["MNIST vs FMNIST,LeNet,SWAG,ood_auroc_pct,93.6,0.3,s,yes,columns look swapped in the source"]
    (tmp_path / "published_classification.csv").write_text("\n".join(lines), encoding="utf-8")
    study = script("frame").Study("mnist", None, tmp_path, tmp_path, "")
    table = published.accuracy_rows(study, [{"net": "lenet", "method": "ensemble", "error": 0.7, "nll": 0.019}])
    assert [row["method"] for row in table.rows[1:3]] == ["published: Ensemble (10)", "here: ensemble"]
    assert table.rows[1]["error"] == pytest.approx(0.8)
    (row,) = published.stranger_rows(study).rows
    assert (row["method"], row["auroc"]) == ("MAP", pytest.approx(0.989))


# --------------------------------------------------------------------------------------------- calibration_under_shift


def test_calibration_under_shift(tmp_path):
    """A temperature changes no label and does usual images no harm; shifted ones are read worse, and with doubt."""
    found = run("calibration_under_shift", tmp_path, "--quick")["digits"]
    rows = by(found["levels"], "method", "kind", "level")
    four = 4 * 100 * math.sqrt(2 * 0.25 / 597)
    methods = {method for method, _, _ in rows}
    assert len(methods) == 6
    for method in methods:
        usual = rows[method, "noise", 0.0]
        assert usual == {**rows[method, "rotation", 0.0], "kind": "noise"}
        for kind, level in (("noise", 0.6), ("rotation", 90.0)):
            assert rows[method, kind, level]["accuracy"] < usual["accuracy"] - four
            assert rows[method, kind, level]["entropy"] > usual["entropy"]
    for (method, kind, level), row in rows.items():
        if method == "MAP":
            assert rows["MAP, temperature", kind, level]["accuracy"] == row["accuracy"]
    overall = by(found["overall"], "method")
    assert overall["MAP",]["nll_gain"] == 0
    assert overall["MAP, temperature",]["nll_usual"] <= overall["MAP",]["nll_usual"] + 0.02


# -------------------------------------------------------------------------------------------------------------- scaling


def test_an_exponent_and_its_standard_error():
    """Those of scipy."""
    study, rng = script("scaling"), np.random.default_rng(0)
    x = 2.0 ** np.arange(6)
    y = 3 * x**1.5 * np.exp(0.1 * rng.normal(size=6))
    expected = linregress(np.log(x), np.log(y))
    found = study.slope(x, y)
    assert found["slope"] == pytest.approx(expected.slope)
    assert found["slope_se"] == pytest.approx(expected.stderr)
    assert study.slope(x[:2], y[:2])["slope_se"] is None


def test_bytes_are_those_held_at_the_peak():
    study = script("scaling")

    def work() -> None:
        first = torch.zeros(1_000_000)
        del first  # is back before the next is taken
        second, third = torch.zeros(500_000), torch.zeros(700_000)
        del second, third

    assert study.peak_bytes(work) == pytest.approx(4 * 1_200_000, abs=4096)


def test_scaling(tmp_path):
    """Bytes of a prediction are in proportion to its draws; nothing grows faster than in proportion.

    Bytes are counted, not timed: no machine's business changes them. Times are not asked for anything.
    """
    lines = by(run("scaling", tmp_path, "--quick")["exponents"], "axis")
    assert len(lines) == 4
    assert lines["draws",]["bytes"] == pytest.approx(1, abs=0.02)
    for line in lines.values():
        assert 0.5 < line["bytes"] < 1.05
        assert math.isfinite(line["seconds"])
