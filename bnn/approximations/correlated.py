"""Gaussians over the unconstrained numbers whose covariance is not diagonal."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from bnn.approximations.base import Approximation, Values, check_fit
from bnn.layout import Layout


class Correlated(Approximation):
    """A Gaussian ``loc + deviation(noise)``, noise standard normal.

    A subclass writes the algebra of its covariance S, for vectors ``(D,)`` and for rows of them, ``(..., D)``.

    Args:
        layout: From numbers to sites.
        loc: ``(D,)``.
    """

    def __init__(self, layout: Layout, loc: Tensor):
        self.layout, self.loc = layout, loc

    @property
    @abstractmethod
    def noise_size(self) -> int:
        """How many numbers of noise a draw takes."""

    @abstractmethod
    def deviation(self, noise: Tensor) -> Tensor:
        """``(..., noise_size)`` to ``(..., D)``: R noise, with S = R R'."""

    @abstractmethod
    def precision_times(self, deviation: Tensor) -> Tensor:
        """S^-1 times each row; at a draw it is the gradient of -log q."""

    @abstractmethod
    def marginal_scale(self) -> Tensor:
        """``(D,)``, the square roots of S's diagonal."""

    @abstractmethod
    def half_log_det(self) -> Tensor:
        """log det S / 2."""

    @property
    def shape(self) -> None:
        """Continuous."""
        return None

    def entropy(self) -> Tensor:
        """In nats."""
        return self.half_log_det() + 0.5 * (1 + math.log(2 * math.pi)) * self.loc.shape[-1]

    def log_prob(self, vector: Tensor) -> Tensor:
        """The log-density of rows ``(..., D)`` of unconstrained numbers."""
        away = vector - self.loc
        squares = (away * self.precision_times(away)).sum(-1)
        return -0.5 * squares - self.half_log_det() - 0.5 * math.log(2 * math.pi) * self.loc.shape[-1]

    def sample(self, num: int) -> Values:
        """One vector of noise a draw, so that draw i is the same whatever their number."""
        noise = [torch.randn(self.noise_size, dtype=self.loc.dtype, device=self.loc.device) for _ in range(num)]
        away = torch.stack([self.deviation(one) for one in noise])  # one product would round by its number of rows
        return torch.func.vmap(self.layout.unflatten)(self.loc + away)


class FullRank(Correlated):
    """S = R R' with R = diag(exp(d)) (I + C): d is the diagonal of `factor`, C what stands below it.

    C has no unit and d is a logarithm, so that one step size suits parameters of any scale.

    Args:
        layout: From numbers to sites.
        loc: ``(D,)``.
        factor: ``(D, D)``; what stands above the diagonal is not used.
    """

    kind = "full_rank"

    def __init__(self, layout: Layout, loc: Tensor, factor: Tensor):
        super().__init__(layout, loc)
        self.factor = factor
        self._log_scale = factor.diagonal(dim1=-2, dim2=-1)

    @property
    def noise_size(self) -> int:
        """D."""
        return self.loc.shape[-1]

    def root(self) -> Tensor:
        """R, the Cholesky factor: ``(D, D)``."""
        return self._log_scale.exp()[..., None] * self.factor.tril(-1) + self._log_scale.exp().diag_embed()

    def deviation(self, noise: Tensor) -> Tensor:
        """R noise."""
        return noise @ self.root().mT

    def precision_times(self, deviation: Tensor) -> Tensor:
        """By two triangular solutions."""
        rows = deviation if deviation.dim() > 1 else deviation[None]
        root = self.root()
        half = torch.linalg.solve_triangular(root, rows.mT, upper=False)
        return torch.linalg.solve_triangular(root.mT, half, upper=True).mT.reshape(deviation.shape)

    def marginal_scale(self) -> Tensor:
        """Lengths of R's rows."""
        return self.root().norm(dim=-1)

    def half_log_det(self) -> Tensor:
        """The sum of the logarithms of R's diagonal."""
        return self._log_scale.sum(-1)

    def tensors(self) -> Values:
        """Means and factor."""
        return {"loc": self.loc, "factor": self.factor}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> FullRank:
        """See `Approximation.restore`."""
        vector = torch.empty(layout.size, dtype=layout.dtype)
        check_fit(tensors, {"loc": vector, "factor": vector.expand(layout.size, layout.size)})
        return cls(layout, tensors["loc"], tensors["factor"])


class LowRank(Correlated):
    """S = diag(s) (I + W W') diag(s): Pyro's ``AutoLowRankMultivariateNormal``.

    By Woodbury's identity (I + W W')^-1 = I - W (I + W' W)^-1 W', and det(I + W W') = det(I + W' W), of size K.

    Args:
        layout: From numbers to sites.
        loc: ``(D,)``.
        log_scale: ``(D,)``, log s.
        factor: ``(D, K)``, W.
    """

    kind = "low_rank"

    def __init__(self, layout: Layout, loc: Tensor, log_scale: Tensor, factor: Tensor):
        super().__init__(layout, loc)
        self.log_scale, self.factor = log_scale, factor

    @property
    def noise_size(self) -> int:
        """D for the diagonal, and K for the factor."""
        size, rank = self.factor.shape[-2:]
        return size + rank

    def _small(self) -> Tensor:
        """I + W' W, ``(K, K)``."""
        rank = self.factor.shape[-1]
        identity = torch.eye(rank, dtype=self.loc.dtype, device=self.loc.device)
        return identity + self.factor.mT @ self.factor

    def deviation(self, noise: Tensor) -> Tensor:
        """s (e + W f), with e and f the two parts of the noise."""
        size, rank = self.factor.shape[-2:]
        own, shared = noise.split([size, rank], dim=-1)
        return self.log_scale.exp() * (own + shared @ self.factor.mT)

    def precision_times(self, deviation: Tensor) -> Tensor:
        """By Woodbury's identity."""
        scale = self.log_scale.exp()
        rows = (deviation if deviation.dim() > 1 else deviation[None]) / scale
        inner = torch.cholesky_solve((rows @ self.factor).mT, torch.linalg.cholesky(self._small())).mT
        return ((rows - inner @ self.factor.mT) / scale).reshape(deviation.shape)

    def marginal_scale(self) -> Tensor:
        """s times the lengths of W's rows with a one in front."""
        return self.log_scale.exp() * (1 + (self.factor * self.factor).sum(-1)).sqrt()

    def half_log_det(self) -> Tensor:
        """By the matrix determinant lemma."""
        small = torch.linalg.cholesky(self._small()).diagonal(dim1=-2, dim2=-1)
        return self.log_scale.sum(-1) + small.log().sum(-1)

    def tensors(self) -> Values:
        """Means, scales and factor."""
        return {"loc": self.loc, "log_scale": self.log_scale, "factor": self.factor}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> LowRank:
        """See `Approximation.restore`."""
        vector = torch.empty(layout.size, dtype=layout.dtype)
        rank = tensors["factor"].shape[-1] if "factor" in tensors and tensors["factor"].dim() == 2 else 1
        factor = vector[:, None].expand(layout.size, rank)
        check_fit(tensors, {"loc": vector, "log_scale": vector, "factor": factor})
        return cls(layout, tensors["loc"], tensors["log_scale"], tensors["factor"])
