"""Counts: out of a known total, or without a limit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bnn.likelihoods.base import Likelihood, Missing, Positive, Support, diagonal_root

_COUNTS = Support("counts: 0, 1, 2, ...", lambda y: (y >= 0) & (y == y.floor()))


class Binomial(Likelihood):
    """How many of `total` trials succeed: outputs are log-odds, ``y ~ Binomial(total, sigmoid(outputs))``.

    Args:
        total: The number of trials, the same for all targets.
        missing: See `Likelihood`.
    """

    filler = 1.0

    def __init__(self, total: int, *, missing: Missing = None):
        if total < 1 or total != int(total):
            raise ValueError(f"total is the number of trials, a whole number from 1, not {total}")
        self.total = int(total)
        self.support = Support(
            f"counts from 0 to {self.total}", lambda y: (y >= 0) & (y <= self.total) & (y == y.floor())
        )
        super().__init__(missing=missing, settings={"total": self.total})

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Binomial(total, logits=outputs)``, per output independent."""
        total = outputs.new_tensor(float(self.total))
        return dist.Binomial(total, logits=outputs).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``sqrt(total p (1 - p))``, for each output by itself; see `OutputFisher`."""
        probs = outputs.sigmoid()
        return diagonal_root(outputs, (self.total * probs * (1 - probs)).sqrt())


class Poisson(Likelihood):
    """Counts with mean ``exp(outputs)``: outputs are log-rates.

    For counts over unequal times or areas, let the network add the logarithm of the exposure to its output.

    Args:
        missing: See `Likelihood`.
    """

    support = _COUNTS
    filler = 1.0

    def __init__(self, *, missing: Missing = None):
        super().__init__(missing=missing)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Poisson(exp(outputs))``, per output independent."""
        return dist.Poisson(outputs.exp()).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """The square root of the rate; see `OutputFisher`."""
        return diagonal_root(outputs, (0.5 * outputs).exp())


class NegativeBinomial(Likelihood):
    """Counts that spread more than Poisson's: mean ``m = exp(outputs)``, variance ``m + dispersion m^2``.

    Args:
        dispersion: Fixed, ``"learned"`` or a prior; one number, or one an output. At 0 it would be Poisson. The default
            prior is half-Cauchy(1).
        missing: See `Likelihood`.
    """

    support = _COUNTS
    filler = 1.0

    def __init__(self, dispersion: Positive | None = None, *, missing: Missing = None):
        super().__init__(missing=missing, dispersion=dist.HalfCauchy(1.0) if dispersion is None else dispersion)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``NegativeBinomial(1 / dispersion, logits=outputs + log dispersion)``, per output independent."""
        dispersion = latents["likelihood.dispersion"]
        fn = dist.NegativeBinomial(dispersion.reciprocal(), logits=outputs + dispersion.log())
        return fn.to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``sqrt(m / (1 + dispersion m))``; see `OutputFisher`."""
        dispersion = latents["likelihood.dispersion"]
        return diagonal_root(outputs, (torch.sigmoid(outputs + dispersion.log()) / dispersion).sqrt())
