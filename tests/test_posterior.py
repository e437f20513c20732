"""Posteriors: draws, plain nets, and files that come back as they were or are refused in words."""

from __future__ import annotations

import functools
import json
import os
import pickle

import numpy as np
import pyro
import pytest
import torch
from folders import reseal
from pyro import distributions as dist
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import constraints

import bnn
import bnn.files.posterior
from bnn.approximations import Draws, Gaussian
from bnn.layout import Layout
from bnn.likelihoods import Bernoulli, Categorical
from bnn.posterior import Posterior
from bnn.priors import Laplace, Normal

JSON, TENSORS, MANIFEST = "posterior.json", "posterior.safetensors", "manifest.json"


def function_guide(x, y):
    """Independent log-normal and normal sites, by hand."""
    for name, shape in {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (1, 4), "2.bias": (1,)}.items():
        loc = pyro.param(f"{name}.loc", lambda shape=shape: 0.1 * torch.ones(shape))
        scale = pyro.param(
            f"{name}.scale", lambda shape=shape: 0.1 * torch.ones(shape), constraint=constraints.positive
        )
        pyro.sample(name, dist.Normal(loc, scale).to_event())
    spread = pyro.param("spread", torch.tensor(0.1), constraint=constraints.positive)
    pyro.sample("likelihood.scale", dist.LogNormal(0.0, spread))


METHODS = {
    "map": bnn.MAP(epochs=2),
    "mean_field": bnn.MeanField(epochs=2),
    "autoguide": bnn.Variational(guide=AutoNormal, epochs=2),
    "function": bnn.Variational(guide=function_guide, epochs=2),
}
GUIDES = {"autoguide", "function"}


@functools.cache
def fitted(kind):
    """One fit a method for all tests: nothing that is done to a posterior may change it."""
    torch.manual_seed(0)
    model = bnn.BNN(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), Normal(1.0), bnn.likelihoods.Gaussian())
    data = torch.randn(20, 3), torch.randn(20, 1)
    return model, data, bnn.fit(model, data, METHODS[kind], compile="eager", progress=False)


@pytest.fixture(params=METHODS)
def kind(request):
    return request.param


@pytest.fixture
def posterior(kind):
    return fitted(kind)[2]


