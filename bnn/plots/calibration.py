"""Does the stated uncertainty come true? Coverage of intervals, and reliability of class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bnn.analysis import expected_calibration_error, pit
from bnn.analysis import reliability as bins_with_bands
from bnn.plots.style import BLUE, GREY, SKY, Array, array, legend, one, percent
from bnn.prediction import Prediction

#: Probability of the bands in which a calibrated prediction stays.
_CONSISTENCY = 0.95


def interval_calibration(
    prediction: Prediction,
    y: Any,
    ax: Axes | None = None,
    levels: Sequence[float] | None = None,
) -> Axes:
    """The share of targets inside their interval, against the interval's level.

    The band holds 95 % of what a calibrated prediction would give with this number of rows, level by level (binomial);
    shares at different levels come from the same rows and move together.

    Args:
        prediction: Of n rows, with quantiles.
        y: ``(n,)`` or ``(n, k)``. Outputs count one by one; since those of a row may depend on each other, the band is
            that of n targets.
        ax: Where to draw.
        levels: Between 0 and 1; 0.05, 0.10, ..., 0.95 if not given.
    """
    nominal = np.linspace(0.05, 0.95, 19) if levels is None else np.sort(np.asarray(levels, dtype=float))
    if nominal.size == 0 or nominal.min() <= 0 or nominal.max() >= 1:
        raise ValueError(f"levels lie strictly between 0 and 1, not {levels}")
    # The interval of level L holds y where its distance from the median, in probability, is at most L / 2.
    needed = np.abs(2 * array(pit(prediction, y)) - 1).ravel()
    observed = (needed[None] <= nominal[:, None]).mean(1)
    rows = prediction.num_rows
    low, high = _consistent(nominal, rows)
    ax = one(ax, size=(5.0, 5.0))
    label = f"where a calibrated model stays, 95 % ({rows} rows)"
    ax.fill_between(nominal, low, high, color=GREY, alpha=0.25, linewidth=0, label=label)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    ax.plot(nominal, observed, "o-", color=BLUE, markersize=4, linewidth=1.5, label="this model")
    ax.text(0.03, 0.70, "intervals too wide", color=GREY, fontsize="small")
    ax.text(0.97, 0.30, "intervals too narrow", color=GREY, fontsize="small", ha="right")
    ax.set(xlabel="level of the interval", ylabel="share of targets inside", aspect="equal")
    # The upper quarter is the legend's.
    ax.set(xlim=(0, 1), ylim=(0, 1.28), yticks=np.linspace(0, 1, 6))
    legend(ax, "upper left")
    return ax


def reliability(prediction: Prediction, y: Any, ax: Axes | None = None, bins: int = 10) -> Axes:
    """How often the predicted class is right, against the probability that it was given.

    Rows are put into bins of equal width by the probability of their predicted class. The bar of a bin holds 95 % of
    what a calibrated prediction would give with these rows, by simulation: see `bnn.analysis.reliability`.

    Args:
        prediction: Of n rows, with class probabilities.
        y: ``(n,)``, integer labels; for Bernoulli 0 or 1, ``(n,)`` or ``(n, k)``.
        ax: Where to draw.
        bins: Number of bins on [0, 1].
    """
    found = bins_with_bands(prediction, y, bins, level=_CONSISTENCY)
    table = found.bins
    filled = array(table.counts) > 0
    counts, confidence, accuracy, low, high = (
        array(value)[filled] for value in (table.counts, table.confidence, table.accuracy, found.low, found.high)
    )
    ax = one(ax, size=(5.0, 5.0))
    ax.plot(
        [0, 1],
        [0, 1],
        color=GREY,
        linewidth=1,
        linestyle="--",
        label="calibrated (below: too sure of itself; above: not sure enough)",
    )
    ax.vlines(confidence, low, high, color=GREY, alpha=0.35, linewidth=7, label="where a calibrated model stays, 95 %")
    # No line between them: it would give a bin of one row the look of a trend.
    ax.plot(confidence, accuracy, "o", color=BLUE, markersize=6, label="this model (number: rows)")
    for x, top, count in zip(confidence, np.maximum(accuracy, high), counts, strict=True):
        ax.annotate(f"{count}", (x, top), (0, 5), textcoords="offset points", ha="center", fontsize="x-small")
    # The predicted class of k has at least the probability 1/k.
    least = 1 / prediction.probs.shape[-1] if prediction.likelihood.labels else 0.5
    error = expected_calibration_error(prediction, y, bins).mean
    # The upper quarter is the legend's.
    ax.set(xlim=(least - 0.03 * (1 - least), 1 + 0.03 * (1 - least)), ylim=(0, 1.35), yticks=np.linspace(0, 1, 6))
    ax.set(xlabel="probability given to the predicted class", ylabel="share of rows where it is right")
    usual = float(found.errors[int(_CONSISTENCY * len(found.errors))])
    ax.set_title(
        f"calibration error (ECE) {percent(error)}; chance alone gives up to {percent(usual)}", fontsize="medium"
    )
    legend(ax, "upper left")
    return ax


def pit_histogram(prediction: Prediction, y: Any, ax: Axes | None = None, bins: int = 10) -> Axes:
    """Where the targets lie within their predicted distributions: equally often everywhere if it is calibrated.

    Probability integral transforms (Dawid, JRSS A 147, 1984; Gneiting, Balabdaoui and Raftery, JRSS B 69, 2007). The
    band holds 95 % of the bars of a calibrated prediction of this number of rows, bar by bar (binomial).

    Args:
        prediction: Of n rows, with quantiles.
        y: ``(n,)`` or ``(n, k)``; outputs count one by one, and the band is that of n targets.
        ax: Where to draw.
        bins: Number of bars.
    """
    if bins < 2:
        raise ValueError(f"a histogram has at least 2 bars, not {bins}")
    values = array(pit(prediction, y)).ravel()
    rows = prediction.num_rows
    edges = np.linspace(0, 1, bins + 1)
    heights = bins * np.histogram(values, edges)[0] / len(values)
    low, high = (bins * end for end in _consistent(np.full(1, 1 / bins), rows))
    ax = one(ax)
    label = f"where a calibrated model stays, 95 % ({rows} rows)"
    ax.fill_between([0, 1], low, high, color=GREY, alpha=0.35, linewidth=0, label=label)
    ax.axhline(1.0, color=GREY, linestyle="--", linewidth=1, label="calibrated")
    ax.stairs(heights, edges, fill=True, color=SKY, alpha=0.35)
    ax.stairs(heights, edges, color=BLUE, linewidth=1.8, label="this model")
    top = max(float(heights.max()), float(high[0]))
    ax.set(xlim=(0, 1), ylim=(0, 1.45 * top), ylabel="rows against what is expected")
    ax.set_xlabel("place of the target in its predicted distribution (0: below all of it)")
    ax.set_title("high at both ends: too narrow; in the middle: too wide; at one: shifted", fontsize="small")
    legend(ax, "upper center")
    return ax


def _consistent(probability: Array, rows: int | Array) -> tuple[Array, Array]:
    """Central 95 % of the share of successes in `rows` trials."""
    from scipy.stats import binom

    tail = (1 - _CONSISTENCY) / 2
    low, high = (binom.ppf(q, rows, probability) / rows for q in (tail, 1 - tail))
    return low, high
