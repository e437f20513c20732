"""What is promised of networks besides that they fit: batch statistics, last layers, layer noise, precision."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from networks import KINDS, NETWORKS, make_kind
from test_networks_contract import NO_LAST_LAYER, model_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bnn
from bnn.capture import CaptureWarning
from bnn.data import Batch
from bnn.inference.laplace import selection
from bnn.inference.laplace.unknowns import Unknowns

ONE_STEP = bnn.MAP(epochs=1, batch_size=None, lr=1e-12)
BF16 = torch.bfloat16


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=BF16)


# Batch statistics: of the batch in training, saved ones in prediction.


@pytest.mark.parametrize("backend", ["eager", "graph"])
@pytest.mark.parametrize("name", ["batch norm", "conv, batch norm"])
def test_batch_statistics_are_those_of_torch(name: str, backend: str) -> None:
    """One step at a vanishing rate moves the buffers as one pass of the plain network in training mode does."""
    net, x, y = make_kind(KINDS[name], 12)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    plain = copy.deepcopy(net)
    plain.train()(x)
    posterior = bnn.fit(model_of(KINDS[name], net), (x, y), ONE_STEP, compile=backend, progress=False)
    for key, value in plain.named_buffers():
        torch.testing.assert_close(posterior.state[key], value, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        expected = plain.eval()(x)
    torch.testing.assert_close(posterior.predict(x).mean, expected, rtol=1e-4, atol=1e-5)
    # A row is predicted by itself, whatever else is asked for at the same time.
    torch.testing.assert_close(posterior.predict(x[:1]).mean, expected[:1], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_members_of_an_ensemble_have_batch_statistics_of_their_own() -> None:
    net, x, y = make_kind(KINDS["batch norm"], 12)
    method = bnn.Ensemble(members=2, of=ONE_STEP)
    posterior = bnn.fit(model_of(KINDS["batch norm"], net), (x, y), method, compile="eager", progress=False)
    first, second = (posterior.net(i) for i in range(2))
    assert not torch.equal(first[1].running_mean, second[1].running_mean)
    with torch.no_grad():
        expected = (first(x) + second(x)) / 2
    torch.testing.assert_close(posterior.predict(x).mean, expected, rtol=1e-5, atol=1e-6)


# What cannot be captured, and what vmap cannot map.


class Routed(nn.Module):
    """A mixture of two experts, each called if a row goes to it: a branch on values."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(3, 2), nn.ModuleList(nn.Linear(3, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        best = self.gate(x).argmax(1, keepdim=True)
        out = x.new_zeros(len(x), 1)
        for i, expert in enumerate(self.experts):
            if bool((best == i).any()):
                out = out + expert(x) * (best == i)
        return out


class Filled(nn.Module):
    """Fills a tensor of its own step by step: it can be captured, and vmap has no rule for it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.step, self.out = nn.BatchNorm1d(3), nn.Linear(1, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        filled = torch.zeros(len(x), 3)
        for i in range(3):
            filled[:, i] = torch.tanh(self.step(x[:, i : i + 1])).squeeze(1)
        return self.out(filled)


SEVERAL = {
    "map": bnn.MAP(epochs=2),
    "mean field, 2 draws": bnn.MeanField(epochs=2, draws=2),
    "ensemble": bnn.Ensemble(members=2, of=bnn.MAP(epochs=2)),
}


def check_by_draws(posterior: bnn.Posterior, x: Tensor) -> None:
    nets = [posterior.net(i) for i in range(posterior.num_draws or 3)]
    with torch.no_grad():
        expected = torch.stack([net(x) for net in nets]).mean(0)
    mean = posterior.predict(x, len(nets)).mean
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", SEVERAL)
def test_a_network_that_branches_on_values_runs_eagerly_and_it_is_said(method: str) -> None:
    model = bnn.BNN(Routed(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    x = torch.randn(6, 3)
    with pytest.warns(CaptureWarning, match="cannot be captured and runs through Pyro at every step"):
        posterior = bnn.fit(model, (x, torch.randn(6, 1)), SEVERAL[method], compile="graph", progress=False)
    assert posterior.history.backend == "eager"
    check_by_draws(posterior, x)


@pytest.mark.parametrize("method", SEVERAL)
def test_a_network_that_vmap_cannot_map_is_captured_all_the_same(method: str) -> None:
    model = bnn.BNN(Filled(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    x = torch.randn(6, 3)
    posterior = bnn.fit(model, (x, torch.randn(6, 1)), SEVERAL[method], compile="graph", progress=False)
    assert posterior.history.backend == "graph"
    told = [note for note in posterior.history.notes if "computed one by one: torch cannot map" in note]
    assert len(told) == (method != "map")
    check_by_draws(posterior, x)
    counts = [value for name, value in posterior.net(0).named_buffers() if "num_batches" in name]
    assert counts == [2]  # once an epoch, though vmap was tried


def test_a_prediction_that_vmap_cannot_map_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Untold(Filled):
        pass

    model = bnn.BNN(Untold(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    x = torch.randn(6, 3)
    posterior = bnn.fit(model, (x, torch.randn(6, 1)), bnn.MeanField(epochs=1), compile="eager", progress=False)
    for _ in range(2):
        posterior.predict(x, 5)
    assert sum("Untold are computed one by one" in line for line in caplog.messages) == 1


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        found, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.out(found.sum(1))


def test_packed_sequences_are_refused_in_words() -> None:
    model = bnn.BNN(Packed(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    x = torch.randn(6, 4, 3), torch.tensor([4, 2, 1, 3, 4, 2])
    with pytest.raises(RuntimeError, match="knows no packed sequences"):
        bnn.fit(model, (x, torch.randn(6, 1)), bnn.MAP(epochs=2), progress=False)


# The last layer.


class Scaled(nn.Module):
    """Its last module with weights is not what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 1), nn.Parameter(torch.ones(1) * 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x)


