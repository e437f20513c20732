"""Laplace against exact posteriors and evidences of linear-Gaussian models, with controls; its settings and messages.

Everything here is deterministic: tolerances are those of rounding, unless said otherwise.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import pytest
import torch
from linear import NOISE, PRIOR, linear_regression
from networks import make
from pyro import distributions as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bnn
from bnn.approximations import LocalGaussian
from bnn.inference.laplace import curvature as curvature_module
from bnn.inference.laplace import evidence as evidence_module
from bnn.inference.laplace import log_marginal_likelihood
from bnn.inference.laplace import unknowns as unknowns_module
from bnn.inference.laplace.kron import Factor, KroneckerCurvature
from bnn.linearised import jacobian
from bnn.random import isolated

#: Full batches and a line search: the mode to rounding.
NEWTON = bnn.MAP(
    epochs=30,
    batch_size=None,
    lr=1.0,
    optimizer=functools.partial(
        torch.optim.LBFGS, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15
    ),
)
fit = functools.partial(bnn.fit, progress=False, compile="graph")


@dataclass(frozen=True)
class Problem:
    """Linear regression with a bias and k outputs, which share the design z ``(n, p)``."""

    x: Tensor
    y: Tensor
    net: nn.Module

    @property
    def z(self) -> Tensor:
        return torch.cat([self.x, torch.ones_like(self.x[:, :1])], dim=1)

    def model(self, prior: object = PRIOR, noise: object = NOISE) -> bnn.BNN:
        return bnn.BNN(self.net, bnn.priors.Normal(prior), bnn.likelihoods.Gaussian(noise))

    def precision(self, prior: float = PRIOR, noise: float = NOISE) -> Tensor:
        """Of one output's weights, the bias last: ``(p, p)``."""
        return self.z.T @ self.z / noise**2 + torch.eye(self.z.shape[1]).double() / prior**2

    def mean(self, prior: float = PRIOR, noise: float = NOISE) -> Tensor:
        """``(k, p)``."""
        return torch.linalg.solve(self.precision(prior, noise), self.z.T @ self.y / noise**2).T

    def evidence(self, prior: float = PRIOR, noise: float = NOISE) -> float:
        """log p(y | x): y is Gaussian with covariance ``prior^2 z z' + noise^2``, each output by itself."""
        covariance = prior**2 * self.z @ self.z.T + noise**2 * torch.eye(len(self.z)).double()
        law = torch.distributions.MultivariateNormal(torch.zeros(len(self.z)).double(), covariance)
        return float(law.log_prob(self.y.T).sum())


@functools.cache
def two_outputs() -> Problem:
    with isolated(3):
        x = (torch.randn(40, 3) @ (torch.eye(3) + 0.5)).double()
        net = nn.Linear(3, 2).double()
        y = x @ torch.randn(3, 2).double() + 0.7 + NOISE * torch.randn(40, 2).double()
    return Problem(x, y, net)


def by_output(posterior: bnn.Posterior) -> tuple[Tensor, Tensor]:
    """Mean ``(k, p)`` and covariance ``(k p, k p)``, the numbers of one output together."""
    local = posterior.approximation
    assert isinstance(local, LocalGaussian)
    k, p = 2, 4
    order = torch.cat([torch.cat([torch.arange(3) + 3 * j, torch.tensor([6 + j])]) for j in range(k)])
    covariance = local.output_covariance(torch.eye(k * p).double()[None])[0]
    return local.centre[order].view(k, p), covariance[order][:, order]


