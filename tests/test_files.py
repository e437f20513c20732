"""Run folders: what is saved comes back whole, estimators and models too; half-written ones are never seen."""

from __future__ import annotations

import csv
import functools
import importlib
import inspect
import io
import json
import os
import signal
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from folders import as_schema_1, reseal
from pyro import distributions as dist
from pyro.infer.autoguide import AutoDiagonalNormal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

import bnn
from bnn import likelihoods as L
from bnn import nets
from bnn import priors as P
from bnn.distributions import in_words
from bnn.files import MANIFEST, add_file, read_file
from bnn.inference import Cyclical, RMSProp
from bnn.values import TYPES, NotPlainError, from_json, to_json

QUICK = {"hidden": (3,), "compile": "eager", "epochs": 2}
RNG = np.random.default_rng(0)
N = 24
TABLE = pd.DataFrame({"a": RNG.normal(size=N), "b": RNG.choice(["u", "v"], N), "c": RNG.normal(size=N)})
TABLE.loc[3, "a"] = np.nan
Y = TABLE["c"].to_numpy() + 0.1 * RNG.normal(size=N)
CLASSES = np.where(Y > 0, "hi", "lo")

# -------------------------------------------------------------------------------------------------------------- values

VALUES = {
    "numbers": lambda: [1, 2.5, None, True, "x", (1, [float("inf"), -float("inf")]), {"a": 1}],
    "nan": lambda: (float("nan"),),
    "normal": lambda: P.Normal("fan_in", gain=2.0),
    "learned scale": lambda: P.Normal(dist.HalfCauchy(1.0), centred=False),
    "by pattern": lambda: {"a*": P.Laplace(0.1), "*": None},
    "tensors": lambda: P.Normal(torch.rand(3, 2) + 0.1, loc=torch.randn(3, 2, dtype=torch.float64)),
    "pretrained": lambda: P.Pretrained({"w": torch.randn(3)}, 0.1, prefix="body."),
    "own distribution": lambda: P.FromPyro(dist.Normal(torch.zeros(2), 1.0).to_event(1)),
    "hierarchical": P.Hierarchical,
    "horseshoe": P.RegularisedHorseshoe,
    "filters": P.CorrelatedFilters,
    "spike": P.SpikeAndSlab,
    "gaussian": L.Gaussian,
    "learned": lambda: L.Gaussian("learned", missing="mask"),
    "several": lambda: L.Gaussian(torch.tensor([1.0, 2.0])),
    "unknown covariance": lambda: L.MultivariateGaussian(3, concentration=2.0),
    "fixed covariance": lambda: L.MultivariateGaussian(covariance=torch.tensor([[2.0, 0.3], [0.3, 1.0]])),
    "categorical": lambda: L.Categorical(0.1, class_weights=[1, 2.0]),
    "ordinal": lambda: L.Ordinal(4, 2.0),
    "quantile": lambda: L.Quantile(0.3),
    "censored": lambda: L.Censored(L.Weibull()),
    "truncated": lambda: L.Truncated(L.Gaussian(dist.Gamma(2.0, 0.1)), low=0.0),
    "binomial": lambda: L.Binomial(5),
    "map": lambda: bnn.MAP(optimizer=functools.partial(torch.optim.SGD, momentum=0.9)),
    "schedule": lambda: bnn.MeanField(schedule=torch.optim.lr_scheduler.CosineAnnealingLR),
    "ensemble": lambda: bnn.Ensemble(of=bnn.SWAG(rank=3)),
    "laplace": lambda: bnn.Laplace(of=bnn.MAP(epochs=2)),
    "nuts": bnn.NUTS,
    "sgld": lambda: bnn.SGLD(schedule=Cyclical(), preconditioner=RMSProp()),
    "guide": lambda: bnn.Variational(guide=AutoDiagonalNormal),
}


