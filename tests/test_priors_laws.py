"""What each prior is: groups, correlations, hyper-sites, the geometry of the horseshoe, and settings that are none."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from scipy import integrate
from torch import nn

import bnn
from bnn.distributions import GAUSSIAN_CROSS_ENTROPY, in_words
from bnn.inference.divergence import runs
from bnn.layout import Layout
from bnn.likelihoods import Gaussian
from bnn.priors import (
    CorrelatedFilters,
    ElasticNet,
    FromPyro,
    Function,
    GroupLasso,
    Hierarchical,
    Horseshoe,
    Normal,
    Pretrained,
    RegularisedHorseshoe,
    ScaleMixture,
    SpikeAndSlab,
    StudentT,
    global_scale,
)
from bnn.priors.elastic_net import ElasticNetLaw
from bnn.random import isolated

DOUBLE = torch.float64


def law_of(prior, shape, dtype=DOUBLE):
    return prior.law("w", torch.Size(shape), torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))


# ------------------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize("prior", [GroupLasso(2.0), SpikeAndSlab(0.3, 1.0, 0.2, over="units")], ids=["lasso", "slab"])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_groups_are_normalised_and_draws_follow(prior, size):
    """The density depends on the norm r: surface of the sphere times r^(d-1) times p(r) integrates to 1."""
    law = law_of(prior, (1, size))
    surface = 2 * math.pi ** (size / 2) / math.gamma(size / 2)

    def density(r):
        w = torch.zeros(1, size, dtype=DOUBLE)
        w[0, 0] = r
        return surface * r ** (size - 1) * law.log_prob(w).exp().item()

    def integral(f):
        return sum(integrate.quad(f, a, b, limit=200)[0] for a, b in ((0, 0.5), (0.5, 3), (3, 60)))

    assert integral(density) == pytest.approx(1, abs=1e-7)
    draws = law.sample((20_000,))
    norms = draws.norm(dim=-1).flatten()
    expected = integral(lambda r: r * density(r))
    assert abs(norms.mean() - expected) < 5 * norms.std() / math.sqrt(20_000)
    # The direction is uniform: its components have mean 0 and the covariance of a point on the sphere, 1/d.
    direction = (draws / draws.norm(dim=-1, keepdim=True)).flatten(1)
    second = direction.mT @ direction / 20_000
    assert (second - torch.eye(size) / size).abs().max() < 5 / math.sqrt(20_000) * 0.6
    assert direction.mean(0).abs().max() < 5 / math.sqrt(size * 20_000)


def test_units_are_rows_and_inputs_are_columns():
    """Of linear and convolutional weights; a penalty that sees the wrong groups differs."""
    w = torch.randn(3, 2, 4, dtype=DOUBLE)
    assert GroupLasso(1.0).penalty({"w": w}).item() == pytest.approx(sum(w[i].norm().item() for i in range(3)))
    inputs = GroupLasso(1.0, "inputs").penalty({"w": w}).item()
    assert inputs == pytest.approx(sum(w[:, i].norm().item() for i in range(2)))
    assert GroupLasso(1.0, "weights").penalty({"w": w}).item() == pytest.approx(w.abs().sum().item())


def test_a_bias_is_no_input():
    words = r"over='inputs': parameter 'bias' of shape \(3,\) has no dimension of inputs"
    for prior in (GroupLasso(over="inputs"), Horseshoe("inputs"), SpikeAndSlab(over="inputs")):
        with pytest.raises(ValueError, match=words):
            bnn.BNN(nn.Linear(2, 3), prior, Gaussian(1.0))
    bnn.BNN(nn.Linear(2, 3), Horseshoe("units"), Gaussian(1.0))


def test_included_is_bayes_rule():
    """P(in | w) by the two densities, and half where they are equal."""
    prior = SpikeAndSlab(0.3, 1.0, 0.2, over="units", scale="fan_in")
    w = torch.randn(4, 2, dtype=DOUBLE) * 0.3
    slab = 0.3 * dist.Normal(0, 1 / math.sqrt(2)).log_prob(w).sum(1).exp()
    spike = 0.7 * dist.Normal(0, 0.2 / math.sqrt(2)).log_prob(w).sum(1).exp()
    torch.testing.assert_close(prior.included({"w": w})["w"][:, 0], slab / (slab + spike))
    with pytest.raises(ValueError, match="needs a fixed scale"):
        SpikeAndSlab(scale=dist.HalfCauchy(1.0)).included({"w": w})


# ------------------------------------------------------------------------------------------------ filters, elastic net


@pytest.mark.parametrize("shape", [(3, 2, 4), (2, 3, 2, 3), (1, 2, 2, 1, 2)])
def test_filters_are_a_multivariate_normal(shape):
    """Against torch's own, with the covariance written down from the formula; draws have it too."""
    places = torch.cartesian_prod(*(torch.arange(n, dtype=DOUBLE) for n in shape[2:])).reshape(-1, len(shape) - 2)
    covariance = 0.49 * (-torch.cdist(places, places) / 1.3).exp()
    expected = dist.MultivariateNormal(torch.zeros(len(places), dtype=DOUBLE), covariance)
    scale = torch.tensor(0.7, dtype=DOUBLE)
    law = CorrelatedFilters(0.7, 1.3).law("w", torch.Size(shape), torch.zeros((), dtype=DOUBLE), scale)
    w = torch.randn(5, *shape, dtype=DOUBLE)
    torch.testing.assert_close(law.log_prob(w), expected.log_prob(w.reshape(5, *shape[:2], -1)).sum((1, 2)))
    draws = law.sample((5000,)).reshape(-1, len(places))
    error = (draws.mT @ draws / len(draws) - covariance).abs()
    sd = ((covariance**2 + covariance.diagonal()[:, None] * covariance.diagonal()) / len(draws)).sqrt()
    assert (error / sd).max() < 5


