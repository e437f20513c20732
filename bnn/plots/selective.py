"""Does the model know when it errs? What is gained where it is let to leave the hard rows to somebody else."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from bnn.analysis import risk_coverage as curves
from bnn.plots.style import BLACK, BLUE, GREY, array, legend, one

_ORDERS = ("least certain rows left out first", "rows left out at random", "worst rows left out first (best possible)")


def risk_coverage(uncertainty: Any, loss: Any, ax: Axes | None = None, *, loss_label: str = "mean error") -> Axes:
    """The mean loss of the rows that are answered, against their share: El-Yaniv and Wiener, JMLR 11 (2010).

    A model that knows when it errs has a curve that falls towards the left, far below the line of chance.

    Args:
        uncertainty: ``(n,)``, larger for what is to be left out first, such as ``prediction.entropy.total``.
        loss: ``(n,)``, such as 0 for right and 1 for wrong.
        ax: Where to draw.
        loss_label: What the mean of the losses is called.

    Raises:
        ValueError: They are not two sets of n finite numbers.
    """
    own, best = curves(uncertainty, loss), curves(loss, loss)
    mean = float(own.risk[-1])
    ax = one(ax)
    ax.plot(array(own.coverage), array(own.risk), color=BLUE, linewidth=1.8, label=_ORDERS[0])
    ax.plot([0, 1], [mean, mean], color=GREY, linewidth=1, linestyle="--", label=_ORDERS[1])
    ax.plot(array(best.coverage), array(best.risk), color=BLACK, linewidth=1, linestyle=":", label=_ORDERS[2])
    ax.set(xlabel="share of rows that the model answers", ylabel=f"{loss_label} of these rows", xlim=(0, 1))
    top = max(mean, float(own.risk.max()), 1e-12)
    ax.set_ylim(-0.03 * top, 1.45 * top)  # the legend has its place above
    ax.set_title(f"area under the curve {own.aurc:.3g} (chance {mean:.3g}, best {best.aurc:.3g})")
    legend(ax, "upper left")
    return ax


def retention(uncertainty: Any, loss: Any, ax: Axes | None = None, *, loss_label: str = "mean error") -> Axes:
    """The loss that is left over all rows where the others are put right: Malinin and Gales (2021), arXiv:2002.07650.

    Args:
        uncertainty: As in `risk_coverage`.
        loss: As in `risk_coverage`.
        ax: Where to draw.
        loss_label: What the mean of the losses is called.

    Raises:
        ValueError: They are not two sets of n finite numbers.
    """
    own, best = curves(uncertainty, loss), curves(loss, loss)
    mean = float(own.retained[-1])
    ax = one(ax)
    looks = ((own, BLUE, "-", 1.8, _ORDERS[0]), (best, BLACK, ":", 1.0, _ORDERS[2]))
    for curve, colour, style, width, label in looks:
        # At 0 rows nothing is lost: the curve starts there.
        x, y = ([0.0, *array(values).tolist()] for values in (curve.coverage, curve.retained))
        ax.plot(x, y, color=colour, linestyle=style, linewidth=width, label=label)
    ax.plot([0, 1], [0, mean], color=GREY, linewidth=1, linestyle="--", label=_ORDERS[1])
    ax.set(xlabel="share of rows that the model keeps", ylabel=f"{loss_label} over all rows", xlim=(0, 1))
    ax.set_title(f"area under the curve {own.retention:.3g} (chance {mean / 2:.3g}, best {best.retention:.3g})")
    legend(ax, "upper left")
    return ax
