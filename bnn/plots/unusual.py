"""Does it know what it does not know? Rows from outside, and growing shift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bnn.analysis import Detection, Estimate, detection
from bnn.plots.style import BLACK, BLUE, GREY, SKY, VERMILLION, Array, array, legend, one

_BINS = 30


def unusual_rows(
    inside: Any,
    outside: Any,
    ax: Axes | None = None,
    *,
    score: str = "uncertainty",
    names: tuple[str, str] = ("rows like the training set", "rows from outside"),
) -> Axes:
    """How a score, larger for what is unusual, is distributed over rows of either kind.

    Args:
        inside: ``(n,)``, scores of rows like those of the training set.
        outside: ``(m,)``, scores of others.
        ax: Where to draw.
        score: What the score is called, with its unit.
        names: What the two kinds of rows are called.

    Raises:
        ValueError: Either is empty, or holds what is not finite.
    """
    found = detection(inside, outside)
    values = [array(value).astype(float).ravel() for value in (inside, outside)]
    ends = np.concatenate(values)
    edges = np.histogram_bin_edges(ends, _BINS)
    ax = one(ax)
    looks = ((SKY, "-", True), (VERMILLION, "-", False))
    for rows, name, (colour, style, fill) in zip(values, names, looks, strict=True):
        share = 100 * np.histogram(rows, edges)[0] / len(rows)
        ax.stairs(
            share, edges, fill=fill, color=colour, linestyle=style, linewidth=1.8, alpha=0.8,
            label=f"{name} ({len(rows)})",
        )  # fmt: skip
    ax.set(xlabel=score, ylabel="% of the rows of each kind", title=_said(found))
    legend(ax)
    return ax


def detection_curve(inside: Any, outside: Any, ax: Axes | None = None) -> Axes:
    """The share of rows from outside that are found, against the false alarms that this costs (the ROC curve).

    Args:
        inside: ``(n,)``, scores of rows like those of the training set.
        outside: ``(m,)``, scores of others; larger is more unusual.
        ax: Where to draw.

    Raises:
        ValueError: Either is empty, or holds what is not finite.
    """
    found = detection(inside, outside)
    low, high = (np.sort(array(value).astype(float).ravel()) for value in (inside, outside))
    cuts = np.unique(np.concatenate([low, high]))[::-1]
    false, true = (
        np.concatenate([[0.0], 1 - np.searchsorted(rows, cuts, side="left") / len(rows)]) for rows in (low, high)
    )
    ax = one(ax, size=(5.0, 5.0))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="chance")
    ax.plot(false, true, color=BLUE, linewidth=1.8, label="this score")
    label = f"finds 95 % of them at {100 * found.fpr95:.0f} % false alarms"
    ax.plot(found.fpr95, true[np.searchsorted(true, 0.95 - 1e-12)], "D", color=VERMILLION, markersize=7, label=label)
    ax.set(xlabel="share of usual rows taken for strangers", ylabel="share of strangers found", title=_said(found))
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    legend(ax, "lower right")
    return ax


def under_shift(
    tables: Mapping[str, Mapping[str, Estimate]],
    score: str,
    ax: Axes | None = None,
    *,
    shift_label: str = "shift",
) -> Axes:
    """A score on several test sets, such as ones of growing corruption, with 95 % intervals.

    Args:
        tables: ``{name of the set: {score: Estimate}}``, in the order of the axis: `bnn.analysis.under_shift`.
        score: The name of the score.
        ax: Where to draw.
        shift_label: What the sets differ in.

    Raises:
        ValueError: No set, or a set without this score.
    """
    lacking = [name for name, table in tables.items() if score not in table]
    if lacking or not tables:
        raise ValueError(f"no score {score!r} of {lacking}" if lacking else "there is no test set to draw")
    found = [table[score] for table in tables.values()]
    middle, error = np.array([f.mean for f in found]), np.array([f.standard_error for f in found])
    places: Array = np.arange(len(found))
    ax = one(ax)
    ax.errorbar(
        places, middle, yerr=1.96 * error, fmt="o-", color=BLUE, ecolor=BLACK, elinewidth=1, capsize=3,
        label="score with its 95 % interval",
    )  # fmt: skip
    ax.set_xticks(places, list(tables))
    ax.set(xlabel=shift_label, ylabel=score.replace("_", " "))
    legend(ax)
    return ax


def _said(found: Detection) -> str:
    error = "" if np.isnan(found.auroc_error) else f" ± {found.auroc_error:.3f}"
    return f"AUROC {found.auroc:.3f}{error} (chance: 0.5)"
