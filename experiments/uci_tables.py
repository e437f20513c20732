"""The tables and the figure of `uci.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from tables import with_error
from uci_sets import Published, mc_dropout

Row = Mapping[str, Any]

OURS = {
    "set": ("set", ""),
    "net": ("hidden", ""),
    "method": ("method", ""),
    "splits": ("splits", "d"),
    "ll": ("log-density of a test row", ".2f"),
    "rmse": ("RMSE", ".2f"),
    "seconds": ("seconds a split", ".0f"),
}
DIFFERENCES = {
    "set": ("set", ""),
    "net": ("hidden", ""),
    "method": ("method", ""),
    "splits": ("splits", "d"),
    "gain": ("log-density, ours - theirs", "+.2f"),
    "wins": ("splits on which ours is better", "d"),
    "rmse_gain": ("RMSE, ours - theirs", "+.2f"),
}
PUBLISHED = {
    "set": ("set", ""),
    "method": ("published", ""),
    "ll": ("log-density", ".2f"),
    "rmse": ("RMSE", ".2f"),
    "ours": ("ours", ".2f"),
    "better": ("ours is", ""),
}
UNSEEN = {
    "set": ("set", ""),
    "net": ("hidden", ""),
    "method": ("method", ""),
    "twins": ("share that stands in training too", ".2f"),
    "ll_new": ("log-density of the others", ".2f"),
    "rmse_new": ("RMSE of the others", ".2f"),
}


def summary(found: Sequence[Row], places: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One row a set, net and method: means over splits with standard errors, and paired differences."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in found:
        groups.setdefault((row["set"], row["net"], row["method"]), []).append(row)
    rows = []
    for (name, net, method), splits in groups.items():
        row: dict[str, Any] = {"set": name, "net": net, "method": method, "splits": len(splits)}
        for key in ("ll", "rmse", "ll_new", "rmse_new"):
            row |= with_error(key, [split[key] for split in splits])
        for key in ("seconds", "twins"):
            row[key] = float(np.mean([split[key] for split in splits]))
        rows.append(row | paired(splits, places[name]))
    return rows


def paired(splits: Sequence[Row], place: Path) -> dict[str, Any]:
    """Differences from MC dropout on the same splits; nothing, where the set's file has no such figures."""
    theirs = mc_dropout(place)
    if theirs is None:
        return {}
    which = [row["split"] for row in splits]
    gains = np.array([row["ll"] for row in splits]) - theirs[0][which]
    return {
        **with_error("gain", gains.tolist()),
        **with_error("rmse_gain", (np.array([row["rmse"] for row in splits]) - theirs[1][which]).tolist()),
        "wins": int((gains > 0).sum()),
    }


def beside(rows: Sequence[Row], published: Sequence[Published]) -> list[dict[str, Any]]:
    """Every published row of a set with its difference from `auto` on one layer of 50 units, the best first."""
    ours = {row["set"]: row for row in rows if (row["net"], row["method"]) == ("50", "auto")}
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for each in published:
        if each.set in ours and each.verified:
            row = table.setdefault((each.set, each.method), {"set": each.set, "method": each.method})
            row |= {each.metric: each.mean, f"{each.metric}_se": each.error}
    for row in table.values():
        own = ours[row["set"]]
        row |= {"ours": own["ll"], "ours_se": own["ll_se"]}
        row["better"] = _verdict(own["ll"] - row["ll"], own["ll_se"], row["ll_se"]) if "ll" in row else "–"
    order = {name: i for i, name in enumerate(ours)}
    return sorted(table.values(), key=lambda row: (order[row["set"]], -row.get("ll", -np.inf)))


def _verdict(gain: float, own: float, other: float | None) -> str:
    """Whether a difference is above twice the errors of both; published ones without an error count as exact."""
    if abs(gain) < 2 * np.hypot(own, other or 0.0):
        return "within two errors"
    return "better" if gain > 0 else "worse"


def unseen(rows: Sequence[Row]) -> list[Row]:
    """The rows of sets some of whose test rows stand in training too."""
    return [row for row in rows if row["twins"] > 0]


def draw_sets(rows: Sequence[Row], published: Sequence[Published]) -> Figure:
    """A panel a set: log-densities of ours (blue) and of others (grey), with standard errors, the best on top."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    fig, panels = plt.subplots(len(names), 1, figsize=(7, 0.6 + 2.6 * len(names)), squeeze=False, layout="constrained")
    for name, axes in zip(names, panels[:, 0], strict=True):
        bars = [
            (each.method, each.mean, each.error, "0.55")
            for each in published
            if each.set == name and each.metric == "ll" and each.verified
        ]
        bars += [(f"bnn {r['method']}, {r['net']}", r["ll"], r["ll_se"], "C0") for r in rows if r["set"] == name]
        bars.sort(key=lambda bar: bar[1])
        best = bars[-1][1]
        for place, (label, mean, error, colour) in enumerate(bars):
            if mean > best - 4:
                axes.errorbar(mean, place, xerr=error, fmt="o", color=colour, markersize=4)
            else:
                left = axes.get_yaxis_transform()
                axes.text(
                    0.005,
                    place,
                    f"\N{BLACK LEFT-POINTING TRIANGLE} {mean:.1f}",
                    transform=left,
                    va="center",
                    fontsize=6,
                )
            axes.text(-0.01, place, label, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=6)
        axes.set(yticks=[], xlim=(max(bars[0][1], best - 4) - 0.1, best + 0.3), ylim=(-0.8, len(bars) - 0.2))
        axes.set_title(name, loc="left")
    panels[-1, 0].set_xlabel("mean log-density of a test row, in nats (further right is better)")
    return fig
