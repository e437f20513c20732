"""HMC, NUTS and ChEES against exact posteriors, reference draws, and targets that are skewed or have two modes."""

import dataclasses
import itertools
import json
import math
import zipfile
from functools import partial
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from chains import check_moments, student
from linear import linear_regression
from marks import some
from methods import MODE
from torch import Tensor, nn

import bnn
from bnn.inference import point
from bnn.inference.base import Run
from bnn.inference.mcmc import chees, hmc, machine, target
from bnn.inference.mcmc.adaptation import windows
from bnn.inference.mcmc.chees import van_der_corput
from bnn.inference.objective import Objective

POSTERIORDB = Path(__file__).parents[2] / "shared" / "data" / "posteriordb"
METHODS = {
    "nuts": bnn.NUTS(chains=128, warmup=100, num_samples=60),
    "hmc": bnn.HMC(chains=128, warmup=100, num_samples=100, max_steps=50),
    "chees": bnn.ChEES(chains=128, warmup=100, num_samples=150),
}


def chains_of(posterior: bnn.Posterior) -> Tensor:
    """``(chains, draws, D)``, unconstrained."""
    return posterior.approximation.tensors()["vectors"]


def check_exact(name: str) -> None:
    """At a large step, so that the energy errors that a sampler has to correct are there."""
    problem = linear_regression()
    method = dataclasses.replace(METHODS[name], target_accept=0.6)
    posterior = bnn.fit(problem.model, (problem.x, problem.y), method, compile="graph", progress=False, seed=3)
    check_moments(chains_of(posterior), problem.mean, problem.covariance)


CONTROLS = [
    ("nuts", machine.Machine, "_trajectory", 'noise * adapted["inverse_mass"].rsqrt()', "noise"),
    ("nuts", target.Target, "potential", "terms.nll / temperature", "0.7 * terms.nll"),
    ("hmc", hmc.RandomLength, "extend", "(uniform[0].log() < -leaf.error)", "(uniform[0].log() < -0.2 * leaf.error)"),
    ("chees", chees._Batch, "_finish", "torch.rand_like(u) < probability", "probability > 0.01"),
]


@pytest.mark.parametrize("name", some(METHODS, {"nuts", "chees"}))
def test_the_exact_posterior_at_a_large_step(name: str) -> None:
    check_exact(name)


@pytest.mark.parametrize(("name", "owner", "function", "old", "new"), some(CONTROLS, CONTROLS[1::2]))
def test_controls_of_the_exact_posterior(patch_line, name, owner, function, old, new) -> None:
    patch_line(owner, function, old, new)
    with pytest.raises(AssertionError, match="against"):
        check_exact(name)


class Weight(nn.Module):
    """A network that returns a function of its one weight in every row."""

    def __init__(self, function) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.w).expand(len(x), 1)