def last_layer(net: nn.Module, x: Tensor) -> str:
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    return selection.last_layer(model, Unknowns(model).weights.names, x)


def test_the_last_layer_is_found_within_a_network_with_weights_of_its_own() -> None:
    net, x, _ = make_kind(KINDS["multi-head attention"], 3)
    assert "query" in dict(net.named_parameters())
    assert isinstance(x, Tensor)
    assert last_layer(net, x) == "out"


def test_control_the_network_itself_is_no_last_layer(patch_line) -> None:
    patch_line(selection, "last_layer", "last.pop()", "break")
    with pytest.raises(ValueError, match="has others within it"):
        test_the_last_layer_is_found_within_a_network_with_weights_of_its_own()


def test_a_network_that_changes_what_its_last_module_gives_has_none() -> None:
    with pytest.raises(ValueError, match=r"has others within it: \['layer'\]"):
        last_layer(Scaled(), torch.randn(2, 3))


# Noise in the layers.

#: By kind: parameters (by prefix) that local reparameterisation reaches, and those that flipout reaches besides.
REACHED: dict[str, tuple[list[str], list[str]]] = {
    "residual": (["first", "second", "out"], []),
    "conv1d": (["3"], ["0"]),
    "conv3d": (["3"], ["0"]),
    "transposed conv": (["3"], []),
    "conv, batch norm": (["4"], ["0"]),
    "conv, group norm": (["4"], ["0"]),
    "weight norm": (["2"], []),
    "rnn": (["out"], []),
    "gru": (["out"], []),
    "lstm, stacked, both ways": (["out"], []),
    "gru, stacked, both ways": (["out"], []),
    "multi-head attention": (["out"], []),
    "transformer encoder": (["out"], ["encoder.layers.0.linear", "encoder.layers.1.linear"]),
    "transformer decoder": (["out"], ["decoder.linear"]),
    "embedding": (["out"], []),
    "tied embedding": (["hidden"], []),
    "two inputs": (["left", "right", "out"], []),
    "named inputs": (["left", "right", "out"], []),
    "returns a tuple": (["hidden", "out"], []),
    "returns a dict": (["hidden", "out"], []),
    "nets.mlp": (["hidden.0.linear", "hidden.1.linear", "out"], []),
    "nets.lenet": (["linear1", "linear2", "out"], ["conv1", "conv2"]),
    "nets.resnet": (["out"], ["conv", "stage"]),
    "nets.resnet, group": (["out"], ["conv", "stage"]),
    "nets.lstm": (["out"], []),
    "nets.tabular": (["body"], []),
}


def test_every_other_kind_has_a_line_about_layer_noise() -> None:
    assert set(REACHED) == set(KINDS) - set(NETWORKS)  # of those, test_networks.py tells


