"""Does a network doubt more when images differ more from those it has learned? Turned and noised digits.

Ovadia et al. (2019), arXiv:1906.02530: methods that are all calibrated on test images of the usual kind part ways as
the images shift. By level of rotation and of noise, for every method: accuracy, log-density, calibration error, and the
mean entropy, which should grow as accuracy falls.

- MAP: one network
- MAP, temperature: its logits divided by a number, chosen on validation images of the usual kind (Guo et al. 2017,
  arXiv:1706.04599)
- ensemble, MC dropout, mean field; and Laplace over the last layer of the same network as MAP

    python experiments/calibration_under_shift.py             # scikit-learn's digits, five seeds
    python experiments/calibration_under_shift.py --all       # MNIST beside them, from --data-dir: hours
    python experiments/calibration_under_shift.py --quick     # seconds
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from frame import Study, experiment, which
from images import SHIFTS, Parts, digits, mnist
from matplotlib.figure import Figure
from tables import Table, with_error
from torch import Tensor, nn

import bnn
from bnn import analysis
from bnn.plots import style

#: Predictions at any images.
Predict = Callable[[Tensor], bnn.Prediction]


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    sets: tuple[str, ...] = which(("digits",))
    seeds: int = which(5)
    rows: tuple[int, ...] = (900, 300)  # of digits' training and validation; the other 597 are tested
    hidden: tuple[int, ...] = (100, 100)
    batch_size: int = 100
    epochs: int = 100  # of 9 steps; the validation log-density of MAP is flat from 60 on
    mnist_epochs: int = 20  # of 500 steps
    lr: float = 5e-3
    prior_gain: float = 4.0  # standard deviation of a weight: this over the root of the fan-in; see the page
    members: int = 10
    dropout: float = 0.2
    draws: int = 100
    rotations: tuple[float, ...] = (0.0, 15.0, 30.0, 45.0, 60.0, 75.0, 90.0)  # degrees
    noises: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # standard deviations of pixels in (0, 1)
    bins: int = 10  # of the calibration error
    seed: int = 0


QUICK = Config(seeds=1, epochs=15, members=3, hidden=(50,), draws=20, rotations=(0.0, 45.0, 90.0), noises=(0.0, 0.6))
ALL = Config(sets=("digits", "mnist"))


def network(config: Config, inputs: int, dropout: float = 0.0) -> nn.Module:
    net = bnn.nets.mlp(inputs, config.hidden, 10, dropout=dropout)
    return nn.Sequential(nn.Flatten(), net)


def decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def predictors(config: Config, name: str, parts: Parts, seed: int) -> dict[str, Predict]:
    """Every method, fitted."""
    prior, likelihood = bnn.priors.Normal("fan_in", config.prior_gain), bnn.likelihoods.Categorical()
    training: dict[str, Any] = {
        "epochs": config.mnist_epochs if name == "mnist" else config.epochs,
        "lr": config.lr,
        "batch_size": config.batch_size,
        "schedule": decay,
    }
    torch.manual_seed(seed)
    size = parts.train.x[0].numel()
    plain, thinned = (bnn.BNN(network(config, size, p), prior, likelihood) for p in (0.0, config.dropout))

    def fit(model: bnn.BNN, method: bnn.inference.Method) -> Predict:
        posterior = bnn.fit(model, tuple(parts.train), method, seed=seed, progress=False)
        return functools.partial(posterior.predict, draws=posterior.draws(posterior.num_draws or config.draws))

    of = bnn.MAP(**training)
    mode = bnn.fit(plain, tuple(parts.train), of, seed=seed, progress=False)
    scaling = analysis.fit_temperature(mode.predict(parts.validation.x), parts.validation.y)
    return {
        "MAP": mode.predict,
        "MAP, temperature": lambda x: scaling.apply(mode.predict(x)),
        "Laplace, last layer": fit(plain, bnn.Laplace(of=mode, weights="last_layer", covariance="full", tune="after")),
        "MC dropout": fit(thinned, bnn.MCDropout(**training)),
        "mean field": fit(plain, bnn.MeanField(**training, init=mode, estimator="local")),
        "ensemble": fit(plain, bnn.Ensemble(members=config.members, of=of)),
    }


def levels(config: Config) -> list[tuple[str, float]]:
    return [("rotation", level) for level in config.rotations] + [("noise", level) for level in config.noises]


def by_level(config: Config, name: str, parts: Parts, seed: int) -> list[dict[str, Any]]:
    """One repetition: fits, and their scores at every level of both shifts; the same shifted images for all."""
    rows = []
    methods = predictors(config, name, parts, seed)
    for kind, level in levels(config):
        x = SHIFTS[kind](parts.test.x, level)
        for method, predict in methods.items():
            prediction = predict(x)
            rows.append(
                {
                    "method": method,
                    "kind": kind,
                    "level": level,
                    "accuracy": 100 * analysis.accuracy(prediction, parts.test.y).mean,
                    "nll": analysis.nll(prediction, parts.test.y).mean,
                    "ece": analysis.expected_calibration_error(prediction, parts.test.y, config.bins).mean,
                    "entropy": float(prediction.entropy.total.mean()),
                }
            )
    return rows


SCORES = {
    "accuracy": "accuracy, %",
    "nll": "−log-density, nats",
    "ece": "calibration error",
    "entropy": "entropy, nats",
}


def over_seeds(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Means and standard errors; rows of all repetitions are in the same order."""
    return [
        {
            **{key: same[0][key] for key in ("method", "kind", "level")},
            **{k: v for key in SCORES for k, v in with_error(key, [row[key] for row in same]).items()},
        }
        for same in zip(*runs, strict=True)
    ]


