"""Digits as images, what befalls them, and what is no digit: for the experiments that look at images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from frame import Study
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F


class Images(NamedTuple):
    """``(n, 1, size, size)`` in (0, 1), and labels ``(n,)``."""

    x: Tensor
    y: Tensor

    def rows(self, which: slice | Tensor) -> Images:
        return Images(self.x[which], self.y[which])


class Parts(NamedTuple):
    """Choices are made on the validation rows; the test rows are for the final figures."""

    train: Images
    validation: Images
    test: Images


def digits(seed: int = 0, sizes: tuple[int, int] = (900, 300), size: int = 8) -> Parts:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, parted by chance.

    Args:
        seed: Of the parting.
        sizes: Rows of training and of validation; the others are tested.
        size: Rows and columns to which they are magnified.
    """
    x, y = load_digits(return_X_y=True)
    images = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    if size != 8:
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    every = Images(images[order], torch.as_tensor(y)[order].long())
    train, validation = sizes
    return Parts(
        every.rows(slice(train)),
        every.rows(slice(train, train + validation)),
        every.rows(slice(train + validation, None)),
    )


def mnist(study: Study[Any], rows: int = 50_000) -> Parts:
    """MNIST: the last 10,000 rows of its training set are for validation.

    Args:
        study: Knows the folder of the data.
        rows: Of the training set, from its beginning; at most 50,000.
    """
    with np.load(study.file("mnist.npz")) as file:
        train, test = (
            Images(
                torch.as_tensor(file[f"x_{part}"], dtype=torch.float32).reshape(-1, 1, 28, 28) / 255,
                torch.as_tensor(file[f"y_{part}"]).long(),
            )
            for part in ("train", "test")
        )
    return Parts(train.rows(slice(rows)), train.rows(slice(50_000, None)), test)


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Turned about the centre, anticlockwise, by bilinear interpolation; black comes in at the edges."""
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def noised(x: Tensor, sd: float, seed: int = 0) -> Tensor:
    """With Gaussian noise in every pixel; what leaves (0, 1) stops at its ends, as in a camera."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return (x + sd * noise).clamp(0, 1)


def strangers(known: Images, seed: int = 0) -> dict[str, Tensor]:
    """Images that are no digits as a network has learned them, made of `known` ones or as bright.

    - uniform noise: every pixel by itself
    - blobs: smooth noise whose pixels have the values of a digit's: as much ink, no strokes
    - quarters: the four quarters of a digit in another order: strokes, no digit
    - mirrored: a digit that looks other in a mirror (2, 3, 4, 5, 6, 7, 9): near, and a few read as a digit
    """
    generator = torch.Generator().manual_seed(seed)
    x, size = known.x, known.x.shape[-1]
    coarse = torch.randn(len(x), 1, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False).flatten(1)
    ink = x.flatten(1).sort(1).values
    blobs = torch.empty_like(ink).scatter_(1, smooth.argsort(1), ink).reshape(x.shape)
    half = size // 2
    (a, b), (c, d) = ((part[..., :half], part[..., half:]) for part in (x[..., :half, :], x[..., half:, :]))
    quarters = torch.cat([torch.cat([d, a], -1), torch.cat([b, c], -1)], -2)
    handed = torch.isin(known.y, torch.tensor([2, 3, 4, 5, 6, 7, 9]))
    return {
        "uniform noise": torch.rand(x.shape, generator=generator),
        "blobs": blobs,
        "quarters": quarters,
        "mirrored": x[handed].flip(-1),
    }


#: What is done to an image, and how much of it: ``{name: f(x, level)}``.
SHIFTS: dict[str, Callable[[Tensor, float], Tensor]] = {"rotation": rotated, "noise": noised}
