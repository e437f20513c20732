"""The estimators keep scikit-learn's contract, and go through what people put estimators through."""

from __future__ import annotations

import io

import joblib
import numpy as np
import pytest
import torch
from estimators import QUICK, every_estimator, small_net
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import bnn

#: scikit-learn's checks that are expected to fail, and why.
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": (
        "it wants a weight of 2 to equal a row that is there twice to 1e-7. The loss is per row, so that N differs by "
        "a constant factor, which Adam's epsilon does not forgive; test_a_weight_counts_as_repeated_rows has the bound"
    ),
}

SLOW = ("BayesianModuleRegressor", "BayesianModuleClassifier", "BayesianClassifier")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(e, marks=pytest.mark.slow if type(e).__name__ in SLOW else (), id=type(e).__name__)
        for e in every_estimator()
    ],
)
def test_check_estimator_passes(estimator):
    results = check_estimator(estimator, expected_failed_checks=EXPECTED, on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    xfailed = {r["check_name"] for r in results if r["status"] == "xfail"}

    assert not failed
    assert xfailed <= set(EXPECTED)
    assert sum(r["status"] == "passed" for r in results) > 50


@pytest.fixture
def table() -> tuple[np.ndarray, np.ndarray]:
    """x ``(60, 3)``, and y ``(60,)``, of which the third column says nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    return x, 40 + 10 * x @ [1.0, 2.0, 0.0] + rng.normal(size=60)


def test_a_weight_counts_as_repeated_rows(table):
    x, y = table
    count = np.arange(60) % 4
    whole = clone(every_estimator()[0])

    repeated = clone(whole).fit(x.repeat(count, 0), y.repeat(count)).predict(x)
    weighted = clone(whole).fit(x, y, sample_weight=count).predict(x)
    plain = clone(whole).fit(x, y).predict(x)

    # Adam's epsilon, 1e-8, beside gradients of 1e-3 and more, over 30 steps.
    assert np.allclose(repeated, weighted, rtol=1e-3)
    assert not np.allclose(plain, weighted, rtol=1e-3)


def test_they_go_through_a_pipeline_and_a_grid_search(table):
    x, y = table
    search = GridSearchCV(
        make_pipeline(StandardScaler(), bnn.BayesianRegressor((4,), **QUICK)),
        {"bayesianregressor__epochs": [1, 30]},
        cv=2,
        error_score="raise",
    ).fit(x, y)

    assert search.best_params_ == {"bayesianregressor__epochs": 30}


def test_they_go_through_cross_validation_and_calibration(table):
    x, y = table
    classes = np.where(y > 40, "high", "low")
    classifier = bnn.BayesianClassifier((4,), **QUICK)

    proba = cross_val_predict(classifier, x, classes, cv=2, method="predict_proba")
    calibrated = CalibratedClassifierCV(classifier, cv=2).fit(x, classes)

    assert proba.shape == (60, 2)
    assert np.allclose(proba.sum(1), 1)
    assert calibrated.score(x, classes) > 0.8


def test_permutation_importance_finds_the_columns(table):
    x, y = table
    found = permutation_importance(bnn.BayesianRegressor((8,), **QUICK).fit(x, y), x, y, n_repeats=3, random_state=0)

    assert list(np.argsort(found.importances_mean)) == [2, 0, 1]


@pytest.mark.parametrize(
    "method",
    [bnn.MAP(), bnn.MeanField(), bnn.Laplace(of=bnn.MAP()), bnn.LastLayer(of=bnn.MAP()), bnn.SWAG()],
    ids=lambda method: type(method).__name__,
)
def test_joblib_gives_the_same_predictions_back(table, method):
    x, y = table
    fitted = bnn.BayesianRegressor((4,), method=method, epochs=3, compile="eager").fit(x, y)
    fitted.predict(x)  # whatever is kept for the next prediction has to go through too
    file = io.BytesIO()
    joblib.dump(fitted, file)
    again = joblib.load(io.BytesIO(file.getvalue()))

    for one, other in zip(fitted.predict(x, return_std=True), again.predict(x, return_std=True), strict=True):
        assert np.array_equal(one, other)
    assert len(file.getvalue()) < 100_000


def test_a_captured_fit_can_be_pickled(table):
    x, y = table
    fitted = bnn.BayesianRegressor((4,), **(QUICK | {"compile": "graph"})).fit(x, y)
    file = io.BytesIO()
    joblib.dump(fitted, file)

    assert np.array_equal(joblib.load(io.BytesIO(file.getvalue())).predict(x), fitted.predict(x))


def test_a_module_of_ones_own_stays_as_it_is(table):
    x, y = table
    net = small_net(3, 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fitted = bnn.BayesianModuleRegressor(net, **QUICK).fit(x, y)

    assert all(bool((net.state_dict()[name] == value).all()) for name, value in before.items())
    assert fitted.score(x, y) > 0.5


def test_the_global_random_state_stays(table):
    x, y = table
    torch.manual_seed(3)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    bnn.BayesianRegressor((4,), **QUICK).fit(x, y).predict(x)

    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_random_state_none_is_fresh_and_a_number_is_not(table):
    x, y = table
    same = [bnn.BayesianRegressor((4,), random_state=1, **QUICK).fit(x, y).predict(x) for _ in range(2)]
    other = [bnn.BayesianRegressor((4,), random_state=None, **QUICK).fit(x, y).predict(x) for _ in range(2)]

    assert np.array_equal(*same)
    assert not np.array_equal(*other)
