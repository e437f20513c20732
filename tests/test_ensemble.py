"""Ensembles: anchored ones against the exact posterior, all of them against fits in turn."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from linear import NOISE, PRIOR, linear_regression
from networks import make
from pyro import distributions as dist
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bnn
from bnn.approximations import Gaussian, Mixture
from bnn.inference import ensemble as ensemble_module
from bnn.inference import optimizers as optimizers_module
from bnn.inference import replicated as replicated_module
from bnn.layout import Layout, Site

LBFGS = functools.partial(
    torch.optim.LBFGS, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15
)
fit = functools.partial(bnn.fit, compile="graph", progress=False)

# ------------------------------------------------------------------------------------------- anchored: the exact answer

MEMBERS = 2000
WEIGHT = torch.tensor([0.5, 3.0], dtype=torch.float64)


def optima(temperature: float = 1.0, weight: Tensor | None = None, **settings: object) -> Tensor:
    """The members' optima as standard normal vectors, if they are exact draws: ``(MEMBERS, 3)``.

    Two rows for three weights: along one direction the prior is all that is known, so that anchors and noise of a wrong
    scale both show. Coordinates are along the eigenvectors of the precision, the prior's direction first.
    """
    problem = linear_regression(rows=2)
    of = bnn.MAP(epochs=15, batch_size=None, lr=1.0, optimizer=LBFGS, temperature=temperature)
    method = bnn.Ensemble(members=MEMBERS, anchored=True, of=replace(of, **settings), start="net")  # type: ignore[arg-type]
    posterior = fit(problem.model, (problem.x, problem.y), method, weight=weight)
    rows = torch.ones(2, dtype=torch.float64) if weight is None else weight
    scaled = problem.x.T * rows / (NOISE**2 * temperature)
    precision = scaled @ problem.x + torch.eye(3, dtype=torch.float64) / PRIOR**2
    mean = torch.linalg.solve(precision, scaled @ problem.y).squeeze(-1)
    values, vectors = torch.linalg.eigh(precision)
    return (posterior.draws()["weight"].flatten(1) - mean) @ vectors * values.sqrt()


def check_exact(z: Tensor) -> None:
    """Means are Normal(0, 1 / K), sums of squares chi-squared of K degrees, mean products of sd 1 / sqrt(K).

    Nine comparisons, at 1e-3 together. An error of 10 % in a deviation moves a variance by 0.21 (or 0.19): the bounds
    have to be closer by two standard errors.
    """
    k, level = len(z), 1e-3 / 9 / 2
    low, high = (stats.chi2.ppf(p, k) / k for p in (level, 1 - level))
    assert low - 2 * math.sqrt(2 / k) > 0.9**2 - 0.07
    assert high + 2 * math.sqrt(2 / k) < 1.1**2
    bound = stats.norm.ppf(1 - level) / math.sqrt(k)
    assert (z.mean(0).abs() < bound).all(), f"means {z.mean(0)}, beyond {bound}"
    second = z.T @ z / k
    assert ((second.diagonal() > low) & (second.diagonal() < high)).all(), f"variances {second.diagonal()}"
    assert (second.triu(1).abs() < bound).all(), f"correlations {second.triu(1)}"


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "weight": WEIGHT}], ids=["plain", "tempered, weighted"])
def test_anchored_optima_are_draws_from_the_exact_posterior(settings: dict[str, object]) -> None:
    check_exact(optima(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("anchor_shifts", "return scale *", "return 0.9 * scale *"),
        ("anchor_shifts", "return scale *", "return 1.1 * scale *"),
        ("noisy_targets", "* (scale *", "* (0.9 * scale *"),
        ("noisy_targets", "* (scale *", "* (0.0 * scale *"),
    ],
)
def test_control_anchors_or_noise_of_a_wrong_scale_fail(patch_line, name: str, old: str, new: str) -> None:
    patch_line(ensemble_module, name, old, new)
    with pytest.raises(AssertionError, match="variances"):
        check_exact(optima())


@pytest.mark.parametrize("old", [" * (scale * objective.temperature.sqrt())", " / weight.sqrt()"])
def test_control_temperature_or_weights_left_out_of_the_noise_fail(patch_line, old: str) -> None:
    new = " * scale" if "temperature" in old else " / weight"
    patch_line(ensemble_module, "noisy_targets", old, new)
    with pytest.raises(AssertionError, match="variances"):
        check_exact(optima(2.0, WEIGHT))


def anchored_in_minibatches(batch_size: int | None) -> tuple[Tensor, Tensor]:
    """The optima under one seed, and their spread; batches of rows and whole sets have the same."""
    problem = linear_regression(rows=12)
    of = bnn.MAP(epochs=400, batch_size=batch_size, lr=0.03, average=0.5)
    if batch_size is None:
        of = bnn.MAP(epochs=15, batch_size=None, lr=1.0, optimizer=LBFGS)
    posterior = fit(problem.model, (problem.x, problem.y), bnn.Ensemble(members=20, anchored=True, of=of))
    return posterior.draws()["weight"].flatten(1), problem.covariance.diagonal().sqrt()


def test_noise_belongs_to_the_row_whatever_the_batches() -> None:
    """Averaged iterates of minibatches come near the optimum; noise drawn anew would average out to the mode."""
    exact, sd = anchored_in_minibatches(None)
    near, _ = anchored_in_minibatches(5)
    assert ((near - exact).abs() < 0.2 * sd).all()
    assert ((exact - exact.mean(0)).abs() / sd).max() > 1.5  # the members are apart


def test_control_noise_of_another_row_is_noticed(patch_line) -> None:
    patch_line(bnn.data.ArraySource, "member_batches", "(rows + first)", "(rows.flip(1) + first)")
    exact, sd = anchored_in_minibatches(None)
    near, _ = anchored_in_minibatches(5)
    assert not ((near - exact).abs() < 0.2 * sd).all()


def test_anchors_under_a_prior_with_a_centre() -> None:
    """One row of no weight: the optima are the anchors themselves, Normal(loc, scale)."""
    model = bnn.BNN(
        nn.Linear(1, 1).double(), bnn.priors.Normal(0.3, loc=2.0, centred=False), bnn.likelihoods.Gaussian(1.0)
    )
    of = bnn.MAP(epochs=5, batch_size=None, lr=1.0, optimizer=LBFGS)
    data = (torch.ones(1, 1), torch.ones(1, 1))
    posterior = fit(
        model, data, bnn.Ensemble(members=MEMBERS, anchored=True, start="net", of=of), weight=torch.zeros(1)
    )
    draws = torch.stack([posterior.draws()[name].flatten() for name in ("weight", "bias")], dim=1)
    check_exact((draws - 2.0) / 0.3)


@pytest.mark.parametrize(
    ("prior", "likelihood", "words"),
    [
        (bnn.priors.Laplace(1.0), bnn.likelihoods.Gaussian(1.0), "Gaussian priors with fixed scales.*weight"),
        (bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(), "Gaussian priors.*likelihood.scale"),
        (bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian("learned"), "a fixed noise scale"),
        (bnn.priors.Normal(dist.HalfCauchy(1.0)), bnn.likelihoods.Gaussian(1.0), "learned prior scale"),
    ],
)
def test_anchored_refuses_what_it_is_not_made_for(prior, likelihood, words) -> None:
    model = bnn.BNN(nn.Linear(3, 1), prior, likelihood)
    with pytest.raises(ValueError, match=words):
        fit(model, (torch.randn(4, 3), torch.randn(4, 1)), bnn.Ensemble(anchored=True))


def test_anchored_refuses_a_loader() -> None:
    model = bnn.BNN(nn.Linear(3, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    loader = DataLoader(TensorDataset(torch.randn(8, 3), torch.randn(8, 1)), batch_size=4)
    with pytest.raises(ValueError, match="a loader does not tell which rows"):
        fit(model, loader, bnn.Ensemble(anchored=True))


def test_anchored_under_labels_has_anchors_alone_and_says_so(classification) -> None:
    model = bnn.BNN(nn.Linear(3, 4), bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    method = bnn.Ensemble(members=3, anchored=True, start="net", of=bnn.MAP(epochs=100, lr=0.1, batch_size=None))
    posterior = fit(model, classification, method)
    assert "anchored under Categorical" in posterior.history.notes[0]
    assert (posterior.draws()["weight"].std(0) > 0.01).all()


# ---------------------------------------------------------------------------------------------- against fits in turn


class Points(nn.Module):
    """Batch statistics, and a part without a prior."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


