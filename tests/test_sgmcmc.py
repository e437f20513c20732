"""SGLD and SGHMC against their own stationary laws on Bayesian linear regression, with controls that break the code.

On all rows of a Gaussian posterior both are linear recursions with Gaussian noise, whose law is known exactly.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch
from linear import NOISE, PRIOR, Exact, linear_regression
from pyro import distributions as dist
from scipy import integrate, linalg, stats
from torch import Tensor, nn

import bnn
from bnn.approximations import Draws
from bnn.inference import Constant, Cyclical, Polynomial, RMSProp, chain_loop, sgmcmc
from bnn.inference import objective as objective_module
from bnn.inference import point as point_module
from bnn.inference.sgmcmc import StochasticGradientMCMC

CHAINS = 512
#: lr times the largest curvature of the loss per datum; 2 is where SGLD becomes unstable.
COARSE, FINE = 0.5, 0.03


@functools.cache
def exact(temperature: float = 1.0, features: int = 3) -> Exact:
    """The posterior proportional to p(y | w)^(1/T) p(w)."""
    problem = linear_regression(features=features)
    prior = torch.eye(features).double() / PRIOR**2
    precision = (problem.precision - prior) / temperature + prior
    mean = torch.linalg.solve(precision, (problem.x.T @ problem.y).squeeze(1) / NOISE**2 / temperature)
    return dataclasses.replace(problem, mean=mean, precision=precision)


def step_size(problem: Exact, share: float, temperature: float = 1.0) -> float:
    """The lr at which lr times the largest curvature of the loss per datum, T A / N, is `share`."""
    return float(share * len(problem.y) / temperature / torch.linalg.eigvalsh(problem.precision).max())


def start(problem: Exact) -> bnn.Posterior:
    """Exact draws, one a chain: the chains have to move from there to their own law, and not far."""
    noise = torch.randn(CHAINS, len(problem.mean), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    draws = problem.mean + noise @ torch.linalg.cholesky(problem.covariance).T
    values = {"weight": draws.view(1, CHAINS, 1, -1)}
    return bnn.Posterior(problem.model, Draws(values), points={}, state=problem.model.state())


def run(
    make: type[StochasticGradientMCMC],
    share: float,
    *,
    temperature: float = 1.0,
    features: int = 3,
    **settings: object,
) -> Tensor:
    """Draws ``(chains, draws, features)``, after five relaxation times of the slowest direction."""
    problem = exact(temperature, features)
    relaxation = 1 / (share * float(torch.linalg.cond(problem.precision)) ** -1)
    every = math.ceil(relaxation)
    options = {"lr": step_size(problem, share, temperature), "warmup": 5 * every, "keep_every": every} | settings
    method = make(
        num_samples=12,
        chains=CHAINS,
        init=start(problem),
        temperature=temperature,
        **({"batch_size": None} | options),  # type: ignore[arg-type]
    )
    posterior = bnn.fit(problem.model, (problem.x, problem.y), method, compile="graph", progress=False)
    return posterior.approximation.tensors()["vectors"]


def check_law(draws: Tensor, mean: Tensor, covariance: Tensor, bias: float = 0.0) -> None:
    """Mean and covariance of the draws, in units of the expected ones.

    The chains are independent: a mean over C of them deviates by more than t * sd / sqrt(C) with probability 1e-3, t
    the two-sided quantile of Student's t, Bonferroni over the entries. An error of 10 % in a standard deviation is one
    of 20 % in a variance, which has to be outside the tolerance.
    """
    root = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(root, (draws - mean).transpose(1, 2), upper=False)  # (C, 3, S)
    size = z.shape[1]
    first = z.mean(2)
    second = (z @ z.transpose(1, 2) / z.shape[2]).flatten(1)
    entries = size + size * (size + 1) // 2
    quantile = float(stats.t.ppf(1 - 1e-3 / entries / 2, len(z) - 1))
    for got, expected, name in (
        (first, torch.zeros(size).double(), "mean"),
        (second, torch.eye(size).double().flatten(), "covariance"),
    ):
        error = quantile * got.std(0) / math.sqrt(len(z)) + bias
        off = got.mean(0) - expected
        assert (off.abs() < error).all(), f"{name}: {off} against 0 +- {error}"
        assert (error < 0.15).all(), f"the {name} is too noisy to tell 10 % of a standard deviation: {error}"


def sgld_law(problem: Exact, lr: float, temperature: float = 1.0) -> Tensor:
    """``A^-1 (I - h A / 4)^-1``, h = 2 lr T / N: the fixed point of theta' = theta - (h/2) A theta + sqrt(h) xi."""
    h = 2 * lr * temperature / len(problem.y)
    return problem.covariance @ torch.linalg.inv(torch.eye(3).double() - h * problem.precision / 4)


