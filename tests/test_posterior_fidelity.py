"""The study of every method against NUTS runs whole, and its distances are distances."""

import json
import sys

import pytest
import torch
from test_experiments import script

import bnn
from bnn.prediction import Prediction


@pytest.fixture(scope="module")
def study():
    return script("posterior_fidelity")


def gaussian(mean: float, sd: float) -> Prediction:
    """One draw of a Gaussian at three rows."""
    return Prediction(
        bnn.likelihoods.Gaussian(),
        torch.full((1, 3, 1), mean).double(),
        {"likelihood.scale": torch.tensor([sd]).double()},
    )


def test_total_variation_is_that_of_two_gaussians(study) -> None:
    """Of N(0, 1) and N(m, 1) it is 2 Phi(m / 2) - 1; the quadrature has 400 points."""
    config = study.Config()
    expected = 2 * torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.5)) - 1
    found = study.distance(gaussian(1.0, 1.0), gaussian(0.0, 1.0), config)
    assert found["tv"] == pytest.approx(float(expected), abs=1e-3)
    assert found["mean"] == pytest.approx(1.0)
    assert study.distance(gaussian(0.0, 2.0), gaussian(0.0, 1.0), config)["sd"] == pytest.approx(2.0)
    assert study.distance(gaussian(0.5, 1.0), gaussian(0.5, 1.0), config)["tv"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
def test_the_whole_study_runs(study, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["posterior_fidelity.py", "--quick", "--sets", "curve", "--out", str(tmp_path)])
    study.main()
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["curve"]["rows"]
    assert len(rows) == 16
    assert all(0 <= row["tv"] <= 1 and row["seconds"] > 0 for row in rows.values())
    assert (tmp_path / "curve.png").stat().st_size > 10_000