def check_full() -> None:
    """The posterior, its evidence and its predictive distribution in closed form."""
    problem = two_outputs()
    posterior = fit(problem.model(), (problem.x, problem.y), bnn.Laplace(of=NEWTON, covariance="full"))
    mean, covariance = by_output(posterior)
    inverse = torch.linalg.inv(problem.precision())
    torch.testing.assert_close(mean, problem.mean(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(covariance, torch.block_diag(inverse, inverse), rtol=1e-6, atol=1e-12)
    assert posterior.settings["evidence"]["value"] == pytest.approx(problem.evidence(), rel=1e-9)
    assert log_marginal_likelihood(posterior, (problem.x, problem.y)) == pytest.approx(problem.evidence(), rel=1e-9)
    prediction = posterior.predict(problem.x)
    variance = ((problem.z @ inverse) * problem.z).sum(1, keepdim=True).expand(-1, 2)
    torch.testing.assert_close(prediction.mean, problem.z @ problem.mean().T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(prediction.variance.epistemic, variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(prediction.variance.aleatoric, torch.full_like(variance, NOISE**2))
    law = torch.distributions.Normal(prediction.mean, (variance + NOISE**2).sqrt())
    torch.testing.assert_close(prediction.log_prob(problem.y), law.log_prob(problem.y).sum(1), rtol=1e-6, atol=1e-9)
    levels = torch.tensor([0.05, 0.5, 0.8]).double()
    quantiles = torch.stack([law.icdf(level) for level in levels])
    torch.testing.assert_close(prediction.quantile(levels), quantiles, rtol=1e-6, atol=1e-6)


def test_full_laplace_of_a_linear_model_is_the_exact_posterior() -> None:
    check_full()


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"),
    [
        pytest.param(
            unknowns_module, "prior_precision", ".square().reciprocal()", ".square().reciprocal() * 2", id="prior twice"
        ),
        pytest.param(curvature_module, "exact_curvature", "total = total + ", "total = 2 * total + ", id="data twice"),
        pytest.param(evidence_module.Evidence, "__call__", "- 0.5 * log_det", "- log_det", id="determinant"),
        pytest.param(bnn.likelihoods.Gaussian, "averaged", "covariance + torch", "2 * covariance + torch", id="spread"),
    ],
)
def test_control_a_wrong_term_makes_the_exact_check_fail(patch_line, monkeypatch, owner, name, old, new) -> None:
    patch_line(owner, name, old, new)
    if name == "exact_curvature":  # several batches, so that a factor on the running sum shows
        monkeypatch.setattr("bnn.inference.laplace.method._ROWS", 10)
        monkeypatch.setattr("bnn.inference.laplace.method.exact_curvature", curvature_module.exact_curvature)
    if name == "prior_precision":
        monkeypatch.setattr(evidence_module, "prior_precision", unknowns_module.prior_precision)
    with pytest.raises(AssertionError):
        check_full()


def test_control_a_wrong_jacobian_makes_the_exact_check_fail(patch_line, monkeypatch) -> None:
    import bnn.linearised as linearised

    patch_line(
        linearised, "jacobian", "parts[name].flatten(2) for name in at", "1.05 * parts[name].flatten(2) for name in at"
    )
    monkeypatch.setattr(curvature_module, "jacobian", linearised.jacobian)
    with pytest.raises(AssertionError):
        check_full()


def test_batches_and_loaders_sum_to_the_whole(monkeypatch) -> None:
    problem = two_outputs()
    monkeypatch.setattr("bnn.inference.laplace.method._ROWS", 7)
    for covariance in ("full", "kron", "diag"):
        method = bnn.Laplace(of="net", covariance=covariance)
        whole = fit(problem.model(), (problem.x, problem.y), method)
        loader = DataLoader(TensorDataset(problem.x, problem.y), batch_size=9)
        parts = fit(problem.model(), loader, method)
        for got, expected in zip(by_output(parts), by_output(whole), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


def test_diagonal_laplace_inverts_the_diagonal_of_the_precision() -> None:
    exact = linear_regression()
    posterior = fit(exact.model, (exact.x, exact.y), bnn.Laplace(of=NEWTON, covariance="diag"))
    scale = posterior.approximation.tensors()["block.0.diagonal.scale"]
    torch.testing.assert_close(posterior.approximation.tensors()["centre"], exact.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(scale, exact.precision.diagonal().rsqrt(), rtol=1e-10, atol=0)


def test_kron_is_exact_where_the_curvature_is_a_kronecker_product() -> None:
    """One layer without a bias, whatever its outputs: H = I / noise^2 (x) X'X."""
    with isolated(4):
        x, y = torch.randn(30, 3).double(), torch.randn(30, 2).double()
        net = nn.Linear(3, 2, bias=False).double()
    model = bnn.BNN(net, bnn.priors.Normal(PRIOR), bnn.likelihoods.Gaussian(NOISE))
    posteriors = [fit(model, (x, y), bnn.Laplace(of=NEWTON, covariance=c)) for c in ("full", "kron")]
    full, kron = (p.approximation.output_covariance(torch.eye(6).double()[None]) for p in posteriors)
    torch.testing.assert_close(kron, full, rtol=1e-8, atol=1e-12)
    values = [p.settings["evidence"]["value"] for p in posteriors]
    assert values[0] == pytest.approx(values[1], rel=1e-10)


def gradient(problem: Problem, prior: float, noise: float, *, hyper: bool = True) -> tuple[float, float]:
    """Of log evidence (times hyper-prior HalfCauchy(1)) by the logarithms of both scales, by central differences."""

    def value(a: float, b: float) -> float:
        own = problem.evidence(a, b)
        return own - math.log1p(a * a) - math.log1p(b * b) if hyper else own

    h = 1e-5
    return tuple(
        (
            value(prior * math.exp(h * u), noise * math.exp(h * v))
            - value(prior * math.exp(-h * u), noise * math.exp(-h * v))
        )
        / (2 * h)
        for u, v in ((1, 0), (0, 1))
    )  # type: ignore[return-value]


def check_tuning(covariance: str = "full") -> None:
    """Trained and tuned in turn, the scales are where evidence times hyper-prior is largest: its gradient is 0."""
    problem = two_outputs()
    model = problem.model(dist.HalfCauchy(1.0), dist.HalfCauchy(1.0))
    method = bnn.Laplace(of=NEWTON, covariance=covariance, tune_every=1)
    posterior = fit(model, (problem.x, problem.y), method)
    hyper = posterior.settings["hyper"]
    prior, noise = hyper["prior.all.scale"], hyper["likelihood.scale"]
    assert max(map(abs, gradient(problem, prior, noise))) < 1e-3
    assert posterior.settings["evidence"]["value"] == pytest.approx(problem.evidence(prior, noise), rel=1e-6)
    values = posterior.draws(3)
    assert values["prior.all.scale"].tolist() == pytest.approx([prior] * 3)
    assert values["likelihood.scale"].tolist() == pytest.approx([noise] * 3)
    assert posterior.predict(problem.x).variance.aleatoric.unique().item() == pytest.approx(noise**2)


def test_tuning_finds_the_largest_evidence() -> None:
    check_tuning()


def test_control_tuning_without_the_determinant_fails(patch_line) -> None:
    patch_line(evidence_module.Evidence, "__call__", "- 0.5 * log_det", "- 0.0 * log_det")
    with pytest.raises(AssertionError):
        check_tuning()


def test_tuning_of_a_learned_noise_scale_and_of_factors_is_type_two_maximum_likelihood() -> None:
    """Without hyper-priors: a learned point, and a factor on a fixed prior scale, found from another start."""
    problem = two_outputs()
    posterior = fit(
        problem.model(3.0, "learned"),
        (problem.x, problem.y),
        bnn.Laplace(of=NEWTON, covariance="full", tune_every=1, scales="group"),
    )
    hyper = posterior.settings["hyper"]
    prior, noise = 3.0 * hyper["scale of all times"], hyper["likelihood.scale"]
    assert max(map(abs, gradient(problem, prior, noise, hyper=False))) < 1e-3
    assert float(posterior.points["likelihood.scale"]) == pytest.approx(noise)
    by_layer = fit(problem.model(), (problem.x, problem.y), bnn.Laplace(of=NEWTON, scales="layer"))
    assert list(by_layer.settings["hyper"]) == ["scale of  times"]  # the network is one layer, without a name


def test_one_noise_scale_an_output_is_tuned_for_each() -> None:
    """Two outputs that share nothing are two problems."""
    problem = two_outputs()
    scaled = Problem(problem.x, problem.y * torch.tensor([1.0, 3.0]).double(), problem.net)
    priors = {"bias": bnn.priors.Normal(PRIOR), "weight": bnn.priors.Normal(PRIOR)}
    noise = dist.HalfCauchy(torch.ones(2).double())
    model = bnn.BNN(problem.net, priors, bnn.likelihoods.Gaussian(noise))
    posterior = fit(model, (scaled.x, scaled.y), bnn.Laplace(of=NEWTON, covariance="full", tune_every=1))
    for j, scale in enumerate(posterior.settings["hyper"]["likelihood.scale"]):
        alone = Problem(scaled.x, scaled.y[:, [j]], problem.net)
        assert abs(gradient(alone, PRIOR, scale)[1]) < 1e-3
    kron = fit(model, (scaled.x, scaled.y), bnn.Laplace(of=NEWTON, tune_every=1))
    for a, b in zip(*(p.settings["hyper"]["likelihood.scale"] for p in (kron, posterior)), strict=True):
        assert a == pytest.approx(b, rel=0.05)  # the factors of weight and bias are blocks of their own


def test_hyper_parameters_stay_where_they_start_unless_tuned(regression) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    priors = {"0.*": bnn.priors.Normal(dist.HalfCauchy(1.0)), "2.*": bnn.priors.Normal(dist.HalfCauchy(1.0))}
    model = bnn.BNN(net, priors, bnn.likelihoods.Gaussian(0.3))
    start = {site.name: float(site.value) for site in model.sites().latents if site.name.startswith("prior")}
    fixed = fit(model, regression, bnn.Laplace(of="net", tune=None))
    assert fixed.settings["hyper"] == pytest.approx(start)
    # The prior scale of weights that are not random has no part in the evidence of the others.
    last = fit(model, regression, bnn.Laplace(of="net", weights="last_layer"))
    assert last.settings["hyper"]["prior.0.scale"] == pytest.approx(start["prior.0.scale"])
    assert last.settings["hyper"]["prior.2.scale"] != pytest.approx(start["prior.2.scale"])


def test_temperature_divides_curvature_and_likelihood() -> None:
    problem = two_outputs()
    method = bnn.MAP(**{**vars(NEWTON), "temperature": 4.0})
    posterior = fit(problem.model(), (problem.x, problem.y), bnn.Laplace(of=method, covariance="full"))
    inverse = torch.linalg.inv(problem.precision(noise=2 * NOISE))
    torch.testing.assert_close(by_output(posterior)[1], torch.block_diag(inverse, inverse), rtol=1e-8, atol=1e-12)


def test_the_empirical_fisher_is_the_sum_of_squared_gradients() -> None:
    problem = two_outputs()
    method = bnn.Laplace(of="net", covariance="full", curvature="empirical_fisher")
    posterior = fit(problem.model(), (problem.x, problem.y), method)
    residuals = (problem.y - problem.net(problem.x).detach()) / NOISE**2
    rows = torch.einsum("nk,np->nkp", residuals, problem.z).flatten(1)
    precision = rows.T @ rows + torch.eye(8).double() / PRIOR**2
    torch.testing.assert_close(by_output(posterior)[1], torch.linalg.inv(precision), rtol=1e-8, atol=1e-10)


def test_smooth_priors_count_with_their_own_curvature() -> None:
    """A Student-t prior on one parameter: -(log p)'' at the mode, by the formula."""

    class StudentT(bnn.priors.Normal):
        family = staticmethod(lambda loc, scale: dist.StudentT(4.0, loc, scale))

    problem = two_outputs()
    model = bnn.BNN(problem.net, StudentT(1.0), bnn.likelihoods.Gaussian(NOISE))
    posterior = fit(model, (problem.x, problem.y), bnn.Laplace(of=NEWTON, covariance="diag"))
    w = posterior.approximation.tensors()["centre"]
    curved = 5 * (4 - w * w) / (4 + w * w) ** 2  # of (v + 1) / 2 log(1 + w^2 / v), v = 4
    diagonal = (problem.z.T @ problem.z).diagonal() / NOISE**2
    likelihood = torch.cat([diagonal[:3].repeat(2), diagonal[3:].repeat(2)])
    scale = posterior.approximation.tensors()["block.0.diagonal.scale"]
    torch.testing.assert_close(scale.pow(-2), likelihood + curved, rtol=1e-9, atol=0)


class Counts(bnn.likelihoods.Likelihood):
    """Poisson with log-rates as outputs: a likelihood that says nothing of its curvature."""

    fields = frozenset({"mean", "variance"})

    def distribution(self, outputs, latents):
        return dist.Poisson(outputs.exp()).to_event(outputs.dim() - 1)

    def check(self, outputs, y):
        assert outputs.shape == y.shape


def test_a_likelihood_of_unknown_curvature_is_differentiated_twice() -> None:
    """For the Poisson, Fisher information and Hessian are both the rate."""
    problem = two_outputs()
    y = torch.poisson((0.1 * problem.y).exp())
    posterior = fit(
        bnn.BNN(problem.net, bnn.priors.Normal(1.0), Counts()), (problem.x, y), bnn.Laplace(of="net", covariance="diag")
    )
    rates = problem.net(problem.x).detach().exp()
    expected = torch.einsum("nk,np->kp", rates, problem.z.square())
    order = torch.cat([expected[:, :3].reshape(-1), expected[:, 3]])
    scale = posterior.approximation.tensors()["block.0.diagonal.scale"]
    torch.testing.assert_close(scale.pow(-2), order + 1, rtol=1e-8, atol=0)
    assert posterior.predict(problem.x).num_draws == 200  # no closed form


def test_linear_draws_have_the_moments_of_the_exact_form() -> None:
    """Draws of a nonlinear net, linearised: mean and covariance over s draws, within Monte Carlo error."""
    with isolated(5):
        net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        x, y = torch.randn(25, 2).double(), torch.randn(25, 2).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    posterior = fit(model, (x, y), bnn.Laplace(of=bnn.MAP(epochs=50), covariance="kron"))
    exact, num = posterior.predict(x[:4]), 4000
    drawn = posterior.predict(x[:4], draws=num).outputs
    spread = exact.spread.covariance[0]
    sd = spread.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((drawn.mean(0) - exact.outputs[0]).abs() < 5 * sd / math.sqrt(num)).all()
    assert ((drawn.std(0) / sd - 1).abs() < 5 / math.sqrt(2 * num)).all()
    # Joint over rows: the sample of y shares one draw of the weights, as the exact covariance between rows has it.
    weights, shared = posterior.linear.split()
    rows = jacobian(posterior.model, weights, shared, x[:4])[1].flatten(0, 1)
    between = posterior.approximation.output_covariance(rows[None])[0]
    sample = exact.sample(num).flatten(1)
    total = between + 0.25 * torch.eye(8).double()
    error = 5 * (total.diagonal().outer(total.diagonal()) + total.square()).sqrt() / math.sqrt(num)
    assert ((torch.cov(sample.T) - total).abs() < error).all()
    # A draw of the posterior, linearised by hand.
    values = posterior.draws(3)
    change = {name: values[name][1] - weights[name] for name in weights}
    flat = torch.cat([change[name].flatten() for name in weights])
    by_hand = exact.outputs[0] + (rows @ flat).view(4, 2)
    torch.testing.assert_close(posterior.predict(x[:4], values).outputs[1], by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("covariance", ["full", "kron", "diag"])
@pytest.mark.parametrize("predictive", ["linear", "draws"])
def test_save_load_and_seeds(tmp_path, covariance, predictive, classification) -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    method = bnn.Laplace(of=bnn.MAP(epochs=5), covariance=covariance, predictive=predictive)
    first, second = (fit(model, classification, method) for _ in range(2))
    x = classification[0]
    assert torch.equal(first.predict(x, 20).outputs, second.predict(x, 20).outputs)
    assert torch.equal(first.draws(5)["0.weight"][:3], first.draws(3)["0.weight"])
    back = bnn.load(first.save(tmp_path / "run"), model)
    assert torch.equal(back.predict(x, 20).outputs, first.predict(x, 20).outputs)
    assert back.settings["evidence"] == first.settings["evidence"]
    plain = torch.stack([first.net(i)(x) for i in range(3)]).detach()
    same = torch.allclose(plain, first.predict(x, 3).outputs, atol=1e-5)
    assert same == (predictive == "draws")
    assert first.to_arviz(x, classification[1]).posterior.sizes["draw"] > 1


def test_a_trained_posterior_or_network_is_taken_as_it_is(regression) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    mode = fit(model, regression, bnn.MAP(epochs=20))
    posterior = fit(model, regression, bnn.Laplace(of=mode))
    for name, value in mode.draws().items():
        if name != "likelihood.scale":
            torch.testing.assert_close(posterior.approximation.mode[name], value[0])
    torch.testing.assert_close(posterior.state["2.running_mean"], mode.state["2.running_mean"])
    trained = mode.net(0)
    again = fit(bnn.BNN(trained, model.prior, model.likelihood), regression, bnn.Laplace(of="net"))
    torch.testing.assert_close(again.predict(regression[0]).mean, trained(regression[0]).detach(), rtol=1e-5, atol=1e-6)


def test_learned_points_and_other_weights_stay_at_the_mode(regression) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model = bnn.BNN(net, {"0.bias": None, "*": bnn.priors.Normal(1.0)}, bnn.likelihoods.Gaussian(0.2))
    posterior = fit(model, regression, bnn.Laplace(of=bnn.MAP(epochs=5), covariance="diag", weights=["0.weight"]))
    values = posterior.draws(4)
    assert (values["0.weight"].std(0) > 0).all()
    assert (values["2.weight"] == values["2.weight"][0]).all()
    assert list(posterior.points) == ["0.bias"]
    assert posterior.predict(regression[0]).variance.epistemic.shape == (20, 1)


@pytest.mark.parametrize(
    "name", ["lstm", "attention", "shared module", "shared weight", "batch norm", "dropout", "conv"]
)
def test_every_network_has_a_diagonal_laplace_and_linear_predictions(name) -> None:
    net, x, y = make(name, 12)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.3))
    posterior = fit(model, (x, y), bnn.Laplace(of="net", covariance="diag"))
    exact = posterior.predict(x)
    num = 600
    drawn = posterior.predict(x, draws=num).outputs
    sd = exact.variance.epistemic.sqrt()
    assert ((drawn.mean(0) - exact.mean).abs() < 5 * sd / math.sqrt(num)).all()
    assert ((drawn.std(0) / sd - 1).abs() < 5 / math.sqrt(2 * num)).all()


def test_outputs_without_a_second_dimension(regression) -> None:
    x, y = regression
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    flat = nn.Sequential(*net, nn.Flatten(0))
    posteriors = [
        fit(bnn.BNN(f, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.3)), (x, t), bnn.Laplace(of="net"))
        for f, t in ((net, y), (flat, y.squeeze(1)))
    ]
    wide, narrow = (p.predict(x) for p in posteriors)
    assert narrow.mean.shape == (20,)
    for a, b in ((wide.variance.total, narrow.variance.total), (wide.quantile(0.9), narrow.quantile(0.9))):
        torch.testing.assert_close(a.squeeze(1), b)
    torch.testing.assert_close(wide.log_prob(y), narrow.log_prob(y.squeeze(1)))
    assert narrow.sample(7).shape == (7, 20)


def make_model(prior: object = None, net: nn.Module | None = None) -> bnn.BNN:
    net = net or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return bnn.BNN(net, prior or bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.3))


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        (lambda: make_model(bnn.priors.Laplace(1.0)), bnn.Laplace(of="net"), "no curvature"),
        (lambda: make_model(bnn.priors.Normal(1.0, centred=False)), bnn.Laplace(of="net"), "centred=True"),
        (make_model, bnn.Laplace(of="net", weights=["7.*"]), "matches no parameter"),
        (lambda: make_model({"*": None}), bnn.Laplace(of="net"), "no parameter has a prior"),
        (
            lambda: make_model(net=nn.Sequential(nn.Linear(3, 1), nn.Tanh())),
            bnn.Laplace(of="net", weights="last_layer"),
            "last layer",
        ),
        (
            lambda: make_model({"0.weight": bnn.priors.Normal(torch.rand(4, 3) + 0.5), "*": bnn.priors.Normal(1.0)}),
            bnn.Laplace(of="net"),
            "one prior precision",
        ),
        (lambda: make_model(bnn.priors.Laplace(1.0)), bnn.Laplace(of="net", scales="group"), "Gaussian priors"),
    ],
)
def test_what_cannot_be_done_is_told_in_words(regression, model, method, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit(model(), regression, method)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"of": "posterior"}, TypeError),
        ({"of": bnn.MeanField()}, TypeError),
        ({"covariance": "low_rank"}, ValueError),
        ({"weights": "first"}, ValueError),
        ({"tune": "later"}, ValueError),
        ({"tune_every": 0}, ValueError),
        ({"tune": None, "scales": "layer"}, ValueError),
    ],
)
def test_settings_that_make_no_sense(settings, error) -> None:
    with pytest.raises(error):
        bnn.Laplace(**settings)