@pytest.fixture
def model():
    return fitted("mean_field")[0]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Autoguides take 5 ms a draw."""
    assert bnn.files.posterior._GUIDE_DRAWS == 1000
    assert bnn.posterior.DEFAULT_DRAWS == 200
    monkeypatch.setattr("bnn.files.posterior._GUIDE_DRAWS", 25)
    monkeypatch.setattr("bnn.posterior.DEFAULT_DRAWS", 20)


def drawn_from(num, chains=1):
    """A posterior of `num` draws: weights of a linear layer that count up, so that each draw is known."""
    model = bnn.BNN(nn.Linear(1, 1, bias=False), Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    values = torch.arange(float(num)).reshape(chains, num // chains, 1, 1)
    return Posterior(model, Draws({"weight": values}), points={}, state={})


# ---------------------------------------------------------------------------------------------------------------- draws


def test_draws_have_every_site(posterior, kind):
    draws = posterior.draws(1 if kind == "map" else 3)
    num = 1 if kind == "map" else 3
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "0.weight": (num, 4, 3),
        "0.bias": (num, 4),
        "2.weight": (num, 1, 4),
        "2.bias": (num, 1),
        "likelihood.scale": (num,),
    }
    assert bool((draws["likelihood.scale"] > 0).all())
    assert not any(value.requires_grad for value in draws.values())


def test_default_counts(posterior, kind):
    assert posterior.num_draws == (1 if kind == "map" else None)
    expected = 1 if kind == "map" else 20
    assert len(posterior.draws()["0.bias"]) == expected
    assert posterior.predict(torch.randn(2, 3)).num_draws == expected


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_seeds_and_prefixes(posterior, kind):
    if kind == "map":
        pytest.skip("one draw")
    draws = posterior.draws(5, seed=1)
    assert same(draws, posterior.draws(5, seed=1))
    assert not same(draws, posterior.draws(5, seed=2))
    assert same({name: value[:3] for name, value in draws.items()}, posterior.draws(3, seed=1))
    torch.rand(1)  # wherever the surrounding random state is
    assert same(draws, posterior.draws(5, seed=1))


@pytest.mark.parametrize("chains", [1, 2, 5])
@pytest.mark.parametrize("num", [1, 2, 3, 7, 9, 10])
def test_draws_of_a_finite_posterior_are_spread_evenly_and_never_twice(num, chains):
    chosen = drawn_from(10, chains).draws(num, seed=5)["weight"].flatten()
    assert len(set(chosen.tolist())) == num
    ideal = torch.linspace(0, 9, num)
    assert float((chosen - ideal).abs().max()) <= 0.5


def test_more_draws_than_there_are_is_an_error():
    posterior = drawn_from(10, 2)
    assert posterior.num_draws == 10
    with pytest.raises(ValueError, match="has 10 draws; 11 cannot be taken without repeating some"):
        posterior.draws(11)
    with pytest.raises(ValueError, match="has 10 draws; 11 cannot"):
        posterior.predict(torch.ones(1, 1), draws=11)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        posterior.draws(0)


def test_a_gaussian_draws_from_its_law():
    """Mean and variance of 4,000 draws within 4 standard errors: s / sqrt(n), and s^2 sqrt(2/n)."""
    loc, scale, num = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]), 4000
    model = bnn.BNN(nn.Linear(2, 1, bias=False), Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    posterior = Posterior(model, Gaussian(Layout(model.sites().latents), loc, scale.log()), points={}, state={})
    drawn = posterior.draws(num)["weight"][:, 0]
    assert bool(((drawn.mean(0) - loc).abs() < 4 * scale / num**0.5).all())
    assert bool(((drawn.var(0) - scale**2).abs() < 4 * scale**2 * (2 / num) ** 0.5).all())


def check_mean_of_a_lognormal():
    """exp(loc + scale^2 / 2) for a positive site, within 4 standard errors."""
    model = bnn.BNN(nn.Linear(2, 1, bias=False), None, bnn.likelihoods.Gaussian())
    points = {site.name: site.value for site in model.sites().points}
    gaussian = Gaussian(Layout(model.sites().latents), torch.tensor([0.5]), torch.tensor([0.3]).log())
    num, mean = 10_000, float(np.exp(0.5 + 0.045))
    scale = Posterior(model, gaussian, points=points, state={}).draws(num)["likelihood.scale"]
    assert abs(scale.mean().item() - mean) < 4 * mean * float(np.sqrt((np.exp(0.09) - 1) / num))


def test_positive_sites_are_log_normal():
    check_mean_of_a_lognormal()


@pytest.mark.parametrize(
    ("old", "new"), [("* noise", "* noise / 2"), ("self.loc +", "")], ids=["half noise", "no mean"]
)
def test_control_draws(old, new, patch_line):
    patch_line(Gaussian, "sample", old, new)
    with pytest.raises(AssertionError):
        check_mean_of_a_lognormal()


def check_new_numbers():
    """Draws under seed 0 against data made after ``torch.manual_seed(0)``: no correlation at any shift.

    Over the 2m shifts, correlations of m independent pairs are below 6.5 / sqrt(m) but with probability 2m * 8e-11.
    """
    model = bnn.BNN(nn.Linear(64, 1, bias=False), Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    standard = Gaussian(Layout(model.sites().latents), torch.zeros(64), torch.zeros(64))
    weights = Posterior(model, standard, points={}, state={}).draws(100, seed=0)["weight"].flatten().numpy()
    torch.manual_seed(0)
    data, m = torch.randn(100, 64).flatten().numpy(), weights.size
    shifted = np.fft.irfft(np.fft.rfft(weights, 2 * m) * np.fft.rfft(data, 2 * m).conj()) / m
    assert np.abs(shifted).max() < 6.5 / m**0.5


def test_draws_do_not_repeat_the_numbers_of_the_data():
    check_new_numbers()


def test_control_new_numbers(patch_line):
    patch_line(Posterior, "draws", 'other_seed(seed, "draws")', "seed")
    with pytest.raises(AssertionError):
        check_new_numbers()


def test_non_centred_weights_are_worked_out(regression, quick):
    net = nn.Linear(3, 1)
    model = bnn.BNN(net, Normal(dist.HalfCauchy(1.0), loc=0.2, centred=False), bnn.likelihoods.Gaussian("learned"))
    posterior = quick(model, regression, bnn.MeanField(epochs=2))
    draws = posterior.draws(3)
    scale = draws["prior.all.scale"].reshape(3, 1, 1)
    torch.testing.assert_close(draws["weight"], 0.2 + scale * draws["weight.z"])
    assert set(posterior.points) == {"likelihood.scale"}
    assert torch.equal(
        posterior.predict(regression[0]).latents["likelihood.scale"], posterior.points["likelihood.scale"].expand(20)
    )


# --------------------------------------------------------------------------------------------------- nets, predictions


class Buffered(nn.Module):
    """Batch statistics, dropout, a frozen layer, and one weight in two places."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.encode, self.decode = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.decode(self.encode(self.frozen(self.drop(self.norm(x))))))


