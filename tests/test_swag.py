"""SWAG: its moments against the exact law of SGD on a quadratic, its draws against their stated covariance."""

import functools
import math

import pytest
import torch
from linear import linear_regression
from scipy import linalg, stats
from torch import Tensor, nn
from torch.distributions import constraints

import bnn
from bnn.approximations import Iterates
from bnn.inference.point import PointLoss
from bnn.inference.swag import SWAGLoss
from bnn.layout import Layout, Site

fit = functools.partial(bnn.fit, compile="graph", progress=False)

# ------------------------------------------------------------------------------------------------- the law of iterates

MEMBERS, STEPS, GATHERED, RANK = 1200, 240, 80, 10
MOMENTUM, NOISE = 0.5, 0.05


class NoisySGD(torch.optim.SGD):
    """SGD whose steps have Gaussian noise of a known size: on a quadratic, a linear Gaussian process."""

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[no-untyped-def]
        super().step(torch.enable_grad()(closure))
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(NOISE * torch.randn_like(p))


def expected_moments(precision: Tensor, rows: int, lr: float) -> tuple[Tensor, Tensor]:
    """E of SWAG's variances ``(3,)`` and of D D' / (K - 1), ``(3, 3)``, at stationarity.

    With the velocity v, x = (t, v) goes to A x + noise, whose covariance solves S = A S A' + Q, and whose covariance
    at a lag of l steps is A^l S. All that SWAG gathers are quadratic forms of that process.
    """
    h, one = precision / rows, torch.eye(3, dtype=torch.float64)
    a = torch.cat([torch.cat([one - lr * h, -lr * MOMENTUM * one], 1), torch.cat([h, MOMENTUM * one], 1)])
    q = torch.zeros(6, 6, dtype=torch.float64)
    q[:3, :3] = NOISE**2 * one
    s = torch.as_tensor(linalg.solve_discrete_lyapunov(a.numpy(), q.numpy()))
    lags = [s]
    for _ in range(GATHERED - 1):
        lags.append(a @ lags[-1])
    joint = torch.empty(GATHERED, GATHERED, 3, 3, dtype=torch.float64)
    for i in range(GATHERED):
        for j in range(GATHERED):
            joint[i, j] = lags[i - j][:3, :3] if i >= j else lags[j - i][:3, :3].T
    about_mean = torch.eye(GATHERED, dtype=torch.float64) - 1 / GATHERED
    variance = torch.einsum("ts,tu,suij->ij", about_mean, about_mean, joint).diagonal() / GATHERED
    running = torch.eye(GATHERED, dtype=torch.float64)
    running -= torch.ones(GATHERED, GATHERED).double().tril() / torch.arange(1, GATHERED + 1).unsqueeze(1)
    last = running[-RANK:]
    return variance, torch.einsum("ts,tu,suij->ij", last, last, joint) / (RANK - 1)


@functools.cache
def moments() -> tuple[Tensor, Tensor, Tensor]:
    """What independent runs gathered, all in one program: means, variances, D D' / (K - 1)."""
    problem = linear_regression()
    method = bnn.SWAG(
        epochs=STEPS, batch_size=None, lr=_lr(), average=GATHERED / STEPS, rank=RANK, every=1,
        optimizer=functools.partial(NoisySGD, momentum=MOMENTUM),
    )  # fmt: skip
    posterior = fit(problem.model, (problem.x, problem.y), bnn.Ensemble(members=MEMBERS, of=method, start="net"))
    parts = [part.tensors() for part in posterior.approximation.parts]  # type: ignore[attr-defined]
    mean, variance, deviations = (torch.stack([p[k] for p in parts]) for k in ("mean", "variance", "deviations"))
    return mean, variance, deviations.mT @ deviations / (RANK - 1)


def _lr() -> float:
    problem = linear_regression()
    return float(60 / torch.linalg.eigvalsh(problem.precision).max())


def check_moments() -> None:
    """Means over runs, with error bars from runs: beyond them with probability 1e-3, Bonferroni over 15 numbers.

    An error of 10 % in a standard deviation, 0.21 in a variance, has to be beyond them too.
    """
    problem = linear_regression()
    variance, low_rank = expected_moments(problem.precision, 60, _lr())
    mean, got_variance, got_low_rank = moments()
    quantile = float(stats.t.ppf(1 - 1e-3 / 15 / 2, MEMBERS - 1))
    for got, expected, name in (
        (mean, problem.mean, "mean"),
        (got_variance, variance, "variance"),
        (got_low_rank, low_rank, "low rank"),
    ):
        error = quantile * got.std(0) / math.sqrt(MEMBERS)
        assert ((got.mean(0) - expected).abs() < error).all(), f"{name}: {got.mean(0)} against {expected} +- {error}"
        if name != "mean":
            size = expected if expected.dim() == 1 else expected.diagonal()
            assert ((error if error.dim() == 1 else error.diagonal()) < 0.15 * size).all(), f"{name} is too noisy"


def test_moments_are_those_of_sgd_on_a_quadratic() -> None:
    moments.cache_clear()
    check_moments()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("after_step", "if step <= start", "if step <= 0"),
        ("after_step", "after = theta - mean", "after = theta"),
        ("after_step", "before = theta", "before = 1.1 * theta"),
        ("approximation", '/ params["count"]', '/ (0.8 * params["count"])'),
    ],
)
def test_control_moments_taken_wrongly_fail(patch_line, name: str, old: str, new: str) -> None:
    patch_line(SWAGLoss, name, old, new)
    moments.cache_clear()
    with pytest.raises(AssertionError, match="against"):
        check_moments()
    moments.cache_clear()


