"""The ArviZ tree: its groups, its numbers, its files, and what ArviZ itself makes of it."""

import json
import math

import arviz_stats
import numpy as np
import pytest
import torch
import xarray
from methods import TABLE
from pyro import distributions as dist
from torch import nn

import bnn
from bnn.analysis import to_arviz
from bnn.approximations import Approximation, Draws, Gaussian
from bnn.layout import Layout
from bnn.posterior import Posterior

N = 12


def data(columns: int = 3, outputs: int = 2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, columns, generator=generator), torch.randn(N, outputs, generator=generator)


def make_model(net: nn.Module | None = None, prior=None, likelihood=None) -> bnn.BNN:
    net = net or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return bnn.BNN(net, prior or bnn.priors.Normal(1.0), likelihood or bnn.likelihoods.Gaussian())


def make_posterior(model: bnn.BNN, approximation: Approximation | None = None) -> Posterior:
    sites = model.sites()
    layout = Layout(sites.latents)
    start = layout.flatten({site.name: site.value for site in sites.latents})
    approximation = approximation or Gaussian(layout, start, torch.full_like(start, -2.0))
    points = {site.name: site.value for site in sites.points}
    settings = {"method": "Fake", "seed": 5, "lr": 0.1}
    return Posterior(model, approximation, points=points, state=model.state(), settings=settings)


def in_chains(model: bnn.BNN, chains: int, draws: int) -> Posterior:
    """A finite posterior: prior draws in chains."""
    torch.manual_seed(1)
    drawn = [model.prior_draw() for _ in range(chains * draws)]
    values = {name: torch.stack([d[name] for d in drawn]).unflatten(0, (chains, draws)) for name in drawn[0]}
    return make_posterior(model, Draws(values))


def test_groups_dimensions_and_attributes():
    x, y = data()
    tree = make_posterior(make_model()).to_arviz(x, y, predict_x=x[:5], num=7)
    dims = {group: {name: v.dims for name, v in tree[group].data_vars.items()} for group in tree.children}
    drawn = ("chain", "draw")
    assert dims == {
        "posterior": {
            "0.weight": (*drawn, "0.weight_dim_0", "0.weight_dim_1"),
            "0.bias": (*drawn, "0.bias_dim_0"),
            "2.weight": (*drawn, "2.weight_dim_0", "2.weight_dim_1"),
            "2.bias": (*drawn, "2.bias_dim_0"),
            "likelihood.scale": drawn,
        },
        "posterior_predictive": {"y": (*drawn, "row", "y_dim_0")},
        "log_likelihood": {"y": (*drawn, "row")},
        "observed_data": {"y": ("row", "y_dim_0")},
        "constant_data": {"x": ("row", "x_dim_0")},
        "predictions": {"y": (*drawn, "prediction_row", "y_dim_0")},
        "predictions_constant_data": {"x": ("prediction_row", "x_dim_0")},
    }
    assert tree["posterior_predictive"]["y"].shape == (1, 7, N, 2)
    assert tree["predictions"]["y"].shape == (1, 7, 5, 2)
    assert tree.attrs["inference_library"] == tree["posterior"].attrs["inference_library"] == "bnn"
    assert tree.attrs["method"] == "Fake"
    assert tree.attrs["seed"] == 5
    assert json.loads(tree.attrs["settings"]) == {"method": "Fake", "seed": 5, "lr": 0.1}
    assert set(json.loads(tree.attrs["versions"])) >= {"torch", "pyro-ppl", "bnn-toolkit"}


def test_numbers_are_those_of_the_posterior():
    x, y = data()
    posterior = make_posterior(make_model())
    tree = to_arviz(posterior, x, y, num=6, seed=3)
    drawn = posterior.draws(6, seed=3)
    for name, value in drawn.items():
        np.testing.assert_array_equal(tree["posterior"][name][0], value)
    np.testing.assert_array_equal(tree["constant_data"]["x"], x)
    np.testing.assert_array_equal(tree["observed_data"]["y"], y)


