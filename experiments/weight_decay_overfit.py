"""Part (e) of `weight_decay.py`: what a network learns from few rows without a penalty, and with each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tables import with_error
from torch import Tensor, nn
from weight_decay_setup import Config, Data, Overfit, linear_decay

import bnn

Rows = tuple[Tensor, Tensor]
NONE = "no penalty"


def overfit(config: Config, data: Data, seed: int) -> dict[str, Any]:
    """One half of the rows, by chance, is fitted, the other predicted: mean squared errors of both."""
    setting = config.overfit
    order = torch.randperm(data.n, generator=torch.Generator().manual_seed(seed))
    rows, held = [(data.x[own], data.y[own]) for own in order.chunk(2)]
    torch.manual_seed(seed)
    layers = [nn.Linear(10, setting.hidden), nn.Tanh(), nn.Linear(setting.hidden, 1), nn.Flatten(0)]
    net = nn.Sequential(*layers).double()
    paths = {NONE: adamw(net, rows, held, setting, 0.0)}
    found = [score(NONE, None, paths[NONE][-1])]
    for strength in setting.strengths:
        paths[f"AdamW {strength:g}"] = adamw(net, rows, held, setting, strength)
        found.append(score("AdamW", strength, paths[f"AdamW {strength:g}"][-1]))
        found += under_priors(config, net, rows, held, strength, seed)
    return {"looks": list(range(0, setting.steps + 1, setting.every)), "paths": paths, "rows": found}


def score(way: str, strength: float | None, errors: Sequence[float]) -> dict[str, Any]:
    return {"way": way, "strength": strength, "train": errors[0], "test": errors[1]}


def adamw(net: nn.Module, rows: Rows, held: Rows, setting: Overfit, decay: float) -> list[list[float]]:
    """Errors of the rows fitted and held out, along the way of torch's AdamW; at decay 0 it is Adam."""
    params = {name: value.clone().requires_grad_() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(params.values(), lr=setting.lr, weight_decay=decay)
    schedule = linear_decay(optimizer, setting.steps)
    path = []

    def error(part: Rows) -> Tensor:
        return (torch.func.functional_call(net, params, (part[0],)) - part[1]).square().mean()

    for step in range(setting.steps + 1):
        loss = error(rows)
        if step % setting.every == 0:
            path.append([float(loss.detach()), float(error(held).detach())])
        optimizer.zero_grad()
        loss.backward()
        if step < setting.steps:
            optimizer.step()
            schedule.step()
    return path


def under_priors(
    config: Config, net: nn.Module, rows: Rows, held: Rows, strength: float, seed: int
) -> list[dict[str, Any]]:
    """The modes under the priors that L2 and L1 penalties are, and the posterior under the first."""
    options: dict[str, Any] = {"n_data": len(rows[1]), "loss": "mse", "noise_scale": config.noise_scale}
    gaussian = bnn.priors.Normal.from_weight_decay(strength, **options)
    laplace = bnn.priors.Laplace.from_l1(strength / 10, **options)
    training: dict[str, Any] = {
        "epochs": config.overfit.steps,
        "lr": config.overfit.lr,
        "batch_size": None,
        "schedule": linear_decay,
    }
    found = []
    for way, value, prior, method in (
        ("L2: mode, Gaussian prior", strength, gaussian, bnn.MAP(**training)),
        ("posterior, Gaussian prior", strength, gaussian, bnn.MeanField(**training)),
        ("L1: mode, Laplace prior", strength / 10, laplace, bnn.MAP(**training)),
    ):
        model = bnn.BNN(net, prior, bnn.likelihoods.Gaussian(config.noise_scale))
        posterior = bnn.fit(model, rows, method, seed=seed, progress=False, compile="graph")
        draws = posterior.draws(posterior.num_draws or 200)
        errors = [float((posterior.predict(x, draws=draws).mean - y).square().mean()) for x, y in (rows, held)]
        found.append(score(way, value, errors))
    return found


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and standard errors over repetitions; the gain on no penalty is paired."""
    found = []
    for same in zip(*(run["rows"] for run in runs), strict=True):
        row = {"way": same[0]["way"], "strength": same[0]["strength"]}
        for key in ("train", "test"):
            row |= with_error(key, [each[key] for each in same])
        gain = [each["test"] - run["rows"][0]["test"] for each, run in zip(same, runs, strict=True)]
        found.append({**row, **with_error("gain", gain)})
    return sorted(found, key=lambda row: (row["strength"] is not None, row["way"]))


OVERFIT = {
    "way": ("fit", ""),
    "strength": ("strength", "g"),
    "train": ("MSE of the rows fitted", ".3f"),
    "test": ("MSE of rows held out", ".3f"),
    "gain": ("held out, against no penalty", "+.3f"),
}
