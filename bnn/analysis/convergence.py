"""Did the chains converge? In function space, of the log joint, of hyper-parameters; over weights as a distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bnn.analysis import compatibility
from bnn.analysis.density import log_joint, rows_of, vectors_of
from bnn.inputs import as_inputs, num_rows, slice_inputs
from bnn.layout import Layout
from bnn.posterior import Posterior

#: Function values that are looked at, and weights of a layer.
_FUNCTIONS, _WEIGHTS = 100, 200
#: Draws of which the log joint is worked out.
_JOINTS = 1000
#: What R-hat may be where it can be measured well: Vehtari et al. (2021).
RHAT = 1.01
#: The chance that exact draws are above the limit, for all quantities of a posterior together.
FALSE_ALARM = 1e-3
#: Effective draws below which means are off by more than a tenth of a posterior standard deviation.
EFFECTIVE = 100.0


@dataclass(frozen=True)
class Mixing:
    """R-hat and bulk effective sample size of one quantity, or of several of one kind."""

    #: ``(m,)``; NaN for a quantity that never moves; where draws are not finite, infinite R-hat, no effective draws.
    rhat: npt.NDArray[np.float64]
    ess: npt.NDArray[np.float64]
    #: Largest R-hat that so many quantities of independent draws would show.
    limit: float

    @property
    def worst_rhat(self) -> float:
        """The largest R-hat; NaN if nothing moves."""
        return math.nan if np.isnan(self.rhat).all() else float(np.nanmax(self.rhat))

    @property
    def least_ess(self) -> float:
        """The smallest effective sample size; NaN if nothing moves."""
        return math.nan if np.isnan(self.ess).all() else float(np.nanmin(self.ess))

    @property
    def mixed(self) -> bool:
        """Whether no R-hat is above the limit."""
        return not self.worst_rhat > self.limit

    def quantiles(self, levels: tuple[float, ...] = (0.05, 0.5, 0.95)) -> dict[str, list[float]]:
        """Of a layer's weights: quantiles of R-hat and of the effective sample size."""
        return {name: np.nanquantile(getattr(self, name), levels).tolist() for name in ("rhat", "ess")}

    def __str__(self) -> str:
        if np.isnan(self.rhat).all():
            return "the same in all draws"
        return f"R-hat up to {self.worst_rhat:.3f} (limit {self.limit:.3f}), effective draws from {self.least_ess:.0f}"


@dataclass(frozen=True)
class Convergence:
    """What the chains of one posterior say of each other."""

    chains: int
    draws: int
    #: Of the network's outputs at given inputs: what predictions are made of, and what symmetries leave alone.
    functions: Mixing
    #: Of log p(y, w), where x and y were given.
    log_joint: Mixing | None
    #: Of each site that is no weight: scales of priors and of the likelihood.
    hyper: dict[str, Mixing]
    #: Of the weights of each parameter. Large R-hats mean little here: the same function in another order of its units.
    layers: dict[str, Mixing]
    #: Divergent transitions, where the sampler counts them.
    divergences: int

    @property
    def converged(self) -> bool:
        """Function space, log joint and hyper-parameters mixed; the weights are not asked."""
        return all(part.mixed for part in self.asked.values())

    @property
    def asked(self) -> dict[str, Mixing]:
        """What `converged` stands on, by name."""
        joint = {} if self.log_joint is None else {"log joint": self.log_joint}
        return {"functions": self.functions, **joint, **self.hyper}

    def __str__(self) -> str:
        lines = [f"{self.chains} chains of {self.draws} draws: {'converged' if self.converged else 'not converged'}"]
        lines += [f"  {name}: {part}" for name, part in self.asked.items()]
        for name, part in self.layers.items():
            low, middle, high = part.quantiles()["rhat"]
            lines.append(f"  weights {name}: R-hat {low:.2f}, {middle:.2f}, {high:.2f} (5, 50 and 95 %)")
        return "\n".join([*lines, *([f"  divergent transitions: {self.divergences}"] if self.divergences else [])])


