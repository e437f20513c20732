"""A Kronecker-factored Laplace approximation of the same trained network: here, and by laplace-torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bnn
from benchmarks.frame import Ready, timed
from benchmarks.nets import criterion, model_of, net_of
from benchmarks.problems import NOISE, PROBLEMS

BATCH, NEW = 1024, {"small": 1000, "lenet": 20}
ROWS = {"small": 1000, "mnist": 2000, "lenet": 2000}


@lru_cache(maxsize=1)
def _trained(problem: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A net with a few steps of Adam behind it, its data, and other inputs."""
    work, rows = PROBLEMS[problem], ROWS[problem]
    net = net_of(work)
    torch.manual_seed(0)
    x, new = torch.randn(rows, *work.inputs), torch.randn(NEW.get(problem, 0), *work.inputs)
    y = torch.randint(0, 10, (rows,)) if work.classes else x[:, :1].sin() + 0.5 * torch.randn(rows, 1)
    loss_fn, optimizer = criterion(work), torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss_fn(net(x[:500]), y[:500]).backward()
        optimizer.step()
    return net, x, y, new


def _own(problem: str) -> Callable[[], bnn.Posterior]:
    net, x, y, _ = _trained(problem)
    model = model_of(PROBLEMS[problem], net)
    return lambda: bnn.fit(model, (x, y), bnn.Laplace(of="net", covariance="kron"), progress=False)


def _theirs(problem: str) -> Callable[[], Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import laplace

    net, x, y, _ = _trained(problem)
    classes = PROBLEMS[problem].classes
    given = {} if classes else {"sigma_noise": NOISE}

    def fit() -> Any:
        found = laplace.Laplace(
            net,
            "classification" if classes else "regression",
            subset_of_weights="all",
            hessian_structure="kron",
            prior_precision=1.0,
            **given,
        )
        found.fit(DataLoader(TensorDataset(x, y), batch_size=BATCH))
        found.log_marginal_likelihood()
        return found

    return fit


def fit(problem: str, who: str) -> Ready:
    """From the trained network to a posterior with its marginal likelihood."""
    run = _own(problem) if who == "bnn" else _theirs(problem)
    found = run()  # warm
    evidence = found.log_marginal_likelihood() if who != "bnn" else None
    return Ready(lambda: timed(run, 1), notes={} if evidence is None else {"evidence": float(evidence)})


def predict(problem: str, who: str) -> Ready:
    """Mean and covariance of the linearised outputs."""
    new = _trained(problem)[3]
    if who == "bnn":
        posterior = _own(problem)()
        return _predicting(lambda: posterior.linear.moments(new))
    found = _theirs(problem)()
    return _predicting(lambda: found._glm_predictive_distribution(new))


def _predicting(run: Callable[[], Any]) -> Ready:
    mean, covariance = run()
    told = {"mean": float(mean.double().mean()), "covariance": float(covariance.double().mean())}
    return Ready(lambda: timed(run, 1), notes=told)