def sghmc_law(problem: Exact, lr: float, friction: float) -> Tensor:
    """The fixed point of the linear recursion of (theta, v), by the discrete Lyapunov equation.

    Kick ``v -= K theta`` with K = lr A / N, half drift, ``v -> m v + s xi``, half drift.
    """
    n, one, zero = len(problem.y), torch.eye(3).double(), torch.zeros(3, 3).double()
    kick = torch.cat([torch.cat([one, zero], 1), torch.cat([-lr * problem.precision / n, one], 1)])
    drift = torch.cat([torch.cat([one, one / 2], 1), torch.cat([zero, one], 1)])
    damp = torch.block_diag(one, (1 - friction) * one)
    noise = torch.block_diag(zero, (1 - (1 - friction) ** 2) * lr / n * one)
    step, added = drift @ damp @ drift @ kick, drift @ noise @ drift.T
    return torch.as_tensor(linalg.solve_discrete_lyapunov(step.numpy(), added.numpy()))[:3, :3]


# ------------------------------------------------------------------------------------------------ laws, on all rows


def check_sgld(temperature: float = 1.0) -> None:
    problem = exact(temperature)
    law = sgld_law(problem, step_size(problem, COARSE, temperature), temperature)
    check_law(run(bnn.SGLD, COARSE, temperature=temperature), problem.mean, law)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sgld_has_its_own_discretised_law(temperature: float) -> None:
    check_sgld(temperature)


def test_the_check_tells_the_discretised_law_from_the_posterior() -> None:
    problem = exact()
    with pytest.raises(AssertionError, match="against"):
        check_law(run(bnn.SGLD, COARSE), problem.mean, problem.covariance)


def check_sghmc(**settings: object) -> None:
    problem = exact()
    law = sghmc_law(problem, step_size(problem, COARSE), 0.3)
    check_law(run(bnn.SGHMC, COARSE, friction=0.3, **settings), problem.mean, law)


def test_sghmc_has_its_own_discretised_law() -> None:
    check_sghmc()


@pytest.mark.parametrize("friction", [0.05, 0.3, 1.0])
def test_the_law_of_sghmc_is_the_posterior_at_any_step(friction: float) -> None:
    """What the splitting promises (Leimkuhler and Matthews 2013): no bias on a Gaussian, by the Lyapunov equation."""
    problem = exact()
    for share in (0.03, 0.5, 3.5):
        law = sghmc_law(problem, step_size(problem, share), friction)
        torch.testing.assert_close(law, problem.covariance, rtol=1e-7, atol=1e-12)


def check_preconditioned() -> None:
    """A fixed preconditioner is a change of coordinates: SGHMC's law stays the posterior."""
    problem = exact()
    # G is about 1 / sqrt(mean squared gradient per datum) = N / sqrt(A).
    largest = float(problem.precision.diagonal().sqrt().max())
    draws = run(bnn.SGHMC, COARSE, friction=0.3, lr=COARSE / largest / 2, preconditioner=RMSProp(), warmup=400)
    check_law(draws, problem.mean, problem.covariance)


def test_a_preconditioner_leaves_the_law_as_it_is() -> None:
    check_preconditioned()


