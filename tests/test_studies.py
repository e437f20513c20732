"""Every study runs quick, and finds what theory says that it finds; the published figures bear out what pages claim."""

from __future__ import annotations

import json
import math
import re
import runpy

import pytest
import torch
from test_experiments import FOLDER, PUBLISHED, published, run, script

import bnn
from bnn.prediction import Prediction

PAGES = sorted(path.stem for path in PUBLISHED.glob("*.json"))


def by(rows: list[dict], *keys: str) -> dict:
    return {tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]: row for row in rows}


def gaussian(mean: float, sd: float) -> Prediction:
    """One draw of a Gaussian at three rows."""
    scale = {"likelihood.scale": torch.tensor([sd]).double()}
    return Prediction(bnn.likelihoods.Gaussian(), torch.full((1, 3, 1), mean).double(), scale)


# ------------------------------------------------------------------------------------------------------- toy_regression


def test_wasserstein_of_two_gaussians():
    """Of N(m, 1) and N(0, 1) it is m; of N(0, 2^2) and N(0, 1) the mean of |Z|; the quadrature leaves out tails."""
    study = script("toy_regression")
    config = study.Config(levels=199)
    assert study.wasserstein(config, gaussian(0.5, 1.0), gaussian(0.0, 1.0)) == pytest.approx(0.5, abs=1e-5)
    assert study.wasserstein(config, gaussian(0.0, 2.0), gaussian(0.0, 1.0)) == pytest.approx(
        (2 / math.pi) ** 0.5, 0.01
    )
    assert study.wasserstein(config, gaussian(0.0, 6.0), gaussian(0.0, 3.0)) == pytest.approx(
        (2 / math.pi) ** 0.5, 0.01
    )


def test_toy_regression(tmp_path):
    rows = by(run("toy_regression", tmp_path, "--quick")["curve"], "method")
    assert rows["NUTS"]["tv"] == rows["NUTS"]["w1"] == 0
    assert rows["NUTS"]["epistemic"] == pytest.approx(1.0)
    assert rows["MAP"]["epistemic"] < 1e-6  # a single function
    assert len(rows) == 5
    for name, row in rows.items():
        assert 0 <= row["tv"] <= 1
        assert name == "NUTS" or row["w1"] > 0
        assert 0 <= row["coverage"] <= 100
    # What Pyro calls a posterior of 40 draws is poor; it is saved, and found again.
    assert len(list((tmp_path / "posteriors").glob("*/curve-NUTS"))) == 1


# ---------------------------------------------------------------------------------------------------------- input_noise


def test_input_noise(tmp_path):
    """Attenuation by 1 / (1 + s^2), undone, to within four standard deviations of a slope from 150 rows.

    Ignored: y has a variance of 0.4^2 + l s^2 given its reading, l = 1 / (1 + s^2), and readings one of 1 + s^2.
    Corrected slopes are those over l.
    """
    found = run("input_noise", tmp_path, "--quick")
    rows, noise, n = by(found["line"], "way"), 0.75, 150
    kept = 1 / (1 + noise**2)
    error = math.sqrt((0.4**2 + kept * noise**2) / (n * (1 + noise**2)))
    assert rows["ignored"]["theory"] == pytest.approx(kept)
    assert rows["ignored"]["slope"] == pytest.approx(kept, abs=4 * error)
    for way in ("by draws", "learned"):
        assert rows[way]["slope"] == pytest.approx(1.0, abs=4 * error / kept)
        assert rows[way]["slope"] > rows["ignored"]["slope"] + 2 * error
    assert rows["true inputs"]["slope"] == pytest.approx(1.0, abs=4 * 0.4 / math.sqrt(n))
    assert rows["by draws"]["width"] > rows["ignored"]["width"]  # what is not known is said


# ------------------------------------------------------------------------------------------------------------ continual


def test_forgetting_is_counted_from_when_a_task_was_learned():
    study = script("continual")
    table = [[90.0, 10.0, 10.0], [80.0, 94.0, 12.0], [60.0, 84.0, 92.0]]
    (row,) = study.summary(study.Config(tasks=3, seeds=1), {"way": [table]})
    assert row["learned"] == pytest.approx((90 + 94 + 92) / 3)
    assert row["end"] == pytest.approx((60 + 84 + 92) / 3)
    assert row["forgotten"] == pytest.approx((30 + 10) / 2)  # the last task has had no time to be forgotten


def test_continual(tmp_path):
    """Fine-tuning forgets, carrying the posterior on forgets less, and what is learned together is not forgotten.

    A difference of two accuracies of 1,397 rows has a standard error of 1.9 points at most.
    """
    rows = by(run("continual", tmp_path, "--quick")["rows"], "way")
    error = 100 * math.sqrt(2 * 0.25 / 1397)
    assert rows["fine-tuning"]["forgotten"] > 4 * error
    for way in ("mean field", "Laplace"):
        assert rows[way]["forgotten"] < rows["fine-tuning"]["forgotten"] - 4 * error
    assert abs(rows["joint"]["forgotten"]) < 4 * error


# --------------------------------------------------------------------------------------------------------------- bandit


def test_bandit(tmp_path):
    """Who learns loses less in the last rounds than who does not: two games of 20 such rounds each."""
    rows = by(run("bandit", tmp_path, "--quick")["wine"], "player")
    # Uniform: two thirds of 100 rounds, binomial, over two games.
    assert rows["uniform"]["regret"] == pytest.approx(200 / 3, abs=4 * math.sqrt(100 * 2 / 9 / 2))
    error = 100 * math.sqrt(2 / 9 / 40)
    for player in ("Thompson, Laplace", "Thompson, ensemble", "epsilon-greedy", "greedy"):
        assert rows[player]["late"] < 100 * 2 / 3 - 3 * error
    units = [json.loads(path.read_text()) for path in (tmp_path / "units").rglob("*-0.json")]
    first = [unit["result"][:50] for unit in units]
    assert len(first) == 5
    assert all(own == first[0] for own in first)  # the rounds before the first fit are the same for all


