"""Predictions of a table, as a table."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl

from bnn.cli.errors import UserError, in_words
from bnn.cli.folder import Saved, find, open_run
from bnn.cli.output import Output, muted
from bnn.tables import FORMATS, Table, TableError, nearest, read_table
from bnn.writing import write_file

#: Rows that are predicted at a time: each has a number a draw.
_CHUNK = 5_000
_SHOWN = 5


def run_predict(
    run: str, data: str, out: str, level: float | None, keep: tuple[str, ...], output: Output, stdin: Any
) -> None:
    """Everything that `bnn predict` does.

    Raises:
        UserError: A run or a table that cannot be used, a file that cannot be written.
    """
    form = _check_out(out, data)
    check_level(level)
    find(run)
    table = read(data, stdin)  # before the run, for which torch is loaded: that takes seconds
    saved = open_run(run)
    level = saved.record["interval"] if level is None else level
    frame = read_inputs(saved, table, output)
    for name in keep:
        if name not in table.columns:
            raise UserError(
                f"--keep names the column {name!r}, which {table.name} has not; {nearest(name, table.names)}"
            )
    with muted(), in_words():
        found = pl.concat([predicted(saved, part, level) for part in _chunks(frame)])
    kept = [name for name in dict.fromkeys([*saved.plan.ids, *keep]) if name in table.columns]
    front = [pl.Series("row", np.arange(1, len(frame) + 1))]
    taken = {"row", *found.columns}
    for name in kept:
        shown = name
        while shown in taken:
            shown += "_"
        taken.add(shown)
        front.append(table.columns[name].alias(shown))
    whole = pl.DataFrame(front).hstack(found)
    document: dict[str, Any] = {
        "run": str(saved.path),
        "rows": len(whole),
        "interval": level,
        "warnings": output.warned,
    }
    if out != "-":
        write_file(out, _content(whole, form))
        output.note(f"{len(whole)} row{'s' * (len(whole) != 1)} predicted: written to {out}.")
        output.document({**document, "out": out, "columns": whole.columns})
    elif output.json:
        rows = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            for row in whole.to_dicts()
        ]
        output.document({**document, "predictions": rows})
    else:
        click.echo(_content(whole, ".csv"), nl=False)


def _check_out(out: str, data: str) -> str:
    if out == "-":
        return ".csv"
    path = Path(out)
    if path.is_dir():
        raise UserError(f"{out} is a directory, and predictions are a file")
    if data != "-" and path.exists() and Path(data).exists() and path.samefile(data):
        raise UserError(f"{out} is the table itself: choose another --out")
    form = path.suffix.lower()
    if form not in FORMATS:
        raise UserError(f"{out} is of no format that is known: the name of a table ends in {', '.join(FORMATS)}")
    return form


def check_level(level: float | None) -> None:
    """Raise `UserError` for what is no probability."""
    if level is not None and not 0 < level < 1:
        raise UserError(f"interval lies between 0 and 1, not {level}")


def read(data: str, stdin: Any) -> Table:
    """`bnn.tables.read_table` for a command.

    Raises:
        UserError: A table that cannot be read.
    """
    try:
        return read_table(data, stdin)
    except TableError as error:
        raise UserError(str(error)) from error


def read_inputs(saved: Saved, table: Table, output: Output) -> pl.DataFrame:
    """The columns of a table as the run takes them; what is new in them is told.

    Raises:
        UserError: A table that cannot be used: columns missing, values of another kind than in the fit.
    """
    try:
        frame = saved.plan.inputs(table)
    except TableError as error:
        raise UserError(str(error)) from error
    for text in _news(saved, frame):
        output.warn(text)
    return frame


def _news(saved: Saved, frame: pl.DataFrame) -> Iterator[str]:
    """What the fit has not seen: categories, and missing numbers in columns that had none."""
    encoder = saved.estimator.encoder_
    for column in encoder.categorical:
        texts = frame[column.name].cast(pl.String)
        if frame[column.name].dtype == pl.Boolean:
            texts = texts.str.to_titlecase()
        new = ~texts.is_in([*column.levels]) & texts.is_not_null()
        if new.any():
            row = int(np.flatnonzero(new.to_numpy())[0])
            values = texts.filter(new).unique(maintain_order=True)
            shown = ", ".join(map(repr, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
            count = int(new.sum())
            yield (
                f"column {column.name!r} has categories that the fit had not: {shown} ({count} row{'s' * (count > 1)}, "
                f"the first is row {row + 1}); these rows are predicted as of no known category"
            )
        if not column.missing and texts.null_count():
            yield (
                f"column {column.name!r} had no missing value in the fit, and has {texts.null_count()} here: these "
                "rows are predicted as of no known category"
            )
    for column in encoder.numeric:
        gone = frame[column.name].null_count()
        if gone and not column.missing:
            yield (
                f"column {column.name!r} had no missing value in the fit, and has {gone} here: the median of the fit, "
                f"{column.median:.4g}, stands for them"
            )


def _chunks(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    for start in range(0, len(frame), _CHUNK):
        yield frame[start : start + _CHUNK]


def predicted(saved: Saved, frame: pl.DataFrame, level: float) -> pl.DataFrame:
    """Predictions of these rows, a column a figure."""
    found = saved.estimator.predict_distribution(frame)
    fields = found.likelihood.fields
    columns: dict[str, Any] = {}
    if saved.plan.classes:
        probs = saved.estimator.predict_proba(frame)
        classes = [str(value) for value in saved.estimator.classes_.tolist()]
        columns["prediction"] = [classes[i] for i in probs.argmax(axis=1)]
        columns |= {f"p_{name}": probs[:, i] for i, name in enumerate(classes)}
        parts = found.entropy
        names = ("entropy", "epistemic_entropy", "aleatoric_entropy")
        columns |= dict(zip(names, map(_flat, (parts.total, parts.epistemic, parts.aleatoric)), strict=True))
    else:
        if "mean" in fields:
            columns["mean"] = _flat(found.mean)
        if "variance" in fields:
            parts = found.variance
            columns["sd"] = _flat(parts.total.sqrt())
        if "quantile" in fields:
            columns["low"], columns["high"] = map(_flat, found.interval(level))
        if "variance" in fields:
            columns["epistemic_sd"], columns["aleatoric_sd"] = (
                _flat(parts.epistemic.sqrt()),
                _flat(parts.aleatoric.sqrt()),
            )
    return pl.DataFrame(columns)


def _flat(values: Any) -> Any:
    return values.detach().double().cpu().numpy().reshape(-1)


def _content(frame: pl.DataFrame, form: str) -> bytes:
    buffer = io.BytesIO()
    if FORMATS[form] == "text":
        frame.write_csv(buffer, separator="\t" if form == ".tsv" else ",")
    elif FORMATS[form] == "parquet":
        frame.write_parquet(buffer)
    else:
        frame.write_ipc(buffer)
    return buffer.getvalue()