@pytest.mark.parametrize(
    ("check", "kernel", "name", "old", "new"),
    [
        (check_sgld, "_Langevin", "step", "math.sqrt(2 * lr * heat)", "math.sqrt(2 * lr * heat) / 2"),
        (check_sgld, "_Langevin", "step", "math.sqrt(2 * lr * heat)", "1.1 * math.sqrt(2 * lr * heat)"),
        (check_sghmc, "_Underdamped", "step", "* lr * heat)", "* lr * heat) / 2"),
        (check_sghmc, "_Underdamped", "step", "(1 - self.momentum**2)", "(2 * (1 - self.momentum))"),
        (check_preconditioned, "_Underdamped", "step", "_root(metric)", "metric"),
    ],
)
def test_control_wrong_noise_fails(patch_line, check, kernel, name, old, new) -> None:
    """The last but one is the noise of Chen's Euler step, 2 alpha; the last the preconditioner without its root."""
    patch_line(getattr(sgmcmc, kernel), name, old, new)
    with pytest.raises(AssertionError, match="against"):
        check()


def test_control_the_temperature_left_out_of_the_noise_fails(patch_line) -> None:
    patch_line(chain_loop.ChainLoop, "_step", "self.method.temperature / self.loss.n_data", "1 / self.loss.n_data")
    with pytest.raises(AssertionError, match="against"):
        check_sgld(4.0)


def test_control_the_prior_counted_twice_fails(patch_line) -> None:
    """At a high temperature, where the prior has weight: at T = 1 the data outweigh it."""
    patch_line(objective_module.Objective, "_evaluate", "nll + temperature * kl", "nll + 2 * temperature * kl")
    with pytest.raises(AssertionError, match="against"):
        check_sgld(1000.0)


def test_the_check_of_that_control_is_green_without_it() -> None:
    check_sgld(1000.0)


# -------------------------------------------------------------------------------------------- small steps, minibatches


def check_small_steps(make: type[StochasticGradientMCMC], **settings: object) -> None:
    """Half of the rows a step, at a small step: the posterior.

    Relative to the posterior's variance, the step adds at most share / 2 (see `sgld_law`), and the noise of the
    gradient lr A (1 - n/N) / (2 n) = share / 2 at n = N / 2: its variance is that of a sum over n rows without
    replacement, its covariance per row about A / N. With friction f the second is multiplied by 1 / f.
    """
    problem = exact(features=1)  # one direction, so that the slowest is not slow
    friction = settings.get("friction", 1.0)
    assert isinstance(friction, float)
    draws = run(make, FINE, batch_size=30, features=1, **settings)
    check_law(draws, problem.mean, problem.covariance, bias=FINE / 2 + FINE / 2 / friction)


@pytest.mark.parametrize(("make", "settings"), [(bnn.SGLD, {}), (bnn.SGHMC, {"friction": 0.5})])
def test_small_steps_on_minibatches_have_the_posterior(make, settings) -> None:
    check_small_steps(make, **settings)


def test_control_n_over_n_left_out_fails(patch_line) -> None:
    patch_line(objective_module.Objective, "data_nll", "n_data=self.n_data", "n_data=None")
    with pytest.raises(AssertionError, match="against"):
        check_small_steps(bnn.SGLD)


# ------------------------------------------------------------------------------------------------ a constrained site


def check_noise_scale() -> None:
    """Six residuals of known mean, sigma ~ LogNormal(0, 1): mean and variance of log sigma by quadrature.

    The network's weight is multiplied by 0, and keeps its prior.
    """
    with bnn.random.isolated(3):
        residuals = 0.7 * torch.randn(6, 1).double()
    net = nn.Linear(1, 1, bias=False).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(dist.LogNormal(0.0, 1.0)))
    method = bnn.SGHMC(
        lr=0.02, friction=0.3, num_samples=12, keep_every=60, warmup=300, chains=CHAINS, batch_size=None, init="prior"
    )
    data = (torch.zeros(6, 1).double(), residuals)
    posterior = bnn.fit(model, data, method, compile="graph", progress=False)
    drawn = posterior.draws()["likelihood.scale"].log().view(CHAINS, 12, 1).double()
    square = float(residuals.square().sum())

    def density(u: float) -> float:
        return math.exp(-6 * u - square / 2 * math.exp(-2 * u) - u * u / 2)

    total, mean, second = (
        integrate.quad(lambda u, power=power: u**power * density(u), -5, 8)[0] for power in (0, 1, 2)
    )
    mean, second = mean / total, second / total
    check_law(drawn, torch.tensor([mean]).double(), torch.tensor([[second - mean**2]]).double())


