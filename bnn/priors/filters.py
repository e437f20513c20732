"""Convolutional filters whose neighbouring weights are alike."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from bnn.priors.base import check_fits, check_numbers
from bnn.priors.scaled import Gain, Scale, Scaled

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False, repr=False)
class CorrelatedFilters(Scaled):
    """Gaussian filters, correlated between positions: ``cov(w_p, w_q) = scale^2 exp(-|p - q| / lengthscale)``.

    Every pair of an output and an input channel has a filter, independent of the others; |p - q| is the distance in
    pixels. Fortuin et al. (2022), arXiv:2102.06571, found such correlations in trained networks. -log p is the
    quadratic penalty ``w' K^-1 w / (2 scale^2)`` of every filter. As the lengthscale goes to 0 this is `Normal`.

    Args:
        scale: See `Scaled`; a tensor is the same at all positions. Standard deviation of every single weight.
        lengthscale: In pixels, positive.
        gain: See `Scaled`.
        centred: See `Scaled`.
    """

    scale: Scale = 1.0
    lengthscale: float = 1.0
    gain: Gain = 1.0
    centred: bool = True

    def __post_init__(self) -> None:
        check_numbers(lengthscale=self.lengthscale)
        self.check_scale()

    def law(self, name: str, shape: torch.Size, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        """See `Scaled`."""
        if len(shape) < 3:
            raise ValueError(
                f"CorrelatedFilters is for the weights of convolutions; parameter {name!r} of shape {tuple(shape)} has "
                "no positions: give it another prior by a pattern of its own"
            )
        check_fits("scale", scale, name, torch.Size([*shape[:2], *(1 for _ in shape[2:])]))
        root = torch.as_tensor(_root(tuple(shape[2:]), self.lengthscale), dtype=loc.dtype, device=loc.device)
        return FilterNormal(loc, scale, root, shape)


@functools.lru_cache(maxsize=32)
def _root(positions: tuple[int, ...], lengthscale: float) -> np.ndarray[Any, Any]:
    """Cholesky factor of the correlation between all positions, ``(P, P)``, in double precision and read-only."""
    places = np.array(list(itertools.product(*(range(size) for size in positions))), dtype=float)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    root = np.linalg.cholesky(np.exp(-distance / lengthscale))
    return root


class FilterNormal(TorchDistribution):
    """Filters with correlated positions: every filter is ``loc + scale * root @ standard normal``, one event.

    Args:
        loc: The centre; broadcasts to the parameter.
        scale: Broadcasts to the parameter, the same at all positions.
        root: ``(P, P)``, the Cholesky factor of the positions' correlation.
        shape: Of the parameter: outputs, inputs, and P positions over the other dimensions.
        validate_args: As in torch.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, loc: Tensor, scale: Tensor, root: Tensor, shape: torch.Size, *, validate_args: bool | None = None
    ):
        self.loc, self.scale, self.root = loc, scale, root
        super().__init__(torch.Size(), torch.Size(shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Any real numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Summed over the filters: ``(*sample,)``."""
        if self._validate_args:
            self._validate_sample(value)
        dims = tuple(range(-len(self.event_shape), 0))
        filters = ((value - self.loc) / self.scale).flatten(2 - len(self.event_shape))
        # The root is a constant of P x P numbers: its inverse is taken once, and is exact enough for a correlation.
        white = filters @ torch.linalg.inv(self.root).mT
        squares = (white * white).sum((-3, -2, -1))
        log_scales = self.scale.log().expand(self.event_shape).sum(dims)
        count = self.event_shape.numel()
        log_root = self.root.diagonal().log().sum() * (count // len(self.root))
        return -0.5 * squares - log_scales - log_root - _HALF_LOG_2PI * count

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws, ``(*sample, *shape)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.root.dtype, device=self.root.device)
        filters = noise.flatten(2 - len(self.event_shape)) @ self.root.mT
        return self.loc + self.scale * filters.reshape(shape)

    @property
    def mode(self) -> Tensor:
        """The centre."""
        return self.loc.expand(self.event_shape)
