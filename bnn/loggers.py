"""The course of a fit written down as it runs: callbacks of `bnn.fit`, and the library's own log.

``bnn.fit(..., callbacks=[bnn.loggers.CSVLogger("run.csv")])``. The library prints nothing; what it decides is told to
the logger ``"bnn"`` of `logging`, which is silent until somebody listens: ``logging.basicConfig(level="INFO")``.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnn.writing import write_file

if TYPE_CHECKING:
    from bnn.inference.loop import Progress

#: What is written of an epoch, in this order.
FIELDS = ("epoch", "step", "loss", "nll", "kl", "validation")


class CSVLogger:
    """A table with a line for each epoch: epoch, step, loss, nll, kl, validation (empty without one).

    The file is written whole after every `every` epochs and after the last, so that whoever reads it meanwhile finds a
    table without half a line. A logger is of one fit.

    Args:
        path: The file; one that is there is replaced.
        every: Epochs between two writings.
    """

    def __init__(self, path: str | Path, *, every: int = 1):
        if every < 1:
            raise ValueError(f"every is a number of epochs from 1, not {every}")
        self.path, self.every = Path(path), every
        self._lines: list[list[Any]] = []

    def __call__(self, progress: Progress) -> None:
        """Write an epoch down."""
        values = [getattr(progress, name) for name in FIELDS]
        self._lines.append(["" if value is None else value for value in values])
        if progress.epoch % self.every == 0 or progress.epoch == progress.epochs:
            self.write()

    def write(self) -> None:
        """Write what is there by now; after early stopping, where `every` is not 1."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([FIELDS, *self._lines])
        write_file(self.path, text.getvalue().encode())


class TensorBoardLogger:
    """Curves for TensorBoard: ``train/loss``, ``train/nll``, ``train/kl`` and ``validation/log_density`` by epoch.

    Args:
        folder: Where TensorBoard looks for runs; each logger is one.

    Raises:
        ImportError: The package tensorboard is missing: ``pip install 'bnn-toolkit[tensorboard]'``.
    """

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardLogger needs tensorboard: pip install 'bnn-toolkit[tensorboard]'") from error
        self.writer = SummaryWriter(str(folder))

    def __call__(self, progress: Progress) -> None:
        """Write an epoch down."""
        values = {f"train/{name}": getattr(progress, name) for name in ("loss", "nll", "kl")}
        if progress.validation is not None:
            values["validation/log_density"] = progress.validation
        for name, value in values.items():
            if not math.isnan(value):
                self.writer.add_scalar(name, value, progress.epoch)
        if progress.epoch == progress.epochs:
            self.close()

    def close(self) -> None:
        """Have everything reach the disk; after early stopping."""
        self.writer.flush()
        self.writer.close()