def test_filters_of_no_reach_are_independent():
    w = torch.randn(2, 2, 3, 3, dtype=DOUBLE)
    near = CorrelatedFilters(0.5, 0.01).penalty({"w": w})
    torch.testing.assert_close(near, Normal(0.5).penalty({"w": w}))


def test_filters_need_positions():
    with pytest.raises(ValueError, match=r"'weight' of shape \(3, 2\) has no positions"):
        bnn.BNN(nn.Linear(2, 3), CorrelatedFilters(), Gaussian(1.0))


def check_closed_form():
    """E[-log p] under a Gaussian, by quadrature; scalars stand for all elements."""
    m, s, loc, b, sd = (torch.tensor([v], dtype=DOUBLE) for v in (0.3, 0.8, -0.2, 0.4, 0.9))
    closed = GAUSSIAN_CROSS_ENTROPY[ElasticNetLaw]
    grid = torch.linspace(-12, 12, 200_001, dtype=DOUBLE)
    law = ElasticNetLaw(loc, b, sd)
    expected = -torch.trapezoid(dist.Normal(m, s).log_prob(grid).exp() * law.log_prob(grid), grid)
    torch.testing.assert_close(closed(m, s, loc, b, sd), expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(closed(m, None, loc, b, sd), -law.log_prob(m).sum())
    scalar = closed(m.expand(4), s.expand(4), loc[0], b[0], sd[0])
    torch.testing.assert_close(scalar, 4 * expected, rtol=1e-7, atol=1e-9)


def test_elastic_net_has_a_closed_form():
    check_closed_form()
    model = bnn.BNN(nn.Linear(3, 2), ElasticNet(1.0, 2.0, scale="fan_in"), Gaussian(1.0))
    found = runs(Layout(model.sites().latents), poutine.trace(model.sample_weights).get_trace())
    assert [run.closed is not None for run in found] == [True]


def test_control_of_the_closed_form(patch_line, monkeypatch):
    from bnn.priors import elastic_net

    patch_line(elastic_net, "_elastic_cross_entropy", "0.5 * ratio(", "ratio(")
    monkeypatch.setitem(GAUSSIAN_CROSS_ENTROPY, ElasticNetLaw, elastic_net._elastic_cross_entropy)
    with pytest.raises(AssertionError):
        check_closed_form()


@pytest.mark.parametrize(("l1", "l2"), [(1e-3, 2.0), (60.0, 1.0), (3.0, 1e-4)])
def test_elastic_net_at_its_ends(l1, l2):
    """Nearly Gaussian, and nearly Laplace: variance from the formula and from draws, log-density finite."""
    law = law_of(ElasticNet(l1, l2), (1,)).base_dist
    draws = law.sample((20_000,))
    error = draws.square().std() / math.sqrt(20_000)
    assert (draws.square().mean() - law.variance).abs().max() < 5 * error
    assert law.log_prob(torch.tensor([100.0], dtype=DOUBLE)).isfinite().all()
    other = 1 / l2 if l1 < 0.1 else 2 / l1**2
    assert law.variance.item() == pytest.approx(other, rel=0.01)


# ------------------------------------------------------------------------------------------------------------ horseshoe


def test_log_local_scales_are_hyperbolic_secants():
    """The choice of parametrisation: unconstrained, a half-Cauchy is log-concave, 1 / (pi cosh u)."""
    site = next(s for s in bnn.BNN(nn.Linear(2, 1), Horseshoe(), Gaussian(1.0)).sites().latents if "local" in s.name)
    u = torch.linspace(-30, 30, 101, dtype=DOUBLE)
    value = site.transform(u)
    density = dist.HalfCauchy(torch.ones((), dtype=DOUBLE)).log_prob(value) + site.transform.log_abs_det_jacobian(
        u, value
    )
    torch.testing.assert_close(density, -math.log(math.pi) - u.cosh().log())


def drawn(prior, shape, num=4000, **fixed):
    """Weights drawn from the prior, with some sites held."""
    program = poutine.condition(prior, data={n: torch.tensor(v, dtype=DOUBLE) for n, v in fixed.items()})
    with isolated(3):
        return torch.stack([program({"w": torch.zeros(shape, dtype=DOUBLE)}, "all")["w"] for _ in range(num)])


def check_shrinkage():
    """kappa = 1 / (1 + lambda^2) is Beta(1/2, 1/2): E[w^2 / (w^2 + q)] and the bounds of Carvalho et al. follow.

    By their theorem 1 the density at w lies between K/2 log(1 + 4 / w^2) and K log(1 + 2 / w^2), K = (2 pi^3)^(-1/2).
    """
    w = drawn(Horseshoe("weights"), (2, 500), num=60, **{"prior.all.scale": 1.0}).flatten()
    k = (2 * math.pi**3) ** -0.5
    for low, high in ((0.05, 0.3), (0.5, 1.0), (2.0, 5.0)):
        share = ((w.abs() > low) & (w.abs() < high)).double().mean().item()
        error = 5 * math.sqrt(share / len(w))
        below = 2 * integrate.quad(lambda x: k / 2 * math.log(1 + 4 / x**2), low, high)[0]
        above = 2 * integrate.quad(lambda x: k * math.log(1 + 2 / x**2), low, high)[0]
        assert below - error < share < above + error


def test_horseshoe_is_carvalhos():
    check_shrinkage()


def test_control_a_local_scale_squared(patch_line):
    from bnn.priors.horseshoe import Shrinking

    patch_line(Shrinking, "_sample", "* local)", "* local * local)")
    with pytest.raises(AssertionError):
        check_shrinkage()


def test_slab_bounds_the_scale():
    """1 / s^2 = 1 / (tau lambda)^2 + 1 / c^2, also where squares overflow single precision."""
    prior = RegularisedHorseshoe("weights", slab_scale=2.0)
    params = {"w": torch.zeros(1, 3)}
    values = {
        "prior.all.scale": torch.tensor(1e3),
        "prior.all.slab": torch.tensor(9.0),
        "prior.all.local.w": torch.tensor([[1e-9, 3e-3, 1e30]]),
        "w.z": torch.ones(1, 3),
    }
    w = poutine.condition(prior, data=values)(params, "all")["w"]
    torch.testing.assert_close(w, torch.tensor([[1e-6, 3 / math.sqrt(2), 3.0]]))


def test_shared_local_scales_are_of_the_group():
    for over, shape in (("units", (3, 1)), ("inputs", (1, 2)), ("weights", (3, 2))):
        net = nn.Linear(2, 3, bias=False)
        sites = {s.name: s.value for s in bnn.BNN(net, Horseshoe(over), Gaussian(1.0)).sites().latents}
        assert sites["prior.all.local.weight"].shape == shape
        assert sites["prior.all.scale"].shape == ()


def test_global_scale_in_numbers():
    """3 of 20 with 100 rows and unit noise: 3/17 / 10."""
    assert global_scale(3, 20, 100) == pytest.approx(3 / 17 / 10)
    assert global_scale(3, 20, 100, noise_scale=2.0) == pytest.approx(6 / 17 / 10)
    with pytest.raises(ValueError, match="less than the number of groups"):
        global_scale(20, 20, 100)


# ------------------------------------------------------------------------------------------------ scales, transfer, own


def net_of_two():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def test_a_scale_a_parameter_or_a_layer():
    names = [s.name for s in bnn.BNN(net_of_two(), Hierarchical(), Gaussian(1.0)).sites().latents]
    assert [n for n in names if n.startswith("prior")] == [
        f"prior.all.scale.{layer}.{kind}" for layer in "02" for kind in ("weight", "bias")
    ]
    names = [s.name for s in bnn.BNN(net_of_two(), Hierarchical(per="layer"), Gaussian(1.0)).sites().latents]
    assert [n for n in names if n.startswith("prior")] == ["prior.all.scale.0", "prior.all.scale.2"]


def test_a_learned_scale_is_a_point():
    model = bnn.BNN(net_of_two(), Hierarchical("learned", start=0.3), Gaussian(1.0))
    sites = model.sites()
    assert {s.name: round(s.value.item(), 6) for s in sites.points} == {
        f"prior.all.scale.{n}": 0.3 for n in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    assert not [s for s in sites.latents if s.name.startswith("prior")]
    assert not list(pyro.get_param_store().keys())
    for method in (bnn.MAP(), bnn.SWAG()):
        with pytest.raises(ValueError, match="learned prior scale"):
            bnn.fit(model, (torch.randn(8, 2), torch.randn(8, 1)), method, compile="eager", progress=False)


@pytest.mark.parametrize("centred", [True, False])
def test_empirical_bayes_finds_the_scale_of_largest_evidence(centred):
    """Orthogonal inputs: mean-field is exact, so the bound is the evidence, whose maximum is known.

    With x'x = n I and unit noise, the estimates (x'y / n) are Normal(0, s^2 + 1/n): s^2 is their mean square less 1/n.
    """
    n, d = 24, 16
    with isolated(0):
        x = torch.linalg.qr(torch.randn(n, d, dtype=DOUBLE)).Q * math.sqrt(n)
        y = x @ (0.5 * torch.randn(d, 1, dtype=DOUBLE)) + torch.randn(n, 1, dtype=DOUBLE)
    expected = ((x.mT @ y / n).square().mean() - 1 / n).sqrt().item()
    model = bnn.BNN(nn.Linear(d, 1, bias=False).double(), Hierarchical("learned", centred=centred), Gaussian(1.0))
    method = bnn.MeanField(epochs=200, batch_size=None, lr=0.1, draws=8, average=0.3)
    posterior = bnn.fit(model, (x, y), method, seed=0, compile="graph", progress=False)
    found = posterior.points["prior.all.scale.weight"].item()
    assert found == pytest.approx(expected, rel=0.03)  # without "less 1/n" it would be more than that
    assert math.sqrt(expected**2 + 1 / n) > 1.03 * expected


def test_pretrained_is_around_the_given_weights():
    net, other = net_of_two(), net_of_two()
    given = {n: p.detach().clone() for n, p in other.named_parameters()}
    for weights in (other, other.state_dict()):
        prior = Pretrained(weights, 0.5)
        assert prior.penalty(given).item() == 0
        moved = {n: v + 0.5 for n, v in given.items()}
        assert prior.penalty(moved).item() == pytest.approx(sum(v.numel() for v in given.values()) / 2)
    with torch.no_grad():
        other[0].weight.add_(1.0)  # the prior has copies
    assert prior.penalty(given).item() == 0
    bnn.BNN(nn.ModuleDict({"body": net}), Pretrained(other, prefix="body."), Gaussian(1.0))
    with pytest.raises(ValueError, match=r"no weights are given for \['0.bias'"):
        bnn.BNN(net, Pretrained(other, prefix="body."), Gaussian(1.0))
    with pytest.raises(ValueError, match=r"given for 'weight' have shape \(3, 2\), the parameter has \(2, 2\)"):
        bnn.BNN(nn.Linear(2, 2), Pretrained(nn.Linear(2, 3)), Gaussian(1.0))


def test_pyro_distributions_broadcast():
    """A number, one a column, and vectors over the last dimension."""
    w = torch.randn(3, 2)
    rows = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 2.0]]))
    for fn in (dist.Cauchy(0.0, 1.0), dist.Normal(torch.zeros(2), torch.tensor([1.0, 3.0])), rows):
        trace = poutine.trace(poutine.condition(FromPyro(fn), data={"w": w})).get_trace({"w": w}, "all")
        torch.testing.assert_close(trace.log_prob_sum(), fn.log_prob(w).sum())
    with pytest.raises(ValueError, match=r"distribution has shape \(4,\), which does not broadcast to parameter"):
        bnn.BNN(nn.Linear(2, 3), FromPyro(dist.Normal(torch.zeros(4), 1.0)), Gaussian(1.0))


