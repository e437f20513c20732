"""Convergence of chains in function space, alignment of units, and the verdict on posteriors wrong on purpose."""

import importlib
import itertools
import math

import numpy as np
import pytest
import torch
from linear import NOISE, Exact, linear_regression
from scipy import stats
from torch import nn

import bnn
from bnn.analysis import FLAGS, align, compatibility, convergence, diagnose, hidden_layers, mixing, rhat_limit
from bnn.approximations import Chains, Draws, FullRank, Gaussian
from bnn.cli.verdict import diagnosed
from bnn.layout import Layout
from bnn.posterior import Posterior

module = importlib.import_module("bnn.analysis.convergence")


def posterior_of(model: bnn.BNN, approximation, **settings) -> Posterior:
    return Posterior(model, approximation, points={}, state=model.state(), settings={"method": "Made", **settings})


def layout_of(model: bnn.BNN) -> Layout:
    return Layout(model.sites().latents)


def exact_draws(problem: Exact, seed: int, chains: int = 4, draws: int = 100) -> Posterior:
    """Independent draws of the exact posterior of linear regression, in chains."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chains, draws, len(problem.mean), generator=generator, dtype=torch.float64)
    root = torch.linalg.cholesky(problem.covariance)
    return posterior_of(problem.model, Chains(layout_of(problem.model), problem.mean + noise @ root.T))


def exact_gaussian(problem: Exact, factor: float = 1.0) -> Posterior:
    """The exact posterior as a density, its standard deviations times a factor."""
    root = factor * torch.linalg.cholesky(problem.covariance)
    scale = root.diagonal()
    below = (root / scale.unsqueeze(1)).tril(-1)
    return posterior_of(
        problem.model, FullRank(layout_of(problem.model), problem.mean, below + torch.diag(scale.log()))
    )


def held_out(problem: Exact, seed: int, rows: int = 80):
    """New rows of the same truth: drawn from the posterior, which is exact over data and truth together."""
    generator = torch.Generator().manual_seed(1000 + seed)
    root = torch.linalg.cholesky(problem.covariance)
    size = len(problem.mean)
    truth = problem.mean + root @ torch.randn(size, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    noise = NOISE * torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    return x, x @ truth.unsqueeze(1) + noise


def split_rhat(values: np.ndarray) -> float:
    """By the formulas of Vehtari et al. (2021), section 4, for one quantity ``(chains, draws)``."""

    def plain(array: np.ndarray) -> float:
        half = array.shape[1] // 2
        parts = np.concatenate([array[:, :half], array[:, -half:]])
        ranks = stats.rankdata(parts).reshape(parts.shape)
        z = stats.norm.ppf((ranks - 0.375) / (parts.size + 0.25))
        within = z.var(1, ddof=1).mean()
        between = half * z.mean(1).var(ddof=1)
        return math.sqrt(((half - 1) / half * within + between / half) / within)

    return max(plain(values), plain(np.abs(values - np.median(values))))


def test_rhat_is_that_of_the_paper():
    values = np.random.default_rng(0).standard_normal((4, 60, 3)) + np.array([[0, 0, 1.0]] * 3 + [[0, 1.0, 0]])[:, None]
    found = mixing(torch.from_numpy(values).flatten(0, 1), (4, 60))
    assert found.rhat == pytest.approx([split_rhat(values[:, :, i]) for i in range(3)], rel=1e-6)


def check_false_alarms(repetitions: int = 150, level: float = 0.05) -> None:
    """As many alarms over independent draws as the level says: Bonferroni's bound, nearly reached."""
    values = torch.from_numpy(np.random.default_rng(1).standard_normal((4 * 40, repetitions * 6)))
    rhat = compatibility.rhat(values.reshape(4, 40, -1)).reshape(repetitions, 6)
    alarms = int((rhat.max(1) > module.rhat_limit(4, 40, 6)).sum())
    error = math.sqrt(level * (1 - level) / repetitions)
    assert level / 2 - 3 * error < alarms / repetitions < level + 3 * error, f"{alarms} of {repetitions}"


def test_the_limit_of_rhat_keeps_its_rate_of_false_alarms(monkeypatch):
    monkeypatch.setattr(module, "FALSE_ALARM", 0.05)
    check_false_alarms()


def test_control_a_limit_that_forgets_how_many_are_asked(monkeypatch, patch_line):
    monkeypatch.setattr(module, "FALSE_ALARM", 0.05)
    patch_line(module, "rhat_limit", "FALSE_ALARM / (2 * quantities)", "FALSE_ALARM")
    with pytest.raises(AssertionError):
        check_false_alarms()


def test_the_limit_is_that_of_the_paper_for_long_chains():
    assert rhat_limit(4, 5000, 100) == module.RHAT
    assert rhat_limit(4, 50, 100) > 1.05