def test_net_predicts_as_its_draw(posterior, kind):
    x = torch.randn(4, 3)
    prediction = posterior.predict(x, draws=None if kind == "map" else 3, seed=2)
    for i in range(prediction.num_draws):
        net = posterior.net(i, seed=2)
        assert not net.training
        torch.testing.assert_close(net(x), prediction.outputs[i])


def test_net_of_a_tied_and_buffered_network(regression, quick):
    model = bnn.BNN(Buffered(), Normal(1.0), bnn.likelihoods.Gaussian())
    posterior = quick(model, regression, bnn.MeanField(epochs=3, batch_size=8))
    x = torch.randn(4, 3)
    net = posterior.net(1)
    assert net.encode.weight is net.decode.weight
    assert not torch.equal(net.norm.running_mean, model.net.norm.running_mean)  # statistics of the fit, not of the user
    torch.testing.assert_close(net(x), posterior.predict(x, draws=2).outputs[1])


def test_a_net_of_points_alone(regression, quick, tmp_path):
    """No prior anywhere: maximum likelihood, and one prediction without an epistemic part."""
    model = bnn.BNN(nn.Linear(3, 1), None, bnn.likelihoods.Gaussian("learned"))
    posterior = quick(model, regression, bnn.MAP(epochs=2))
    prediction = posterior.predict(regression[0])
    torch.testing.assert_close(prediction.outputs[0], posterior.net(0)(regression[0]))
    assert prediction.num_draws == 1
    assert posterior.draws() == {}
    loaded = bnn.load(posterior.save(tmp_path / "run"), model)
    assert torch.equal(loaded.predict(regression[0]).std, prediction.std)


def test_a_loop_of_ones_own_knows_its_inputs(model, regression):
    """As after a fit: another number of features is told in words, the method is on record, and files come back."""
    loss = bnn.MeanField().loss(model, n_data=20)
    loss(*regression).backward()
    posterior = loss.posterior()
    assert posterior.settings["method"] == "MeanField"
    with pytest.raises(ValueError, match=r"a row of x has shape \(5,\), but the model was fitted on \(3,\)"):
        posterior.predict(torch.randn(2, 5))


def test_net_that_there_is_none_of():
    posterior = drawn_from(10)
    assert posterior.net(9).weight.item() == 9
    for i in (10, -1):
        with pytest.raises(IndexError, match=f"there is no draw {i}"):
            posterior.net(i)


