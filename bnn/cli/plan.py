"""What each column of a table is for: target, feature, identifier; decided once by the rows of the fit, and kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bnn.cli.errors import UserError
from bnn.cli.settings import Settings
from bnn.tables import Kind, Table, TableError, as_floats, nearest, repeated

#: Fewer rows with a target than this are no basis for anything.
FEWEST = 10
#: Whole numbers with at most so many values may be meant as classes.
_FEW_VALUES = 10
#: More classes than this share of the rows are none.
_MOST_CLASSES = 0.5
#: A text column with more texts than this share of its rows is rather an identifier.
_MANY_TEXTS = 0.5
_COUNTERS = re.compile(r"(|column1|unnamed.*|index|idx|id|row|row_?(id|number|nr))", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """Which columns are used, and as what."""

    task: str
    target: str
    target_kind: Kind
    features: dict[str, Kind]
    #: Columns that tell rows apart, which predictions carry along.
    ids: tuple[str, ...]
    #: The classes, as `BayesianClassifier` knows them; none of a regression.
    classes: tuple[str | int, ...] = ()

    def inputs(self, table: Table) -> pl.DataFrame:
        """The features in the order of the fit; more columns are no matter, fewer are."""
        return table.frame(self.features)

    def targets(self, table: Table) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Targets of the rows that have one, and which these are.

        Raises:
            TableError: No such column, values of another kind; a class that was not there in the fit.
        """
        values = table.values(self.target, self.target_kind) if self.target in table.columns else table.column(
            self.target, "target column"
        )  # fmt: skip
        there = values.is_not_null().to_numpy()
        if not there.any():
            raise TableError(f"the target {self.target!r} has no value in any row of {table.name}")
        found = (
            labels(values.drop_nulls(), self.target_kind)
            if self.task == "classification"
            else as_floats(values.drop_nulls())
        )
        new = [value for value in dict.fromkeys(found.tolist()) if self.classes and value not in self.classes]
        if new:
            raise TableError(
                f"the target {self.target!r} of {table.name} has the class {new[0]!r}, which was not there in the fit; "
                f"the classes are {', '.join(map(repr, self.classes[:8]))}"
            )
        return found, np.asarray(there)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Plan:
        """From JSON, checked.

        Raises:
            TypeError: It is none.
        """
        features, texts = record["features"], [record["task"], record["target"], record["target_kind"]]
        kinds = ("number", "category", "boolean", "date")
        right = isinstance(features, dict) and all(
            kind in kinds for kind in [*features.values(), record["target_kind"]]
        )
        if not right or not all(isinstance(text, str) for text in [*texts, *record["ids"]]):
            raise TypeError("the plan of the columns is damaged")
        kind = cast(Kind, record["target_kind"])
        return cls(record["task"], record["target"], kind, features, tuple(record["ids"]), tuple(record["classes"]))


def labels(values: pl.Series, kind: Kind) -> NDArray[Any]:
    """Classes as whole numbers where all are, else as texts."""
    if kind == "number":
        numbers = values.to_numpy()
        if (np.abs(numbers) < 2**53).all() and (numbers == np.round(numbers)).all():
            return np.asarray(numbers.astype(np.int64))
    shown = values if kind != "boolean" else values.cast(pl.String).str.to_titlecase()
    found = np.empty(len(values), dtype=object)
    found[:] = [str(value) for value in shown]
    return found


def make_plan(table: Table, settings: Settings) -> tuple[Plan, list[str]]:
    """Decide by the rows of a fit what each column is for.

    Returns:
        The plan, and what the user should know of it.

    Raises:
        TableError: Columns that are not there, hold nothing, the same everywhere, or values that are mistakes; too few
            rows; one class only.
    """
    for option in ("features", "drop", "categorical"):
        for name in getattr(settings, option):
            if name not in table.columns:
                raise TableError(f"--{option} names the column {name!r}, which {table.name} has not; "
                                 f"{nearest(name, table.names)}")  # fmt: skip
            if name == settings.target and option != "categorical":
                raise TableError(f"--{option} names the target {name!r}")
    target = table.column(settings.target, "target column")
    notes: list[str] = []
    task, kind = _task(table, settings, target, notes)
    plan = Plan(task, settings.target, kind, {}, ())
    found, there = plan.targets(table)
    if len(found) < FEWEST:
        raise TableError(
            f"{table.name} has {len(found)} row{'s' * (len(found) != 1)} with a target, and a fit needs {FEWEST}"
        )
    if not there.all():
        notes.append(
            f"{int((~there).sum())} of {len(there)} rows have no value of {settings.target!r}: they are left out"
        )
    classes = _classes(table, settings, found, task, notes)
    left = Table(table.name, {name: series.filter(pl.Series(there)) for name, series in table.columns.items()})
    features, ids = _features(left, table, settings, notes)
    return replace(plan, features=features, ids=tuple(ids), classes=classes), notes


