"""What every step told."""

from __future__ import annotations

import torch
from torch import Tensor

#: Steps that there is room for at first.
_ROOM = 1024


class StepRecord:
    """Loss, nll and kl of every step in one tensor that grows; a tensor a step would take fifty times the memory.

    Args:
        table: ``(steps, 3)``, of steps that are done.
    """

    def __init__(self, table: Tensor | None = None):
        self._space = table if table is not None else torch.zeros(0, 3)
        self._count = len(self._space)

    def __len__(self) -> int:
        return self._count

    @property
    def table(self) -> Tensor:
        """``(steps, 3)``."""
        return self._space[: self._count]

    def append(self, row: Tensor) -> None:
        """One more step, ``(3,)``."""
        if self._count == len(self._space):
            self._space = torch.cat([self._space.to(row), row.new_empty(max(_ROOM, self._count), 3)])
        self._space[self._count] = row.detach()
        self._count += 1
