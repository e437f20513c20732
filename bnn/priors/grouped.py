"""Densities of whole groups of weights, and the group lasso."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from bnn.priors.base import check_fits, check_numbers
from bnn.priors.groups import Over, check_over, group_dims, group_shape, group_size
from bnn.priors.scaled import Gain, Scale, Scaled


@dataclass(frozen=True, eq=False, repr=False)
class GroupLasso(Scaled):
    """Groups of weights whose -log p is ``rate * |w_g| / scale``, |.| the Euclidean norm: the group lasso.

    A group's weights are large or small together: the mode puts whole units, or whole inputs, to zero. Yuan and Lin,
    J. R. Statist. Soc. B 68 (2006); as a density (multivariate Laplace), Raman et al., ICML 2009. The mean norm of a
    group of d weights is ``d * scale / rate``: choose the rate with that in mind.

    Args:
        rate: Weight of the norms, positive.
        over: What a group is: ``"units"``, the incoming weights of one unit (first dimension); ``"inputs"``, the outgoing
            weights of one input (second dimension), which biases do not have; ``"weights"``, each for itself.
        scale: See `Scaled`; a tensor has one number a group.
        gain: See `Scaled`.
        centred: See `Scaled`.
    """  # noqa: E501

    rate: float = 1.0
    over: Over = "units"
    scale: Scale = 1.0
    gain: Gain = 1.0
    centred: bool = True

    def __post_init__(self) -> None:
        check_numbers(rate=self.rate)
        check_over(self.over)
        self.check_scale()

    def law(self, name: str, shape: torch.Size, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        """See `Scaled`."""
        groups = group_shape(self.over, name, shape)
        check_fits("scale", scale, name, groups)
        return GroupLaplace(loc, scale / self.rate, shape, groups)


class Grouped(TorchDistribution):
    """A density over a whole parameter, in independent groups of its numbers: one event of the parameter's shape.

    A subclass writes it for the distances of the groups from the centre.

    Args:
        loc: The centre; broadcasts to the parameter.
        scale: One number for all groups, or one a group: broadcasts to `groups`.
        shape: Of the parameter.
        groups: As many dimensions, of size 1 within a group (`bnn.priors.groups`).
        validate_args: As in torch.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, loc: Tensor, scale: Tensor, shape: torch.Size, groups: torch.Size, *, validate_args: bool | None = None
    ):
        self.loc, self.scale, self.groups = loc, scale, groups
        self.dims, self.size = group_dims(groups, shape), group_size(groups, shape)
        super().__init__(torch.Size(), torch.Size(shape), validate_args=validate_args)

    @abstractmethod
    def group_log_prob(self, away: Tensor) -> Tensor:
        """The log-density of every group.

        Args:
            away: Value less centre, ``(*sample, *shape)``.

        Returns:
            ``(*sample, *groups)``.
        """

    @abstractmethod
    def group_sample(self, shape: torch.Size) -> Tensor:
        """Draws less the centre, ``(*sample, *shape)``, given that shape."""

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Any real numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Summed over the groups: ``(*sample,)``."""
        if self._validate_args:
            self._validate_sample(value)
        log_probs = self.group_log_prob(value - self.loc)
        # A shared scale leaves fewer dimensions nowhere: `away` has them all.
        return log_probs.sum(tuple(range(-len(self.event_shape), 0))) if self.event_shape else log_probs

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws, ``(*sample, *shape)``."""
        with torch.no_grad():
            return self.loc + self.group_sample(self._extended_shape(torch.Size(sample_shape)))

    @property
    def mode(self) -> Tensor:
        """The centre."""
        return self.loc.expand(self.event_shape)


class GroupLaplace(Grouped):
    """The multivariate Laplace density ``exp(-|w_g| / scale) / Z`` of every group, |.| the Euclidean norm.

    Z is the surface of the unit sphere times the integral over radii, ``2 pi^(d/2) / Gamma(d/2) * Gamma(d) scale^d``
    for groups of d numbers: the radius is Gamma(d) distributed, the direction uniform. Raman et al., ICML 2009.
    """

    def group_log_prob(self, away: Tensor) -> Tensor:
        """See `Grouped`."""
        norm = torch.linalg.vector_norm(away, dim=self.dims, keepdim=True) if self.dims else away.abs()
        sphere = math.log(2) + 0.5 * self.size * math.log(math.pi) - math.lgamma(0.5 * self.size)
        return -norm / self.scale - self.size * self.scale.log() - sphere - math.lgamma(self.size)

    def group_sample(self, shape: torch.Size) -> Tensor:
        """See `Grouped`."""
        direction = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        norm = direction.square().sum(self.dims, keepdim=True).sqrt() if self.dims else direction.abs()
        radius = torch._standard_gamma(torch.full_like(norm, float(self.size)))
        return self.scale * radius * direction / norm
