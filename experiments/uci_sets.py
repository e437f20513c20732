"""The sets of `uci.py`, and what others reported on them.

A set is an .npz file with ``x`` (n, d), ``y`` (n,), and the rows of every split, ``train_idx`` (s, n_train) and
``test_idx`` (s, n_test). It may hold ``mc_dropout_2018_test_ll`` and ``mc_dropout_2018_test_rmse`` (s,), for a
comparison by split.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from frame import Study
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: A set that needs no file: Friedman's function of five of ten inputs (Annals of Statistics 19, 1991).
MADE_UP = Path("made-up.npz")


@dataclass(frozen=True)
class Rows:
    """One split."""

    x: Floats  # (n_train, d)
    y: Floats  # (n_train,)
    x_test: Floats
    y_test: Floats
    twins: NDArray[np.bool_]  # (n_test,): the row, inputs and target, is a training row too


@dataclass(frozen=True)
class Published:
    """One row of ``published_uci.csv``."""

    set: str
    method: str
    metric: str  # "ll" or "rmse"
    mean: float
    error: float | None
    verified: bool
    note: str


def find(study: Study[Any], name: str) -> Path:
    """The file of a set, by its name in the data folder or by a path."""
    if name == MADE_UP.stem:
        return MADE_UP
    return Path(name) if name.endswith(".npz") else study.file(f"uci/{name}.npz")


def read(place: Path) -> dict[str, Any]:
    if place == MADE_UP:
        return made_up()
    with np.load(place) as file:
        return dict(file)


def made_up(rows: int = 80, splits: int = 20) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.random((rows, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    order = np.stack([rng.permutation(rows) for _ in range(splits)])
    cut = rows - rows // 10
    return {"x": x, "y": y + rng.standard_normal(rows), "train_idx": order[:, :cut], "test_idx": order[:, cut:]}


def split_of(place: Path, split: int) -> Rows:
    """The rows of one split.

    Raises:
        ValueError: There are fewer splits.
    """
    held = read(place)
    if split >= len(held["train_idx"]):
        raise ValueError(f"{place} has {len(held['train_idx'])} splits: there is none of number {split}")
    x, y = held["x"].astype(np.float64), held["y"].astype(np.float64)
    train, test = held["train_idx"][split], held["test_idx"][split]
    known = {row.tobytes() for row in np.column_stack([x, y])[train]}
    twins = np.array([row.tobytes() in known for row in np.column_stack([x, y])[test]])
    return Rows(x[train], y[train], x[test], y[test], twins)


def mc_dropout(place: Path) -> tuple[Floats, Floats] | None:
    """Log-densities and RMSE of MC dropout (2018) by split, where the file has them."""
    held = read(place)
    names = ("mc_dropout_2018_test_ll", "mc_dropout_2018_test_rmse")
    if not all(name in held for name in names):
        return None
    return held[names[0]], held[names[1]]


def read_published(study: Study[Any]) -> list[Published]:
    """What papers report; nothing, where the file is not there."""
    place = study.data_dir / "published_uci.csv"
    if not place.exists():
        return []
    with place.open(encoding="utf-8", newline="") as file:
        return [
            Published(
                row["dataset"],
                row["method"],
                row["metric"],
                float(row["mean"]),
                float(row["stderr"]) if row["stderr"] else None,
                row["verified"].startswith("yes"),
                row["note"],
            )
            for row in csv.DictReader(file)
        ]
