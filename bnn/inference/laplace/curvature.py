"""The curvature of the negative log-likelihood in the weights, summed over the data: GGN or empirical Fisher.

Both are ``sum_n J_n' S_n S_n' J_n`` with J_n the Jacobian of row n's outputs: for the generalised Gauss-Newton matrix
S S' is the expected Fisher information of the outputs, for the empirical Fisher S is the gradient of log p(y_n | f_n).
Martens (2020), JMLR 21; Kunstner, Balles and Hennig (2019), arXiv:1905.12558, on what sets the second apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from bnn.approximations.blocks import Block, Diagonal, from_precision
from bnn.data import Source
from bnn.inputs import slice_inputs
from bnn.likelihoods import Likelihood, OutputFisher, present_root
from bnn.linearised import chunks, jacobian
from bnn.model import BNN

Kind = Literal["ggn", "empirical_fisher"]
Covariance = Literal["full", "kron", "diag"]


class CurvatureBlock(ABC):
    """The curvature over some of the weights, as a weighted sum of m parts: ``H = sum_m a_m H_m``."""

    #: How many numbers it is over.
    size: int

    @abstractmethod
    def log_det(self, shares: Tensor, prior: Tensor) -> Tensor:
        """``log |H + diag(prior)|``, differentiable.

        Args:
            shares: ``(m,)``, the a_m.
            prior: ``(size,)``, the prior's precision; of a `DenseCurvature` also a whole matrix, ``(size, size)``.
        """

    @abstractmethod
    def block(self, shares: Tensor, prior: Tensor) -> Block:
        """The Gaussian with this precision."""


class DenseCurvature(CurvatureBlock):
    """All of it.

    Args:
        parts: ``(m, d, d)``.
    """

    def __init__(self, parts: Tensor):
        self.parts, self.size = parts, parts.shape[-1]

    @cached_property
    def _spectrum(self) -> Tensor:
        return torch.linalg.eigvalsh(self.parts[0])

    def log_det(self, shares: Tensor, prior: Tensor) -> Tensor:
        """From the spectrum, once and for all, under one prior precision; else by a Cholesky factor each time."""
        if len(shares) == 1 and prior.dim() == 1 and bool((prior == prior[0]).all()):
            return (shares * self._spectrum.clamp(min=0) + prior[0]).log().sum()
        return 2 * torch.linalg.cholesky(self._precision(shares, prior)).diagonal().log().sum()

    def block(self, shares: Tensor, prior: Tensor) -> Block:
        """See `CurvatureBlock`."""
        return from_precision(self._precision(shares, prior))

    def _precision(self, shares: Tensor, prior: Tensor) -> Tensor:
        return torch.einsum("m,mij->ij", shares, self.parts) + (torch.diag(prior) if prior.dim() == 1 else prior)


class DiagonalCurvature(CurvatureBlock):
    """Its diagonal.

    Args:
        parts: ``(m, d)``.
    """

    def __init__(self, parts: Tensor):
        self.parts, self.size = parts, parts.shape[-1]

    def log_det(self, shares: Tensor, prior: Tensor) -> Tensor:
        """See `CurvatureBlock`."""
        return (shares @ self.parts + prior).log().sum()

    def block(self, shares: Tensor, prior: Tensor) -> Block:
        """See `CurvatureBlock`."""
        precision = shares @ self.parts + prior
        if not bool((precision > 0).all()):
            raise ValueError("the posterior precision is not positive: there is no Gaussian at this point")
        return Diagonal(precision.rsqrt())


@dataclass(frozen=True)
class Curvature:
    """The curvature at a mode, and what the network gives there."""

    blocks: list[CurvatureBlock]
    #: ``(N,)`` or ``(N, k)``, all outputs and targets.
    outputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Place:
    """Where the curvature is taken, and by which weights."""

    #: Its network is in evaluation mode.
    model: BNN
    #: ``{parameter: value}``, by which to differentiate.
    weights: Mapping[str, Tensor]
    #: The other parameters, and buffers.
    shared: Mapping[str, Tensor]
    #: The likelihood's unknowns.
    latents: Mapping[str, Tensor]
    kind: Kind
    #: Whether the curvature is kept by outputs (the columns of `output_root`): see `Evidence`.
    split: bool

    def roots(self, outputs: Tensor, y: Tensor) -> Tensor:
        """``(n, k, r)``; see `output_root`."""
        return output_root(self.model.likelihood, outputs, self.latents, y, self.kind)


def output_root(
    likelihood: Likelihood, outputs: Tensor, latents: Mapping[str, Tensor], y: Tensor, kind: Kind
) -> Tensor:
    """S of each row, with ``S S'`` the curvature of -log p(y | outputs) in the outputs: ``(n, k, r)``.

    For likelihoods whose expected Fisher information is not known (`bnn.likelihoods.OutputFisher`), the Hessian at the
    observed y, its negative eigenvalues set to 0.
    """
    flat = outputs.reshape(len(outputs), -1)

    def density(row: Tensor, target: Tensor) -> Tensor:
        return likelihood.observation(row.reshape(1, *outputs.shape[1:]), latents).log_prob(target[None]).sum()

    if kind == "empirical_fisher":
        return torch.func.vmap(torch.func.grad(density))(flat, y).unsqueeze(-1)
    if isinstance(likelihood, OutputFisher):
        return present_root(likelihood, likelihood.fisher_root(outputs, latents), outputs, y)
    values, vectors = torch.linalg.eigh(-torch.func.vmap(torch.func.jacrev(torch.func.grad(density)))(flat, y))
    # Differentiable by the likelihood's unknowns. Where a value is 0 or two are equal, vectors and root are not.
    roots = torch.where(values > 0, values, 1.0).sqrt() * (values > 0)
    return vectors.detach() * roots.unsqueeze(-2)


def exact_curvature(place: Place, source: Source, covariance: Literal["full", "diag"]) -> Curvature:
    """The whole matrix, or its diagonal, from the Jacobians of all rows.

    Args:
        place: Where.
        source: The data.
        covariance: Which.
    """
    total: Tensor | float = 0.0
    outputs, targets = [], []
    size = sum(value.numel() for value in place.weights.values())
    for batch in source.batches():
        done = 0
        for x in chunks(batch.x, size * _width(place, batch.x)):
            f, derivatives = jacobian(place.model, place.weights, place.shared, x)
            y = batch.y[done : done + len(f)]
            done += len(f)
            rows = torch.einsum("nkd,nkr->rnd", derivatives, place.roots(f, y)).to(precise(f))
            rows = rows if place.split else rows.reshape(1, -1, size)
            total = total + (rows.mT @ rows if covariance == "full" else rows.square().sum(1))
            outputs.append(f)
            targets.append(y)
    parts = torch.as_tensor(total)
    block: CurvatureBlock = DenseCurvature(parts) if covariance == "full" else DiagonalCurvature(parts)
    return Curvature([block], torch.cat(outputs), torch.cat(targets))


def _width(place: Place, x: object) -> int:
    """How many outputs a row has."""
    with torch.no_grad():
        return place.model.forward(place.weights, slice_inputs(x, slice(0, 1)), place.shared).numel()  # type: ignore[arg-type]


def precise(like: Tensor) -> torch.dtype:
    """Double precision, in which sums over the data and factorisations are made, where the device knows it."""
    return like.dtype if like.device.type == "mps" else torch.float64
