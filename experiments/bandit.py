"""Is it worth knowing what one does not know, when every mistake costs? Thompson sampling on a contextual bandit.

A table of classes is played as a game: in each round a row is shown, the player names a class, and is told no more than
whether that was right. What the others would have been worth stays unknown, so that trying costs, and so does not
trying. Regret: the number of wrong names so far; who knew all classes would have none.

All players have the same network, from a row to the log-odds of every class, under a Bernoulli likelihood in which the
classes that were not named are missing. It is fitted anew after every batch of rounds.

- greedy: the class of the largest probability at the mode
- epsilon-greedy: the same, but in every tenth round any class
- Thompson, Laplace: under one draw of the weights each round (Thompson 1933; with networks Riquelme et al. 2018,
  arXiv:1802.09127); the mode is that of the first two
- Thompson, ensemble: under one member of an ensemble, drawn anew each round (Lu and Van Roy 2017, arXiv:1705.07347)
- uniform: any class, for the scale

    python experiments/bandit.py             # digits
    python experiments/bandit.py --all       # wine and breast cancer beside them
    python experiments/bandit.py --quick     # wine, in seconds
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
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from tables import Table, with_error
from torch import Tensor, nn

import bnn
from bnn.inference import Method
from bnn.plots import style

LOADERS: dict[str, Callable[..., Any]] = {"digits": load_digits, "wine": load_wine, "breast cancer": load_breast_cancer}


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    tables: tuple[str, ...] = which(("digits",))
    rounds: int = 1000
    batch: int = 50  # rounds between two fits: 20 fits a game
    seeds: int = which(5)
    epsilon: float = 0.1
    hidden: int = 30
    members: int = 10
    epochs: int = 150  # of one step, all rounds at once
    lr: float = 2e-2
    gain: float = 1.5  # of the prior's scale: inputs are standardised, so log-odds have a spread of about 1.5 * 1.5
    seed: int = 0


QUICK = Config(tables=("wine",), rounds=100, batch=50, seeds=2, hidden=10, members=3, epochs=40)
ALL = Config(tables=("digits", "wine", "breast cancer"))


def load(name: str) -> tuple[Tensor, Tensor]:
    """Standardised rows and their classes."""
    x, y = LOADERS[name](return_X_y=True)
    x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1.0)
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y).long()


# A player: from the posterior (None before the first fit) and the rows of a batch to the classes that it names.
Player = Callable[[Config, bnn.Posterior, Tensor, torch.Generator], Tensor]


def greedy(config: Config, posterior: bnn.Posterior, x: Tensor, generator: torch.Generator) -> Tensor:
    return posterior.predict(x).outputs.mean(0).argmax(1)


def epsilon_greedy(config: Config, posterior: bnn.Posterior, x: Tensor, generator: torch.Generator) -> Tensor:
    best = greedy(config, posterior, x, generator)
    anything = torch.rand(len(x), generator=generator) < config.epsilon
    return torch.where(anything, any_class(posterior, x, generator), best)


def any_class(posterior: bnn.Posterior, x: Tensor, generator: torch.Generator) -> Tensor:
    classes = posterior.predict(x[:1]).outputs.shape[2]
    return torch.randint(classes, (len(x),), generator=generator)


def thompson(config: Config, posterior: bnn.Posterior, x: Tensor, generator: torch.Generator) -> Tensor:
    """Round i is played under draw i of the weights, a draw of its own; of an ensemble, under a member by chance."""
    few = posterior.num_draws
    seed = int(torch.randint(2**31, (), generator=generator))
    outputs = posterior.predict(x, None if few else len(x), seed=seed).outputs  # (s, n, k)
    which = torch.randint(few, (len(x),), generator=generator) if few else torch.arange(len(x))
    return outputs[which, torch.arange(len(x))].argmax(1)


def players(config: Config) -> dict[str, tuple[Method | None, Player | None]]:
    mode = bnn.MAP(epochs=config.epochs, batch_size=None, lr=config.lr)
    return {
        "Thompson, Laplace": (bnn.Laplace(of=mode, tune=None), thompson),
        "Thompson, ensemble": (bnn.Ensemble(members=config.members, of=mode), thompson),
        "epsilon-greedy": (mode, epsilon_greedy),
        "greedy": (mode, greedy),
        "uniform": (None, None),
    }


def play(config: Config, x: Tensor, y: Tensor, name: str, seed: int) -> list[int]:
    """One game: whether each round was lost, 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    classes, rounds = int(y.max()) + 1, config.rounds
    # Rows come in a random order, again and again where there are fewer than rounds; the same for all players.
    order = torch.cat([torch.randperm(len(y), generator=generator) for _ in range(-(-rounds // len(y)))])[:rounds]
    x, y = x[order], y[order]
    named = torch.randint(classes, (rounds,), generator=generator)  # the first batch is by chance, for all alike
    method, player = players(config)[name]
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], config.hidden), nn.Tanh(), nn.Linear(config.hidden, classes))
    model = bnn.BNN(net, bnn.priors.Normal("fan_in", gain=config.gain), bnn.likelihoods.Bernoulli(missing="mask"))
    for start in range(config.batch, rounds if method is not None else 0, config.batch):
        seen = torch.full((start, classes), torch.nan)
        seen[torch.arange(start), named[:start]] = (named[:start] == y[:start]).float()
        posterior = bnn.fit(model, (x[:start], seen), method, seed=seed, progress=False)
        rows = slice(start, min(start + config.batch, rounds))
        named[rows] = player(config, posterior, x[rows], generator)
    return (named != y).int().tolist()


def summary(config: Config, games: dict[str, list[list[int]]]) -> list[dict[str, Any]]:
    """Regret at the end, and in the last fifth; differences from epsilon-greedy, paired by game."""
    lost = {name: np.array(own).sum(1) for name, own in games.items()}
    late = {name: 100 * np.array(own)[:, -(config.rounds // 5) :].mean(1) for name, own in games.items()}
    base = lost["epsilon-greedy"]
    return [
        {
            "player": name,
            **with_error("regret", lost[name]),
            **({} if name == "epsilon-greedy" else with_error("difference", lost[name] - base)),
            **with_error("late", late[name]),
        }
        for name in games
    ]


def draw(table: str, games: dict[str, list[list[int]]]) -> Figure:
    """Left: regret against rounds. Right: the share of rounds lost, of the last hundred."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    looks = {
        "Thompson, Laplace": (style.BLUE, "-"),
        "Thompson, ensemble": (style.SKY, "-"),
        "epsilon-greedy": (style.VERMILLION, "--"),
        "greedy": (style.BLACK, ":"),
        "uniform": (style.GREY, "-."),
    }
    for name, own in games.items():
        colour, line = looks[name]
        lost = np.array(own, dtype=float)  # (games, rounds)
        window = max(1, min(100, lost.shape[1] // 5))
        smooth = np.apply_along_axis(np.convolve, 1, 100 * lost, np.ones(window) / window, "valid")
        for ax, values, first in ((left, lost.cumsum(1), 1), (right, smooth, window)):
            rounds = np.arange(first, first + values.shape[1])
            mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
            ax.plot(rounds, mean, color=colour, ls=line, label=name)
            ax.fill_between(rounds, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
    good = max(np.array(own).sum(1).mean() for name, own in games.items() if name != "uniform")
    left.set(xlabel="round", ylabel="regret: rounds lost so far", ylim=(0, 1.25 * good), title=f"{table}: the bill")
    right.set(xlabel="round", ylabel=f"lost, % of the last {window} rounds", ylim=(0, None), title="what is still lost")
    left.legend(loc="upper left", title="band: one standard error")
    return figure


@experiment(Config(), quick=QUICK, everything=ALL)
def main(study: Study[Config]) -> None:
    config, results, tables = study.config, {}, []
    for table in config.tables:
        x, y = load(table)
        games = {
            name: [
                study.unit(
                    f"{table}-{name}-{seed}".replace(" ", "_").replace(",", ""),
                    functools.partial(play, config, x, y, name, seed),
                )
                for seed in range(config.seed, config.seed + config.seeds)
            ]
            for name in players(config)
        }
        results[table] = summary(config, games)
        study.figure(table.replace(" ", "_"), draw(table, games))
        columns = {
            "player": ("player", ""),
            "regret": (f"regret after {config.rounds} rounds", ".1f"),
            "difference": ("less that of epsilon-greedy, paired", "+.1f"),
            "late": ("lost in the last fifth, %", ".1f"),
        }
        tables.append(Table(table, columns, results[table], f"± one standard error over {config.seeds} games."))
    study.finish(results, tables, f"A fit after every {config.batch} rounds; the first {config.batch} are by chance.")


if __name__ == "__main__":
    main()