def mlp(activation: type[nn.Module] = nn.Tanh, hidden: tuple[int, ...] = (5,)) -> bnn.BNN:
    torch.manual_seed(3)
    sizes = [2, *hidden]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return bnn.BNN(
        nn.Sequential(*layers, nn.Linear(sizes[-1], 1)), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.3)
    )


def around(model: bnn.BNN, centre: dict, shape: tuple[int, int], spread: float, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + spread * torch.randn(shape[0] * shape[1], *value.shape, generator=generator)
        for name, value in centre.items()
    }


def scrambled(values: dict, layer, *, signs: bool, of: torch.Tensor) -> dict:
    """The hidden units of each draw in another order, which depends on `of` (the chain, or the draw)."""
    result = {name: value.clone() for name, value in values.items()}
    h = values[layer.weight].shape[1]
    for i, group in enumerate(of.tolist()):
        generator = torch.Generator().manual_seed(group)
        order = torch.randperm(h, generator=generator)
        sign = torch.randint(2, (h,), generator=generator) * 2.0 - 1 if signs else torch.ones(h)
        result[layer.weight][i] = values[layer.weight][i][order] * sign[:, None]
        result[layer.bias][i] = values[layer.bias][i][order] * sign
        result[layer.following][i] = values[layer.following][i][:, order] * sign
    return result


def in_chains(values: dict, shape: tuple[int, int]) -> Draws:
    return Draws({name: value.unflatten(0, shape) for name, value in values.items()})


SHAPE = (4, 60)


def test_permuted_chains_are_one_function_and_converged():
    """Every chain has its hidden units in another order: weights disagree, functions do not."""
    model = mlp()
    centre = {site.name: site.value for site in model.sites().latents}
    values = around(model, centre, SHAPE, 0.05)
    (layer,) = hidden_layers(model)
    chain = torch.arange(SHAPE[0]).repeat_interleave(SHAPE[1])
    moved = scrambled(values, layer, signs=True, of=chain)
    x = torch.randn(30, 2)
    found = convergence(posterior_of(model, in_chains(moved, SHAPE)), x, torch.randn(30, 1))
    assert found.converged
    assert found.layers["0.weight"].quantiles()["rhat"][1] > 1.5
    aligned = in_chains(align(model, moved), SHAPE)
    after = convergence(posterior_of(model, aligned), x)
    assert after.layers["0.weight"].worst_rhat < rhat_limit(*SHAPE, 10)
    np.testing.assert_allclose(after.functions.rhat, found.functions.rhat, rtol=1e-3)


@pytest.mark.parametrize(("activation", "signs"), [(nn.Tanh, True), (nn.ReLU, False)])
def test_alignment_keeps_functions_and_undoes_any_order(activation, signs):
    model = mlp(activation, (5, 4))
    centre = {site.name: site.value for site in model.sites().latents}
    values = around(model, centre, (1, 40), 0.02)
    moved = values
    for k, layer in enumerate(hidden_layers(model)):
        moved = scrambled(moved, layer, signs=signs, of=100 * k + torch.arange(40))
    aligned = align(model, moved)
    x = torch.randn(20, 2)
    one, two = (posterior_of(model, in_chains(v, (1, 40))).predict(x).outputs for v in (values, aligned))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    # all draws lie as near to each other as they did before they were moved
    for name, value in values.items():
        assert aligned[name].std(0).mean() == pytest.approx(float(value.std(0).mean()), rel=1e-3)
        assert moved[name].std(0).mean() > 3 * value.std(0).mean() or name.endswith("4.bias")


def check_match_is_the_best() -> None:
    """Against all 3! 2^3 orders and signs."""
    alignment = importlib.import_module("bnn.analysis.alignment")
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        draw, reference = torch.randn(2, 3, 4, generator=generator).double()
        order, sign = alignment._match(draw, reference, signs=True)
        found = (draw[order] * sign[:, None] - reference).square().sum()
        best = min(
            float((draw[list(p)] * torch.tensor(s)[:, None] - reference).square().sum())
            for p in itertools.permutations(range(3))
            for s in itertools.product([1.0, -1.0], repeat=3)
        )
        assert float(found) == pytest.approx(best, rel=1e-9)


def test_the_match_is_the_best_of_all():
    check_match_is_the_best()


def test_control_a_match_without_signs(patch_line):
    patch_line(
        importlib.import_module("bnn.analysis.alignment"),
        "_match",
        "np.abs(products) if signs else products",
        "products",
    )
    with pytest.raises(AssertionError):
        check_match_is_the_best()


def test_networks_that_cannot_be_aligned_are_told_in_words():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    for net, word in (
        (Own(), "structure of its own"),
        (nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 1)), "LayerNorm"),
        (nn.Sequential(nn.Linear(2, 1)), "two or more linear layers"),
    ):
        with pytest.raises(ValueError, match=word):
            hidden_layers(bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.1)))
    assert (
        len(hidden_layers(bnn.BNN(bnn.nets.mlp(2, (4, 4)), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.1)))) == 2
    )


