"""Every method's band on one page: curves of one input, with NUTS as the reference.

Sets: a curve with a gap (made here); with --data-dir also Snelson's 200 points, mcycle's 133 (whose noise is not the
same everywhere, so that the net has a second output for it), the Matern draws of Antoran et al. (2020), and the CO2 of
Mauna Loa by its date and season, the last years held out. The same Pyro model under every method. Distances are
between predictive distributions at inputs on a grid, those of the held-out rows for CO2:

- TV: total variation, 1/2 int |p(y) - q(y)| dy, the mean over inputs; 0 is right, 1 the largest
- W1: 1-Wasserstein, the mean distance between quantiles, in units of the reference's predictive standard deviation
- epistemic: the standard deviation of the function beside that of NUTS, geometric mean over inputs; 1 is right
- held out: mean log-density of rows that were not fitted, and how many of them the 90 % interval holds

    python experiments/toy_regression.py             # the curve, Snelson and mcycle
    python experiments/toy_regression.py --all       # all five
    python experiments/toy_regression.py --quick     # the curve alone, in seconds; the numbers mean nothing
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fits import QUICK as QUICK_BUDGET
from fits import Budget, every_method, posterior_of, rhat
from frame import Study, experiment, which
from matplotlib.figure import Figure
from pyro import distributions as dist
from tables import Table
from torch import Tensor, nn

import bnn
from bnn import analysis
from bnn.likelihoods import Gaussian, HeteroscedasticGaussian
from bnn.plots import style


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    sets: tuple[str, ...] = which(("curve", "snelson", "mcycle"))
    skip: tuple[str, ...] = which(("NUTS again", "HMC", "full rank", "Laplace, last layer"))  # near one that stays
    hidden: int = 50
    gain: float = 2.0  # weights N(0, (2)^2 / fan-in): functions that turn several times between -2 and 2
    noise_prior: float = 0.3  # half-normal, in units of the standardised target
    held_out: float = 0.2  # of the rows, by chance
    dropout: float = 0.05
    draws: int = 400
    grid: int = 81  # inputs at which distributions are compared
    levels: int = 99  # quantiles of W1
    points: int = 400  # of the quadrature of TV
    budget: Budget = field(default_factory=Budget)
    seed: int = 0


QUICK = Config(
    sets=("curve",),
    skip=(
        *("NUTS again", "HMC", "ChEES", "full rank", "low rank", "IVON", "SVGD", "SGHMC", "SWAG", "MC dropout"),
        *("Laplace, full", "Laplace, last layer"),
    ),
    hidden=6,
    draws=20,
    grid=15,
    levels=9,
    points=40,
    budget=QUICK_BUDGET,
)
ALL = Config(sets=("curve", "snelson", "mcycle", "toy1d", "co2"), skip=())


@dataclass(frozen=True)
class Rows:
    """Standardised rows, and inputs to compare at; the first column of inputs is that of the figure."""

    name: str
    train: tuple[Tensor, Tensor]  # (n, d), (n, 1), or (n,) where the noise has an output of its own
    test: tuple[Tensor, Tensor]
    at: Tensor  # (m, d)
    heteroscedastic: bool = False


def read(study: Study[Config], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as they are, (n,) each."""
    rng = np.random.default_rng(study.config.seed)
    if name == "curve":  # 75 rows in two clumps, so that there is a gap to be unsure in: sin(3 x), noise 0.1
        x = np.concatenate([rng.uniform(-1.6, -0.5, 37), rng.uniform(0.4, 1.6, 38)])
        return x, np.sin(3 * x) + 0.1 * rng.standard_normal(len(x))
    files = {"toy1d": "toy1d_dun.npz", "co2": "co2_mauna_loa.npz"}
    with np.load(study.file(files.get(name, f"{name}.npz"))) as file:
        if name == "toy1d":
            return file["matern"][:, 0], file["matern"][:, 1]
        step = 8 if name == "co2" else 1  # CO2: one week of eight, 279 rows, so that NUTS takes minutes
        return file["x"][::step], file["y"][::step]


def rows_of(study: Study[Config], name: str) -> Rows:
    x, y = read(study, name)
    late = x > x.max() - 10 if name == "co2" else None  # ten years ahead
    order = np.random.default_rng(study.config.seed).permutation(len(x))
    cut = round(study.config.held_out * len(x))
    test, train = (late, ~late) if late is not None else (order[:cut], order[cut:])
    centre, spread = x[train].mean(), x[train].std()
    scaled = (x - centre) / spread
    reach = 0.15 * (scaled.max() - scaled.min())  # beyond the rows, where nothing is known
    at = np.linspace(scaled.min() - reach, scaled.max() + reach, study.config.grid)
    inputs = [scaled[:, None], at[:, None]]
    if name == "co2":  # the season is known of any date
        season = np.stack([np.sin(2 * np.pi * x), np.cos(2 * np.pi * x)], 1)
        inputs[0] = np.concatenate([inputs[0], season], 1)
        inputs[1] = inputs[0][test]
    target = (y - y[train].mean()) / y[train].std()
    target = target if name == "mcycle" else target[:, None]
    x32, y32, at32 = (torch.as_tensor(np.asarray(a), dtype=torch.float32) for a in (inputs[0], target, inputs[1]))
    return Rows(name, (x32[train], y32[train]), (x32[test], y32[test]), at32, name == "mcycle")


