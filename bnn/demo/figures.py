"""The figures of the demonstration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnn import plots
from bnn.demo.scores import Fit

_DPI = 120
#: Enough for a smooth edge of the band.
_BAND_DRAWS = 1000


def draw(fits: Sequence[Fit], band: Fit, out: Path) -> list[Path]:
    """Write all figures.

    Args:
        fits: Of the table, the methods of a data set side by side.
        band: A fit with one input.
        out: The folder.

    Returns:
        The files.
    """
    figures: dict[str, Any] = {"diabetes-band": _band(band)}
    for pair in zip(fits[::2], fits[1::2], strict=True):
        slug, second = pair[0].problem.slug, pair[1]
        if second.problem.regression:
            figures[f"{slug}-predictions"] = _side_by_side(pair, _predictions)
            figures[f"{slug}-coverage"] = _side_by_side(pair, _coverage)
        else:
            figures[f"{slug}-reliability"] = _side_by_side(pair, _reliability)
        figures[f"{slug}-training"] = _titled(plots.training_curves(second.posterior.history)[0].figure, second)
        figures[f"{slug}-weights"] = _titled(plots.weights_against_prior(second.posterior)[0].figure, second)
    paths = []
    for name, figure in figures.items():
        paths.append(out / f"{name}.png")
        figure.savefig(paths[-1], dpi=_DPI)
    return paths


def _band(made: Fit) -> Any:
    x = made.problem.train[0]
    low, high = x.min().item(), x.max().item()
    beyond = 0.25 * (high - low)  # where there are no data, the uncertainty of the mean is to be seen growing
    grid = torch.linspace(low - beyond, high + beyond, 200).unsqueeze(1)
    ax = plots.predictive_band(
        made.posterior.predict(grid, draws=_BAND_DRAWS), grid, data=made.problem.train,
        x_label="body mass index (kg/m²)", y_label=made.problem.target,
    )  # fmt: skip
    ax.set_title(f"diabetes from one measurement, {made.label}")
    return ax.figure


def _side_by_side(pair: Sequence[Fit], panel: Callable[[Fit, Axes], Axes]) -> Figure:
    figure = Figure(figsize=(5.2 * len(pair), 5.2), layout="constrained")
    axes = figure.subplots(1, len(pair), sharex=True, sharey=True, squeeze=False).ravel()
    heights = []
    for ax, made in zip(axes, pair, strict=True):
        panel(made, ax)
        heights.append(ax.get_ylim())
        # Broken at its semicolon: a panel of two is too narrow for a whole title.
        ax.set_title("\n".join(filter(None, (made.label, *ax.get_title().split("; ")))))
    axes[0].set_ylim(
        min(low for low, _ in heights), max(high for _, high in heights)
    )  # the last panel's rule otherwise
    figure.suptitle(f"{pair[0].problem.name}: {len(pair[0].problem.test[1])} test rows")
    return figure


def _predictions(made: Fit, ax: Axes) -> Axes:
    return plots.predicted_against_observed(made.prediction, made.problem.test[1], ax, y_label=made.problem.target)


def _coverage(made: Fit, ax: Axes) -> Axes:
    return plots.interval_calibration(made.prediction, made.problem.test[1], ax)


def _reliability(made: Fit, ax: Axes) -> Axes:
    return plots.reliability(made.prediction, made.problem.test[1], ax)


def _titled(figure: Any, made: Fit) -> Any:
    figure.suptitle(f"{made.problem.name}: {made.label}")
    return figure