# The verdict.


@pytest.mark.parametrize("seed", range(20))
def test_exact_draws_raise_no_flag(seed):
    problem = linear_regression(rows=30, seed=seed)
    found = diagnose(exact_draws(problem, seed), problem.x, problem.y, held_out=held_out(problem, seed), seed=seed)
    assert found.good, str(found)
    assert found.convergence is not None
    assert found.width is not None
    assert found.surprise is not None
    assert "no objection" in str(found)


def test_an_exact_density_raises_no_flag():
    for seed in range(4):
        problem = linear_regression(seed=seed)
        found = diagnose(exact_gaussian(problem), problem.x, problem.y, held_out=held_out(problem, seed), seed=seed)
        assert found.good, str(found)
        assert found.importance is not None


def flags(posterior: Posterior, problem: Exact) -> tuple[str, ...]:
    return diagnose(posterior, problem.x, problem.y, held_out=held_out(problem, 0)).names


def test_draws_and_densities_that_are_too_narrow_are_caught():
    problem = linear_regression(features=20)
    assert flags(exact_gaussian(problem, 0.25), problem) == ("poor_approximation", "too_narrow")
    drawn = exact_draws(problem, 0)
    vectors = problem.mean + 0.5 * (drawn.approximation.vectors - problem.mean)
    assert flags(posterior_of(problem.model, Chains(layout_of(problem.model), vectors)), problem) == ("too_narrow",)


def test_a_posterior_too_narrow_in_function_space_is_caught_on_held_out_rows():
    """Few rows, many weights: what is not known matters more than the noise."""
    problem = linear_regression(rows=12, features=8)
    x, y = held_out(problem, 0)
    found = diagnose(exact_gaussian(problem, 0.1), problem.x, problem.y, held_out=(x, y))
    assert found.surprise.p_value < 1e-3, str(found.surprise)
    assert found.names.count("too_narrow") == 2
    assert diagnose(exact_gaussian(problem), problem.x, problem.y, held_out=(x, y)).good


def test_collapsed_layers_are_caught_by_name(model, regression):
    layout = layout_of(model)
    loc, log_scale = torch.zeros(layout.size), torch.zeros(layout.size)
    place = dict(zip(layout.names, torch.arange(layout.size).split(layout.sizes), strict=True))
    log_scale[place["2.weight"]], loc[place["2.weight"]] = -12.0, 0.5
    log_scale[place["2.bias"]], loc[place["2.bias"]] = -1.0, 0.5
    found = diagnose(posterior_of(model, Gaussian(layout, loc, log_scale)), *regression)
    by_name = {flag.name: flag.found for flag in found.flags}
    assert by_name["collapsed_to_point"] == "2.weight"
    assert by_name["collapsed_to_prior"] == "0.weight, 0.bias"


def test_chains_of_different_functions_are_caught():
    model = mlp()
    x, y = torch.randn(30, 2), torch.randn(30, 1)
    centre = {site.name: site.value for site in model.sites().latents}
    values = around(model, centre, SHAPE, 0.05)
    values["2.bias"][:60] += 0.5
    found = diagnose(posterior_of(model, in_chains(values, SHAPE)), x, y)
    assert "not_converged" in found.names
    assert "functions" in next(flag.found for flag in found.flags if flag.name == "not_converged")


def test_few_draws_and_divergences_are_named():
    problem = linear_regression()
    chains = exact_draws(problem, 0, draws=200).approximation
    slow = chains.vectors[:, :6].repeat_interleave(30, dim=1)
    names = flags(posterior_of(problem.model, Chains(chains.layout, slow)), problem)
    assert {"not_converged", "few_effective_draws"} & set(names)
    diverging = torch.zeros(4, 200)
    diverging[0, :3] = 1
    found = posterior_of(problem.model, Chains(chains.layout, chains.vectors, {"diverging": diverging}))
    assert flags(found, problem) == ("divergences",)


def test_the_verdict_is_readable_and_says_what_was_not_asked(quick, model, regression):
    posterior = quick(model, regression, bnn.MAP(epochs=2))
    said = str(diagnose(posterior, *regression))
    assert "MAP: collapsed_to_point" in said
    assert "expresses no uncertainty" in said
    assert "What was not asked" in said
    assert "no held-out rows" in said
    assert "by design" in said
    assert "neither chains to be compared nor a density" in said
    assert "spread of the weights over that of their prior, by layer: 0 (" in said
    with pytest.raises(ValueError, match="none of a sampler"):
        convergence(posterior, regression[0])
    problem = linear_regression(features=20)
    said = " ".join(str(diagnose(exact_gaussian(problem, 0.25), problem.x, problem.y)).split())
    assert "It does not mean that predictions are bad" in said
    assert all(name.isidentifier() for name in FLAGS)


