"""Simulation-based calibration: is a method right on average, over data sets that the model itself would make?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyro
import torch
from torch import Tensor

from bnn.analysis.density import of_draws
from bnn.approximations import Draws
from bnn.inference import fit
from bnn.inference.base import Method
from bnn.inputs import Inputs, as_inputs, num_rows, slice_inputs
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import isolated, other_seed

_ALPHA = 0.01


@dataclass(frozen=True)
class Calibration:
    """Ranks of the truth among draws of the posterior; uniform if the method is exact."""

    #: ``(simulations, m)``, 0 to `draws`: how many draws lie below the truth, for m quantities.
    ranks: npt.NDArray[np.int64]
    #: Draws of each posterior.
    draws: int
    #: What each quantity is.
    names: tuple[str, ...]
    #: Bins of the chi-square statistic.
    bins: int

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Ranks in bins, ``(m, bins)``."""
        which = self.ranks * self.bins // (self.draws + 1)
        return np.stack([np.bincount(column, minlength=self.bins) for column in which.T])

    @property
    def p_values(self) -> npt.NDArray[np.float64]:
        """Of a chi-square test of uniform ranks, for each quantity: ``(m,)``."""
        from scipy import stats

        sizes = np.bincount(np.arange(self.draws + 1) * self.bins // (self.draws + 1), minlength=self.bins)
        expected = len(self.ranks) * sizes / (self.draws + 1)
        statistic = ((self.counts - expected) ** 2 / expected).sum(1)
        return np.asarray(stats.chi2.sf(statistic, self.bins - 1))

    @property
    def p_value(self) -> float:
        """Of all quantities together: the smallest, times their number (Bonferroni)."""
        return min(1.0, float(self.p_values.min()) * len(self.names))

    @property
    def calibrated(self) -> bool:
        """Whether nothing was found at the level of one per cent."""
        return self.p_value > _ALPHA

    @property
    def extremes(self) -> float:
        """The share of ranks in the outer fifth of the range: above 0.2, posteriors are too narrow; below, too wide."""
        place = (self.ranks + 0.5) / (self.draws + 1)
        return float(((place < 0.1) | (place > 0.9)).mean())

    def band(self, level: float = 0.99) -> tuple[float, float]:
        """Where the count of one bin lies with this probability if ranks are uniform (binomial), for a histogram."""
        from scipy import stats

        low, high = stats.binom.interval(level, len(self.ranks), 1 / self.bins)
        return float(low), float(high)

    def __str__(self) -> str:
        said = f"{len(self.ranks)} simulations, {len(self.names)} quantities: p {self.p_value:.3g}"
        if self.calibrated:
            return f"{said}; nothing speaks against calibration"
        shape = "too narrow" if self.extremes > 0.2 else "off to one side, or too wide"
        return f"{said}; not calibrated: posteriors are {shape} ({self.extremes:.0%} of ranks in the outer fifth)"


def sbc(
    model: BNN,
    x: Any,
    method: Method | str,
    simulations: int = 50,
    *,
    at: Any = None,
    draws: int = 99,
    bins: int = 10,
    seed: int = 0,
) -> Calibration:
    """Simulation-based calibration in function space.

    Unknowns are drawn from the prior and data from the likelihood; the method is fitted to them; and the values of the
    true function take their ranks among the posterior's. With the exact posterior all ranks are equally probable. Talts
    et al. (2018), arXiv:1804.06788; of variational posteriors Yao et al. (2018), arXiv:1802.02538. Weights have no
    ranks that mean something: hidden units change places.

    It asks about data sets that the prior makes, on average over them, and not about the one at hand.

    Args:
        model: Every unknown with a prior.
        x: Inputs of the simulated data, n rows.
        method: As in `bnn.fit`.
        simulations: Data sets; each takes one fit. Some hundreds see small errors.
        at: Inputs at which functions are compared; ``None``: three of the rows of x. Each output of each row is one
            quantity.
        draws: Of each posterior; of a sampler evenly spaced draws, which should be nearly independent.
        bins: Of the ranks, at most ``draws + 1`` and `simulations` / 5.
        seed: Of everything.

    Raises:
        ValueError: The model has learned points or uncertain inputs; too few simulations for so many bins.
    """
    points = [site.name for site in model.sites().points]
    if points or model.readings is not None:
        raise ValueError(f"data cannot be simulated from this model: {points or 'its inputs'} have no prior")
    bins = min(bins, simulations // 5, draws + 1)
    if bins < 2:
        raise ValueError(f"ranks of {simulations} simulations fill no histogram: 10 at least")
    inputs = as_inputs(x, model.like)
    probes = _rows(inputs) if at is None else as_inputs(at, model.like)
    rows: list[Tensor] = []
    shape = torch.Size()
    for i in range(simulations):
        truth, y = simulated(model, inputs, other_seed(seed, f"simulation {i}"))
        own = other_seed(seed, f"fit {i}")
        posterior = fit(model, (inputs, y), method, seed=own, compile="eager", progress=False)
        found = posterior.predict(probes, posterior.draws(draws, other_seed(seed, f"draws {i}"))).outputs
        true = of_draws(posterior, truth).predict(probes).outputs
        shape = found.shape[1:]
        rows.append((found < true).sum(0).flatten().cpu())
    return Calibration(torch.stack(rows).numpy(), draws, _names(shape), bins)


def simulated(model: BNN, x: Inputs, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """All unknowns from the prior, ``{site: (1, *shape)}``, and targets at x from the likelihood."""
    with isolated(seed, model.like.device), torch.no_grad(), pyro.validation_enabled(False):
        drawn = model.prior_draw()
        drawn |= {name: value for name, value in model.weights(drawn, {}).items() if name not in drawn}
        values = {name: value.unsqueeze(0) for name, value in drawn.items()}
        approximation = Draws({name: value.unsqueeze(0) for name, value in values.items()})
        own = Posterior(model, approximation, points={}, state=model.state())
        y = own.predict(x).distribution().sample()
    return values, y


def _rows(x: Inputs) -> Inputs:
    n = num_rows(x)
    return slice_inputs(x, slice(0, n, max(1, math.ceil(n / 3))))


def _names(shape: torch.Size) -> tuple[str, ...]:
    return tuple("f" + str(list(place)).replace(" ", "") for place in np.ndindex(*shape))