def test_epsilon_greedy_tries_as_often_as_it_says():
    """With three classes a trial names another class two times out of three; 10,000 rounds, four standard errors."""
    study = script("bandit")
    net = torch.nn.Linear(2, 3)
    posterior = bnn.fit(
        bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Bernoulli(missing="mask")),
        (torch.randn(6, 2), torch.eye(3).repeat(2, 1)),
        bnn.MAP(epochs=1),
        progress=False,
    )
    x, generator = torch.randn(10_000, 2), torch.Generator().manual_seed(0)
    config = study.Config(epsilon=0.3)
    best = study.greedy(config, posterior, x, generator)
    other = (study.epsilon_greedy(config, posterior, x, generator) != best).double().mean()
    assert float(other) == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 10_000))


# ------------------------------------------------------------------------------------------------------ active_learning


def test_active_learning(tmp_path):
    """More labels are better (1,497 test images), and all scores begin with the same."""
    rows = by(run("active_learning", tmp_path, "--quick")["digits"]["curves"], "score", "labels")
    first, last = (sorted({labels for _, labels in rows})[i] for i in (0, -1))
    assert (first, last) == (20, 60)
    error = 100 * math.sqrt(2 * 0.25 / 1497)
    for score in ("BALD", "entropy", "random"):
        assert rows[score, first] == {**rows["random", first], "score": score}
    assert rows["random", last]["accuracy"] > rows["random", first]["accuracy"] + 4 * error
    assert rows["entropy", last]["accuracy"] > rows["entropy", first]["accuracy"] + 4 * error


@pytest.mark.slow
def test_bald_is_better_than_chance(tmp_path):
    """By its paired difference, three standard errors away from none."""
    gain = by(
        run("active_learning", tmp_path, "--seeds", "5", "--rounds", "10", "--scores", "BALD,random")["digits"]["gain"],
        "score",
    )
    assert gain["BALD"]["accuracy"] > 3 * gain["BALD"]["accuracy_se"]


# ------------------------------------------------------------------------------------------------------------ conformal


def coverage_error(calibration: int, tested: int, splits: int) -> float:
    """Standard error of the coverage, in percent: of one split Beta(k, n + 1 - k), and of the rows tested binomial."""
    k = math.ceil((calibration + 1) * 0.9)
    beta = k * (calibration + 1 - k) / ((calibration + 1) ** 2 * (calibration + 2))
    return 100 * math.sqrt((beta + 0.09 / tested) / splits)


def test_conformal(tmp_path):
    """Calibrated intervals and sets hold as much as they promise, to four standard errors; noisy images break that."""
    found = run("conformal", tmp_path, "--quick")
    rows = by(found["diabetes"], "shift", "way")
    for way in ("split, absolute", "split, normalised", "CQR"):
        assert rows["none", way]["coverage"] == pytest.approx(90, abs=4 * coverage_error(110, 111, splits=2))
    assert rows["none", "CV+"]["coverage"] > 80  # its guarantee is 2 * 0.9 - 1
    sets = by(found["digits"], "shift", "way")
    error = coverage_error(400, 1097, splits=2)
    for kind in ("adaptive", "regularised", "threshold"):
        assert sets["none", kind]["coverage"] == pytest.approx(90, abs=4 * error)
        assert sets["shift", kind]["coverage"] < 90 - 4 * error


@pytest.mark.parametrize("wrong", [False, True])
def test_conformalised_quantiles_hold_what_they_promise(wrong, patch_line):
    """4,000 calibrations of 19 rows, side by side as outputs, by a posterior half as wide as the truth.

    A rank that is one too low is seen.
    """
    study = script("conformal")
    if wrong:
        patch_line(study, "conformalised_quantiles", "outside[rank - 1]", "outside[rank - 2]")
    y = torch.randn(20, 4000, generator=torch.Generator().manual_seed(0)).double()
    scale = {"likelihood.scale": torch.tensor([0.5]).double()}
    known, new = (Prediction(bnn.likelihoods.Gaussian(), torch.zeros(1, n, 4000).double(), scale) for n in (19, 1))
    low, high = study.conformalised_quantiles(known, y[:19], 0.9, new)
    inside = ((low <= y[19:]) & (y[19:] <= high)).double().mean()
    right = abs(float(inside) - 0.9) < 4 * math.sqrt(0.09 / 4000)
    assert right is not wrong


# ---------------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_tables_of_its_record(name):
    record = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    page = (PUBLISHED / f"{name}.md").read_text(encoding="utf-8")
    shown = runpy.run_path(str(FOLDER.parent / "docs" / "make_experiments.py"))["tables"](record)
    assert shown in page
    assert "--quick" not in record["command"]
    assert re.search(rf"\.\./images/experiments/{name}-\w+\.png", page)


@pytest.mark.skipif("active_learning" not in PAGES, reason="no full run has been published")
def test_the_published_gain_of_bald_is_no_chance():
    gain = by(published("active_learning")["digits"]["gain"], "score")["BALD"]
    assert gain["accuracy"] > 2 * gain["accuracy_se"]
    assert gain["log_density"] > 2 * gain["log_density_se"]
