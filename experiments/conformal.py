"""Do intervals and sets hold the truth as often as they say, and what does it cost? Over many random splits.

Regression: diabetes (or UCI sets of --data-dir). Rows are parted by chance into those of the fit, of the calibration
and of the test, again and again; 90 % intervals, all from the same posterior:

- posterior: its own, without calibration
- split, absolute and normalised: residuals of the calibration rows, in units of y and in predictive standard deviations
- CQR: the posterior's interval, moved by what the calibration rows lack (Romano, Patterson and Candès 2019,
  arXiv:1905.03222)
- CV+: no rows set aside, one fit a fold (Barber et al. 2021, arXiv:1905.02928)

Classification: digits; 90 % sets, again of one posterior.

Shift: the promise is for rows like those of the calibration. Noise is added to the inputs of the test rows, as by a
worse instrument: the promise is void, and the table says by how much it is missed.

    python experiments/conformal.py             # diabetes and digits, 20 splits
    python experiments/conformal.py --all       # boston, concrete, energy, yacht beside them, from --data-dir
    python experiments/conformal.py --quick     # seconds
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from frame import Study, experiment, which
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes, load_digits
from tables import Table, with_error
from torch import Tensor, nn

import bnn
from bnn import analysis
from bnn.plots import style


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    regressions: tuple[str, ...] = which(("diabetes",))
    # The coverage of one split has a standard deviation of 4 % with 110 calibration and 110 test rows.
    splits: int = which(20)
    level: float = 0.9
    fit_share: float = 0.5
    calibration_share: float = 0.25
    folds: int = 5  # of CV+
    noise: float = 1.0  # shift: in standard deviations of each input
    hidden: int = 20
    members: int = 5
    epochs: int = 300  # of one step, all rows at once
    digits: tuple[int, ...] = (600, 400)  # rows of the fit and of the calibration; the other 797 are tested
    pixel_noise: float = 0.3  # shift: standard deviation, of pixels in (0, 1)
    seed: int = 0


QUICK = Config(splits=2, folds=2, hidden=8, members=2, epochs=60, digits=(300, 400))
ALL = Config(regressions=("diabetes", "boston", "concrete", "energy", "yacht"))

Interval = tuple[Tensor, Tensor]


def rows_of(study: Study[Config], name: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets, as they are."""
    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
    else:
        with np.load(study.file(f"uci/{name}.npz")) as file:
            x, y = file["x"], file["y"]
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32)


# ----------------------------------------------------------------------------------------------------------- regression


def conformalised_quantiles(prediction: bnn.Prediction, y: Tensor, level: float, new: bnn.Prediction) -> Interval:
    """CQR: the ends of the posterior's interval, moved out (or in) by a quantile of how far y was outside (inside)."""
    low, high = prediction.interval(level)
    outside = torch.maximum(low - y, y - high).sort(0).values  # (n,)
    rank = math.ceil((len(y) + 1) * level - 1e-9)
    by = outside[rank - 1] if rank <= len(y) else torch.full_like(outside[0], math.inf)
    low, high = new.interval(level)
    return low - by, high + by


def regression(config: Config, x: Tensor, y: Tensor, split: int) -> list[dict[str, Any]]:
    """One split: coverage and mean width (in standard deviations of y) of every interval, without and with shift."""
    generator = torch.Generator().manual_seed(config.seed * 1000 + split)
    order = torch.randperm(len(y), generator=generator)
    sizes = [int(config.fit_share * len(y)), int(config.calibration_share * len(y))]
    fit, calibration, test = order.split([*sizes, len(y) - sum(sizes)])
    centre, spread = x[fit].mean(0), x[fit].std(0).clamp(min=1e-6)
    x, y = (x - centre) / spread, (y - y[fit].mean()) / y[fit].std()
    noisy = x[test] + config.noise * torch.randn(x[test].shape, generator=generator)

    torch.manual_seed(split)
    net = nn.Sequential(nn.Linear(x.shape[1], config.hidden), nn.Tanh(), nn.Linear(config.hidden, 2))
    # Of every row its own noise, so that intervals have reason to differ in width.
    model = bnn.BNN(net, bnn.priors.Normal("fan_in"), bnn.likelihoods.HeteroscedasticGaussian())
    method = bnn.Ensemble(members=config.members, of=bnn.MAP(epochs=config.epochs, batch_size=None, lr=1e-2))

    def refit(x: Tensor, y: Tensor) -> Any:
        return bnn.fit(model, (x, y), method, seed=split, progress=False).predict

    predict = refit(x[fit], y[fit])
    known, truth = predict(x[calibration]), y[calibration]
    both = torch.cat([fit, calibration])
    made = {unit: analysis.split_intervals(known, truth, unit) for unit in ("absolute", "normalised")}
    crossed = analysis.cv_plus(refit, x[both], y[both], folds=config.folds, seed=split)
    found = []
    for shift, inputs in (("none", x[test]), ("shift", noisy)):
        new = predict(inputs)
        intervals = {
            "posterior": new.interval(config.level),
            "split, absolute": made["absolute"].interval(new, config.level),
            "split, normalised": made["normalised"].interval(new, config.level),
            "CQR": conformalised_quantiles(known, truth, config.level, new),
            "CV+": crossed.interval(inputs, config.level),
        }
        for name, (low, high) in intervals.items():
            inside = (low <= y[test]) & (y[test] <= high)
            score = {"coverage": 100 * float(inside.double().mean()), "size": float((high - low).mean())}
            found.append({"shift": shift, "way": name, **score})
    return found


