"""The Weibull distribution by the logarithm of its scale: torch's own takes powers that leave single precision."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


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

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density."""
        if self._validate_args:
            self._validate_sample(value)
        power = self.log_hazard(value)
        return self.concentration.log() - value.log() + power - power.exp()

    def cdf(self, value: Tensor) -> Tensor:
        """P(Y <= value)."""
        return -torch.expm1(-self.log_hazard(value).exp())

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
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        """E[y^2] - E[y]^2."""
        return self._moment(2) - self._moment(1).square()

    def _moment(self, order: int) -> Tensor:
        return (order * self.log_scale + torch.lgamma(1 + order / self.concentration)).exp()