def test_good_is_no_more_than_what_was_asked(quick, model, regression):
    """An ensemble without held-out rows: nothing is wrong, and nothing was asked."""
    posterior = quick(model, regression, bnn.Ensemble(members=3, of=bnn.MAP(epochs=2)))
    found = diagnose(posterior, *regression)
    assert found.good
    assert not found.judged
    assert "no objection to what was asked" in str(found)
    said, serious = diagnosed(posterior, regression, None, 0)
    assert "no objection to what could be asked. It could not be asked whether a few fitted networks" in said[0]
    assert serious
    assert set(found.skipped) == {"convergence, k-hat, width", "coverage"}


def test_data_that_do_not_fit_are_an_error_and_no_question_left_out(quick, model, regression):
    x, y = regression
    posterior = quick(model, regression, bnn.MAP(epochs=2))
    with pytest.raises(ValueError, match="y has shape"):
        diagnose(posterior, x, y.reshape(-1))
    with pytest.raises(ValueError, match="y has shape"):
        diagnose(posterior, x, y, held_out=(x, y.reshape(-1)))


def test_every_quantity_apart_is_named():
    problem = linear_regression()
    chains = exact_draws(problem, 0).approximation
    moved = chains.vectors + torch.tensor([0.0, 0.0, 0.0, 0.1]).double().reshape(4, 1, 1)
    found = diagnose(posterior_of(problem.model, Chains(chains.layout, moved)), problem.x, problem.y)
    said = next(flag.found for flag in found.flags if flag.name == "not_converged")
    assert "functions: R-hat" in said
    assert "log joint: R-hat" in said


def test_draws_that_are_not_finite_are_not_mixed():
    values = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    assert mixing(values, (4, 100)).mixed
    for broken in (math.nan, math.inf):
        values[7, 1] = broken
        found = mixing(values, (4, 100))
        assert not found.mixed
        assert found.worst_rhat == math.inf
        assert found.least_ess == 0
    still = mixing(torch.ones(400, 2), (4, 100))
    assert still.mixed
    assert str(still) == "the same in all draws"


def test_predictions_of_held_out_rows_go_over_draws_in_chunks(monkeypatch):
    density = importlib.import_module("bnn.analysis.density")
    verdict = importlib.import_module("bnn.analysis.verdict")
    problem = linear_regression()
    posterior = exact_draws(problem, 0)
    whole = verdict._predicted(posterior, problem.x, 0, 0)
    monkeypatch.setattr(density, "_CHUNK", 70 * len(problem.mean))
    parts = verdict._predicted(posterior, problem.x, 0, 0)
    torch.testing.assert_close(parts.outputs, whole.outputs)
    torch.testing.assert_close(whole.outputs, posterior.predict(problem.x).outputs)
    drawn = verdict._predicted(exact_gaussian(problem), problem.x, 1000, 0)
    assert drawn.num_draws == 1000
    assert len(drawn.outputs[:, 0].unique()) == 1000  # no chunk repeats another's draws


@pytest.mark.slow
def test_half_a_million_weights_and_200_draws():
    """Within a minute of one processor and 2 GiB: run as a process of its own, so that its memory is its own."""
    import subprocess
    import sys
    import textwrap

    code = """
    import resource, time, torch, bnn
    from bnn.approximations import Gaussian, Chains
    from bnn.analysis import diagnose
    from bnn.layout import Layout
    from bnn.posterior import Posterior
    torch.set_num_threads(1)
    net = torch.nn.Sequential(torch.nn.Linear(100, 620), torch.nn.ReLU(), torch.nn.Linear(620, 700), torch.nn.ReLU(),
                              torch.nn.Linear(700, 1))
    model = bnn.BNN(net, bnn.priors.Normal("fan_in"), bnn.likelihoods.Gaussian())
    layout = Layout(model.sites().latents)
    x, y = torch.randn(1000, 100), torch.randn(1000, 1)
    start = layout.flatten({site.name: site.value for site in layout.sites})
    for kind in ("density", "chains"):
        if kind == "density":
            approximation = Gaussian(layout, start, torch.full_like(start, -4.0))
        else:
            approximation = Chains(layout, start + 0.02 * torch.randn(4, 50, layout.size))
        posterior = Posterior(model, approximation, points={}, state=model.state(), settings={})
        began = time.process_time()
        diagnose(posterior, x, y, num=200, held_out=(x[:200], y[:200]))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(layout.size, kind, time.process_time() - began, memory)
        del posterior, approximation
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        size, _, seconds, memory = line.split()
        assert int(size) > 490_000
        assert float(seconds) < 60, line
        assert float(memory) < 2, line
