"""Distributions of what is recorded of y: with missing numbers, as intervals, and inside bounds only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bnn.distributions import base
from bnn.likelihoods.quantiles import law
from bnn.likelihoods.tails import log_interval, tails_of

#: Nodes of the quadrature of a truncated distribution's moments.
_NODES = 400


class MaskedLaw(TorchDistribution):
    """A distribution of y whose log-density leaves missing numbers out: they are integrated over.

    Args:
        fn: Of y: single numbers, independent ones, or a multivariate Gaussian.
        absent: From y to which of its numbers are missing.
        filler: A number in the support.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, fn: Any, absent: Callable[[Tensor], Tensor], filler: float):
        self.fn, self.absent, self.filler = fn, absent, filler
        self._single = base(fn)
        several = len(self._single.event_shape) > 0
        if several and not isinstance(self._single, torch.distributions.MultivariateNormal):
            raise ValueError(
                f"missing='mask' leaves single numbers of a row out, which {type(self._single).__name__} over "
                f"{tuple(fn.event_shape)} numbers does not allow: leave those rows out"
            )
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Everywhere: a missing number may be anything."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of the numbers that are there; 0 if there is none."""
        missing = self.absent(value)
        filled = torch.where(missing, torch.full_like(value, self.filler), value)
        if isinstance(self._single, torch.distributions.MultivariateNormal):
            return self._gaussian(missing, filled)
        each = self._single.log_prob(filled)
        each = torch.where(missing, torch.zeros_like(each), each)
        return each.flatten(1).sum(1) if self.event_shape else each

    def _gaussian(self, missing: Tensor, filled: Tensor) -> Tensor:
        """The missing dimensions made independent of all others, standard and at their mean; then taken off again."""
        fn: Any = self._single
        there = (~missing).to(filled)
        covariance = fn.covariance_matrix * there.unsqueeze(-1) * there.unsqueeze(-2) + torch.diag_embed(1 - there)
        root = torch.linalg.cholesky_ex(covariance)[0]
        z = torch.linalg.solve_triangular(root, ((filled - fn.loc) * there).unsqueeze(-1), upper=False).squeeze(-1)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * z.square().sum(-1) - log_det - 0.5 * math.log(2 * math.pi) * there.sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Nothing is missing in a draw."""
        return self.fn.sample(sample_shape)


class IntervalLaw(TorchDistribution):
    """Of intervals ``(lower, upper)`` that are known to hold y: a density where the ends are equal, else a probability.

    Args:
        fn: Of y: single numbers or independent ones, with tails that are known (`tails_of`).
        inside: A number in its support.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 1)

    def __init__(self, fn: Any, inside: float):
        self.fn, self.inside = fn, inside
        self._single = base(fn)
        tails_of(self._single)
        super().__init__(fn.batch_shape, torch.Size((*fn.event_shape, 2)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(y) of a row that was observed, log P(lower < y <= upper) of one that was not."""
        low, high = value.unbind(-1)
        exact = low == high
        density = self._single.log_prob(torch.where(exact, low, self.inside))
        low, high = torch.where(exact, -math.inf, low), torch.where(exact, math.inf, high)
        each = torch.where(exact, density, log_interval(self._single, low, high, self.inside))
        return each.flatten(1).sum(1) if self.fn.event_shape else each

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of y, observed: both ends are equal."""
        drawn = self.fn.sample(sample_shape)
        return torch.stack([drawn, drawn], dim=-1)


class TruncatedLaw(TorchDistribution):
    """y given that it lies between two bounds, of which one may be infinite.

    Args:
        fn: Of single numbers, with tails that are known (`tails_of`).
        low: Lower bound.
        high: Upper bound.
        inside: A number between them.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, fn: Any, low: float, high: float, inside: float):
        self.fn, self.low, self.high, self.inside = fn, max(low, tails_of(fn).least), high, inside
        super().__init__(fn.batch_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Between the bounds."""
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TruncatedLaw:
        """See `torch.distributions.Distribution.expand`."""
        return TruncatedLaw(self.fn.expand(batch_shape), self.low, self.high, self.inside)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, less the log-probability of the bounds."""
        low, high = torch.full_like(value, self.low), torch.full_like(value, self.high)
        tails = tails_of(self.fn)
        if self.high == math.inf:
            inside = tails.logs(self.fn, low)[1]
        elif self.low == tails.least:
            inside = tails.logs(self.fn, high)[0]
        else:
            inside = log_interval(self.fn, low, high, self.inside)
        log_prob: Tensor = self.fn.log_prob(value) - inside
        return log_prob

    def cdf(self, value: Tensor) -> Tensor:
        """P(Y <= value): from the nearer tail of the family, by scipy."""
        known, right, (below, above) = self._lower()
        y = value.detach().cpu().double().numpy()
        with np.errstate(all="ignore"):
            by_left = (known.cdf(y) - below) / (known.cdf(self.high) - below)
            by_right = (above - known.sf(y)) / (above - known.sf(self.high))
        return torch.as_tensor(np.where(right, by_right, by_left).clip(0, 1)).to(value)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile: from the nearer tail of the family, by scipy."""
        known, right, (below, above) = self._lower()
        q = value.detach().cpu().double().numpy()
        with np.errstate(all="ignore"):
            by_left = known.ppf(below + q * (known.cdf(self.high) - below))
            by_right = known.isf(above - q * (above - known.sf(self.high)))
        y = np.where(right, by_right, by_left)
        # Beyond some 37 standard deviations nothing is left of the probability: all of it lies at the bound.
        return torch.as_tensor(np.where(np.isfinite(y), y, np.where(right, self.low, self.high))).to(value)

    def _lower(self) -> tuple[Any, Any, tuple[Any, Any]]:
        """scipy's distribution, where the lower bound is right of its median, and the probabilities on both sides."""
        known = law(self.fn)
        below, above = known.cdf(self.low), known.sf(self.low)
        return known, above < below, (below, above)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """By the quantiles of uniform numbers, without gradients."""
        like = self.fn.mean
        return self.icdf(torch.rand(self._extended_shape(sample_shape), dtype=like.dtype, device=like.device))

    @property
    def mean(self) -> Tensor:
        """The integral of the quantiles."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """The integral of their squared distances from the mean."""
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        """By Gauss-Legendre after ``u = t^3 (10 - 15 t + 6 t^2)``, which flattens what is infinite at the ends."""
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        t = torch.as_tensor((nodes + 1) / 2).reshape(-1, *[1] * len(self.batch_shape))
        shares = torch.as_tensor(weights / 2).reshape(t.shape) * 30 * t * t * (1 - t) ** 2
        y = self.icdf((t**3 * (10 - 15 * t + 6 * t * t)).expand(-1, *self.batch_shape))
        mean = (shares * y).sum(0)
        variance = (shares * (y - mean).square()).sum(0)
        return mean.to(self.fn.mean), variance.to(self.fn.mean)
