"""Kronecker factors layer by layer: against the same network written with other layers, or the exact block."""

from __future__ import annotations

import functools

import pytest
import torch
from networks import make
from torch import Tensor, nn
from torch.nn import functional as F

import bnn
from bnn.inference.laplace.layers import patches
from bnn.random import isolated

fit = functools.partial(bnn.fit, progress=False, compile="eager")


def laplace(net: nn.Module, x: Tensor, y: Tensor, **settings: object) -> bnn.Posterior:
    model = bnn.BNN(net, bnn.priors.Normal(0.8), bnn.likelihoods.Gaussian(0.5))
    return fit(model, (x, y), bnn.Laplace(of="net", **settings))


def covariance(posterior: bnn.Posterior) -> Tensor:
    local = posterior.approximation
    return local.output_covariance(torch.eye(len(local.where)).double()[None])[0]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3, padding=1, stride=2), (3, 9)),
        (nn.Conv2d(2, 3, (3, 3), padding="same", dilation=(1, 2)), (2, 6, 7)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
        (nn.Conv3d(2, 2, 2, stride=(1, 2, 1)), (2, 3, 4, 3)),
    ],
)
def test_patches_times_weight_is_the_convolution(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(2, *shape)
    out = patches(layer, x) @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(out, layer(x).flatten(2).mT, rtol=1e-4, atol=1e-5)


def test_an_embedding_is_a_linear_layer_on_one_hot_inputs() -> None:
    """Means over the two positions of a row, so that both share a weight over positions."""

    class Mean(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.mean(1)

    with isolated(1):
        tokens, y = torch.randint(0, 5, (20, 2)), torch.randn(20, 2).double()
        table = torch.randn(5, 3).double()
        embedding, linear = nn.Embedding(5, 3).double(), nn.Linear(5, 3, bias=False).double()
        out = nn.Linear(3, 2).double()
    with torch.no_grad():
        embedding.weight.copy_(table)
        linear.weight.copy_(table.T)
    one_hot = F.one_hot(tokens, 5).double()
    a = laplace(nn.Sequential(embedding, nn.Tanh(), Mean(), out), tokens, y)
    b = laplace(nn.Sequential(linear, nn.Tanh(), Mean(), out), one_hot, y)
    assert a.settings["evidence"]["value"] == pytest.approx(b.settings["evidence"]["value"], rel=1e-10)
    torch.testing.assert_close(
        a.predict(tokens).variance.epistemic, b.predict(one_hot).variance.epistemic, rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.LayerNorm(4), (4,)),
        (nn.LayerNorm((3, 4)), (3, 4)),
        (nn.GroupNorm(2, 4), (4, 3)),
        (nn.BatchNorm1d(4), (4,)),
        (nn.BatchNorm2d(4), (4, 3, 2)),
    ],
)
def test_scale_and_shift_of_a_norm_are_exact_blocks(norm: nn.Module, shape: tuple[int, ...]) -> None:
    """Each alone: the whole matrix is its one block."""
    with isolated(2):
        x, y = torch.randn(15, *shape).double(), torch.randn(15, 2).double()
        size = x[0].numel()
        net = nn.Sequential(norm, nn.Flatten(), nn.Tanh(), nn.Linear(size, 2)).double()
    for name in ("0.weight", "0.bias"):
        got, exact = (covariance(laplace(net, x, y, covariance=c, weights=[name])) for c in ("kron", "full"))
        torch.testing.assert_close(got, exact, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "message"),
    [("lstm", "LSTM"), ("attention", "MultiheadAttention"), ("shared module", "2 times"), ("shared weight", "shared")],
)
def test_layers_without_known_factors_are_named(name: str, message: str) -> None:
    net, x, y = make(name, 10)
    with pytest.raises(ValueError, match=message):
        laplace(net, x, y)
    last = laplace(net, x, y, weights="last_layer")  # what the message advises
    assert last.predict(x).variance.epistemic.isfinite().all()


def test_a_grouped_convolution_is_refused() -> None:
    net = nn.Sequential(nn.Conv1d(2, 2, 3, groups=2), nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="grouped"):
        laplace(net, torch.randn(6, 2, 4), torch.randn(6, 1))
