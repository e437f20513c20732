"""Tables as people have them: categories, missing values, new levels, mistakes; each mistake in one clear sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from estimators import QUICK
from sklearn.base import clone

import bnn
from bnn.estimators.columns import Column
from bnn.estimators.encoding import CategoricalColumn, Encoder, NumericColumn, fit_encoder


@pytest.fixture
def frame() -> pd.DataFrame:
    """Numbers, texts, true and false, categories; some of each missing."""
    rng = np.random.default_rng(0)
    n = 80
    table = pd.DataFrame(
        {
            "age": rng.normal(50, 10, n),
            "town": rng.choice(["a", "b", "c"], n),
            "flag": rng.random(n) > 0.5,
            "income": pd.array(rng.integers(0, 100, n), dtype="Int64"),
            "size": pd.Categorical(rng.choice(["S", "M"], n)),
        }
    )
    table.loc[3, "income"] = pd.NA
    table.loc[5, "town"] = None
    table.loc[7, "size"] = np.nan
    return table


@pytest.fixture
def price(frame) -> np.ndarray:
    rng = np.random.default_rng(1)
    return 1000 + 20 * frame["age"].to_numpy() + 300 * (frame["town"] == "a").to_numpy() + rng.normal(size=80)


@pytest.mark.parametrize("encoding", ["onehot", "embedding"])
def test_a_frame_is_learned_from(frame, price, encoding):
    fitted = bnn.BayesianRegressor((8,), encoding=encoding, **QUICK).fit(frame, price)

    assert fitted.score(frame, price) > 0.8
    assert list(fitted.feature_names_in_) == list(frame.columns)
    assert fitted.n_features_in_ == 5
    assert fitted.categories_ == {"town": ("a", "b", "c"), "flag": ("False", "True"), "size": ("M", "S")}
    assert fitted.imputed_ == {"income": float(frame["income"].median())}


def encode(encoder: Encoder, frame: pd.DataFrame):
    fitted = bnn.BayesianRegressor()
    from bnn.estimators.columns import read_columns

    return encoder.transform(read_columns(fitted, frame, (), reset=True))


def encoder_of(frame: pd.DataFrame, **settings) -> Encoder:
    from bnn.estimators.columns import read_columns

    given = {
        "encoding": "onehot",
        "standardise": True,
        "unknown": "warn",
        "missing": "impute",
        "constant": "error",
        **settings,
    }
    return fit_encoder(read_columns(bnn.BayesianRegressor(), frame, (), reset=True), None, **given)


def test_the_encoding_is_what_it_says():
    frame = pd.DataFrame({"x": [1.0, 3.0, np.nan, 5.0], "c": ["u", "v", None, "u"]})
    got = encode(encoder_of(frame), frame)
    scale = np.std([1, 3, 5])
    expected = [  # x, whether x is missing, c = u, c = v, c is missing
        [-2 / scale, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 1, 0, 0, 1],  # the median is 3, which is the mean
        [2 / scale, 0, 1, 0, 0],
    ]

    assert np.allclose(got, expected)


def test_embeddings_get_indices_and_the_first_is_unknown():
    frame = pd.DataFrame({"x": [1.0, 3.0, 2.0], "c": ["u", "v", None]})
    encoder = encoder_of(frame, encoding="embedding")
    with pytest.warns(UserWarning, match="'w' .1 row, the first is row 1"):
        got = encode(encoder, pd.DataFrame({"x": [1.0, 3.0, 2.0], "c": ["v", "w", None]}))

    assert encoder.embedded == [4]
    assert got["categorical"].tolist() == [[2], [0], [3]]


def test_a_new_category_is_taken_as_none(frame, price):
    fitted = bnn.BayesianRegressor((8,), **QUICK).fit(frame, price)
    new = frame.head(2).assign(town=["zz", "a"])
    with pytest.warns(UserWarning, match="column 'town' has categories that were not there in training: 'zz'"):
        found = fitted.predict(new)

    assert np.isfinite(found).all()
    with pytest.raises(ValueError, match="'town' has categories that were not there"):
        fitted.set_params(unknown="error").fit(frame, price).predict(new)


def test_a_number_missing_for_the_first_time_is_told(frame, price):
    fitted = bnn.BayesianRegressor((8,), **QUICK).fit(frame, price)
    new = frame.head(3).copy()
    new.loc[1, "age"] = np.nan
    with pytest.warns(UserWarning, match="column 'age' had no missing value in training, and has 1 here"):
        found = fitted.predict(new)

    instead = new.assign(age=new["age"].fillna(frame["age"].median()))
    assert np.allclose(found, fitted.predict(instead))


def test_categories_may_be_numbers(frame, price):
    coded = frame.assign(town=frame["town"].map({"a": 1, "b": 2, "c": 3}))
    by_name = bnn.BayesianRegressor((8,), categorical=["town"], **QUICK).fit(coded, price)
    by_text = bnn.BayesianRegressor((8,), **QUICK).fit(frame, price)

    assert by_name.categories_["town"] == ("1", "2", "3")
    assert np.allclose(by_name.predict(coded), by_text.predict(frame))


def test_an_array_may_have_categories_by_position(price):
    x = np.column_stack([np.random.default_rng(0).normal(size=80), np.arange(80) % 3])
    fitted = bnn.BayesianRegressor((8,), categorical=[1], **QUICK).fit(x, price)

    assert fitted.categories_ == {"x1": ("0", "1", "2")}


def test_polars_frames_are_the_same_table(frame, price):
    polars = pytest.importorskip("polars")
    plain = frame.assign(income=frame["income"].astype(float), size=frame["size"].astype(object))
    other = polars.DataFrame({name: [None if pd.isna(v) else v for v in plain[name]] for name in plain})
    fitted = bnn.BayesianRegressor((8,), **QUICK)

    assert np.allclose(clone(fitted).fit(plain, price).predict(plain), fitted.fit(other, price).predict(other))


def test_missing_values_can_be_refused(frame, price):
    with pytest.raises(ValueError, match=r"column 'town' has NaN, no value, in 1 of 80 rows, the first is row 5"):
        bnn.BayesianRegressor(missing="error", **QUICK).fit(frame, price)


def test_a_constant_column_can_be_dropped(frame, price):
    constant = frame.assign(k=1.0)
    with pytest.warns(UserWarning, match="'k'"):
        fitted = bnn.BayesianRegressor((8,), constant="drop", **QUICK).fit(constant, price)

    assert fitted.n_features_in_ == 6
    assert np.allclose(fitted.predict(constant), fitted.predict(constant.assign(k=9.0)))


def spoil(frame: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    other = frame.astype({column: object})
    other.loc[row, column] = value
    return other


BAD_TABLES = {
    "text among numbers": (lambda f: spoil(f, "age", 4, "old"), r"column 'age' holds numbers, .* in row 4: 'old'"),
    "infinity": (lambda f: f.assign(age=f["age"].where(f.index != 2, np.inf)), "column 'age' contains infinity"),
    "nothing in it": (lambda f: f.assign(k=np.nan), "column 'k' has no value in any of 80 rows"),
    "one number": (lambda f: f.assign(k=1.0), r"1 of 6 columns have the same value in every row: 'k'"),
    "one text": (lambda f: f.assign(k="same"), r"same value in every row: 'k' .same"),
    "a name twice": (lambda f: f.set_axis(["age", "town", "flag", "income", "age"], axis=1), "several columns of one"),
    "dates": (lambda f: f.assign(d=pd.Timestamp("2020-01-01")), "column 'd' is of type Datetime"),
    "no rows": (lambda f: f.head(0), "0 sample"),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_a_bad_table_gets_one_sentence(frame, price, what):
    break_it, words = BAD_TABLES[what]
    table = break_it(frame)
    with pytest.raises((ValueError, TypeError), match=words):
        bnn.BayesianRegressor(**QUICK).fit(table, price[: len(table)])


BAD_LATER = {
    "missing column": (lambda f: f.rename(columns={"income": "incme"}), "for 'income' there is 'incme'"),
    "other order": (lambda f: f[["town", "age", "flag", "income", "size"]], "must be in the same order"),
    "text": (lambda f: spoil(f, "age", 4, "old"), "column 'age' holds numbers, but row 4 has the text 'old'"),
}


@pytest.mark.parametrize("what", BAD_LATER)
def test_a_bad_table_to_predict_gets_one_sentence(frame, price, what):
    break_it, words = BAD_LATER[what]
    fitted = bnn.BayesianRegressor((4,), **(QUICK | {"epochs": 1})).fit(frame, price)
    with pytest.raises(ValueError, match=words):
        fitted.predict(break_it(frame))


def test_an_array_with_text_is_told_of_data_frames(frame, price):
    with pytest.raises(ValueError, match="An array holds numbers; columns of texts need a data frame"):
        bnn.BayesianRegressor(**QUICK).fit(frame.to_numpy(), price)


BAD_TARGETS = {
    "constant": (lambda y: 0 * y, "y has the same value in every row"),
    "text": (lambda y: ["x", *y[1:]], "y holds numbers, but row 0 has the text 'x'"),
    "fewer": (lambda y: y[:3], "inconsistent numbers of samples"),
    "missing": (lambda y: np.where(np.arange(80) == 1, np.nan, y), "contains NaN"),
    "none": (lambda y: None, "requires y to be passed"),
}


@pytest.mark.parametrize("what", BAD_TARGETS)
def test_bad_targets_get_one_sentence(frame, price, what):
    break_it, words = BAD_TARGETS[what]
    with pytest.raises(ValueError, match=words):
        bnn.BayesianRegressor(**QUICK).fit(frame, break_it(price))


BAD_SETTINGS = {
    "method": ({"method": "mapp"}, "did you mean 'map'"),
    "training of what is not trained": ({"method": "nuts", "epochs": 3}, "NUTS has no such setting"),
    "column": ({"categorical": ["twn"]}, "did you mean 'town'"),
    "encoding": ({"encoding": "hash"}, "encoding is one of"),
    "labels": ({"likelihood": bnn.likelihoods.Categorical()}, "a regressor cannot use it"),
    "share": ({"early_stopping": True, "validation_fraction": 2.0}, "validation_fraction is a share"),
}


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_bad_settings_get_one_sentence(frame, price, what):
    settings, words = BAD_SETTINGS[what]
    with pytest.raises(ValueError, match=words):
        bnn.BayesianRegressor(**settings).fit(frame, price)


def test_one_class_and_one_row_are_too_few(frame):
    with pytest.raises(ValueError, match="y has one class only, 'a'"):
        bnn.BayesianClassifier(**QUICK).fit(frame, ["a"] * 80)
    with pytest.raises(ValueError, match="too few rows: n_samples=1"):
        bnn.BayesianClassifier(**QUICK).fit(frame.head(1), ["a"])


def test_weighted_medians_and_moments_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    values, count = rng.normal(size=31), np.arange(31) % 4
    keep = count > 0
    settings = {
        "encoding": "onehot",
        "standardise": True,
        "unknown": "warn",
        "missing": "impute",
        "constant": "error",
    }
    once = fit_encoder([Column("x", values[keep])], count[keep].astype(float), **settings).columns[0]
    twice = fit_encoder([Column("x", values.repeat(count))], None, **settings).columns[0]

    assert isinstance(once, NumericColumn)
    assert isinstance(twice, NumericColumn)
    assert once.median == pytest.approx(twice.median)
    assert once.mean == pytest.approx(twice.mean)
    assert once.scale == pytest.approx(twice.scale)


def test_a_level_of_missing_values_is_the_last():
    column = CategoricalColumn("c", ("a", "b"), missing=True)

    assert column.indices(np.array(["b", None, "a"], dtype=object), "error").tolist() == [2, 3, 1]


KINDS = [
    lambda rng, n: rng.normal(size=n),
    lambda rng, n: 1e300 * rng.normal(size=n),
    lambda rng, n: 1e-300 * rng.normal(size=n),
    lambda rng, n: rng.integers(0, 2**62, n),
    lambda rng, n: rng.choice(["a", "", "\u00e9", " "], n),
    lambda rng, n: rng.random(n) > 0.5,
    lambda rng, n: rng.choice(np.array([None, "x", 1.5, True], dtype=object), n),
    lambda rng, n: np.where(rng.random(n) < 0.5, np.nan, rng.normal(size=n)),
    lambda rng, n: pd.array(rng.choice([1, 2, None], n), dtype="Int64"),
    lambda rng, n: pd.Categorical(rng.choice(["u", "v"], n)),
    lambda rng, n: pd.date_range("2020", periods=n),
    lambda rng, n: [{"a": 1}] * n,
    lambda rng, n: rng.choice(["1", "2", "x"], n),
    lambda rng, n: np.full(n, np.inf),
    lambda rng, n: np.ones(n),
    lambda rng, n: rng.normal(size=n) + 1j,
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:invalid value encountered:RuntimeWarning:sklearn")
@pytest.mark.parametrize("seed", range(60))
def test_any_table_ends_in_finite_predictions_or_in_a_sentence(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.choice([0, 1, 2, 3, 12]))
    table = pd.DataFrame({f"c{i}": KINDS[rng.integers(len(KINDS))](rng, n) for i in range(rng.integers(0, 4))})
    y = KINDS[rng.integers(len(KINDS))](rng, n) if rng.random() < 0.3 else rng.normal(size=n)
    settings = QUICK | {"epochs": 1, "encoding": str(rng.choice(["onehot", "embedding"])), "constant": "drop"}
    try:
        found = bnn.BayesianRegressor((3,), **settings).fit(table, y).predict(table)
    except (ValueError, TypeError):
        return  # anything else would be a traceback that says nothing
    assert found.shape == (n,)
    assert np.isfinite(found).all()
