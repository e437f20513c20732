"""Loggers as callbacks, the library's own log, folds in parallel."""

from __future__ import annotations

import csv
import logging
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_predict

import bnn

ROOT = Path(__file__).parent.parent


def test_a_csv_has_a_line_for_each_epoch(model, regression, tmp_path):
    path = tmp_path / "runs" / "a.csv"
    seen = []
    posterior = bnn.fit(
        model,
        regression,
        bnn.MeanField(epochs=3),
        validation=regression,
        compile="eager",
        progress=False,
        callbacks=[bnn.loggers.CSVLogger(path), lambda progress: seen.append(progress)],
    )
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["epoch"]) for line in lines] == [1, 2, 3]
    for line, progress in zip(lines, seen, strict=True):
        assert float(line["loss"]) == progress.loss
        assert float(line["validation"]) == progress.validation
    assert posterior.history.epochs == 3
    assert [p.name for p in path.parent.iterdir()] == ["a.csv"]


def test_a_csv_is_written_every_few_epochs_and_at_the_end(model, regression, tmp_path):
    path = tmp_path / "a.csv"
    heights = []
    bnn.fit(
        model,
        regression,
        bnn.MAP(epochs=5),
        compile="eager",
        progress=False,
        callbacks=[
            bnn.loggers.CSVLogger(path, every=2),
            lambda progress: heights.append(len(path.read_text().splitlines()) - 1 if path.exists() else 0),
        ],
    )
    assert heights == [0, 2, 2, 4, 5]
    with pytest.raises(ValueError, match="every"):
        bnn.loggers.CSVLogger(path, every=0)


# What tensorboard does to protobuf and numpy while it is imported is its own affair.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_written(model, regression, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    bnn.fit(
        model,
        regression,
        bnn.MAP(epochs=2),
        validation=regression,
        compile="eager",
        progress=False,
        callbacks=[bnn.loggers.TensorBoardLogger(tmp_path)],
    )
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert "validation/log_density" in events.Tags()["scalars"]


def test_the_library_prints_nothing_and_logs_what_it_does(model, regression, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="bnn"):
        bnn.fit(model, regression, bnn.MAP(epochs=1), compile="eager", progress=False)
    assert "MAP" in caplog.text
    assert "run as eager" in caplog.text
    assert capsys.readouterr() == ("", "")


def test_nobody_who_does_not_listen_hears_the_log(model, regression, capsys):
    bnn.fit(model, regression, bnn.MAP(epochs=1), compile="eager", progress=False)
    assert capsys.readouterr() == ("", "")
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("bnn").handlers)


@pytest.mark.slow
def test_folds_in_two_processes_give_what_one_gives():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    y = x.sum(1)
    regressor = bnn.BayesianRegressor(hidden=(4,), method=bnn.MAP(epochs=3), compile="eager")
    assert np.array_equal(cross_val_predict(regressor, x, y, cv=4, n_jobs=2), cross_val_predict(regressor, x, y, cv=4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_lightning_example_runs(tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason="lightning is not installed")
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(ROOT / "docs" / "examples" / "lightning_fit.py"))
    assert isinstance(found["posterior"], bnn.Posterior)
    x = torch.linspace(-1, 1, 20).unsqueeze(1)
    assert (found["posterior"].predict(x).mean - torch.sin(3 * x)).square().mean().sqrt() < 0.3
