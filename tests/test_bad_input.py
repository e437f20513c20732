"""What bad input gets: a message in words with the name, the shape or the rows in it, and nothing half-done."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import bnn
from bnn.capture import CaptureWarning
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.priors import Normal

GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(20, width, generator=GENERATOR) for width in (3, 1))
LABELS = torch.arange(20) % 4


def net(outputs=1):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


def regressor():
    return bnn.BNN(net(), Normal(1.0), Gaussian())


def classifier():
    return bnn.BNN(net(4), Normal(1.0), Categorical())


def altered(tensor, row, value):
    tensor = tensor.clone()
    tensor[row] = value
    return tensor


class Rows(Dataset):
    """As many rows of X and Y as are asked for."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return X[i], Y[i]


class Unsized(Dataset):
    def __getitem__(self, i):
        return X[i], Y[i]


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


GIVE_N = "does not say how many rows there are: give n_data="

# What is wrong: the model, the data, further arguments of fit, the error, and what it has to say.
CASES = {
    "targets (n,) for outputs (n, 1)": (
        regressor,
        (X, Y[:, 0]),
        {},
        ValueError,
        r"y has shape \(20,\) but the network gives \(20, 1\).*broadcast.*unsqueeze",
    ),
    "targets (n, 1) for outputs (n,)": (
        lambda: bnn.BNN(nn.Sequential(net(), nn.Flatten(0)), Normal(1.0), Gaussian()),
        (X, Y),
        {},
        ValueError,
        r"y has shape \(20, 1\) but the network gives \(20,\).*broadcast.*y.squeeze\(-1\)",
    ),
    "a label too many, in any batch": (
        classifier,
        (X, altered(LABELS, 17, 9)),
        {},
        ValueError,
        "labels must lie in 0..3.*4 outputs; 1 rows do not, the first is row 17 with label 9",
    ),
    "a negative label": (classifier, (X, altered(LABELS, 2, -1)), {}, ValueError, "row 2 with label -1"),
    "floats as labels": (classifier, (X, LABELS.float()), {}, TypeError, r"integers.*dtype torch.float32: y.long\(\)"),
    "labels as a column": (classifier, (X, LABELS[:, None]), {}, ValueError, r"y has shape \(20, 1\).*squeeze"),
    "neither yes nor no": (
        lambda: bnn.BNN(net(), Normal(1.0), Bernoulli()),
        (X, altered(torch.ones(20, 1), 13, 0.5)),
        {},
        ValueError,
        "0 or 1; 1 are not, the first at row 13: 0.5",
    ),
    "NaN in x": (regressor, (altered(X, [3, 8], math.nan), Y), {}, ValueError, "x has NaN.* in 2 of 20 rows: 3, 8$"),
    "inf in x": (regressor, (altered(X, 5, -math.inf), Y), {}, ValueError, "x has NaN or infinite.* of 20 rows: 5$"),
    "NaN in y": (regressor, (X, altered(Y, 7, math.nan)), {}, ValueError, "y has NaN.* in 1 of 20 rows: 7$"),
    "NaN in many rows": (
        regressor,
        (torch.full_like(X, math.nan), Y),
        {},
        ValueError,
        r"in 20 of 20 rows: 0, 1, 2, 3, 4, \.\.\.$",
    ),
    "NaN in one of two inputs": (
        regressor,
        ((X, altered(X, 5, math.nan)), Y),
        {},
        ValueError,
        r"x\[1\] has NaN.* in 1 of 20 rows: 5$",
    ),
    "NaN from a loader": (
        regressor,
        DataLoader(TensorDataset(altered(X, 3, math.nan), Y), batch_size=5),
        {},
        ValueError,
        "x has NaN.* in 1 of 5 rows: 3$",
    ),
    "too large for float32": (regressor, (np.full((20, 3), 1e300), Y), {}, ValueError, "infinite values in 20 of 20"),
    "text": (regressor, (["a"] * 20, Y), {}, TypeError, "x cannot be read as numbers: it holds text, as 'a'"),
    "complex numbers": (regressor, (X * 1j, Y), {}, TypeError, r"x has complex numbers \(torch.complex64\)"),
    "different lengths": (regressor, (X[:19], Y), {}, ValueError, r"x has shape \(19, 3\) but y has 20 rows"),
    "one target": (regressor, (X, 1.0), {}, ValueError, "y is a single number"),
    "no inputs": (regressor, ((), Y), {}, ValueError, "x is an empty tuple"),
    "empty arrays": (regressor, (X[:0], Y[:0]), {}, ValueError, "data set is empty: y has no rows"),
    "an empty Dataset": (regressor, Rows(0), {}, ValueError, "data set is empty: 0 rows"),
    "an empty loader": (regressor, DataLoader(Rows(0)), {}, ValueError, "data set is empty: 0 rows"),
    "a loader that gives nothing": (regressor, [], {"n_data": 20}, ValueError, "the loader gave no batch"),
    "a loader without a length": (regressor, DataLoader(Stream()), {}, ValueError, GIVE_N),
    "a list of batches": (regressor, [(X, Y)] * 3, {}, ValueError, GIVE_N),
    "a loader of whole batches": (
        regressor,
        DataLoader([(X, Y)] * 3, batch_size=None),
        {},
        ValueError,
        GIVE_N,
    ),
    "a Dataset without a length": (regressor, Unsized(), {"n_data": 20}, TypeError, "Unsized has no length"),
    "a generator": (regressor, ((X, Y) for _ in range(2)), {"n_data": 20}, TypeError, "generator can be read only"),
    "items without targets": (regressor, DataLoader(list(X)), {}, TypeError, r"a loader gives \(x, y\).*gave a Tensor"),
    "a TensorDataset without targets": (regressor, TensorDataset(X), {}, ValueError, "one tensor has no targets"),
    "three parts": (regressor, (X, X, Y), {}, TypeError, r"not a tuple of 3; several inputs go together"),
    "a dict": (regressor, {"x": X, "y": Y}, {}, TypeError, r"data is \(x, y\), .* not dict"),
    "x alone": (regressor, X, {}, TypeError, r"data is \(x, y\), .* not Tensor"),
    "another N": (regressor, (X, Y), {"n_data": 30}, ValueError, "n_data is 30, but the arrays have 20 rows"),
    "weights of a loader": (regressor, Rows(20), {"weight": torch.ones(20)}, ValueError, "weight goes with arrays"),
    "a negative weight": (
        regressor,
        (X, Y),
        {"weight": altered(torch.ones(20), 3, -1.0)},
        ValueError,
        r"one non-negative number a row; it has shape \(20,\) and its smallest number is -1",
    ),
    "weights as a column": (regressor, (X, Y), {"weight": torch.ones(20, 1)}, ValueError, r"it has shape \(20, 1\)"),
    "too few weights": (regressor, (X, Y), {"weight": torch.ones(4)}, ValueError, r"weight has shape \(4,\) but y"),
    "an unknown method": (regressor, (X, Y), {"method": "nuts!"}, ValueError, "'nuts!'; did you mean 'nuts'"),
    "no method at all": (regressor, (X, Y), {"method": "magic"}, ValueError, "known are map, mean_field"),
    "a class as method": (regressor, (X, Y), {"method": bnn.MAP}, TypeError, "method is a name or a method"),
    "x and y apart": (regressor, X, {"method": Y}, TypeError, "not a Tensor: x and y are one argument"),
    "a net as model": (net, (X, Y), {}, TypeError, "model is a bnn.BNN, not Sequential"),
    "an unknown backend": (regressor, (X, Y), {"compile": "fast"}, ValueError, "'graph' or 'inductor', not 'fast'"),
    "validation targets of another shape": (
        regressor,
        (X, Y),
        {"validation": (X, Y[:, 0])},
        ValueError,
        r"y has shape \(20,\) but the network gives \(20, 1\)",
    ),
    "validation with other features": (
        regressor,
        (X, Y),
        {"validation": (X[:, :2], Y)},
        ValueError,
        r"validation: the network cannot take these inputs \(x \(20, 2\)",
    ),
    "nothing random": (
        lambda: bnn.BNN(net(), None, Gaussian("learned")),
        (X, Y),
        {"method": bnn.MeanField(epochs=1)},
        ValueError,
        "no parameter has a prior: there is nothing to infer but points",
    ),
    "a joint mode with its scale": (
        lambda: bnn.BNN(net(), Normal(pyro.distributions.HalfCauchy(1.0)), Gaussian()),
        (X, Y),
        {},
        ValueError,
        r"MAP cannot be used with a learned prior scale \(in all\)",
    ),
}  # fmt: skip


