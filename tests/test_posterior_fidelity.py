"""The study of every method against NUTS runs whole, and its distances are distances."""

import pytest
import torch
from test_experiments import run, script

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


def checked(results: dict, methods: int) -> None:
    rows = results["curve"]["rows"]
    assert len(rows) == methods
    assert all(0 <= row["tv"] <= 1 and row["seconds"] > 0 for row in rows)


def test_the_quick_study_runs(tmp_path) -> None:
    checked(run("posterior_fidelity", tmp_path, "--quick"), methods=6)


@pytest.mark.slow
def test_the_whole_study_runs(tmp_path) -> None:
    checked(run("posterior_fidelity", tmp_path, "--quick", "--skip", ""), methods=16)