def model_of(config: Config, data: Rows, dropout: float = 0.0) -> bnn.BNN:
    torch.manual_seed(config.seed)
    outputs = 2 if data.heteroscedastic else 1
    layers = [nn.Linear(data.at.shape[1], config.hidden), nn.Tanh(), nn.Linear(config.hidden, outputs)]
    if dropout:
        layers.insert(2, nn.Dropout(dropout))
    noise = HeteroscedasticGaussian() if data.heteroscedastic else Gaussian(dist.HalfNormal(config.noise_prior))
    return bnn.BNN(nn.Sequential(*layers), bnn.priors.Normal("fan_in", gain=config.gain), noise)


def wasserstein(config: Config, prediction: bnn.Prediction, truth: bnn.Prediction) -> float:
    """1-Wasserstein at each input, int |F^-1 - G^-1|, in standard deviations of the reference; the mean over inputs."""
    levels = (torch.arange(config.levels) + 0.5) / config.levels
    apart = (prediction.quantile(levels) - truth.quantile(levels)).abs().mean(0)
    return float((apart / truth.std).mean())


def predictions(study: Study[Config], data: Rows, name: str) -> tuple[bnn.Posterior, bnn.Prediction, bnn.Prediction]:
    """The posterior, and what it predicts on the grid and of the rows held out."""
    posterior = posterior_of(study, data.name, data.train, name, functools.partial(model_of, study.config, data))
    draws = None if posterior.num_draws else study.config.draws
    return posterior, posterior.predict(data.at, draws), posterior.predict(data.test[0], draws)


def measured(study: Study[Config], data: Rows, name: str) -> dict[str, Any]:
    """The figures of one method on one set, and its band for the picture."""
    posterior, prediction, tested = predictions(study, data, name)
    _, truth, _ = predictions(study, data, "NUTS")
    low, high = tested.interval(0.9)
    inside = ((low <= data.test[1]) & (data.test[1] <= high)).double().flatten()
    density = analysis.estimate(tested.log_prob(data.test[1]))
    far = analysis.distance(prediction, truth, grid=study.config.points)
    band = [end.flatten().tolist() for end in (prediction.mean, *prediction.interval(0.9))]
    return {
        "method": name,
        "tv": far.total_variation,
        "w1": wasserstein(study.config, prediction, truth),
        "epistemic": far.epistemic,
        "log_density": density.mean,
        "log_density_se": density.standard_error,
        "coverage": 100 * float(inside.mean()),
        "coverage_se": 100 * float(inside.std() / math.sqrt(len(inside))),
        "seconds": posterior.history.seconds,
        "rhat": rhat(posterior, data.at) if name == "NUTS" else None,
        "band": band,
    }


def draw(data: Rows, rows: list[dict[str, Any]]) -> Figure:
    """One panel a method: its 90 % band over that of NUTS, nearest first."""
    columns = 4
    height = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(11, 2.3 * height), layout="constrained")
    panels = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).ravel()
    x, order = data.at[:, 0], data.at[:, 0].argsort()
    (_, low, high), (lowest, highest) = (
        np.array(rows[0]["band"]),
        (float(data.train[1].min()), float(data.train[1].max())),
    )
    room = highest - lowest
    for ax, row in zip(panels, sorted(rows, key=lambda row: row["tv"]), strict=False):
        mean, own_low, own_high = np.array(row["band"])
        ax.fill_between(x[order], low[order], high[order], color="0.75", lw=0, label="NUTS")
        ax.fill_between(
            x[order], own_low[order], own_high[order], color=style.BLUE, alpha=0.3, lw=0, label="the method"
        )
        ax.plot(x[order], mean[order], color=style.BLUE, lw=1)
        ax.plot(data.train[0][:, 0], data.train[1].flatten(), ".", color=style.BLACK, ms=1.5)
        ax.plot(data.test[0][:, 0], data.test[1].flatten(), ".", color=style.VERMILLION, ms=2.5, label="held out")
        words = "the reference" if row["method"] == "NUTS" else f"TV {row['tv']:.2f}, {row['seconds']:.0f} s"
        ax.set_title(f"{row['method']}\n{words}", fontsize=8)
        ax.set_ylim(lowest - 0.6 * room, highest + 0.6 * room)
    for ax in panels[len(rows) :]:
        ax.remove()
    for ax in panels[max(0, len(rows) - columns) : len(rows)]:  # the lowest of every column
        ax.tick_params(labelbottom=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"{data.name}: 90 % bands of every method (blue) over that of NUTS (grey)")
    return figure


COLUMNS = {
    "method": ("method", ""),
    "tv": ("TV", ".3f"),
    "w1": ("W1", ".3f"),
    "epistemic": ("epistemic", ".2f"),
    "log_density": ("held-out log-density", ".3f"),
    "coverage": ("held out inside 90 %", ".0f"),
    "seconds": ("seconds", ".1f"),
}


@experiment(Config(), quick=QUICK, everything=ALL)
def main(study: Study[Config]) -> None:
    config, results, tables = study.config, {}, []
    for name in config.sets:
        data = rows_of(study, name)
        names = ["NUTS", *(m for m in every_method(config.budget, len(data.train[0])) if m not in config.skip)]
        rows = [
            study.unit(
                f"{name}-{method}".replace(",", "").replace(" ", "_"), functools.partial(measured, study, data, method)
            )
            for method in names
        ]
        study.figure(name, draw(data, rows))
        results[name] = [{key: value for key, value in row.items() if key != "band"} for row in rows]
        note = f"R-hat of the functions of NUTS at most {rows[0]['rhat']:.3f}."
        tables.append(Table(name, COLUMNS, sorted(results[name], key=lambda row: row["tv"]), note))
    study.finish(results, tables, "Standardised targets; ± one standard error over the rows held out.")


if __name__ == "__main__":
    main()