def test_log_likelihood_is_of_one_row_and_never_scaled():
    """Against the formula of the Gaussian density, for a network of one weight."""
    model = make_model(nn.Linear(1, 1, bias=False), likelihood=bnn.likelihoods.Gaussian(0.5))
    x, y = data(1, 1)
    tree = in_chains(model, 2, 3).to_arviz(x, y)
    weight = tree["posterior"]["weight"].values[..., 0, 0, None]
    z = (y.numpy()[:, 0] - weight * x.numpy()[:, 0]) / 0.5
    expected = -0.5 * z**2 - math.log(0.5 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(tree["log_likelihood"]["y"], expected, rtol=1e-5, atol=1e-5)


def test_predictive_draws_belong_to_the_draws_of_the_weights():
    """With next to no noise a predictive draw is the network's output under the draw in its place."""
    model = make_model(nn.Linear(1, 1, bias=False), likelihood=bnn.likelihoods.Gaussian(1e-6))
    x, y = data(1, 1)
    tree = in_chains(model, 2, 5).to_arviz(x, y, predict_x=x[:4])
    f = tree["posterior"]["weight"].values[..., 0] * x.numpy()[:, 0]
    np.testing.assert_allclose(tree["posterior_predictive"]["y"][..., 0], f, atol=1e-4)
    np.testing.assert_allclose(tree["predictions"]["y"][..., 0], f[..., :4], atol=1e-4)


def test_chains_are_kept_and_thinned_one_by_one():
    model = make_model()
    posterior = in_chains(model, 2, 5)
    values = posterior.approximation.tensors()["0.weight"]
    np.testing.assert_array_equal(to_arviz(posterior)["posterior"]["0.weight"], values)
    thinned = to_arviz(posterior, num=6)["posterior"]["0.weight"]
    np.testing.assert_array_equal(thinned, values[:, [0, 2, 4]])


@pytest.mark.parametrize("num", [0, 3, 12])
def test_a_number_of_draws_that_chains_cannot_share(num):
    with pytest.raises(ValueError, match="2 chains of 5 draws"):
        to_arviz(in_chains(make_model(), 2, 5), num=num)


def test_only_the_posterior_without_data():
    assert list(to_arviz(make_posterior(make_model())).children) == ["posterior"]


def test_one_of_x_and_y_is_an_error():
    x, y = data()
    posterior = make_posterior(make_model())
    with pytest.raises(ValueError, match="given y without x"):
        to_arviz(posterior, y=y)
    with pytest.raises(ValueError, match="given x without y"):
        to_arviz(posterior, x)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, left, right):
        return self.linear(torch.cat([left, right], dim=-1))


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_several_inputs_of_different_widths(form):
    x, y = data(5)
    names = ("x0", "x1") if form == "tuple" else ("left", "right")
    inputs = (x[:, :2], x[:, 2:]) if form == "tuple" else {"left": x[:, :2], "right": x[:, 2:]}
    tree = to_arviz(make_posterior(make_model(TwoInputs())), inputs, y, num=3, predict_x=inputs)
    for group in ("constant_data", "predictions_constant_data"):
        for name, width in zip(names, (2, 3), strict=True):
            assert tree[group][name].shape == (N, width)
            assert not tree[group][name].isnull().any()


def test_labels_of_classes():
    x, _ = data()
    y = torch.arange(N) % 2
    tree = to_arviz(make_posterior(make_model(likelihood=bnn.likelihoods.Categorical())), x, y, num=4)
    assert tree["log_likelihood"]["y"].shape == (1, 4, N)
    assert set(np.unique(tree["posterior_predictive"]["y"])) <= {0, 1}
    np.testing.assert_array_equal(tree["observed_data"]["y"], y)


def test_points_are_constants_and_noncentred_weights_are_there():
    prior = {"0.*": None, "*": bnn.priors.Normal(dist.HalfNormal(1.0), centred=False)}
    x, y = data()
    tree = to_arviz(make_posterior(make_model(prior=prior)), x, y, num=4)
    assert {"x", "0.weight", "0.bias"} == set(tree["constant_data"].data_vars)
    assert "0.weight" not in tree["posterior"]
    drawn = tree["posterior"]
    expected = drawn["prior.all.scale"].values[..., None, None] * drawn["2.weight.z"].values
    np.testing.assert_allclose(drawn["2.weight"], expected, rtol=1e-5)


@pytest.mark.parametrize("method", [*sorted(set(bnn.METHODS) - {"auto"}), "points"])
def test_every_method(method):
    x, y = data()
    prior = {"*": None} if method == "points" else None
    likelihood = bnn.likelihoods.Gaussian("learned") if method == "points" else None
    settings = bnn.MAP(epochs=1) if method == "points" else TABLE[method].quick
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 2)) if method == "mc_dropout" else None
    posterior = bnn.fit(make_model(net, prior, likelihood), (x, y), settings, compile="eager", progress=False)
    tree = posterior.to_arviz(x, y, predict_x=x)
    chains, draws = posterior.approximation.shape or (1, 200)
    assert tree["log_likelihood"]["y"].shape == (chains, draws, N)
    assert np.isfinite(tree["log_likelihood"]["y"]).all()
    assert tree.attrs["method"] == type(settings).__name__