def fit(model, data, **options):
    options = {"method": bnn.MAP(epochs=2, batch_size=8), "compile": "graph", "progress": False, **options}
    return bnn.fit(model, data, **options)


@pytest.mark.parametrize("case", list(CASES))
def test_bad_data(case):
    """One message, and nothing half-done: the net, the random state and Pyro's store are as before."""
    make, data, options, error, words = CASES[case]
    model = make()
    tensors = (model.net if isinstance(model, bnn.BNN) else model).state_dict()
    before, state = {name: tensor.clone() for name, tensor in tensors.items()}, torch.get_rng_state()
    epochs = []
    with pytest.raises(error, match=words) as caught:
        fit(model, data, callbacks=[epochs.append], **options)
    assert not epochs
    assert len(str(caught.value)) < 300
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert len(pyro.get_param_store()) == 0


def test_what_is_accepted():
    """The same data in forms that are right."""
    y = torch.ones(20, 1)
    for data, options in [
        ((X.numpy()[::-1], Y.numpy()), {}),
        ((X.numpy().astype(">f8"), Y.tolist()), {}),
        ((np.broadcast_to(X.numpy(), X.shape), Y), {"weight": np.ones(20, dtype=int)}),
        (Rows(20), {}),
        (TensorDataset(X, Y), {}),
        (Stream(), {"n_data": 20}),
        (DataLoader([(X, y)] * 3, batch_size=None), {"n_data": 60}),
        ([(X, y), (X, y)], {"n_data": 40}),
        ([X, Y], {}),
    ]:
        posterior = fit(regressor(), data, compile="eager", **options)
        assert posterior.settings["n_data"] == options.get("n_data", 20)


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ({"conv.*": Normal(1.0), "*": Normal(1.0)}, r"'conv.\*' matches no parameter: the names are .*'0.weight'"),
        ({"*": Normal(1.0), "2.*": Normal(1.0)}, r"'2.\*' matches no parameter: earlier patterns took all"),
        ({"0.*": Normal(1.0)}, r"no pattern matches \['2.bias', '2.weight'\]"),
        (Normal(torch.ones(7)), r"prior's scale has shape \(7,\).*'0.weight' of shape \(4, 3\)"),
        (Normal(1.0, loc=torch.zeros(2, 4, 3)), r"prior's loc has shape \(2, 4, 3\).*'0.weight' of shape \(4, 3\)"),
    ],
)
def test_bad_priors(prior, words):
    with pytest.raises(ValueError, match=words):
        bnn.BNN(net(), prior, Gaussian())


