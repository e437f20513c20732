"""Scores of runs on rows whose target is known, one run or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from bnn.analysis import Estimate, paired, scores
from bnn.cli.errors import UserError, in_words
from bnn.cli.folder import Saved, find, open_run
from bnn.cli.output import Output, finite, muted
from bnn.cli.plan import split
from bnn.cli.predicting import check_level, read, read_inputs
from bnn.cli.rivals import Rival
from bnn.cli.saving import type_of
from bnn.cli.settings import from_toml, resolved
from bnn.cli.verdict import Calibration, calibration, scores_json, shown, table
from bnn.tables import Table, TableError

#: What a score is called, and which way is better.
_TITLES = {
    "log_density": ("log-density", "higher"), "accuracy": ("accuracy", "higher"), "brier": ("Brier score", "lower"),
    "nll": ("negative log-likelihood", "lower"), "ece": ("calibration error", "lower"),
    "ece_mass": ("calibration error, equal mass", "lower"), "ece_classwise": ("calibration error by class", "lower"),
    "ece_adaptive": ("calibration error by class, equal mass", "lower"), "entropy": ("entropy of the predictions", ""),
    "rmse": ("root mean squared error", "lower"), "mae": ("mean absolute error", "lower"), "crps": ("CRPS", "lower"),
    "interval_score": ("interval score", "lower"), "coverage": ("coverage", "the level"),
    "sharpness": ("mean width", ""),
}  # fmt: skip


class Judged(NamedTuple):
    """One run on some rows."""

    scores: dict[str, Estimate]
    calibration: Calibration | None
    rows: int


def run_evaluate(run: str, data: str, level: float | None, seed: int, output: Output, stdin: Any) -> None:
    """Everything that `bnn evaluate` does.

    Raises:
        UserError: A run or a table that cannot be used.
    """
    check_level(level)
    find(run)
    whole = read(data, stdin)
    saved = open_run(run)
    level = saved.record["interval"] if level is None else level
    frame = read_inputs(saved, whole, output)
    if whole.sha256 == saved.record["data"].get("sha256"):
        output.warn(
            f"{saved.path} was fitted to rows of this very table: these scores are too good, those of rows that were "
            "held out are in scores.json"
        )
    found = judged(saved, whole, frame, level, seed, output)
    output.say(f"{saved.path} ({type_of(saved.estimator)}) on {found.rows} rows of {whole.name}")
    output.say()
    shown_ = {name: value for name, value in found.scores.items() if name != "nll" or "log_density" not in found.scores}
    rows = [("score", "", "better is"), *(_line(name, value, level) for name, value in shown_.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        output.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if found.calibration is not None:
        output.say()
        output.say(f"Calibration: {found.calibration}")
    output.document(
        {
            "run": str(saved.path), "rows": found.rows, "interval": level, "scores": scores_json(found.scores),
            "calibration": None if found.calibration is None else found.calibration.to_json(),
            "warnings": output.warned,
        }
    )  # fmt: skip


def _line(name: str, value: Estimate, level: float) -> tuple[str, str, str]:
    title, better = _TITLES.get(name, (name, ""))
    return title, shown(value), f"{level:g}" if better == "the level" else better


def judged(saved: Saved, whole: Table, frame: pl.DataFrame, level: float, seed: int, output: Output) -> Judged:
    """The rows of a table that have a target, scored; how many have none is told."""
    try:
        targets, there = saved.plan.targets(whole)
    except TableError as error:
        raise UserError(str(error)) from error
    if not there.all():
        output.warn(
            f"{int((~there).sum())} of {len(there)} rows have no value of {saved.plan.target!r}: they are left out"
        )
    classes = saved.plan.classes
    y = torch.as_tensor(np.searchsorted(saved.estimator.classes_, targets) if classes else targets)
    with muted(), in_words():
        prediction = saved.estimator.predict_distribution(frame.filter(pl.Series(there)))
        found = scores(prediction, y, level=level, seed=seed)
        return Judged(found, calibration(prediction, y, found, level, seed), len(y))


def run_compare(
    runs: tuple[str, ...], data: str | None, level: float | None, seed: int, output: Output, stdin: Any
) -> None:
    """Everything that `bnn compare` does.

    Raises:
        UserError: Runs that cannot be compared, a table that cannot be used.
    """
    if len(dict.fromkeys(runs)) < 2:
        raise UserError("a comparison needs two runs or more")
    check_level(level)
    saved = {str(run.path): run for run in map(open_run, dict.fromkeys(runs))}
    first = next(iter(saved.values()))
    level = first.record["interval"] if level is None else level
    for path, run in saved.items():
        if (run.plan.task, run.plan.target, run.plan.classes) != (
            first.plan.task,
            first.plan.target,
            first.plan.classes,
        ):
            raise UserError(f"{path} predicts {run.plan.target!r} ({run.plan.task}), and {first.path} "
                            f"{first.plan.target!r} ({first.plan.task}): they cannot be compared")  # fmt: skip
    if data is None:
        whole, rows = _held_out(saved)
    else:
        whole, rows = read(data, stdin), None
    found = {}
    for path, run in saved.items():
        try:
            frame = run.plan.inputs(whole)
        except TableError as error:
            raise UserError(f"{path}: {error}") from error
        part = (
            whole if rows is None else Table(whole.name, {name: series[rows] for name, series in whole.columns.items()})
        )
        found[path] = judged(run, part, frame if rows is None else frame[rows], level, seed, output)
    _tell(found, saved, output, f"rows of {whole.name}" if data is not None else "held-out rows")


def _tell(found: dict[str, Judged], saved: dict[str, Saved], output: Output, where: str) -> None:
    order = sorted(found, key=lambda path: -found[path].scores["log_density"].mean)
    best = order[0]
    count = found[best].rows
    for line in table(
        f"Scores of {count} {where}",
        [Rival(f"{path} ({type_of(saved[path].estimator)})", found[path].scores) for path in order],
    ):
        output.say(line)
    output.say()
    differences = {}
    for path in order[1:]:
        apart = paired(found[path].scores["log_density"], found[best].scores["log_density"])
        clear = apart.mean < -1.96 * apart.standard_error
        differences[path] = {"log_density": finite(apart.mean), "standard_error": finite(apart.standard_error),
                             "clear": clear}  # fmt: skip
        judged_as = "clearly worse" if clear else "no difference that these rows can show"
        output.say(f"{path} against {best}: log-density {shown(apart)} a row, {judged_as}.")
    for path in order:
        if found[path].calibration is not None:
            output.say(f"{path}: {found[path].calibration}")
    output.document(
        {
            "best": best, "rows": count, "scores": {path: scores_json(found[path].scores) for path in order},
            "against_best": differences, "warnings": output.warned,
        }
    )  # fmt: skip


def data_of(saved: Saved, data: str | None, stdin: Any) -> Table:
    """The table of a fit: read again from where it was, or from where the user says; refused if it is another one.

    Raises:
        UserError: It is not there, or is not what it was.
    """
    where = saved.record["data"].get("path") if data is None else data
    if data is None and where == "-":
        raise UserError(f"the rows of {saved.path} came from standard input and were not kept: give them with --data")
    if data is None and not Path(str(where)).is_file():
        raise UserError(f"the rows of {saved.path} were in {where}, which is not there: give them with --data")
    whole = read(str(where), stdin)
    if whole.sha256 != saved.record["data"].get("sha256"):
        raise UserError(f"{where} is not the table that {saved.path} was fitted to: its checksum is another")
    return whole


def rows_of(saved: Saved, whole: Table) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the table that were fitted, and those that were held out."""
    settings = resolved(from_toml(saved.path / "config.toml"))
    try:
        targets, there = saved.plan.targets(whole)
    except TableError as error:
        raise UserError(str(error)) from error
    known = np.flatnonzero(there)
    train, held = split(saved.plan, targets, settings.test_share, settings.seed)
    return (known, known[:0]) if settings.refit else (known[train], known[held])


def _held_out(saved: dict[str, Saved]) -> tuple[Table, np.ndarray]:
    """The rows that all runs held out, which must be the same."""
    digests = {str(run.record["data"].get("sha256")) for run in saved.values()}
    if len(digests) > 1:
        raise UserError("these runs were fitted to different tables: give rows to compare them by with --data")
    whole = data_of(next(iter(saved.values())), None, None)
    held = [rows_of(run, whole)[1] for run in saved.values()]
    if not all(np.array_equal(rows, held[0]) for rows in held) or not len(held[0]):
        raise UserError(
            "these runs did not hold out the same rows (another --seed or --test-share, or --refit): give rows to "
            "compare them by with --data"
        )
    return whole, held[0]
