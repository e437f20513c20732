"""Which images should be labelled next? BALD against predictive entropy and against chance.

A pool of images without labels, and an ensemble. In each round every image of the pool gets a score, images are drawn
with probabilities in proportion to it, without replacement, and labelled, and the ensemble is trained anew on all
labels so far. (The best ones would be the same image ten times over: Kirsch et al. 2023, arXiv:2106.12059.) Scores:

- BALD: the mutual information of label and weights (Houlsby et al. 2011, arXiv:1112.5745; with images Gal et al. 2017,
  arXiv:1703.02910): where the members disagree, each being sure
- entropy: of the averaged prediction: where the ensemble is unsure for whatever reason
- random: chance

All three start from the same labels in each repetition, so that their differences are paired.

    python experiments/active_learning.py             # digits of scikit-learn, six repetitions
    python experiments/active_learning.py --all       # MNIST beside them, from --data-dir; hours
    python experiments/active_learning.py --quick     # seconds
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from frame import Study, experiment, which
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from tables import Table, with_error
from torch import Tensor, nn

import bnn
from bnn import analysis
from bnn.plots import style


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    sets: tuple[str, ...] = which(("digits",))
    scores: tuple[str, ...] = which(("BALD", "entropy", "random"))
    start: int = 40  # labels, drawn by chance: with fewer an ensemble does not yet know what it does not know
    batch: int = 10  # labels a round
    rounds: int = 16  # 40 + 16 * 10 = 200 labels: more change little on digits
    seeds: int = which(6)
    pool: int = 1000  # of 1,797 digits; the others are the test set
    hidden: int = 50
    members: int = 10  # BALD needs to see disagreement: of five members there are but ten pairs
    epochs: int = 150  # of one step, all labels at once; the loss is flat from 100 on
    lr: float = 1e-2
    seed: int = 0


QUICK = Config(start=20, rounds=2, batch=20, seeds=1, pool=300, members=3, epochs=40, hidden=20)
ALL = Config(sets=("digits", "mnist"))


def images(study: Study[Config], name: str) -> tuple[Tensor, Tensor]:
    """All images as rows in (0, 1), and labels. Of MNIST the training set: the test set is not touched."""
    if name == "mnist":
        with np.load(study.file("mnist.npz")) as file:
            x, y = file["x_train"].reshape(60_000, 784) / 255, file["y_train"]
    else:
        x, y = load_digits(return_X_y=True)
        x = x / 16
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y).long()


SCORES: dict[str, Callable[[bnn.Prediction], Tensor]] = {
    "BALD": analysis.bald,
    "entropy": lambda prediction: prediction.entropy.total,
    "random": lambda prediction: torch.ones(prediction.num_rows),
}


def learn(config: Config, x: Tensor, y: Tensor, score: str, seed: int) -> list[dict[str, Any]]:
    """One repetition: labels, test accuracy and log-density of every round."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    pool, test = order[: config.pool], order[config.pool :][:10_000]
    labelled, left = pool[: config.start], pool[config.start :]
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], config.hidden), nn.ReLU(), nn.Linear(config.hidden, 10))
    # Weights of variance 1 hold a net of 20 labels back but little: it fits them, and is free elsewhere.
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    method = bnn.Ensemble(
        members=config.members, of=bnn.MAP(epochs=config.epochs, batch_size=None, lr=config.lr), start="reset"
    )
    found = []
    for round in range(config.rounds + 1):
        posterior = bnn.fit(model, (x[labelled], y[labelled]), method, seed=seed, progress=False)
        tested = posterior.predict(x[test])
        found.append(
            {
                "labels": len(labelled),
                "accuracy": float((tested.probs.argmax(1) == y[test]).double().mean()),
                "log_density": float(tested.log_prob(y[test]).mean()),
            }
        )
        if round < config.rounds:
            weights = SCORES[score](posterior.predict(x[left])).clamp(min=1e-12)
            drawn = weights.multinomial(config.batch, generator=generator)
            chosen = torch.zeros(len(left), dtype=torch.bool).index_fill(0, drawn, True)
            labelled, left = torch.cat([labelled, left[chosen]]), left[~chosen]
    return found