@pytest.mark.parametrize("apart", [False, True], ids=["in the text", "apart"])
@pytest.mark.parametrize("name", VALUES)
def test_values_come_back(name, apart):
    value, tensors = VALUES[name](), {} if apart else None
    record = json.loads(json.dumps(to_json(value, tensors), allow_nan=False))
    again = from_json(record, tensors)
    assert type(again) is type(value)
    assert in_words(again) == in_words(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda: bnn.MAP(schedule=lambda optimizer, steps: None), r"method.schedule is code of one's own, .*lambda"),
        (lambda: P.Function(lambda params: params), "method is a Function"),
        (lambda: [nn.Linear], r"method\[0\] is code"),
        (lambda: {"a": np.random.RandomState(0)}, r"method\['a'\] is a RandomState"),
        (lambda: {1: 2}, "method is a dict"),
        (lambda: P.Normal(dist.FoldedDistribution(dist.Normal(0.0, 1.0))), r"method\.scale is a distribution"),
    ],
    ids=["lambda", "function", "class", "random state", "dict", "distribution"],
)
def test_what_cannot_be_rebuilt_is_named(value, words):
    with pytest.raises((NotPlainError, ValueError), match=words):
        to_json(value(), name="method")


def test_no_prior_likelihood_or_method_is_forgotten():
    for group, base, own in (
        ("priors", P.Prior, {"Function"}),
        ("likelihoods", L.Likelihood, {"Function"}),
        ("methods", bnn.inference.Method, set()),
    ):
        module, names = TYPES[group]
        there = vars(importlib.import_module(module))
        found = {
            n for n, c in there.items() if isinstance(c, type) and issubclass(c, base) and not inspect.isabstract(c)
        }
        assert found - own <= set(names.split())


NETS = {
    "mlp": lambda: nets.mlp(3, (4, 4), 2, activation="tanh", norm="layer", residual=True),
    "tabular": lambda: nets.tabular(2, (3, 4), (5,), dropout=0.1),
    "lstm": lambda: nets.lstm(3, 4, layers=2, bidirectional=True),
    "lenet": lambda: nets.lenet(size=28),
    "resnet": lambda: nets.resnet(width=8, blocks=1, norm="group"),
}


@pytest.mark.parametrize("name", NETS)
def test_networks_come_back(name):
    net = NETS[name]()
    again = nets.rebuilt(json.loads(json.dumps(net.recipe)))
    assert repr(again) == repr(net)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in net.state_dict().items()}


# ---------------------------------------------------------------------------------------------------------- posteriors


def posterior_of(net, regression, method=None, prior=None, **settings):
    model = bnn.BNN(net, prior or P.Normal(1.0), L.Gaussian(), **settings)
    return bnn.fit(model, regression, method or bnn.MeanField(epochs=2), compile="eager", progress=False)


POSTERIORS = {
    "plain": lambda data: posterior_of(nets.mlp(3, (4,), 1), data),
    "double": lambda data: posterior_of(nets.mlp(3, (4,), 1).double(), data),
    "frozen": lambda data: posterior_of(frozen(), data, prior={"out.*": P.Normal(dist.HalfCauchy(1.0))}),
    "batch statistics": lambda data: posterior_of(nets.mlp(3, (4,), 1, norm="batch"), data, bnn.MAP(epochs=2)),
    "masks": lambda data: posterior_of(nets.mlp(3, (4,), 1, dropout=0.2), data, bnn.MCDropout(epochs=2)),
    "members": lambda data: posterior_of(nets.mlp(3, (), 1), data, bnn.Ensemble(members=2, of=bnn.MeanField(epochs=1))),
    "uncertain inputs": lambda data: posterior_of(nets.mlp(3, (), 1), data, bnn.MAP(epochs=1), input_noise=0.1),
    "a prior of tensors": lambda data: posterior_of(
        nets.mlp(3, (), 1), data, prior=posterior_of(nets.mlp(3, (), 1), data).as_prior()
    ),
}


def frozen():
    net = nets.mlp(3, (4,), 1)
    net.hidden.requires_grad_(False)
    return net