def quadrature(log_density) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and third central moment of a density on the line."""
    w = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    p = log_density(w).softmax(0)
    mean = (p * w).sum()
    return mean, (p * (w - mean) ** 2).sum(), (p * (w - mean) ** 3).sum()


#: name -> (function of the weight, likelihood scale, y): targets N(w; 0, 1) N(y; function(w), scale).
SHAPES = {
    # exp(w) seen with noise: a long tail to the left, which a sign error in the dynamics cannot survive.
    "skewed": (torch.exp, 0.5, 0.7),
    # w^2 seen with noise: modes 2.5 of their own standard deviations apart.
    "two modes": (lambda w: w**2, 0.85, 0.75),
}


@pytest.mark.parametrize(
    ("name", "shape"), some(itertools.product(["nuts", "chees"], SHAPES), [("nuts", "skewed"), ("chees", "two modes")])
)
def test_known_moments_of_other_shapes(name: str, shape: str) -> None:
    function, scale, y = SHAPES[shape]
    model = bnn.BNN(Weight(function), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(scale))
    data = (torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), y, dtype=torch.float64))
    mean, variance, third = quadrature(lambda w: -0.5 * w**2 - 0.5 * ((y - function(w)) / scale) ** 2)
    method = {
        "nuts": bnn.NUTS(chains=256, warmup=100, num_samples=60),
        "chees": bnn.ChEES(chains=256, warmup=100, num_samples=200),
    }[name]
    w = chains_of(bnn.fit(model, data, method, compile="graph", progress=False))[:, :, 0]
    quantities = torch.stack([w, (w - mean) ** 2, (w - mean) ** 3, (w > 0).double()]).mean(2)
    positive = 0.5 if shape == "two modes" else _mass_above_zero(function, scale, y)
    expected = torch.stack([mean, variance, third, torch.as_tensor(positive, dtype=torch.float64)])
    error = student(w.shape[0] - 1, 4) * quantities.std(1) / math.sqrt(w.shape[0])
    assert ((quantities.mean(1) - expected).abs() < error).all(), f"{quantities.mean(1)} against {expected} +- {error}"
    assert error[1] < 0.2 * variance


def _mass_above_zero(function, scale: float, y: float) -> float:
    w = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    p = (-0.5 * w**2 - 0.5 * ((y - function(w)) / scale) ** 2).softmax(0)
    return float(p[w > 0].sum())


def test_the_modes_of_the_second_shape_are_as_far_apart_as_said() -> None:
    function, scale, y = SHAPES["two modes"]
    w = torch.linspace(0, 12, 100_001, dtype=torch.float64)
    log_p = -0.5 * w**2 - 0.5 * ((y - function(w)) / scale) ** 2
    p = log_p.softmax(0)
    mean = (p * w).sum()
    deviation = (p * (w - mean) ** 2).sum().sqrt()
    assert 2.4 < 2 * mean / deviation < 4.5


def reference() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """posteriordb's sblri-blr: reference draws ``(chains, draws)`` by parameter, X and y."""
    if not POSTERIORDB.exists():
        pytest.skip("the reference draws of posteriordb are not here")
    with zipfile.ZipFile(POSTERIORDB / "sblri-blr.draws.json.zip") as folder:
        runs = json.loads(folder.read(folder.namelist()[0]))
    with zipfile.ZipFile(POSTERIORDB / "sblri.data.json.zip") as folder:
        data = json.loads(folder.read(folder.namelist()[0]))
    draws = {name: torch.tensor([run[name] for run in runs], dtype=torch.float64) for name in runs[0]}
    return draws, torch.tensor(data["X"]).double(), torch.tensor(data["y"]).double()[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_reference_draws_with_a_latent_noise_scale(name: str) -> None:
    """beta_j ~ N(0, 10), sigma ~ N+(0, 10), y ~ N(X beta, sigma): each method's chains against posteriordb's."""
    draws, x, y = reference()
    net = nn.Linear(x.shape[1], 1, bias=False).double()
    model = bnn.BNN(net, bnn.priors.Normal(10.0), bnn.likelihoods.Gaussian(dist.HalfNormal(10.0)))
    mode = bnn.fit(model, (x, y), MODE, progress=False)  # the data are far from unit scale: no warm-up to lose there
    method = dataclasses.replace(METHODS[name], init=mode, warmup=150, num_samples=150)
    posterior = bnn.fit(model, (x, y), method, compile="graph", progress=False)
    chains, count = posterior.approximation.shape
    values = posterior.draws()
    ours = torch.cat([values["weight"].flatten(1), values["likelihood.scale"][:, None]], dim=1)
    ours = ours.reshape(chains, count, -1)
    theirs = torch.stack([draws[f"beta[{j + 1}]"] for j in range(x.shape[1])] + [draws["sigma"]], dim=2)
    deviation = theirs.flatten(0, 1).std(0)
    centre = theirs.flatten(0, 1).mean(0)
    scaled = [
        torch.cat([z.mean(1), (z**2).mean(1)], dim=1)
        for z in ((ours - centre) / deviation, (theirs - centre) / deviation)
    ]
    difference = scaled[0].mean(0) - scaled[1].mean(0)
    variance = sum(part.var(0) / len(part) for part in scaled)
    error = student(min(len(part) for part in scaled) - 1, len(difference)) * variance.sqrt()
    assert (difference.abs() < error).all(), f"{difference} +- {error}"
    # The scale's tail is long: its moments are compared, but need more draws than this to be told to 10 %.
    others = [i for i in range(len(error)) if i % (x.shape[1] + 1) < x.shape[1]]
    assert (error[others] < 0.2).all(), f"too noisy to tell 10 % of a deviation: {error}"


def check_scale() -> None:
    """A noise scale alone, under its prior only in part: the Jacobian of its logarithm decides."""
    test_reference_draws_with_a_latent_noise_scale("nuts")


@pytest.mark.slow
def test_control_a_wrong_jacobian(patch_line) -> None:
    patch_line(point, "point_terms", "kl - latents.log_abs_det(theta)", "kl + 5 * latents.log_abs_det(theta)")
    with pytest.raises(AssertionError):
        check_scale()


SHORT = [partial(bnn.NUTS, max_depth=4), bnn.HMC, bnn.ChEES]


@pytest.mark.parametrize("method", some(SHORT, SHORT[:1]), ids=["NUTS", "HMC", "ChEES"])
def test_same_seed_same_draws_and_other_seeds_others(method, model, regression) -> None:
    settings = method(chains=3, warmup=5, num_samples=4)
    fits = [bnn.fit(model, regression, settings, seed=s, compile="graph", progress=False) for s in (0, 0, 1)]
    first, again, other = (chains_of(fit) for fit in fits)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (3, 4, model_size(model))


def model_size(model: bnn.BNN) -> int:
    return sum(site.value.numel() for site in model.sites().latents)


def doubled(model: bnn.BNN, data: tuple[Tensor, Tensor]) -> tuple[bnn.BNN, tuple[Tensor, ...]]:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return bnn.BNN(net, model.prior, model.likelihood), tuple(part.double() for part in data)


@pytest.mark.parametrize("method", [bnn.NUTS, bnn.HMC, bnn.ChEES])
def test_eager_and_graph_give_the_same_20_draws(method, model, regression) -> None:
    model, data = doubled(model, regression)
    settings = method(
        chains=2, warmup=0, num_samples=20, **({"max_depth": 5} if method is bnn.NUTS else {"max_steps": 20})
    )
    eager, graph = (
        chains_of(bnn.fit(model, data, settings, compile=backend, progress=False)) for backend in ("eager", "graph")
    )
    torch.testing.assert_close(graph, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.inductor
def test_inductor_gives_the_same_20_draws(model, regression) -> None:
    model, data = doubled(model, regression)
    settings = bnn.NUTS(chains=2, warmup=0, num_samples=20, max_depth=5)
    graph, inductor = (
        chains_of(bnn.fit(model, data, settings, compile=backend, progress=False)) for backend in ("graph", "inductor")
    )
    torch.testing.assert_close(inductor, graph, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_temperature_divides_the_log_likelihood() -> None:
    """p(y | w)^(1/T) p(w) of a linear-Gaussian model is the posterior under noise of variance T sigma^2."""
    problem = linear_regression()
    method = bnn.HMC(chains=128, warmup=100, num_samples=60, temperature=4.0, max_steps=50)
    posterior = bnn.fit(problem.model, (problem.x, problem.y), method, compile="graph", progress=False)
    precision = problem.x.T @ problem.x / (4 * 0.5**2) + torch.eye(3).double() / 1.3**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (problem.x.T @ problem.y / (4 * 0.5**2)).squeeze(-1)
    check_moments(chains_of(posterior), mean, covariance)


def test_statistics_reach_arviz(model, regression) -> None:
    posterior = bnn.fit(
        model, regression, bnn.NUTS(chains=2, warmup=10, num_samples=8, max_depth=4), compile="graph", progress=False
    )
    stats = posterior.to_arviz().sample_stats
    assert set(stats.data_vars) >= {
        "diverging",
        "energy",
        "tree_depth",
        "step_size",
        "acceptance_rate",
        "n_steps",
        "lp",
    }
    assert stats["diverging"].dtype == bool
    assert dict(stats.sizes) == {"chain": 2, "draw": 8}
    assert (stats["n_steps"] >= 1).all()


def test_save_and_load_keep_draws_and_statistics(model, regression, tmp_path) -> None:
    posterior = bnn.fit(model, regression, bnn.NUTS(chains=2, warmup=5, num_samples=6), compile="graph", progress=False)
    posterior.save(tmp_path / "run")
    again = bnn.load(tmp_path / "run", model)
    assert torch.equal(chains_of(again), chains_of(posterior))
    assert torch.equal(again.approximation.statistics["energy"], posterior.approximation.statistics["energy"])
    assert torch.equal(again.predict(regression[0]).mean, posterior.predict(regression[0]).mean)


def test_ctrl_c_keeps_the_draws_that_every_chain_has(model, regression, monkeypatch) -> None:
    from bnn.inference.mcmc.record import Record

    add = Record.add

    def interrupting(self, chain, draw, statistics):
        add(self, chain, draw, statistics)
        if min(self.counts) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(Record, "add", interrupting)
    posterior = bnn.fit(
        model, regression, bnn.NUTS(chains=2, warmup=4, num_samples=50), compile="graph", progress=False
    )
    assert posterior.history.interrupted
    assert posterior.approximation.shape == (2, 5)


def test_ctrl_c_while_a_draw_is_written_leaves_no_empty_one(model, regression, monkeypatch) -> None:
    from bnn.inference.store import DrawStore

    append, calls = DrawStore.append_to, []

    def interrupting(self, chain, draw):
        calls.append(chain)
        if len(calls) == 4:
            raise KeyboardInterrupt
        append(self, chain, draw)

    monkeypatch.setattr(DrawStore, "append_to", interrupting)
    method = bnn.HMC(chains=1, warmup=2, num_samples=10, max_steps=5)
    posterior = bnn.fit(model, regression, method, compile="graph", progress=False)
    assert posterior.approximation.shape == (1, 3)
    assert (chains_of(posterior) != 0).all()


def test_instance_norm_is_no_batch_statistic_and_half_precision_is_refused(regression) -> None:
    conv = nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.InstanceNorm1d(2), nn.Flatten(), nn.Linear(4, 1)
    )
    method = bnn.HMC(chains=1, warmup=0, num_samples=1, max_steps=2)
    instance = bnn.BNN(conv, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    assert bnn.fit(instance, regression, method, compile="eager", progress=False).num_draws == 1
    half = bnn.BNN(nn.Linear(3, 1).bfloat16(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    with pytest.raises(ValueError, match="single or double precision"):
        bnn.fit(half, regression, method, compile="eager", progress=False)
    with pytest.raises(ValueError, match="takes no validation"):
        bnn.fit(instance, regression, method, validation=regression, progress=False)
    with pytest.raises(ValueError, match="no epochs"):
        bnn.fit(instance, regression, method, callbacks=[print], progress=False)


def test_ctrl_c_during_the_warm_up_is_passed_on(model, regression, monkeypatch) -> None:
    from bnn.inference.mcmc.record import Record

    def interrupting(self, chain, draw, statistics):
        raise KeyboardInterrupt

    monkeypatch.setattr(Record, "add", interrupting)
    with pytest.raises(KeyboardInterrupt, match="warm-up"):
        bnn.fit(model, regression, bnn.HMC(chains=2, warmup=4, num_samples=5), compile="graph", progress=False)


def test_keep_every_thins(model, regression) -> None:
    fits = [
        bnn.fit(
            model, regression, bnn.HMC(chains=2, warmup=3, num_samples=n, keep_every=k), compile="graph", progress=False
        )
        for n, k in ((9, 1), (3, 3))
    ]
    every, third = (chains_of(fit) for fit in fits)
    assert len(third) == 2
    assert torch.equal(third, every[:, 2::3])


def test_chains_start_apart_and_from_a_posterior(model, regression) -> None:
    seen = target.Target(bnn.NUTS(), model, regression, Run(seed=0)).starts(3)
    assert seen.shape == (3, model_size(model))
    assert (seen[0] - seen[1]).abs().min() > 0
    near = target.Target(bnn.NUTS(init="net"), model, regression, Run(seed=0)).starts(3)
    assert (near - near.mean(0)).abs().max() < 1
    fitted = bnn.fit(model, regression, bnn.MeanField(epochs=2), compile="eager", progress=False)
    warm = target.Target(bnn.NUTS(init=fitted), model, regression, Run(seed=0)).starts(3)
    tensors = fitted.approximation.tensors()
    # Draws of that Gaussian: 6 deviations hold all of these numbers but with a probability of 1e-7.
    assert ((warm - tensors["loc"]).abs() < 6 * tensors["log_scale"].exp()).all()
    assert (warm[0] - warm[1]).abs().min() > 0


def test_what_is_no_density_is_refused_in_words(model, regression) -> None:
    x, y = regression
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    points = bnn.BNN(net, {"0.*": None, "*": bnn.priors.Normal(1.0)}, bnn.likelihoods.Gaussian(1.0))
    with pytest.raises(ValueError, match=r"0\.weight, 0\.bias have no prior"):
        bnn.fit(points, (x, y), "nuts", progress=False)
    with pytest.raises(ValueError, match="training weights"):
        bnn.fit(model, (x, y), "nuts", weight=torch.ones(20), progress=False)
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    untrained = bnn.BNN(norm, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    with pytest.raises(ValueError, match="batch statistics that were never taken"):
        bnn.fit(untrained, (x, y), "hmc", progress=False)
    with pytest.raises(ValueError, match="several chains"):
        bnn.ChEES(chains=1)
    with pytest.raises(ValueError, match="target_accept"):
        bnn.NUTS(target_accept=1.0)


def test_a_loader_is_read_whole(model, regression) -> None:
    x, y = regression
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    whole = target.Target(bnn.NUTS(), model, loader, Run(seed=0))
    assert torch.equal(whole.batch.x, x)
    assert torch.equal(whole.batch.y, y)


@pytest.mark.parametrize("warmup", [20, 100, 150, 500, 1000])
def test_windows_of_the_warm_up(warmup: int) -> None:
    """Disjoint, within the warm-up, a last stretch without, each window ends where the next begins."""
    counts, ends = windows(warmup)
    assert len(counts) == len(ends) == warmup
    places = [t for t, end in enumerate(ends) if end]
    assert places
    assert counts[places[-1]]
    assert not any(counts[places[-1] + 1 :])
    assert sum(ends) <= 1 + math.log2(warmup)


def test_the_windows_of_a_thousand_are_stans() -> None:
    _, ends = windows(1000)
    assert [t + 1 for t, end in enumerate(ends) if end] == [100, 150, 250, 450, 950]


def test_van_der_corput() -> None:
    assert [van_der_corput(n) for n in range(1, 8)] == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


def test_no_handler_runs_during_sampling(model, regression, monkeypatch) -> None:
    """Pyro runs while the step is captured, and never again."""
    calls = 0
    data_nll = Objective.data_nll

    def counting(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        return data_nll(self, *args, **kwargs)

    monkeypatch.setattr(Objective, "data_nll", counting)
    few = bnn.fit(model, regression, bnn.HMC(chains=2, warmup=2, num_samples=2), compile="graph", progress=False)
    first = calls
    bnn.fit(model, regression, bnn.HMC(chains=2, warmup=2, num_samples=12), compile="graph", progress=False)
    assert calls == 2 * first
    assert few.history.backend == "graph"
