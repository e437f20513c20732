"""The model as a Pyro model: any algorithm runs on it, and its density is the one written by hand."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy import special, stats
from torch import nn

import bnn
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.priors import Laplace, Normal

F64 = torch.float64


def tanh_net(outputs=1):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def numpy_params(net):
    return [p.detach().numpy() for p in net.parameters()]


def numpy_forward(params, x):
    w0, b0, w1, b1 = params
    return np.tanh(x @ w0.T + b0) @ w1.T + b1


# ---------------------------------------------------------------------------------------------- Pyro's own algorithms

HIERARCHICAL = {"0.*": Normal(dist.HalfCauchy(1.0)), "*": Normal("fan_in", gain=dist.HalfNormal(1.0), centred=False)}


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("prior", [Normal(1.0), HIERARCHICAL], ids=["fixed", "hierarchical"])
def test_svi_with_autonormal(prior, elbo, regression):
    model = bnn.BNN(tanh_net().float(), prior, Gaussian())
    guide = AutoNormal(model, init_scale=0.05)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo())
    losses = [svi.step(*regression, n_data=100) for _ in range(20)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert set(guide.median()) == {site.name for site in model.sites().latents}


def test_nuts(regression):
    model = bnn.BNN(tanh_net().float(), HIERARCHICAL, Gaussian())
    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(*regression)
    samples = mcmc.get_samples()
    assert {name: tuple(value.shape) for name, value in samples.items()} == {
        site.name: (5, *site.value.shape) for site in model.sites().latents
    }
    assert all(value.isfinite().all() for value in samples.values())


def test_predictive(regression):
    """With fixed noise of 1e-4 and the weights of one net given, y is that net's output to 5 of these."""
    x, _ = regression
    net = tanh_net().float()
    model = bnn.BNN(net, Normal(1.0), Gaussian(1e-4))
    given = {name: p.detach().expand(7, *p.shape) for name, p in net.named_parameters()}
    y = Predictive(model, posterior_samples=given)(x)["y"]
    assert y.shape == (7, 20, 1)
    assert float((y - net(x).detach()).abs().max()) < 6e-4  # 140 normal draws: beyond 6 sd once in 4e6
    assert Predictive(model, num_samples=3)(x)["y"].shape == (3, 20, 1)


