"""A Gaussian distribution of a row of inputs: given a noisy or incomplete reading, and estimated from such readings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: Rounds of expectation maximisation at most, and the largest change, in standard deviations, that ends them.
_ROUNDS, _STILL = 5_000, 1e-9
#: The least eigenvalue of the correlations that the rounds start from: a direction without variance stays without.
_LEAST = 1e-2
#: Added to variances, in squared standard deviations, so that constant and collinear features can be solved for.
_JITTER = 1e-9


class Conditional(NamedTuple):
    """The true values of each row given its reading: ``mean_i + factor_{pattern_i} z``, z standard normal."""

    #: ``(n, d)``.
    mean: Tensor
    #: ``(u, d, d)``, for each pattern of noise and missing entries.
    factor: Tensor
    #: ``(n,)``, which pattern a row has.
    pattern: Tensor


@dataclass(frozen=True)
class InputLaw:
    """A Gaussian over the true values of a row.

    Args:
        mean: ``(d,)``, double precision, on the CPU as all that is computed here.
        covariance: ``(d, d)``, symmetric and positive semidefinite.
    """

    mean: Tensor
    covariance: Tensor

    def given(self, x: Tensor, variance: Tensor) -> Conditional:
        """The true values given a reading, ``x_obs ~ Normal(x, variance)`` where it is not NaN.

        With the observed entries o of a row, ``K = S_:o (S_oo + V_oo)^-1``: the mean is ``m + K (x_o - m_o)``, the
        covariance ``S - K S_o:`` (Bishop 2006, section 2.3.3). An entry that was read without noise is what was read.

        Args:
            x: ``(n, d)``, NaN where an entry is missing.
            variance: ``(n, d)`` or ``(1, d)``, of the reading, in squared units of x; not used where x is NaN.
        """
        x, variance = x.double().cpu(), variance.double().expand(x.shape)
        there = ~x.isnan()
        diagonal = self.covariance.diagonal()
        unit = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
        kinds, pattern = _patterns(there, variance)
        covariance = self.covariance / (unit * unit[:, None])
        gain, left = _gains(covariance, kinds, unit)
        away = torch.where(there, (x - self.mean) / unit, 0.0)
        mean = self.mean + unit * _by_pattern(gain, away, pattern)
        exact = there & (variance == 0)
        values, vectors = torch.linalg.eigh(left)
        factor = unit[:, None] * vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
        known = kinds.there & (kinds.variance == 0)
        return Conditional(torch.where(exact, x, mean), factor.masked_fill(known.unsqueeze(-1), 0.0), pattern)


class _Kinds(NamedTuple):
    """The different rows of noise and missing entries: ``(u, d)`` each."""

    there: Tensor
    variance: Tensor


def estimate(x: Tensor, variance: Tensor) -> InputLaw:
    """The Gaussian of largest likelihood for true values of which x is a reading of known noise.

    Expectation maximisation (Dempster, Laird and Rubin 1977; for missing entries Little and Rubin 2019, chapter 11):
    mean and covariance of the true values given the readings, averaged over rows, until nothing changes by more than
    1e-9 standard deviations.

    Args:
        x: ``(n, d)``, NaN where an entry is missing; every feature was read in two rows at least.
        variance: ``(n, d)`` or ``(1, d)``, of the reading.
    """
    x, variance = x.double(), variance.double().expand(x.shape)
    there = ~x.isnan()
    counts = there.sum(0)
    centre = torch.where(there, x, 0.0).sum(0) / counts
    away = torch.where(there, x - centre, 0.0)
    spread = away.square().sum(0) / counts
    unit = torch.where(spread > 0, spread, 1.0).sqrt()
    away, scaled = away / unit, variance / unit**2
    kinds, pattern = _patterns(there, scaled)
    mean, covariance = torch.zeros_like(centre), _start(away, there, scaled)
    rows, total, squares = _sums(away, pattern, len(kinds.there))
    one = torch.ones_like(unit)
    for _ in range(_ROUNDS):
        gain, left = _gains(covariance, kinds, one)
        own = torch.where(kinds.there, mean, 0.0)
        sums = total - rows[:, None] * own
        cross = total.unsqueeze(-1) * own.unsqueeze(-2)
        scatter = squares - cross - cross.mT + rows[:, None, None] * own.unsqueeze(-1) * own.unsqueeze(-2)
        shift = (gain @ sums.unsqueeze(-1)).squeeze(-1).sum(0) / len(x)
        moment = (rows[:, None, None] * left + gain @ scatter @ gain.mT).sum(0) / len(x)
        new = moment - shift.outer(shift)
        change = torch.maximum((new - covariance).abs().max(), shift.abs().max())
        mean, covariance = mean + shift, (new + new.mT) / 2
        if float(change) < _STILL:
            break
    else:
        warnings.warn(
            f"the law of the true inputs still changed by {float(change):.1e} standard deviations after {_ROUNDS} "
            "rounds: some features are hardly ever read together. Give input_prior=",
            stacklevel=2,
        )
    return InputLaw(centre + unit * mean, covariance * unit * unit[:, None])


def _start(away: Tensor, there: Tensor, variance: Tensor) -> Tensor:
    """Products of what was read in pairs, less the noise, made positive definite: ``(d, d)``, in unit variances."""
    pairs = (there.double().T @ there.double()).clamp(min=1)
    noise = torch.where(there, variance, 0.0).sum(0) / there.sum(0)
    covariance = (away.T @ away) / pairs - noise.diag()
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=_LEAST)) @ vectors.T


def _patterns(there: Tensor, variance: Tensor) -> tuple[_Kinds, Tensor]:
    """The different rows of noise and missing entries, and which of them each row is."""
    known = torch.where(there, variance, -1.0)
    if bool((known == known[:1]).all()):
        kinds, pattern = known[:1], torch.zeros(len(known), dtype=torch.long, device=known.device)
    else:
        kinds, pattern = torch.unique(known, dim=0, return_inverse=True)
    return _Kinds(kinds >= 0, kinds.clamp(min=0)), pattern


def _gains(covariance: Tensor, kinds: _Kinds, unit: Tensor) -> tuple[Tensor, Tensor]:
    """The regression on what was read and the covariance that it leaves, ``(u, d, d)`` each, in these units."""
    there = kinds.there
    both = there.unsqueeze(-1) & there.unsqueeze(-2)
    diagonal = torch.where(there, kinds.variance / unit**2 + _JITTER, 1.0)
    read = torch.where(both, covariance, 0.0) + torch.diag_embed(diagonal)
    with_read = torch.where(there.unsqueeze(-1), covariance, 0.0)
    gain = torch.linalg.solve(read, with_read).mT
    left = covariance - gain @ with_read
    return gain, (left + left.mT) / 2


def _by_pattern(matrices: Tensor, vectors: Tensor, pattern: Tensor) -> Tensor:
    """The matrix of its pattern times each row: ``(n, d)``."""
    if len(matrices) == 1:
        return vectors @ matrices[0].T
    return (matrices[pattern] @ vectors.unsqueeze(-1)).squeeze(-1)


def _sums(away: Tensor, pattern: Tensor, kinds: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each pattern its rows ``(u,)``, their sum ``(u, d)`` and the sum of their squares ``(u, d, d)``."""
    d = away.shape[1]
    rows = torch.bincount(pattern, minlength=kinds).to(away)
    if kinds == 1:
        return rows, away.sum(0, keepdim=True), (away.T @ away).unsqueeze(0)
    squares = away.unsqueeze(-1) * away.unsqueeze(-2)
    total = away.new_zeros(kinds, d).index_add(0, pattern, away)
    return rows, total, away.new_zeros(kinds, d, d).index_add(0, pattern, squares)
