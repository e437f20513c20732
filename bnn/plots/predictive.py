"""Predictions and data: the band over one input, and predicted against observed values."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from bnn.plots.style import BLACK, BLUE, GREY, SKY, VERMILLION, Array, array, legend, one, percent
from bnn.prediction import Prediction


def predictive_band(
    prediction: Prediction,
    x: Any,
    ax: Axes | None = None,
    data: tuple[Any, Any] | None = None,
    level: float = 0.9,
    *,
    output: int | None = None,
    x_label: str = "x",
    y_label: str = "y",
    data_label: str = "training data",
) -> Axes:
    """Mean and uncertainty of y over one input, with the data.

    Two bands: where the mean curve may lie (epistemic: the quantiles over draws of E[y | x, draw]), and where a new y
    falls (total, noise included: ``prediction.interval``). A single draw, such as that of MAP, has no first band.

    Args:
        prediction: At n inputs.
        x: ``(n,)`` or ``(n, 1)``, those inputs, in any order.
        ax: Where to draw.
        data: ``(x, y)`` of the training rows, shaped like x and y here.
        level: Probability of both bands.
        output: Which of k outputs.
        x_label: Name and unit of the input.
        y_label: Name and unit of the target.
        data_label: What the data are called in the legend.

    Raises:
        ValueError: Inputs with several columns, or of another length than the prediction; several outputs and no
            `output`.
    """
    inputs, order = inputs_in_order(prediction, x)
    mean = _one_output(prediction.mean, output)[order]
    low, high = (_one_output(end, output)[order] for end in prediction.interval(level))
    ax = one(ax)
    ax.fill_between(
        inputs, low, high, color=SKY, alpha=0.35, linewidth=0, label=f"{percent(level)} of new observations fall here"
    )
    for end in (low, high):
        ax.plot(inputs, end, color=BLUE, linewidth=0.8, linestyle="--")
    if prediction.num_draws > 1:
        ends = _mean_band(prediction, level, output)[:, order]
        label = f"{percent(level)} sure that the mean is here"
        ax.fill_between(inputs, ends[0], ends[1], color=BLUE, alpha=0.45, linewidth=0, label=label)
    ax.plot(inputs, mean, color=BLACK, linewidth=1.8, label="predicted mean")
    if data is not None:
        ax.plot(
            _one_input(data[0]), _one_output(data[1], output), "o", color=BLACK, markersize=3, alpha=0.5,
            markeredgewidth=0, label=data_label,
        )  # fmt: skip
    ax.set(xlabel=x_label, ylabel=y_label)
    legend(ax)
    return ax


def predicted_against_observed(
    prediction: Prediction,
    y: Any,
    ax: Axes | None = None,
    level: float = 0.9,
    *,
    y_label: str = "y",
) -> Axes:
    """The predicted mean and interval of every row over its observed value; those whose interval misses it stand out.

    Args:
        prediction: Of n rows.
        y: ``(n,)`` or ``(n, k)``, observed; outputs are drawn one by one.
        ax: Where to draw.
        level: Probability of the intervals.
        y_label: Name and unit of the target.

    Raises:
        ValueError: y is not of the prediction's shape.
    """
    observed, mean = array(y), array(prediction.mean)
    if observed.shape != mean.shape:
        raise ValueError(f"y has shape {observed.shape}, the predicted mean has {mean.shape}")
    low, high = (array(end) for end in prediction.interval(level))
    covered = (observed >= low) & (observed <= high)
    count, whole = int(covered.sum()), covered.size
    ax = one(ax, size=(5.4, 5.0))
    start = float(min(observed.min(), mean.min()))
    bottom, top = float(min(low.min(), observed.min())), float(max(high.max(), observed.max()))
    ax.axline((start, start), slope=1, color=GREY, linewidth=1, linestyle="--", label="predicted = observed")
    looks = (
        (covered, BLUE, "o", BLUE, f"interval holds the observed value: {count} of {whole}"),
        (~covered, VERMILLION, "D", "white", f"interval misses it: {whole - count} of {whole}"),
    )
    for rows, colour, marker, face, label in looks:
        ax.errorbar(
            observed[rows], mean[rows], yerr=[(mean - low)[rows], (high - mean)[rows]], fmt=marker, color=colour,
            markerfacecolor=face, markersize=4, elinewidth=0.7, alpha=0.8, label=label,
        )  # fmt: skip
    ax.set(
        xlabel=f"observed {y_label}",
        ylabel=f"predicted: mean and {percent(level)} interval",
        ylim=(bottom - 0.04 * (top - bottom), top + 0.26 * (top - bottom)),  # the legend has its place above the data
        title=f"{percent(level)} intervals hold {percent(count / whole)} of the observed values",
    )
    legend(ax, "upper left")
    return ax


def _mean_band(prediction: Prediction, level: float, output: int | None) -> Array:
    """Quantiles over draws of the mean given the draw: ``(2, n)``."""
    means = array(prediction.means)
    chosen = np.stack([_one_output(draw, output) for draw in means])
    return np.quantile(chosen, [(1 - level) / 2, (1 + level) / 2], axis=0)


def inputs_in_order(prediction: Prediction, x: Any) -> tuple[Array, Array]:
    """The one input of each row, ``(n,)``, sorted, and which row each is.

    Raises:
        ValueError: Inputs with several columns, or of another length than the prediction.
    """
    inputs = _one_input(x)
    if len(inputs) != prediction.num_rows:
        raise ValueError(f"x has {len(inputs)} rows, the prediction has {prediction.num_rows}")
    order = np.argsort(inputs, kind="stable")
    return inputs[order], order


def _one_input(x: Any) -> Array:
    values = array(x)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"a band is drawn over one input: x is (n,) or (n, 1), not {values.shape}")
    return values


def _one_output(value: Tensor | Array, output: int | None) -> Array:
    """One column of ``(n, k)``, or ``(n,)`` as it is."""
    values = array(value)
    if values.ndim == 1:
        return values
    if output is None and values.shape[1] > 1:
        raise ValueError(f"there are {values.shape[1]} outputs: say which one to draw with output=0, 1, ...")
    return values[:, output or 0]
