"""The Weibull distribution by the logarithm of its scale: torch's own takes powers that leave single precision."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

#: The largest logarithm of a hazard of which the exponential is taken.
_LARGEST = 80.0


class WeibullLaw(TorchDistribution):
    """``P(Y > y) = exp(-(y / scale)^concentration)``.

    Args:
        log_scale: Any shape.
        concentration: Positive, broadcasts against it.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "log_scale": constraints.real,
        "concentration": constraints.positive,
    }
    support = constraints.positive
    has_rsample = True

    def __init__(self, log_scale: Tensor, concentration: Tensor, validate_args: bool | None = None):
        self.log_scale, self.concentration = torch.broadcast_tensors(log_scale, concentration)
        super().__init__(self.log_scale.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> WeibullLaw:
        """See `torch.distributions.Distribution.expand`."""
        return WeibullLaw(self.log_scale.expand(batch_shape), self.concentration.expand(batch_shape), False)

    def log_hazard(self, y: Tensor) -> Tensor:
        """The logarithm of the cumulative hazard, ``(y / scale)^concentration``."""
        return self.concentration * (y.log() - self.log_scale)

    def hazard(self, y: Tensor) -> Tensor:
        """The cumulative hazard; beyond e^80 a straight line in its logarithm, which single precision can hold."""
        power = self.log_hazard(y)
        return power.clamp(max=_LARGEST).exp() * (1 + (power - _LARGEST).clamp(min=0))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density."""
        if self._validate_args:
            self._validate_sample(value)
        return self.concentration.log() - value.log() + self.log_hazard(value) - self.hazard(value)

    def cdf(self, value: Tensor) -> Tensor:
        """P(Y <= value)."""
        return -torch.expm1(-self.hazard(value))

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile."""
        return (self.log_scale + (-torch.log1p(-value)).log() / self.concentration).exp()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """By the inverse of the survival function."""
        noise = self.log_scale.new_empty(self._extended_shape(sample_shape)).exponential_()
        return (self.log_scale + noise.log() / self.concentration).exp()

    @property
    def mean(self) -> Tensor:
        """scale * Gamma(1 + 1 / concentration)."""
        return (self.log_scale + torch.lgamma(1 + 1 / self.concentration)).exp()

    @property
    def variance(self) -> Tensor:
        """E[y^2] - E[y]^2, which are nearly equal at a large concentration: by the logarithm of their ratio."""
        shape = self.concentration.double()
        first, second = torch.lgamma(1 + 1 / shape), torch.lgamma(1 + 2 / shape)
        found = (2 * (self.log_scale.double() + first)).exp() * torch.expm1(second - 2 * first)
        return found.to(self.log_scale.dtype)