@pytest.mark.parametrize("estimator", ["local", "flipout"])
@pytest.mark.parametrize("name", REACHED)
def test_layer_noise_reaches_what_it_can_and_names_the_rest(name: str, estimator: str) -> None:
    net, x, y = make_kind(KINDS[name], 6)
    loss = bnn.MeanField(estimator=estimator).loss(model_of(KINDS[name], net), 6, compile="eager")  # type: ignore[arg-type]
    local, more = REACHED[name]
    reached = tuple(local + (more if estimator == "flipout" else []))
    normal = {f"{owner}.{part}" for owner, module in net.named_modules() for part in _own_if_norm(module)}
    left = sorted(n for n, _ in net.named_parameters() if not n.startswith(reached) or n in normal)
    if left:
        with pytest.warns(UserWarning, match="drawn as weights"):
            loss.gradients(Batch(x, y))
        assert loss.notes == [f"{estimator} noise does not reach {left}: drawn as weights"]
    else:
        loss.gradients(Batch(x, y))
        assert loss.notes == []


def _own_if_norm(module: nn.Module) -> list[str]:
    norms = nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm
    return [name for name, _ in module.named_parameters()] if isinstance(module, norms) else []


# Precision.


@pytest.mark.parametrize("name", KINDS)
def test_a_network_in_double_precision_stays_there(name: str) -> None:
    net, x, y = make_kind(KINDS[name], 6)
    posterior = bnn.fit(model_of(KINDS[name], net.double()), (x, y), bnn.MAP(epochs=1), compile="eager", progress=False)
    prediction = posterior.predict(x)
    assert posterior.history.loss.dtype == prediction.mean.dtype == prediction.std.dtype == torch.float64
    assert {value.dtype for value in posterior.draws().values()} == {torch.float64}


class Inside(nn.Module):
    """Autocast in the forward pass itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with autocast():
            return self.net(x)


def bf16_problem() -> tuple[nn.Module, Tensor, Tensor]:
    net, x, y = make_kind(KINDS["mlp"], 64)
    assert isinstance(x, Tensor)
    return net, x, y


def expected_loss(net: nn.Module, x: Tensor, y: Tensor, *, half: bool) -> float:
    """The loss of MAP a datum by hand: the network in half precision or not, everything else in single."""
    with torch.no_grad(), torch.autocast("cpu", dtype=BF16, enabled=half):
        outputs = net(x)
    assert outputs.dtype == (BF16 if half else torch.float32)
    nll = -torch.distributions.Normal(outputs.float(), 0.5).log_prob(y).sum()
    prior = sum(-torch.distributions.Normal(0.0, 1.0).log_prob(p.detach()).sum() for p in net.parameters())
    return float(nll + prior) / len(y)


def first_loss(net: nn.Module, x: Tensor, y: Tensor, backend: str) -> float:
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    posterior = bnn.fit(model, (x, y), ONE_STEP, compile=backend, progress=False)  # type: ignore[arg-type]
    assert posterior.history.backend == backend
    return float(posterior.history.loss[0])


@pytest.mark.parametrize("backend", ["eager", "graph"])
@pytest.mark.parametrize("place", ["around", "inside"])
def test_autocast_runs_the_network_in_half_precision_and_nothing_else(place: str, backend: str) -> None:
    net, x, y = bf16_problem()
    half, single = (expected_loss(net, x, y, half=on) for on in (True, False))
    assert abs(half - single) > 1e-5 * abs(single)  # so that the one can be told from the other
    if place == "inside":
        found = first_loss(Inside(net), x, y, backend)
    else:
        with autocast():
            found = first_loss(net, x, y, backend)
            assert torch.is_autocast_enabled("cpu")
    assert found == pytest.approx(half, rel=1e-6)
    assert first_loss(net, x, y, backend) == pytest.approx(single, rel=1e-6)


def test_control_a_likelihood_in_half_precision_is_seen(patch_line) -> None:
    patch_line(bnn.BNN, "select", "result.to(self.like.dtype) if result.dtype in HALF else result", "result")
    with pytest.raises(AssertionError):
        test_autocast_runs_the_network_in_half_precision_and_nothing_else("around", "eager")


def test_control_autocast_that_is_dropped_is_seen(patch_line) -> None:
    patch_line(bnn.BNN, "forward", "network_region(self.like.device)", "torch.autocast('cpu', enabled=False)")
    with pytest.raises(AssertionError):
        test_autocast_runs_the_network_in_half_precision_and_nothing_else("around", "eager")


@pytest.mark.parametrize(
    "method",
    [
        bnn.MeanField(epochs=2),
        bnn.FullRank(epochs=2),
        bnn.Ensemble(members=2, of=bnn.MAP(epochs=2)),
        bnn.Laplace(of=bnn.MAP(epochs=2)),
        bnn.Laplace(of=bnn.MAP(epochs=2), weights="last_layer", covariance="full"),
        bnn.LastLayer(of=bnn.MAP(epochs=2)),
        bnn.VBLL(epochs=2),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_run_under_autocast_near_what_they_give_without(method: bnn.inference.Method) -> None:
    """bfloat16 has 8 bits: outputs differ by some 2^-8 of their size, and a few steps hardly enlarge that."""
    net, x, y = bf16_problem()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    draws = 5 if isinstance(method, bnn.MeanField | bnn.FullRank) else None
    with autocast():
        half = bnn.fit(model, (x, y), method, compile="eager", progress=False)
        inside = half.predict(x, draws).mean
    single = bnn.fit(model, (x, y), method, compile="eager", progress=False)
    assert half.settings["autocast"] == "torch.bfloat16"
    assert "autocast" not in single.settings
    assert {value.dtype for value in half.draws(2).values()} == {torch.float32}
    for found in (inside, half.predict(x, draws).mean):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, single.predict(x, draws).mean, rtol=0.1, atol=0.05)
    assert not torch.equal(inside, half.predict(x, draws).mean)


def test_ones_own_loop_under_autocast() -> None:
    net, x, y = bf16_problem()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    loss = bnn.MAP().loss(model, len(y))
    with autocast():
        inside = float(loss(x, y).detach())
    assert inside == pytest.approx(expected_loss(net, x, y, half=True), rel=1e-6)
    assert float(loss(x, y).detach()) == pytest.approx(expected_loss(net, x, y, half=False), rel=1e-6)


def test_samplers_refuse_autocast() -> None:
    net, x, y = bf16_problem()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    with autocast(), pytest.raises(ValueError, match=r"cannot run under autocast to torch\.bfloat16"):
        bnn.fit(model, (x, y), bnn.NUTS(chains=1, warmup=2, num_samples=2), progress=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_in_half_precision_are_refused_in_words(dtype: torch.dtype) -> None:
    net, x, y = bf16_problem()
    model = bnn.BNN(net.to(dtype), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    message = rf"'0.weight' is {dtype}, and inference needs single or double precision.*net\.float\(\)"
    with pytest.raises(ValueError, match=message):
        bnn.fit(model, (x, y), "map", progress=False)
    with pytest.raises(ValueError, match=message):
        bnn.MAP().loss(model, len(y))


class FrozenHalf(nn.Module):
    """A frozen trunk in half precision, a head to be learned in single."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 6).bfloat16().requires_grad_(False)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.trunk(x.to(BF16))).float())