def test_draws_taken_before(posterior, regression):
    draws = posterior.draws()
    torch.testing.assert_close(
        posterior.predict(regression[0], draws=draws).mean, posterior.predict(regression[0]).mean
    )
    with pytest.raises(ValueError, match=r"these draws lack \['0.bias', '2.bias', 'likelihood.scale'\]"):
        posterior.predict(regression[0], draws={n: v for n, v in draws.items() if n.endswith("weight")})
    with pytest.raises(ValueError, match=r"differ in number: .*'0.bias': 3"):
        posterior.predict(regression[0], draws={**draws, "0.bias": torch.zeros(3, 4)})


def test_a_posterior_owns_what_it_needs(regression, quick):
    """Training the user's net on, or moving the tensors it was made from, changes no prediction."""
    model = bnn.BNN(Buffered(), Normal(1.0), bnn.likelihoods.Gaussian())
    posterior = quick(model, regression, bnn.MAP(epochs=2))
    state = {name: value.clone() for name, value in posterior.state.items()}
    mine = Posterior(model, posterior.approximation, points=posterior.points, state=state)
    before = mine.predict(regression[0]).mean
    with torch.no_grad():
        for tensor in [*model.net.parameters(), *state.values()]:
            tensor.add_(1)
    assert torch.equal(mine.predict(regression[0]).mean, before)


def test_a_failed_prediction_leaves_the_posterior_whole(posterior, regression):
    before = posterior.predict(regression[0], at_once=1).mean
    with pytest.raises(ValueError, match=r"a row of x has shape \(2,\), but the model was fitted on \(3,\)"):
        posterior.predict(regression[0][:, :2], at_once=1)
    assert torch.equal(posterior.predict(regression[0], at_once=1).mean, before)
    net = {name: p.detach().clone() for name, p in posterior.model.net.named_parameters()}
    assert all(not p.is_leaf or p.requires_grad for p in posterior.model.net.parameters())
    assert set(net) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.ones(3), r"a row of x has shape \(\), but the model was fitted on \(3,\): one row alone is x\[None\]$"),
        (torch.ones(2, 4, 3), r"a row of x has shape \(4, 3\), but the model was fitted on \(3,\)$"),
        (2.0, r"rows first and equally many: x has shape \(\)"),
        (torch.ones(0, 3), "x is empty"),
        ([], "x is empty|rows first"),
        ((), "x is an empty tuple"),
        ((torch.ones(2, 3), torch.ones(2, 3)), r"a row of x has shape \[\(3,\), \(3,\)\]"),
        ([[1.0, 2.0, float("nan")]], "x has NaN or infinite values in 1 of 1 rows: 0"),
    ],
)
def test_inputs_that_do_not_fit(x, words, model, regression, quick):
    with pytest.raises(ValueError, match=words):
        quick(model, regression, bnn.MAP(epochs=1)).predict(x)


def test_outputs_without_rows_are_told(quick):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x) if self.training else self.layer(x).mean(0, keepdim=True)

    x = torch.randn(6, 3)
    model = bnn.BNN(Mean(), Normal(1.0), bnn.likelihoods.Gaussian())
    posterior = quick(model, (x, torch.randn(6, 2)), bnn.MAP(epochs=1))
    with pytest.raises(ValueError, match=r"outputs of shape \(1, 2\) for 6 rows of x"):
        posterior.predict(x)


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def saved(posterior, tmp_path):
    return posterior.save(tmp_path / "run")


def test_round_trip(posterior, saved, kind, model, regression):
    """The same predictions; for a guide from its saved draws, or, with its method, fresh ones."""
    assert sorted(path.name for path in saved.iterdir()) == [MANIFEST, JSON, TENSORS]
    loaded = bnn.load(saved, model)
    again = bnn.load(saved, model, method=METHODS[kind]) if kind in GUIDES else loaded
    if kind in GUIDES:
        assert loaded.num_draws == 25
        assert same(loaded.draws(), posterior.draws(25))
        assert again.num_draws is None
    assert same(again.draws(seed=3), posterior.draws(seed=3))
    x, y = regression
    assert torch.equal(again.predict(x).log_prob(y), posterior.predict(x).log_prob(y))
    assert again.settings == posterior.settings
    assert again.input_shapes == posterior.input_shapes == [(3,)]
    for name, value in vars(posterior.history).items():
        restored = getattr(again.history, name)
        assert torch.equal(restored, value) if isinstance(value, torch.Tensor) else restored == value


