"""Likelihoods: densities against scipy, unknown scales, targets that do not fit."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from scipy import special, stats
from torch import nn

import bnn
from bnn.likelihoods import Bernoulli, Categorical, Gaussian

F64 = torch.float64


def log_prob(likelihood, outputs, y, **latents):
    fn = likelihood.distribution(outputs, {f"likelihood.{name}": value for name, value in latents.items()})
    assert fn.batch_shape == (len(outputs),)
    return fn.log_prob(y).numpy()


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
def test_gaussian_density(shape):
    outputs, y = torch.randn(shape, dtype=F64), torch.randn(shape, dtype=F64)
    expected = stats.norm.logpdf(y, outputs, 0.3).reshape(6, -1).sum(1)
    got = log_prob(Gaussian(0.3), outputs, y, scale=torch.tensor(0.3, dtype=F64))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_gaussian_density_with_a_scale_an_output():
    outputs, y, scale = torch.randn(6, 3, dtype=F64), torch.randn(6, 3, dtype=F64), torch.tensor([0.1, 1, 9], dtype=F64)
    expected = stats.norm.logpdf(y, outputs, scale).sum(1)
    np.testing.assert_allclose(log_prob(Gaussian(scale), outputs, y, scale=scale), expected, rtol=1e-12)


def test_categorical_density():
    outputs, y = torch.randn(6, 4, dtype=F64), torch.tensor([0, 1, 2, 3, 3, 0])
    expected = [stats.multinomial.logpmf(np.eye(4)[k], 1, special.softmax(o)) for o, k in zip(outputs, y, strict=True)]
    np.testing.assert_allclose(log_prob(Categorical(), outputs, y), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
def test_bernoulli_density(shape):
    outputs = torch.randn(shape, dtype=F64)
    y = (torch.randn(shape, dtype=F64) > 0).double()
    expected = stats.bernoulli.logpmf(y.numpy(), special.expit(outputs.numpy())).reshape(6, -1).sum(1)
    np.testing.assert_allclose(log_prob(Bernoulli(), outputs, y), expected, rtol=1e-12)


def linear(outputs=1, dtype=torch.float32):
    return nn.Linear(2, outputs).to(dtype)


@pytest.mark.parametrize(
    "scale", [0.1, torch.tensor(0.1, dtype=F64), np.float64(0.1)], ids=["number", "tensor", "numpy"]
)
def test_fixed_scale_is_no_site(scale):
    model = bnn.BNN(linear(dtype=F64), bnn.priors.Normal(1.0), Gaussian(scale))
    assert [site.name for site in model.sites().latents] == ["weight", "bias"]
    assert not model.sites().points
    assert model.likelihood.latents(model.like)["likelihood.scale"].item() == 0.1  # not 0.1 rounded to float32


def test_learned_scale_is_a_positive_point():
    model = bnn.BNN(linear(), bnn.priors.Normal(1.0), Gaussian("learned"))
    (site,) = model.sites().points
    assert (site.name, site.value.item()) == ("likelihood.scale", 1.0)
    assert site.transform(torch.tensor(-3.0)) > 0
    assert len(pyro.get_param_store()) == 0  # looking at the sites leaves no parameter behind


def test_scale_is_a_site_with_its_prior():
    model = bnn.BNN(linear(dtype=F64), bnn.priors.Normal(1.0), Gaussian(dist.LogNormal(0.3, 0.5)))
    value = torch.tensor(0.7, dtype=F64)
    trace = poutine.trace(poutine.condition(model.likelihood.latents, {"likelihood.scale": value})).get_trace(
        model.like
    )
    assert trace.log_prob_sum().item() == pytest.approx(stats.lognorm.logpdf(0.7, 0.5, 0, np.exp(0.3)), rel=1e-7)


def test_scale_of_several_outputs_is_one_event(regression):
    """A prior of shape (k,) outside any plate: Pyro refuses it as a batch."""
    x, y = regression
    model = bnn.BNN(nn.Linear(3, 2), bnn.priors.Normal(1.0), Gaussian(dist.HalfCauchy(torch.ones(2))))
    guide = pyro.infer.autoguide.AutoNormal(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    assert math.isfinite(svi.step(x, y.expand(20, 2)))


@pytest.mark.parametrize(
    ("prior", "law"),
    [
        (dist.HalfCauchy(2.0), stats.halfcauchy(scale=2)),
        (dist.Gamma(2.0, 3.0), stats.gamma(2, scale=1 / 3)),
        (dist.InverseGamma(2.0, 3.0), stats.invgamma(2, scale=3)),
        (dist.Uniform(0.25, 2.0), stats.uniform(0.25, 1.75)),
        (dist.HalfNormal(torch.ones(3)), stats.halfnorm()),
        (dist.LogNormal(0.0, 1.0).expand([3]), stats.lognorm(1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_priors_of_a_scale_take_the_dtype_of_the_network(prior, law):
    """A float32 distribution in a float64 network: float64 values, the density to 1e-12, as no float32 part allows."""
    likelihood = Gaussian(prior)
    trace = poutine.trace(likelihood.latents).get_trace(torch.zeros(1, dtype=F64))
    node = trace.nodes["likelihood.scale"]
    assert node["value"].dtype == F64
    assert trace.log_prob_sum().item() == pytest.approx(law.logpdf(node["value"]).sum(), rel=1e-12)
    assert prior.sample().dtype == torch.float32  # the user's own is as it was


def test_float64_density_is_not_rounded(regression):
    """Against scipy to 1e-12, which no float32 part would reach."""
    x, y = (t.double() for t in regression)
    net = nn.Linear(3, 1).double()
    model = bnn.BNN(net, bnn.priors.Normal(dist.HalfCauchy(1.0)), Gaussian())
    params = dict(net.named_parameters()) | {
        "likelihood.scale": torch.tensor(0.3, dtype=F64),
        "prior.all.scale": torch.tensor(0.9, dtype=F64),
    }
    expected = stats.halfcauchy.logpdf([0.3, 0.9]).sum()
    expected += sum(stats.norm.logpdf(p.detach(), 0, 0.9).sum() for p in net.parameters())
    expected += stats.norm.logpdf(y, net(x).detach(), 0.3).sum()
    assert model.log_joint(params, x, y).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("likelihood", [Gaussian(), Bernoulli()])
@pytest.mark.parametrize(
    ("outputs", "y", "words"),
    [
        ((5, 1), (5,), r"y has shape \(5,\) but the network gives \(5, 1\).*broadcast to a square.*y.unsqueeze\(-1\)"),
        ((5,), (5, 1), r"y has shape \(5, 1\) but the network gives \(5,\).*broadcast to a square.*y.squeeze\(-1\)"),
        ((5, 2), (5, 3), r"y has shape \(5, 3\) but the network gives \(5, 2\)"),
        ((5, 2), (4, 2), r"y has shape \(4, 2\) but the network gives \(5, 2\)"),
    ],
)
def test_shapes_are_told_in_words(likelihood, outputs, y, words):
    with pytest.raises(ValueError, match=words):
        likelihood.check(torch.zeros(outputs), torch.zeros(y))


@pytest.mark.parametrize(
    ("outputs", "y", "error", "words"),
    [
        ((5, 3), torch.zeros(5), TypeError, r"integers from 0; y has dtype torch.float32: y.long\(\)"),
        ((5, 3), torch.zeros(5, 3), TypeError, r"y has dtype torch.float32: y.argmax\(-1\), if it is one-hot"),
        ((5, 3), torch.zeros(5, 3).long(), ValueError, r"the network gives \(5, 3\): y.argmax\(-1\), if it is one-hot"),
        ((5, 3), torch.zeros(5, 1).long(), ValueError, r"shape \(n,\); y has shape \(5, 1\).*y.squeeze\(-1\)"),
        ((5, 3), torch.zeros(4).long(), ValueError, r"y has shape \(4,\), the network gives \(5, 3\)"),
        ((5,), torch.zeros(5).long(), ValueError, r"outputs of shape \(n, k\).*the network gives \(5,\)"),
        ((5, 3), torch.tensor([0, 1, 2, 3, 4]), ValueError, r"0..2.*3 outputs; 2 rows do not.*row 3 with label 3"),
        ((5, 3), torch.tensor([0, -1, 2, 0, 0]), ValueError, r"1 rows do not.*row 1 with label -1"),
    ],
)
def test_labels_are_told_in_words(outputs, y, error, words):
    with pytest.raises(error, match=words):
        Categorical().check(torch.zeros(outputs), y)


def test_bernoulli_targets_are_zero_or_one():
    y = torch.tensor([[0.0, 1.0], [1.0, 0.5], [2.0, 0.0]])
    with pytest.raises(ValueError, match=r"0 or 1; 2 are not, the first at row 1: 0.5"):
        Bernoulli().check(torch.zeros(3, 2), y)
    Bernoulli().check(torch.zeros(3, 2), y.clamp(max=0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64])
def test_targets_are_converted_where_nothing_is_lost(dtype):
    assert Bernoulli().convert(torch.tensor([0, 1]).to(dtype), torch.float32).dtype == torch.float32
    assert Categorical().convert(torch.tensor([0, 1]).to(dtype), torch.float32).dtype == dtype


@pytest.mark.parametrize("scale", [torch.ones(5), dist.HalfCauchy(torch.ones(5)), torch.ones(1)], ids=str)
def test_scale_that_would_fall_on_the_rows(scale):
    """Five rows, five scales, one output: (5,) against (5,) would be one scale a row, by chance of the batch's size."""
    with pytest.raises(ValueError, match=r"scale of the Gaussian likelihood has shape \(.,\).*network gives \(5,\)"):
        Gaussian(scale).check(torch.zeros(5), torch.zeros(5))


