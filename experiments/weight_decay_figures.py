"""The figures of `weight_decay.py`."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure


def draw_stops(names: list[str], stops: list[dict[str, Any]], unpenalised: list[float], target: list[float]) -> Figure:
    """Left: the way to the mode, or elsewhere. Right: the weights where each stops."""
    shown = [stop for stop in stops if "x 10" not in stop["name"] and len(stop["way"]) > 1]
    colours = dict(
        zip((stop["name"] for stop in shown), ("#1b7837", "#7fbf7b", "#f4a582", "#d6604d", "#67001f"), strict=False)
    )
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for stop in shown:
        left.semilogy(10 * np.arange(len(stop["way"])), stop["way"], color=colours[stop["name"]], label=stop["name"])
    left.set(xlabel="step", ylabel="distance from the mode under the Gaussian prior", ylim=(1e-8, 2))
    left.legend(fontsize=8)

    places, adamw = np.arange(10), [stop for stop in shown if stop["name"].startswith("AdamW")]
    offsets = np.linspace(-0.2, 0.2, len(adamw))
    right.axhline(0, color="0.8", lw=0.8)
    right.plot(places - 0.4, unpenalised, "_", color="0.4", ms=8, mew=2, label="no penalty")
    for offset, stop in zip(offsets, adamw, strict=True):
        right.plot(places + offset, stop["weights"], ".", color=colours[stop["name"]], label=stop["name"])
        right.plot(places + offset, stop["expected"], "o", ms=7, mfc="none", mec=colours[stop["name"]], mew=0.7)
    right.plot([], [], "o", ms=7, mfc="none", mec="0.4", mew=0.7, label="where AdamW's rule says")
    right.plot(places + 0.4, target, "_", color="#1b7837", ms=8, mew=2, label="mode, Gaussian prior")
    right.set(xticks=places, xticklabels=names, ylabel="weight at the end")
    right.legend(fontsize=8)
    return figure


def draw_paths(names: list[str], paths: dict[str, Any]) -> Figure:
    """Rows: L2 and L1. Columns: penalised weights; posterior means with 90 % intervals."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True)
    colours = matplotlib.colormaps["tab10"].colors
    for row, (penalty, prior) in zip(panels, (("L2", "Gaussian"), ("L1", "Laplace")), strict=True):
        strengths = [entry["strength"] for entry in paths[penalty]]
        points, means = (np.array([entry[key] for entry in paths[penalty]]) for key in ("map", "mean"))
        intervals = np.array([entry["interval"] for entry in paths[penalty]])  # (strengths, 2, 10)
        for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
            row[0].semilogx(strengths, points[:, i], ".-", color=colour, ms=3, lw=1.5, label=name)
            row[1].semilogx(strengths, means[:, i], ".-", color=colour, ms=3, lw=1.5)
            row[1].fill_between(strengths, intervals[:, 0, i], intervals[:, 1, i], color=colour, alpha=0.2, lw=0)
        row[0].set(title=f"{penalty} penalty: the mode", ylabel="weight")
        row[1].set(title=f"{prior} prior: mean-field means and 90 % intervals")
        for axes in row:
            axes.axhline(0, color="0.5", lw=0.6)
            axes.set(xlabel=f"strength of the {penalty} penalty")
    panels[0, 0].legend(fontsize=8, ncols=2)
    return figure


def draw_overfit(halves: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Figure:
    """Left: errors along the way without a penalty. Right: where each ends, by the strength of its penalty."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    path = np.mean([half["paths"]["no penalty"] for half in halves], 0)  # (looks, 2)
    for column, label, colour in ((0, "rows fitted", "#1f77b4"), (1, "rows held out", "#d62728")):
        left.plot(halves[0]["looks"], path[:, column], color=colour, label=label)
    left.set(xlabel="step", ylabel="mean squared error", title="no penalty: it learns the rows by heart")
    left.legend(fontsize=8)
    none, ways = rows[0], dict.fromkeys(row["way"] for row in rows[1:])
    right.axhline(none["test"], color="#d62728", lw=1, ls="--", label="no penalty")
    for way, colour, mark in zip(ways, ("#d6604d", "#7b3294", "#1b7837", "#1f77b4"), "sD^o", strict=True):
        own = [row for row in rows if row["way"] == way]
        at, value, error = ([row[key] or 0.0 for row in own] for key in ("strength", "test", "test_se"))
        right.errorbar(at, value, error, color=colour, marker=mark, ms=4, capsize=2, label=way)
    right.set(xscale="log", xlabel="strength of the penalty", title="rows held out")
    right.legend(fontsize=8)
    return figure
