"""Predictions as pandas frames and xarray datasets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bnn


@pytest.fixture
def numbers(model, regression, quick) -> bnn.Prediction:
    return quick(model, regression, bnn.Ensemble(members=3, of=bnn.MAP(epochs=1))).predict(regression[0][:5])


def predicted(likelihood: bnn.likelihoods.Likelihood, outputs: torch.Tensor) -> bnn.Prediction:
    return bnn.Prediction(likelihood, outputs, {})


def test_a_frame_of_numbers_has_moments_and_an_interval(numbers):
    flat = bnn.Prediction(bnn.likelihoods.Gaussian(), numbers.outputs.squeeze(-1), numbers.latents)
    frame = flat.to_dataframe(level=0.8, index=list("abcde"))
    assert list(frame) == ["mean", "sd", "epistemic_sd", "aleatoric_sd", "lower_80", "upper_80"]
    assert list(frame.index) == list("abcde")
    assert np.array_equal(frame["sd"], flat.std.numpy())
    assert np.array_equal(frame["upper_80"], flat.interval(0.8)[1].numpy())
    assert np.allclose(frame["sd"] ** 2, frame["epistemic_sd"] ** 2 + frame["aleatoric_sd"] ** 2)


def test_several_targets_have_a_column_each():
    prediction = predicted(bnn.likelihoods.HeteroscedasticGaussian(), torch.randn(4, 6, 4))
    frame = prediction.to_dataframe(targets=["height", "weight"])
    assert np.array_equal(frame["mean_weight"], prediction.mean[:, 1].numpy())
    assert np.array_equal(frame["lower_90_height"], prediction.interval(0.9)[0][:, 0].numpy())
    assert [name for name in prediction.to_dataframe() if name.startswith("mean")] == ["mean_0", "mean_1"]
    with pytest.raises(ValueError, match="2 targets a row"):
        prediction.to_dataframe(targets=["height"])


def test_classes_have_a_probability_each():
    prediction = predicted(bnn.likelihoods.Categorical(), torch.randn(4, 6, 3))
    frame = prediction.to_dataframe(classes=["ant", "bee", "cat"])
    assert list(frame) == ["entropy", "mutual_information", "probability_ant", "probability_bee", "probability_cat"]
    assert np.array_equal(frame["probability_bee"], prediction.probs[:, 1].numpy())
    with pytest.raises(ValueError, match="3 classes"):
        prediction.to_dataframe(classes=["ant"])
    yes = predicted(bnn.likelihoods.Bernoulli(), torch.randn(4, 6)).to_dataframe(classes=["no", "yes"])
    assert np.allclose(yes["probability_no"] + yes["probability_yes"], 1)
    assert "probability" in predicted(bnn.likelihoods.Bernoulli(), torch.randn(4, 6)).to_dataframe()


def test_a_dataset_names_its_dimensions():
    prediction = predicted(bnn.likelihoods.HeteroscedasticGaussian(), torch.randn(4, 6, 4))
    found = prediction.to_xarray(targets=["height", "weight"], quantiles=(0.1, 0.9), draws=3, seed=1)
    assert dict(found.sizes) == {"row": 6, "target": 2, "quantile": 2, "draw": 3}
    assert found["quantiles"].dims == ("quantile", "row", "target")
    chosen = found["quantiles"].sel(quantile=0.9, target="weight")
    assert np.array_equal(chosen, prediction.quantile(0.9)[:, 1].numpy())
    assert np.array_equal(found["draws"], prediction.sample(3, 1).numpy())
    assert found.attrs["num_draws"] == 4
    classes = predicted(bnn.likelihoods.Categorical(), torch.randn(4, 6, 3)).to_xarray(classes=["ant", "bee", "cat"])
    assert classes["probabilities"].sel({"class": "bee"}).dims == ("row",)
    assert set(classes) == {"probabilities", "entropy", "mutual_information"}


def test_a_class_for_each_pixel():
    prediction = predicted(bnn.likelihoods.Categorical(), torch.randn(4, 6, 3, 2, 2))
    found = prediction.to_xarray()
    assert found["probabilities"].dims == ("row", "target_0", "target_1", "class")
    assert prediction.to_dataframe().shape == (6, 4 * (2 + 3))


def test_the_predictions_of_estimators_are_in_the_targets_units():
    x, y = torch.randn(30, 2).numpy(), 100 + 10 * np.arange(30.0)
    regressor = bnn.BayesianRegressor(hidden=(3,), method=bnn.MAP(epochs=2), compile="eager").fit(x, y)
    frame = regressor.predict_distribution(x).to_dataframe()
    assert np.array_equal(frame["mean"], regressor.predict(x))
    assert np.array_equal(regressor.predict_distribution(x).to_xarray()["mean"], regressor.predict(x))
