"""The one place where the two series of ArviZ differ: 0.8 on Python 3.11, 1.x on 3.12 and later.

Arrays go in and arrays come out. Nothing of `bnn` or torch is imported, so that this file can be tested by itself under
an interpreter for which there is no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def rhat(values: npt.ArrayLike) -> Array:
    """Rank-normalised, split and folded R-hat (Vehtari et al. 2021, arXiv:1903.08008).

    Args:
        values: ``(chains, draws, m)``: m quantities.

    Returns:
        ``(m,)``; NaN for a quantity that never moves.
    """
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    return _each(array_stats.rhat, values)


def ess(values: npt.ArrayLike) -> Array:
    """Bulk effective sample size, over all chains (Vehtari et al. 2021): ``(chains, draws, m)`` to ``(m,)``."""
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    return _each(array_stats.ess, values)


def _each(statistic: Any, values: npt.ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    result = np.full(array.shape[2], np.nan)
    moves = np.ptp(array, axis=(0, 1)) > 0
    if array.shape[1] >= 4 and moves.any():
        result[moves] = statistic(array[:, :, moves], chain_axis=0, draw_axis=1)
    return result


def smoothed(log_ratios: npt.ArrayLike) -> tuple[Array, float]:
    """Pareto-smoothed importance weights (Vehtari et al. 2024, arXiv:1507.02646).

    Args:
        log_ratios: ``(s,)``, the logarithm of the target's density over that of the draws, up to a constant.

    Returns:
        Logarithms of the weights, which sum to one, and the Pareto shape k-hat of their tail; minus infinity where the
        ratios are all the same.
    """
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    ratios = np.asarray(log_ratios, dtype=np.float64)
    if np.ptp(ratios) < 1e-3:  # nothing but rounding, whose tail has no shape
        return np.full(len(ratios), -np.log(len(ratios))), -np.inf
    # Both series take minus the logarithms, as of a likelihood that is to be divided out.
    weights, k = array_stats.psislw(-ratios)
    weights = np.asarray(weights) - np.logaddexp.reduce(weights)
    return weights, float(k)


def loo_by_row(log_likelihood: npt.ArrayLike) -> tuple[Array, Array, Array]:
    """PSIS-LOO of each row (Vehtari, Gelman and Gabry 2017, arXiv:1507.04544).

    Args:
        log_likelihood: ``(s, n)``, of each draw and row.

    Returns:
        ``(n,)`` each: the expected log-density, the Pareto shapes, and the effective numbers of parameters.
    """
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    values = np.asarray(log_likelihood, dtype=np.float64)
    n = values.shape[1]
    elpd, k, p = values[0].copy(), np.full(n, -np.inf), np.zeros(n)
    varies = np.ptp(values, axis=0) > 0  # a single value has no tail
    if varies.any():
        found = array_stats.loo(values[None][:, :, varies], chain_axis=0, draw_axis=1)
        elpd[varies], k[varies], p[varies] = (np.asarray(column) for column in found)
    return elpd, k, p


def power_scaling(values: npt.ArrayLike, log_density: npt.ArrayLike) -> Array:
    """How far draws move when a part of their density is raised to a power (Kallioinen et al. 2024, arXiv:2107.14054).

    ArviZ's `psense`: the cumulative Jensen-Shannon distance between the draws and those reweighted to powers 0.99 and
    1.01, per unit of the power's logarithm to base 2.

    Args:
        values: ``(chains, draws, m)``: m quantities.
        log_density: ``(chains, draws)``, of the part: the prior, or the likelihood of all rows.

    Returns:
        ``(m,)``; 0 for a quantity that never moves.
    """
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    array, part = np.asarray(values, dtype=np.float64), np.asarray(log_density, dtype=np.float64)
    sense: Any = array_stats.power_scale_sense  # whose annotations are of one draw
    lower, upper = 0.99, 1.01
    weights = []
    for alpha in (lower, upper):
        logs = np.asarray(array_stats.power_scale_lw(part, alpha=alpha, axis=(0, 1)))
        weights.append(np.exp(logs - np.logaddexp.reduce(logs.ravel())))
    result = np.zeros(array.shape[2])
    for i in np.flatnonzero(np.ptp(array, axis=(0, 1)) > 0):
        result[i] = sense(array[:, :, i], *weights, lower, upper, chain_axis=0, draw_axis=1)
    return result


@dataclass(frozen=True)
class Ranked:
    """One row of ArviZ's table of models."""

    #: Expected log-density over all rows.
    elpd: float
    #: How much better the best is, at least 0.
    behind: float
    #: Standard error of `behind`.
    error: float
    #: Stacking weight.
    weight: float


def ranking(trees: Mapping[str, Any]) -> dict[str, Ranked]:
    """ArviZ's own `compare` of several trees with ``log_likelihood``, the best first.

    The 1.x series rounds for display if it is not told otherwise, and gives differences another sign.
    """
    import arviz_stats

    compare = arviz_stats.compare  # type: ignore[attr-defined]
    options = {"round_to": "none"} if _is_new() else {}
    table = compare(dict(trees), **options)
    return {
        str(name): Ranked(float(row["elpd"]), abs(float(row["elpd_diff"])), float(row["dse"]), float(row["weight"]))
        for name, row in table.iterrows()
    }


def summary(tree: Any, **options: Any) -> Any:
    """ArviZ's `summary` as a frame of numbers: unrounded in both series."""
    import arviz_stats

    return arviz_stats.summary(tree, round_to="none", **options)  # type: ignore[attr-defined]


def _is_new() -> bool:
    import arviz_stats

    return int(arviz_stats.__version__.split(".")[0]) >= 1  # type: ignore[attr-defined]
