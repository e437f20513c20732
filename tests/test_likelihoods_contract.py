"""What holds of every likelihood: a density, its draws and moments, its gradients, what methods make of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import bnn
from bnn import likelihoods as bl
from bnn.capture import Captured
from bnn.likelihoods import quantiles
from bnn.prediction import Prediction
from tests.likelihoods import TABLE, Enrolled, grid, model_of

DENSITIES = [name for name, line in TABLE.items() if not line.likelihood.intervals]
KNOWN = [name for name in DENSITIES if isinstance(TABLE[name].likelihood, bl.OutputFisher)]


def on_grid(line: Enrolled, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points over y's space, their weights, and the density there, for one row of outputs ``(1, ...)``."""
    fn = line.likelihood.distribution(outputs, line.values())
    if line.outputs == line.event:  # a kink of the density, if it has one, is to be a point of the grid
        around = outputs[0]
    else:
        around = torch.zeros(line.event) if "mean" not in line.likelihood.fields else quantiles.mean(fn)[0]
    points, weights = grid(line, around)
    fn = line.likelihood.distribution(outputs.expand(len(points), *outputs.shape[1:]), line.values())
    return points, weights, fn.log_prob(points).exp()


def flat(points: torch.Tensor) -> torch.Tensor:
    return points.reshape(len(points), -1).double()


@pytest.mark.parametrize("name", DENSITIES)
def test_density_integrates_to_one_and_moments_are_its_own(name):
    line = TABLE[name]
    outputs = line.rows(1)
    points, weights, density = on_grid(line, outputs)
    mass = density * weights
    assert float(mass.sum()) == pytest.approx(1, abs=3e-5)
    fn = line.likelihood.distribution(outputs, line.values())
    if "mean" in line.likelihood.fields:
        mean = mass @ flat(points)
        torch.testing.assert_close(quantiles.mean(fn).reshape(-1), mean, rtol=1e-3, atol=1e-4)
        variance = mass @ (flat(points) - mean).square()
        torch.testing.assert_close(quantiles.variance(fn).reshape(-1), variance, rtol=3e-3, atol=1e-4)
    if line.place == "labels" and not line.event:
        prediction = Prediction(line.likelihood, outputs[None], {k: v[None] for k, v in line.values().items()})
        torch.testing.assert_close(prediction.probs[0], mass)
        assert prediction.entropy.total.item() == pytest.approx(-float((mass * mass.log()).sum()))


@pytest.mark.parametrize("name", DENSITIES)
def test_draws_follow_the_density(name):
    """One number: Kolmogorov-Smirnov or chi-squared against the integrated density; several: means and covariances."""
    line, num = TABLE[name], 4000
    outputs = line.rows(1)
    points, weights, density = on_grid(line, outputs)
    mass = density * weights
    drawn = flat(line.likelihood.distribution(outputs, line.values()).sample((num,))[:, 0])
    if line.place in ("counts", "labels", "binary"):
        codes = {tuple(point): i for i, point in enumerate(flat(points).tolist())}
        seen = np.bincount([codes[tuple(draw)] for draw in drawn.tolist()], minlength=len(points))
        expected = mass.numpy() * num
        common = expected > 5
        seen, expected = (
            np.append(seen[common], seen[~common].sum()),
            np.append(expected[common], expected[~common].sum()),
        )
        filled = expected > 1e-6
        assert (
            stats.chisquare(seen[filled], expected[filled] * seen[filled].sum() / expected[filled].sum()).pvalue > 1e-5
        )
    elif not line.event:
        cumulative = (mass.cumsum(0) - mass / 2).numpy()
        law = np.interp(drawn[:, 0].numpy(), points.numpy(), cumulative)
        assert stats.kstest(law, "uniform").pvalue > 1e-5
    else:
        mean = mass @ flat(points)
        centred = flat(points) - mean
        for values, expected in ((drawn, mean), ((drawn - mean).prod(1, keepdim=True), (mass @ centred.prod(1))[None])):
            error = values.std(0) / math.sqrt(num)
            assert bool(((values.mean(0) - expected).abs() < 5 * error + 1e-4).all())