def test_moments_are_the_formulas_of_the_paper(regression) -> None:
    """Algorithm 1 of Maddox et al. on the very iterates, which a callback keeps: two steps an epoch."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    seen: list[Tensor] = []

    def keep(progress) -> None:
        seen.append(dict(progress.objective.named_parameters())["theta"].detach().clone())

    method = bnn.SWAG(epochs=20, batch_size=10, average=0.5, rank=4)
    tensors = fit(model, regression, method, callbacks=[keep]).approximation.tensors()
    taken = torch.stack(seen[10:])
    mean = taken.mean(0)
    running = taken.cumsum(0) / torch.arange(1, 11).unsqueeze(1)
    torch.testing.assert_close(tensors["mean"], mean)
    torch.testing.assert_close(tensors["variance"], taken.square().mean(0) - mean.square(), rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(tensors["deviations"], (taken - running)[-4:])


# ------------------------------------------------------------------------------------------------------------ its draws


def check_draws() -> None:
    """Covariance of 40,000 draws: an entry has variance (S_ii S_jj + S_ij^2) / n; 21 numbers, 5 deviations."""
    torch.manual_seed(3)
    layout = Layout([Site("w", torch.zeros(2, 2, dtype=torch.float64), constraints.real)])
    mean, variance = torch.randn(4).double(), torch.rand(4).double() + 0.5
    deviations = torch.randn(3, 4).double()
    n = 40_000
    draws = Iterates(layout, mean, variance, deviations).sample(n)["w"].flatten(1)
    expected = (variance.diag() + deviations.T @ deviations / 2) / 2
    error = 5 * ((expected.diagonal().outer(expected.diagonal()) + expected**2) / n).sqrt()
    assert (error.diagonal() < 0.15 * expected.diagonal()).all()
    assert ((draws.T.cov(correction=1) - expected).abs() < error).all(), "covariance"
    assert ((draws.mean(0) - mean).abs() < 5 * (expected.diagonal() / n).sqrt()).all(), "mean"


def test_draws_have_the_stated_mean_and_covariance() -> None:
    check_draws()


@pytest.mark.parametrize(
    ("old", "new"), [("self.variance / 2", "self.variance"), ("2 * (len(deviations) - 1)", "2 * len(deviations)")]
)
def test_control_draws_of_another_covariance_fail(patch_line, old: str, new: str) -> None:
    patch_line(Iterates, "sample", old, new)
    with pytest.raises(AssertionError, match="covariance"):
        check_draws()


def test_draw_i_does_not_depend_on_their_number(model, regression) -> None:
    posterior = fit(model, regression, bnn.SWAG(epochs=4, batch_size=5, rank=3))
    few, many = posterior.draws(3), posterior.draws(30)
    torch.testing.assert_close(few, {name: value[:3] for name, value in many.items()})


def test_same_seed_same_draws_saved_and_read_too(model, regression, tmp_path) -> None:
    method = bnn.SWAG(epochs=5, batch_size=5, rank=3)
    posterior, again, other = (fit(model, regression, method, seed=seed) for seed in (0, 0, 1))
    torch.testing.assert_close(posterior.draws(5), again.draws(5), rtol=0, atol=0)
    assert not torch.equal(posterior.draws(5)["0.weight"], other.draws(5)["0.weight"])
    loaded = bnn.load(posterior.save(tmp_path / "p"), model)
    torch.testing.assert_close(loaded.predict(regression[0]).outputs, posterior.predict(regression[0]).outputs)
    assert (posterior.draws(5)["likelihood.scale"] > 0).all()


@pytest.mark.inductor
def test_backends_agree(regression) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    method = bnn.SWAG(epochs=25, batch_size=10)
    draws = [
        bnn.fit(model, regression, method, compile=backend, progress=False).draws(5)  # type: ignore[arg-type]
        for backend in ("eager", "graph", "inductor")
    ]
    for other in draws[1:]:
        torch.testing.assert_close(other, draws[0], rtol=1e-4, atol=1e-6)


def test_the_density_is_that_of_the_unconstrained_numbers(model, regression) -> None:
    from bnn.data import as_batch

    batch = as_batch(*regression, model.likelihood, model.like)
    loss = bnn.SWAG().loss(model, 20, compile="eager")
    same = PointLoss(bnn.SWAG(), model, 20, "eager", coordinates="unconstrained")
    torch.testing.assert_close(loss.gradients(batch), same.gradients(batch))


def test_learned_points_end_at_their_average(regression) -> None:
    model = bnn.BNN(
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(),
        {"0.*": bnn.priors.Normal(1.0), "*": None},
        bnn.likelihoods.Gaussian(0.5),
    )
    seen: list[Tensor] = []

    def keep(progress) -> None:
        seen.append(progress.objective.points_vector.detach().clone())

    posterior = fit(model, regression, bnn.SWAG(epochs=10, batch_size=None, rank=2), callbacks=[keep])
    points = torch.cat([posterior.points[name].flatten() for name in ("2.weight", "2.bias")])
    torch.testing.assert_close(points, torch.stack(seen[5:]).mean(0))


# --------------------------------------------------------------------------------------------------------- in words


def test_batch_statistics_are_refused(regression) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"batch statistics of \['1'\] anew.*GroupNorm"):
        fit(bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian()), regression, "swag")


def test_a_fit_too_short_is_refused(model, regression) -> None:
    with pytest.raises(ValueError, match="fewer than two: more epochs"):
        fit(model, regression, bnn.SWAG(epochs=4, batch_size=None, every=2))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 1}, "rank is a whole number from 2"),
        ({"every": 0}, "every is a whole number from 1 or None"),
        ({"average": 0.0}, "average, the share"),
        ({"patience": 3}, "patience= would cut"),
    ],
)
def test_settings_are_checked(settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        bnn.SWAG(**settings)
