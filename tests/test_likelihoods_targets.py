"""Targets that are not plain numbers: missing, censored, truncated; training weights; likelihoods of one's own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from scipy import stats
from torch import nn

import bnn
from bnn import analysis
from bnn import likelihoods as bl
from bnn.inference.laplace.curvature import output_root
from bnn.likelihoods.laws import MaskedLaw
from bnn.likelihoods.tails import log_ndtr
from bnn.prediction import Prediction
from tests.likelihoods import F64

NAN = math.nan

# ------------------------------------------------------------------------------------------------------------- missing


def predicted(likelihood, outputs, **latents):
    named = {f"likelihood.{name}": torch.as_tensor(value, dtype=F64)[None] for name, value in latents.items()}
    return Prediction(likelihood, outputs[None], named)


def check_masked_rows():
    """Rows with a missing number: the density of what is there, by scipy; a row of none counts 0."""
    covariance = np.array([[1.0, 0.5, 0.2], [0.5, 0.8, -0.3], [0.2, -0.3, 0.6]])
    likelihood = bl.MultivariateGaussian(covariance=torch.tensor(covariance), missing="mask")
    outputs = torch.randn(5, 3, dtype=F64)
    y = torch.randn(5, 3, dtype=F64)
    there = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0], [0, 1, 1]]).bool()
    values = {name: v[None] for name, v in likelihood.latents(outputs).items()}
    found = Prediction(likelihood, outputs[None], values).log_prob(y.masked_fill(~there, NAN))
    for i, seen in enumerate(there.numpy()):
        expected = (
            stats.multivariate_normal.logpdf(y[i, seen], outputs[i, seen], covariance[np.ix_(seen, seen)])
            if seen.any()
            else 0.0
        )
        assert found[i].item() == pytest.approx(expected, abs=1e-10)


def test_missing_numbers_of_a_correlated_row_are_integrated_out():
    check_masked_rows()


def test_control_masked_rows(patch_line):
    patch_line(MaskedLaw, "_gaussian", "* there.unsqueeze(-1) * there.unsqueeze(-2)", "* 1.0")
    with pytest.raises(AssertionError):
        check_masked_rows()


MASKED = [
    (bl.Gaussian(missing="mask"), bl.Gaussian(), 2, {"scale": 0.6}),
    (bl.Bernoulli(missing="mask"), bl.Bernoulli(), 2, {}),
    (bl.Poisson(missing="mask"), bl.Poisson(), 2, {}),
    (bl.Beta(missing="mask"), bl.Beta(), 2, {"precision": 4.0}),
    (bl.Binomial(3, missing="mask"), bl.Binomial(3), 2, {}),
    (bl.HeteroscedasticGaussian(missing="mask"), bl.HeteroscedasticGaussian(), 4, {}),
    (bl.StudentT(missing="mask"), bl.StudentT(), 2, {"scale": 0.6, "df": 4.0}),
    (
        bl.Truncated(bl.Gaussian(missing="mask"), low=3.0),
        bl.Truncated(bl.Gaussian(), low=3.0),
        2,
        {"scale": 0.6},
    ),
]


@pytest.mark.parametrize(("masked", "plain", "width", "latents"), MASKED, ids=lambda v: type(v).__name__)
def test_missing_numbers_count_nothing(masked, plain, width, latents):
    """Each number by itself: the sum of the others, gradients finite and 0 for outputs that nothing depends on."""
    outputs = torch.randn(4, width, dtype=F64)
    values = {f"likelihood.{name}": torch.tensor(value, dtype=F64) for name, value in latents.items()}
    y = plain.distribution(outputs, values).sample()
    there = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]).bool()
    gaps = y.masked_fill(~there, NAN)
    masked.check(outputs, gaps)
    masked.check_numbers(gaps)
    free = outputs.clone().requires_grad_()
    found = masked.observation(free, values).log_prob(gaps)
    from bnn.distributions import base

    each = base(plain.distribution(outputs, values)).log_prob(y)
    torch.testing.assert_close(found.detach(), (each * there).sum(1))
    (gradient,) = torch.autograd.grad(found.sum(), free)
    wide = there.repeat(1, width // 2)
    assert bool((gradient[wide] != 0).all())
    assert bool((gradient[~wide] == 0).all())
    root = output_root(masked, outputs, values, gaps, "ggn")
    curved = (root @ root.mT).diagonal(dim1=-2, dim2=-1)
    assert bool((curved[~wide] == 0).all())
    whole = output_root(plain, outputs, values, y, "ggn")
    torch.testing.assert_close(curved[wide], (whole @ whole.mT).diagonal(dim1=-2, dim2=-1)[wide])


def test_nan_is_an_error_unless_it_may_be_missing(regression, quick):
    x, y = regression
    y[3] = NAN
    net = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="y has NaN or infinite values in 1 of 20 rows: 3"):
        quick(bnn.BNN(net, bnn.priors.Normal(1.0), bl.Gaussian()), (x, y), bnn.MAP(epochs=1))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bl.Gaussian(missing="mask"))
    posterior = quick(model, (x, y), bnn.MAP(epochs=2))
    assert posterior.predict(x).log_prob(y)[3] == 0
    with pytest.raises(ValueError, match="in 1 of 20 rows: 5"):
        posterior.predict(x).log_prob(torch.where(torch.arange(20)[:, None] == 5, math.inf, y))
    with pytest.raises(ValueError, match="1 of 20 rows"):
        analysis.rmse(posterior.predict(x), y)


@pytest.mark.parametrize("covariance", ["full", "diag", "kron"])
def test_laplace_with_missing_rows_is_laplace_without_them(covariance, quick):
    x, y = torch.randn(30, 3).double(), torch.randn(30, 1).double()
    gaps = y.clone()
    gaps[::3] = NAN
    kept = ~gaps.isnan().squeeze(1)
    found = []
    for likelihood, data in ((bl.Gaussian(0.5, missing="mask"), (x, gaps)), (bl.Gaussian(0.5), (x[kept], y[kept]))):
        torch.manual_seed(0)
        model = bnn.BNN(nn.Linear(3, 1).double(), bnn.priors.Normal(1.0), likelihood)
        found.append(quick(model, data, bnn.Laplace(of="net", covariance=covariance, tune=None)))
    variances = [p.predict(x).variance.epistemic for p in found]
    if covariance == "kron":  # the factor of the inputs is an average over all rows
        assert bool((variances[0] / variances[1] - 1).abs().max() < 0.5)
    else:
        torch.testing.assert_close(*variances)


def test_missing_labels_are_minus_100(classification, quick):
    x, y = classification
    gaps = y.clone()
    gaps[::2] = -100
    with pytest.raises(ValueError, match=r"0\.\.3.*10 rows do not"):
        bl.Categorical().check(torch.zeros(20, 4), gaps)
    net, kept = nn.Linear(3, 4), gaps >= 0
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bl.Categorical(missing="mask"))
    params = dict(net.named_parameters())
    plain = bnn.BNN(net, bnn.priors.Normal(1.0), bl.Categorical())
    torch.testing.assert_close(model.log_joint(params, x, gaps), plain.log_joint(params, x[kept], y[kept]))
    prediction = quick(model, (x, gaps), bnn.MeanField(epochs=2)).predict(x, draws=3)
    assert bool((prediction.log_prob(gaps)[::2] == 0).all())
    root = output_root(model.likelihood, net(x).detach(), {}, gaps, "ggn")
    assert bool((root[::2] == 0).all())
    assert bool((root[1::2] != 0).any())


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_leave_one_out_takes_missing_targets_as_absent(quick):
    x, y = torch.randn(20, 2), torch.randn(20)
    gaps = y.clone()
    gaps[[2, 9]] = NAN
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bl.Gaussian(0.7, missing="mask"))
    posterior = quick(model, (x, gaps), bnn.Laplace(of="net", tune=None))
    kept = ~gaps.isnan()
    whole, part = analysis.loo(posterior, x, gaps, num=200), analysis.loo(posterior, x[kept], y[kept], num=200)
    assert whole.elpd == pytest.approx(part.elpd, rel=1e-6)


@pytest.mark.parametrize("method", [bnn.VBLL(epochs=1), bnn.LastLayer(of=bnn.MAP(epochs=1))], ids=["vbll", "last"])
def test_methods_that_need_every_target_say_so(method, regression, quick):
    x, y = regression
    model = bnn.BNN(nn.Linear(3, 1), bnn.priors.Normal(1.0), bl.Gaussian(0.5, missing="mask"))
    with pytest.raises(ValueError, match="missing='mask'"):
        quick(model, (x, y), method)
    smoothed = bnn.BNN(nn.Linear(3, 3), bnn.priors.Normal(1.0), bl.Categorical(0.1))
    with pytest.raises(ValueError, match=r"VBLL knows no bound for Categorical\(smoothing=0.1\)"):
        quick(smoothed, (x, torch.arange(20) % 3), bnn.VBLL(epochs=1))


# ------------------------------------------------------------------------------------------------------------ censored

BASES = {
    "gaussian": (bl.Gaussian(), {"scale": 0.6}, stats.norm(0.3, 0.6)),
    "laplace": (bl.Laplace(), {"scale": 0.6}, stats.laplace(0.3, 0.6)),
    "quantile": (bl.Quantile(0.8), {"scale": 0.3}, stats.laplace_asymmetric(2.0, 0.3, 0.3 / 0.4)),
    "log-normal": (bl.LogNormal(), {"scale": 0.6}, stats.lognorm(0.6, scale=math.exp(0.3))),
    "weibull": (bl.Weibull(), {"concentration": 1.5}, stats.weibull_min(1.5, scale=math.exp(0.3))),
}


def check_intervals(name):
    """Against scipy, in both tails; intervals that fill the line have probability 1."""
    base, latents, law = BASES[name]
    likelihood = bl.Censored(base)
    ends = [-math.inf, -7.0, -1.0, 0.2, 0.5, 2.0, 9.0, math.inf] if base.support is None else [
        -math.inf, 0.01, 0.2, 0.5, 2.0, 6.0, math.inf,
    ]  # fmt: skip
    y = torch.tensor(list(itertools.pairwise(ends)), dtype=F64)
    outputs = torch.full((len(y),), 0.3, dtype=F64)
    values = {f"likelihood.{k}": torch.tensor(v, dtype=F64) for k, v in latents.items()}
    likelihood.check(outputs, y)
    found = likelihood.observation(outputs, values).log_prob(y)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-9)
    low, high = y.numpy().T
    with np.errstate(all="ignore"):
        by_left, by_right = law.cdf(high) - law.cdf(low), law.sf(low) - law.sf(high)
        expected = np.log(np.where(law.cdf(low) > 0.5, by_right, by_left))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    exact = torch.full((1, 2), 0.7, dtype=F64)
    assert likelihood.observation(outputs[:1], values).log_prob(exact).item() == pytest.approx(law.logpdf(0.7))


@pytest.mark.parametrize("name", BASES)
def test_intervals_have_their_probability(name):
    check_intervals(name)


def test_control_intervals(patch_line):
    import bnn.likelihoods.tails as tails

    patch_line(tails, "log_interval", "torch.where(no_low, below_high, above_low)", "above_low")
    patch_line(bl.laws.IntervalLaw, "log_prob", "log_interval(", "__import__('bnn').likelihoods.tails.log_interval(")
    with pytest.raises(AssertionError):
        check_intervals("gaussian")


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_log_distribution_function_far_in_the_tails(dtype):
    z = torch.tensor([-1e6, -3e3, -40.0, -5.0, -1e-3, 0.0, 1e-3, 3.0, 8.0, 1e6], dtype=dtype, requires_grad=True)
    found = log_ndtr(z)
    (slope,) = torch.autograd.grad(found.sum(), z)
    exact = z.detach().double().numpy()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(found.detach().double(), stats.norm.logcdf(exact), rtol=tolerance, atol=1e-7)
    expected = np.exp(stats.norm.logpdf(exact) - stats.norm.logcdf(exact))
    expected[:2] = -exact[:2] - 1 / exact[:2]  # where scipy has 0 / 0: Mills' ratio
    np.testing.assert_allclose(slope.double(), expected, rtol=10 * tolerance, atol=1e-7)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.zeros(3), r"intervals, \(lower, upper\), of shape \(3, 2\); y has shape \(3,\).*right_censored"),
        (torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 0.0]]), r"1 are not so, the first at row 1: \(2.0, 1.0\)"),
        (torch.tensor([[0.0, 1.0], [0.0, 0.0], [math.inf, math.inf]]), "same infinity.*row 2"),
    ],
)
def test_intervals_that_are_none(y, words):
    with pytest.raises(ValueError, match=words):
        bl.Censored(bl.Gaussian()).check(torch.zeros(3), y)


def test_ends_outside_the_support():
    with pytest.raises(ValueError, match=r"positive numbers; 1 are not, the first at row 1: 0\.0"):
        bl.Censored(bl.Weibull()).check(torch.zeros(2), torch.tensor([[0.0, math.inf], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 2 rows: 1"):
        bl.Censored(bl.Weibull()).check_numbers(torch.tensor([[0.0, math.inf], [NAN, 0.0]]))


def test_right_censored():
    found = bl.right_censored([1, 2, 3], [True, False, True])
    assert found.tolist() == [[1, 1], [2, math.inf], [3, 3]]
    with pytest.raises(ValueError, match="one a time"):
        bl.right_censored([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="true or false"):
        bl.right_censored([1.0, 2.0], [1, 2])


@pytest.mark.parametrize("kind", [bl.Censored, bl.Truncated])
@pytest.mark.parametrize("base", [bl.StudentT(), bl.Gamma(), bl.Poisson(), bl.MultivariateGaussian(2)], ids=repr)
def test_likelihoods_without_a_distribution_function_are_refused(kind, base):
    with pytest.raises(ValueError, match=f"which {type(base).__name__} has not: Gaussian"):
        kind(base)


def test_what_cannot_be_censored():
    with pytest.raises(ValueError, match=r"beta=0\.5 makes training weights"):
        bl.Censored(bl.HeteroscedasticGaussian(beta=0.5))
    with pytest.raises(ValueError, match=r"is the interval \(-inf, inf\)"):
        bl.Censored(bl.Gaussian(missing="mask"))
    with pytest.raises(TypeError, match="takes a likelihood"):
        bl.Censored(0.5)
    with pytest.raises(ValueError, match="low is below high"):
        bl.Truncated(bl.Gaussian(), 2.0, 1.0)


def test_scores_of_numbers_refuse_intervals(quick):
    x, time = torch.randn(12, 2), torch.rand(12) + 0.1
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bl.Censored(bl.Weibull()))
    y = bl.right_censored(time, torch.arange(12) % 3 > 0)
    prediction = quick(model, (x, y), bnn.MAP(epochs=2)).predict(x)
    with pytest.raises(ValueError, match="only to lie in an interval in 4 of 12 rows"):
        analysis.rmse(prediction, y)
    assert prediction.quantile(0.5).shape == (12,)


def test_truncated_far_from_the_output_is_at_the_bound():
    """40 standard deviations away nothing of the probability is left in double precision."""
    fn = bl.Truncated(bl.Gaussian(), low=0.0).distribution(torch.tensor([-40.0, -5.0], dtype=F64), {
        "likelihood.scale": torch.ones((), dtype=F64)
    })  # fmt: skip
    known = stats.truncnorm(5, np.inf, loc=-5)
    assert fn.mean.tolist() == [0.0, pytest.approx(known.mean(), rel=1e-5)]
    assert fn.variance[1].item() == pytest.approx(known.var(), rel=1e-3)


# ---------------------------------------------------------------------------------------------------- training weights


def test_beta_nll_is_the_gradient_of_the_paper():
    """Seitzer et al. (2022), equation 5: the gradient of ``stop(s^(2 beta)) * nll``, and the density untouched."""
    x, y = torch.randn(8, 2, dtype=F64), torch.randn(8, dtype=F64)
    net = nn.Linear(2, 2).double()
    gradients = []
    for beta in (0.0, 0.5):
        model = bnn.BNN(net, bnn.priors.Normal(1e6), bl.HeteroscedasticGaussian(beta))
        loss = bnn.MAP(epochs=1).loss(model, n_data=8, compile="eager")
        loss(x, y).backward()
        gradients.append(next(loss.parameters()).grad[:6].clone())
    outputs = net(x)
    mean, scale = outputs[:, 0], (10 * torch.tanh(outputs[:, 1] / 10)).exp()
    nll = scale.log() + (y - mean).square() / (2 * scale.square())
    for gradient, weight in zip(gradients, (torch.ones_like(scale), scale.detach()), strict=True):
        parts = torch.autograd.grad((weight * nll).mean(), list(net.parameters()), retain_graph=True)
        torch.testing.assert_close(gradient, torch.cat([p.flatten() for p in parts]), rtol=1e-7, atol=1e-9)


def test_class_weights_are_sample_weights(classification, quick):
    """Rows of class k weighed by its number: the same fit as with `weight=`; the density is that of no weights."""
    x, y = classification
    net, weights = nn.Linear(3, 4), [1.0, 2.0, 0.5, 3.0]
    own = quick(bnn.BNN(net, bnn.priors.Normal(1.0), bl.Categorical(class_weights=weights)), (x, y), bnn.MAP(epochs=3))
    plain = bnn.BNN(net, bnn.priors.Normal(1.0), bl.Categorical())
    other = quick(plain, (x, y), bnn.MAP(epochs=3), weight=torch.tensor(weights)[y])
    torch.testing.assert_close(own.predict(x).probs, other.predict(x).probs)
    torch.testing.assert_close(own.predict(x).log_prob(y), other.predict(x).log_prob(y))
    assert own.settings["weighted"]


WEIGHTED = {"beta": bl.HeteroscedasticGaussian(0.5), "class_weights": bl.Categorical(class_weights=[1.0, 2.0])}


@pytest.mark.parametrize("method", [bnn.NUTS(), bnn.SGLD(), bnn.SVGD(), bnn.Laplace()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("setting", WEIGHTED)
def test_training_weights_are_refused_where_a_density_is_needed(setting, method, quick):
    likelihood = WEIGHTED[setting]
    x, y = torch.randn(6, 2), torch.zeros(6)
    model = bnn.BNN(nn.Linear(2, 2), bnn.priors.Normal(1.0), likelihood)
    with pytest.raises(ValueError, match=f"needs a density, and {setting}=.* makes training weights"):
        quick(model, (x, y.long() if likelihood.labels else y), method)


def test_log_joint_and_leave_one_out_refuse_training_weights(quick):
    x, y = torch.randn(6, 2), torch.zeros(6).long()
    model = bnn.BNN(nn.Linear(2, 2), bnn.priors.Normal(1.0), WEIGHTED["class_weights"])
    with pytest.raises(ValueError, match="log_joint needs a density"):
        model.log_joint(dict(model.net.named_parameters()), x, y)
    posterior = quick(model, (x, y), bnn.MeanField(epochs=1))
    assert posterior.evidence is None
    with pytest.raises(ValueError, match="weights"):
        analysis.loo(posterior, x, y, num=100)


def test_training_weights_weigh_rows_of_one_target():
    with pytest.raises(ValueError, match="weighs rows, which have one target each; here are 2"):
        bl.HeteroscedasticGaussian(0.5).check(torch.zeros(3, 4), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="class_weights are 2 numbers"):
        WEIGHTED["class_weights"].check(torch.zeros(3, 4), torch.zeros(3).long())


# ------------------------------------------------------------------------------------------------------------ one's own


class Cauchy(bl.Likelihood):
    """One method, and nothing else."""

    def distribution(self, outputs, latents):
        return dist.Cauchy(outputs, latents["likelihood.scale"]).to_event(outputs.dim() - 1)


def test_a_class_of_ones_own_needs_one_method(regression, quick):
    x, y = regression
    model = bnn.BNN(nn.Linear(3, 1), bnn.priors.Normal(1.0), Cauchy(scale=dist.HalfNormal(1.0)))
    prediction = quick(model, (x, y), bnn.MAP(epochs=3)).predict(x)
    law = stats.cauchy(prediction.outputs[0].numpy(), prediction.latents["likelihood.scale"].item())
    np.testing.assert_allclose(prediction.log_prob(y), law.logpdf(y).sum(1), rtol=1e-4)
    np.testing.assert_allclose(prediction.quantile(0.8), law.ppf(0.8), rtol=1e-4)
    with pytest.raises(ValueError, match=r"y has shape \(20,\)"):
        model.likelihood.check(prediction.outputs[0], y[:, 0])


def test_fields_without_a_closed_form_come_from_draws():
    """The moments of exp(normal) within five errors of 1,000 draws, quantiles of their pool; the random state stays."""

    def skewed(outputs, scale):
        return dist.TransformedDistribution(
            dist.Normal(outputs, scale), [torch.distributions.transforms.ExpTransform()]
        )

    outputs = torch.tensor([[0.0, 1.0], [0.3, 1.2]], dtype=F64)
    prediction = Prediction(
        bl.Function(skewed, scale=0.5), outputs, {"likelihood.scale": torch.full((2,), 0.5).double()}
    )
    before = torch.get_rng_state()
    laws = [stats.lognorm(0.5, scale=math.exp(o)) for o in outputs[:, 0]]
    mean = np.mean([law.mean() for law in laws])
    assert prediction.mean[0].item() == pytest.approx(mean, abs=5 * laws[1].std() / math.sqrt(2000))
    aleatoric = np.mean([law.var() for law in laws])
    assert prediction.variance.aleatoric[0].item() == pytest.approx(aleatoric, rel=0.5)
    assert torch.equal(
        prediction.variance.total, Prediction(prediction.likelihood, outputs, prediction.latents).variance.total
    )
    assert torch.equal(before, torch.get_rng_state())


def test_quantiles_without_a_distribution_function_come_from_draws():
    likelihood = bl.Function(lambda outputs, concentration: dist.VonMises(outputs, concentration), concentration=4.0)
    outputs = torch.tensor([[0.0, 0.5], [0.2, 0.7]], dtype=F64)
    prediction = Prediction(likelihood, outputs, {"likelihood.concentration": torch.full((2,), 4.0).double()})
    grid = np.linspace(-3, 3, 2001)
    cumulative = np.mean([stats.vonmises(4.0, loc=o).cdf(grid) for o in (0.0, 0.2)], axis=0)
    error = 5 * math.sqrt(0.16 / 2000) / 0.45  # over the density there
    assert prediction.quantile(0.8)[0].item() == pytest.approx(np.interp(0.8, cumulative, grid), abs=error)


@pytest.mark.parametrize(
    ("y", "words"),
    [(torch.ones(3, 1), r"y has shape \(3, 1\)"), (torch.tensor([1.0, -2.0, 1.0]), "in its support.*row 1: -2.0")],
)
def test_function_checks_targets_by_its_distribution(y, words):
    likelihood = bl.Function(lambda outputs: dist.Exponential(outputs.exp()))
    with pytest.raises(ValueError, match=words):
        likelihood.check(torch.zeros(3), y)
    with pytest.raises(TypeError, match="fn returns a Pyro distribution, not Tensor"):
        bl.Function(lambda outputs: outputs).distribution(torch.zeros(3), {})


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: bl.Gaussian(missing="drop"), "missing is None .* or 'mask', not 'drop'"),
        (lambda: bl.MixtureDensity(0), "at least one component"),
        (lambda: bl.Categorical(1.0), "smoothing is a probability below 1"),
        (lambda: bl.Categorical(class_weights=[1.0, 0.0]), "positive numbers, one a class"),
        (lambda: bl.Binomial(0), "whole number from 1"),
        (lambda: bl.Ordinal(1), "at least 2 grades"),
        (lambda: bl.Quantile(1.0), "strictly between 0 and 1"),
        (lambda: bl.HeteroscedasticGaussian(beta=2.0), "beta lies between 0"),
        (lambda: bl.StudentT(df=-1.0), "df must be positive"),
        (lambda: bl.MultivariateGaussian(), "give the number of outputs"),
        (lambda: bl.MultivariateGaussian(covariance=torch.ones(2, 2)), "not positive definite"),
        (lambda: bl.MultivariateGaussian(covariance=torch.eye(2)[:1]), r"symmetric matrix"),
    ],
)
def test_settings_that_make_no_sense(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_repr_tells_settings_apart():
    shown = [
        *(bl.Categorical(), bl.Categorical(0.1), bl.Categorical(class_weights=[1, 2]), bl.Categorical(missing="mask")),
        *(bl.Ordinal(3), bl.Ordinal(4), bl.Binomial(2), bl.Binomial(3), bl.Quantile(0.2), bl.Quantile(0.3)),
        *(bl.HeteroscedasticGaussian(), bl.HeteroscedasticGaussian(0.5), bl.MixtureDensity(2), bl.MixtureDensity(3)),
        *(bl.Censored(bl.Gaussian()), bl.Censored(bl.Weibull()), bl.Truncated(bl.Gaussian(), 0)),
        *(bl.Truncated(bl.Gaussian(), 1), bl.MultivariateGaussian(2), bl.MultivariateGaussian(3)),
        bl.MultivariateGaussian(covariance=torch.eye(2)),
    ]
    assert len({repr(likelihood) for likelihood in shown}) == len(shown)


def test_cut_points_are_in_order_and_give_the_levels_back():
    levels = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.1, 0.1, 0.1]], dtype=F64)
    likelihood = bl.Ordinal(4)
    cuts = likelihood.cut_points({"likelihood.levels": levels})
    assert bool((cuts.diff(dim=-1) > 0).all())
    prediction = Prediction(likelihood, torch.zeros(2, 5, dtype=F64), {"likelihood.levels": levels})
    torch.testing.assert_close(prediction.probs, levels.mean(0).expand(5, 4))
    several = Prediction(likelihood, torch.zeros(2, 5, 3, dtype=F64), {"likelihood.levels": levels})
    torch.testing.assert_close(several.probs, levels.mean(0).expand(5, 3, 4))
