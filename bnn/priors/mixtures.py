"""Mixtures of a wide and a narrow Gaussian: a weight at a time, or a group with one indicator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from bnn.priors.base import check_fits, check_numbers
from bnn.priors.grouped import Grouped
from bnn.priors.groups import Over, check_over, group_shape
from bnn.priors.scaled import Gain, Scale, Scaled

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False, repr=False)
class ScaleMixture(Scaled):
    """Independent weights from a mixture of two Gaussians around 0: most of them small, some large.

    Blundell et al. (2015), arXiv:1505.05424, equation 7.

    Args:
        wide: Standard deviation of the one.
        narrow: That of the other, smaller.
        weight: Probability of the wide one, between 0 and 1.
        scale: See `Scaled`; it multiplies both standard deviations.
        gain: See `Scaled`.
        centred: See `Scaled`.
    """

    wide: float = 1.0
    narrow: float = 0.05
    weight: float = 0.5
    scale: Scale = 1.0
    gain: Gain = 1.0
    centred: bool = True

    def __post_init__(self) -> None:
        _check_mixture("wide", self.wide, "narrow", self.narrow, "weight", self.weight)
        self.check_scale()

    def law(self, name: str, shape: torch.Size, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        """See `Scaled`."""
        mixture = TwoGaussians(self.wide, self.narrow, self.weight)
        return MixtureLaw(mixture, loc.expand(shape), scale.expand(shape)).to_event(len(shape))


@dataclass(frozen=True, eq=False, repr=False)
class SpikeAndSlab(Scaled):
    """Each group of weights is in the model (a slab) or next to nothing (a spike); which one is summed out.

    The spike is a narrow Gaussian in the place of a point mass at 0 (George and McCulloch, J. Am. Statist. Assoc. 88,
    1993), so that the density is a smooth, normalised function of the weights alone: the indicator of every group is
    summed over exactly, ``p(w_g) = inclusion N(w_g; 0, slab^2) + (1 - inclusion) N(w_g; 0, spike^2)``. A concrete
    (Gumbel) relaxation of the indicator would be another prior, whose temperature changes the answer, with gradients
    that vanish at either end. `included` gives the indicators back.

    Args:
        inclusion: Prior probability that a group is in, between 0 and 1.
        slab: Standard deviation of weights that are in.
        spike: Standard deviation of those that are not, smaller. Sampling between far apart modes is hard: take it
            no smaller than the smallest weight that is worth telling from 0.
        over: What a group is; see `GroupLasso`.
        scale: See `Scaled`; it multiplies both standard deviations. A tensor has one number a group.
        gain: See `Scaled`.
        centred: See `Scaled`.
    """

    inclusion: float = 0.5
    slab: float = 1.0
    spike: float = 0.05
    over: Over = "weights"
    scale: Scale = 1.0
    gain: Gain = 1.0
    centred: bool = True

    def __post_init__(self) -> None:
        _check_mixture("slab", self.slab, "spike", self.spike, "inclusion", self.inclusion)
        check_over(self.over)
        self.check_scale()

    def law(self, name: str, shape: torch.Size, loc: Tensor, scale: Tensor) -> GroupMixture:
        """See `Scaled`."""
        groups = group_shape(self.over, name, shape)
        check_fits("scale", scale, name, groups)
        return GroupMixture(TwoGaussians(self.slab, self.spike, self.inclusion), loc, scale, shape, groups)

    def included(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The probability that each group is in, given its weights; exact. Average it over posterior draws.

        Args:
            params: ``{parameter: weight}``, without a dimension of draws (`torch.vmap` maps over draws).

        Returns:
            ``{parameter: probability}``, with size 1 along the dimensions within a group.

        Raises:
            ValueError: The scale is learned: divide the weights by it first, and ask a prior of ``scale=1``.
        """
        if self.learned_scale():
            raise ValueError(
                "included needs a fixed scale: divide the weights by theirs, and ask SpikeAndSlab(scale=1)"
            )
        found = {}
        for name, weight in params.items():
            scale = self.own_scale(torch.as_tensor(self._base_scale).to(weight), weight)
            slab, spike = self.law(name, weight.shape, weight.new_zeros(()), scale).parts(weight)
            found[name] = torch.sigmoid(slab - spike)
        return found


