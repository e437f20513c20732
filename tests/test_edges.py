"""Edges of priors, likelihoods and predictions: wide ranges, large counts, columns of outputs, settings that count."""

from __future__ import annotations

import functools
import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from scipy import stats
from torch import nn

import bnn
from bnn import likelihoods as bl
from bnn import priors as bp
from bnn.data import as_source
from bnn.inference.bound import elbo
from bnn.likelihoods.weibull import WeibullLaw
from bnn.prediction import Prediction

F64 = torch.float64
RUN = {"seed": 0, "compile": "graph", "progress": False}


def log_prior(prior: bp.Prior, **values: torch.Tensor) -> torch.Tensor:
    own = {name: value for name, value in values.items() if not name.startswith("prior")}
    program = poutine.condition(prior, data={name.replace("prior_", "prior.all."): v for name, v in values.items()})
    with pyro.validation_enabled(False):
        return poutine.trace(program).get_trace(own, "all").log_prob_sum()


@pytest.mark.parametrize("scale", [2.0, torch.tensor([0.5, 1.0, 2.0, 4.0]), dist.HalfCauchy(1.0)])
def test_a_scaled_pyro_prior_is_normalised(scale):
    w, given = torch.randn(3, 4), {} if not isinstance(scale, dist.HalfCauchy) else {"prior_scale": torch.tensor(2.0)}
    found = log_prior(bp.FromPyro(dist.Normal(0.0, 1.0), scale=scale), w=w, **given)
    expected = log_prior(bp.Normal(scale), w=w, **given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_mixture_is_a_prior_over_real_numbers():
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([0.0, 1.0]), torch.tensor([0.1, 2.0]))
    )
    model = bnn.BNN(nn.Linear(2, 1), bp.FromPyro(mixture), bl.Gaussian(0.3))
    x = torch.randn(12, 2)
    posterior = bnn.fit(model, (x, x[:, :1]), bnn.MeanField(epochs=2), **RUN)
    assert posterior.draws(3)["weight"].shape == (3, 1, 2)


def test_partials_of_one_function_with_other_settings_are_told_apart():
    def fn(outputs, df):
        return dist.StudentT(df, outputs, 1.0)

    for kind in (bl.Function, bp.Function):
        assert repr(kind(functools.partial(fn, df=3.0))) != repr(kind(functools.partial(fn, df=4.0)))
        assert repr(kind(functools.partial(fn, df=3.0))) == repr(kind(functools.partial(fn, df=3.0)))


@pytest.mark.parametrize("concentration", [0.5, 2.0, 50.0, 3000.0])
def test_weibull_moments(concentration):
    fn = WeibullLaw(torch.tensor(3.0), torch.tensor(concentration))
    known = stats.weibull_min(concentration, scale=math.exp(3))
    assert fn.mean.item() == pytest.approx(known.mean(), rel=1e-5)
    assert fn.variance.item() == pytest.approx(known.var(), rel=1e-5)


def test_weibull_densities_and_gradients_far_out():
    targets = torch.tensor([[1.0, 1.0], [1.0, math.inf], [-math.inf, 1.0], [1.0, 2.0]])
    likelihood = bl.Censored(bl.Weibull(2.0))
    for output in (-50.0, 50.0):
        outputs = torch.full((4,), output, requires_grad=True)
        found = likelihood.observation(outputs, likelihood.latents(outputs)).log_prob(targets)
        (gradient,) = torch.autograd.grad(found.sum(), outputs)
        assert found.isfinite().all()
        assert gradient.isfinite().all()
    # P(Y <= 1) is e^-100 there, and P(1 < Y <= 2) three times as much.
    torch.testing.assert_close(found.detach()[2:], torch.tensor([-100.0, math.log(3) - 100]), rtol=1e-5, atol=1e-4)


def test_truncated_weibull_far_out():
    likelihood = bl.Truncated(bl.Weibull(2.0), 0.5, 1.0)
    outputs = torch.tensor([50.0])
    found = likelihood.distribution(outputs, likelihood.latents(outputs)).log_prob(torch.tensor([0.7]))
    assert found.item() == pytest.approx(math.log(2 * 0.7 / (1 - 0.25)), abs=1e-4)


def test_quantiles_of_positive_targets_over_many_powers_of_ten():
    logs = torch.linspace(-30, 30, 201)[:, None]
    prediction = Prediction(bl.LogNormal(0.01), logs, {"likelihood.scale": torch.full((201,), 0.01)})
    found = prediction.quantile([0.25, 0.5, 0.75]).log().squeeze(1)
    assert ((found - torch.tensor([-15.0, 0.0, 15.0])).abs() < 0.31).all()  # draws are 0.3 apart


def test_quantiles_of_counts_that_single_precision_does_not_tell_apart():
    logs = 20 + 0.1 * torch.randn(9, 2)
    prediction = Prediction(bl.Poisson(), logs, {})
    whole = Prediction(bl.Poisson(), logs.double(), {})
    levels = [0.05, 0.5, 0.95]
    torch.testing.assert_close(prediction.quantile(levels), whole.quantile(levels).float(), rtol=1e-5, atol=0)


