"""Priors: penalties and priors are the same thing, names and patterns, and densities against scipy."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from scipy import stats
from torch import nn

import bnn
from bnn.distributions import loc_and_scale
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.priors import Laplace, LocationScale, Normal, fan_in, loss_factor

N, NOISE, PENALTY = 12, 0.3, 0.05

# The convention, PyTorch's loss, outputs, how the prior is told of it, the likelihood, and c: how many times larger the
# loss is than the mean over rows of the negative log-likelihood of a row (which is a sum over its targets).
CONVENTIONS = {
    "cross entropy, mean": ("mean", nn.CrossEntropyLoss(), 3, {}, Categorical(), 1),
    "cross entropy, sum": ("sum", nn.CrossEntropyLoss(reduction="sum"), 3, {}, Categorical(), N),
    "binary, mean": ("mean", nn.BCEWithLogitsLoss(), 1, {}, Bernoulli(), 1),
    "binary, sum of three": ("sum", nn.BCEWithLogitsLoss(reduction="sum"), 3, {"num_outputs": 3}, Bernoulli(), N),
    "binary, mean of three": ("mean", nn.BCEWithLogitsLoss(), 3, {"num_outputs": 3}, Bernoulli(), 1 / 3),
    "squares": ("mse", nn.MSELoss(), 1, {"noise_scale": NOISE}, Gaussian(NOISE), 2 * NOISE**2),
    "squares of three": (
        "mse",
        nn.MSELoss(),
        3,
        {"noise_scale": NOISE, "num_outputs": 3},
        Gaussian(NOISE),
        2 * NOISE**2 / 3,
    ),
}
KINDS = {
    "L2": (Normal.from_weight_decay, Normal.weight_decay, lambda w: w.square().sum() / 2),
    "L1": (Laplace.from_l1, Laplace.l1, lambda w: w.abs().sum()),
}


def targets(likelihood, outputs):
    if isinstance(likelihood, Categorical):
        return torch.arange(N) % outputs
    y = torch.randn(N, outputs, dtype=torch.float64)
    return y if isinstance(likelihood, Gaussian) else (y > 0).double()


def check_gradients(kind, convention):
    """The penalised PyTorch loss is c/N times the negative log joint, up to a constant: so are the gradients."""
    loss, loss_fn, outputs, options, likelihood, c = CONVENTIONS[convention]
    from_penalty, _, penalty = KINDS[kind]
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    x, y = torch.randn(N, 2, dtype=torch.float64), targets(likelihood, outputs)
    params = dict(net.named_parameters())
    penalised = loss_fn(net(x), y) + PENALTY * sum(penalty(p) for p in params.values())
    expected = torch.autograd.grad(penalised, list(params.values()))
    model = bnn.BNN(net, from_penalty(PENALTY, N, loss=loss, **options), likelihood)
    negative = -model.log_joint(params, x, y)
    for a, b in zip(torch.autograd.grad(negative, list(params.values())), expected, strict=True):
        torch.testing.assert_close(c / N * a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_penalty_has_the_gradient_of_the_prior(kind, convention):
    check_gradients(kind, convention)


@pytest.mark.parametrize(("kind", "old"), [("L2", "math.sqrt(factor / (n"), ("L1", "num_outputs) / (n")])
def test_control_prior_counted_twice(kind, old, patch_line, monkeypatch):
    family, name = (Normal, "from_weight_decay") if kind == "L2" else (Laplace, "from_l1")
    patch_line(family, name, old, old.replace("(n", "(2 * n"))
    wrong = getattr(family, name)
    monkeypatch.setitem(KINDS, kind, (wrong, *KINDS[kind][1:]))
    with pytest.raises(AssertionError):
        check_gradients(kind, "squares of three")


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_penalty_round_trip(kind, convention):
    loss, _, _, options, _, _ = CONVENTIONS[convention]
    from_penalty, back, _ = KINDS[kind]
    assert back(from_penalty(PENALTY, N, loss=loss, **options), N, loss=loss, **options) == pytest.approx(PENALTY)


def test_penalty_in_numbers():
    """Mean loss, N = 1000, weight_decay 1e-4: the variance is 1 / 0.1 = 10; an L1 weight of 1e-4 gives b = 10."""
    assert Normal.from_weight_decay(1e-4, 1000).scale == pytest.approx(math.sqrt(10))
    assert Laplace.from_l1(1e-4, 1000).scale == pytest.approx(10)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Normal.from_weight_decay(0.0, 10), "weight_decay must be positive"),
        (lambda: Laplace.from_l1(-1.0, 10), "l1 must be positive"),
        (lambda: Normal.from_weight_decay(0.1, 0), "n_data, the number of training rows, is at least 1, not 0"),
        (lambda: Normal.from_weight_decay(0.1, 10, num_outputs=0), "num_outputs is at least 1"),
        (lambda: Normal.from_weight_decay(0.1, 10, loss="mse"), "needs noise_scale > 0"),
        (lambda: Normal.from_weight_decay(0.1, 10, loss="mse", noise_scale=math.nan), "needs noise_scale > 0"),
        (lambda: Normal.from_weight_decay(0.1, 10, noise_scale=0.1), "noise_scale belongs to loss='mse'"),
        (lambda: loss_factor("median", 10, 0.1, 1), "'mean', 'sum' or 'mse', not 'median'"),
        (lambda: Normal(dist.HalfCauchy(1.0)).weight_decay(10), "needs one fixed scale"),
        (lambda: Normal(1.0, loc=2.0).weight_decay(10), "loc=0"),
        (lambda: Laplace("fan_in").l1(10), "needs one fixed scale"),
    ],
)
def test_penalties_that_are_no_priors(call, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        call()


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 50), nn.Conv2d(6, 4, 3, groups=2), nn.Conv1d(3, 5, 7), nn.Bilinear(3, 4, 5)]
)
def test_fan_in_counts_inputs_of_a_unit(layer):
    assert fan_in(layer.weight.shape) == layer.weight[0].numel()
    assert fan_in(layer.bias.shape) == 1


def test_fan_in_is_kaimings_and_lecuns_scale():
    """Both as PyTorch computes them: gain / sqrt(fan_in), gain 2**0.5 for ReLU."""
    net = nn.Sequential(nn.Conv2d(3, 5, 4), nn.Flatten(), nn.Linear(45, 2))
    for gain, name in ((1.0, "linear"), (2**0.5, "relu")):
        model = bnn.BNN(net, Normal("fan_in", gain=gain), Gaussian(1.0))
        trace = poutine.trace(model.sample_weights).get_trace()
        for layer in ("0", "2"):
            weight = net.get_submodule(layer).weight
            fan, _ = nn.init._calculate_fan_in_and_fan_out(weight)
            expected = nn.init.calculate_gain(name) / math.sqrt(fan)
            assert loc_and_scale(trace.nodes[f"{layer}.weight"]["fn"])[1].item() == pytest.approx(expected)
            assert loc_and_scale(trace.nodes[f"{layer}.bias"]["fn"])[1].item() == pytest.approx(gain)


def net_of_three():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))


def test_hyper_sites_bear_the_names_of_their_groups():
    prior = {
        "0.*": Normal(dist.HalfCauchy(1.0)),
        "*.weight": Normal("fan_in", gain=dist.HalfNormal(1.0), centred=False),
        "*": Laplace(dist.LogNormal(0.0, 1.0)),
    }
    model = bnn.BNN(net_of_three(), prior, Gaussian(1.0))
    names = [site.name for site in model.sites().latents]
    assert names == [
        "prior.0.scale",
        "0.weight",
        "0.bias",
        "prior.weight.scale",
        "2.weight.z",
        "4.weight.z",
        "prior.all.scale",
        "2.bias",
        "4.bias",
    ]
    assert model.learned_prior_scales() == ["0", "weight", "all"]


def test_one_scale_is_shared_by_its_group():
    model = bnn.BNN(net_of_three(), Normal(dist.HalfCauchy(1.0)), Gaussian(1.0))
    trace = poutine.trace(poutine.condition(model.sample_weights, {"prior.all.scale": torch.tensor(7.0)})).get_trace()
    scales = {loc_and_scale(node["fn"])[1].item() for name, node in trace.nodes.items() if name[0].isdigit()}
    assert scales == {7.0}


def test_a_scale_per_unit_is_one_event():
    """A hyper-prior of several numbers: Pyro would take its dimensions for plates that nobody declared."""
    prior = {"0.weight": Normal(dist.HalfCauchy(torch.ones(3, 1))), "*": Normal(1.0)}
    model = bnn.BNN(net_of_three(), prior, Gaussian(1.0))
    guide = pyro.infer.autoguide.AutoNormal(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    assert math.isfinite(svi.step(torch.randn(5, 2), torch.randn(5, 1)))
    assert next(s for s in model.sites().latents if s.name == "prior.0.weight.scale").value.shape == (3, 1)


def families(model):
    trace = poutine.trace(model.sample_weights).get_trace()
    return {name: type(node["fn"].base_dist).__name__ for name, node in trace.nodes.items() if name[0].isdigit()}


def test_the_first_pattern_that_matches_wins():
    model = bnn.BNN(net_of_three(), {"0.*": Laplace(0.5), "*.bias": Normal(2.0), "*": Normal(1.0)}, Gaussian(1.0))
    found = families(model)
    assert {name for name, family in found.items() if family == "Laplace"} == {"0.weight", "0.bias"}
    trace = poutine.trace(model.sample_weights).get_trace()
    scales = {name: loc_and_scale(trace.nodes[name]["fn"])[1].item() for name in found}
    assert scales == {"0.weight": 0.5, "0.bias": 0.5, "2.bias": 2.0, "4.bias": 2.0, "2.weight": 1.0, "4.weight": 1.0}


@pytest.mark.parametrize(
    ("prior", "error", "words"),
    [
        (
            {"conv*": Normal(1.0), "*": Normal(1.0)},
            ValueError,
            r"'conv\*' matches no parameter: the names are .*0.bias",
        ),
        ({"*": Normal(1.0), "0.*": Normal(1.0)}, ValueError, r"'0.\*' matches no parameter: earlier patterns took all"),
        ({"0.*": Normal(1.0)}, ValueError, r"no pattern matches .*'2.bias'.*'4.weight'.*add '\*'"),
        ({"*": 1.0}, TypeError, r"the prior of '\*' is one of bnn.priors"),
        (Normal, TypeError, r"one of bnn.priors \(an instance\)"),
    ],
)
def test_patterns_that_do_not_fit(prior, error, words):
    with pytest.raises(error, match=words):
        bnn.BNN(net_of_three(), prior, Gaussian(1.0))


def test_none_makes_points():
    model = bnn.BNN(net_of_three(), {"4.*": Normal(1.0), "*": None}, Gaussian(1.0))
    sites = model.sites()
    assert [site.name for site in sites.latents] == ["4.weight", "4.bias"]
    assert [site.name for site in sites.points] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert not bnn.BNN(net_of_three(), None, Gaussian(1.0)).sites().latents


SCALES = [0.7, torch.tensor([[0.5], [1.0], [2.0]]), "fan_in", dist.HalfCauchy(1.0)]


@pytest.mark.parametrize("scale", SCALES, ids=["number", "tensor", "fan_in", "learned"])
@pytest.mark.parametrize("family", [Normal, Laplace])
def test_non_centred_is_the_same_density(family, scale):
    """p(z) = p(w) |dw/dz| with w = loc + s z: the log-densities differ by the sum of log s."""
    net = nn.Linear(2, 3, bias=False).double()
    x, y = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    centred, other = (bnn.BNN(net, family(scale, loc=0.3, centred=c), Gaussian(1.0)) for c in (True, False))
    z = torch.randn(3, 2, dtype=torch.float64)
    hyper = {"prior.all.scale": torch.tensor(1.7, dtype=torch.float64)} if centred.learned_prior_scales() else {}
    s = 1.7 if hyper else 1 / math.sqrt(2) if isinstance(scale, str) else scale
    s = torch.as_tensor(s, dtype=torch.float64).expand(3, 2)
    there = other.log_joint({"weight.z": z, **hyper}, x, y)
    here = centred.log_joint({"weight": 0.3 + s * z, **hyper}, x, y)
    torch.testing.assert_close(there, here + s.log().sum())
    torch.testing.assert_close(other.weights({"weight.z": z, **hyper}, {})["weight"], 0.3 + s * z)


@pytest.mark.parametrize(("family", "law"), [(Normal, stats.norm), (Laplace, stats.laplace)])
def test_density_is_scipys(family, law):
    """With a location and a scale for each column, and a hyper-prior over the biases' scale; in float64."""
    net = nn.Linear(2, 3).double()
    scale, loc = np.array([0.3, 1.1]), 0.2
    prior = {"weight": family(torch.as_tensor(scale), loc=loc), "bias": family(dist.HalfCauchy(0.5))}
    model = bnn.BNN(net, prior, Gaussian(1.0))
    s = 0.8
    values = {name: p.detach() for name, p in net.named_parameters()} | {
        "prior.bias.scale": torch.tensor(s, dtype=torch.float64)
    }
    trace = poutine.trace(poutine.condition(model.sample_weights, values)).get_trace()
    weight, bias = values["weight"].numpy(), values["bias"].numpy()
    expected = law.logpdf(weight, loc, scale).sum() + law.logpdf(bias, 0, s).sum() + stats.halfcauchy.logpdf(s, 0, 0.5)
    assert trace.log_prob_sum().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites_have_the_dtype_of_the_network(dtype):
    model = bnn.BNN(net_of_three().to(dtype), Normal(dist.HalfCauchy(1.0), loc=0.1), Gaussian())
    assert {site.value.dtype for site in model.sites().latents} == {dtype}


