"""Targets that are positive, such as times and amounts, or shares between 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bnn.likelihoods.base import Likelihood, Missing, Positive, Support, diagonal_root
from bnn.likelihoods.weibull import WeibullLaw

_POSITIVE = Support("positive numbers", lambda y: y > 0)


class Gamma(Likelihood):
    """Positive targets with mean ``m = exp(outputs)`` and variance ``dispersion m^2``.

    Args:
        dispersion: Fixed, ``"learned"`` or a prior; one number, or one an output. 1 is the exponential distribution.
            The default prior is half-Cauchy(1).
        missing: See `Likelihood`.
    """

    support = _POSITIVE

    def __init__(self, dispersion: Positive | None = None, *, missing: Missing = None):
        super().__init__(missing=missing, dispersion=dist.HalfCauchy(1.0) if dispersion is None else dispersion)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Gamma(a, a exp(-outputs))`` with a = 1 / dispersion, per output independent."""
        shape = latents["likelihood.dispersion"].reciprocal()
        return dist.Gamma(shape, shape * (-outputs).exp()).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``1 / sqrt(dispersion)``; see `OutputFisher`."""
        return diagonal_root(outputs, latents["likelihood.dispersion"].rsqrt())


class LogNormal(Likelihood):
    """Positive targets whose logarithm is Gaussian: ``log y ~ Normal(outputs, scale)``, per output independent.

    Args:
        scale: The standard deviation of log y; otherwise as in `Gaussian`.
        missing: See `Likelihood`.
    """

    support = _POSITIVE
    tails = True

    def __init__(self, scale: Positive | None = None, *, missing: Missing = None):
        super().__init__(missing=missing, scale=dist.HalfCauchy(1.0) if scale is None else scale)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``LogNormal(outputs, scale)``, per output independent."""
        return dist.LogNormal(outputs, latents["likelihood.scale"]).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """1 / scale; see `OutputFisher`."""
        return diagonal_root(outputs, latents["likelihood.scale"].reciprocal())


class Weibull(Likelihood):
    """Survival times: ``P(y > t) = exp(-(t / exp(outputs))^concentration)``; for censored ones, `Censored(Weibull())`.

    The outputs are the logarithm of the time by which a share ``1 - 1/e`` has failed. The hazard falls with time below
    a concentration of 1, is constant at 1 (the exponential distribution) and grows above it.

    Args:
        concentration: Fixed, ``"learned"`` or a prior; one number, or one an output. The default prior is
            log-normal(0, 0.5): around 1, and mostly between 0.4 and 2.7.
        missing: See `Likelihood`.
    """

    support = _POSITIVE
    tails = True

    def __init__(self, concentration: Positive | None = None, *, missing: Missing = None):
        prior = dist.LogNormal(0.0, 0.5) if concentration is None else concentration
        super().__init__(missing=missing, concentration=prior)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """Weibull of scale ``exp(outputs)``, per output independent."""
        return WeibullLaw(outputs, latents["likelihood.concentration"]).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """The concentration; see `OutputFisher`."""
        return diagonal_root(outputs, latents["likelihood.concentration"])


class Beta(Likelihood):
    """Shares strictly between 0 and 1, with mean ``m = sigmoid(outputs)`` and variance ``m (1 - m) / (1 + precision)``.

    Ferrari and Cribari-Neto, Journal of Applied Statistics 31 (2004).

    Args:
        precision: Fixed, ``"learned"`` or a prior; one number, or one an output. The default prior is half-Cauchy(10).
        missing: See `Likelihood`.
    """

    support = Support("strictly between 0 and 1", lambda y: (y > 0) & (y < 1))

    def __init__(self, precision: Positive | None = None, *, missing: Missing = None):
        super().__init__(missing=missing, precision=dist.HalfCauchy(10.0) if precision is None else precision)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Beta(precision m, precision (1 - m))``, per output independent."""
        a, b = self._concentrations(outputs, latents)
        return dist.Beta(a, b).to_event(outputs.dim() - 1)

    def _concentrations(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``1 - m`` as a sigmoid of its own: the difference would be 0 beyond outputs of 17."""
        precision = latents["likelihood.precision"]
        return precision * outputs.sigmoid(), precision * (-outputs).sigmoid()

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``precision m (1 - m) sqrt(trigamma(a) + trigamma(b))``; see `OutputFisher`.

        With ``a^2 trigamma(a) = 1 + a^2 trigamma(1 + a)``, which small a do not take out of range.
        """
        a, b = self._concentrations(outputs, latents)
        of_a = (1 + a * a * torch.special.polygamma(1, 1 + a)) * (-outputs).sigmoid().square()
        of_b = (1 + b * b * torch.special.polygamma(1, 1 + b)) * outputs.sigmoid().square()
        return diagonal_root(outputs, (of_a + of_b).sqrt())
