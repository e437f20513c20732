"""Predicted classes: what is taken for what, how certainly, and the images that are most and least certain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from bnn.analysis import top_class
from bnn.analysis.classification import class_probs
from bnn.analysis.estimate import targets
from bnn.plots.style import MAP, Array, array, colour_bar, ink, one, several
from bnn.prediction import Prediction


def confusion(prediction: Prediction, y: Any, ax: Axes | None = None, *, names: Sequence[str] | None = None) -> Axes:
    """How many rows of each class are taken for which, and how certain the model was of it.

    A cell has the number of rows and, below it, the mean probability of the class that was predicted. A good model is
    less certain beside the diagonal than on it. The shade is the share of the rows of that true class.

    Args:
        prediction: Of n rows, with class probabilities.
        y: ``(n,)``, integer labels; for Bernoulli 0 and 1.
        ax: Where to draw.
        names: Of the k classes.

    Raises:
        ValueError: Several labels a row, labels that do not fit, or another number of names than classes.
    """
    probs, truth = array(class_probs(prediction)), array(targets(prediction, y)).ravel().astype(int)
    k = probs.shape[1]
    shown = _class_names(names, k)
    predicted, certainty = probs.argmax(1), probs.max(1)
    counts = np.zeros((k, k), dtype=int)
    summed = np.zeros((k, k))
    np.add.at(counts, (truth, predicted), 1)
    np.add.at(summed, (truth, predicted), certainty)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    ax = one(ax, size=(1.8 + 0.62 * max(k, 4), 1.4 + 0.55 * max(k, 4)))
    drawn = ax.imshow(shares, cmap=MAP, vmin=0, vmax=1)
    for i, j in np.argwhere(counts):
        text = f"{counts[i, j]}\n{100 * summed[i, j] / counts[i, j]:.0f} %"
        colour = ink(mpl.colormaps[MAP](shares[i, j]))
        ax.text(j, i, text, ha="center", va="center", fontsize="small" if k <= 6 else "x-small", color=colour)
    rotation = 90 if max(map(len, shown)) > 4 and k > 3 else 0
    ax.set_xticks(range(k), shown, rotation=rotation)
    ax.set_yticks(range(k), shown)
    ax.set(xlabel="predicted class", ylabel="true class")
    # Two lines and to the left: one, or centred, it would run over the colour bar.
    ax.set_title("rows, and\nhow certain the model was", loc="left", fontsize="medium")
    colour_bar(ax, drawn, "share of the true class")
    return ax


def image_grid(
    prediction: Prediction,
    images: Any,
    y: Any = None,
    axes: Axes | Sequence[Axes] | Array | None = None,
    *,
    num: int = 6,
    uncertainty: Any = None,
    names: Sequence[str] | None = None,
) -> Array:
    """The images of which the model is most certain, and below them those of which it is least.

    Above each stands what it says, with its probability, and where y is given and differs, what it is.

    Args:
        prediction: Of n rows, with class probabilities.
        images: ``(n, h, w)``, ``(n, 1, h, w)`` or ``(n, 3, h, w)``; colours between 0 and 1.
        y: ``(n,)``, integer labels.
        axes: Two for each image of a row: the most certain first.
        num: Images of each kind, n / 2 at most.
        uncertainty: ``(n,)``, what they are ordered by; ``None``: the entropy of the label.
        names: Of the k classes.

    Returns:
        The axes, flat.

    Raises:
        ValueError: Images or uncertainties that are not n, too few axes.
    """
    pictures = _pictures(images)
    order_by = array(prediction.entropy.total.reshape(-1) if uncertainty is None else uncertainty).ravel()
    for what, values in (("images", pictures), ("uncertainty", order_by)):
        if len(values) != prediction.num_rows:
            raise ValueError(f"{what} has {len(values)} rows, the prediction has {prediction.num_rows}")
    num = max(1, min(num, len(pictures) // 2))
    order = np.argsort(order_by, kind="stable")
    chosen = np.concatenate([order[:num], order[::-1][:num]])
    top, certainty = (array(value).ravel() for value in top_class(prediction))
    shown = _class_names(names, array(class_probs(prediction)).shape[1])
    truth = None if y is None else array(targets(prediction, y)).ravel().astype(int)
    flat = several(axes, 2 * num, columns=num, panel=(1.35, 1.65))
    for place, (ax, row) in enumerate(zip(flat, chosen, strict=True)):
        ax.imshow(pictures[row], cmap="gray", **({} if pictures.ndim == 4 else _range(pictures)))
        said = f"{shown[int(top[row])]} ({100 * certainty[row]:.0f} %)"
        wrong = truth is not None and truth[row] != top[row]
        ax.set_title(f"{said}\nis {shown[truth[row]]}" if wrong and truth is not None else said, fontsize="small")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if place % num == 0:
            ax.set_ylabel("most certain" if place == 0 else "least certain")
    return flat


def _pictures(images: Any) -> Array:
    values = array(images)
    if values.ndim == 4 and values.shape[1] in (1, 3):
        values = values[:, 0] if values.shape[1] == 1 else np.clip(np.moveaxis(values, 1, -1), 0, 1)
    elif values.ndim != 3:
        raise ValueError(f"images are (n, h, w), (n, 1, h, w) or (n, 3, h, w), not {values.shape}")
    return values.astype(float)


def _range(pictures: Array) -> dict[str, float]:
    """One scale for all images."""
    low, high = float(np.nanmin(pictures)), float(np.nanmax(pictures))
    return {"vmin": low, "vmax": high if high > low else math.nextafter(low, math.inf)}


def _class_names(names: Sequence[str] | None, classes: int) -> list[str]:
    if names is not None and len(names) != classes:
        raise ValueError(f"there are {classes} classes and {len(names)} names")
    return [str(name) for name in (range(classes) if names is None else names)]
