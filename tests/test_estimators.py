"""What the estimators predict, how they choose a method, and how they go on learning."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from estimators import QUICK, small_net
from marks import some
from sklearn.datasets import load_diabetes, load_wine
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bnn
from bnn.estimators import choice, sampled
from bnn.estimators.outputs import NOISE, flat
from bnn.estimators.sampled import WORK
from bnn.inference.base import Run


@pytest.fixture
def line() -> tuple[np.ndarray, np.ndarray]:
    """y = 1000 + 50 x0 + noise of 20; the second column says nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    return x, 1000 + 50 * x[:, 0] + 20 * rng.normal(size=200)


@pytest.fixture
def fitted(line) -> bnn.BayesianRegressor:
    return bnn.BayesianRegressor((8,), **QUICK).fit(*line)


def test_predictions_have_the_shapes_and_the_units_of_the_target(fitted, line):
    x, _ = line
    mean, std = fitted.predict(x, return_std=True)
    low, high = fitted.predict_interval(x, 0.8)
    quantiles = fitted.predict_quantile(x, [0.1, 0.9])
    drawn = fitted.sample_y(x, 7)

    assert mean.shape == std.shape == low.shape == high.shape == (200,)
    assert quantiles.shape == (2, 200)
    assert drawn.shape == (200, 7)
    assert mean.dtype == np.float64
    assert np.array_equal(low, quantiles[0])
    assert np.array_equal(high, quantiles[1])
    assert abs(mean.mean() - 1000) < 20
    # The noise is 20; its estimate from 200 rows has a standard error of 5 %, and the fit adds some.
    assert 15 < std.mean() < 30
    assert isinstance(fitted.predict_distribution(x), bnn.Prediction)


def test_scores_of_analysis_take_the_prediction(fitted, line):
    from bnn.analysis import crps

    x, y = line
    found = crps(fitted.predict_distribution(x), torch.as_tensor(y))
    assert found.mean < 20


def test_classes_of_any_kind_come_back(line):
    x, y = line
    classes = np.where(y > 1050, "high", np.where(y > 950, "middle", "low"))
    fitted = bnn.BayesianClassifier((8,), **QUICK).fit(x, classes)

    assert list(fitted.classes_) == ["high", "low", "middle"]
    assert fitted.score(x, classes) > 0.6
    assert fitted.predict_proba(x).shape == (200, 3)
    assert np.allclose(np.exp(fitted.predict_log_proba(x)), fitted.predict_proba(x))
    assert set(np.unique(fitted.sample_y(x, 5))) <= set(fitted.classes_)
    assert fitted.predict_distribution(x).entropy.epistemic.shape == (200,)


def test_a_bernoulli_likelihood_is_two_classes(line):
    x, y = line
    fitted = bnn.BayesianClassifier((8,), likelihood=bnn.likelihoods.Bernoulli(), **QUICK).fit(x, y > 1000)

    assert fitted.predict_proba(x).shape == (200, 2)
    assert fitted.score(x, y > 1000) > 0.8


@pytest.mark.parametrize(
    "likelihood",
    [None, bnn.likelihoods.HeteroscedasticGaussian(), bnn.likelihoods.MultivariateGaussian(2)],
    ids=["default", "heteroscedastic", "multivariate"],
)
def test_several_targets_keep_their_own_units(line, likelihood):
    x, y = line
    both = np.column_stack([y, 0.001 * x[:, 1]])
    fitted = bnn.BayesianRegressor((8,), likelihood=likelihood, **QUICK).fit(x, both)

    assert fitted.predict(x).shape == (200, 2)
    assert fitted.sample_y(x, 3).shape == (200, 2, 3)
    assert fitted.score(x, both) > 0.5


def test_early_stopping_holds_rows_out_and_stops(line):
    x, y = line
    settings = QUICK | {"epochs": 200, "method": bnn.MAP(), "lr": 0.05}
    fitted = bnn.BayesianRegressor((8,), early_stopping=True, patience=3, validation_fraction=0.25, **settings)
    history = fitted.fit(x, y).posterior_.history

    assert history.epochs < 200
    assert len(history.validation) == history.epochs