def _check_mixture(wide: str, large: float, narrow: str, small: float, weight: str, probability: object) -> None:
    check_numbers(**{wide: large, narrow: small})
    if not small < large:
        raise ValueError(f"{narrow} is smaller than {wide}: not {small} and {large}")
    if not (isinstance(probability, int | float) and 0 < probability < 1):
        raise ValueError(f"{weight} is a probability between 0 and 1, not {probability!r}")


@dataclass(frozen=True)
class TwoGaussians:
    """A mixture of two Gaussians around 0: their scales, and the weight of the wide one."""

    wide: float
    narrow: float
    weight: float

    def log_parts(self, squares: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Log weight plus log density of each, at vectors of `size` numbers with these sums of squares."""

        def part(weight: float, scale: float) -> Tensor:
            constant = math.log(weight) - size * (math.log(scale) + _HALF_LOG_2PI)
            return constant - 0.5 / scale**2 * squares

        return part(self.weight, self.wide), part(1 - self.weight, self.narrow)

    def draw_scale(self, uniform: Tensor) -> Tensor:
        """The scale that uniform numbers choose, elementwise."""
        return torch.where(uniform < self.weight, self.wide, self.narrow).to(uniform)


class MixtureLaw(TorchDistribution):
    """Independent numbers from `TwoGaussians`, times `scale`, around `loc`.

    Args:
        mixture: See `GroupMixture`.
        loc: The centre.
        scale: Multiplies both scales.
        validate_args: As in torch.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.real

    def __init__(self, mixture: TwoGaussians, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None):
        self.mixture = mixture
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Elementwise, stable where one part underflows."""
        if self._validate_args:
            self._validate_sample(value)
        wide, narrow = self.mixture.log_parts(((value - self.loc) / self.scale).square(), 1)
        return torch.logaddexp(wide, narrow) - self.scale.log()

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """The part first, then its Gaussian."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform, noise = (f(shape, dtype=self.loc.dtype, device=self.loc.device) for f in (torch.rand, torch.randn))
        return self.loc + self.scale * self.mixture.draw_scale(uniform) * noise

    @property
    def mode(self) -> Tensor:
        """The centre."""
        return self.loc

    @property
    def mean(self) -> Tensor:
        """The centre."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The mean of the two."""
        m = self.mixture
        return self.scale.square() * (m.weight * m.wide**2 + (1 - m.weight) * m.narrow**2)


class GroupMixture(Grouped):
    """Every group from one of two Gaussians around the centre, of scales ``wide * scale`` and ``narrow * scale``.

    Which of the two is summed out. See `bnn.priors.SpikeAndSlab`.

    Args:
        mixture: Their scales and the wide one's weight.
        loc: See `Grouped`.
        scale: See `Grouped`.
        shape: See `Grouped`.
        groups: See `Grouped`.
        validate_args: As in torch.
    """

    def __init__(
        self,
        mixture: TwoGaussians,
        loc: Tensor,
        scale: Tensor,
        shape: torch.Size,
        groups: torch.Size,
        *,
        validate_args: bool | None = None,
    ):
        self.mixture = mixture
        super().__init__(loc, scale, shape, groups, validate_args=validate_args)

    def group_log_prob(self, away: Tensor) -> Tensor:
        """See `Grouped`."""
        return torch.logaddexp(*self.parts(away)) - self.size * self.scale.log()

    def parts(self, away: Tensor) -> tuple[Tensor, Tensor]:
        """Log weight plus log density of the wide and of the narrow Gaussian, a number a group, at scale 1."""
        squares = (away / self.scale).square()
        return self.mixture.log_parts(squares.sum(self.dims, keepdim=True) if self.dims else squares, self.size)

    def group_sample(self, shape: torch.Size) -> Tensor:
        """See `Grouped`."""
        batch = shape[: len(shape) - len(self.event_shape)]
        scale = self.mixture.draw_scale(torch.rand(batch + self.groups, dtype=self.loc.dtype, device=self.loc.device))
        return self.scale * scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