class Columns(bl.Likelihood):
    """Takes the columns of the outputs apart, beside an unknown of its own."""

    def __init__(self):
        super().__init__(df=dist.Gamma(4.0, 1.0))

    def distribution(self, outputs, latents):
        return dist.StudentT(latents["likelihood.df"], outputs[:, 0], outputs[:, 1].exp())

    def event(self, outputs):
        return ()


@pytest.mark.parametrize(
    "likelihood",
    [bl.Function(lambda f, df: dist.StudentT(df, f[:, 0], f[:, 1].exp()), df=dist.Gamma(4.0, 1.0)), Columns()],
    ids=["function", "class"],
)
def test_unknowns_beside_columns_of_the_outputs(likelihood):
    outputs, df = torch.randn(6, 5, 2, dtype=F64), 3 + torch.rand(6, dtype=F64)
    prediction = Prediction(likelihood, outputs, {"likelihood.df": df})
    y = torch.randn(5, dtype=F64)
    expected = stats.t(df[:, None], outputs[..., 0], outputs[..., 1].exp())
    torch.testing.assert_close(prediction.log_prob_draws(y), torch.as_tensor(expected.logpdf(y)))
    torch.testing.assert_close(prediction.mean, torch.as_tensor(expected.mean()).mean(0))
    assert prediction.std.shape == (5,)
    assert prediction.sample(4).shape == (4, 5)


def test_a_distribution_of_the_wrong_shape_is_told_in_words():
    likelihood = bl.Function(lambda f, s: dist.Normal(f[:, 0], s[..., None]), s=torch.ones(1))
    with pytest.raises(ValueError, match="its unknowns come as one value a row"):
        _ = Prediction(likelihood, torch.randn(2, 3, 2), {"likelihood.s": torch.ones(2, 1)}).mean


def check_information_of_incomplete_rows():
    root = torch.randn(3, 3, dtype=F64)
    covariance = root @ root.T + torch.eye(3, dtype=F64)
    likelihood = bl.MultivariateGaussian(covariance=covariance, missing="mask")
    outputs = torch.zeros(4, 3, dtype=F64)
    there = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]]).bool()
    y = torch.zeros(4, 3, dtype=F64).masked_fill(~there, math.nan)
    s = bl.present_root(likelihood, likelihood.fisher_root(outputs, likelihood.latents(outputs)), outputs, y)
    for i, seen in enumerate(there):
        expected = torch.zeros(3, 3, dtype=F64)
        expected[seen.outer(seen)] = torch.linalg.inv(covariance[seen][:, seen]).flatten()
        torch.testing.assert_close(s[i] @ s[i].T, expected)


def test_information_of_incomplete_rows():
    check_information_of_incomplete_rows()


def test_control_information_of_incomplete_rows(patch_line):
    patch_line(bl.MultivariateGaussian, "left_out", "root - root @", "root - 0 * root @")
    with pytest.raises(AssertionError):
        check_information_of_incomplete_rows()


def small_model() -> tuple[bnn.BNN, torch.Tensor, torch.Tensor]:
    x = torch.randn(30, 2)
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    return bnn.BNN(net, bp.Normal(1.0), bl.Gaussian(0.3)), x, x[:, 0]


def test_more_held_out_rows_than_training_rows():
    model, x, y = small_model()
    fitted = bnn.fit(model, (x[:5], y[:5]), bnn.MeanField(epochs=2), validation=(x, y), **RUN)
    assert len(fitted.history.validation) == 2


@pytest.mark.parametrize("method", [bnn.IVON, bnn.FullRank])
def test_natural_gradients_are_not_clipped(method):
    model, x, y = small_model()
    with pytest.raises(ValueError, match="bounds its own steps"):
        bnn.fit(model, (x, y), method(epochs=2, clip_norm=1.0), **RUN)


def check_evidence_of_independent_epochs(monkeypatch):
    model, x, y = small_model()
    loss = bnn.IVON(batch_size=None).loss(model, 30, compile="eager")
    loss(x, y)  # an odd number of evaluations so far: the next is a mirror image
    seen = []
    gradients = loss.gradients

    def recorded(batch):
        result = gradients(batch)
        seen.append(loss.given_tensors["noise"].abs().sum().item())
        return result

    monkeypatch.setattr(loss, "gradients", recorded)
    elbo(loss, dict(loss.named_parameters()), as_source((x, y), model.likelihood, model.like, None))
    assert len(set(seen)) == len(seen)


def test_evidence_under_ivon_takes_new_noise_every_epoch(monkeypatch):
    check_evidence_of_independent_epochs(monkeypatch)


def test_control_evidence_under_ivon(monkeypatch, patch_line):
    patch_line(bnn.inference.ivon.IVONLoss, "renew_all", 'self.remembered["fresh"] = False', "pass")
    with pytest.raises(AssertionError):
        check_evidence_of_independent_epochs(monkeypatch)
