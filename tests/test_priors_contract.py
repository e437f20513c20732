"""What every prior keeps; the table is in `priors.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pytest
import torch
from priors import TABLE, Enrolled, tiny
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to, constraints

import bnn
from bnn.capture import Captured
from bnn.priors import ElasticNet, Hierarchical, Prior, StudentT
from bnn.random import isolated

DOUBLE = torch.float64
#: Draws of each site, and standard errors that its moments may be away.
DRAWS, ERRORS = 20_000, 5.0
BOUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "location": torch.atan,
    "spread": lambda w: w.square() / (1 + w.square()),
    "core": lambda w: (10 * w).square() / (1 + (10 * w).square()),
}

every = pytest.mark.parametrize("name", TABLE)


def params_of(enrolled: Enrolled, dtype: torch.dtype = DOUBLE, *, scalar: bool = False) -> dict[str, Tensor]:
    shape = ((1, 1, 1) if enrolled.conv else (1, 1)) if scalar else ((2, 1, 2) if enrolled.conv else (2, 3))
    return {"w": torch.zeros(shape, dtype=dtype)}


def sites_of(prior: Prior, params: dict[str, Tensor], seed: int = 0) -> dict[str, dict]:
    """The nodes of one draw from the prior that are unknowns, points among them."""
    with isolated(seed), pyro.get_param_store().scope():
        nodes = poutine.trace(prior).get_trace(params, "all").nodes
    return {
        name: node
        for name, node in nodes.items()
        if node["type"] in ("sample", "param") and not node["infer"].get("_deterministic")
    }


def log_prior(prior: Prior, params: dict[str, Tensor], values: dict[str, Tensor]) -> Tensor:
    """Through Pyro's own trace."""
    learned = isinstance(prior, Hierarchical) and prior.hyper == "learned"
    points = {n: v for n, v in values.items() if learned and n.startswith("prior.")}
    program = poutine.substitute(poutine.condition(prior, data=values), data=points)
    with pyro.get_param_store().scope():
        return torch.as_tensor(poutine.trace(program).get_trace(params, "all").log_prob_sum())


