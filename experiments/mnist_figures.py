"""The figures of mnist.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import images
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bnn.plots import style

_COLOURS = (style.BLUE, style.VERMILLION, style.BLACK, style.SKY, style.GREY, "#CC79A7")
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
#: Colour, line and mark; after six the lines and marks are dealt to other colours.
_LOOKS = [(_COLOURS[i % 6], _LINES[(i + i // 6) % 6], "os^DvP"[(i + i // 6) % 6]) for i in range(36)]


def weights(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Left: error by the share of weights that are removed. Right: how signal-to-noise is spread over weights."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, each), (colour, line, mark) in zip(found.items(), _LOOKS, strict=False):
        at = range(len(each["rows"]))
        error, se = ([row[key] for row in each["rows"]] for key in ("error", "error_se"))
        left.errorbar(at, error, se, color=colour, ls=line, marker=mark, ms=4, capsize=2, label=name)
        if not name.endswith("point"):  # its weights have no noise
            middle = (np.array(each["decibel"][1:]) + each["decibel"][:-1]) / 2
            share = np.array(each["weights"]) / np.sum(each["weights"]) / np.diff(each["decibel"])
            right.plot(middle, share, color=colour, ls=line, label=name)
    shares = [f"{row['removed']:g}" for row in next(iter(found.values()))["rows"]]
    left.set_xticks(range(len(shares)), shares)
    left.set(xlabel="weights removed, %", ylabel="test error, %", yscale="log")
    left.set_title("without the weights of least signal-to-noise")
    left.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    left.legend(fontsize=7.5)
    right.set(
        xlabel="signal-to-noise |mean| / sd, decibel",
        ylabel="density of weights",
        title="how it is spread over the weights",
    )
    right.legend(fontsize=7.5)
    return figure


def strangers(test: images.Images, seed: int, rows: Sequence[Mapping[str, Any]], others: bool) -> Figure:
    """Above: a few images of each kind. Below: how well the entropy tells them."""
    kinds = {"digits": test.x, **images.strangers(test.rows(slice(100)), seed)}
    if others:
        kinds["other digits"] = images.digits(size=28).train.x
    figure = Figure(figsize=(9.0, 5.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 2))
    for ax, (name, x) in zip(above.subplots(1, len(kinds)), kinds.items(), strict=True):
        ax.imshow(np.block([[np.asarray(x[2 * i + j, 0]) for j in range(2)] for i in range(2)]), cmap="gray_r")
        ax.set_title(name, fontsize=8)
        ax.set_axis_off()
    ax = below.subplots()
    names = list(dict.fromkeys(row["strangers"] for row in rows))
    nets = list(dict.fromkeys(row["net"] for row in rows))
    for place, net in enumerate(nets):
        colour, _, mark = _LOOKS[place]
        own = {row["strangers"]: row["entropy"] for row in rows if row["net"] == net}
        at = np.arange(len(names)) + 0.6 * (place - (len(nets) - 1) / 2) / len(nets)
        fill = colour if net.startswith("lenet") else "none"
        ax.plot(at, [own[name] for name in names], mark, color=colour, mfc=fill, label=net)
    ax.axhline(0.5, color="0.7", lw=0.8)
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel="AUROC of the entropy", title="told from test digits (1: always; 0.5: by chance)")
    ax.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def shift(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Error, doubt and calibration by how far images are from those of the training set."""
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    axes = figure.subplots(3, 2, sharex="col", sharey="row")
    words = {"rotation": "turned by, degrees", "noise": "noise, sd of pixels in (0, 1)"}
    for column, (kind, label) in enumerate(words.items()):
        for row, (key, title) in enumerate(
            {"error": "test error, %", "entropy": "entropy, nats", "ece": "calibration error"}.items()
        ):
            ax: Axes = axes[row, column]
            for (name, each), (colour, line, mark) in zip(found.items(), _LOOKS, strict=False):
                own = [one for one in each if one["kind"] == kind]
                at, value = ([one[k] for one in own] for k in ("level", key))
                ax.plot(at, value, color=colour, ls=line, marker=mark, ms=4, label=name)
            ax.set_ylabel(title if column == 0 else "")
        axes[-1, column].set_xlabel(label)
    axes[0, 0].legend(fontsize=7.5)
    return figure