def test_a_latent_noise_scale_has_its_posterior() -> None:
    check_noise_scale()


def test_control_the_jacobian_left_out_fails(patch_line) -> None:
    patch_line(point_module, "point_terms", "kl = kl - latents.log_abs_det(theta)", "pass")
    with pytest.raises(AssertionError, match="against"):
        check_noise_scale()


# -------------------------------------------------------------------------------------------------------- schedules


def test_a_constant_plan() -> None:
    plan = Constant().plan(3, 2, 4)
    assert plan.lr.tolist() == [1.0] * 11
    assert plan.noise.all()
    assert plan.kept.nonzero().flatten().tolist() == [6, 10]


def test_a_polynomial_plan_is_that_of_welling_and_teh() -> None:
    plan = Polynomial(power=0.6, offset=50.0).plan(5, 3, 10)
    a, b = 50**0.6, 50
    torch.testing.assert_close(plan.lr, torch.tensor([a * (b + t) ** -0.6 for t in range(35)], dtype=torch.float64))
    assert int(plan.kept.sum()) == 3
    assert bool(plan.noise.all())


def test_a_cyclical_plan_is_that_of_zhang_et_al() -> None:
    """Their equation (1), k from 1: alpha_k = alpha_0 / 2 (cos(pi mod(k - 1, K / M) / (K / M)) + 1)."""
    plan = Cyclical(cycles=3, exploration=0.75).plan(0, 6, 10)
    length = 80
    assert plan.steps == 3 * length
    expected = [(math.cos(math.pi * ((k - 1) % length) / length) + 1) / 2 for k in range(1, 3 * length + 1)]
    torch.testing.assert_close(plan.lr, torch.tensor(expected, dtype=torch.float64))
    noise = plan.noise.view(3, length)
    assert not noise[:, :60].any()
    assert noise[:, 60:].all()
    assert plan.kept.view(3, length).sum(1).tolist() == [2, 2, 2]
    assert not (plan.kept & ~plan.noise).any()


def test_the_exploration_has_no_noise_and_the_sampling_has() -> None:
    """On all rows, two chains from one place stay together as long as there is no noise."""
    problem = exact()
    apart = []
    method = bnn.SGLD(
        lr=1e-3, num_samples=2, keep_every=5, warmup=0, chains=2, batch_size=None, schedule=Cyclical(2, 0.5)
    )

    def look(progress: bnn.inference.Progress) -> None:
        theta = progress.objective.get_parameter("theta").detach()
        apart.append(float((theta[0] - theta[1]).abs().max()))

    bnn.fit(problem.model, (problem.x, problem.y), method, compile="eager", progress=False, callbacks=[look])
    assert len(apart) == 20
    assert apart[:5] == [0.0] * 5
    assert min(apart[5:]) > 0


# -------------------------------------------------------------------------------------------------- as any other fit

SMALL = {"num_samples": 5, "keep_every": 5, "warmup": 25, "chains": 2, "batch_size": 8, "lr": 1e-3}