PARTLY = {"body.0.*": bnn.priors.Normal(1.0, centred=False), "body.*": None, "head.*": bnn.priors.Normal(1.0)}


def partly(net: nn.Module | None = None) -> bnn.BNN:
    return bnn.BNN((net or Points()).double(), PARTLY, bnn.likelihoods.Gaussian("learned"))


def check_against_fits_in_turn(regression, quick) -> None:
    """From the same starts, on full batches, each member is the fit that it would be alone.

    Its learned points and batch statistics too; the norm of the gradient is limited for each by itself.
    """
    of = bnn.MAP(epochs=6, batch_size=None, lr=0.05, clip_norm=0.4)
    model = partly()
    starts = quick(model, regression, bnn.Ensemble(members=3, of=replace(of, epochs=1)))
    together = quick(model, regression, bnn.Ensemble(members=3, of=of, start=starts))
    draws = together.draws()
    for k in range(3):
        alone = quick(partly(starts.net(k)), regression, replace(of, init=bnn.inference.ensemble._single(starts, k, 3)))
        # The noise scale is a point of its own, which starts at 1 in both.
        for name, value in {**alone.draws(), **alone.points, **alone.state}.items():
            expected = value[0] if name in alone.draws() else value
            torch.testing.assert_close(
                draws[name][k], expected, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_members_are_the_fits_that_they_would_be_alone(regression, quick) -> None:
    check_against_fits_in_turn(regression, quick)


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"),
    [
        (optimizers_module, "clip", "dim=1).norm(dim=1)", "dim=1).norm() * torch.ones(members)"),
        (replicated_module.ReplicatedLoss, "approximation", "self.state[name][k]", "self.state[name][0]"),
    ],
)
def test_control_members_that_share_something_fail(patch_line, regression, quick, owner, name, old, new) -> None:
    patch_line(owner, name, old, new)
    with pytest.raises(AssertionError):
        check_against_fits_in_turn(regression, quick)


