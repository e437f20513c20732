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


@pytest.fixture(params=["copied", "copied in parts", "put"])
def way(request, monkeypatch):
    """How the weights come into the network: see `bnn.forward._put_in_turn`."""
    monkeypatch.setattr(forward, "_COPIED", 0 if request.param == "put" else 10_000)
    monkeypatch.setattr(forward, "_COPY", 1 if request.param == "copied in parts" else 1_000_000)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_each_draw_is_the_functional_call(name):
    net, x, _ = make(name, ROWS)
    check_one_by_one(net, x)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("build", [Handed, TwoDtypes])
def test_odd_networks_too(build):
    torch.manual_seed(1)
    check_one_by_one(build(), torch.randn(ROWS, 8))


@pytest.mark.parametrize(
    ("old", "new", "build"),
    [
        ("place.copy_(row)", "place", lambda: make("mlp", ROWS)[0]),
        ("start + step]", "start + 1]", lambda: make("mlp", ROWS)[0]),
        ("size > _COPIED or", "size > _COPIED and", TwoDtypes),
    ],
    ids=["no draw is copied", "draws left out", "one dtype for all"],
)
def test_control_each_draw(old, new, build, patch_line):
    net = build()
    patch_line(forward, "_put_in_turn", old, new)
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        check_one_by_one(net, torch.randn(ROWS, 8))


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
