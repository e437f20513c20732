"""The first dimension of inputs, the rows: any number of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.fx.experimental._config


def any_rows() -> AbstractContextManager[Any]:
    """While torch records: layouts in memory are not looked up for the example's own number of rows.

    Else a guess of ``channels_last`` leaves the record with a least number of rows.
    """
    patched: AbstractContextManager[Any] = torch.fx.experimental._config.patch(  # type: ignore[attr-defined]
        backed_size_oblivious=True
    )
    return patched


def rows_first(example: Any) -> Any:
    """Which dimensions of inputs may change: the first of each."""
    if isinstance(example, Mapping):
        return {name: rows_first(value) for name, value in example.items()}
    if isinstance(example, tuple):
        return tuple(rows_first(value) for value in example)
    return {0: torch.export.Dim("rows", min=1)}
