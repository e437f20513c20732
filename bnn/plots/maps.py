"""Uncertainty over two inputs: what more data would remove, and what they would not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bnn.plots.style import BLACK, MAP, Array, array, colour_bar, legend, several
from bnn.prediction import Prediction

_TITLES = ("from not knowing the network (epistemic)", "from noise in the data (aleatoric)")
_MARKERS = "osD^vP*X"


def uncertainty_maps(
    prediction: Prediction,
    x: Any,
    axes: Axes | Sequence[Axes] | Array | None = None,
    data: Any = None,
    *,
    output: int | None = None,
    x_labels: tuple[str, str] = ("first input", "second input"),
    unit: str = "",
) -> Array:
    """Epistemic and aleatoric uncertainty over a plane, on one scale.

    Of numbers the two parts of the predictive variance, as standard deviations in the units of y; of labels the two
    parts of the entropy, in nats: the first is the mutual information of label and weights.

    Args:
        prediction: At n points.
        x: ``(n, 2)``, those points, not all on a line: a grid, or anything else.
        axes: Two.
        data: The training inputs, ``(m, 2)``, or with their labels, ``(inputs, labels)``; they are drawn on top.
        output: Which of k outputs.
        x_labels: Names and units of the inputs.
        unit: Of y.

    Returns:
        The axes, flat.

    Raises:
        ValueError: Inputs that are not two a row, or of another length than the prediction; several outputs and no
            `output`; too few axes.
    """
    points = _plane(x, "x")
    if len(points) != prediction.num_rows:
        raise ValueError(f"x has {len(points)} rows, the prediction has {prediction.num_rows}")
    of_labels = "entropy" in prediction.likelihood.fields
    parts = prediction.entropy if of_labels else prediction.variance
    values = [_one_output(part, output) for part in (parts.epistemic, parts.aleatoric)]
    values = values if of_labels else [np.sqrt(value) for value in values]
    label = "entropy (nats)" if of_labels else f"standard deviation{f' ({unit})' if unit else ''}"
    top = max(float(np.nanmax(value)) for value in values) or 1.0
    flat = several(axes, 2, columns=2, panel=(4.6, 3.8))
    for ax, value, title in zip(flat, values, _TITLES, strict=True):
        drawn = ax.tripcolor(*points.T, value, shading="gouraud", cmap=MAP, vmin=0.0, vmax=top, rasterized=True)
        if data is not None:
            _training_rows(ax, data)
        ax.set(title=title, xlabel=x_labels[0], ylabel=x_labels[1])
        ax.set(xlim=(points[:, 0].min(), points[:, 0].max()), ylim=(points[:, 1].min(), points[:, 1].max()))
        colour_bar(ax, drawn, label)
    if data is not None:
        legend(flat[0])
    return flat


def grid(x: Any, points: int = 60, margin: float = 0.3) -> Array:
    """A regular grid over two inputs and beyond them: ``(points * points, 2)``, for `uncertainty_maps`.

    Args:
        x: ``(m, 2)``.
        points: Along each side.
        margin: How far beyond the rows, as a share of their range.
    """
    rows = _plane(x, "x")
    low, high = rows.min(0), rows.max(0)
    room = margin * np.where(high > low, high - low, 1.0)
    sides = [np.linspace(low[i] - room[i], high[i] + room[i], points) for i in range(2)]
    return np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)


def _training_rows(ax: Axes, data: Any) -> None:
    rows, labels = data if isinstance(data, tuple) else (data, None)
    rows = _plane(rows, "data")
    kinds = [("training data", np.ones(len(rows), dtype=bool))]
    if labels is not None:
        found = array(labels)
        kinds = [(f"training data, class {kind:g}", found == kind) for kind in np.unique(found)]
    for i, (label, chosen) in enumerate(kinds):
        ax.plot(
            *rows[chosen].T, _MARKERS[i % len(_MARKERS)], color="white", markeredgecolor=BLACK, markeredgewidth=0.7,
            markersize=4, label=label,
        )  # fmt: skip


def _plane(x: Any, name: str) -> Array:
    values = array(x)
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"a map is drawn over two inputs: {name} is (n, 2), not {values.shape}")
    return values.astype(float)


def _one_output(part: Any, output: int | None) -> Array:
    values = array(part)
    values = values.reshape(len(values), -1)
    if output is None and values.shape[1] > 1:
        raise ValueError(f"there are {values.shape[1]} outputs: say which one to draw with output=0, 1, ...")
    return values[:, output or 0].astype(float)
