"""Noise in the layers is the noise of the weights: the same loss in expectation, whatever the layer."""

import itertools
import math

import pytest
import torch
from marks import some
from torch import Tensor, nn

import bnn
from bnn.inference import local

CALLS = 1500
LAYERS = {
    "linear": (lambda: nn.Linear(3, 2), (4, 3)),
    "linear on a sequence": (lambda: nn.Linear(2, 1), (3, 5, 2)),
    "conv1d": (lambda: nn.Conv1d(2, 1, 2), (3, 2, 5)),
    "conv2d": (lambda: nn.Conv2d(1, 2, 2), (3, 1, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(1, 1, 2), (2, 1, 3, 3, 2)),
}


class Summed(nn.Module):
    """Sums a layer over all positions: noise that is shared by positions adds up, independent noise averages out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).flatten(1).sum(1)


def mean_loss(name: str, estimator: str) -> tuple[float, float]:
    """The loss averaged over calls, and its standard error."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    net = Summed(make())
    x, y = torch.rand(shape) + 0.5, torch.zeros(shape[0])
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    method = bnn.MeanField(estimator=estimator, init_scale=0.5)  # type: ignore[arg-type]
    loss = method.loss(model, shape[0])
    batch = bnn.data.Batch(x, y)
    values = torch.stack([loss.gradients(batch)[1][0] for _ in range(CALLS)])
    return float(values.mean()), float(values.std()) / math.sqrt(CALLS)


@pytest.mark.filterwarnings("ignore:local noise does not reach:UserWarning")
@pytest.mark.parametrize(
    ("name", "estimator"),
    some(itertools.product(LAYERS, ["local", "flipout"]), lambda pair: pair[0] in {"linear", "linear on a sequence"}),
)
def test_the_expected_loss_is_that_of_drawn_weights(name: str, estimator: str) -> None:
    """4 standard errors of a difference of two means: 10 comparisons, wrong once in 1,600 runs."""
    (one, error), (other, other_error) = mean_loss(name, "weights"), mean_loss(name, estimator)
    assert abs(one - other) < 4 * math.hypot(error, other_error)


def test_control_signs_at_every_position_change_the_loss(patch_line) -> None:
    patch_line(local, "_per_row", "return (rows, *middle, activations.shape[-1])", "return tuple(activations.shape)")
    (one, error), (other, other_error) = (
        mean_loss("linear on a sequence", "weights"),
        mean_loss("linear on a sequence", "flipout"),
    )
    assert abs(one - other) > 4 * math.hypot(error, other_error)


def gradient_variance(estimator: str) -> float:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 1))
    x, y = torch.randn(64, 8), torch.randn(64, 1)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    loss = bnn.MeanField(estimator=estimator, init_scale=0.5).loss(model, 64)  # type: ignore[arg-type]
    gradients = torch.stack([loss.gradients(bnn.data.Batch(x, y))[0][0] for _ in range(300)])
    return float(gradients.var(0).sum())


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_the_gradient_varies_less(estimator: str) -> None:
    assert gradient_variance(estimator) < 0.5 * gradient_variance("weights")