def curves(config: Config, runs: dict[str, list[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """One row a score and number of labels, over repetitions."""
    rows = []
    for score, seeds in runs.items():
        for steps in zip(*seeds, strict=True):
            accuracy = with_error("accuracy", [100 * step["accuracy"] for step in steps])
            density = with_error("log_density", [step["log_density"] for step in steps])
            rows.append({"score": score, "labels": steps[0]["labels"], **accuracy, **density})
    return rows


def gains(config: Config, runs: dict[str, list[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """By how much a score is better than chance: mean over the rounds after the first, paired by repetition."""

    def over_rounds(score: str, key: str) -> np.ndarray:
        return np.array([[step[key] for step in steps[1:]] for steps in runs[score]]).mean(1)

    rows = []
    for score in [name for name in runs if name != "random"]:
        accuracy = 100 * (over_rounds(score, "accuracy") - over_rounds("random", "accuracy"))
        density = over_rounds(score, "log_density") - over_rounds("random", "log_density")
        rows.append({"score": score, **with_error("accuracy", accuracy), **with_error("log_density", density)})
    return rows


def draw(name: str, rows: list[dict[str, Any]]) -> Figure:
    """Accuracy against labels, with one standard error on each side."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    ax = figure.subplots()
    marks = {"BALD": (style.BLUE, "-", "o"), "entropy": (style.VERMILLION, "--", "s"), "random": (style.GREY, ":", "^")}
    for score in dict.fromkeys(row["score"] for row in rows):
        own = [row for row in rows if row["score"] == score]
        labels, mean = ([row[key] for row in own] for key in ("labels", "accuracy"))
        error = np.array([row["accuracy_se"] or 0.0 for row in own])
        colour, line, mark = marks[score]
        ax.plot(labels, mean, color=colour, ls=line, marker=mark, ms=4, label=score)
        ax.fill_between(labels, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
    ax.set(xlabel="labels", ylabel="test accuracy, %", title=f"{name}: which image to label next?")
    ax.legend(title="chosen by (band: one standard error)")
    return figure


@experiment(Config(), quick=QUICK, everything=ALL)
def main(study: Study[Config]) -> None:
    config, results, tables = study.config, {}, []
    for name in config.sets:
        x, y = images(study, name)
        runs = {
            score: [
                study.unit(f"{name}-{score}-{seed}", functools.partial(learn, config, x, y, score, seed))
                for seed in range(config.seed, config.seed + config.seeds)
            ]
            for score in config.scores
        }
        rows = curves(config, runs)
        study.figure(name, draw(name, rows))
        results[name] = {"curves": rows}
        if "random" in runs:
            results[name]["gain"] = gains(config, runs)
            tables.append(
                Table(
                    f"{name} better than chance",
                    {
                        "score": ("chosen by", ""),
                        "accuracy": ("accuracy, percentage points", "+.2f"),
                        "log_density": ("log-density, nats", "+.3f"),
                    },
                    results[name]["gain"],
                    "Mean over all rounds after the first, paired by repetition; ± one standard error.",
                )
            )
        columns = {"score": ("chosen by", ""), "labels": ("labels", ""), "accuracy": ("test accuracy, %", ".2f")}
        shown = [row for row in rows if (row["labels"] - config.start) // config.batch % 4 == 0]
        tables.append(
            Table(name, {**columns, "log_density": ("log-density, nats", ".3f")}, shown, "Every fourth round.")
        )
    text = f"{config.seeds} repetitions; an ensemble of {config.members}; {config.batch} labels a round."
    study.finish(results, tables, text)


if __name__ == "__main__":
    main()
