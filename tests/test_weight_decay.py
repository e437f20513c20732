"""L2 is a Gaussian prior, L1 a Laplace prior: MAP under it takes the very steps that PyTorch takes with the penalty."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bnn
from bnn.inference import divergence

ROWS, BATCH, STEPS, LR, DECAY = 70, 16, 200, 0.05, 0.03  # 70 = 4 * 16 + 6: the last batch is ragged
SGD = functools.partial(torch.optim.SGD, momentum=0.9)


def problem(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    outputs = 3 if kind == "classification" else 1
    net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, outputs)).double()
    x = torch.randn(ROWS, 5).double()
    y = torch.randint(0, 3, (ROWS,)) if outputs == 3 else torch.randn(ROWS, 1).double()
    return net, x, y


def loss_function(kind: str) -> nn.Module:
    return nn.CrossEntropyLoss() if kind == "classification" else nn.MSELoss()


def model_of(kind: str, net: nn.Module, prior: bnn.priors.Prior | None = None) -> bnn.BNN:
    if kind == "classification":
        prior = prior or bnn.priors.Normal.from_weight_decay(DECAY, ROWS)
        return bnn.BNN(net, prior, bnn.likelihoods.Categorical())
    noise = 0.5**0.5  # 2 noise^2 = 1: the squared error is the negative log-likelihood, and the learning rates agree
    prior = prior or bnn.priors.Normal.from_weight_decay(DECAY, ROWS, loss="mse", noise_scale=noise)
    return bnn.BNN(net, prior, bnn.likelihoods.Gaussian(noise))


def vector(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def largest_difference(kind: str, backend: str) -> float:
    """Over every one of 200 steps, the largest difference of any weight."""
    net, x, y = problem(kind)
    loss = bnn.MAP().loss(model_of(kind, net), ROWS, compile=backend)  # type: ignore[arg-type]
    ours = SGD(loss.parameters(), lr=LR)
    theirs = SGD(net.parameters(), lr=LR, weight_decay=DECAY)
    penalised, largest, step = loss_function(kind), 0.0, 0
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    while step < STEPS:
        for xb, yb in loader:
            for optimizer, value in ((ours, loss(xb, yb)), (theirs, penalised(net(xb), yb))):
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            largest = max(largest, float((loss.theta.detach() - vector(net)).abs().max()))
            step += 1
    return largest


@pytest.mark.parametrize("backend", ["eager", "graph"])
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_map_follows_sgd_with_weight_decay_step_by_step(kind: str, backend: str) -> None:
    assert largest_difference(kind, backend) < 1e-6


def test_control_a_prior_counted_twice_leaves_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    original = divergence.negative_log_prior
    monkeypatch.setattr("bnn.inference.point.negative_log_prior", lambda *args: 2 * original(*args))
    assert largest_difference("regression", "graph") > 1e-3


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_fit_ends_where_sgd_ends(kind: str) -> None:
    """Through `bnn.fit` and its fused optimiser, on a loader that does not shuffle."""
    net, x, y = problem(kind)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH)
    posterior = bnn.fit(model_of(kind, net), loader, bnn.MAP(epochs=40, lr=LR, optimizer=SGD), progress=False)
    assert posterior.history.loss.shape == (200,)
    optimizer, penalised = SGD(net.parameters(), lr=LR, weight_decay=DECAY), loss_function(kind)
    for _ in range(40):
        for xb, yb in loader:
            optimizer.zero_grad()
            penalised(net(xb), yb).backward()
            optimizer.step()
    assert float((vector(posterior.net(0)) - vector(net)).abs().max()) < 1e-6


def test_laplace_prior_is_an_l1_penalty() -> None:
    net, x, y = problem("classification")
    loss = bnn.MAP().loss(model_of("classification", net, bnn.priors.Laplace.from_l1(DECAY, ROWS)), ROWS)
    value = loss(x, y)
    value.backward()
    penalised = nn.CrossEntropyLoss()(net(x), y) + DECAY * sum(p.abs().sum() for p in net.parameters())
    penalised.backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(loss.theta.grad, gradient, rtol=1e-10, atol=1e-12)


def test_adamw_decouples_the_decay_and_ends_elsewhere() -> None:
    """Adam on the penalised loss ends at the mode of the Gaussian prior; AdamW with the same coefficient does not.

    A linear model, so that there is one mode; the gradient there of the penalised loss tells the two apart.
    """
    torch.manual_seed(0)
    x = torch.randn(ROWS, 3).double()
    y = x @ torch.tensor([[2.0], [-1.0], [0.5]]).double() + 0.1 * torch.randn(ROWS, 1).double()
    ends = {}
    for name in ("Adam", "AdamW"):
        net = nn.Linear(3, 1, bias=False).double()
        optimizer = getattr(torch.optim, name)(net.parameters(), lr=1e-2, weight_decay=0.5)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3000)
        for _ in range(3000):
            optimizer.zero_grad()
            nn.MSELoss()(net(x), y).backward()
            optimizer.step()
            schedule.step()
        ends[name] = net.weight.detach().flatten()
    mode = torch.linalg.solve(2 * x.T @ x / ROWS + 0.5 * torch.eye(3).double(), 2 * x.T @ y / ROWS).flatten()
    assert (ends["Adam"] - mode).abs().max() < 1e-4
    assert (ends["AdamW"] - mode).abs().max() > 0.1
