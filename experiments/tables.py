"""The tables of experiments, for people and for programs, with standard errors."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bnn.analysis import estimate


@dataclass(frozen=True)
class Table:
    """Rows for people (Markdown) and for programs (CSV).

    Args:
        name: Of the file, and the heading in words.
        columns: What to show of a row, in order: ``{key: (heading, format)}``; where a row has ``KEY_se`` too, the
            standard error stands behind the value.
        rows: Each a flat mapping.
        note: A sentence under the table.
    """

    name: str
    columns: Mapping[str, tuple[str, str]]
    rows: Sequence[Mapping[str, Any]]
    note: str = ""

    def markdown(self) -> str:
        lines = [[heading for heading, _ in self.columns.values()], ["---"] * len(self.columns)]
        lines += [[_cell(row, key, spec) for key, (_, spec) in self.columns.items()] for row in self.rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{text}\n\n{self.note}" if self.note else text

    def csv(self) -> str:
        """All numbers in full, standard errors in columns of their own."""
        keys = [key for shown in self.columns for key in (shown, f"{shown}_se")]
        keys = [key for key in keys if any(key in row for row in self.rows)]
        text = io.StringIO()
        writer = csv.DictWriter(text, keys, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def _cell(row: Mapping[str, Any], key: str, spec: str) -> str:
    value, error = row.get(key), row.get(f"{key}_se")
    if value is None:
        return "–"
    return f"{value:{spec}}" if error is None else f"{value:{spec}} ± {error:{spec.replace('+', '')}}"


def with_error(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """The mean over independent repetitions, and its standard error (None for a single one): ``NAME``, ``NAME_se``."""
    found = estimate(torch.tensor(list(values), dtype=torch.float64))
    return {name: found.mean, f"{name}_se": found.standard_error if len(values) > 1 else None}