def overall(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """By method: on images of the usual kind; and over all shifted ones, above MAP's, paired by seed."""
    rows = []

    def mean(run: Sequence[Mapping[str, Any]], method: str, key: str, *, shifted: bool) -> float:
        own = [row[key] for row in run if row["method"] == method and (row["level"] > 0) is shifted]
        return sum(own) / len(own)

    for method in dict.fromkeys(row["method"] for row in runs[0]):
        found: dict[str, Any] = {"method": method}
        for key in ("nll", "ece"):
            found |= with_error(f"{key}_usual", [mean(run, method, key, shifted=False) for run in runs])
            found |= with_error(f"{key}_shifted", [mean(run, method, key, shifted=True) for run in runs])
            gain = [mean(run, method, key, shifted=True) - mean(run, "MAP", key, shifted=True) for run in runs]
            found |= with_error(f"{key}_gain", gain)
        rows.append(found)
    return rows


LOOKS = {
    "MAP": (style.GREY, "-", "o"),
    "MAP, temperature": (style.GREY, ":", "s"),
    "Laplace, last layer": (style.SKY, "-.", "D"),
    "MC dropout": (style.BLACK, ":", "^"),
    "mean field": (style.VERMILLION, "--", "v"),
    "ensemble": (style.BLUE, "-", "P"),
}


def draw(name: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A column a shift, a row a score; bands are one standard error."""
    figure = Figure(figsize=(8.6, 9.0), layout="constrained")
    axes = figure.subplots(len(SCORES), 2, sharex="col", sharey="row")
    words = {"rotation": "turned by, degrees", "noise": "noise, sd of pixels in (0, 1)"}
    for column, (kind, label) in enumerate(words.items()):
        for ax, (key, title) in zip(axes[:, column], SCORES.items(), strict=True):
            for method, (colour, line, mark) in LOOKS.items():
                own = [row for row in rows if row["method"] == method and row["kind"] == kind]
                at, value = ([row[k] for row in own] for k in ("level", key))
                ends = [[row[key] + sign * (row[f"{key}_se"] or 0.0) for row in own] for sign in (-1, 1)]
                ax.plot(at, value, color=colour, ls=line, marker=mark, ms=4, label=method)
                ax.fill_between(at, *ends, color=colour, alpha=0.15, lw=0)
            ax.set_ylabel("" if column else title)
        axes[-1, column].set_xlabel(label)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"{name}: the further from the training images, the worse; does the method know?")
    return figure


@experiment(Config(), quick=QUICK, everything=ALL)
def main(study: Study[Config]) -> None:
    config, results, tables = study.config, {}, []
    for name in config.sets:
        runs = []
        for seed in range(config.seed, config.seed + config.seeds):
            train, validation, *_ = config.rows
            parts = mnist(study) if name == "mnist" else digits(seed, (train, validation))
            runs.append(study.unit(f"{name}-{seed}", functools.partial(by_level, config, name, parts, seed)))
        rows, summary = over_seeds(runs), overall(runs)
        results[name] = {"levels": rows, "overall": summary}
        study.figure(name, draw(name, rows))
        columns = {
            "method": ("method", ""),
            "nll_usual": ("−log-density, usual images", ".3f"),
            "nll_shifted": ("shifted", ".3f"),
            "nll_gain": ("shifted, against MAP", "+.3f"),
            "ece_usual": ("calibration error, usual images", ".3f"),
            "ece_shifted": ("shifted", ".3f"),
            "ece_gain": ("shifted, against MAP", "+.3f"),
        }
        note = "Shifted: mean over all levels above 0 of both shifts. Differences: paired by seed, below 0 is better."
        tables.append(Table(name, columns, summary, note))
        shown = {"method": ("method", ""), "kind": ("shift", ""), "level": ("level", "g")}
        scores = {key: (title, ".1f" if key == "accuracy" else ".3f") for key, title in SCORES.items()}
        tables.append(Table(f"{name} by level", {**shown, **scores}, rows))
    study.finish(results, tables, f"{config.seeds} seeds, ± one standard error over them.")


if __name__ == "__main__":
    main()