def test_round_trip_of_a_tied_and_buffered_network(regression, quick, tmp_path):
    """In float64, with points, a frozen layer, batch statistics and a learned noise scale."""
    torch.manual_seed(1)
    x, y = (t.double() for t in regression)
    prior = {"encode.*": Normal(dist.HalfCauchy(1.0), centred=False), "norm.*": None, "*": Laplace(1.0)}
    model = bnn.BNN(Buffered().double(), prior, bnn.likelihoods.Gaussian("learned"))
    posterior = quick(model, (x, y), bnn.MeanField(epochs=3, batch_size=8))
    expected = posterior.predict(x).log_prob(y)
    other = bnn.BNN(Buffered().double(), prior, bnn.likelihoods.Gaussian("learned"))  # built anew, other numbers in it
    loaded = bnn.load(posterior.save(tmp_path / "run"), other)
    assert expected.dtype == torch.float64
    assert torch.equal(loaded.predict(x).log_prob(y), expected)
    plain = loaded.net(0)
    assert plain.encode.weight is plain.decode.weight


def wrong_models():
    def net(hidden=4, dtype=torch.float32):
        return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1)).to(dtype)

    prior, gaussian = Normal(1.0), bnn.likelihoods.Gaussian
    learned, partly = Normal(dist.HalfCauchy(1.0)), {"0.bias": None, "*": prior}
    normalised = nn.Sequential(*net(), nn.BatchNorm1d(1, affine=False))
    return {
        "width": (bnn.BNN(net(5), prior, gaussian()), r"'0.weight' was \(4, 3\) .*, is \(5, 3\)"),
        "names": (bnn.BNN(nn.Linear(3, 1), prior, gaussian()), r"6 sites do not.*'0.weight' was .* is not there"),
        "dtype": (bnn.BNN(net(dtype=torch.float64), prior, gaussian()), "'0.weight' was .*float32.* is .*float64"),
        "likelihood": (bnn.BNN(net(), prior, Bernoulli()), r"likelihood was Gaussian.* has Bernoulli\(\)"),
        "noise": (bnn.BNN(net(), prior, gaussian(0.1)), r"was Gaussian.*HalfCauchy.* has Gaussian\(scale=0.1\)"),
        "points": (bnn.BNN(net(), partly, gaussian()), r"saved prior was Normal.*, this model has .*0.bias"),
        "hyper-prior": (
            bnn.BNN(net(), learned, gaussian()),
            r"saved prior was Normal.*, this model has Normal\(scale=HalfCauchy",
        ),
        "buffers": (bnn.BNN(normalised, prior, gaussian()), r"saved state do not fit this model.*3.running_mean"),
    }


@pytest.mark.parametrize("wrong", wrong_models())
def test_loading_into_another_model(wrong, saved):
    other, words = wrong_models()[wrong]
    with pytest.raises(ValueError, match=words):
        bnn.load(saved, other)


def test_loading_with_another_number_of_classes(classification, quick, tmp_path):
    few, many = (bnn.BNN(nn.Linear(3, k), Normal(1.0), Categorical()) for k in (4, 5))
    path = quick(few, classification, bnn.MAP(epochs=1)).save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"'weight' was \(4, 3\) .*is \(5, 3\)"):
        bnn.load(path, many)