@pytest.mark.parametrize("name", [n for n in DENSITIES if "quantile" in TABLE[n].likelihood.fields])
def test_quantiles_invert_the_distribution_function_of_the_mixture(name):
    line, s, n = TABLE[name], 4, 3
    outputs = line.rows(s * n).reshape(s, n, *line.outputs)
    latents = {k: v.expand(s, *v.shape) for k, v in line.values().items()}
    prediction, levels = Prediction(line.likelihood, outputs, latents), [0.1, 0.5, 0.93]
    found = prediction.quantile(levels)
    assert found.shape == (3, n, *line.event)
    for level, q in zip(levels, found, strict=True):
        if prediction.discrete:
            assert bool(((prediction.cdf(q) >= level - 1e-12) & (prediction.cdf(q - 1) < level)).all())
        else:
            torch.testing.assert_close(prediction.cdf(q), torch.full_like(q, level), rtol=0, atol=1e-8)
    if line.event or line.place == "counts":
        return
    points = on_grid(line, outputs[0, :1])[0]
    y = points[:: max(1, len(points) // 9)]
    masses = [on_grid(line, outputs[i, :1]) for i in range(s)]  # the distribution function, from the density
    expected = torch.stack([((d * w)[p <= v].sum() - (d * w)[p == v].sum() / 2) for v in y for p, w, d in masses])
    got = torch.stack([prediction.cdf(v.expand(n))[0] for v in y])
    torch.testing.assert_close(got, expected.reshape(len(y), s).mean(1), rtol=0, atol=5e-3)


def log_prob(line: Enrolled, y: torch.Tensor):
    def fn(outputs, *values):
        named = dict(zip(line.values(), values, strict=True))
        return line.likelihood.observation(outputs, named).log_prob(y)

    return fn


@pytest.mark.parametrize("name", TABLE)
def test_gradients_are_those_of_finite_differences(name):
    line = TABLE[name]
    outputs = line.rows(5)
    values = list(line.values().values())
    free = [v.dim() < 2 and "levels" not in line.latents for v in values]  # others are on a curved surface
    inputs = [outputs.requires_grad_(), *[v.requires_grad_(f) for v, f in zip(values, free, strict=True)]]
    assert torch.autograd.gradcheck(log_prob(line, line.targets(outputs.detach())), inputs, atol=1e-6)


@pytest.mark.parametrize("name", TABLE)
def test_single_precision_is_finite_far_from_the_data(name):
    line = TABLE[name]
    y = line.targets(torch.zeros(1, *line.outputs))
    if line.likelihood.intervals:
        y = torch.cat([y, torch.tensor([[0.3, math.inf], [-math.inf, 0.7], [0.3, 0.7], [-math.inf, math.inf]])])
    cases = torch.cartesian_prod(*[torch.tensor([-50.0, 0.0, 50.0])] * min(3, max(1, math.prod(line.outputs))))
    cases = cases.reshape(len(cases), -1)
    cases = cases.repeat(1, -(-math.prod(line.outputs) // cases.shape[1]))[:, : math.prod(line.outputs)]
    outputs = cases.reshape(-1, *line.outputs).repeat_interleave(len(y), 0).requires_grad_()
    values = [v.requires_grad_() for v in line.values(torch.float32).values()]
    found = log_prob(line, y.repeat(len(cases), *[1] * (y.dim() - 1)))(outputs, *values)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())
    for gradient in torch.autograd.grad(found.sum(), [outputs, *values]):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", TABLE)
def test_captured_and_mapped_densities_are_the_eager_one(name):
    line, chains = TABLE[name], 3
    outputs = line.rows(chains * 4).reshape(chains, 4, *line.outputs)
    y = line.targets(outputs[0])
    values = [v.expand(chains, *v.shape).clone() for v in line.values().values()]
    count = 1 + len(values)

    def one(*inputs):
        return log_prob(line, y)(*inputs).sum()

    def evaluate(*inputs):
        gradients, value = torch.func.vmap(torch.func.grad_and_value(one, argnums=tuple(range(count))))(*inputs)
        return [value, *gradients]

    program = Captured(evaluate, "graph", "the density")
    program(outputs + 0.1, *values)
    captured, mapped = program(outputs, *values), evaluate(outputs, *values)
    assert program.backends == ["graph"]
    for i in range(chains):
        gradients, value = torch.func.grad_and_value(one, argnums=tuple(range(count)))(
            outputs[i], *[v[i] for v in values]
        )
        for expected, *got in zip([value, *gradients], captured, mapped, strict=True):
            for each in got:
                torch.testing.assert_close(each[i], expected, rtol=1e-9, atol=1e-12)


def check_information(name):
    """The covariance of the gradient of log p in the outputs, integrated over y."""
    line = TABLE[name]
    outputs = line.rows(1)
    root = line.likelihood.fisher_root(outputs, line.values())[0]
    points, weights, density = on_grid(line, outputs)
    rows = outputs.expand(len(points), *outputs.shape[1:]).clone().requires_grad_()
    (scores,) = torch.autograd.grad(log_prob(line, points)(rows, *line.values().values()).sum(), rows)
    scores = flat(scores)
    expected = (scores * (density * weights).unsqueeze(1)).T @ scores
    torch.testing.assert_close(root @ root.mT, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", KNOWN)
def test_information_is_the_covariance_of_the_gradient(name):
    check_information(name)


CONTROLS = [
    ("student t", bl.StudentT, "((df + 1) / (df + 3)).sqrt() /", "1 /"),
    ("heteroscedastic", bl.HeteroscedasticGaussian, "math.sqrt(2) * slopes", "slopes"),
    ("heteroscedastic t", bl.HeteroscedasticStudentT, "2 * df / (df + 3)", "df / (df + 3)"),
    ("ordinal", bl.Ordinal, "scores.square()", "scores.abs()"),
    ("beta", bl.Beta, "1 + b * b", "b * b"),
    ("categorical, smoothed", bl.Categorical, "mixed.sqrt()", "probs.sqrt()"),
    ("multivariate", bl.MultivariateGaussian, ".mT.expand", ".expand"),
    ("negative binomial", bl.NegativeBinomial, "outputs + dispersion.log()", "outputs"),
]


@pytest.mark.parametrize(("name", "owner", "old", "new"), CONTROLS, ids=[c[0] for c in CONTROLS])
def test_control_information(name, owner, old, new, patch_line):
    patch_line(owner, "fisher_root", old, new)
    with pytest.raises(AssertionError):
        check_information(name)


@pytest.mark.parametrize("name", [n for n in TABLE if TABLE[n].wrong])
def test_targets_outside_the_support_are_told_with_their_row(name):
    line = TABLE[name]
    outputs = line.rows(4)
    y = line.targets(outputs)
    line.likelihood.check(outputs, y)
    value, words = line.wrong
    y[2].fill_(value) if y[2].dim() == 0 else y[2].view(-1)[0].fill_(value)
    with pytest.raises(ValueError, match=f"{words}.*row 2"):
        line.likelihood.check(outputs, y)


@pytest.mark.parametrize("name", TABLE)
def test_targets_of_another_shape_are_told(name):
    line = TABLE[name]
    outputs = line.rows(4)
    y = line.targets(outputs)
    for wrong in (y[:3], y.unsqueeze(-1)):
        with pytest.raises(ValueError, match="shape"):
            line.likelihood.check(outputs, wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLE)
def test_the_networks_dtype_is_kept(name, dtype):
    line = TABLE[name]
    like = torch.zeros(1, dtype=dtype)
    latents = line.likelihood.latents(like)
    assert set(latents) == set(line.values())
    assert all(value.dtype == dtype for value in latents.values())
    fn = line.likelihood.distribution(line.rows(3, dtype), latents)
    assert fn.batch_shape == (3,)
    assert fn.event_shape == line.event
    drawn = fn.sample()
    assert drawn.dtype == (torch.int64 if line.likelihood.labels else dtype)
    assert fn.log_prob(drawn).dtype == dtype


METHODS = {
    "map": bnn.MAP(epochs=2),
    "mean_field": bnn.MeanField(epochs=2, temperature=0.9),  # at 1 it would also work out an ELBO
    "nuts": bnn.NUTS(chains=2, warmup=1, num_samples=2, max_depth=1),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TABLE)
def test_fits_predicts_and_comes_back(name, method, quick, tmp_path):
    line = TABLE[name]
    model, x = model_of(line), torch.randn(12, 2)
    y = line.targets(model.net(x).detach())
    posterior = quick(model, (x, y), METHODS[method])
    prediction = posterior.predict(x, draws=2 if method != "map" else None)
    assert prediction.log_prob(y).shape == (12,)
    assert bool(prediction.log_prob(y).isfinite().all())
    assert prediction.sample(2).shape == (2, 12, *line.event)
    for field in line.likelihood.fields:
        value = prediction.quantile(0.3) if field == "quantile" else getattr(prediction, field)
        assert bool(torch.as_tensor(value[0] if isinstance(value, tuple) else value).isfinite().all())
    if method == "mean_field":
        again = bnn.load(posterior.save(tmp_path / "a"), model_of(line))
        assert torch.equal(again.predict(x, draws=2).log_prob(y), prediction.log_prob(y))
