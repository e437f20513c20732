"""Monte Carlo dropout against the exact law of a linear network with Bernoulli masks."""

import functools
import math
import pickle

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import bnn
from bnn.approximations import dropout as dropout_module

fit = functools.partial(bnn.fit, compile="graph", progress=False)
RATE, DRAWS = 0.3, 4000


def linear(rate: float = RATE) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Dropout(rate), nn.Linear(4, 1)).double()


def model_of(net: nn.Module) -> bnn.BNN:
    return bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))


def data(rows: int = 24) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        x = torch.randn(rows, 4).double() + 0.5
        return x, x.sum(1, keepdim=True) + 0.5 * torch.randn(rows, 1).double()


def test_a_posterior_goes_through_pickle_in_memory() -> None:
    """As joblib sends it to another process. Tensors made inside a gradient could not."""
    x, y = data(5)
    posterior = fit(model_of(linear()), (x, y), bnn.MCDropout(epochs=2), seed=0)
    again = pickle.loads(pickle.dumps(posterior))
    torch.testing.assert_close(again.predict(x, 5).mean, posterior.predict(x, 5).mean, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------- the law of predictions


def check_predictions() -> None:
    """f = sum_j w_j x_j z_j / (1 - p) + b: mean x w + b, and between rows sum_j w_j^2 x_j x'_j p / (1 - p).

    Jointly over rows, since a draw is one network. Errors are those of means of independent draws; 20 numbers.
    """
    x, y = data(5)
    posterior = fit(model_of(linear()), (x, y), bnn.MCDropout(epochs=3, batch_size=None))
    w, b = posterior.draws(1)["1.weight"][0, 0], posterior.draws(1)["1.bias"][0]
    outputs = posterior.predict(x, DRAWS).outputs.squeeze(-1)
    mean = x @ w + b
    covariance = (x * w.square()) @ x.T * RATE / (1 - RATE)
    quantile = float(stats.norm.ppf(1 - 1e-3 / 20 / 2))
    error = quantile * outputs.std(0) / math.sqrt(DRAWS)
    assert ((outputs.mean(0) - mean).abs() < error).all(), "mean"
    centred = outputs - mean
    products = centred.unsqueeze(2) * centred.unsqueeze(1)
    error = quantile * products.std(0) / math.sqrt(DRAWS)
    assert (error.diagonal() < 0.15 * covariance.diagonal()).all()  # 10 % of a deviation is 0.21
    assert ((products.mean(0) - covariance).abs() < error).all(), "covariance"


def test_predictions_have_the_exact_moments() -> None:
    check_predictions()


@pytest.mark.parametrize(("old", "new"), [("(keep) / keep", "(keep)"), ("bernoulli(keep)", "bernoulli(keep - 0.05)")])
def test_control_other_masks_fail(patch_line, old: str, new: str) -> None:
    patch_line(dropout_module, "_mask", old, new)
    with pytest.raises(AssertionError, match=r"mean|covariance"):
        check_predictions()


def check_training(trained: float) -> None:
    """The expected loss of a linear net is ridge regression with w_j^2 sum_n x_nj^2 p / (1 - p) / (2 s^2) added.

    Averaged iterates of SGD are unbiased for a quadratic; 60 runs give the error bar.
    """
    x, y = data()
    of = bnn.MCDropout(epochs=300, batch_size=12, lr=0.02, optimizer=torch.optim.SGD, average=0.5, init="net")
    posterior = fit(model_of(linear(trained)), (x, y), bnn.Ensemble(members=60, of=of, start="net"))
    parts = [part.tensors() for part in posterior.approximation.parts]  # type: ignore[attr-defined]
    got = torch.stack([torch.cat([p["point/1.weight"].flatten(), p["point/1.bias"]]) for p in parts])
    wide = torch.cat([x, torch.ones(24, 1).double()], 1)
    extra = torch.cat([x.square().sum(0) * RATE / (1 - RATE), torch.zeros(1).double()])
    precision = (wide.T @ wide + extra.diag()) / 0.25 + torch.eye(5).double()
    expected = torch.linalg.solve(precision, wide.T @ y / 0.25).squeeze(-1)
    error = float(stats.t.ppf(1 - 1e-3 / 5 / 2, 59)) * got.std(0) / math.sqrt(60)
    assert (error < 0.5 * precision.inverse().diagonal().sqrt()).all()
    assert ((got.mean(0) - expected).abs() < error).all(), f"{got.mean(0)} against {expected} +- {error}"


def test_training_minimises_the_expected_loss() -> None:
    check_training(RATE)


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_control_training_at_another_rate_fails(rate: float) -> None:
    with pytest.raises(AssertionError, match="against"):
        check_training(rate)


# ------------------------------------------------------------------------------------------------- a draw is a function


@pytest.fixture
def fitted() -> tuple[bnn.Posterior, bnn.BNN, Tensor, Tensor]:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    model = model_of(net.double())
    x, y = data()
    return fit(model, (x, y), bnn.MCDropout(epochs=3, batch_size=8)), model, x, y


def test_a_draw_has_one_mask_for_all_rows(fitted) -> None:
    posterior, _, x, _ = fitted
    outputs = posterior.predict(x, 20).outputs
    for row in range(0, 24, 5):
        torch.testing.assert_close(posterior.predict(x[row : row + 1], 20).outputs, outputs[:, row : row + 1])
    torch.testing.assert_close(posterior.predict(DataLoader(TensorDataset(x), batch_size=7), 20).outputs, outputs)
    for at_once in (1, 3):
        torch.testing.assert_close(posterior.predict(x, 20, at_once=at_once).outputs, outputs)
    torch.testing.assert_close(posterior.predict(x, 7).outputs, outputs[:7])
    assert (outputs.std(0) > 0).all()
    assert not torch.equal(posterior.predict(x, 20, seed=1).outputs, outputs)


def test_a_net_of_a_draw_has_its_masks(fitted) -> None:
    posterior, _, x, _ = fitted
    outputs = posterior.predict(x, 5).outputs
    for i in range(5):
        net = posterior.net(i)
        torch.testing.assert_close(net(x), outputs[i])
    assert net.get_submodule("2").mask.shape == (1, 8)
    assert set(net.get_submodule("2").mask.unique().tolist()) <= {0.0, 2.0}
    net.train()
    assert not torch.equal(net(x), net(x))  # ordinary dropout again


def test_saved_read_and_exported(fitted, tmp_path) -> None:
    posterior, model, x, y = fitted
    loaded = bnn.load(posterior.save(tmp_path / "p"), model)
    torch.testing.assert_close(loaded.predict(x).outputs, posterior.predict(x).outputs, rtol=0, atol=0)
    tree = posterior.to_arviz(x, y, num=10)
    assert set(tree["posterior"].data_vars) == {name for name, _ in model.net.named_parameters()}
    expected = posterior.predict(x, 10).log_prob_draws(y)
    torch.testing.assert_close(torch.as_tensor(tree["log_likelihood"]["y"].values[0]), expected)
    weaker, without = nn.Sequential(*model.net), nn.Sequential(*model.net)
    weaker[2], without[4] = nn.Dropout(0.1), nn.Identity()
    with pytest.raises(ValueError, match=r"dropout rate of '2' was 0.5, this net has 0.1"):
        bnn.load(tmp_path / "p", model_of(weaker))
    with pytest.raises(ValueError, match=r"dropout rate of '4' was 0.2, this net has None"):
        bnn.load(tmp_path / "p", model_of(without))


def test_the_user_s_network_stays_as_it_was_and_seeds_mean_what_they_mean(fitted) -> None:
    posterior, model, x, y = fitted
    assert [type(module).__name__ for module in model.net].count("Dropout") == 2
    state = torch.get_rng_state()
    again = fit(model, (x, y), bnn.MCDropout(epochs=3, batch_size=8))
    other = fit(model, (x, y), bnn.MCDropout(epochs=3, batch_size=8), seed=1)
    eager = bnn.fit(model, (x, y), bnn.MCDropout(epochs=3, batch_size=8), compile="eager", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(again.draws(3), posterior.draws(3), rtol=0, atol=0)
    torch.testing.assert_close(eager.draws(3), posterior.draws(3), rtol=1e-4, atol=1e-6)
    assert not torch.equal(other.draws(3)["0.weight"], again.draws(3)["0.weight"])


def test_an_ensemble_of_them(fitted, tmp_path) -> None:
    _, model, x, y = fitted
    posterior = fit(model, (x, y), bnn.Ensemble(members=3, of=bnn.MCDropout(epochs=3)))
    draws = posterior.draws(9)
    assert torch.equal(draws["0.weight"][0], draws["0.weight"][3])  # of one member, and another mask
    assert len(draws["2.mask"].flatten(1).unique(dim=0)) > 5
    loaded = bnn.load(posterior.save(tmp_path / "p"), model)
    torch.testing.assert_close(loaded.predict(x, 9).outputs, posterior.predict(x, 9).outputs)
    torch.testing.assert_close(posterior.net(4)(x), posterior.predict(x, 9).outputs[4])


# ---------------------------------------------------------------------------------------------- networks of many kinds


class Encoder(nn.Module):
    def __init__(self, batch_first: bool = True, attention: float = 0.0) -> None:
        super().__init__()
        self.rows = 0 if batch_first else 1
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=batch_first)
        self.layer.self_attn.dropout = attention
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.rows == 0 else x.transpose(0, 1)
        return self.out(self.layer(x).mean(1 - self.rows))


class Recurrent(nn.Module):
    def __init__(self, inside: float = 0.0) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, num_layers=2, dropout=inside, batch_first=True)
        self.drop = nn.Dropout(0.4)
        self.out = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.lstm(x)[0][:, -1]))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.first, self.out = nn.Dropout(0.2), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(self.first(self.drop(x)), 0.5, self.training))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.first, self.out = nn.Dropout(0.2), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.first(self.drop(x))))