@pytest.mark.parametrize("kind", POSTERIORS)
def test_a_posterior_of_a_built_in_network_comes_back_by_itself(kind, regression, tmp_path):
    torch.manual_seed(0)
    posterior = POSTERIORS[kind](regression)
    before = torch.get_rng_state()
    again = bnn.load(posterior.save(tmp_path / "run"))
    assert torch.equal(torch.get_rng_state(), before)
    x, y = regression
    assert torch.equal(again.predict(x).log_prob(y), posterior.predict(x).log_prob(y))
    assert again.save(tmp_path / "again")  # and so on
    assert torch.equal(bnn.load(tmp_path / "again").predict(x).mean, posterior.predict(x).mean)


def test_what_a_posterior_needs_is_said(regression, tmp_path):
    own = nn.Linear(3, 1)
    posterior_of(own, regression).save(tmp_path / "own")
    with pytest.raises(ValueError, match=r"needs model=, the bnn.BNN .*the network, a Linear, is code"):
        bnn.load(tmp_path / "own")
    x, _ = regression
    alone = bnn.load(tmp_path / "own", nn.Linear(3, 1))  # prior and likelihood are in the files
    assert torch.equal(
        alone.predict(x).mean, bnn.load(tmp_path / "own", bnn.BNN(own, P.Normal(1.0), L.Gaussian())).predict(x).mean
    )
    changed = nets.mlp(3, (4,), 1)
    changed.out = nn.Linear(4, 1, bias=False)
    posterior_of(changed, regression).save(tmp_path / "changed")
    with pytest.raises(ValueError, match=r"the network was changed after bnn\.nets\.mlp had built it"):
        bnn.load(tmp_path / "changed")
    posterior_of(nets.mlp(3, (), 1), regression, output=lambda out: out * 2).save(tmp_path / "output")
    with pytest.raises(ValueError, match="output is code of one's own"):
        bnn.load(tmp_path / "output")
    with pytest.raises(TypeError, match="not a str"):
        bnn.load(tmp_path / "own", "the model")


def test_a_folder_of_the_first_version_loads(regression, tmp_path):
    net = nets.mlp(3, (4,), 1)
    posterior = posterior_of(net, regression)
    folder = as_schema_1(posterior.save(tmp_path / "run"))
    assert sorted(path.name for path in folder.iterdir()) == ["posterior.json", "posterior.safetensors"]
    x, _ = regression
    again = bnn.load(folder, bnn.BNN(net, P.Normal(1.0), L.Gaussian()))
    assert torch.equal(again.predict(x).mean, posterior.predict(x).mean)
    with pytest.raises(ValueError, match="does not say how its model was built"):
        bnn.load(folder)
    again.save(folder, overwrite=True)
    assert (folder / MANIFEST).exists()


def test_a_manifest_that_is_gone_is_missed(regression, tmp_path):
    folder = posterior_of(nets.mlp(3, (), 1), regression).save(tmp_path / "run")
    (folder / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match=r"manifest.json is missing"):
        bnn.load(folder)


# ---------------------------------------------------------------------------------------------------------- estimators


def own_net(inputs, outputs):
    return nn.Linear(inputs, outputs)


ESTIMATORS = {
    "regressor": (lambda: bnn.BayesianRegressor(method=bnn.MeanField(), **QUICK), Y),
    "two targets": (lambda: bnn.BayesianRegressor(method="mean_field", **QUICK), np.c_[Y, 3 + Y**2]),
    "counts": (lambda: bnn.BayesianRegressor(method="map", likelihood=L.Poisson(), **QUICK), (Y > 0).astype(float)),
    "embedding": (lambda: bnn.BayesianRegressor(method="map", encoding="embedding", **QUICK), Y),
    "a guide": (lambda: bnn.BayesianRegressor(method=bnn.Variational(guide=AutoDiagonalNormal), **QUICK), Y),
    "tensors": (lambda: bnn.BayesianRegressor(method="map", prior=P.Normal(torch.tensor(2.0)), **QUICK), Y),
    "single precision": (lambda: bnn.BayesianRegressor(method="map", dtype="float32", **QUICK), Y),
    "classifier": (lambda: bnn.BayesianClassifier(method="mean_field", **QUICK), CLASSES),
    "whole classes": (lambda: bnn.BayesianClassifier(method="map", **QUICK), (Y > 0).astype(np.int16) * 7),
    "own": (lambda: bnn.BayesianModuleClassifier(own_net, method="map", epochs=2, compile="eager"), CLASSES),
}