@pytest.mark.parametrize("make", [bnn.SGLD, functools.partial(bnn.SGHMC, preconditioner=RMSProp())])
def test_eager_and_graph_agree_and_a_seed_is_a_seed(make) -> None:
    """50 steps on minibatches, in doubles."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    data = (torch.randn(20, 3), torch.randn(20, 1))
    fit = functools.partial(bnn.fit, model, data, make(**SMALL), progress=False)
    eager, graph, again, other = (
        fit(compile=backend, seed=seed).approximation.tensors()["vectors"]
        for backend, seed in (("eager", 1), ("graph", 1), ("graph", 1), ("graph", 2))
    )
    torch.testing.assert_close(eager, graph, rtol=1e-4, atol=1e-8)
    assert torch.equal(graph, again)
    assert not torch.equal(graph, other)


def test_chains_are_independent_and_the_record_is_there(model, regression, quick) -> None:
    posterior = quick(model, regression, bnn.SGLD(**SMALL))
    assert posterior.approximation.shape == (2, 5)
    assert not torch.equal(*posterior.approximation.tensors()["vectors"][:, -1])
    history = posterior.history
    assert history.loss.shape == history.nll.shape == history.kl.shape == (50,)
    assert history.backend == "eager"
    assert history.steps_per_epoch == 3
    assert not history.interrupted
    assert posterior.settings["method"] == "SGLD"
    assert posterior.settings["seed"] == 0
    assert posterior.predict(regression[0]).mean.shape == (20, 1)


def test_the_loss_is_the_negative_log_joint_without_dropout(regression, quick) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    x, y = (tensor.double() for tensor in regression)
    posterior = quick(model, (x, y), bnn.SGLD(**{**SMALL, "batch_size": None}))
    net.eval()
    joint = model.log_joint({name: p.detach() for name, p in net.named_parameters()}, x, y)
    torch.testing.assert_close(posterior.history.loss[0], -joint / 20)
    assert posterior.history.notes == ["dropout is off: the density is a function of the weights alone"]


def test_each_chain_starts_at_its_own_draw_of_the_prior(model, regression, quick) -> None:
    starts = []
    method = bnn.SGLD(**{**SMALL, "init": "prior", "lr": 1e-12, "batch_size": None, "temperature": 1e-12})
    quick(model, regression, method, callbacks=[lambda p: starts.append(p.objective.get_parameter("theta").clone())])
    assert (starts[0][0] - starts[0][1]).abs().max() > 0.1


@pytest.mark.parametrize("make", [bnn.SGLD, bnn.SGHMC])
def test_ctrl_c_keeps_what_there_is(model, regression, quick, make) -> None:
    def stop(progress: bnn.inference.Progress) -> None:
        if progress.step >= 40:
            raise KeyboardInterrupt

    posterior = quick(model, regression, make(**SMALL), callbacks=[stop])
    assert posterior.history.interrupted
    assert posterior.approximation.shape == (2, 3)
    whole = quick(model, regression, make(**SMALL)).approximation.tensors()["vectors"]
    assert torch.equal(posterior.approximation.tensors()["vectors"], whole[:, :3])


def test_ctrl_c_in_the_warm_up_ends_the_fit(model, regression, quick) -> None:
    def stop(progress: bnn.inference.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(model, regression, bnn.SGLD(**SMALL), callbacks=[stop])
    with pytest.raises(ValueError, match="before its first draw"):
        quick(model, regression, bnn.SGLD(**SMALL), callbacks=[lambda progress: True])


def test_chains_that_diverge_are_told(model, regression, quick) -> None:
    with pytest.raises(bnn.NonFiniteLossError, match="smaller lr"):
        quick(model, regression, bnn.SGLD(**{**SMALL, "lr": 1e3}))


def test_what_is_no_density_is_refused_in_words(regression, quick) -> None:
    def model(net: nn.Module, scale: object = None, prior: object = None) -> bnn.BNN:
        return bnn.BNN(net, prior or bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(scale))  # type: ignore[arg-type]

    plain = nn.Linear(3, 1)
    refused = [
        (model(plain, "learned"), {}, "have no prior"),
        (model(plain, prior={"weight": bnn.priors.Normal(1.0), "*": None}), {}, "bias"),
        (model(plain), {"weight": torch.ones(20)}, "weight="),
        (model(plain), {"validation": regression}, "takes no validation"),
        (model(nn.Sequential(plain, nn.BatchNorm1d(1))), {}, "never taken"),
    ]
    for bad, keywords, words in refused:
        with pytest.raises(ValueError, match=words):
            quick(bad, regression, bnn.SGLD(**SMALL), **keywords)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: bnn.SGLD(lr=0), "lr is positive"),
        (lambda: bnn.SGLD(num_samples=0), "num_samples is a whole number from 1"),
        (lambda: bnn.SGHMC(friction=0), "friction"),
        (lambda: bnn.SGLD(preconditioner=RMSProp(), warmup=0), "warm-up"),
        (lambda: bnn.SGLD(num_samples=10, schedule=Cyclical(cycles=4)), "cannot share equally"),
        (lambda: Polynomial(power=0.5), "power"),
        (lambda: Cyclical(exploration=1.0), "exploration"),
        (lambda: RMSProp(decay=1.0), "decay"),
    ],
)
def test_settings_that_make_no_sense_are_told(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()
