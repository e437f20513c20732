"""Targets that are known only to lie in an interval, or that are recorded only inside bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bnn.distributions import base as single
from bnn.likelihoods.base import Likelihood, check_shape
from bnn.likelihoods.laws import IntervalLaw, TruncatedLaw


class Censored(Likelihood):
    """Targets that are intervals known to hold y, such as survival times at the end of a study.

    Targets are ``(n, 2)``, lower and upper ends (for k targets a row ``(n, k, 2)``): equal ends were observed exactly,
    a lower end of -inf is left-censored, an upper end of inf is right-censored, both together are missing.
    `right_censored` makes them of times and whether they were observed. Predictions are of y itself, as if nothing were
    censored; for exactly known test targets, give `log_prob` equal ends.

    Censoring has to be independent of y given x: Klein and Moeschberger, Survival Analysis (2003), chapter 3.

    Args:
        base: The likelihood of y, with a distribution function that can be differentiated: `Gaussian`,
            `HeteroscedasticGaussian`, `Laplace`, `Quantile`, `LogNormal`, `Weibull`.
    """

    intervals = True

    def __init__(self, base: Likelihood):
        _check_base("Censored", base)
        self.base, self.fields, self.filler = base, base.fields, base.filler
        super().__init__(settings={"base": base.family})

    def __repr__(self) -> str:
        return f"Censored({self.base!r})"

    def latents(self, like: Tensor) -> dict[str, Tensor]:
        """Those of the likelihood of y."""
        return self.base.latents(like)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """Of y itself, uncensored."""
        return self.base.distribution(outputs, latents)

    def observation(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """Of the intervals; see `Likelihood.observation`."""
        return IntervalLaw(self.base.distribution(outputs, latents), self.filler)

    def event(self, outputs: Tensor) -> tuple[int, ...]:
        """That of y, and two ends."""
        return (*self.base.event(outputs), 2)

    def check_numbers(self, y: Tensor) -> None:
        """Ends may be infinite, but not NaN."""
        super().check_numbers(torch.where(y.isinf(), torch.zeros_like(y), y))

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Targets are ordered ends of intervals, and what was observed exactly lies in the support."""
        shape = (len(outputs), *self.event(outputs))
        if y.shape == shape[:-1]:
            raise ValueError(
                f"targets of a Censored likelihood are intervals, (lower, upper), of shape {shape}; y has shape "
                f"{tuple(y.shape)}: bnn.likelihoods.right_censored(y, observed), or torch.stack([lower, upper], dim=-1)"
            )
        check_shape(shape, outputs, y)
        low, high = y.unbind(-1)
        wrong = ((low > high) | (low == math.inf) | (high == -math.inf)).nonzero()
        if len(wrong):
            where = tuple(wrong[0].tolist())
            raise ValueError(
                f"the lower end of an interval is at most its upper end, and both are not the same infinity; "
                f"{len(wrong)} are not so, the first at row {where[0]}: ({low[where].item()}, {high[where].item()})"
            )
        # An end that was observed has to lie in the support; an interval has to reach into it, from above.
        known = torch.where(high == math.inf, torch.full_like(high, self.filler), high)
        self.base.check(outputs, known)


class Truncated(Likelihood):
    """y that is recorded only between bounds: rows outside are not in the data at all.

    Predictions are of y as it is recorded, between the bounds. Its moments are integrals of the quantiles, by
    quadrature. (Values beyond a bound that are recorded as that bound are censored: `Censored`.)

    Args:
        base: The likelihood of y before truncation, with a distribution function that can be differentiated; see
            `Censored`.
        low: Lower bound, in units of y; -inf for none.
        high: Upper bound.
    """

    def __init__(self, base: Likelihood, low: float = -math.inf, high: float = math.inf):
        _check_base("Truncated", base)
        if not low < high or (math.isinf(low) and math.isinf(high)):
            raise ValueError(f"low is below high, and one of them is finite; not {low} and {high}")
        self.base, self.low, self.high = base, float(low), float(high)
        self.fields = base.fields
        if math.isinf(low):
            self.filler = high - 0.5 if high > 0.5 or base.support is None else high / 2
        else:
            self.filler = low + 0.5 if math.isinf(high) else (low + high) / 2
        super().__init__(missing=base.missing, settings={"base": base.family, "low": self.low, "high": self.high})

    def __repr__(self) -> str:
        return f"Truncated({self.base!r}, low={self.low}, high={self.high})"

    def latents(self, like: Tensor) -> dict[str, Tensor]:
        """Those of the likelihood of y."""
        return self.base.latents(like)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """Of y between the bounds."""
        fn: Any = self.base.distribution(outputs, latents)
        return TruncatedLaw(single(fn), self.low, self.high, self.filler).to_event(len(fn.event_shape))

    def event(self, outputs: Tensor) -> tuple[int, ...]:
        """That of y."""
        return self.base.event(outputs)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Targets lie between the bounds, and in the support."""
        self.base.check(outputs, y)
        outside = ((y < self.low) | (y > self.high)).nonzero()
        if len(outside):
            where = tuple(outside[0].tolist())
            raise ValueError(
                f"targets of this Truncated likelihood lie between {self.low} and {self.high}; {len(outside)} do not, "
                f"the first at row {where[0]}: {y[where].item()}. Values that are recorded as a bound are censored"
            )


def right_censored(time: Any, observed: Any) -> Tensor:
    """Intervals for `Censored` from times, and whether the event was seen then or the row was last seen without it.

    Args:
        time: ``(n,)``.
        observed: ``(n,)``, of booleans: true where the event was at that time, false where it is still to come.

    Returns:
        ``(n, 2)``: ``(time, time)`` where observed, ``(time, inf)`` elsewhere.
    """
    time, seen = torch.as_tensor(time), torch.as_tensor(observed)
    if not time.is_floating_point():
        time = time.to(torch.get_default_dtype())
    if time.shape != seen.shape:
        raise ValueError(f"time has shape {tuple(time.shape)}, observed has {tuple(seen.shape)}: one a time")
    if bool(((seen != 0) & (seen != 1)).any()):
        raise ValueError("observed is true or false, one a time")
    return torch.stack([time, torch.where(seen.bool(), time, math.inf)], dim=-1)


def _check_base(kind: str, base: Likelihood) -> None:
    """Raise for a likelihood of y that cannot be censored or truncated."""
    if not isinstance(base, Likelihood):
        raise TypeError(f"{kind} takes a likelihood, such as Gaussian(), not {base!r}")
    if not base.tails:
        raise ValueError(
            f"{kind} needs a distribution function that can be differentiated, which {type(base).__name__} has not: "
            "Gaussian, HeteroscedasticGaussian, Laplace, Quantile, LogNormal and Weibull have it"
        )
    if base.weighs:
        raise ValueError(f"{base.weighs} makes training weights, which {kind} does not know: leave it out")
    if kind == "Censored" and base.missing:
        raise ValueError("a missing target of a Censored likelihood is the interval (-inf, inf): leave missing= out")