@pytest.mark.parametrize("method", [bnn.MAP(epochs=2), bnn.MeanField(epochs=2), bnn.Laplace(of=bnn.MAP(epochs=2))])
def test_a_frozen_trunk_may_be_in_half_precision(method: bnn.inference.Method, tmp_path) -> None:
    _, x, y = bf16_problem()
    model = bnn.BNN(FrozenHalf(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    posterior = bnn.fit(model, (x, y), method, compile="graph", progress=False)
    assert posterior.history.backend == "graph"
    assert posterior.state["trunk.weight"].dtype == BF16
    back = bnn.load(posterior.save(tmp_path / "run"), model)
    draws = 3 if posterior.num_draws is None else None
    prediction = posterior.predict(x, draws)
    assert prediction.mean.dtype == torch.float32
    assert torch.equal(back.predict(x, draws).mean, prediction.mean)


# The page.


def test_the_table_of_the_page_has_every_kind_and_what_was_tested_of_it() -> None:
    page = (Path(__file__).parent.parent / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    rows = [row for row in rows if len(row) == 6 and row[1] not in ("in the tests", "---")]
    told = {name: row for row in rows for name in row[1].split("; ")}
    assert set(told) == set(KINDS)
    for name, (_, _, methods, last, local, flipout) in told.items():
        assert methods == "yes"
        assert last == ("no" if name in NO_LAST_LAYER else "yes")
        more = REACHED[name][1] if name in REACHED else ["conv"] if name == "conv" else []
        convolution = any(isinstance(module, nn.modules.conv._ConvNd) for module in KINDS[name].build().modules())
        assert (local == "`Linear` alone") == convolution, name
        assert ("`Conv`" in flipout) == (convolution and bool(more)), name
