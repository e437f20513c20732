"""Learning one task after the other: what is forgotten when the old data are gone?

Digits whose pixels are permuted, by another permutation in each task (Goodfellow et al. 2013, arXiv:1312.6211): every
task is as hard as the first, and asks other weights of the first layer. One network with one set of outputs meets them
in turn, and never sees the rows of an earlier task again.

- posterior to prior, mean field: `posterior.as_prior()` is the prior of the next task (variational continual learning,
  Nguyen et al. 2018, arXiv:1710.10628)
- posterior to prior, Laplace: the same with a Gaussian at the mode (Ritter et al. 2018, arXiv:1805.07810), of the
  curvature's diagonal alone, which is elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796)
- fine-tuning: training goes on from the last weights, under the first prior
- joint: all rows of all tasks so far at once; what could be had without forgetting

Forgetting of a task: its accuracy just after it was learned, less that at the end.

    python experiments/continual.py             # five tasks, three repetitions
    python experiments/continual.py --quick     # two tasks, in seconds
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
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
from bnn.inference import Method
from bnn.plots import style
from bnn.priors import Prior


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    tasks: int = 5
    seeds: int = which(3)
    train: int = 1000  # rows a task; the other 797 are its test set
    hidden: int = 50  # more than one task needs, so that there is room for five
    epochs: int = 100  # of ceil(1000 / 128) = 8 steps
    lr: float = 1e-2
    draws: int = 50  # of the weights, for predictions
    seed: int = 0


QUICK = Config(tasks=2, seeds=1, train=400, hidden=10, epochs=25, draws=10)

Task = tuple[Tensor, Tensor, Tensor, Tensor]  # x and y to learn from, x and y to test on


def tasks_of(config: Config, seed: int) -> list[Task]:
    """Task 0 has the pixels as they are; the others a permutation each, of the same rows."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.as_tensor(x / 16, dtype=torch.float32), torch.as_tensor(y).long()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=generator)
    train, test = order[: config.train], order[config.train :]
    found = []
    for task in range(config.tasks):
        pixels = torch.randperm(64, generator=generator) if task else torch.arange(64)
        found.append((x[train][:, pixels], y[train], x[test][:, pixels], y[test]))
    return found


def model_of(config: Config, seed: int, prior: Prior | Mapping[str, Prior | None]) -> bnn.BNN:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 10))
    return bnn.BNN(net, prior, bnn.likelihoods.Categorical())


def methods(config: Config, last: bnn.Posterior | None) -> dict[str, Method]:
    """Of the next task; training starts from the last weights, where there are any."""
    training: dict[str, Any] = {"epochs": config.epochs, "lr": config.lr, "init": last or "net"}
    return {
        "mean field": bnn.MeanField(**training),
        "Laplace": bnn.Laplace(of=bnn.MAP(**training), covariance="diag", tune=None),
        "fine-tuning": bnn.MAP(**training),
        "joint": bnn.MAP(**training),
    }


def learn(config: Config, name: str, seed: int) -> list[list[float]]:
    """Accuracy after each task (rows) on all tasks (columns), those to come among them; in percent."""
    tasks = tasks_of(config, seed)
    first = bnn.priors.Normal(1.0)
    last: bnn.Posterior | None = None
    accuracies = []
    for number, (x, y, _, _) in enumerate(tasks):
        carried = last is not None and name in ("mean field", "Laplace")
        model = model_of(config, seed, last.as_prior("diag") if carried and last else first)
        if name == "joint":
            x, y = (torch.cat([task[part] for task in tasks[: number + 1]]) for part in (0, 1))
        last = bnn.fit(model, (x, y), methods(config, last)[name], seed=seed, progress=False)
        accuracies.append([accuracy(config, last, task) for task in tasks])
    return accuracies


def accuracy(config: Config, posterior: bnn.Posterior, task: Task) -> float:
    _, _, x, y = task
    prediction = posterior.predict(x, None if posterior.num_draws else config.draws)
    return 100 * float((prediction.probs.argmax(1) == y).double().mean())


def summary(config: Config, runs: dict[str, list[list[list[float]]]]) -> list[dict[str, Any]]:
    """One row a way of learning, over repetitions."""
    rows = []
    for name, found in runs.items():
        table = np.array(found)  # (repetitions, after task, on task)
        learned = np.diagonal(table, axis1=1, axis2=2)  # (repetitions, tasks)
        end = table[:, -1]
        rows.append(
            {
                "way": name,
                **with_error("learned", learned.mean(1)),
                **with_error("end", end.mean(1)),
                **with_error("first", end[:, 0]),
                **with_error("forgotten", (learned - end)[:, :-1].mean(1)),
            }
        )
    return rows


WAYS = ("mean field", "Laplace", "fine-tuning", "joint")
COLUMNS = {
    "way": ("way of learning", ""),
    "learned": ("a task just after it was learned, %", ".1f"),
    "end": ("all tasks at the end, %", ".1f"),
    "first": ("the first task at the end, %", ".1f"),
    "forgotten": ("forgotten, percentage points", ".1f"),
}
LOOKS: dict[str, Callable[..., Any]] = {
    "mean field": functools.partial(dict, color=style.BLUE, ls="-", marker="o"),
    "Laplace": functools.partial(dict, color=style.SKY, ls="-", marker="s"),
    "fine-tuning": functools.partial(dict, color=style.VERMILLION, ls="--", marker="^"),
    "joint": functools.partial(dict, color=style.GREY, ls=":", marker="d"),
}


def draw(config: Config, runs: dict[str, list[list[list[float]]]]) -> Figure:
    """Left: accuracy on the first task, as others follow. Right: the mean over all tasks met so far."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    steps = np.arange(1, config.tasks + 1)
    for name, found in runs.items():
        table = np.array(found)
        sofar = np.stack([table[:, t, : t + 1].mean(1) for t in range(config.tasks)], 1)
        for ax, values in ((left, table[:, :, 0]), (right, sofar)):
            error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
            ax.errorbar(steps, values.mean(0), error, capsize=2, ms=4, label=name, **LOOKS[name]())
    for ax, title in ((left, "the first task"), (right, "all tasks so far, on average")):
        ax.axhline(10, color="0.8", lw=0.8)
        ax.set(xlabel="tasks learned, one after the other", title=title, xticks=steps, ylim=(0, 100))
    left.set_ylabel("test accuracy, %")
    left.annotate("chance", (1, 11.5), color="0.5", fontsize=8)
    right.legend(loc="lower left", title="bars: one standard error")
    return figure


@experiment(Config(), quick=QUICK)
def main(study: Study[Config]) -> None:
    config = study.config
    runs = {
        name: [
            study.unit(f"{name.replace(' ', '_')}-{seed}", functools.partial(learn, config, name, seed))
            for seed in range(config.seed, config.seed + config.seeds)
        ]
        for name in WAYS
    }
    rows = summary(config, runs)
    study.figure("forgetting", draw(config, runs))
    text = (
        f"{config.tasks} permutations of digits, {config.train} rows each; ± one standard error of {config.seeds} runs."
    )
    study.finish({"rows": rows, "accuracy": runs}, [Table("forgetting", COLUMNS, rows)], text)


if __name__ == "__main__":
    main()
