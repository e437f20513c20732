"""Flow: its density, and a posterior that no Gaussian fits."""

import functools
import math

import pytest
import torch
from torch import Tensor, nn

import bnn
from bnn.approximations import flow as flow_module
from bnn.inference import flow as flow_inference
from bnn.layout import Layout
from bnn.random import isolated


class Banana(nn.Module):
    """An output that weighs w_0^2 against w_1: the posterior lies along a parabola."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.w[0] ** 2 + 2 * self.w[1] + 0 * x[:, 0]


ROWS, NOISE = 5, 0.3


def log_joint(w: Tensor) -> Tensor:
    """log p(w, y) of rows of weights, written out."""
    residual = (1 - 4 * w[:, 0] ** 2 - 2 * w[:, 1]) / NOISE
    log_prior = -(w * w).sum(1) / 2 - math.log(2 * math.pi)
    return log_prior + ROWS * (-(residual**2) / 2 - math.log(NOISE) - 0.5 * math.log(2 * math.pi))


@functools.cache
def banana() -> tuple[bnn.BNN, Tensor, Tensor, float]:
    """Model, data, and the negative log evidence per datum, by quadrature."""
    x, y = torch.zeros(ROWS, 1, dtype=torch.float64), torch.ones(ROWS, dtype=torch.float64)
    model = bnn.BNN(Banana(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(NOISE))
    grid = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    plane = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    evidence = torch.logsumexp(log_joint(plane), 0) + 2 * torch.log(grid[1] - grid[0])
    return model, x, y, -float(evidence) / ROWS


@functools.cache
def bent() -> bnn.Posterior:
    model, x, y, _ = banana()
    method = bnn.Flow(epochs=1000, lr=0.02, transforms=3, draws=8)
    return bnn.fit(model, (x, y), method, compile="graph", progress=False)


def elbo(posterior: bnn.Posterior, draws: int = 4000) -> tuple[float, float]:
    """The negative ELBO per datum at fresh draws, and its standard error."""
    values = posterior.draws(draws, seed=7)["w"]
    with torch.no_grad():
        log_q = posterior.approximation.log_prob(values)  # type: ignore[attr-defined]
    terms = (log_q - log_joint(values)) / ROWS
    return float(terms.mean()), float(terms.std() / math.sqrt(draws))


def check_banana(posterior: bnn.Posterior) -> None:
    """The flow's ELBO lies between the Gaussian's and the evidence, by more than five standard errors on both sides."""
    model, x, y, evidence = banana()
    straight = bnn.fit(model, (x, y), bnn.FullRank(), compile="graph", progress=False)
    (own, error), (other, other_error) = elbo(posterior, 1000), elbo(straight, 1000)
    assert own + 5 * math.hypot(error, other_error) < other
    assert evidence < own + 5 * error
    assert own - evidence < 0.7 * (other - evidence)


def test_a_flow_follows_a_banana_where_a_gaussian_cannot() -> None:
    check_banana(bent())


def check_density() -> None:
    """The density integrates to one, and is what the draws have: the change of variables."""
    q = bent().approximation
    assert isinstance(q, bnn.approximations.Flow)
    grid = torch.linspace(-5, 5, 301, dtype=torch.float64)
    plane = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad(), isolated(0):
        mass = q.log_prob(plane).exp().sum() * (grid[1] - grid[0]) ** 2
        noise = torch.randn(50, 2, dtype=torch.float64)
        vectors, log_det = q.push(noise)
        standard = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1)
        torch.testing.assert_close(q.log_prob(vectors), standard - log_det)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda e: q.push(e[None])[0][0]))(noise)
        torch.testing.assert_close(log_det, jacobian.det().abs().log())
    assert abs(float(mass) - 1) < 0.01


def test_the_density_is_that_of_the_draws() -> None:
    check_density()


def test_control_a_wrong_log_determinant_is_found(patch_line) -> None:
    bent()
    patch_line(flow_module.Flow, "push", "log_det + self.log_scale.sum()", "log_det")
    with pytest.raises(AssertionError):
        check_density()


@pytest.mark.slow
def test_control_a_flow_trained_without_its_entropy_is_found(patch_line) -> None:
    patch_line(flow_inference.FlowLoss, "terms", "cross - entropy", "cross - 0.5 * entropy")
    wrong = bent.__wrapped__()
    with pytest.raises(AssertionError):
        check_banana(wrong)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_flow_begins_as_the_gaussian_around_the_start(size: int) -> None:
    net = nn.Linear(size, 1, bias=False).double()
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    q = bnn.Flow(init_scale=0.2).loss(model, 10).posterior().approximation
    reference = torch.distributions.Normal(net.weight.detach()[0], 0.2 / math.sqrt(size))
    rows = torch.randn(4, size, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(rows), reference.log_prob(rows).sum(-1))  # type: ignore[attr-defined]


def test_a_transform_is_autoregressive_in_alternate_orders() -> None:
    with isolated(0):
        network = flow_module.FlowNetwork(4, 2, 16, torch.zeros(1))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.5)
    for layer, keep in zip(network.layers, (torch.tril, torch.triu), strict=True):
        jacobian = torch.func.jacrev(lambda e, layer=layer: layer(e[None])[0][0])(torch.randn(4))
        strict = keep(torch.ones(4, 4), -1 if keep is torch.tril else 1)
        assert torch.equal(jacobian * (1 - strict), torch.zeros(4, 4))
        assert (jacobian[strict > 0] != 0).all()


def test_a_saved_architecture_that_cannot_be_is_refused() -> None:
    q = bent().approximation
    layout = Layout(bent().model.sites().latents)
    with pytest.raises(ValueError, match="this cannot be one"):
        bnn.approximations.restored("flow", {**q.tensors(), "architecture": torch.tensor([0, 5])}, layout)