def _task(table: Table, settings: Settings, target: pl.Series, notes: list[str]) -> tuple[str, Kind]:
    name = settings.target
    if not len(target.drop_nulls()):
        raise TableError(f"the target {name!r} has no value in any row of {table.name}")
    kind: Kind = "category" if name in settings.categorical else table.kind(name)
    if settings.task == "regression":
        if kind != "number":
            wrong = target.drop_nulls()[0]
            raise TableError(
                f"the target {name!r} holds no numbers (the first is {wrong!r}), which --task regression needs; "
                "--task classification takes it"
            )
        return "regression", kind
    if kind == "date":
        if settings.task == "auto":
            raise TableError(f"the target {name!r} holds dates: bnn predicts numbers and classes")
        kind = "category"
    if settings.task == "classification" or kind in ("category", "boolean"):
        return "classification", kind
    values = table.values(name, kind).drop_nulls()
    distinct = values.unique().sort()
    whole = bool((distinct == distinct.round()).all())
    if whole and distinct.to_list() in ([0, 1], [1, 2], [-1, 1]):
        notes.append(f"{name!r} has the values {distinct[0]:g} and {distinct[1]:g}: taken as classes")
        return "classification", kind
    if whole and 2 <= len(distinct) <= _FEW_VALUES:
        notes.append(
            f"{name!r} has {len(distinct)} whole numbers: taken as amounts; if they are classes: --task classification"
        )
    return "regression", kind


def _classes(
    table: Table, settings: Settings, found: NDArray[Any], task: str, notes: list[str]
) -> tuple[str | int, ...]:
    values, counts = np.unique(found, return_counts=True)
    if len(values) == 1:
        what = "one class only" if task == "classification" else "the same value in every row"
        raise TableError(f"the target {settings.target!r} of {table.name} has {what}, {values.tolist()[0]!r}")
    if task == "regression":
        return ()
    if len(values) > _MOST_CLASSES * len(found):
        hint = "--task regression" if found.dtype.kind in "if" else "another target"
        raise TableError(
            f"the target {settings.target!r} has {len(values)} different values in {len(found)} rows, which are no "
            f"classes: did you mean {hint}?"
        )
    rare = [repr(value) for value, count in zip(values.tolist(), counts, strict=True) if count < 5]
    if rare:
        notes.append(f"of the class{'es' * (len(rare) > 1)} {', '.join(rare[:5])} there are fewer than 5 rows")
    return tuple(values.tolist())


def _features(known: Table, table: Table, settings: Settings, notes: list[str]) -> tuple[dict[str, Kind], list[str]]:
    """Kinds of the columns that are fitted on, and identifiers; `known`: the rows that have a target."""
    asked = [name for name in settings.features if name not in settings.drop]
    if settings.features and not asked:
        raise TableError("--drop names every column that --features names: nothing is left to learn from")
    names = asked or [name for name in table.names if name not in (settings.target, *settings.drop)]
    if not names:
        raise TableError(
            f"{table.name} has no column but the target {settings.target!r}: there is nothing to learn from"
        )
    features: dict[str, Kind] = {}
    ids = []
    for name in names:
        kind: Kind = "category" if name in settings.categorical else known.kind(name)
        if kind == "empty" or not len(known.columns[name].drop_nulls()):
            raise TableError(f"column {name!r} of {table.name} has no value in any row: leave it out with --drop")
        values = known.values(name, kind)
        same = repeated(values)
        if same is not None:
            shown = f"{same:g}" if isinstance(same, float) else repr(same)
            raise TableError(
                f"column {name!r} of {table.name} has the same value in every row, {shown}: nothing can be learned "
                "from it, leave it out with --drop"
            )
        if not asked and name not in settings.categorical and _identifies(name, values, kind):
            ids.append(name)
            notes.append(
                f"column {name!r} tells rows apart and describes none: taken as an identifier and left out (--features "
                "would keep it)"
            )
            continue
        features[name] = kind
        _remark(name, values, kind, notes)
    if not features:
        raise TableError(
            f"{table.name} has no column to learn from but identifiers ({', '.join(map(repr, ids[:5]))}): name those "
            "to use in --features"
        )
    return features, ids


def _identifies(name: str, values: pl.Series, kind: Kind) -> bool:
    """Whether a column names each row: texts of which none comes twice, or a count of rows that says it is one."""
    if values.null_count() or values.n_unique() < len(values):
        return False
    if kind == "category":
        return True
    return kind == "number" and bool(_COUNTERS.fullmatch(name)) and bool((values == values.round()).all())


def _remark(name: str, values: pl.Series, kind: Kind, notes: list[str]) -> None:
    if kind == "date":
        notes.append(f"column {name!r} holds dates: taken as days since 1970-01-01, so that only the trend is seen")
    distinct = values.n_unique()
    if kind == "category" and distinct > _MANY_TEXTS * len(values):
        notes.append(
            f"column {name!r} has {distinct} different texts in {len(values)} rows, and little can be learned of each: "
            "--drop leaves it out"
        )


def split(plan: Plan, targets: NDArray[Any], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to fit and rows to judge by, in their order; of every class alike. No held-out rows where the share is 0.

    Raises:
        UserError: The share leaves no row on one of the sides.
    """
    rng = np.random.default_rng(seed)
    held: list[int] = []
    if plan.classes:
        for value in plan.classes:
            rows = rng.permutation(np.flatnonzero(targets == value))
            held += rows[: min(round(share * len(rows)), len(rows) - 1)].tolist()
    else:
        held = rng.permutation(len(targets))[: round(share * len(targets))].tolist()
    if share and (len(held) < 2 or len(targets) - len(held) < 2):
        raise UserError(f"test_share {share:g} of {len(targets)} rows leaves {len(held)} to judge by and "
                        f"{len(targets) - len(held)} to fit: give another, or 0 for no held-out rows")  # fmt: skip
    inside = np.zeros(len(targets), dtype=bool)
    inside[held] = True
    return np.flatnonzero(~inside), np.flatnonzero(inside)
