"""Conformal prediction: its guarantee by simulation, and by a second library."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from bnn.analysis import conformal, conformal_sets, cv_plus, split_intervals, split_sets
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.prediction import Prediction
from bnn.random import isolated

SETS = 1000


def band(probability: float, sets: int = SETS) -> tuple[float, float]:
    """Where the share among so many sets lies, but for one time in 10,000."""
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], sets, probability) / sets
    return float(low), float(high)


def promised(n: int, level: float) -> float:
    return math.ceil((n + 1) * level - 1e-9) / (n + 1)


def line(x: Tensor, draws: int = 2) -> Prediction:
    """A poor prediction of what `line_data` makes: mean 0.5 x, and standard deviations that are wrong."""
    scale = torch.full((draws,), 0.3, dtype=torch.float64)
    slopes = torch.linspace(0.3, 0.7, draws, dtype=torch.float64)
    return Prediction(Gaussian(), slopes.reshape(-1, *[1] * x.dim()) * x, {"likelihood.scale": scale})


def line_data(*shape: int) -> tuple[Tensor, Tensor]:
    """Rows first; further dimensions are data sets of their own, which a Prediction holds as outputs."""
    x = torch.randn(*shape).double()
    return x, x + (0.5 + x.abs()) * torch.randn(*shape).double()


def share_inside(ends: tuple[Tensor, Tensor], y: Tensor) -> float:
    return ((ends[0] <= y) & (y <= ends[1])).double().mean().item()


def split_coverage(unit: str, n: int, level: float) -> float:
    """Of one new row each, over 1,000 data sets."""
    with isolated(1):
        x, y = line_data(n + 1, SETS)
    return share_inside(split_intervals(line(x[:n]), y[:n], unit).interval(line(x[n:]), level), y[n:])


@pytest.mark.parametrize("unit", ["normalised", "absolute"])
@pytest.mark.parametrize(("n", "level"), [(10, 0.8), (39, 0.9)])
def test_split_intervals_hold_exactly_what_they_promise(unit, n, level):
    low, high = band(promised(n, level))
    assert low <= split_coverage(unit, n, level) <= high


def test_control_a_plain_quantile_of_the_residuals_holds_less(patch_line):
    patch_line(conformal, "smallest", "(len(values) + 1) * level", "len(values) * level")
    assert split_coverage("normalised", 10, 0.8) < band(promised(10, 0.8))[0]


def classes(rows: int, k: int = 4) -> tuple[Tensor, Tensor]:
    """Logits that are three times too sure, and labels; class 0 is rare, and predicted badly."""
    logits = torch.randn(rows, k).double()
    truth = logits - torch.tensor([1.5, 0, 0, 0], dtype=torch.float64)[:k]
    labels = torch.distributions.Categorical(logits=truth).sample()
    return 3 * logits, labels


def sets_hold(kind: str, n: int, level: float, count: int = SETS) -> float:
    """The share of sets that hold the label."""
    inside = 0
    with isolated(2):
        for i in range(count):
            logits, y = classes(n + 1)
            calibration, new = (Prediction(Categorical(), part.unsqueeze(0), {}) for part in (logits[:n], logits[n:]))
            found = split_sets(calibration, y[:n], kind, seed=i).sets(new, level, seed=i)
            inside += int(found[0, y[n]])
    return inside / count


@pytest.mark.parametrize("kind", ["adaptive", "regularised"])
def test_sets_hold_exactly_what_they_promise(kind):
    low, high = band(promised(19, 0.83))
    assert low <= sets_hold(kind, 19, 0.83) <= high


def test_control_the_border_without_its_share_holds_more(patch_line):
    patch_line(conformal_sets.SplitSets, "sets", "_border(", "0 * _border(")
    assert sets_hold("adaptive", 19, 0.5, 300) > band(promised(19, 0.5), 300)[1]


@pytest.mark.parametrize(("among", "sets"), [("class", SETS), ("all", 300)])
def test_sets_hold_class_by_class(among, sets):
    """1,000 sets with a test point of the rare class each; sets that are right overall are wrong for it."""
    n, each, level = 48, 12, 0.8
    inside = 0
    y = torch.arange(n) % 4
    with isolated(3):
        for i in range(sets):
            logits = torch.randn(n + 1, 4).double()
            labels = torch.cat([y, torch.zeros(1, dtype=torch.long)])
            logits[torch.arange(n + 1), labels] += torch.where(labels == 0, 0.3, 2.0).double()
            parts = [Prediction(Categorical(), part.unsqueeze(0), {}) for part in (logits[:n], logits[n:])]
            inside += int(split_sets(parts[0], y, "adaptive", among, seed=i).sets(parts[1], level, seed=i)[0, 0])
    low, high = band(promised(each, level), sets)
    assert (low <= inside / sets <= high) is (among == "class")


def straight(x: Tensor, y: Tensor):
    """Least squares through the rows, as a function from inputs to a Prediction; of each data set by itself."""
    slope = (x * y).sum(0) / x.square().sum(0)
    spread = (y - slope * x).std(0)

    def predict(new: Tensor) -> Prediction:
        return Prediction(Gaussian(), (slope * new).unsqueeze(0), {"likelihood.scale": spread.unsqueeze(0)})

    return predict


def cv_coverage(n: int, level: float, folds: int, unit: str = "absolute") -> float:
    with isolated(4):
        x, y = line_data(n + 1, SETS)
    return share_inside(cv_plus(straight, x[:n], y[:n], folds=folds, unit=unit).interval(x[n:], level), y[n:])


@pytest.mark.parametrize(("n", "folds", "unit"), [(12, 4, "absolute"), (12, 4, "normalised"), (8, 8, "absolute")])
def test_cv_plus_holds_at_least_what_it_promises(n, folds, unit):
    """At least 2 level - 1, less the band; far more in practice: about the level itself."""
    found = cv_coverage(n, 0.8, folds, unit)
    assert found >= band(2 * 0.8 - 1)[0]
    assert found >= band(0.8)[0] - 0.05


def test_control_cv_plus_with_residuals_on_one_side_holds_too_little(patch_line):
    patch_line(conformal.CVIntervals, "interval", "far - prediction.mean", "-far - prediction.mean")
    assert cv_coverage(12, 0.8, 4) < band(2 * 0.8 - 1)[0]


def test_cv_plus_by_brute_force():
    """Equation 13 of Barber et al., row by row in plain Python."""
    with isolated(5):
        x, y = line_data(15)
        new = torch.randn(3).double()
    made = cv_plus(straight, x, y, folds=5, unit="absolute", seed=7)
    fold = [None] * 15
    for k, (inside, out) in enumerate(conformal._folds(15, 5, 7)):
        assert sorted([*inside.tolist(), *out.tolist()]) == list(range(15))
        assert len(out) == 3
        for i in out.tolist():
            fold[i] = k
    predictors = [straight(x[[f != k for f in fold]], y[[f != k for f in fold]]) for k in range(5)]
    for j, (low, high) in enumerate(zip(*made.interval(new, 0.75), strict=True)):
        lower, upper = [], []
        for i in range(15):
            at, here = (predictors[fold[i]](v).mean.item() for v in (new[j : j + 1], x[i : i + 1]))
            lower.append(at - abs(y[i].item() - here))
            upper.append(at + abs(y[i].item() - here))
        assert low.item() == pytest.approx(sorted(lower)[math.floor(0.25 * 16) - 1], rel=1e-9)
        assert high.item() == pytest.approx(sorted(upper)[math.ceil(0.75 * 16) - 1], rel=1e-9)


def test_cv_plus_takes_inputs_in_parts():
    with isolated(5):
        x, y = line_data(12)
    whole = cv_plus(straight, x.numpy(), y.numpy(), folds=3).interval(x)
    parts = cv_plus(lambda x, y: lambda new: straight(x["a"], y)(new["a"]), {"a": x}, y, folds=3).interval({"a": x})
    both = cv_plus(lambda x, y: lambda new: straight(x[0], y)(new[0]), (x, x), y, folds=3).interval((x, x))
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], both[1])


def test_split_intervals_agree_with_crepes():
    crepes = pytest.importorskip("crepes", reason="crepes is not installed")
    with isolated(6):
        x, y = line_data(60)
    calibration, new = line(x[:50]), line(x[50:])
    sigmas = {"normalised": (calibration.std.numpy(), new.std.numpy()), "absolute": (None, None)}
    for unit, (own, other) in sigmas.items():
        second = crepes.ConformalRegressor().fit((y[:50] - calibration.mean).numpy(), sigmas=own)
        expected = second.predict_int(new.mean.numpy(), sigmas=other, confidence=0.83)
        low, high = split_intervals(calibration, y[:50], unit).interval(new, 0.83)
        assert torch.stack([low, high], -1).numpy() == pytest.approx(expected, rel=1e-9)


def test_sets_agree_with_crepes():
    """Threshold sets: its nonconformity is the same 1 - p, its p-values without smoothing are the same ranks."""
    crepes = pytest.importorskip("crepes", reason="crepes is not installed")
    with isolated(7):
        logits, y = classes(90)
    calibration, new = (Prediction(Categorical(), part.unsqueeze(0), {}) for part in (logits[:60], logits[60:]))
    own = (1 - calibration.probs)[torch.arange(60), y[:60]].numpy()
    for among, bins in (("all", None), ("class", y[:60].numpy())):
        second = crepes.ConformalClassifier().fit(own, bins=bins)
        strange = (1 - new.probs).numpy()
        if bins is None:
            expected = second.predict_set(strange, confidence=0.8, smoothing=False)
        else:
            columns = [second.predict_p(strange, bins=np.full(30, j), smoothing=False)[:, j] > 0.2 for j in range(4)]
            expected = np.stack(columns, -1)
        found = split_sets(calibration, y[:60], "threshold", among).sets(new, 0.8)
        assert (found.numpy() == np.asarray(expected, dtype=bool)).all()


def test_adaptive_sets_by_brute_force():
    with isolated(8):
        logits, y = classes(40)
    calibration, new = (Prediction(Categorical(), part.unsqueeze(0), {}) for part in (logits[:30], logits[30:]))

    def strange(p: list[float], j: int, u: float, penalty: float, free: int) -> float:
        before = [q for q in p if q > p[j]]
        return sum(before) + u * p[j] + penalty * max(0, len(before) + 1 - free)

    for kind, penalty in (("adaptive", 0.0), ("regularised", 0.2)):
        made = split_sets(calibration, y[:30], kind, penalty=0.2, free=2, seed=3)
        u = conformal_sets._border(calibration.probs.double(), 3, "calibration").flatten().tolist()
        own = sorted(
            strange(p, j, v, penalty, 2) for p, j, v in zip(calibration.probs.tolist(), y[:30].tolist(), u, strict=True)
        )
        assert made.nonconformity[0].tolist() == pytest.approx(own, rel=1e-9)
        limit = own[math.ceil(31 * 0.8) - 1]
        u = conformal_sets._border(new.probs.double(), 4, "new rows").flatten().tolist()
        expected = [
            [strange(p, j, v, penalty, 2) <= limit for j in range(4)]
            for p, v in zip(new.probs.tolist(), u, strict=True)
        ]
        assert made.sets(new, 0.8, seed=4).tolist() == expected


def test_penalties_make_sets_smaller_and_adaptive_ones_are_larger_than_thresholds():
    sizes = {}
    with isolated(9):
        logits, y = classes(3000, 4)
    logits = logits / 3  # probabilities that are about right, so that adaptive sets have long tails
    calibration, new = (Prediction(Categorical(), part.unsqueeze(0), {}) for part in (logits[:2000], logits[2000:]))
    for kind in ("adaptive", "regularised", "threshold"):
        sizes[kind] = split_sets(calibration, y[:2000], kind, penalty=0.3).sets(new, 0.9).sum(-1).double().mean().item()
    assert sizes["threshold"] < sizes["regularised"] < sizes["adaptive"]


def test_too_few_calibration_rows_give_infinite_intervals_and_full_sets():
    low, high = split_intervals(line(torch.ones(8).double()), torch.zeros(8)).interval(
        line(torch.ones(3).double()), 0.9
    )
    assert (high == math.inf).all()
    assert (low == -math.inf).all()
    prediction = Prediction(Categorical(), torch.randn(1, 9, 3), {})
    made = split_sets(prediction, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]), "threshold", "class")
    assert made.sets(prediction, 0.8)[:, 2].all()  # no row of that class
    assert not made.sets(prediction, 0.5)[:, :2].all()


def test_the_rank_does_not_depend_on_rounding():
    """(99 + 1) 0.29 is 28.999999999999996 and 100 0.07 is 7.000000000000001: ranks 29 and 7."""
    values = torch.arange(1.0, 100)
    assert conformal.smallest(values, 0.29) == 29
    assert conformal.smallest(values, 0.07) == 7
    assert conformal.smallest(values, 0.071) == 8


def test_outputs_have_intervals_of_their_own():
    with isolated(10):
        outputs, y = torch.randn(2, 30, 2).double(), torch.randn(30, 2).double() * torch.tensor([1.0, 9.0])
    prediction = Prediction(Gaussian(), outputs, {"likelihood.scale": torch.ones(2).double()})
    both = split_intervals(prediction, y, "absolute").interval(prediction, 0.7)
    for j in range(2):
        single = Prediction(Gaussian(), outputs[..., j], {"likelihood.scale": torch.ones(2).double()})
        alone = split_intervals(single, y[:, j], "absolute").interval(single, 0.7)
        assert torch.allclose(both[1][:, j], alone[1])


def test_yes_or_no_has_sets_of_two():
    with isolated(11):
        logits = torch.randn(1, 40).double()
        y = (torch.rand(40) < logits[0].sigmoid()).double()
    found = split_sets(Prediction(Bernoulli(), logits, {}), y).sets(Prediction(Bernoulli(), logits, {}), 0.9)
    assert found.shape == (40, 2)


def test_settings_that_make_no_sense_are_told_in_words():
    prediction, y = line(torch.ones(8).double()), torch.zeros(8)
    with pytest.raises(ValueError, match="unit is one of"):
        split_intervals(prediction, y, "relative")
    with pytest.raises(ValueError, match="a level lies strictly between 0 and 1, not 90"):
        split_intervals(prediction, y).interval(prediction, 90)
    with pytest.raises(ValueError, match="at most the number of rows, 8, not 9"):
        cv_plus(straight, y, y, folds=9)
    sure = Prediction(Categorical(), torch.randn(1, 9, 3), {})
    with pytest.raises(ValueError, match="kind is one of"):
        split_sets(sure, torch.zeros(9, dtype=torch.long), "aps")
    with pytest.raises(ValueError, match="among is 'all' or 'class'"):
        split_sets(sure, torch.zeros(9, dtype=torch.long), among="row")
    with pytest.raises(ValueError, match="not negative"):
        split_sets(sure, torch.zeros(9, dtype=torch.long), penalty=-1)
    with pytest.raises(AttributeError, match="Categorical has no mean"):
        split_intervals(sure, torch.zeros(9, dtype=torch.long))