def test_a_lazy_net_has_no_parameters_yet():
    with pytest.raises(ValueError, match=r"'0.weight' .*(lazy|Lazy)"):
        bnn.BNN(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1)), Normal(1.0), Gaussian())


@pytest.mark.parametrize("at_once", [None, 1, 5])
def test_predict_with_another_number_of_features(at_once):
    posterior = fit(regressor(), (X, Y), method=bnn.MeanField(epochs=1), compile="eager")
    with pytest.raises(ValueError, match=r"a row of x has shape \(5,\), but the model was fitted on \(3,\)"):
        posterior.predict(torch.randn(6, 5), draws=10, at_once=at_once)
    with pytest.raises(ValueError, match=r"a row of x has shape \(5,\), but the model was fitted on \(3,\)"):
        posterior.predict(DataLoader(TensorDataset(torch.randn(6, 5), torch.randn(6, 1))), draws=10, at_once=at_once)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (altered(X, [4, 6], math.nan), "x has NaN or infinite values in 2 of 20 rows: 4, 6$"),
        (X[:0], "x is empty"),
        ([], "x is empty"),
    ],
)
def test_predict_with_bad_inputs(x, words):
    with pytest.raises(ValueError, match=words):
        fit(regressor(), (X, Y), compile="eager").predict(x)


class Counting(nn.Module):
    """Its output depends on how often it was called."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(3, 1), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) / self.calls


class Branching(nn.Module):
    """Its output depends on values, in Python."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        out = self.layer(x)
        return out if out.sum() > 0 else -out


@pytest.mark.parametrize("make", [Counting, Branching])
def test_a_net_that_cannot_be_captured(make):
    """A warning that says why, then eager, and the history says so."""
    model = bnn.BNN(make(), Normal(1.0), Gaussian())
    with pytest.warns(CaptureWarning, match="cannot be captured and runs through Pyro at every step"):
        posterior = fit(model, (X, Y), method=bnn.MAP(epochs=2, batch_size=None))
    assert posterior.history.backend == "eager"
    assert bool(posterior.history.loss.isfinite().all())


def test_a_loss_that_is_not_finite():
    with pytest.raises(bnn.NonFiniteLossError, match=r"at step \d+ .*try a smaller lr \(it is 1e\+20\), clip_norm"):
        fit(regressor(), (X, Y), method=bnn.MAP(epochs=5, lr=1e20))
