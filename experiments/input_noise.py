"""What do inputs that were measured with noise do to a fit, and what undoes it? Errors in variables.

A line: y = slope * x + noise, x ~ N(0, 1), but what is recorded is x + N(0, s). A fit that takes the readings for the
inputs finds slope / (1 + s^2): the attenuation (Fuller 1987, *Measurement Error Models*). With ``input_noise=s`` the
true inputs are unknowns of the model.

- ignored: the readings as inputs
- by draws: ``input_noise=s``, averaged over draws of every row's inputs
- learned: the same with a Gaussian of its own for each row's inputs, ``MeanField(local="learned")``
- true inputs: as they were before the instrument, which nobody has; for the scale

A curve, sin(2 x): the same with a network of one hidden layer; how far the function is from the true one.

    python experiments/input_noise.py             # two noises, eight repetitions
    python experiments/input_noise.py --quick     # seconds
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from frame import Study, experiment, which
from matplotlib.figure import Figure
from tables import Table, with_error
from torch import Tensor, nn

import bnn
from bnn.plots import style


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    noises: tuple[float, ...] = which((0.5, 1.0))  # in standard deviations of x
    seeds: int = which(8)
    rows: int = 200
    slope: float = 1.0
    noise_in_y: float = 0.4
    epochs: int = 400  # of one step, all rows at once
    lr: float = 0.03  # falls to 0 over the epochs, so that the noise of the draws is averaged out
    draws: int = 2  # of the weights a step
    curve_noise: float = 0.4
    curve_rows: int = 300
    hidden: int = 20
    curve_epochs: int = 1000
    seed: int = 0


QUICK = Config(noises=(0.75,), seeds=1, rows=150, epochs=120, curve_rows=150, hidden=10, curve_epochs=120)

WAYS = ("ignored", "by draws", "learned", "true inputs")


def decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def line(config: Config, noise: float, seed: int) -> dict[str, dict[str, float]]:
    """Mean and 90 % interval of the slope's posterior, for every way."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(config.rows, 1, generator=generator)
    y = config.slope * x + config.noise_in_y * torch.randn(x.shape, generator=generator)
    read = x + noise * torch.randn(x.shape, generator=generator)
    settings: dict[str, Any] = {"epochs": config.epochs, "batch_size": None, "lr": config.lr, "schedule": decay}
    settings |= {"average": 0.3, "draws": config.draws}
    found = {}
    for way in WAYS:
        net = nn.Linear(1, 1)
        # Where the noise is large the posterior by draws has a second, lower mode at slopes of the wrong sign: from a
        # random slope a fit may end there.
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        uncertain = {"input_noise": noise} if way in ("by draws", "learned") else {}
        model = bnn.BNN(net, bnn.priors.Normal(2.0), bnn.likelihoods.Gaussian(config.noise_in_y), **uncertain)
        method = bnn.MeanField(**settings, local="learned" if way == "learned" else "draws")
        inputs = x if way == "true inputs" else read
        slope = bnn.fit(model, (inputs, y), method, seed=seed, progress=False).draws(4000)["weight"].flatten()
        low, high = (float(slope.quantile(q)) for q in (0.05, 0.95))
        found[way] = {"slope": float(slope.mean()), "low": low, "high": high}
    return found