def test_sample_weights_and_other_posteriors_are_refused(regression) -> None:
    with pytest.raises(ValueError, match="weight"):
        fit(make_model(), regression, bnn.Laplace(of="net"), weight=torch.ones(20))
    continuous = fit(make_model(), regression, bnn.Laplace(of="net"))
    with pytest.raises(ValueError, match="one draw"):
        fit(make_model(), regression, bnn.Laplace(of=continuous))
    with pytest.raises(TypeError, match="Laplace marginal likelihood"):
        log_marginal_likelihood(fit(make_model(), regression, bnn.MAP(epochs=1)), regression)


def test_a_mode_of_the_joint_density_is_no_way_round_a_learned_scale(regression) -> None:
    """MAP refuses it; Laplace sets it by the evidence."""
    model = make_model(bnn.priors.Normal(dist.HalfCauchy(1.0)))
    posterior = fit(model, regression, bnn.Laplace(of=bnn.MAP(epochs=60), tune_every=20))
    assert 0.05 < posterior.settings["hyper"]["prior.all.scale"] < 5
    assert posterior.history.epochs == 60


def test_kron_adds_the_prior_in_the_eigenbasis_exactly() -> None:
    with isolated(6):
        a, g = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    left, right = g.T @ g, a.T @ a
    block = KroneckerCurvature("w", Factor(left[None]), Factor(right[None]))
    one, prior = torch.ones(1).double(), torch.full((6,), 0.7, dtype=torch.float64)
    precision = torch.kron(left, right) + 0.7 * torch.eye(6).double()
    got = block.block(one, prior).project(torch.eye(6).double())
    torch.testing.assert_close(got @ got.T, torch.linalg.inv(precision), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(block.log_det(one, prior), torch.logdet(precision))
