"""The rows of a fit: read, checked, and parted into those to fit and those to judge by. Without torch, and quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bnn.cli.errors import UserError
from bnn.cli.folder import Place
from bnn.cli.plan import Plan, make_plan, split
from bnn.cli.settings import Settings
from bnn.tables import Table, TableError, parse, read_table


@dataclass(frozen=True)
class Rows:
    """Inputs as a frame, targets as the estimator takes them."""

    x: pl.DataFrame
    y: NDArray[Any]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Some of them."""
        return Rows(self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Data:
    """The rows of a fit, and what was decided about their columns."""

    plan: Plan
    train: Rows
    #: No rows where none were held out.
    held_out: Rows
    everything: Rows
    notes: list[str]
    record: dict[str, Any]


def read_data(settings: Settings, table: Table) -> Data:
    """Plan the columns, check the values, and part the rows.

    Raises:
        UserError: A table that cannot be used, in a sentence.
    """
    try:
        plan, notes = make_plan(table, settings)
        targets, there = plan.targets(table)
        everything = Rows(plan.inputs(table).filter(pl.Series(there)), targets)
    except TableError as error:
        raise UserError(str(error)) from error
    train, held = split(plan, targets, settings.test_share, settings.seed)
    path = settings.data if settings.data == "-" else str(Path(settings.data).absolute())
    record = {"path": path, "sha256": table.sha256, "rows": len(there), "rows_with_target": len(targets)}
    return Data(plan, everything.take(train), everything.take(held), everything, notes, record)


def load(settings: Settings, place: Place, stdin: Any) -> tuple[Data, bytes | None]:
    """The rows, and the bytes of the table where these came from standard input and are not kept yet.

    Raises:
        UserError: See `read_data`; a file that cannot be read.
    """
    try:
        if settings.data != "-":
            return read_data(settings, read_table(settings.data)), None
        kept = place.data.is_file()
        content = place.data.read_bytes() if kept else stdin.read()
        return read_data(settings, parse(content, "standard input")), None if kept else content
    except TableError as error:
        raise UserError(str(error)) from error