def test_method_of_a_guide(posterior, saved, kind, model):
    with pytest.raises(TypeError, match=r"bnn.Variational of a custom guide, not MeanField"):
        bnn.load(saved, model, method=bnn.MeanField())
    if kind not in GUIDES:
        with pytest.raises(ValueError, match="was not fitted with a custom guide"):
            bnn.load(saved, model, method=METHODS["autoguide"])
        return
    other = METHODS[(GUIDES - {kind}).pop()]
    with pytest.raises(ValueError, match="the saved guide has parameters"):
        bnn.load(saved, model, method=other)


def test_nothing_there(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing saved in .*posterior.json and posterior.safetensors"):
        bnn.load(tmp_path, model)
    with pytest.raises(FileNotFoundError, match="nothing saved in"):
        bnn.load(tmp_path / "nowhere", model)


@pytest.fixture
def one_saved(tmp_path):
    return fitted("mean_field")[2].save(tmp_path / "run")


def rewrite(path, change):
    record = json.loads((path / JSON).read_text())
    change(record)
    (path / JSON).write_text(json.dumps(record))
    reseal(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", [JSON, TENSORS])
@pytest.mark.parametrize("seal", [reseal, lambda _: None], ids=["checksums fit", "checksums do not"])
def test_truncated_files(seal, share, name, one_saved, model):
    content = (one_saved / name).read_bytes()
    (one_saved / name).write_bytes(content[: int(share * len(content))])
    seal(one_saved)
    with pytest.raises(ValueError, match="is damaged"):
        bnn.load(one_saved, model)


def test_flipped_bits_in_the_header(one_saved, model):
    """Every bit of the safetensors header, one at a time: told in words, or without effect on what is read.

    A name or a shape that fits no longer, broken JSON: each is a ValueError. What remains are bits that mean nothing,
    such as white space, and digits of offsets that safetensors itself checks.
    """
    path = one_saved / TENSORS
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    expected = bnn.load(one_saved, model).draws(2)
    refused: list[str] = []
    rng = np.random.default_rng(0)
    for position in rng.choice(end, 150, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        reseal(one_saved)
        try:
            loaded = bnn.load(one_saved, model)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert same(loaded.draws(2), expected)
    assert len(refused) > 100
    assert all(str(one_saved) in words or "this model" in words for words in refused)


class Trap:
    """Unpickling this would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5, "torch"])
@pytest.mark.parametrize("name", [JSON, TENSORS])
def test_a_pickle_is_refused_and_not_executed(name, protocol, one_saved, model, tmp_path):
    trap = tmp_path / "sprung"
    if protocol == "torch":
        torch.save(Trap(trap), one_saved / name)
    else:
        (one_saved / name).write_bytes(pickle.dumps(Trap(trap), protocol=protocol))
    for seal in (lambda _: None, reseal):
        seal(one_saved)
        with pytest.raises(ValueError, match="is damaged"):
            bnn.load(one_saved, model)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema", 99, r"newer bnn \(schema 99, this one reads 2\): upgrade"),
        ("schema", "1", "is damaged: TypeError: schema"),
        ("kind", "oracle", "unknown kind of posterior 'oracle'"),
        ("kind", None, "is damaged"),
        ("history", [], "is damaged"),
        ("history", {"seconds": "long"}, "is damaged: TypeError: the history's seconds"),
        ("history", {"colour": 1}, r"is damaged: TypeError: the history has unknown fields \['colour'\]"),
        ("input_shapes", [3], "is damaged"),
        ("input_shapes", [["a"]], "is damaged"),
        ("settings", "map", "is damaged"),
        ("likelihood", None, "is damaged"),
    ],
)
def test_json_that_says_something_else(key, value, words, one_saved, model):
    rewrite(one_saved, lambda record: record.update({key: value}))
    with pytest.raises(ValueError, match=words):
        bnn.load(one_saved, model)


@pytest.mark.parametrize("text", ["[]", "null", "1", "{}", "[" * 100_000])
def test_json_that_is_no_record(text, one_saved, model):
    (one_saved / JSON).write_text(text)
    reseal(one_saved)
    with pytest.raises(ValueError, match="is damaged"):
        bnn.load(one_saved, model)


@pytest.mark.parametrize("key", ["schema", "kind", "likelihood", "sites", "settings", "history", "input_shapes"])
def test_json_that_lacks_a_part(key, one_saved, model):
    rewrite(one_saved, lambda record: record.pop(key))
    with pytest.raises(ValueError, match=f"is damaged: KeyError: '{key}'"):
        bnn.load(one_saved, model)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("approximation/extra", "saved are .*'extra'"),
        ("weights", "unexpected tensor 'weights'"),
        ("history/x", "is damaged"),
    ],
)
def test_tensors_that_belong_to_nothing(name, words, one_saved, model):
    from safetensors.torch import load_file, save_file

    save_file({**load_file(one_saved / TENSORS), name: torch.zeros(1)}, one_saved / TENSORS)
    reseal(one_saved)
    with pytest.raises(ValueError, match=words):
        bnn.load(one_saved, model)


# -------------------------------------------------------------------------------------------------------------- writing


def test_overwrite(one_saved, model, regression, quick):
    other = quick(model, regression, bnn.MAP(epochs=1))
    with pytest.raises(FileExistsError, match="exists: choose another folder, or save with overwrite=True"):
        other.save(one_saved)
    assert bnn.load(one_saved, model).num_draws is None
    other.save(one_saved, overwrite=True)
    assert bnn.load(one_saved, model).num_draws == 1
    assert [path.name for path in one_saved.parent.iterdir()] == ["run"]  # nothing is left beside it


def test_overwrite_takes_nothing_but_a_posterior(one_saved, model, regression, quick):
    posterior = quick(model, regression, bnn.MAP(epochs=1))
    (one_saved / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"more than a posterior and is not overwritten: there is thesis.tex"):
        posterior.save(one_saved, overwrite=True)
    with pytest.raises(FileExistsError, match="more than a posterior"):
        posterior.save(one_saved.parent, overwrite=True)
    with pytest.raises(FileExistsError, match="more than a posterior"):
        posterior.save(one_saved / "thesis.tex", overwrite=True)
    assert (one_saved / "thesis.tex").read_text() == "years of work"


FAILURES = ["safetensors.torch.save_file", "bnn.files.posterior.model_record", "bnn.files.posterior.seal"]
FAILURES += ["bnn.writing.flush", "bnn.writing._swap"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("place", FAILURES)
def test_no_half_written_folder(place, error, model, regression, quick, tmp_path, monkeypatch):
    posterior = quick(model, regression, bnn.MAP(epochs=1))

    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        with pytest.raises(type(error)):
            posterior.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    posterior.save(tmp_path / "run")


@pytest.mark.parametrize("place", [*FAILURES, "os.replace"])
def test_what_was_there_survives_a_failed_overwrite(place, one_saved, model, regression, quick, monkeypatch):
    posterior = quick(model, regression, bnn.MAP(epochs=1))
    replace = os.replace

    def fail(*args, **kwargs):
        if place == "os.replace" and str(args[1]) != str(one_saved):
            return replace(*args)  # moving the old one away works; putting the new one there does not, the first time
        monkeypatch.setattr("os.replace", replace)
        raise OSError("disk full")

    if place == "os.replace":
        monkeypatch.setattr("bnn.writing._exchange", lambda *_: False)
    monkeypatch.setattr(place, fail)
    with pytest.raises(OSError, match="disk full"):
        posterior.save(one_saved, overwrite=True)
    assert [path.name for path in one_saved.parent.iterdir()] == ["run"]
    assert bnn.load(one_saved, model).num_draws is None


def test_folders_above_are_made(model, regression, quick, tmp_path):
    posterior = quick(model, regression, bnn.MAP(epochs=1))
    path = posterior.save(str(tmp_path / "a" / "b" / "run"))
    assert bnn.load(str(path), model).num_draws == 1