def test_parameters_of_several_dtypes_in_one_group():
    """Under one learned scale: each site in the dtype of its parameter. A learnable number is a parameter too."""
    net = nn.Linear(2, 3)
    net.extra, net.number = nn.Parameter(torch.zeros(4, dtype=torch.float64)), nn.Parameter(torch.tensor(0.5))
    for centred in (True, False):
        model = bnn.BNN(net, Normal(dist.HalfCauchy(1.0), centred=centred), Gaussian(1.0))
        assert {name: (w.dtype, w.shape) for name, w in model.sample_weights().items()} == {
            name: (p.dtype, p.shape) for name, p in net.named_parameters()
        }


@pytest.mark.parametrize("argument", ["scale", "loc"])
@pytest.mark.parametrize("shape", [(4,), (3, 2, 1), (5, 3, 2)])
def test_shapes_that_do_not_fit(argument, shape):
    with pytest.raises(ValueError, match=rf"prior's {argument} has shape .*{shape[0]}.*'weight' of shape \(3, 2\)"):
        bnn.BNN(nn.Linear(2, 3), {"weight": Normal(**{argument: torch.ones(shape)}), "*": Normal(1.0)}, Gaussian(1.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Normal(0.0), "scale must be positive and finite, not 0.0"),
        (lambda: Normal(math.inf), "scale must be positive and finite"),
        (lambda: Normal(torch.tensor([1.0, -1.0])), "scale must be positive"),
        (lambda: Normal("kaiming"), "'fan_in', not 'kaiming'"),
        (lambda: Normal([1.0, "a"]), "scale must be a positive number, a tensor or a Pyro distribution"),
        (lambda: Normal("fan_in", gain=0.0), "gain must be positive"),
        (lambda: Normal("fan_in", gain=torch.ones(2)), "gain is a number or a Pyro distribution"),
        (lambda: Normal(1.0, gain=2.0), "gain belongs to scale='fan_in'"),
        (lambda: Normal(1.0, loc=math.nan), "loc must be finite"),
        (lambda: Normal(dist.Normal(0.0, 1.0)), "must be over positive numbers"),
        (lambda: Normal(dist.Uniform(-0.5, 1.0)), "must be over positive numbers"),
        (lambda: Normal(dist.Poisson(1.0)), "must be over positive numbers"),
    ],
)
def test_priors_that_are_none(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_location_scale_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        LocationScale(1.0)
