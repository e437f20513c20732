"""The page of a run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnn.cli.errors import UserError, in_words
from bnn.cli.evaluating import data_of, rows_of
from bnn.cli.folder import REPORT, Saved, open_run
from bnn.cli.output import Output, muted
from bnn.tables import Table, TableError


def run_report(run: str, data: str | None, out: str | None, seed: int, output: Output, stdin: Any) -> None:
    """Everything that `bnn report` does.

    Raises:
        UserError: A run or a table that cannot be used, a place that cannot be written.
    """
    from bnn.files import add_file
    from bnn.writing import write_file

    if out is not None and Path(out).is_dir():
        raise UserError(f"{out} is a directory, and a report is a file")
    saved = open_run(run)
    whole = data_of(saved, data, stdin)
    output.note("Writing the report ...")
    content = _page(saved, whole, seed)
    path = add_file(saved.path, REPORT, content) if out is None else write_file(out, content)
    output.say(f"Written to {path}.")
    output.document({"run": str(saved.path), "report": str(path), "warnings": output.warned})


def _page(saved: Saved, whole: Table, seed: int) -> bytes:
    from bnn.reporting import report

    model, plan = saved.estimator, saved.plan
    train, held = rows_of(saved, whole)
    try:
        frame = plan.inputs(whole)
        targets, there = plan.targets(whole)
    except TableError as error:
        raise UserError(str(error)) from error
    places = np.cumsum(there) - 1  # of a row among those that have a target

    def rows(which: np.ndarray) -> tuple[Any, Any]:
        return model.encode_inputs(frame[which]), model.encode_targets(targets[places[which]])

    judged = held if len(held) else train
    with muted(), in_words(), tempfile.TemporaryDirectory() as folder:
        path = report(
            model.posterior_,
            rows(train),
            Path(folder) / REPORT,
            held_out=rows(held) if len(held) else None,
            title=f"{saved.path.name}: {plan.target}",
            target=plan.target,
            columns=columns(model),
            classes=[str(value) for value in plan.classes] or None,
            command=f"bnn fit -c {saved.path / 'config.toml'} --out NEW",
            level=saved.record["interval"],
            seed=seed,
            units=_units(model, judged, plan.classes),
        )
        return path.read_bytes()


def columns(model: Any) -> list[str]:
    """Names of the encoded columns: numbers, then indicators of missing ones, then levels."""
    encoder = model.encoder_
    names = [column.name for column in encoder.numeric]
    names += [f"{column.name} missing" for column in encoder.numeric if column.missing]
    for column in encoder.categorical:
        names += [f"{column.name}: {level}" for level in column.levels]
        names += [f"{column.name} missing"] * column.missing
    return names


def _units(model: Any, judged: np.ndarray, classes: tuple[Any, ...]) -> Any:
    from bnn.estimators.units import in_units
    from bnn.reporting.subject import OwnUnits

    encoder = model.encoder_
    means, scales = torch.zeros(encoder.width).double(), torch.ones(encoder.width).double()
    for i, column in enumerate(encoder.numeric):
        means[i], scales[i] = column.mean, column.scale
    loc, scale = (0.0, 1.0) if classes else (float(model.target_mean_), float(model.target_scale_))
    same = loc == 0.0 and scale == 1.0
    map_ = (lambda found: found) if same else lambda found: in_units(found, np.asarray(loc), np.asarray(scale))
    return OwnUnits(loc, scale, map_, means, scales, (judged + 1).tolist())