# ------------------------------------------------------------------------------------------------------- classification


def largest_first(prediction: bnn.Prediction, level: float) -> Tensor:
    """The posterior's own set, without calibration: the most probable classes until they hold `level`; ``(n, k)``."""
    probs, order = prediction.probs.sort(1, descending=True)
    inside = probs.cumsum(1) - probs < level
    return torch.zeros_like(inside).scatter(1, order, inside)


def classification(config: Config, split: int) -> list[dict[str, Any]]:
    """One split of digits: coverage and mean size of every kind of set, without and with shift."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.as_tensor(x / 16, dtype=torch.float32), torch.as_tensor(y).long()
    generator = torch.Generator().manual_seed(config.seed * 1000 + split)
    fit, calibration, test = torch.randperm(len(y), generator=generator).split(
        [*config.digits, len(y) - sum(config.digits)]
    )
    torch.manual_seed(split)
    net = nn.Sequential(nn.Linear(64, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 10))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    mode = bnn.MAP(epochs=config.epochs // 2, batch_size=None, lr=2e-2)
    posterior = bnn.fit(model, (x[fit], y[fit]), mode, seed=split, progress=False)
    known = posterior.predict(x[calibration])
    # A seed of its own for every split: sets are partly random, and one random vector for all would be part of all.
    kinds = ("adaptive", "regularised", "threshold")
    made = {kind: analysis.split_sets(known, y[calibration], kind, seed=split) for kind in kinds}
    noisy = x[test] + config.pixel_noise * torch.randn(x[test].shape, generator=generator)
    found = []
    for shift, images in (("none", x[test]), ("shift", noisy)):
        new = posterior.predict(images)
        sets = {"posterior": largest_first(new, config.level)}
        sets |= {kind: each.sets(new, config.level, seed=split) for kind, each in made.items()}
        for name, held in sets.items():
            inside = held[torch.arange(len(test)), y[test]]
            score = {"coverage": 100 * float(inside.double().mean()), "size": float(held.sum(1).double().mean())}
            found.append({"shift": shift, "way": name, **score})
    return found


# ------------------------------------------------------------------------------------------------------ what is written


def summary(splits: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for shift, way in dict.fromkeys((row["shift"], row["way"]) for row in splits[0]):
        own = [row for split in splits for row in split if (row["shift"], row["way"]) == (shift, way)]
        scores = {
            name: value
            for key in ("coverage", "size")
            for name, value in with_error(key, [r[key] for r in own]).items()
        }
        rows.append({"shift": shift, "way": way, **scores})
    return rows


def draw(config: Config, results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Coverage against size: one column a set of data, one colour with and one without shift."""
    figure = Figure(figsize=(4.6 * len(results), 3.8), layout="constrained")
    for ax, (name, rows) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        ways = list(dict.fromkeys(row["way"] for row in rows))
        for place, (shift, colour, mark) in enumerate((("none", style.BLUE, "o"), ("shift", style.VERMILLION, "s"))):
            own = {row["way"]: row for row in rows if row["shift"] == shift}
            heights = np.arange(len(ways))[::-1] + 0.12 * (1 - 2 * place)
            coverage = [own[way]["coverage"] for way in ways]
            errors = [2 * (own[way]["coverage_se"] or 0.0) for way in ways]
            label = "rows like the calibration's" if shift == "none" else "shifted rows"
            ax.errorbar(coverage, heights, xerr=errors, fmt=mark, color=colour, ms=4, capsize=2, label=label)
        ax.axvline(100 * config.level, color="0.6", lw=0.8, zorder=0)
        sizes = {row["way"]: row["size"] for row in rows if row["shift"] == "none"}
        unit = "classes" if "threshold" in sizes else "sd wide"
        ax.set_yticks(np.arange(len(ways))[::-1], [f"{way}\n{sizes[way]:.2f} {unit}" for way in ways])
        ax.set(
            xlabel=f"truth inside, % (line: {100 * config.level:.0f} % promised)",
            title=name,
            ylim=(-0.6, len(ways) - 0.4),
        )
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, title="bars: two standard errors"
    )
    return figure


COLUMNS = {
    "way": ("interval or set", ""),
    "shift": ("shift", ""),
    "coverage": ("truth inside, %", ".1f"),
    "size": ("width in sd of y, or number of classes", ".2f"),
}


@experiment(Config(), quick=QUICK, everything=ALL)
def main(study: Study[Config]) -> None:
    config, results = study.config, {}
    for name in config.regressions:
        x, y = rows_of(study, name)
        work = functools.partial(regression, config, x, y)
        results[name] = summary(
            [study.unit(f"{name}-{split}", functools.partial(work, split)) for split in range(config.splits)]
        )
    results["digits"] = summary(
        [
            study.unit(f"digits-{split}", functools.partial(classification, config, split))
            for split in range(config.splits)
        ]
    )
    study.figure("coverage", draw(config, results))
    text = f"{config.splits} splits, level {config.level:g}; ± one standard error over splits."
    study.finish(results, [Table(name, COLUMNS, rows) for name, rows in results.items()], text)


if __name__ == "__main__":
    main()