def some_values(prior: Prior, params: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Values of every site, of ordinary size: prior draws may be anywhere."""
    with isolated(seed):
        values = {}
        for name, node in sites_of(prior, params).items():
            support = node["fn"].support if node["type"] == "sample" else constraints.positive
            transform = biject_to(support)
            values[name] = transform(torch.randn(transform.inverse_shape(node["value"].shape)).to(node["value"]))
    return values


def quadrature(support: constraints.Constraint) -> tuple[Tensor, Tensor]:
    """Points and weights over a whole line or half line, dense at 0 and reaching far enough for Cauchy tails."""
    t = torch.linspace(-40, 40, 160_001, dtype=DOUBLE)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    positive = support is not constraints.real
    points, slope = (t.exp(), t.exp()) if positive else (t.sinh(), t.cosh())
    return points, slope * (t[1] - t[0])


def check_density(prior: Prior, params: dict[str, Tensor]) -> None:
    """Every site, given those before it, integrates to 1, and its draws have the moments of that density."""
    for name, node in sites_of(prior, params).items():
        if node["type"] == "param":
            continue
        fn, shape = node["fn"], node["value"].shape
        points, weights = quadrature(fn.support)
        density = fn.log_prob(points.reshape(-1, *shape)).exp() * weights
        assert density.sum().item() == pytest.approx(1, abs=1e-6), name
        draws = fn.sample((DRAWS,)).flatten()
        for moment, f in BOUNDED.items():
            expected, drawn = (f(points) * density).sum(), f(draws)
            error = (drawn.mean() - expected).abs() / (drawn.std() / math.sqrt(DRAWS))
            assert error < ERRORS, f"{name}: {moment}, {error} standard errors"


@every
def test_density_is_normalised_and_draws_follow_it(name):
    params = params_of(TABLE[name], scalar=True)
    check_density(TABLE[name].make(params), params)


@every
def test_gradients_are_finite_differences(name):
    params = params_of(TABLE[name])
    prior = TABLE[name].make(params)
    values = some_values(prior, params)
    inputs = [value.clone().requires_grad_() for value in values.values()]

    def density(*tensors: Tensor) -> Tensor:
        return log_prior(prior, params, dict(zip(values, tensors, strict=True)))

    assert torch.autograd.gradcheck(density, inputs, eps=1e-6, atol=1e-7, rtol=1e-6, check_undefined_grad=False)


def check_penalty(enrolled: Enrolled) -> None:
    """The documented number; and differences of it are those of -log p."""
    params = params_of(enrolled)
    prior = enrolled.make(params)
    a, b = (some_values(prior, params, seed) for seed in (1, 2))
    torch.testing.assert_close(prior.penalty(a), enrolled.penalty(a), rtol=1e-10, atol=1e-10)
    here, there = log_prior(prior, params, a), log_prior(prior, params, b)
    torch.testing.assert_close(prior.penalty(a) - prior.penalty(b), there - here, rtol=1e-9, atol=1e-9)


@every
def test_penalty_is_the_documented_number(name):
    check_penalty(TABLE[name])


@every
def test_penalty_is_zero_at_its_reference_and_lowest_at_the_mode(name):
    """Given the hyper-sites at their reference, no weights have a smaller one."""
    params = params_of(TABLE[name])
    prior = TABLE[name].make(params)
    nodes = sites_of(prior, params)
    centre = 0.3 if name == "pretrained" else 0.0
    values = {n: torch.full_like(node["value"], 1.0 if n.startswith("prior.") else centre) for n, node in nodes.items()}
    assert prior.penalty(values).abs().item() < 1e-12
    for seed in range(5):
        moved = {n: v if n.startswith("prior.") else some_values(prior, params, seed)[n] for n, v in values.items()}
        assert prior.penalty(moved) > 0


@every
def test_single_precision_keeps_finite_gradients_in_the_tails(name):
    """At weights of 50 and more, at 0, and where hyper-sites are tiny or huge."""
    params = params_of(TABLE[name], torch.float32)
    prior = TABLE[name].make(params)
    values = some_values(prior, params)
    for weight in (0.0, 1e-6, 50.0, -80.0):
        for hyper in (1e-4, 1.0, 1e6):
            at = {n: torch.full_like(v, hyper if n.startswith("prior.") else weight) for n, v in values.items()}
            loss, slopes = torch.func.grad_and_value(prior.penalty, argnums=0)(at)[::-1]
            finite = all(slope.isfinite().all() for slope in slopes.values())
            # A function of one's own that overflows is its author's; a centred scale of 1e-4 is not for float32.
            assert (finite and loss.isfinite()) or name.startswith("function")


@every
def test_captured_is_eager_and_maps(name):
    params = params_of(TABLE[name])
    prior = TABLE[name].make(params)
    draws = [some_values(prior, params, seed) for seed in (3, 4)]
    names = list(draws[0])

    def slopes(*tensors: Tensor) -> tuple[Tensor, ...]:
        def total(parts: tuple[Tensor, ...]) -> Tensor:
            return log_prior(prior, params, dict(zip(names, parts, strict=True)))

        gradients, value = torch.func.grad_and_value(total)(tensors)
        return (*gradients, value.detach())

    with pyro.validation_enabled(False):
        captured = Captured(slopes, "graph", "the prior")
        one_by_one = [slopes(*draw.values()) for draw in draws]
        for draw, expected in zip(draws, one_by_one, strict=True):
            torch.testing.assert_close(tuple(captured(*draw.values())), expected, rtol=1e-11, atol=1e-11)
        assert captured.backends == ["graph"]
        mapped = torch.func.vmap(slopes)(*(torch.stack([draw[n] for draw in draws]) for n in names))
    for k, expected in enumerate(one_by_one):
        torch.testing.assert_close(tuple(value[k] for value in mapped), expected, rtol=1e-11, atol=1e-11)


@every
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_dtype_is_the_parameters(name, dtype):
    params = params_of(TABLE[name], dtype)
    prior = TABLE[name].make(params)
    nodes = sites_of(prior, params)
    assert {node["value"].dtype for node in nodes.values()} == {dtype}
    assert log_prior(prior, params, {n: node["value"] for n, node in nodes.items()}).dtype == dtype
    with isolated(0), pyro.get_param_store().scope():
        weights = prior(params, "all")
    assert {n: (w.dtype, w.shape) for n, w in weights.items()} == {n: (p.dtype, p.shape) for n, p in params.items()}


@every
def test_repr_tells_settings(name):
    """Equal for two of the same settings, and different from every other prior of the table."""
    params = params_of(TABLE[name])
    assert repr(TABLE[name].make(params)) == repr(TABLE[name].make(params))
    others = [repr(other.make(params)) for key, other in TABLE.items() if key != name]
    assert repr(TABLE[name].make(params)) not in others


def model_of(name: str) -> tuple[bnn.BNN, tuple[Tensor, Tensor]]:
    net, prior, x, y = tiny(TABLE[name])
    return bnn.BNN(net, prior, bnn.likelihoods.Gaussian(0.5)), (x, y)


@every
def test_fits_by_map_or_is_refused(name, quick):
    model, data = model_of(name)
    method = bnn.MAP(epochs=3, batch_size=None)
    if model.learned_prior_scales():
        with pytest.raises(ValueError, match="cannot be used with a learned prior scale"):
            quick(model, data, method)
    else:
        draws = quick(model, data, method).draws()
        assert all(value.isfinite().all() for value in draws.values())


@every
def test_fits_by_mean_field_saves_and_loads(name, quick, tmp_path):
    model, data = model_of(name)
    before = dict(pyro.get_param_store().items())
    posterior = quick(model, data, bnn.MeanField(epochs=3, batch_size=None))
    assert dict(pyro.get_param_store().items()) == before
    assert all(value.isfinite().all() for value in posterior.draws(5).values())
    assert set(posterior.draws(2)) >= {n for n, _ in model.net.named_parameters()}
    posterior.save(tmp_path / "a")
    again = bnn.load(tmp_path / "a", model_of(name)[0])
    torch.testing.assert_close(again.predict(data[0], 7).mean, posterior.predict(data[0], 7).mean)


@every
def test_fits_by_nuts_or_is_refused(name, quick):
    model, data = model_of(name)
    method = bnn.NUTS(chains=2, warmup=3, num_samples=4, max_depth=3)
    if model.sites().points:
        with pytest.raises(ValueError, match=r"have no prior|has no prior"):
            quick(model, data, method)
    else:
        draws = quick(model, data, method).draws()
        assert all(value.isfinite().all() for value in draws.values())


# ------------------------------------------------------------------------------------------------------------ controls


def test_control_a_wrong_constant(patch_line):
    """The normalising constant of the elastic net without the Laplace part."""
    from bnn.priors import elastic_net

    patch_line(elastic_net, "log_elastic", "+ erfcx.log()", "")
    params = params_of(TABLE["elastic net"], scalar=True)
    with pytest.raises(AssertionError, match="w"):
        check_density(ElasticNet(1.5, 0.8), params)


def test_control_draws_too_wide(patch_line):
    """Five per cent too wide."""
    from bnn.priors.grouped import GroupLaplace

    patch_line(GroupLaplace, "group_sample", "return self.scale *", "return 1.05 * self.scale *")
    params = params_of(TABLE["group lasso"], scalar=True)
    with pytest.raises(AssertionError, match="standard errors"):
        check_density(TABLE["group lasso"].make(params), params)


def test_control_fan_in_left_out(patch_line):
    from bnn.priors.scaled import Scaled

    patch_line(Scaled, "own_scale", "/ math.sqrt(inputs)", "")
    for name in ("elastic net, fan-in", "scale mixture, fan-in", "group lasso, inputs", "from Pyro, scaled"):
        with pytest.raises(AssertionError):
            check_penalty(TABLE[name])


def test_control_a_term_of_the_hyper_site_dropped(patch_line):
    """Left out of the constant of the penalty: what depends on the scale is no constant."""
    from bnn.priors import base

    patch_line(
        base, "_reference", 'if not name.startswith("prior."):', 'if name.startswith("prior."): return value\n    else:'
    )
    with pytest.raises(AssertionError):
        check_penalty(TABLE["hierarchical, gamma, centred"])


def test_settings_of_the_table_are_told_apart():
    assert repr(StudentT(df=3.0)) == "StudentT(df=3.0)"
    assert repr(Hierarchical()) == "Hierarchical(hyper=HalfCauchy(scale=1.0))"
    assert repr(StudentT(0.5, df=3.0, loc=1.0)) == "StudentT(scale=0.5, loc=1.0, df=3.0)"
    assert repr(Hierarchical(dist.Gamma(2.0, 3.0))) == "Hierarchical(hyper=Gamma(concentration=2.0, rate=3.0))"
