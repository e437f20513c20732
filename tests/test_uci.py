"""The study of the 20 splits: what it reads, what it pairs, and that no choice sees a test row."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from test_experiments import script

import bnn
from bnn.estimators import choice, sampled


@pytest.fixture(scope="module")
def study():
    return script("uci")


@pytest.fixture
def folder(tmp_path):
    """A data folder with a set of 40 rows in four splits, one row of which is there twice, and published figures."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 2))
    x[1] = x[0]
    y = 3 + 5 * x[:, 0] + 0.5 * rng.normal(size=40)
    y[1] = y[0]
    order = np.stack([np.roll(np.arange(40), -first) for first in (1, 5, 9, 13)])
    (tmp_path / "uci").mkdir()
    np.savez(
        tmp_path / "uci" / "tiny.npz",
        x=x,
        y=y,
        train_idx=order[:, :36],
        test_idx=order[:, 36:],
        mc_dropout_2018_test_ll=np.array([-1.0, -2.0, -3.0, -4.0]),
        mc_dropout_2018_test_rmse=np.array([1.0, 2.0, 3.0, 4.0]),
    )
    with (tmp_path / "published_uci.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "method", "metric", "mean", "stderr", "source", "verified", "note"])
        writer.writerow(["tiny", "theirs", "ll", "-9.5", "0.1", "a paper", "yes", ""])
        writer.writerow(["tiny", "theirs", "rmse", "0.1", "", "a paper", "yes", ""])
        writer.writerow(["tiny", "hearsay", "ll", "9", "", "a blog", "no", ""])
        writer.writerow(["other", "theirs", "ll", "0", "", "a paper", "yes", ""])
    return tmp_path


def run(study, *options) -> None:
    study.main.main([str(option) for option in options], standalone_mode=False)


def results(folder) -> dict:
    return json.loads((folder / "uci.json").read_text(encoding="utf-8"))["results"]


def test_the_quick_run_writes_tables_and_a_figure(study, tmp_path):
    run(study, "--quick", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "log_density.png",
        "ours.csv",
        "paired.csv",
        "table.md",
        "uci.json",
    }
    (row,) = results(tmp_path)["summary"]
    assert (row["set"], row["splits"]) == ("made-up", 2)
    assert math.isfinite(row["ll"])
    assert row["rmse"] > 0


def test_a_split_has_the_rows_that_the_file_says(study, folder):
    rows = study.split_of(folder / "uci" / "tiny.npz", 0)
    held = study.find.__globals__["read"](folder / "uci" / "tiny.npz")
    assert rows.x.shape == (36, 2)
    assert np.array_equal(rows.y_test, held["y"][held["test_idx"][0]])
    # The test rows of split 0 are 37, 38, 39 and 0; row 1, the twin of row 0, is a training row.
    assert rows.twins.tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="has 4 splits"):
        study.split_of(folder / "uci" / "tiny.npz", 4)


def test_differences_are_paired_by_split_and_a_run_goes_on(study, folder, tmp_path, monkeypatch):
    """Linear regression on a line: each split less the figure of its own."""
    options = ("--sets", "tiny", "--methods", "linear", "--processes", 1, "--epochs", 200, "--data-dir", folder)
    run(study, *options, "--splits", 2, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    lls = [split["ll"] for split in found["splits"]]
    (row,) = found["summary"]
    gains = [lls[0] + 1.0, lls[1] + 2.0]
    assert row["gain"] == pytest.approx(np.mean(gains))
    assert row["gain_se"] == pytest.approx(abs(gains[0] - gains[1]) / 2)  # s / sqrt(2) of two numbers
    assert row["wins"] == sum(gain > 0 for gain in gains)

    fits = []
    fitted = study.fitted
    monkeypatch.setattr(study, "fitted", lambda *arguments: fits.append(arguments) or fitted(*arguments))
    run(study, *options, "--splits", 3, "--out", tmp_path / "out")
    assert len(fits) == 1
    assert [split["ll"] for split in results(tmp_path / "out")["splits"]][:2] == lls


def test_scores_are_in_the_units_of_the_target_and_of_rows_not_seen(study, folder):
    """Of a Gaussian of known mean and scale."""
    rows = study.split_of(folder / "uci" / "tiny.npz", 0)

    class Known:
        def predict(self, x):
            return 3 + 5 * x[:, 0]

        def predict_distribution(self, x):
            outputs = torch.from_numpy(self.predict(x))[None]
            scale = torch.full((1, 1), 0.5).double()
            return bnn.Prediction(bnn.likelihoods.Gaussian(), outputs, {"likelihood.scale": scale[0]})

    found = study.scored(Known(), rows)
    errors = rows.y_test - (3 + 5 * rows.x_test[:, 0])
    each = -0.5 * math.log(2 * math.pi * 0.25) - errors**2 / 0.5
    assert found["ll"] == pytest.approx(each.mean())
    assert found["ll_new"] == pytest.approx(each[:3].mean())
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert found["twins"] == 0.25


def test_published_rows_stand_beside_ours(study, folder):
    stage = study.Study("uci", study.Config(), folder, folder, "")
    published = study.read_published(stage)
    ours = {"set": "tiny", "net": "50", "method": "auto", "ll": -9.0, "ll_se": 0.2}
    (row,) = study.beside([ours], published)
    assert (row["method"], row["ll"], row["ll_se"], row["rmse"]) == ("theirs", -9.5, 0.1, 0.1)
    assert row["better"] == "better"
    assert study.beside([ours | {"ll": -9.6}], published)[0]["better"] == "within two errors"
    assert study.beside([ours | {"ll": -10.0}], published)[0]["better"] == "worse"


@pytest.fixture
def short_chains(monkeypatch):
    """What auto samples, with chains too short to mean anything."""
    short = bnn.NUTS(chains=2, warmup=3, num_samples=5, max_depth=2)
    monkeypatch.setattr(choice, "SAMPLER", short)
    monkeypatch.setattr(sampled, "MODE", bnn.MAP(epochs=20, batch_size=None))


@pytest.mark.usefixtures("short_chains")
def test_auto_never_sees_a_test_row(study, folder, tmp_path):
    """With NaN in the place of every test row the same is chosen, and the same is drawn."""
    place = folder / "uci" / "tiny.npz"
    held = dict(np.load(place))
    rows = study.split_of(place, 2)
    for name in ("x", "y"):
        held[name][held["test_idx"][2]] = np.nan
    np.savez(tmp_path / "blind.npz", **held)
    blind = study.split_of(tmp_path / "blind.npz", 2)
    assert np.isnan(blind.y_test).all()

    fits = [study.fitted(study.QUICK, "4", "auto", each.x, each.y) for each in (rows, blind)]
    first, second = (fit.posterior_ for fit in fits)
    assert first.settings["auto"] == second.settings["auto"]
    assert first.settings["auto"].startswith("NUTS: ")
    for name, value in first.draws().items():
        assert torch.equal(value, second.draws()[name])


@pytest.mark.slow
def test_several_processes_find_what_one_finds(study, tmp_path):
    options = ("--quick", "--methods", "linear")
    run(study, *options, "--out", tmp_path / "one")
    run(study, *options, "--processes", 2, "--out", tmp_path / "two")
    one, two = (results(tmp_path / name)["splits"] for name in ("one", "two"))
    assert [row["ll"] for row in one] == [row["ll"] for row in two]
