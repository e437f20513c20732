"""The 20 splits of Hernandez-Lobato and Adams (2015): how well are test rows of small tables predicted?

Each split has 90 % of the rows for training. All that is chosen is chosen from these: `fitted` never sees a test row.
Reported are the root mean squared error and the mean log-density of a test row, in the target's own units, each as a
mean over splits with its standard error, beside published figures and, split by split, beside MC dropout of 2018.

    python experiments/uci.py                         # auto on five splits of four sets: minutes
    python experiments/uci.py --all                   # every set, split and method: overnight
    python experiments/uci.py --sets my.npz           # any set in the same format (see uci_sets.py)
    python experiments/uci.py --quick                 # seconds, on a made-up set

Every split is a unit of its own: a run that was interrupted goes on, and with --splits 20 finds those it has.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from frame import Study, experiment, which
from tables import Table
from uci_sets import Floats, Published, Rows, find, read_published, split_of
from uci_tables import DIFFERENCES, OURS, PUBLISHED, UNSEEN, beside, draw_sets, summary, unseen

import bnn
from bnn.likelihoods import HeteroscedasticGaussian


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    sets: tuple[str, ...] = which(("yacht", "boston", "energy", "concrete"))  # names, or paths of .npz files
    splits: int = which(5)  # the first so many of 20
    methods: tuple[str, ...] = which(("auto",))
    nets: tuple[str, ...] = which(("50",))  # units of each hidden layer; the papers' nets are 50, one of them 50-50
    processes: int = which(2)
    # Training steps of the methods that train: 40 times the rows a batch over the rows, in epochs (as in the papers).
    epochs: int = 400
    ensemble: int = 5  # members, as of Deep Ensembles
    dtype: str = "float32"
    compile: str = "auto"
    seed: int = 0


Make = Callable[[Config, tuple[int, ...]], Any]


def regressor(config: Config, hidden: tuple[int, ...], **settings: Any) -> bnn.BayesianRegressor:
    own = {"dtype": config.dtype, "compile": config.compile, "random_state": config.seed}
    return bnn.BayesianRegressor(hidden, "tanh", **own, **settings)


def auto(config: Config, hidden: tuple[int, ...]) -> bnn.BayesianRegressor:
    """As it comes: the same call for every table."""
    return regressor(config, hidden, method="auto")


def laplace(config: Config, hidden: tuple[int, ...]) -> bnn.BayesianRegressor:
    return regressor(config, hidden, method=bnn.Laplace(of=bnn.MAP(epochs=config.epochs)))


def ensemble(config: Config, hidden: tuple[int, ...]) -> bnn.BayesianRegressor:
    """Members under the prior, noise that the network gives: Deep Ensembles without adversarial training."""
    members = bnn.Ensemble(members=config.ensemble, of=bnn.MAP(epochs=config.epochs))
    return regressor(config, hidden, method=members, likelihood=HeteroscedasticGaussian())


def ensemble_one_scale(config: Config, hidden: tuple[int, ...]) -> bnn.BayesianRegressor:
    return regressor(config, hidden, method=bnn.Ensemble(members=config.ensemble, of=bnn.MAP(epochs=config.epochs)))


def mean_field(config: Config, hidden: tuple[int, ...]) -> bnn.BayesianRegressor:
    return regressor(config, hidden, method=bnn.MeanField(epochs=config.epochs))


def mean_field_uneven(config: Config, hidden: tuple[int, ...]) -> bnn.BayesianRegressor:
    method = bnn.MeanField(epochs=config.epochs)
    return regressor(config, hidden, method=method, likelihood=HeteroscedasticGaussian())


def linear(config: Config, hidden: tuple[int, ...]) -> bnn.BayesianRegressor:
    """A line with Gaussian noise: the floor."""
    return regressor(config, (), method=bnn.Laplace(of=bnn.MAP(epochs=config.epochs)))


METHODS: dict[str, Make] = {
    "auto": auto,
    "laplace": laplace,
    "ensemble": ensemble,
    "ensemble-one-scale": ensemble_one_scale,
    "mean-field": mean_field,
    "mean-field-uneven": mean_field_uneven,
    "linear": linear,
}

QUICK = Config(sets=("made-up",), splits=2, methods=("laplace",), nets=("4",), processes=1, epochs=20, compile="eager")
ALL = Config(
    sets=("yacht", "boston", "energy", "concrete", "wine"),
    splits=20,
    methods=tuple(METHODS),
    nets=("50", "100", "50-50"),
)


# ----------------------------------------------------------------------------------------------------------------------
# One split


def fitted(config: Config, net: str, method: str, x: Floats, y: Floats) -> Any:
    """The estimator, from training rows alone."""
    hidden = tuple(int(units) for units in net.split("-"))
    return METHODS[method](config, hidden).fit(x, y)


def scored(estimator: Any, rows: Rows) -> dict[str, float]:
    """RMSE and mean log-density of test rows, and of those whose inputs and target are in no training row."""
    log_density = estimator.predict_distribution(rows.x_test).log_prob(torch.from_numpy(rows.y_test)).numpy()
    squares = np.square(estimator.predict(rows.x_test) - rows.y_test)
    new = ~rows.twins
    return {
        "rmse": float(np.sqrt(squares.mean())),
        "ll": float(log_density.mean()),
        "worst": float(log_density.min()),
        "rmse_new": float(np.sqrt(squares[new].mean())),
        "ll_new": float(log_density[new].mean()),
        "twins": float(rows.twins.mean()),
    }


def one_split(study: Study[Config], job: tuple[str, str, str, int]) -> dict[str, Any]:
    """What is found of one set, net, method and split; from its file, if an earlier run has left it there."""
    name, net, method, split = job
    place = find(study, name)

    def work() -> dict[str, Any]:
        torch.set_num_threads(1)
        rows = split_of(place, split)
        started = time.perf_counter()
        estimator = fitted(study.config, net, method, rows.x, rows.y)
        seconds = time.perf_counter() - started
        settings = estimator.posterior_.settings
        chose = settings.get("auto", settings["method"])
        return {**scored(estimator, rows), "seconds": seconds, "chose": chose, "rows": len(rows.y)}

    found = study.unit(f"{place.stem}-{net}-{method}-{split:02d}", work)
    return {"set": place.stem, "net": net, "method": method, "split": split, **found}


def all_splits(study: Study[Config]) -> Iterator[dict[str, Any]]:
    """Every unit, several at a time; split by split, so that an interrupted run has all sets."""
    config = study.config
    jobs = [
        (name, net, method, split)
        for split, net, method, name in itertools.product(
            range(config.splits), config.nets, config.methods, config.sets
        )
    ]
    work = partial(one_split, study)
    if config.processes == 1:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half-way
    with ProcessPoolExecutor(config.processes, mp_context=context) as pool:
        for job, found in zip(jobs, pool.map(work, jobs), strict=True):
            study.seconds[f"{job[0]}-{job[1]}-{job[2]}-{job[3]:02d}"] = found["seconds"]
            yield found


# ----------------------------------------------------------------------------------------------------------------------
# All of them


@experiment(Config(), quick=QUICK, everything=ALL)
def main(study: Study[Config]) -> None:
    unknown = set(study.config.methods) - set(METHODS)
    if unknown:
        raise ValueError(f"methods are {', '.join(METHODS)}, not {', '.join(sorted(unknown))}")
    found = list(all_splits(study))
    published: list[Published] = read_published(study)
    rows = summary(found, {find(study, name).stem: find(study, name) for name in study.config.sets})
    tables = [
        Table("ours", OURS, rows, "Mean over splits ± standard error, in the target's own units."),
        Table("paired", DIFFERENCES, rows, "Log-density less that of MC dropout of 2018, split by split."),
        Table("published", PUBLISHED, beside(rows, published), "Ours is `auto` with one hidden layer of 50 units."),
        Table("unseen", UNSEEN, unseen(rows), "Test rows without those that stand in the training rows too."),
    ]
    study.figure("log_density", draw_sets(rows, published))
    study.finish({"splits": found, "summary": rows}, [table for table in tables if table.rows])


if __name__ == "__main__":
    main()