CONV = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout2d(0.4), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1)]


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention under vmap, in torch itself
@pytest.mark.parametrize(
    ("net", "shape", "masks"),
    [
        (nn.Sequential(*CONV), (1, 6, 6), {"2.mask": (1, 3, 1, 1)}),
        (
            nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Dropout1d(0.5), nn.Flatten(), nn.Linear(8, 1)),
            (8,),
            {"1.mask": (1, 2, 1)},
        ),
        (Encoder(), (4, 8), {f"layer.{n}.mask": s for n, s in (("dropout1", (1, 4, 8)), ("dropout", (1, 4, 16)))}),
        (Encoder(batch_first=False), (4, 8), {"layer.dropout2.mask": (4, 1, 8)}),
        (Recurrent(), (4, 8), {"drop.mask": (1, 6)}),
    ],
    ids=["conv", "1d", "attention", "rows second", "lstm"],
)
def test_masks_of_other_networks(net, shape, masks) -> None:
    x = torch.randn(12, *shape)
    y = x.flatten(1).mean(1, keepdim=True)
    posterior = bnn.fit(model_of(net), (x, y), bnn.MCDropout(epochs=2, batch_size=6), compile="eager", progress=False)
    draws = posterior.draws(4)
    assert {name: tuple(draws[name].shape[1:]) for name in masks} == masks
    outputs = posterior.predict(x, 4).outputs
    assert (outputs.std(0) > 0).all()  # the fused kernel of attention would leave the masks out
    torch.testing.assert_close(posterior.predict(x[3:5], 4).outputs, outputs[:, 3:5])
    torch.testing.assert_close(posterior.net(2)(x), outputs[2])