def test_a_stream_comes_near_the_fit_of_all_rows(line):
    """A linear model under full-rank Laplace: posterior to prior is then exact but for the noise scale."""
    x, y = line
    settings = {
        "method": bnn.Laplace(of=bnn.MAP(batch_size=None), covariance="full", tune=None),
        "likelihood": bnn.likelihoods.Gaussian(0.4),
        "epochs": 150,
        "lr": 0.05,
        "compile": "graph",
    }
    stream = bnn.BayesianRegressor((), **settings)
    for part in (slice(0, 100), slice(100, 200)):
        stream.partial_fit(x[part], y[part])
    half = bnn.BayesianRegressor((), **settings).fit(x[:100], y[:100])
    # The scaling is that of the first rows, so that the whole is fitted under it too.
    z, w = (y - half.target_mean_) / half.target_scale_, (x - x[:100].mean(0)) / x[:100].std(0)
    whole = bnn.BayesianRegressor((), standardise=False, **settings).fit(w, z)

    def spread(model: bnn.BayesianRegressor) -> torch.Tensor:
        return model.posterior_.draws(4000)["out.weight"].std(0)

    assert stream.n_rows_ == 200
    assert np.allclose(stream.predict(x), half.target_mean_ + half.target_scale_ * whole.predict(w), atol=0.5)
    assert torch.allclose(spread(stream), spread(whole), rtol=0.1)
    assert not torch.allclose(spread(half), spread(whole), rtol=0.1)


def test_a_stream_of_classes_knows_them_beforehand(line):
    x, y = line
    fitted = bnn.BayesianClassifier((4,), **QUICK).partial_fit(x, y > 1000, classes=[False, True])
    fitted.partial_fit(x, y > 1000)

    with pytest.raises(ValueError, match="row 0 has the class 7, which is not among those of the first call"):
        fitted.partial_fit(x, np.full(200, 7))


def test_points_are_no_prior(line):
    with pytest.raises(ValueError, match="a prior needs a posterior, not a point"):
        bnn.BayesianRegressor((4,), **(QUICK | {"method": bnn.MAP(), "epochs": 1})).partial_fit(*line).partial_fit(
            *line
        )


def chosen(rows: int, hidden: tuple[int, ...] = (50, 50), training=None, **given) -> str:
    net = bnn.nets.mlp(10, hidden, 1)
    likelihood = given.pop("likelihood", bnn.likelihoods.Gaussian())
    model = bnn.BNN(net, bnn.priors.Normal("fan_in"), likelihood, output=given.pop("output", None))
    own, stream = given.pop("own", True), given.pop("stream", False)
    resizable = given.pop("resizable", False)
    run = Run(seed=0, **given)
    found = choice.chosen("auto", model, rows, run, training or {}, own=own, stream=stream, resizable=resizable)
    if found.sampled:
        return "sampled"
    return type(found.method).__name__


def test_auto_chooses_by_counts():
    assert chosen(40) == "NUTS"
    assert chosen(40, training={"epochs": 5}) == "Laplace"
    assert chosen(400) == "Laplace"
    assert chosen(400, own=False) == "Ensemble"
    assert chosen(400, weight=np.ones(400)) == "Ensemble"
    assert chosen(400, likelihood=bnn.likelihoods.Bernoulli()) == "Ensemble"
    assert chosen(400, stream=True) == "MeanField"


