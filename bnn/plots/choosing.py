"""Which of several posteriors?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from bnn.analysis import Comparison
from bnn.plots.style import BLACK, BLUE, GREY, one


def comparison(found: Comparison, ax: Axes | None = None) -> Axes:
    """How far the log-density of each posterior is below that of the best, row by row, with 95 % intervals.

    The stacking weight is that of the posterior in the best mixture of all. An interval that reaches 0 decides nothing:
    neither does a difference of less than four nats over all rows (Sivula et al. 2020, arXiv:2008.10296).

    Args:
        found: From `bnn.compare`.
        ax: Where to draw.
    """
    count = len(next(iter(found.rows.values())).log_density.rows)
    ax = one(ax, size=(6.4, 1.5 + 0.55 * len(found.rows)))
    ax.axvline(0.0, color=GREY, linestyle="--", linewidth=1, label=f"the best: {found.best}")
    for place, (name, row) in enumerate(found.rows.items()):
        mean, error = row.difference.mean, row.difference.standard_error
        if name == found.best:
            ax.plot(0.0, place, "D", color=BLACK, markersize=7)
            continue
        clear = mean + 1.96 * error < 0 and mean * count < -4
        ax.errorbar(
            mean, place, xerr=1.96 * np.nan_to_num(error), fmt="o", color=BLUE,
            markerfacecolor=BLUE if clear else "white", ecolor=BLUE, elinewidth=2, capsize=4, markersize=7,
            label=_once(ax, "worse" if clear else "not told apart from the best"),
        )  # fmt: skip
    said = [f"{name}\nstacking weight {found.stacking[name]:.2f}" for name in found.rows]
    ax.set_yticks(range(len(found.rows)), said)
    kind = "held-out" if found.by == "held_out" else "leave-one-out"
    ax.set(xlabel=f"{kind} log-density against the best (nats a row; {count} rows)", ylim=(len(found.rows) - 0.5, -0.5))
    low = min(
        [row.difference.mean - 1.96 * np.nan_to_num(row.difference.standard_error) for row in found.rows.values()]
    )
    ax.set_xlim(1.1 * low - 1e-6, None)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize="small", frameon=False, ncols=3)
    return ax


def _once(ax: Axes, label: str) -> str:
    """A label that the legend does not have yet; matplotlib leaves out what starts with an underscore."""
    return f"_{label}" if label in ax.get_legend_handles_labels()[1] else label
