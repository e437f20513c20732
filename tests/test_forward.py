"""One network call a draw (`bnn.forward`): the same outputs, however the weights come into the network."""

import pytest
import torch
from networks import NETWORKS, make
from torch import nn

import bnn
from bnn import forward
from bnn.inputs import check_finite

S, ROWS = 7, 5


class Handed(nn.Module):
    """Its output is memory of its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(x), 3)


class TwoDtypes(nn.Module):
    """Weights in single and in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 1).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)).double()).float()


def drawn(net: nn.Module) -> tuple[bnn.BNN, dict[str, torch.Tensor]]:
    """A model, and draws of its weights."""
    model = bnn.BNN(net.eval(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    names = {name: p for name, p in model.net.named_parameters() if name not in model.ties}
    return model, {name: torch.randn(S, *p.shape, dtype=p.dtype) for name, p in names.items()}


def check_one_by_one(net: nn.Module, x: torch.Tensor) -> None:
    """What the functional call gives, up to rounding (memory lies otherwise), and the network is as it was."""
    torch.manual_seed(0)
    model, weights = drawn(net)
    before = dict(model.net.named_parameters(remove_duplicate=False))
    got = forward.forward_over_draws(model, weights, {}, x, S, at_once=1)
    with torch.no_grad():
        expected = torch.stack([model.forward({n: w[s] for n, w in weights.items()}, x) for s in range(S)])
    torch.testing.assert_close(got, expected)
    assert not got.is_inference()
    assert all(p is before[name] for name, p in model.net.named_parameters(remove_duplicate=False))


class Scaled(nn.Module):
    """A weight that is a number, and one of none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale, self.none = (
            nn.Linear(8, 1),
            nn.Parameter(torch.tensor(1.5)),
            nn.Parameter(torch.ones(0, 3)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.layer(x) + self.none.sum()


class Rebound(nn.Module):
    """It puts its weight elsewhere, as cuDNN does with those of an LSTM, and knows a weight by being that object."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 1))
        self.known: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight is not self.known:
            self.known, self.norm = self.weight, self.weight.norm().clone()
            self.weight.set_(self.weight.clone())
        return x @ self.weight / self.norm


@pytest.fixture(params=["copied", "copied in parts", "as they are"])
def way(request, monkeypatch):
    """How the weights come into the network: see `bnn.forward._draw_by_draw`."""
    monkeypatch.setattr(forward, "_COPIED", 0 if request.param == "as they are" else 10_000)
    monkeypatch.setattr(forward, "_COPY", 1 if request.param == "copied in parts" else 1_000_000)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_each_draw_is_the_functional_call(name):
    net, x, _ = make(name, ROWS)
    check_one_by_one(net, x)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("build", [Handed, TwoDtypes, Scaled, Rebound])
def test_odd_networks_too(build):
    torch.manual_seed(1)
    check_one_by_one(build(), torch.randn(ROWS, 8))


@pytest.mark.parametrize(
    ("old", "new"), [("value.split(step)", "value[:-1].split(step)"), ("value.clone()", "value[:1].expand_as(value)")]
)
def test_control_each_draw(old, new, patch_line):
    patch_line(forward, "_draw_by_draw", old, new)
    with pytest.raises((AssertionError, ValueError)):
        check_one_by_one(make("mlp", ROWS)[0], torch.randn(ROWS, 8))


class Growing(nn.Module):
    """Its second output has another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.ones(1)), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.weight.expand(len(x), self.calls)


def check_restored() -> None:
    """The network has its own weights back while the error is still held, as notebooks hold the last one."""
    model, weights = drawn(Growing())
    before = model.net.weight
    with pytest.raises(RuntimeError) as held:
        forward.forward_over_draws(model, weights, {}, torch.ones(ROWS, 1), S, at_once=1)
    assert model.net.weight is before
    assert held.value is not None


def test_an_error_leaves_the_network_as_it_was():
    check_restored()


def test_control_an_error_leaves_the_network_as_it_was(patch_line):
    patch_line(forward, "_outputs", "contextlib.closing(", "contextlib.nullcontext(")
    with pytest.raises(AssertionError):
        check_restored()


def test_numbers_whose_sum_is_not_finite_are_looked_at_one_by_one():
    large = torch.full((4, 2), 3e38)
    check_finite(large, "x")
    large[2, 1] = -torch.inf
    large[1, 0] = torch.nan
    with pytest.raises(ValueError, match="x has NaN or infinite values in 2 of 4 rows: 1, 2"):
        check_finite(large, "x")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_no_sum_hides_a_number_that_is_not_finite(bad):
    x = torch.randn(300, 50)
    x[123, 4] = bad
    with pytest.raises(ValueError, match="in 1 of 300 rows: 123"):
        check_finite(x, "x")
