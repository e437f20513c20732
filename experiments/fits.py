"""Every method at one budget, for the experiments that compare them with NUTS on a small regression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bnn
from bnn import analysis
from bnn.inference import Method


@dataclass(frozen=True)
class Budget:
    """How much every method may compute."""

    # Reference: 4 chains, whose draws of functions are nearly independent: 1,600 of them for R-hat below 1.01.
    reference_draws: int = 400
    reference_warmup: int = 300
    max_depth: int = 8  # 255 leapfrog steps; at 10 a draw costs four times as much
    epochs: int = 2000  # of full batches, where a method takes gradients
    members: int = 10
    steps: int = 8000  # of SGHMC, before it is taken to have arrived
    sghmc_draws: int = 1000


QUICK = Budget(reference_draws=10, reference_warmup=10, max_depth=3, epochs=5, members=3, steps=10, sghmc_draws=10)


def decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def reference(budget: Budget) -> bnn.NUTS:
    draws, warmup = budget.reference_draws, budget.reference_warmup
    return bnn.NUTS(num_samples=draws, warmup=warmup, max_depth=budget.max_depth, init="prior")


def every_method(budget: Budget, rows: int, noise: float | None = None) -> dict[str, Method]:
    """All with full batches where they take gradients, so that none is noisier than need be.

    Args:
        budget: How much they may compute.
        rows: Of the training set.
        noise: The likelihood's scale where it is fixed. Plain gradient steps are not free of units: under a fixed noise
            they are, as on the mean squared error, 2 noise^2 times the loss. With lr as it comes SWAG and SGHMC leave
            for infinity there.
    """
    training: dict[str, Any] = {"epochs": budget.epochs, "batch_size": None, "lr": 1e-2, "schedule": decay}
    mode = bnn.MAP(**training)
    unit, batch = 1.0 if noise is None else 2 * noise**2, max(1, rows // 4)
    draws, warmup = budget.reference_draws, budget.reference_warmup
    return {
        "NUTS again": reference(budget),
        "HMC": bnn.HMC(num_samples=draws, warmup=warmup, max_steps=100),
        "ChEES": bnn.ChEES(chains=32, num_samples=max(10, draws // 8), warmup=warmup),
        "MAP": mode,
        "MC dropout": bnn.MCDropout(**training),
        "Laplace, last layer": bnn.Laplace(of=mode, weights="last_layer", covariance="full", tune="after"),
        "Laplace, kron": bnn.Laplace(of=mode, covariance="kron", tune="after"),
        "Laplace, full": bnn.Laplace(of=mode, covariance="full", tune="after"),
        "SWAG": bnn.SWAG(epochs=budget.epochs, batch_size=batch, lr=1e-2 * unit),
        f"ensemble of {budget.members}": bnn.Ensemble(members=budget.members, of=mode),
        "mean field": bnn.MeanField(**training, draws=4),
        "IVON": bnn.IVON(epochs=budget.epochs, batch_size=None),
        "low rank": bnn.LowRank(**training),
        "full rank": bnn.FullRank(**training),
        "SVGD": bnn.SVGD(**training),
        "SGHMC": bnn.SGHMC(batch_size=batch, lr=1e-3 * unit, num_samples=budget.sghmc_draws, warmup=budget.steps),
    }


def rhat(posterior: bnn.Posterior, x: torch.Tensor) -> float:
    """The largest split R-hat over the functions' values at x."""
    chains, draws = posterior.approximation.shape or (1, 1)
    values = posterior.predict(x).outputs.reshape(chains * draws, -1)
    return analysis.mixing(values, (chains, draws)).worst_rhat


def posterior_of(
    study: Any,
    data_name: str,
    rows: tuple[torch.Tensor, torch.Tensor],
    name: str,
    model: Callable[[float], bnn.BNN],
    noise: float | None = None,
) -> bnn.Posterior:
    """The posterior of a method by its name, kept in the study's folder.

    Args:
        study: Whose settings have `budget`, `dropout` and `seed`.
        data_name: Of the rows.
        rows: Inputs and targets.
        name: ``"NUTS"``, or one of `every_method`.
        model: Of a share of units that are dropped.
        noise: As in `every_method`.
    """
    config = study.config
    method = {"NUTS": reference(config.budget), **every_method(config.budget, len(rows[1]), noise)}[name]
    folder = study.out / "posteriors" / study.key / f"{data_name}-{name.replace(',', '').replace(' ', '-')}"
    dropped = config.dropout if isinstance(method, bnn.MCDropout) else 0.0
    return fitted(folder, model(dropped), rows, method, config.seed + (name != "NUTS"))


def fitted(
    folder: Path, model: bnn.BNN, data: tuple[torch.Tensor, torch.Tensor], method: Method, seed: int
) -> bnn.Posterior:
    """The posterior, from its folder if an earlier run has left it there, with the seconds of that fit."""
    if folder.exists():
        return bnn.load(folder, model)
    posterior = bnn.fit(model, data, method, seed=seed, progress=False)
    posterior.save(folder)
    return posterior