def test_condition_on_a_single_weight(regression):
    model = bnn.BNN(tanh_net().float(), HIERARCHICAL, Gaussian())
    fixed = torch.full((4, 3), 0.5)
    conditioned = poutine.condition(model, data={"0.weight": fixed})
    trace = poutine.trace(conditioned).get_trace(*regression)
    assert trace.nodes["0.weight"]["is_observed"]
    assert trace.nodes["0.weight"]["value"] is fixed
    svi = SVI(conditioned, AutoNormal(conditioned), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert math.isfinite(svi.step(*regression))


def test_without_targets_y_is_sampled(model, regression):
    x, _ = regression
    trace = poutine.trace(model).get_trace(x)
    assert not trace.nodes["y"]["is_observed"]
    assert trace.nodes["y"]["value"].shape == (20, 1)


# ------------------------------------------------------------------------------------------------------- the density


def check_gaussian_density(n_data=None, weight=None):
    """log p(hyper) + log p(w | hyper) + log p(noise) + (N/n) sum of weighted log p(y | x, w), with scipy."""
    net = tanh_net()
    x, y = torch.randn(5, 3, dtype=F64), torch.randn(5, 1, dtype=F64)
    model = bnn.BNN(net, {"0.*": Normal(dist.HalfCauchy(2.0)), "*": Laplace(0.5, loc=0.1)}, Gaussian())
    hyper, noise = 0.7, 0.3
    params = dict(net.named_parameters()) | {
        "prior.0.scale": torch.tensor(hyper, dtype=F64),
        "likelihood.scale": torch.tensor(noise, dtype=F64),
    }
    w0, b0, w1, b1 = numpy_params(net)
    log_lik = stats.norm.logpdf(y.numpy(), numpy_forward((w0, b0, w1, b1), x.numpy()), noise)[:, 0]
    expected = stats.halfcauchy.logpdf(hyper, 0, 2) + stats.halfcauchy.logpdf(noise, 0, 1)
    expected += sum(stats.norm.logpdf(w, 0, hyper).sum() for w in (w0, b0))
    expected += sum(stats.laplace.logpdf(w, 0.1, 0.5).sum() for w in (w1, b1))
    expected += (n_data or 5) / 5 * (log_lik * (1 if weight is None else weight.numpy())).sum()
    if weight is None:
        got = model.log_joint(params, x, y, n_data)
    else:
        got = model.trace(params, {}, x, y, n_data=n_data, weight=weight).log_prob_sum()
    assert got.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n_data", [None, 5, 100])
def test_log_joint_is_the_density_by_hand(n_data):
    check_gaussian_density(n_data)


def test_sample_weights_multiply_the_likelihood_alone():
    check_gaussian_density(100, torch.tensor([0.5, 2.0, 1.0, 3.0, 1e-3], dtype=F64))


CONTROLS = {
    "N/n left out": ("(outputs, n_data, rows)", "(outputs, None, rows)"),
    "N/n over everything": (
        "weights, latents = self.sample_unknowns()",
        "weights, latents = pyro.poutine.scale(self.sample_weights, 20.)(), self.likelihood.latents(self.like)",
    ),
    "prior counted twice": (
        "weights, latents = self.sample_unknowns()",
        "weights, latents = pyro.poutine.scale(self.sample_weights, 2.)(), self.likelihood.latents(self.like)",
    ),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_control_density(control, patch_line):
    patch_line(bnn.BNN, "__call__", *CONTROLS[control])
    with pytest.raises((AssertionError, ValueError)):
        check_gaussian_density(100)


def test_only_y_is_scaled(model, regression):
    trace = poutine.trace(model).get_trace(*regression, n_data=200)
    scales = {name: node["scale"] for name, node in trace.nodes.items() if node["type"] == "sample"}
    assert scales.pop("y") == 10.0
    scales.pop("data", None)
    assert set(scales.values()) == {1.0}


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()], ids=repr)
def test_log_joint_of_classification(likelihood):
    net = tanh_net(outputs=3)
    x = torch.randn(5, 3, dtype=F64)
    logits = numpy_forward(numpy_params(net), x.numpy())
    if isinstance(likelihood, Categorical):
        y = torch.tensor([0, 1, 2, 2, 0])
        log_lik = special.log_softmax(logits, axis=1)[np.arange(5), y.numpy()].sum()
    else:
        y = (torch.randn(5, 3) > 0).double()
        log_lik = stats.bernoulli.logpmf(y.numpy(), special.expit(logits)).sum()
    expected = sum(stats.norm.logpdf(w, 0, 2).sum() for w in numpy_params(net)) + 4 * log_lik
    model = bnn.BNN(net, Normal(2.0), likelihood)
    assert model.log_joint(dict(net.named_parameters()), x, y, n_data=20).item() == pytest.approx(expected, rel=1e-12)


def test_log_joint_has_the_gradient_of_the_posterior():
    """Linear regression: d/dw log p(w, y) = x'(y - xw) / noise^2 - w / scale^2."""
    net = nn.Linear(3, 1, bias=False).double()
    x, y = torch.randn(7, 3, dtype=F64), torch.randn(7, 1, dtype=F64)
    w = torch.randn(1, 3, dtype=F64, requires_grad=True)
    bnn.BNN(net, Normal(2.0), Gaussian(0.5)).log_joint({"weight": w}, x, y).backward()
    expected = ((y - x @ w.T).T @ x) / 0.25 - w / 4
    torch.testing.assert_close(w.grad, expected.detach())


def test_log_joint_names_missing_and_unknown_sites(model, regression):
    params = {site.name: site.value for site in model.sites().latents}
    del params["likelihood.scale"]
    with pytest.raises(ValueError, match=r"missing sites \['likelihood.scale'\], unknown names \['2.wieght'\]"):
        model.log_joint({**params, "2.wieght": torch.zeros(1)}, *regression)


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 4), ()])
def test_log_joint_takes_each_site_in_its_own_shape(shape, model, regression):
    """A bias of shape (1,) would broadcast, and count once in the prior and four times in the network."""
    params = {site.name: site.value for site in model.sites().latents} | {"0.bias": torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"'0.bias'.*\(4,\)"):
        model.log_joint(params, *regression)


def test_rows_of_no_weight_count_for_nothing(model, regression):
    x, y = regression
    params = {site.name: site.value for site in model.sites().latents}
    weight = torch.ones(20)
    weight[3:] = 0
    got = model.trace(params, {}, x, y, weight=weight).log_prob_sum()
    torch.testing.assert_close(got, model.log_joint(params, x[:3], y[:3]))


