"""How near an approximation comes to the posterior, and what the data have done to each layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from bnn.analysis import ImportanceCheck, LayerSpread
from bnn.plots.style import BLUE, GREY, SKY, VERMILLION, array, legend, one


def k_hat(check: ImportanceCheck, ax: Axes | None = None) -> Axes:
    """How few draws of an approximation would carry the weight, if weighting were to mend it; k-hat in the title.

    Draws of the posterior itself have equal weights, and the curve is the line of equal shares. The further it is above
    this line, the larger k-hat, the Pareto shape of the largest weights: Yao et al. (2018), arXiv:1802.02538. It is
    large for nearly every network; see `bnn.analysis.psis` on what this means.

    Args:
        check: From `bnn.analysis.psis`.
        ax: Where to draw.
    """
    ratios = np.sort(array(check.log_ratios).astype(float))[::-1]
    weights = np.exp(ratios - ratios[0])
    share = weights.cumsum() / weights.sum()
    draws = np.arange(1, len(share) + 1)
    half = int(np.searchsorted(share, 0.5)) + 1
    ax = one(ax)
    ax.plot(draws, draws / len(draws), color=GREY, linestyle="--", linewidth=1, label="exact draws: equal weights")
    ax.plot(draws, share, color=BLUE, linewidth=1.8, label="this approximation")
    many = "1 draw carries" if half == 1 else f"{half} draws carry"
    ax.plot(half, share[half - 1], "D", color=VERMILLION, label=f"{many} half of the weight")
    ax.set(xscale="log", ylim=(0, 1.4), yticks=np.linspace(0, 1, 6), xlabel="draws, those of largest weight first")
    ax.set_ylabel("share of the total weight")
    said = "weighting can correct it" if check.good else "weighting cannot correct it"
    ax.set_title(f"k-hat {check.k:.2f} (limit {check.threshold:.2f}): {said}")
    legend(ax, "upper left")
    return ax


def information_by_layer(layers: Mapping[str, LayerSpread], ax: Axes | None = None) -> Axes:
    """How far the data have moved each layer from its prior: KL divergence in nats a weight, of the marginal laws.

    Args:
        layers: From `bnn.analysis.layer_spread`, or ``verdict.layers``.
        ax: Where to draw.

    Raises:
        ValueError: There is no layer.
    """
    if not layers:
        raise ValueError("there is no random layer to draw")
    ax = one(ax, size=(6.4, 1.5 + 0.34 * len(layers)))
    values = [max(0.0, spread.information) for spread in layers.values()]
    looks = (
        ("learned from the data", BLUE, "", [not (s.is_prior or s.is_point) for s in layers.values()]),
        ("is its prior: the data said nothing", "white", "///", [s.is_prior for s in layers.values()]),
        ("is a point: no uncertainty left", SKY, "...", [s.is_point for s in layers.values()]),
    )
    for label, face, hatch, chosen in looks:
        rows = np.flatnonzero(chosen)
        if len(rows):
            ax.barh(rows, np.array(values)[rows], 0.6, color=face, edgecolor=BLUE, hatch=hatch, label=label)
    for row, (spread, value) in enumerate(zip(layers.values(), values, strict=True)):
        text = f" {value * spread.size:.3g} nats in {spread.size} {'weight' if spread.size == 1 else 'weights'}"
        ax.annotate(text, (value, row), va="center", fontsize="small")
    ax.set_yticks(range(len(layers)), list(layers))
    ax.set(xlabel="divergence from the prior (nats a weight)", ylim=(len(layers) - 0.5, -0.5))
    ax.set_xlim(0, 1.45 * max(*values, 1e-3))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize="small", frameon=False, ncols=3)
    return ax