def no_site(params):
    return {n: torch.zeros_like(p) for n, p in params.items()}


def wrong_shape(params):
    return {n: pyro.sample(n, dist.Normal(0.0, 1.0)) for n in params}


def own_scale(params):
    s = pyro.sample("prior.s", dist.HalfCauchy(1.0))
    return {n: pyro.sample(n, dist.Normal(torch.zeros_like(p), s).to_event(p.dim())) for n, p in params.items()}


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (no_site, r"returns \['bias', 'weight'\] without a site"),
        (wrong_shape, r"returns .*\(\).* the parameters are"),
        (own_scale, r"samples \['prior.s'\] beside the weights: say scales='learned'"),
    ],
)
def test_functions_that_are_no_priors(fn, words):
    with pytest.raises(ValueError, match=words):
        bnn.BNN(nn.Linear(2, 3), Function(fn), Gaussian(1.0))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: StudentT(df=0.0), ValueError, "df is a positive number, not 0.0"),
        (lambda: StudentT(-1.0, df=1.0), ValueError, "scale must be positive"),
        (lambda: ElasticNet(0.0, 1.0), ValueError, "l1 is a positive number"),
        (lambda: ElasticNet(1.0, math.inf), ValueError, "l2 is a positive number"),
        (lambda: GroupLasso(over="rows"), ValueError, "'weights', 'units' or 'inputs', not 'rows'"),
        (lambda: ScaleMixture(0.1, 0.2), ValueError, "narrow is smaller than wide: not 0.2 and 0.1"),
        (lambda: SpikeAndSlab(1.5), ValueError, "inclusion is a probability between 0 and 1, not 1.5"),
        (lambda: Horseshoe(scale=0.0), ValueError, "scale is a positive number"),
        (lambda: Horseshoe(scaling="kaiming"), ValueError, "'none' or 'fan_in', not 'kaiming'"),
        (lambda: RegularisedHorseshoe(slab_df=-1.0), ValueError, "slab_df is a positive number"),
        (lambda: Hierarchical("fixed"), ValueError, "a Pyro distribution or 'learned', not 'fixed'"),
        (lambda: Hierarchical(dist.Normal(0.0, 1.0)), ValueError, "must be over positive numbers"),
        (lambda: Hierarchical(dist.HalfCauchy(torch.ones(3))), ValueError, r"of one scale, not of shape \(3,\)"),
        (lambda: Hierarchical(start=2.0), ValueError, "start belongs to hyper='learned'"),
        (lambda: CorrelatedFilters(lengthscale=0.0), ValueError, "lengthscale is a positive number"),
        (lambda: Pretrained([1.0]), TypeError, "a module or {name: tensor}, not list"),
        (lambda: FromPyro(1.0), TypeError, "one of pyro.distributions"),
        (lambda: FromPyro(dist.Poisson(1.0)), ValueError, "may be any real number, but Poisson"),
        (lambda: FromPyro(dist.Gamma(1.0, 1.0)), ValueError, "may be any real number, but Gamma"),
        (lambda: FromPyro(dist.Uniform(-1.0, 1.0)), ValueError, "may be any real number, but Uniform"),
        (lambda: Function(1.0), TypeError, "a function of {name: tensor}"),
        (lambda: Function(no_site, "yes"), ValueError, "'fixed' or 'learned', not 'yes'"),
        (lambda: Normal(1.0).penalty({"prior.all.scale": torch.ones(())}), ValueError, "there are no parameters"),
        (lambda: Horseshoe().penalty({"w": torch.ones(2, 2)}), ValueError, "penalty: missing sites .*w.z.*names"),
    ],
)
def test_settings_that_are_none(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_words_of_distributions_without_numbers_of_their_own():
    def mixture(scale):
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), scale))

    def shifted(loc):
        return dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(loc, 2.0)])

    assert in_words(mixture(1.0)) != in_words(mixture(2.0))
    assert in_words(shifted(1.0)) != in_words(shifted(3.0))
    assert in_words(shifted(1.0)) == in_words(shifted(1.0))
