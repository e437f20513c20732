"""Nothing global moves, and the user's network stays as it is, whatever is done."""

from __future__ import annotations

import contextlib
import random

import matplotlib as mpl
import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, Dataset

import bnn
from bnn.likelihoods import Gaussian
from bnn.priors import Normal


class Net(nn.Module):
    """Batch statistics, dropout, a frozen part in evaluation mode, and parameters named like the user's own in Pyro."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5))
        self.frozen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False).eval()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.frozen(self.body(x)))


def user_guide(x, y):
    for name, shape in {"body.0.weight": (4, 3), "head.weight": (1, 4), "head.bias": (1,)}.items():
        loc = pyro.param(f"{name}.loc", lambda shape=shape: torch.zeros(shape))
        pyro.sample(name, dist.Normal(loc, 0.1).to_event())


PRIOR = {"body.0.weight": Normal(1.0), "head.*": Normal(1.0), "*": None}
MODELS = {
    "plain": (Normal(1.0), Gaussian()),
    "points": (PRIOR, Gaussian("learned")),
    "hierarchical": (Normal(dist.HalfCauchy(1.0), centred=False), Gaussian()),
    "partly": (PRIOR, Gaussian(0.5)),
}
METHODS = {
    "map": (bnn.MAP(epochs=2, batch_size=8), "plain"),
    "map, a draw to start from": (bnn.MAP(epochs=2, init="prior"), "plain"),
    "mean field": (bnn.MeanField(epochs=2, batch_size=8), "plain"),
    "mean field, several draws": (bnn.MeanField(epochs=2, draws=3), "hierarchical"),
    "mean field, points": (bnn.MeanField(epochs=2), "points"),
    "autoguide": (bnn.Variational(guide=AutoNormal, epochs=2), "hierarchical"),
    "autoguide, points": (bnn.Variational(guide=AutoLowRankMultivariateNormal, epochs=2), "points"),
    "function guide": (bnn.Variational(guide=user_guide, epochs=2), "partly"),
    "full rank": (bnn.FullRank(epochs=2), "plain"),
    "flow": (bnn.Flow(epochs=2), "plain"),
    "ivon": (bnn.IVON(epochs=2), "plain"),
    "laplace": (bnn.Laplace(of=bnn.MAP(epochs=2), covariance="full"), "plain"),
    "last layer": (bnn.LastLayer(of=bnn.MAP(epochs=2)), "plain"),
    "vbll": (bnn.VBLL(epochs=2), "plain"),
    "ensemble": (bnn.Ensemble(members=2, of=bnn.MAP(epochs=2)), "points"),
    "mc dropout": (bnn.MCDropout(epochs=2), "plain"),
}


SAMPLERS = {
    "nuts": bnn.NUTS(chains=2, warmup=2, num_samples=2, max_depth=3),
    "hmc, from the network": bnn.HMC(chains=2, warmup=2, num_samples=2, max_steps=4, init="net"),
    "chees": bnn.ChEES(chains=2, warmup=2, num_samples=2, max_steps=4),
    "sgld": bnn.SGLD(chains=2, warmup=2, num_samples=2),
    "svgd": bnn.SVGD(particles=3, epochs=2),
}


def store():
    """The user's own entries, under names that the model and the guides use too."""
    state = pyro.get_param_store().get_state()
    return {name: value.detach().clone() for name, value in state["params"].items()}, {
        name: str(constraint) for name, constraint in state["constraints"].items()
    }


