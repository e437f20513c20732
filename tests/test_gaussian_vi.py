"""FullRank and LowRank against exact posteriors; and what they, Flow and IVON have in common."""

import functools
import itertools
import math

import pytest
import torch
from linear import NOISE, PRIOR, Exact, linear_regression
from marks import some
from networks import NETWORKS, make
from pyro import distributions as dist
from scipy import stats
from torch import Tensor, nn

import bnn
from bnn.approximations import Correlated
from bnn.approximations import correlated as correlated_module
from bnn.inference import flow, gaussian, memory, natural
from bnn.inference import objective as objective_module
from bnn.layout import Layout
from bnn.random import isolated

SEEDS = 6


@functools.cache
def exact() -> Exact:
    return linear_regression()


def moments(q: Correlated) -> tuple[Tensor, Tensor]:
    root = q.deviation(torch.eye(q.noise_size, dtype=q.loc.dtype))
    return q.loc, root.T @ root


METHODS = {
    "full": bnn.FullRank(epochs=150, batch_size=30),
    "low, rank D": bnn.LowRank(epochs=400, batch_size=30, lr=0.1, rank=3),
}
#: What a check has to be able to reject: 10 % of a standard deviation, 20 % of a variance.
POWER = torch.tensor([0.1] * 3 + [0.2] * 6, dtype=torch.float64)
#: The bias of a finite number of steps.
BIAS = 0.2 * POWER


def in_units(mean: Tensor, covariance: Tensor) -> Tensor:
    """Mean, and lower triangle of the covariance, in units of the exact standard deviations: ``(9,)``."""
    sd = exact().covariance.diagonal().sqrt()
    return torch.cat([mean / sd, (covariance / sd / sd[:, None])[*torch.tril_indices(3, 3)]])


def found(method: bnn.inference.Method, seed: int) -> Tensor:
    problem = exact()
    posterior = bnn.fit(problem.model, (problem.x, problem.y), method, seed=seed, compile="graph", progress=False)
    return in_units(*moments(posterior.approximation))  # type: ignore[arg-type]


def compare(got: Tensor, limit: Tensor) -> None:
    expected = in_units(exact().mean, exact().covariance)
    assert ((got - expected).abs() < limit).all(), f"{got} against {expected} +- {limit}"


@pytest.mark.parametrize("name", some(METHODS, {"full"}))
def test_the_exact_posterior_is_found(name: str) -> None:
    """Mean and whole covariance, from minibatches of half the rows; error bars over seeds as in test_exact."""
    fits = torch.stack([found(METHODS[name], seed) for seed in range(SEEDS)])
    quantile = float(stats.t.ppf(1 - 1e-3 / fits.shape[1] / 2, SEEDS - 1))
    limit = quantile * fits.std(0) / math.sqrt(SEEDS) + BIAS
    compare(fits.mean(0), limit)
    assert (limit < POWER).all(), f"too noisy to tell 10 % of a standard deviation: {limit}"


def test_control_a_single_fit_is_within_what_has_to_be_rejected() -> None:
    compare(found(METHODS["full"], 0), POWER)


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"),
    [
        (objective_module.Objective, "data_nll", "n_data=self.n_data", "n_data=None"),
        (objective_module.Objective, "_evaluate", "total = nll + temperature * kl", "total = nll + 1.5 * kl"),
        (gaussian.CorrelatedLoss, "terms", "draw = q.loc + width * away", "draw = q.loc + 0.8 * width * away"),
        (gaussian.CorrelatedLoss, "terms", "path = path - (1 - share)", "path = path - (2 - share)"),
        (correlated_module.FullRank, "precision_times", "root.mT, half", "root.mT, 0.5 * half"),
    ],
)
def test_control_a_wrong_loss_is_found(owner: object, name: str, old: str, new: str, patch_line) -> None:
    patch_line(owner, name, old, new)
    with pytest.raises(AssertionError, match="against"):
        compare(found(METHODS["full"], 0), POWER)