def same(one, other) -> bool:
    a, b = one.predict_distribution(TABLE), other.predict_distribution(TABLE)
    alike = torch.equal(a.outputs, b.outputs) and a.latents.keys() == b.latents.keys()
    return alike and all(torch.equal(a.latents[k], b.latents[k]) for k in a.latents)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_an_estimator_comes_back_whole(kind, tmp_path):
    make, y = ESTIMATORS[kind]
    made = make().fit(TABLE, y)
    module = {"model": own_net} if kind == "own" else {}
    again = bnn.load(made.save(tmp_path / "run"), **module)
    assert type(again) is type(made)
    assert same(again, made)
    found, want = again.predict(TABLE), made.predict(TABLE)
    assert np.array_equal(found, want)
    assert found.dtype == want.dtype
    assert repr(again.get_params()) == repr(made.get_params())
    assert clone(again).get_params().keys() == made.get_params().keys()
    assert again.encoder_ == made.encoder_
    assert (again.n_features_in_, again.n_rows_) == (3, N)
    assert list(again.feature_names_in_) == list(TABLE)
    with pytest.raises(ValueError, match="feature names"):
        again.predict(TABLE.rename(columns={"a": "z"}))
    assert clone(again).fit(TABLE, y).score(TABLE, y) == made.score(TABLE, y)


@pytest.mark.parametrize("kind", ["regressor", "two targets", "classifier"])
def test_an_estimator_that_came_back_goes_on(kind, tmp_path):
    """Further rows, twice, with a save between: as one that was never in a file."""
    make, y = ESTIMATORS[kind]
    made = make().partial_fit(TABLE, y)
    again = bnn.load(made.save(tmp_path / "run"))
    for number in range(2):
        made.partial_fit(TABLE, y)
        again = bnn.load(again.partial_fit(TABLE, y).save(tmp_path / f"run{number}"))
        assert again.n_rows_ == (number + 2) * N
        assert same(again, made)


def test_what_an_estimator_s_folder_holds(tmp_path):
    made = bnn.BayesianRegressor(method="map", early_stopping=True, **QUICK).fit(TABLE, Y)
    folder = made.save(tmp_path / "run", arviz=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        "arviz.nc",
        "estimator.json",
        "history.csv",
        MANIFEST,
        "posterior.json",
        "posterior.safetensors",
        "settings.json",
    ]
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["method"]["method"] == "MAP"
    assert settings["method"]["epochs"] == 2
    assert settings["seed"] == 0
    assert set(settings["versions"]) == {"bnn-toolkit", "torch", "pyro-ppl", "numpy"}
    rows = list(csv.DictReader(io.StringIO((folder / "history.csv").read_text())))
    assert [float(row["loss"]) for row in rows] == made.posterior_.history.loss.tolist()
    assert [
        float(row["validation"]) for row in rows if row["validation"]
    ] == made.posterior_.history.validation.tolist()
    assert bnn.load(folder).predict(TABLE) is not None