def test_fewer_rows_than_the_batch(model, regression):
    with pytest.raises(ValueError, match=r"n_data.*3.*20"):
        model(*regression, n_data=3)


def test_log_joint_takes_points(regression):
    """A learned noise scale: the value given, else the present one, which is 1 before any fit."""
    x, y = regression
    model = bnn.BNN(nn.Linear(3, 1), Normal(1.0), Gaussian("learned"))
    params = {name: p.detach() for name, p in model.net.named_parameters()}
    by_default = model.log_joint(params, x, y)
    assert by_default == model.log_joint({**params, "likelihood.scale": torch.tensor(1.0)}, x, y)
    assert by_default != model.log_joint({**params, "likelihood.scale": torch.tensor(0.5)}, x, y)
    assert len(pyro.get_param_store()) == 0


# -------------------------------------------------------------------------------------------- inputs, outputs and nets


class Two(nn.Module):
    """f(a, b) = A a - B b"""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 1, bias=False), nn.Linear(2, 1, bias=False)

    def forward(self, a, b):
        return self.first(a) - self.second(b)


def test_several_inputs_by_place_and_by_name(quick):
    net = Two()
    a, b = torch.randn(6, 3), torch.randn(6, 2)
    expected = net(a, b).detach()
    model = bnn.BNN(net, Normal(1.0), Gaussian())
    params = {name: p.detach() for name, p in net.named_parameters()}
    for x in ((a, b), {"b": b, "a": a}):
        torch.testing.assert_close(model.forward(params, x), expected)
        posterior = quick(model, (x, expected), bnn.MAP(epochs=1, batch_size=4))
        assert posterior.predict(x).mean.shape == (6, 1)


class Outputs(nn.Module):
    """An LSTM's own (outputs, (hidden, cell)), or the same in a dict."""

    def __init__(self, named):
        super().__init__()
        self.lstm, self.named = nn.LSTM(3, 2, batch_first=True), named

    def forward(self, x):
        out, (hidden, cell) = self.lstm(x)
        return {"last": out[:, -1], "hidden": hidden} if self.named else (out, (hidden, cell))


@pytest.mark.parametrize(
    ("named", "output"),
    [(True, "last"), (False, lambda result: result[0][:, -1]), (False, lambda result: result[1][0][0])],
)
def test_output_selects(named, output, quick):
    net = Outputs(named)
    x, y = torch.randn(6, 5, 3), torch.randn(6, 2)
    expected = net.lstm(x)[0][:, -1].detach()
    model = bnn.BNN(net, Normal(1.0), Gaussian(), output=output)
    params = {name: p.detach() for name, p in net.named_parameters()}
    torch.testing.assert_close(model.forward(params, x), expected)
    assert quick(model, (x, y), bnn.MAP(epochs=1)).predict(x).mean.shape == (6, 2)


def test_output_by_index():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return x, self.layer(x)

    net, x = Pair(), torch.randn(6, 3)
    model = bnn.BNN(net, Normal(1.0), Gaussian(), output=1)
    assert torch.equal(model.forward(dict(net.named_parameters()), x), net.layer(x))


@pytest.mark.parametrize(("named", "kind"), [(True, "dict"), (False, "tuple")])
def test_output_has_to_be_told(named, kind):
    model = bnn.BNN(Outputs(named), Normal(1.0), Gaussian())
    with pytest.raises(TypeError, match=rf"returns a {kind}; say which part is the output with BNN\(..., output=...\)"):
        model(torch.randn(6, 5, 3))


@pytest.mark.parametrize("output", [0, "logits"])
def test_output_of_a_net_that_returns_a_tensor(output, regression):
    """An index would take the first row for the output."""
    model = bnn.BNN(nn.Linear(3, 1), Normal(1.0), Gaussian(), output=output)
    with pytest.raises((TypeError, ValueError), match=r"returns a [tT]ensor.*output"):
        model(*regression)


def test_frozen_parameters_are_constants(regression, quick):
    net = tanh_net().float()
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    model = bnn.BNN(net, Normal(1.0), Gaussian())
    assert [site.name for site in model.sites().latents] == ["2.weight", "2.bias", "likelihood.scale"]
    assert not model.sites().points
    posterior = quick(model, regression, bnn.MeanField(epochs=2))
    assert set(posterior.draws(2)) == {"2.weight", "2.bias", "likelihood.scale"}
    assert torch.equal(posterior.net(0)[0].weight, before)
    assert not net[0].weight.requires_grad


