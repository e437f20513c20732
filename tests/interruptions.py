"""Fits that are broken off at chosen steps, and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from killing import digest

import bnn
from bnn.inference.loop import Training

__all__ = ["Broken", "broken_at", "digest", "resumed"]

Fit = Callable[[bnn.Checkpoint | None], bnn.Posterior]


class Broken(Exception):
    """What breaks a fit off."""


@contextmanager
def broken_at(step: int | None, error: type[BaseException] = Broken) -> Any:
    """In the place of optimiser step `step` of the whole fit, counted from 1, an error; None: never."""
    real = Training._step

    def step_or_break(self: Training, group: list[Any]) -> None:
        if len(self.stats) + 1 == step:
            raise error
        real(self, group)

    with mock.patch.object(Training, "_step", step_or_break):
        yield


def resumed(fit: Fit, folder: Path, breaks: Sequence[int], every: int = 2) -> bnn.Posterior:
    """A fit that is broken off at these steps, one call after the other, and then goes on to its end."""
    place = bnn.Checkpoint(folder, seconds=3600, steps=every)
    for step in breaks:
        with broken_at(step):
            try:
                fit(place)
            except Broken:
                continue
            raise AssertionError(f"the fit has no step {step}")
    return fit(place)