def test_what_an_estimator_is_refused_for(tmp_path):
    with pytest.raises(NotFittedError):
        bnn.BayesianRegressor().save(tmp_path / "run")
    own = bnn.MAP(schedule=lambda optimizer, steps: torch.optim.lr_scheduler.ConstantLR(optimizer))
    made = bnn.BayesianRegressor(method=own, **QUICK).fit(TABLE, Y)
    with pytest.raises(ValueError, match=r"cannot be rebuilt|method.schedule is code of one's own"):
        made.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    made = bnn.BayesianRegressor(method="map", **QUICK).fit(TABLE, Y)
    folder = made.save(tmp_path / "run")
    with pytest.raises(FileExistsError, match="exists"):
        made.save(folder)
    with pytest.raises(ValueError, match="rebuilt whole: leave model= out"):
        bnn.load(folder, own_net)
    made = bnn.BayesianModuleRegressor(own_net, method="map", epochs=1, compile="eager").fit(TABLE, Y)
    made.save(folder, overwrite=True)
    with pytest.raises(ValueError, match="whose network is code: give it as model="):
        bnn.load(folder)
    with pytest.raises(ValueError, match="sites do not fit"):
        bnn.load(folder, lambda inputs, outputs: nn.Sequential(nn.Linear(inputs, outputs)))


def test_a_failed_refit_leaves_what_was_there():
    made = bnn.BayesianRegressor(method="map", **QUICK).fit(TABLE, Y)
    before = made.predict(TABLE)
    other = TABLE.assign(c=TABLE["c"] * 100 + 5, extra=1.5 * TABLE["c"])
    made.lr = 1e300
    with pytest.raises(bnn.NonFiniteLossError):
        made.fit(other, Y * 1e3)
    assert made.n_features_in_ == 3
    assert np.array_equal(made.predict(TABLE), before)


def test_what_is_known_of_the_noise_goes_on():
    """Under mean field exactly: the next prior is the last posterior."""
    made = bnn.BayesianRegressor(method="mean_field", **QUICK).partial_fit(TABLE, Y)
    approximation = made.posterior_.approximation
    made.partial_fit(TABLE, Y)
    noise = made.model_.likelihood._unknowns["scale"]
    assert isinstance(noise, dist.LogNormal)
    assert torch.allclose(noise.loc, approximation.loc[-1].double())
    assert torch.allclose(noise.scale, approximation.log_scale[-1].exp().double())


# --------------------------------------------------------------------------------------------------------- added files


@pytest.fixture
def folder(regression, tmp_path):
    return posterior_of(nets.mlp(3, (), 1), regression, bnn.MAP(epochs=1)).save(tmp_path / "run")


def test_files_are_added_and_read(folder):
    add_file(folder, "scores.json", b"{}")
    add_file(folder, "scores.json", b"[1]")
    assert read_file(folder, "scores.json") == b"[1]"
    assert bnn.load(folder).num_draws == 1
    for name in (MANIFEST, "posterior.json"):
        with pytest.raises(ValueError, match="written by save alone"):
            add_file(folder, name, b"")
    with pytest.raises(FileNotFoundError, match=r"has no file other.txt: it has posterior.json"):
        read_file(folder, "other.txt")
    (folder / "scores.json").write_bytes(b"[2]")
    with pytest.raises(ValueError, match=r"scores.json is damaged"):
        read_file(folder, "scores.json")
    with pytest.raises(ValueError, match=r"scores.json is damaged"):
        bnn.load(folder)