def test_members_see_the_rows_in_orders_of_their_own(model, regression) -> None:
    """From one start, full batches end in one place and minibatches in several."""
    for size, same in ((None, True), (5, False)):
        method = bnn.Ensemble(members=2, start="net", of=bnn.MAP(epochs=3, batch_size=size))
        weight = fit(model, regression, method).draws()["0.weight"]
        assert torch.allclose(weight[0], weight[1]) is same


def test_a_loader_is_read_once_a_member(model, regression) -> None:
    data = TensorDataset(*regression)
    method = bnn.Ensemble(members=2, start="net", of=bnn.MAP(epochs=3))
    weight = fit(model, DataLoader(data, batch_size=5, shuffle=True), method).draws()["0.weight"]
    assert not torch.allclose(weight[0], weight[1])
    weight = fit(model, DataLoader(data, batch_size=5), method).draws()["0.weight"]
    assert torch.allclose(weight[0], weight[1])


# --------------------------------------------------------------------------------------------------------- the starts


class Mixed(nn.Module):
    """A frozen part in evaluation mode, attention, and a parameter that no module draws."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False).eval()
        self.frozen[1].running_mean.fill_(0.3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.token = nn.Parameter(torch.full((4,), 0.7))
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.frozen(x) + self.token).unsqueeze(1)
        return self.out(self.attention(x, x, x)[0][:, 0])


def test_modules_draw_their_parameters_anew_and_the_rest_is_told() -> None:
    net = Mixed()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    tiny = bnn.MAP(epochs=1, lr=1e-12)
    posterior = fit(model, (torch.randn(6, 4), torch.randn(6, 1)), bnn.Ensemble(members=3, of=tiny))
    assert posterior.history.notes == [
        "no module draws ['token']: all members start from the network's own values there"
    ]
    draws = posterior.draws()
    torch.testing.assert_close(draws["token"], torch.full((3, 4), 0.7))
    for name in ("attention.in_proj_weight", "out.weight"):
        assert (draws[name].std(0) > 0).all(), name
    assert (draws["attention.out_proj.bias"].abs() < 1e-11).all()  # attention's own reset is the last word
    frozen = {name: value for name, value in posterior.net(2).named_parameters() if name.startswith("frozen")}
    for name, value in frozen.items():
        torch.testing.assert_close(value, dict(net.named_parameters())[name])
    torch.testing.assert_close(posterior.net(1).frozen[1].running_mean, torch.full((4,), 0.3))


def test_resets_have_the_law_of_the_module() -> None:
    """Linear draws from U(-1/sqrt(d), 1/sqrt(d)): Kolmogorov and Smirnov over all members."""
    model = bnn.BNN(nn.Linear(4, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    data = (torch.randn(6, 4), torch.randn(6, 1))
    posterior = fit(model, data, bnn.Ensemble(members=200, of=bnn.MAP(epochs=1, lr=1e-12)))
    weight = posterior.draws()["weight"].flatten().numpy()
    assert stats.kstest(weight, stats.uniform(-0.5, 1).cdf).pvalue > 1e-3
    prior = fit(model, data, bnn.Ensemble(members=200, start="prior", of=bnn.MAP(epochs=1, lr=1e-12)))
    assert stats.kstest(prior.draws()["weight"].flatten().numpy(), stats.norm.cdf).pvalue > 1e-3


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def test_a_network_that_cannot_be_reset_is_refused_in_words(regression) -> None:
    model = bnn.BNN(Bare(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    with pytest.raises(ValueError, match="start='prior'"):
        fit(model, regression, bnn.Ensemble())
    assert fit(model, regression, bnn.Ensemble(start="prior", of=bnn.MAP(epochs=2))).num_draws == 5


def test_an_ensemble_goes_on_where_another_ended(model, regression) -> None:
    first = fit(model, regression, bnn.Ensemble(members=2, of=bnn.MAP(epochs=2)))
    still = fit(model, regression, bnn.Ensemble(members=2, of=bnn.MAP(epochs=1, lr=1e-12), start=first))
    torch.testing.assert_close(still.draws(), first.draws())
    with pytest.raises(ValueError, match="has 2 draws, fewer than the 3 members"):
        fit(model, regression, bnn.Ensemble(members=3, start=first))


# ------------------------------------------------------------------------------------------------------ the posterior

OF = {
    "map": bnn.MAP(epochs=2, batch_size=8),
    "mean field": bnn.MeanField(epochs=2, batch_size=8),
    "guide": bnn.Variational(guide=AutoNormal, epochs=2, batch_size=8),
    "swag": bnn.SWAG(epochs=2, batch_size=5, rank=3),
}


def check_round_trip(posterior: bnn.Posterior, model: bnn.BNN, data: tuple[Tensor, Tensor], path) -> None:
    """Saved and read, its draws and predictions are the same; nets are those of the draws."""
    x, y = data
    loaded = bnn.load(posterior.save(path / "p"), model)
    prediction = posterior.predict(x, 6 if posterior.num_draws is None else None)
    if not isinstance(getattr(posterior.approximation, "parts", [None])[0], bnn.approximations.Guide):
        torch.testing.assert_close(loaded.draws(2), posterior.draws(2), rtol=0, atol=0)
        torch.testing.assert_close(loaded.predict(x, prediction.num_draws).outputs, prediction.outputs)
    net = posterior.net(1)
    torch.testing.assert_close(net(x), prediction.outputs[1])
    one_by_one = posterior.predict(x, prediction.num_draws, at_once=1)
    torch.testing.assert_close(one_by_one.outputs, prediction.outputs)
    tree = posterior.to_arviz(x, y, num=prediction.num_draws)
    assert set(tree["posterior"].data_vars) == {name for name in posterior.draws(2) if name not in model.state()}
    assert tree["log_likelihood"]["y"].shape[-1] == len(y)


@pytest.mark.parametrize("kind", OF)
def test_save_load_predict_and_export(kind, regression, tmp_path) -> None:
    data = tuple(t.double() for t in regression)
    net = Points() if kind != "swag" else nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model = partly(net) if kind != "swag" else bnn.BNN(net.double(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    backend = "eager" if kind == "guide" else "graph"
    posterior = bnn.fit(model, data, bnn.Ensemble(members=3, of=OF[kind]), compile=backend, progress=False)
    check_round_trip(posterior, model, data, tmp_path)
    assert posterior.num_draws == (3 if kind == "map" else None)
    assert posterior.settings["of"]["method"] == type(OF[kind]).__name__
    if kind != "swag":
        assert not posterior.points  # they belong to the draws
        assert {"likelihood.scale", "body.1.weight", "body.1.running_mean"} <= set(posterior.draws(2))


@pytest.mark.parametrize("kind", ["map", "mean field", "swag"])
def test_same_seed_same_draws_whatever_the_backend(kind, regression) -> None:
    """Over 50 steps in doubles, the graph keeps to 1e-4 of Pyro itself."""
    data = tuple(t.double() for t in regression)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 1)).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    method = bnn.Ensemble(members=3, of=replace(OF[kind], epochs=25, batch_size=10))
    draws = {
        (backend, seed): bnn.fit(model, data, method, compile=backend, seed=seed, progress=False).draws(
            6 if kind != "map" else None
        )
        for backend, seed in (("graph", 0), ("graph", 1), ("eager", 0))
    }
    again = fit(model, data, method).draws(6 if kind != "map" else None)
    torch.testing.assert_close(again, draws["graph", 0], rtol=0, atol=0)
    torch.testing.assert_close(draws["eager", 0], draws["graph", 0], rtol=1e-4, atol=1e-6)
    assert not torch.equal(draws["graph", 1]["0.weight"], again["0.weight"])


def test_draw_i_of_a_mixture_comes_from_member_i_modulo_k_whatever_their_number() -> None:
    layout = Layout([Site("w", torch.zeros(2), torch.distributions.constraints.real)])
    parts = [Gaussian(layout, torch.full((2,), 10.0 * k), torch.zeros(2)) for k in range(3)]
    mixture = Mixture(parts, {"b": torch.arange(3.0)})
    torch.manual_seed(1)
    values = mixture.sample(3000)
    member = torch.arange(3000) % 3
    assert torch.equal(values["b"], member.float())
    standard = (values["w"] - 10.0 * member.unsqueeze(1)).flatten()
    assert stats.kstest(standard.numpy(), stats.norm.cdf).pvalue > 1e-3
    for num in (1, 2, 3, 7):
        torch.manual_seed(1)
        assert torch.equal(mixture.sample(num)["w"], values["w"][:num])


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention under vmap, in torch itself
@pytest.mark.parametrize("name", ["conv", "batch norm", "lstm", "attention", "shared weight"])
@pytest.mark.parametrize("anchored", [False, True])
def test_networks_of_every_kind(name, anchored) -> None:
    net, x, y = make(name, 12)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    posterior = bnn.fit(
        model,
        (x, y),
        bnn.Ensemble(members=2, anchored=anchored, of=bnn.MAP(epochs=2, batch_size=6)),
        compile="eager",
        progress=False,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    torch.testing.assert_close(posterior.net(1)(x), posterior.predict(x).outputs[1])
    assert (posterior.predict(x).outputs.std(0) > 0).all()


def test_patience_goes_back_to_the_best_of_all_members(model, regression) -> None:
    x, y = regression
    method = bnn.Ensemble(members=3, of=bnn.MAP(epochs=200, lr=0.1, patience=5))
    posterior = fit(model, (x[:10], y[:10]), method, validation=(x[10:], y[10:]))
    history = posterior.history
    assert history.epochs < 200
    score = float(posterior.predict(x[10:]).log_prob(y[10:]).mean())
    assert score == pytest.approx(float(history.validation.max()), rel=1e-5)
    assert posterior.num_draws == 3


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"members": 0}, ValueError, "members is a whole number from 1"),
        ({"of": "map"}, TypeError, "of is a method that minimises a loss"),
        ({"of": bnn.MAP(init="prior")}, ValueError, "start="),
        ({"start": "reste"}, ValueError, "start is 'reset'"),
        ({"anchored": True, "of": bnn.MeanField()}, ValueError, "one of bnn.MAP, not of MeanField"),
    ],
)
def test_settings_are_checked_in_words(settings, error, words) -> None:
    with pytest.raises(error, match=words):
        bnn.Ensemble(**settings)


@pytest.mark.inductor
def test_inductor_gives_the_same(regression) -> None:
    data = tuple(t.double() for t in regression)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    method = bnn.Ensemble(members=3, of=bnn.MAP(epochs=25, batch_size=10))
    got, expected = (bnn.fit(model, data, method, compile=b, progress=False).draws() for b in ("inductor", "graph"))  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
