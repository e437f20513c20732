"""Gaussian blocks: a covariance kept as a root of it, in the form in which it is cheap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bnn.approximations.base import Values


class Block(ABC):
    """A zero-mean Gaussian over d numbers with covariance ``R R'``."""

    #: The name under which it is saved.
    kind: ClassVar[str]

    @property
    @abstractmethod
    def size(self) -> int:
        """D, how many numbers."""

    @abstractmethod
    def spread(self, noise: Tensor) -> Tensor:
        """``R noise``: a draw from standard noise ``(..., d)``."""

    @abstractmethod
    def project(self, rows: Tensor) -> Tensor:
        """``rows R``, of ``(..., d)``: the covariance of ``rows w`` is this times its transpose."""

    @abstractmethod
    def log_det(self) -> Tensor:
        """The logarithm of the covariance's determinant."""

    @abstractmethod
    def tensors(self) -> Values:
        """What has to be saved: the arguments."""

    @abstractmethod
    def to(self, like: Tensor) -> Block:
        """In another dtype, on another device, and contiguous, as from a file: so that sums have the same order."""


class Dense(Block):
    """Any covariance.

    Args:
        root: ``(d, d)``, triangular (either way).
    """

    kind = "dense"

    def __init__(self, root: Tensor):
        if root.dim() != 2 or root.shape[0] != root.shape[1]:
            raise ValueError(f"the root of a dense block is square; its shape is {tuple(root.shape)}")
        self.root = root

    @property
    def size(self) -> int:
        """See `Block`."""
        return len(self.root)

    def spread(self, noise: Tensor) -> Tensor:
        """See `Block`."""
        return noise @ self.root.mT

    def project(self, rows: Tensor) -> Tensor:
        """See `Block`."""
        return rows @ self.root

    def log_det(self) -> Tensor:
        """See `Block`."""
        return 2 * self.root.diagonal().abs().log().sum()

    def tensors(self) -> Values:
        """See `Block`."""
        return {"root": self.root}

    def to(self, like: Tensor) -> Dense:
        """See `Block`."""
        return Dense(self.root.to(like).contiguous())


class Diagonal(Block):
    """Independent numbers.

    Args:
        scale: ``(d,)``, their standard deviations.
    """

    kind = "diagonal"

    def __init__(self, scale: Tensor):
        if scale.dim() != 1:
            raise ValueError(f"the scale of a diagonal block is a vector; its shape is {tuple(scale.shape)}")
        self.scale = scale

    @property
    def size(self) -> int:
        """See `Block`."""
        return len(self.scale)

    def spread(self, noise: Tensor) -> Tensor:
        """See `Block`."""
        return noise * self.scale

    def project(self, rows: Tensor) -> Tensor:
        """See `Block`."""
        return rows * self.scale

    def log_det(self) -> Tensor:
        """See `Block`."""
        return 2 * self.scale.log().sum()

    def tensors(self) -> Values:
        """See `Block`."""
        return {"scale": self.scale}

    def to(self, like: Tensor) -> Diagonal:
        """See `Block`."""
        return Diagonal(self.scale.to(like))


class Kronecker(Block):
    """A matrix ``(a, b)`` with covariance diagonal in a Kronecker basis: ``(U x V) diag(scale^2) (U x V)'``.

    Args:
        left: U, ``(a, a)`` and orthogonal; ``(0, 0)`` stands for the identity.
        right: V, ``(b, b)`` and orthogonal; ``(0, 0)`` stands for the identity.
        scale: ``(a, b)``, standard deviations along the basis.
    """

    kind = "kronecker"

    def __init__(self, left: Tensor, right: Tensor, scale: Tensor):
        pairs = zip((left, right), scale.shape, strict=False)
        fine = scale.dim() == 2 and all(tuple(basis.shape) in ((0, 0), (size, size)) for basis, size in pairs)
        if not fine:
            shapes = [tuple(tensor.shape) for tensor in (left, right, scale)]
            raise ValueError(f"the shapes {shapes} are not those of a Kronecker basis and its scales")
        self.left, self.right, self.scale = left, right, scale

    @property
    def size(self) -> int:
        """See `Block`."""
        return self.scale.numel()

    def spread(self, noise: Tensor) -> Tensor:
        """See `Block`."""
        scaled = noise.reshape(*noise.shape[:-1], *self.scale.shape) * self.scale
        return _between(self.left, scaled, self.right.mT).flatten(-2)

    def project(self, rows: Tensor) -> Tensor:
        """See `Block`."""
        matrix = rows.reshape(*rows.shape[:-1], *self.scale.shape)
        return (_between(self.left.mT, matrix, self.right) * self.scale).flatten(-2)

    def log_det(self) -> Tensor:
        """See `Block`."""
        return 2 * self.scale.log().sum()

    def tensors(self) -> Values:
        """See `Block`."""
        return {"left": self.left, "right": self.right, "scale": self.scale}

    def to(self, like: Tensor) -> Kronecker:
        """See `Block`."""
        return Kronecker(*(tensor.to(like).contiguous() for tensor in (self.left, self.right, self.scale)))


def _between(left: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    matrix = left @ matrix if left.numel() else matrix
    return matrix @ right if right.numel() else matrix


_KINDS: dict[str, type[Dense] | type[Diagonal] | type[Kronecker]] = {
    kind.kind: kind for kind in (Dense, Diagonal, Kronecker)
}


def block_from(kind: str, tensors: Mapping[str, Tensor]) -> Block:
    """A block from its kind and its tensors.

    Raises:
        ValueError: An unknown kind, or tensors that are not its own.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of block {kind!r}: it was saved by a newer version of bnn")
    try:
        return _KINDS[kind](**tensors)
    except TypeError:
        raise ValueError(f"a {kind} block was saved with the tensors {sorted(tensors)}") from None


def from_precision(precision: Tensor) -> Dense:
    """The Gaussian of this precision ``(d, d)``: with ``P = L L'`` its covariance has the root ``L'^-1``.

    Raises:
        ValueError: The precision is not positive definite.
    """
    lower, failed = torch.linalg.cholesky_ex(precision)
    if int(failed):
        raise ValueError("the posterior precision is not positive definite: there is no Gaussian at this point")
    eye = torch.eye(len(precision), dtype=precision.dtype, device=precision.device)
    return Dense(torch.linalg.solve_triangular(lower.mT, eye, upper=True))