def killed(action) -> None:
    """Run in a process that is killed on the way; nothing of its clean-up runs."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def deadly(monkeypatch, place: str, call: int) -> None:
    """The process dies when it calls this for the n-th time."""
    module, _, name = place.rpartition(".")
    owner = __import__(module, fromlist=[name])
    real, count = getattr(owner, name), [0]

    def dies(*args, **kwargs):
        count[0] += 1
        if count[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, dies)


@pytest.mark.parametrize(
    ("place", "call"), [("os.fsync", i) for i in (1, 2, 3, 4)] + [("os.replace", 1), ("os.replace", 2)]
)
def test_a_kill_while_a_file_is_added(place, call, folder, monkeypatch):
    """First and second time: the folder always loads, with the file or without it."""
    add_file(folder, "scores.json", b"old")
    with monkeypatch.context() as patch:
        deadly(patch, place, call)
        killed(lambda: add_file(folder, "scores.json", b"new"))
    assert bnn.load(folder).num_draws == 1
    try:
        assert read_file(folder, "scores.json") in (b"old", b"new")
    except FileNotFoundError:
        assert (place, call) not in [("os.fsync", 1), ("os.replace", 1)]


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("safetensors.torch.save_file", 1),
        ("bnn.files.posterior.seal", 1),
        ("os.fsync", 1),
        ("os.fsync", 3),
        ("os.replace", 1),
    ],
)
def test_a_kill_while_a_folder_is_written(place, call, folder, tmp_path, monkeypatch):
    """Before it takes its name there is nothing of that name."""
    if call > 1 and place != "os.fsync":
        pytest.skip("it is called once")
    posterior = bnn.load(folder)
    with monkeypatch.context() as patch:
        deadly(patch, place, call)
        killed(lambda: posterior.save(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    posterior.save(tmp_path / "other")
    assert bnn.load(tmp_path / "other").num_draws == 1


def overwritten(folder, tmp_path):
    """A run of another fit, saved over a first one."""
    posterior = bnn.load(folder)
    posterior.settings["seed"] = 77
    place = tmp_path / "place"
    bnn.load(folder).save(place)
    return lambda: posterior.save(place, overwrite=True), place


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets two folders change their names")
@pytest.mark.parametrize(("where", "call"), [("os.fsync", 3), ("bnn.writing._exchange", 1), ("shutil.rmtree", 1)])
def test_a_kill_while_a_run_is_overwritten(where, call, folder, tmp_path, monkeypatch):
    """At every moment the old run or the new one stands there."""
    save, place = overwritten(folder, tmp_path)
    with monkeypatch.context() as patch:
        deadly(patch, where, call)
        killed(save)
    assert bnn.load(place).settings["seed"] == (77 if where == "shutil.rmtree" else 0)
    save()
    assert bnn.load(place).settings["seed"] == 77


@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_where_folders_cannot_change_their_names(call, folder, tmp_path, monkeypatch):
    """Between the two renames nothing stands there, and loading says where the old run is."""
    save, place = overwritten(folder, tmp_path)
    monkeypatch.setattr("bnn.writing._exchange", lambda *_: False)
    with monkeypatch.context() as patch:
        deadly(patch, "os.replace", call)
        killed(save)
    if call == 1:
        assert bnn.load(place).settings["seed"] == 0
        return
    with pytest.raises(
        FileNotFoundError, match=r"what was there is in .*\.place\..*\.old, where a save over it"
    ) as told:
        bnn.load(place)
    (old,) = tmp_path.glob(".place.*.old")
    assert str(old) in str(told.value)
    old.rename(place)
    assert bnn.load(place).settings["seed"] == 0


def test_a_link_to_a_run_stays_a_link(folder, tmp_path):
    save, place = overwritten(folder, tmp_path)
    place.rename(tmp_path / "there")
    place.symlink_to("there")
    save()
    assert place.is_symlink()
    assert bnn.load(tmp_path / "there").settings["seed"] == 77


@pytest.mark.parametrize("call", range(1, 8))
def test_a_full_disk(call, tmp_path, monkeypatch):
    """The n-th file that is opened to be written cannot be: nothing is left, and what was there stays."""
    made = bnn.BayesianRegressor(method="map", **QUICK).fit(TABLE, Y)
    folder = made.save(tmp_path / "run")
    made.fit(TABLE, Y + 1)
    real, count = os.fsync, [0]

    def full(handle):
        count[0] += 1
        if count[0] == call:
            raise OSError(28, "No space left on device")
        return real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            made.save(folder, overwrite=True)
        count[0] = 0
        with pytest.raises(OSError, match="No space left"):
            made.save(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert bnn.load(folder).target_mean_ == pytest.approx(Y.mean())


def test_a_reseal_is_a_reseal(folder):
    """Of the tests' own helper: an untouched folder keeps its manifest."""
    before = (folder / MANIFEST).read_bytes()
    reseal(folder)
    assert (folder / MANIFEST).read_bytes() == before
