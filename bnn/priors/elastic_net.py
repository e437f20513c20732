"""The elastic net: the product of a Laplace and a Gaussian prior, normalised exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from bnn.distributions import GAUSSIAN_CROSS_ENTROPY, mean_distance, mean_square, ratio, total
from bnn.priors.base import check_numbers
from bnn.priors.scaled import Gain, Scale, Scaled

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False, repr=False)
class ElasticNet(Scaled):
    """Independent weights whose -log p is the elastic net, ``l1 |v| + l2 v^2 / 2`` with ``v = w / scale``, a constant aside.

    Its density is the product of those of ``Laplace(1 / l1)`` and ``Normal(l2 ** -0.5)``, normalised. Zou and Hastie,
    J. R. Statist. Soc. B 67 (2005).

    Args:
        l1: Weight of the absolute values, positive (without it: `Normal`).
        l2: Weight of half the squares, positive (without it: `Laplace`).
        scale: See `Scaled`; it multiplies the weights, and so divides the penalty's argument.
        gain: See `Scaled`.
        centred: See `Scaled`.
    """  # noqa: E501

    l1: float
    l2: float
    scale: Scale = 1.0
    gain: Gain = 1.0
    centred: bool = True

    def __post_init__(self) -> None:
        check_numbers(l1=self.l1, l2=self.l2)
        self.check_scale()

    def law(self, name: str, shape: torch.Size, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        """See `Scaled`."""
        settings = loc, scale / self.l1, scale / math.sqrt(self.l2)
        fn = ElasticNetLaw(*(value.expand(shape) for value in settings))
        fn.__dict__["unexpanded"] = settings
        return fn.to_event(len(shape))


class ElasticNetLaw(TorchDistribution):
    """The product of a Laplace and a Gaussian density, normalised: ``exp(-|w - loc| / b - (w - loc)^2 / (2 s^2)) / Z``.

    Z = s sqrt(2 pi) erfcx(a / sqrt 2) with a = s / b, the integral of Zou and Hastie's (2005) penalty; Li and Lin,
    Bayesian Analysis 5 (2010). Given its sign, w - loc is a Gaussian of mean -s a and scale s, cut off at 0.

    Args:
        loc: The centre.
        laplace_scale: b.
        normal_scale: s.
        validate_args: As in torch.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "laplace_scale": constraints.positive,
        "normal_scale": constraints.positive,
    }
    support = constraints.real

    def __init__(self, loc: Tensor, laplace_scale: Tensor, normal_scale: Tensor, *, validate_args: bool | None = None):
        self.loc, self.laplace_scale, self.normal_scale = broadcast_all(loc, laplace_scale, normal_scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Elementwise."""
        if self._validate_args:
            self._validate_sample(value)
        away = (value - self.loc).abs()
        standard = away / self.normal_scale
        return (
            -away / self.laplace_scale - 0.5 * standard * standard - log_elastic(self.laplace_scale, self.normal_scale)
        )

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """By inversion of the truncated Gaussian's tail: ``|v| = -s (a + Phi^-1(u Phi(-a)))``."""
        from scipy import special  # takes a while to import, and only draws need it

        shape = self._extended_shape(torch.Size(sample_shape))
        a = (self.normal_scale / self.laplace_scale).detach().double().cpu()
        log_tail = torch.special.log_ndtr(-a) + torch.rand(shape, dtype=torch.float64).log()
        # torch has no inverse of log Phi, and Phi(-a) itself underflows.
        size = -a - torch.from_numpy(np.asarray(special.ndtri_exp(log_tail.numpy())))
        sign = 1 - 2 * torch.randint(0, 2, shape)
        return self.loc + (sign * size.clamp(min=0.0)).to(self.loc) * self.normal_scale

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
        """``s^2 (1 + a^2 - a sqrt(2 / pi) / erfcx(a / sqrt 2))``: the second moment of the truncated Gaussian."""
        a = self.normal_scale / self.laplace_scale
        hazard = math.sqrt(2 / math.pi) / torch.special.erfcx(a / math.sqrt(2))
        return self.normal_scale.square() * (1 + a * a - a * hazard)


def log_elastic(laplace_scale: Tensor, normal_scale: Tensor) -> Tensor:
    """log Z of `ElasticNetLaw`, elementwise; exact for any ratio of the two scales."""
    erfcx = torch.special.erfcx(normal_scale / laplace_scale * math.sqrt(0.5))
    return normal_scale.log() + _HALF_LOG_2PI + erfcx.log()


def _elastic_cross_entropy(
    loc: Tensor, scale: Tensor | None, prior_loc: Tensor, laplace_scale: Tensor, normal_scale: Tensor
) -> Tensor:
    """Sum of -E[log ElasticNetLaw(w)] under w ~ Normal(loc, scale): the sum of its factors', with its own constant."""
    linear = ratio(mean_distance(loc, scale, prior_loc), laplace_scale)
    square = 0.5 * ratio(mean_square(loc, scale, prior_loc), normal_scale * normal_scale)
    return linear + square + total(log_elastic(laplace_scale, normal_scale), loc)


# A closed form beside those of bnn.distributions, which does not know this law.
GAUSSIAN_CROSS_ENTROPY[ElasticNetLaw] = _elastic_cross_entropy
