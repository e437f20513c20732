"""Which weights belong together: those into one unit, those out of one input, or each for itself."""

from __future__ import annotations

import math
from typing import Literal

import torch

Over = Literal["weights", "units", "inputs"]


def check_over(over: str) -> None:
    """Raise `ValueError` for a grouping that is none."""
    if over not in ("weights", "units", "inputs"):
        raise ValueError(f"over is 'weights', 'units' or 'inputs', not {over!r}")


def group_shape(over: Over, name: str, shape: torch.Size) -> torch.Size:
    """The shape of one number a group, which broadcasts to the parameter.

    ``"units"``: one for each index of the first dimension, which counts the units (output channels) of linear and
    convolutional layers, so that a group is a unit's incoming weights; each number of a vector is a group of its own.
    ``"inputs"``: one for each index of the second dimension, the inputs (input channels).

    Raises:
        ValueError: ``"inputs"`` of a parameter that has none, such as a bias.
    """
    if over == "weights":
        return shape
    if over == "units":
        return torch.Size([*shape[:1], *(1 for _ in shape[1:])])
    if len(shape) < 2:
        raise ValueError(
            f"over='inputs': parameter {name!r} of shape {tuple(shape)} has no dimension of inputs; give it another "
            "prior by a pattern of its own"
        )
    return torch.Size([1, shape[1], *(1 for _ in shape[2:])])


def group_dims(groups: torch.Size, shape: torch.Size) -> tuple[int, ...]:
    """The dimensions within a group, counted from the end."""
    return tuple(i - len(shape) for i, (many, size) in enumerate(zip(groups, shape, strict=True)) if many != size)


def group_size(groups: torch.Size, shape: torch.Size) -> int:
    """How many weights a group has."""
    return math.prod(shape) // max(1, math.prod(groups))