def world():
    """Everything global that a call could move."""
    return {
        "store": store(),
        "default dtype": torch.get_default_dtype(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "validation": (
            pyro.poutine.is_validation_enabled(),
            pyro.infer.is_validation_enabled(),
            pyro.distributions.is_validation_enabled(),
            torch.distributions.Distribution._validate_args,
        ),
        "settings": pyro.settings.get(),
        "matplotlib": dict(mpl.rcParams),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def snapshot(net):
    """All of a network: its very tensors, their values and gradients, modes, and what needs a gradient."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {
        "identity": {name: id(t) for name, t in tensors.items()},
        "values": {name: t.detach().clone() for name, t in tensors.items()},
        "gradients": {name: t.grad is None for name, t in tensors.items()},
        "requires_grad": {name: t.requires_grad for name, t in tensors.items()},
        "modes": {name: module.training for name, module in net.named_modules()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in net.named_modules()},
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@contextlib.contextmanager
def untouched(net):
    """Raise if a block moved anything."""
    before, mine = world(), snapshot(net)
    yield
    after, theirs = world(), snapshot(net)
    moved = [key for key in before if not same(before[key], after[key])]
    moved += [f"net: {key}" for key in mine if not same(mine[key], theirs[key])]
    assert not moved, f"moved: {moved}"


@pytest.fixture
def net():
    return Net()


@pytest.fixture(autouse=True)
def users_store():
    """A store with entries of the user's, a positive one among them."""
    for name in ("body.0.weight", "head.weight.loc", "likelihood.scale", "AutoNormal.locs.head.bias"):
        pyro.param(name, torch.rand(2) + 1, constraint=constraints.positive)


@pytest.mark.parametrize(
    ("method", "compile", "training"),
    [
        *((method, "eager", False) for method in METHODS),
        *((method, "graph", True) for method in ("map", "mean field, several draws")),
        ("autoguide, points", "graph", True),
    ],
)
def test_nothing_moves(method, compile, training, net, regression, tmp_path):
    chosen, kind = METHODS[method]
    net.train(training)
    net.frozen.eval()
    model = bnn.BNN(net, *MODELS[kind])
    x, y = regression
    with untouched(net):
        posterior = bnn.fit(model, (x, y), chosen, compile=compile, progress=False, validation=(x, y))
    with untouched(net):
        posterior.draws(posterior.num_draws or 5)
    with untouched(net):
        prediction = posterior.predict(x, draws=posterior.num_draws or 5)
    with untouched(net):
        prediction.sample(3)
        prediction.interval()
        prediction.log_prob(y)
        _ = prediction.variance
    with untouched(net):
        posterior.net(0)(x)
    with untouched(net), pytest.MonkeyPatch.context() as patch:
        patch.setattr("bnn.files.posterior._GUIDE_DRAWS", 5)
        posterior.save(tmp_path / "run")
    with untouched(net):
        loaded = bnn.load(tmp_path / "run", model)
        loaded.predict(x, draws=1)
    if "guide" in method:
        with untouched(net):
            bnn.load(tmp_path / "run", model, method=chosen).predict(x, draws=2)


class Rows(Dataset):
    """Not held in memory, so that it is read through a DataLoader, which asks torch's random state for a seed."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


@pytest.mark.parametrize("loader", [False, True], ids=["arrays", "a shuffled loader"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_move_nothing(name, loader):
    """They hold batch statistics fixed, so that their network has none."""
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model = bnn.BNN(net, Normal(1.0), Gaussian())
    x = torch.randn(20, 3)
    data = (x, x[:, :1])
    if loader:
        data = DataLoader(torch.utils.data.TensorDataset(*data), batch_size=7, shuffle=True)
    before = world(), snapshot(net)
    bnn.fit(model, data, SAMPLERS[name], compile="graph", progress=False)
    assert same(before[0], world())
    assert same(before[1], snapshot(net))


@pytest.mark.parametrize("make", [Rows, lambda x, y: DataLoader(Rows(x, y), batch_size=8)], ids=["Dataset", "loader"])
def test_reading_data_moves_nothing(make, net, regression):
    model = bnn.BNN(net, *MODELS["plain"])
    with untouched(net):
        posterior = bnn.fit(model, make(*regression), bnn.MAP(epochs=2), compile="eager", progress=False)
    with untouched(net):
        posterior.predict(make(*regression))


def test_reading_held_out_data_moves_nothing(net, regression):
    model = bnn.BNN(net, *MODELS["plain"])
    with untouched(net):
        bnn.fit(model, regression, bnn.MAP(epochs=2), compile="eager", progress=False, validation=Rows(*regression))


def test_an_own_loop_moves_nothing_but_its_optimiser(net, regression):
    x, y = regression
    model = bnn.BNN(net, *MODELS["plain"])
    with untouched(net):
        loss = bnn.MeanField().loss(model, n_data=20)
    optimiser = torch.optim.Adam(loss.parameters())
    state = torch.get_rng_state()
    loss(x, y).backward()
    assert not torch.equal(torch.get_rng_state(), state)  # each step has its noise, from the loop's own random state
    with untouched(net):
        optimiser.step()
        loss.posterior().predict(x, draws=2)


def test_looking_at_a_model_moves_nothing(net, regression):
    x, y = regression
    net.eval()  # dropout draws from the surrounding random state, as it does in any call of a module
    with untouched(net):
        model = bnn.BNN(net, *MODELS["points"])
        sites = model.sites()
        model.copy()
        model.log_joint({site.name: site.value for site in sites.latents}, x, y)


def test_other_settings_are_kept_too(regression):
    """Not only the defaults: float64 as default, validation off, module-local parameters on."""
    x, y = regression
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with pyro.validation_enabled(False), pyro.settings.context(module_local_params=True):
            net = Net().float()
            model = bnn.BNN(net, Normal(dist.HalfCauchy(torch.tensor(1.0))), Gaussian())
            with untouched(net):
                posterior = bnn.fit(model, (x, y), METHODS["autoguide"][0], compile="eager", progress=False)
            with untouched(net):
                assert posterior.predict(x, draws=3).mean.dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_fit_that_is_stopped_moves_nothing(stop, net, regression):
    model = bnn.BNN(net, *MODELS["plain"])

    def callback(progress):
        raise stop

    with untouched(net), contextlib.suppress(stop):
        bnn.fit(model, regression, bnn.MAP(epochs=3), compile="eager", progress=False, callbacks=[callback])


def test_the_answer_does_not_depend_on_the_surroundings(net, regression):
    """The same seed gives the same fit and the same draws, wherever torch's random state and Pyro's store are."""
    model = bnn.BNN(net, *MODELS["points"])

    def draws():
        posterior = bnn.fit(model, regression, bnn.MeanField(epochs=2, batch_size=8), compile="eager", progress=False)
        return {**posterior.draws(3), **posterior.points}

    first = draws()
    torch.manual_seed(99)
    pyro.clear_param_store()
    assert same(first, draws())


def check_fit(net, regression, kind):
    with untouched(net):
        model = bnn.BNN(net, *MODELS[kind])
        bnn.fit(model, regression, bnn.MeanField(epochs=2), compile="eager", progress=False)


def test_control_random_state(net, regression, monkeypatch):
    """With the state not put back, the check is red."""

    @contextlib.contextmanager
    def leaky(seed=None, device="cpu"):
        torch.manual_seed(0 if seed is None else seed)
        yield

    monkeypatch.setattr("bnn.inference.loop.isolated", leaky)
    with pytest.raises(AssertionError, match=r"moved: .*torch"):
        check_fit(net, regression, "plain")


def test_control_store(net, regression, monkeypatch):
    """With Pyro's store not put back, the check is red."""
    monkeypatch.setattr(type(pyro.get_param_store()), "scope", lambda self: contextlib.nullcontext(self))
    with pytest.raises(AssertionError, match=r"moved: .*store"):
        check_fit(net, regression, "partly")


def test_control_copy(net, regression, monkeypatch):
    """With the network not copied, the check is red."""
    monkeypatch.setattr(bnn.BNN, "copy", lambda self: self)
    with pytest.raises(AssertionError, match=r"moved: .*net: "):
        check_fit(net, regression, "plain")