@pytest.mark.parametrize(
    ("net", "shape", "words"),
    [
        (nn.Linear(8, 1), (8,), "needs a network with dropout"),
        (nn.Sequential(nn.Dropout(0.0), nn.Linear(8, 1)), (8,), "needs a network with dropout"),
        (nn.Sequential(nn.AlphaDropout(0.2), nn.Linear(8, 1)), (8,), "'0' is a AlphaDropout"),
        (nn.Sequential(nn.Dropout(1.0), nn.Linear(8, 1)), (8,), "'0' drops everything"),
        (nn.Sequential(nn.Dropout1d(0.2), nn.Linear(8, 1)), (8,), "it needs 3 dimensions"),
        (Functional(), (8,), "random numbers outside its dropout modules"),
        (Encoder(attention=0.1), (4, 8), "inside attention"),
        (Recurrent(inside=0.1), (4, 8), "random numbers outside its dropout modules"),
        (Twice(), (8,), "'drop' is used 2 times"),
    ],
)
@pytest.mark.parametrize("backend", ["eager", "graph"])
def test_what_cannot_be_kept_is_refused_in_words(net, shape, words, backend) -> None:
    x = torch.randn(6, *shape)
    with pytest.raises(ValueError, match=words):
        bnn.fit(model_of(net), (x, torch.randn(6, 1)), "mc_dropout", compile=backend, progress=False)


def test_a_part_in_evaluation_mode_has_no_masks() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval(), nn.Dropout(0.5), nn.Linear(4, 1))
    posterior = fit(model_of(net), data(), bnn.MCDropout(epochs=2))
    assert [name for name in posterior.draws(2) if name.endswith("mask")] == ["1.mask"]