def test_netcdf_keeps_everything(tmp_path):
    x, y = data()
    tree = in_chains(make_model(), 2, 3).to_arviz(x, y, predict_x=x[:5])
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as read:
        assert dict(read.attrs) == dict(tree.attrs)
        assert set(read.children) == set(tree.children)
        for group in tree.children:
            xarray.testing.assert_equal(read[group].to_dataset(), tree[group].to_dataset())
            assert all(read[group][name].dtype == v.dtype for name, v in tree[group].data_vars.items())


class Named(nn.Module):
    """A linear network whose weight has any name."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.zeros(3)))

    def forward(self, x):
        return x @ getattr(self, self.name)


def test_names_that_the_schema_needs_are_refused():
    """xarray would drop the variable without a word."""
    posterior = make_posterior(make_model(Named("draw")))
    with pytest.raises(ValueError, match=r"'draw' cannot be a variable.*'posterior'"):
        to_arviz(posterior)


def test_an_input_may_be_called_like_a_weight():
    """Both are there, each with its own dimensions."""
    x, _ = data()
    tree = to_arviz(make_posterior(make_model(Named("x"))), x, torch.zeros(N), num=2)
    assert tree["posterior"]["x"].shape == (1, 2, 3)
    assert tree["constant_data"]["x"].shape == (N, 3)
    points = make_posterior(make_model(Named("x"), prior={"*": None}))
    with pytest.raises(ValueError, match="both an input and a parameter"):
        to_arviz(points, x, torch.zeros(N))


def test_the_seed_decides_and_the_random_state_stays():
    x, y = data()
    posterior = make_posterior(make_model())
    before = torch.random.get_rng_state()
    first, again = (to_arviz(posterior, x, y, num=3, seed=8, predict_x=x) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    xarray.testing.assert_equal(first["posterior_predictive"].to_dataset(), again["posterior_predictive"].to_dataset())
    assert not np.array_equal(first["predictions"]["y"], first["posterior_predictive"]["y"])


def exact_line(seed: int, rows: int = 40, chains: int = 2, draws: int = 500):
    """Exact posterior draws of y = w x + noise, w ~ Normal(0, 1), noise 0.5; and its exact leave-one-out density."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, generator=generator, dtype=torch.float64)
    y = 0.7 * x + 0.5 * torch.randn(rows, generator=generator, dtype=torch.float64)

    def exact(x, y):
        precision = 1 + (x @ x) / 0.25
        return (x @ y) / 0.25 / precision, 1 / precision

    loo = torch.zeros(())
    for i in range(rows):
        kept = torch.arange(rows) != i
        mean, variance = exact(x[kept], y[kept])
        loo = loo + torch.distributions.Normal(mean * x[i], (variance * x[i] ** 2 + 0.25).sqrt()).log_prob(y[i])
    mean, variance = exact(x, y)
    noise = torch.randn(chains, draws, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model = make_model(nn.Linear(1, 1, bias=False).double(), likelihood=bnn.likelihoods.Gaussian(0.5))
    posterior = make_posterior(model, Draws({"weight": mean + variance.sqrt() * noise}))
    return posterior.to_arviz(x[:, None], y[:, None]), float(loo), float(mean), float(variance)


def test_summary_gives_the_exact_mean():
    tree, _, mean, variance = exact_line(seed=1)
    row = arviz_stats.summary(tree, round_to="none").loc["weight[0, 0]"]
    assert abs(row["mean"] - mean) < 5 * math.sqrt(variance / 1000)
    assert abs(row["r_hat"] - 1) < 0.05


def test_loo_gives_the_exact_leave_one_out_density():
    """The error bar is the spread over eight independent sets of draws; control: likelihoods scaled by two."""
    trees = [exact_line(seed) for seed in range(8)]
    exact = trees[0][1]
    estimates = np.array([arviz_stats.loo(tree).elpd for tree, *_ in trees])
    error = estimates.std(ddof=1) / math.sqrt(len(estimates))
    assert abs(estimates.mean() - exact) < 5 * error
    scaled = trees[0][0].copy(deep=True)
    scaled["log_likelihood"]["y"] = 2 * scaled["log_likelihood"]["y"]
    assert abs(arviz_stats.loo(scaled).elpd - exact) > 100 * error