def test_full_batches_have_no_noise_left() -> None:
    """The gradient has no variance where q is the posterior, so that the last iterate is exact."""
    problem = exact()
    posterior = bnn.fit(problem.model, (problem.x, problem.y), "full_rank", compile="graph", progress=False)
    mean, covariance = moments(posterior.approximation)  # type: ignore[arg-type]
    torch.testing.assert_close(mean, problem.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(covariance, problem.covariance, rtol=0.02, atol=2e-2 * float(covariance.max()))


def test_control_an_optimiser_that_goes_uphill_is_found(patch_line) -> None:
    patch_line(natural.FullRankOptimizer, "move", "change = -lr *", "change = lr *")
    with pytest.raises((AssertionError, bnn.NonFiniteLossError)):
        test_full_batches_have_no_noise_left()


def test_the_algebra_of_both_covariances() -> None:
    """Inverse, determinant and marginals against dense linear algebra; the density against torch's."""
    places = Layout(linear_regression(features=5).model.sites().latents)
    with isolated(0):
        loc, log_scale = torch.randn(2, 5, dtype=torch.float64)
        factor, rows = torch.randn(5, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    for q in (
        bnn.approximations.FullRank(places, loc, factor),
        bnn.approximations.LowRank(places, loc, log_scale, factor[:, :2]),
    ):
        _, covariance = moments(q)
        reference = torch.distributions.MultivariateNormal(loc, covariance)
        torch.testing.assert_close(q.precision_times(rows), torch.linalg.solve(covariance, rows.T).T)
        torch.testing.assert_close(q.precision_times(rows[0]), torch.linalg.solve(covariance, rows[0]))
        torch.testing.assert_close(q.half_log_det(), 0.5 * covariance.logdet())
        torch.testing.assert_close(q.marginal_scale(), covariance.diagonal().sqrt())
        torch.testing.assert_close(q.log_prob(rows), reference.log_prob(rows))
        torch.testing.assert_close(q.entropy(), reference.entropy())


def divergence(mean: Tensor, covariance: Tensor, problem: Exact) -> float:
    """KL(q || exact posterior) of a Gaussian: how far its ELBO is from the evidence."""
    away, product = mean - problem.mean, problem.precision @ covariance
    return float(0.5 * (product.trace() - len(mean) - product.logdet() + away @ problem.precision @ away))


def test_each_rank_is_nearer_than_the_one_before_and_than_mean_field() -> None:
    problem = linear_regression(features=4, rows=60)
    ladder = [divergence(problem.mean, problem.precision.diagonal().reciprocal().diag(), problem)]  # mean-field, exact
    for rank in (1, 2, 4):
        method = bnn.LowRank(rank=rank, lr=0.1, epochs=500)
        posterior = bnn.fit(problem.model, (problem.x, problem.y), method, compile="graph", progress=False)
        ladder.append(divergence(*moments(posterior.approximation), problem))  # type: ignore[arg-type]
    assert ladder[0] > ladder[1] > ladder[2] > ladder[3]
    assert ladder[3] < 0.01 < ladder[1]


@functools.cache
def with_latent_noise() -> tuple[bnn.BNN, Tensor, Tensor, Tensor, Tensor]:
    """The linear model with a half-Cauchy noise scale; mean and deviation of (w, log noise) by quadrature over it."""
    problem = exact()
    model = bnn.BNN(problem.model.net, bnn.priors.Normal(PRIOR), bnn.likelihoods.Gaussian())
    x, y = problem.x, problem.y.squeeze(-1)
    logs = torch.linspace(math.log(NOISE) - 1.5, math.log(NOISE) + 1.5, 1001, dtype=torch.float64)
    identity = torch.eye(len(y), dtype=torch.float64)
    weights, means, squares = [], [], []
    for log in logs:
        variance = (2 * log).exp()
        marginal = torch.distributions.MultivariateNormal(
            torch.zeros_like(y), covariance_matrix=variance * identity + PRIOR**2 * x @ x.T
        )
        weights.append(marginal.log_prob(y) + torch.distributions.HalfCauchy(1.0).log_prob(log.exp()) + log)
        precision = x.T @ x / variance + torch.eye(3, dtype=torch.float64) / PRIOR**2
        mean = torch.linalg.solve(precision, x.T @ y / variance)
        means.append(torch.cat([mean, log[None]]))
        squares.append(torch.cat([precision.inverse().diagonal() + mean**2, log[None] ** 2]))
    share = torch.stack(weights).softmax(0)
    mean = share @ torch.stack(means)
    return model, problem.x, problem.y, mean, (share @ torch.stack(squares) - mean**2).sqrt()


def test_a_latent_noise_scale_is_found() -> None:
    """The posterior is not Gaussian in the noise, so that this has a bias: below 10 % of a deviation at 60 rows."""
    model, x, y, mean, sd = with_latent_noise()
    posterior = bnn.fit(model, (x, y), "full_rank", compile="graph", progress=False)
    got, covariance = moments(posterior.approximation)  # type: ignore[arg-type]
    assert (((got - mean) / sd).abs() < 0.1).all()
    torch.testing.assert_close(covariance.diagonal().sqrt(), sd, rtol=0.1, atol=0)


# ------------------------------------------------------------------------------- what these methods have in common

ALL = {
    "full": bnn.FullRank(epochs=25, batch_size=10, draws=2),
    "low": bnn.LowRank(epochs=25, batch_size=10, draws=2, rank=2),
    "flow": bnn.Flow(epochs=25, batch_size=10, draws=2, transforms=2),
    "ivon": bnn.IVON(epochs=25, batch_size=10),
}


@functools.cache
def fitted(name: str, backend: str) -> bnn.Posterior:
    with isolated(0):
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        x = torch.randn(20, 3).double()
    model = bnn.BNN(net, bnn.priors.Normal(dist.HalfCauchy(1.0)), bnn.likelihoods.Gaussian())
    data = (x, x.sum(1, keepdim=True))
    return bnn.fit(model, data, ALL[name], compile=backend, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", some(ALL, {"low", "ivon"}))
def test_backends_agree_over_50_steps(name: str) -> None:
    eager, graph = fitted(name, "eager"), fitted(name, "graph")
    assert (eager.history.backend, graph.history.backend) == ("eager", "graph")
    assert len(graph.history.loss) == 50
    for key, value in eager.draws(5).items():
        torch.testing.assert_close(graph.draws(5)[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_draws(name: str) -> None:
    first = fitted(name, "graph")
    again = fitted.__wrapped__(name, "graph")
    for key, value in first.draws(5).items():
        assert torch.equal(again.draws(5)[key], value)
        assert torch.equal(first.draws(2)[key], value[:2])


@pytest.mark.parametrize("name", ALL)
def test_a_saved_posterior_is_the_same(name: str, tmp_path) -> None:
    posterior = fitted(name, "graph")
    posterior.save(tmp_path / "a")
    before = torch.get_rng_state()
    loaded = bnn.load(tmp_path / "a", posterior.model)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.approximation.kind == posterior.approximation.kind
    for key, value in posterior.draws(5).items():
        assert torch.equal(loaded.draws(5)[key], value)


@pytest.mark.parametrize("kind", ["full_rank", "low_rank", "flow"])
def test_damaged_tensors_are_refused_in_words(kind: str) -> None:
    posterior = fitted({"full_rank": "full", "low_rank": "low", "flow": "flow"}[kind], "graph")
    layout = Layout(posterior.model.sites().latents)
    tensors = posterior.approximation.tensors()
    for name in set(tensors) - {"architecture"}:
        with pytest.raises(ValueError, match="was saved with shape"):
            bnn.approximations.restored(kind, {**tensors, name: tensors[name][:-1]}, layout)
        with pytest.raises(ValueError, match="saved are"):
            bnn.approximations.restored(kind, {n: t for n, t in tensors.items() if n != name}, layout)


@pytest.mark.parametrize(
    ("name", "network"),
    some(itertools.product(ALL, NETWORKS), lambda pair: pair[0] == "ivon" or pair[1] in {"mlp", "batch norm"}),
)
def test_every_kind_of_network_is_fitted(name: str, network: str) -> None:
    if name == "flow" and network in ("attention", "lstm"):
        pytest.skip("a flow is for small networks")
    net, x, y = make(network, 16)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    method = {**ALL, "flow": bnn.Flow(draws=2, transforms=1, hidden=400)}[name]
    short = type(method)(**{**vars(method), "epochs": 2, "batch_size": 8})
    posterior = bnn.fit(model, (x, y), short, compile="eager", progress=False)
    assert posterior.history.loss.isfinite().all()
    assert posterior.predict(x, draws=3, at_once=1).mean.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_learned_points_are_trained_beside_the_posterior(name: str) -> None:
    with isolated(0):
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        x = torch.randn(20, 3)
    model = bnn.BNN(net, {"2.*": bnn.priors.Normal(1.0), "*": None}, bnn.likelihoods.Gaussian("learned"))
    posterior = bnn.fit(model, (x, x.sum(1, keepdim=True)), ALL[name], compile="eager", progress=False)
    assert set(posterior.points) == {"0.weight", "0.bias", "likelihood.scale"}
    assert not torch.equal(posterior.points["0.weight"], net[0].weight)
    assert abs(float(posterior.points["likelihood.scale"]) - 1) > 0.05


@pytest.mark.parametrize(
    ("method", "instead"),
    [(bnn.FullRank(), "LowRank or MeanField"), (bnn.Flow(), "LowRank"), (bnn.LowRank(rank=5), "a smaller rank")],
)
def test_sizes_that_cannot_work_are_refused_in_words(
    method, instead: str, model, regression, quick, monkeypatch
) -> None:
    monkeypatch.setattr(memory, "MEMORY", 100)
    with pytest.raises(ValueError, match=f"over 22 unknowns needs about .* GiB.* take {instead}"):
        quick(model, regression, method)


def test_a_net_too_large_for_full_rank_is_refused_before_memory_is_asked_for() -> None:
    net = nn.Linear(400, 400)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    for method in (bnn.FullRank(), bnn.Flow()):
        with pytest.raises(ValueError, match="over 160,400 unknowns needs about"):
            method.loss(model, 10)


@pytest.mark.parametrize(
    ("make_method", "message"),
    [
        (lambda: bnn.FullRank(draws=3), "antithetic"),
        (lambda: bnn.LowRank(rank=0), "rank is a whole number"),
        (lambda: bnn.LowRank(init_scale=0.0), "init_scale is positive"),
        (lambda: bnn.Flow(transforms=0), "transforms is a whole number"),
        (lambda: bnn.IVON(draws=3), "antithetic"),
        (lambda: bnn.IVON(betas=(0.9, 1.0)), "betas are two numbers"),
        (lambda: bnn.IVON(optimizer=torch.optim.SGD), "IVON is its own optimiser"),
    ],
)
def test_wrong_settings_are_refused_in_words(make_method, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method()


def test_a_rank_above_the_number_of_unknowns_is_refused(model, regression, quick) -> None:
    with pytest.raises(ValueError, match="rank is at most the number of unconstrained numbers, 22, not 30"):
        quick(model, regression, bnn.LowRank(rank=30))


def test_fewer_hidden_units_than_unknowns_are_refused(model, regression, quick) -> None:
    with pytest.raises(ValueError, match="hidden is at least the number of unconstrained numbers, 22, not 4"):
        quick(model, regression, bnn.Flow(hidden=4))


def test_flow_and_gaussian_share_the_memory_limit() -> None:
    assert flow.check_memory is gaussian.check_memory