def curve(config: Config, seed: int) -> dict[str, Any]:
    """Functions on a grid, the readings, and how far the functions are from the truth where most inputs are."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.rand(config.curve_rows, 1, generator=generator) - 1.5
    y = torch.sin(2 * x) + 0.2 * torch.randn(x.shape, generator=generator)
    read = x + config.curve_noise * torch.randn(x.shape, generator=generator)
    grid = torch.linspace(-1.5, 1.5, 61)[:, None]
    truth = torch.sin(2 * grid)
    method = bnn.MAP(epochs=config.curve_epochs, batch_size=None, lr=config.lr, schedule=decay, average=0.3)
    found: dict[str, Any] = {
        "x": grid.flatten().tolist(),
        "truth": truth.flatten().tolist(),
        "functions": {},
        "rmse": {},
    }
    for way in ("ignored", "by draws", "true inputs"):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1, config.hidden), nn.Tanh(), nn.Linear(config.hidden, 1))
        uncertain = {"input_noise": config.curve_noise} if way == "by draws" else {}
        model = bnn.BNN(net, bnn.priors.Normal("fan_in", gain=2.0), bnn.likelihoods.Gaussian(0.2), **uncertain)
        posterior = bnn.fit(model, (x if way == "true inputs" else read, y), method, seed=seed, progress=False)
        with torch.no_grad():
            function: Tensor = posterior.net(0)(grid)  # at inputs that are known, for every way
        found["functions"][way] = function.flatten().tolist()
        found["rmse"][way] = float((function - truth).square().mean().sqrt())
    found["readings"] = [read.flatten().tolist(), y.flatten().tolist()]
    return found


def slopes(config: Config, lines: dict[float, list[dict[str, dict[str, float]]]]) -> list[dict[str, Any]]:
    """One row a noise and way, over repetitions."""
    rows = []
    for noise, seeds in lines.items():
        for way in WAYS:
            own = [seed[way] for seed in seeds]
            inside = [100.0 * (each["low"] <= config.slope <= each["high"]) for each in own]
            rows.append(
                {
                    "noise": noise,
                    "way": way,
                    **with_error("slope", [each["slope"] for each in own]),
                    "theory": config.slope / (1 + noise**2) if way == "ignored" else config.slope,
                    **with_error("width", [each["high"] - each["low"] for each in own]),
                    **with_error("coverage", inside),
                }
            )
    return rows


LOOKS = {
    "ignored": (style.VERMILLION, "s"),
    "by draws": (style.BLUE, "o"),
    "learned": (style.SKY, "D"),
    "true inputs": (style.GREY, "^"),
}


def draw(config: Config, rows: list[dict[str, Any]], example: dict[str, Any]) -> Figure:
    """Left: slopes against the instrument's noise. Right: one repetition of the curve."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    fine = np.linspace(0, 1.1 * max(config.noises), 100)
    left.plot(fine, config.slope / (1 + fine**2), color=style.VERMILLION, lw=0.8, label="theory: slope / (1 + s²)")
    left.axhline(config.slope, color="0.7", lw=0.8, label="true slope")
    for place, way in enumerate(WAYS):
        own = [row for row in rows if row["way"] == way]
        at = [row["noise"] + 0.015 * (place - 1.5) for row in own]
        colour, mark = LOOKS[way]
        error = [2 * (row["slope_se"] or 0.0) for row in own]
        left.errorbar(at, [row["slope"] for row in own], error, fmt=mark, ms=4, capsize=2, color=colour, label=way)
    left.set(xlabel="noise of the readings, in sd of x", ylabel="slope", title="a line (bars: two standard errors)")
    left.set_ylim(0.3 * config.slope, 1.35 * config.slope)
    left.legend(loc="lower left", fontsize=7.5)

    right.plot(*example["readings"], ".", color="0.75", ms=3, label="readings")
    right.plot(example["x"], example["truth"], color=style.BLACK, lw=1, ls=":", label="truth")
    for way, function in example["functions"].items():
        colour, _ = LOOKS[way]
        right.plot(example["x"], function, color=colour, lw=1.8, label=f"{way}: off by {example['rmse'][way]:.2f}")
    right.set(
        xlabel="x", ylabel="y", title=f"a curve, noise {config.curve_noise:g}: the first repetition", ylim=(-1.9, 1.9)
    )
    right.legend(loc="upper left", fontsize=7.5)
    return figure


@experiment(Config(), quick=QUICK)
def main(study: Study[Config]) -> None:
    config = study.config
    seeds = range(config.seed, config.seed + config.seeds)
    lines = {
        noise: [study.unit(f"line-{noise:g}-{seed}", functools.partial(line, config, noise, seed)) for seed in seeds]
        for noise in config.noises
    }
    curves = [study.unit(f"curve-{seed}", functools.partial(curve, config, seed)) for seed in seeds]
    rows = slopes(config, lines)
    off = [{"way": way, **with_error("rmse", [each["rmse"][way] for each in curves])} for way in curves[0]["rmse"]]
    study.figure("input_noise", draw(config, rows, curves[0]))
    columns = {
        "noise": ("noise", "g"),
        "way": ("inputs", ""),
        "slope": ("slope", ".3f"),
        "theory": ("in theory", ".3f"),
        "width": ("width of the 90 % interval", ".3f"),
        "coverage": ("true slope inside, %", ".0f"),
    }
    tables = [
        Table("a line", columns, rows),
        Table("a curve", {"way": ("inputs", ""), "rmse": ("root mean square distance from the truth", ".3f")}, off),
    ]
    study.finish({"line": rows, "curve": off}, tables, f"{config.seeds} repetitions, ± one standard error.")


if __name__ == "__main__":
    main()