def test_partly_bayesian_nets_learn_points(regression, quick):
    net = tanh_net().float()
    model = bnn.BNN(net, {"2.*": Normal(1.0), "*": None}, Gaussian())
    posterior = quick(model, regression, bnn.MeanField(epochs=2, lr=0.1))
    assert set(posterior.points) == {"0.weight", "0.bias"}
    assert set(posterior.draws(2)) == {"2.weight", "2.bias", "likelihood.scale"}
    assert not torch.equal(posterior.points["0.weight"], net[0].weight)  # learned
    assert torch.equal(posterior.net(3)[0].weight, posterior.points["0.weight"])


class Tied(nn.Module):
    """One weight in two places: y = W' W x."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(self.encode(x))


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 3, bias=False)
        self.decode = self.encode

    def forward(self, x):
        return self.decode(self.encode(x))


@pytest.mark.parametrize("kind", [Tied, Twice])
def test_a_shared_weight_is_one_site(kind, quick):
    net, x = kind(), torch.randn(6, 3)
    model = bnn.BNN(net, Normal(1.0), Gaussian(1.0))
    assert [site.name for site in model.sites().latents] == ["encode.weight"]
    weight = torch.randn(3, 3)
    torch.testing.assert_close(model.forward({"encode.weight": weight}, x), x @ weight.T @ weight.T)
    prior = stats.norm.logpdf(weight.numpy()).sum()  # counted once
    likelihood = stats.norm.logpdf((x @ weight.T @ weight.T).numpy(), x.numpy()).sum()
    assert model.log_joint({"encode.weight": weight}, x, x).item() == pytest.approx(prior + likelihood, rel=1e-5)
    plain = quick(model, (x, x), bnn.MAP(epochs=1)).net(0)
    assert plain.encode.weight is plain.decode.weight
    assert net.encode.weight is net.decode.weight


@pytest.mark.parametrize("name", ["y", "data"])
def test_reserved_names(name):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.zeros(1)))

    with pytest.raises(ValueError, match=f"parameter '{name}' bears a name that the model needs: rename it"):
        bnn.BNN(Odd(), Normal(1.0), Gaussian())


@pytest.mark.parametrize("name", ["likelihood", "prior"])
def test_reserved_modules(name):
    with pytest.raises(ValueError, match=rf"'{name}.weight' bears a name that the model needs"):
        bnn.BNN(nn.ModuleDict({name: nn.Linear(1, 1)}), Normal(1.0), Gaussian())


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"net is a torch.nn.Module, not function"):
        bnn.BNN(lambda x: x, Normal(1.0), Gaussian())
    with pytest.raises(TypeError, match=r"likelihood is one of bnn.likelihoods \(an instance\)"):
        bnn.BNN(nn.Linear(1, 1), Normal(1.0), Gaussian)
    with pytest.raises(ValueError, match="no parameters with requires_grad=True"):
        bnn.BNN(nn.Linear(1, 1).requires_grad_(False), Normal(1.0), Gaussian())


def test_batch_statistics_stay_as_they_are(regression):
    """A call in training mode normalises with the batch's own moments, and leaves the network's running ones alone."""
    x, y = regression
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    model = bnn.BNN(net, Normal(1.0), Gaussian())
    params = {site.name: site.value for site in model.sites().latents}
    outputs = model.forward({name: p for name, p in params.items() if name in dict(net.named_parameters())}, x)
    torch.testing.assert_close(outputs, net[1]((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()))
    model(x, y)
    model.log_joint(params, x, y)
    assert net.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_state_is_moved_on_where_it_is_given(regression):
    """Momentum 0.1: the running mean goes from 0 to a tenth of the batch's."""
    x, y = regression
    model = bnn.BNN(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)), Normal(1.0), Gaussian())
    state = model.state()
    model(x, y, state=state)
    torch.testing.assert_close(state["0.running_mean"], 0.1 * x.mean(0))


def test_a_copy_shares_no_tensor(model):
    copied = model.copy()
    theirs = {p.data_ptr() for p in model.net.parameters()}
    assert all(p.data_ptr() not in theirs for p in copied.net.parameters())
    assert [s.name for s in copied.sites().latents] == [s.name for s in model.sites().latents]