def test_auto_samples_learned_scales_and_noise_where_rows_are_few():
    """11 columns and 50 units: 10 * 50 + 50 + 50 + 1 weights and a noise scale, 602 unknowns."""
    single = {"hidden": (50,), "output": flat, "resizable": True}
    assert chosen(WORK // 602, **single) == "sampled"
    assert chosen(WORK // 602 + 1, **single) == "Laplace"
    few = 400
    assert chosen(few, **(single | {"resizable": False})) == "Laplace"
    assert chosen(few, **(single | {"output": None})) == "Laplace"  # several targets
    assert chosen(few, **single, training={"epochs": 5}) == "Laplace"
    assert chosen(few, **single, own=False) == "Ensemble"
    assert chosen(few, **single, weight=np.ones(few)) == "Ensemble"
    assert chosen(few, **single, validation=(0, 0)) == "Ensemble"
    assert chosen(few, **single, stream=True) == "MeanField"
    assert chosen(few, **single, likelihood=bnn.likelihoods.StudentT()) == "Laplace"


def test_auto_samples_classes_where_rows_are_few():
    """11 columns and 50 units, three classes: 10 * 50 + 50 + 50 * 1 + 1 weights of the network in `chosen`, 601."""
    single = {"hidden": (50,), "resizable": True, "likelihood": bnn.likelihoods.Categorical()}
    assert chosen(WORK // 601, **single) == "sampled"
    assert chosen(WORK // 601 + 1, **single) == "Ensemble"
    few = 400
    assert chosen(few, **(single | {"resizable": False})) == "Ensemble"
    assert chosen(few, **single, training={"epochs": 5}) == "Ensemble"
    assert chosen(few, **single, own=False) == "Ensemble"
    assert chosen(few, **single, stream=True) == "MeanField"


def test_chains_start_where_the_mean_is_that_of_a_mode():
    """Before any step, chain i predicts what mode i does, and its noise is nearly even."""
    torch.manual_seed(0)
    modes = []
    simple = bnn.BNN(bnn.nets.mlp(3, (5,)), bnn.priors.Normal("fan_in"), bnn.likelihoods.Gaussian(), output=flat)
    model = sampled.model_to_sample(bnn.nets.mlp(3, (5,), 2))
    x = torch.randn(30, 3)

    def fit(model, method):
        quick = bnn.Ensemble(members=method.members, of=bnn.MAP(epochs=100, lr=0.05, batch_size=None))
        modes.append(bnn.fit(model, (x, x[:, 0]), quick, progress=False, compile="eager"))
        return modes[0]

    method = sampled.start_at_modes(sampled.SAMPLER, fit, simple, model, seed=0)
    starts, mode = method.init.predict(x), modes[0].predict(x)
    assert starts.outputs.shape == (method.chains, 30, 2)
    torch.testing.assert_close(starts.outputs[..., 0], mode.outputs)
    noise = mode.latents["likelihood.scale"].reshape(-1, 1).log()
    assert (starts.outputs[..., 1] - noise).abs().max() < 1


@pytest.mark.parametrize(
    ("hidden", "encoding"),
    some(itertools.product([(), (3,)], ["onehot", "embedding"]), [((), "onehot"), ((3,), "embedding")]),
)
def test_what_auto_samples_predicts_in_own_units_and_is_saved(hidden, encoding, monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "SAMPLER", bnn.NUTS(chains=2, warmup=5, num_samples=10, max_depth=3))
    monkeypatch.setattr(sampled, "MODE", bnn.MAP(epochs=200, lr=0.05, batch_size=None))
    rng = np.random.default_rng(0)
    kind = np.where(rng.random(60) > 0.5, "u", "v")
    x = pd.DataFrame({"a": rng.normal(size=60), "kind": kind})
    y = 1000 + 50 * x["a"] + 30 * (kind == "u") + 5 * rng.normal(size=60)
    fitted = bnn.BayesianRegressor(hidden, "tanh", encoding=encoding, compile="eager").fit(x, y)

    assert fitted.posterior_.settings["auto"].startswith("NUTS: ")
    assert fitted.score(x, y) > 0.8
    mean, std = fitted.predict(x, return_std=True)
    assert np.isfinite(std).all()
    assert bnn.load(fitted.save(tmp_path / "run")).predict(x) == pytest.approx(mean)


@pytest.mark.parametrize("classes", [2, 3])
def test_what_auto_samples_of_classes_is_saved(classes, monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "SAMPLER", bnn.NUTS(chains=2, warmup=10, num_samples=10, max_depth=3))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = np.array(["low", "middle", "high"])[np.digitize(x[:, 0], [-0.5, 0.5] if classes == 3 else [0.0])]
    fitted = bnn.BayesianClassifier((3,), "tanh", compile="eager").fit(x, y)
    proba = fitted.predict_proba(x)

    assert fitted.posterior_.settings["auto"].startswith("NUTS: ")
    assert sum(name.startswith("prior.") for name in fitted.posterior_.draws()) == 4  # a scale for each of two layers
    assert fitted.score(x, y) > 0.8
    assert bnn.load(fitted.save(tmp_path / "run")).predict_proba(x) == pytest.approx(proba)


def test_training_settings_reach_the_method_inside():
    found = choice.trained(bnn.Ensemble(members=3, of=bnn.MAP()), {"epochs": 7, "lr": 0.5})

    assert (found.members, found.of.epochs, found.of.lr) == (3, 7, 0.5)


def test_a_module_of_ones_own_says_where_it_does_not_fit(line):
    with pytest.raises(ValueError, match="the network cannot take these inputs"):
        bnn.BayesianModuleRegressor(small_net(5, 1), **QUICK).fit(*line)
    with pytest.raises(TypeError, match=r"module is a torch\.nn\.Module"):
        bnn.BayesianModuleRegressor(lambda inputs, outputs: None, **QUICK).fit(*line)


def test_auto_does_not_take_everything_for_noise():
    """120 rows, 10 columns, a wide network: a fit that fell into "all is noise" would have R^2 0 and noise 1."""
    x, y = load_diabetes(return_X_y=True)
    train, test, own, other = train_test_split(x, y, train_size=120, test_size=150, random_state=3)
    fitted = bnn.BayesianRegressor((20,), epochs=80, compile="graph").fit(train, own)
    low, high = fitted.predict_interval(test, 0.9)
    covered = ((other >= low) & (other <= high)).mean()
    noise = fitted.posterior_.draws(1)["likelihood.scale"].item()

    assert fitted.posterior_.settings["auto"].startswith("Laplace")
    assert fitted.score(test, other) > 0.3
    assert noise < 0.9
    assert abs(covered - 0.9) < 3 * np.sqrt(0.9 * 0.1 / 150)


def test_the_noise_prior_holds_what_it_says():
    from scipy import stats

    low, high = stats.lognorm(NOISE[1], scale=np.exp(NOISE[0])).ppf([0.025, 0.975])
    assert (low, high) == pytest.approx((0.052, 2.61), rel=0.01)


@pytest.mark.slow
def test_the_defaults_are_as_good_as_ridge():
    """Held-out root mean square errors of the defaults and of ridge regression, paired row by row."""
    x, y = load_diabetes(return_X_y=True)
    train, test, own, other = train_test_split(x, y, test_size=0.3, random_state=0)
    fitted = bnn.BayesianRegressor(compile="graph").fit(train, own)
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13))).fit(train, own)
    difference = (fitted.predict(test) - other) ** 2 - (ridge.predict(test) - other) ** 2
    low, high = fitted.predict_interval(test, 0.9)

    assert difference.mean() < 2 * difference.std() / np.sqrt(len(test))
    assert abs(((other >= low) & (other <= high)).mean() - 0.9) < 3 * np.sqrt(0.9 * 0.1 / len(test))


@pytest.mark.slow
def test_the_defaults_classify_wine_and_know_what_they_do_not_know():
    """Far from the rows the draws disagree: an ensemble under the prior has less than 0.001 nats there."""
    x, y = load_wine(return_X_y=True)
    train, test, own, other = train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)
    fitted = bnn.BayesianClassifier().fit(train, own)
    far = fitted.predict_distribution(test + 4 * train.std(0)).entropy.epistemic

    assert fitted.score(test, other) > 0.9
    assert far.mean() > 0.1


def test_a_linear_model_is_that_of_least_squares(line):
    """Under a flat enough prior and known noise the mean of a linear model is that of least squares."""
    x, y = line
    settings = {"prior": bnn.priors.Normal(100.0), "likelihood": bnn.likelihoods.Gaussian(0.4)}
    fitted = bnn.BayesianRegressor((), method=bnn.LastLayer(of=bnn.MAP()), epochs=1, compile="eager", **settings)

    assert np.allclose(fitted.fit(x, y).predict(x), LinearRegression().fit(x, y).predict(x), rtol=1e-4)