def convergence(posterior: Posterior, x: Any, y: Any = None) -> Convergence:
    """R-hat and effective sample sizes where they mean something for a network.

    Rank-normalised split R-hat and bulk ESS by ArviZ (Vehtari et al. 2021, arXiv:1903.08008); in function space, as
    weights of a network can change places without any change of its function (Izmailov et al. 2021, arXiv:2104.14421).
    Of at most 100 function values, evenly spaced over rows and outputs, 200 weights of each parameter, and the log
    joint of at most 1,000 draws.

    The limit of R-hat is 1.01, or more where chains are so short that independent draws would exceed it: see
    `rhat_limit`.

    Args:
        posterior: Of a sampler, with chains.
        x: Inputs at which functions are compared: any rows; with `y` the training rows.
        y: Their targets, for the log joint.

    Raises:
        ValueError: There are no chains: a continuous posterior, a single draw, members of an ensemble.
    """
    shape = posterior.approximation.shape
    if not has_chains(posterior) or shape is None:
        raise ValueError(
            f"R-hat compares chains of draws, and this posterior ({posterior!r}) is none of a sampler: for a "
            "continuous one see bnn.analysis.psis and bnn.analysis.sbc"
        )
    values = posterior.draws()
    model = posterior.model
    own = {name for name, p in model.net.named_parameters() if p.requires_grad}
    weights = {name: value for name, value in values.items() if name in own}
    state = set(model.state())
    others = {name: v for name, v in values.items() if name not in own | state and not name.endswith(".z")}
    joint = None if y is None else _joint(posterior, values, x, y, shape)
    count = _FUNCTIONS + (y is not None) + sum(value[0].numel() for value in others.values())
    limit = rhat_limit(*shape, count)
    return Convergence(
        *shape,
        mixing(function_values(posterior, values, x), shape, limit),
        None if joint is None else mixing(joint, (shape[0], len(joint) // shape[0]), limit),
        {name: mixing(_some(value, _WEIGHTS), shape, limit) for name, value in others.items()},
        {name: mixing(_some(value, _WEIGHTS), shape) for name, value in weights.items()},
        int(posterior.approximation.statistics.get("diverging", torch.zeros(())).sum()),
    )


def has_chains(posterior: Posterior) -> bool:
    """Whether draws come in chains that can be compared: of a sampler, or several."""
    shape = posterior.approximation.shape
    return shape is not None and shape[1] >= 4 and (shape[0] >= 2 or posterior.approximation.kind == "chains")


def function_values(posterior: Posterior, values: Mapping[str, Tensor], x: Any) -> Tensor:
    """The network's outputs under each draw at some of the rows: ``(s, m)``, m at most 100."""
    inputs = as_inputs(x, posterior.model.like)
    n = num_rows(inputs)
    every = max(1, n // _FUNCTIONS)
    rows = slice(0, every * (_FUNCTIONS - 1) + 1, every)
    return _some(posterior.predict(slice_inputs(inputs, rows), values).outputs, _FUNCTIONS)


def mixing(values: Tensor, shape: tuple[int, int], limit: float | None = None) -> Mixing:
    """Of quantities ``(chains * draws, m)``, chain after chain."""
    array = values.detach().double().cpu().reshape(*shape, -1).numpy()
    limit = rhat_limit(*shape, array.shape[2]) if limit is None else limit
    finite = np.isfinite(array).all(axis=(0, 1))
    array = np.where(finite, array, 0.0)
    rhat = np.where(finite, compatibility.rhat(array), np.inf)
    return Mixing(rhat, np.where(finite, compatibility.ess(array), 0.0), limit)


def rhat_limit(chains: int, draws: int, quantities: int) -> float:
    """What the largest R-hat of independent draws stays below, but for one posterior in a thousand; at least 1.01.

    Split into m half-chains of n draws, ``R^2 = (n - 1) / n + F / n``, F the ratio of variances between and within,
    whose law for independent draws is Fisher's. Rank-normalised R-hat takes the larger of two such, and all quantities
    are asked at once: Bonferroni's level.
    """
    from scipy import stats

    m, n = 2 * chains, draws // 2
    level = FALSE_ALARM / (2 * quantities)
    between = float(stats.f.isf(level, m - 1, m * (n - 1)))
    return max(RHAT, math.sqrt((n - 1 + between) / n))


def _joint(posterior: Posterior, values: Mapping[str, Tensor], x: Any, y: Any, shape: tuple[int, int]) -> Tensor | None:
    """The log joint of some draws of each chain, evenly spaced: ``(chains * draws, 1)``."""
    chains, draws = shape
    if any(site.name not in values for site in Layout(posterior.model.sites().latents).sites):
        return None
    batch = rows_of(posterior, x, y)
    every = -(-chains * draws // _JOINTS)
    places = torch.arange(chains * draws).reshape(shape)[:, ::every]
    joints = []
    for part in places.flatten().split(32):
        picked = {name: value[part.to(value.device)] for name, value in values.items()}
        joints.append(log_joint(posterior, vectors_of(posterior, picked), batch))
    return torch.cat(joints).unsqueeze(1)


def _some(values: Tensor, most: int) -> Tensor:
    """Some numbers of each draw, evenly spaced: ``(s, m)``."""
    flat = values.reshape(len(values), -1)
    count = min(most, flat.shape[1])
    places = torch.linspace(0, flat.shape[1] - 1, count, dtype=torch.float64).round().long()
    return flat[:, places.to(flat.device)]