@pytest.mark.parametrize(
    "scale", [0.5, torch.tensor(0.5), torch.ones(1), torch.ones(3), dist.HalfCauchy(1.0), "learned"]
)
def test_scale_that_fits(scale):
    Gaussian(scale).check(torch.zeros(5, 3), torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (0.0, "scale must be positive and finite, not 0.0"),
        (-1, "scale must be positive"),
        (math.nan, "scale must be positive"),
        ("fixed", "or 'learned', not 'fixed'"),
        (dist.Normal(0.0, 1.0), r"prior of scale must be over positive numbers.*support Real\(\)"),
        ([1.0, None], "scale must be a positive number"),
    ],
)
def test_scales_that_are_none(scale, words):
    with pytest.raises(ValueError, match=words):
        Gaussian(scale)


def test_repr_tells_likelihoods_apart():
    """`bnn.load` compares them."""
    given = [0.5, torch.tensor([0.5, 1.0]), "learned", None, dist.HalfCauchy(2.0), dist.HalfNormal(torch.ones(2))]
    shown = [repr(Gaussian(scale)) for scale in given]
    assert len(set(shown)) == len(given)
    assert shown[3:5] == ["Gaussian(scale=HalfCauchy(scale=1.0))", "Gaussian(scale=HalfCauchy(scale=2.0))"]
    assert repr(Categorical()) == "Categorical()"
