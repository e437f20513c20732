"""What all figures share: colours, axes, numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

Array = npt.NDArray[Any]

# Okabe and Ito (2008), Color Universal Design: https://jfly.uni-koeln.de/color/. Chosen to differ in grey, too.
BLUE, SKY, VERMILLION, BLACK, GREY = "#0072B2", "#56B4E9", "#D55E00", "#000000", "#767676"
#: Of maps, ColorBrewer's of one hue (Harrower and Brewer 2003): dark is more, in colour, in grey, for the colour-blind.
MAP = "Blues"


def one(ax: Axes | None, size: tuple[float, float] = (6.0, 4.2)) -> Axes:
    """These axes, or those of a new figure of `size` (inches), without frame lines on top and right."""
    if ax is None:
        ax = Figure(figsize=size, layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def several(axes: Axes | Sequence[Axes] | Array | None, count: int, columns: int, panel: tuple[float, float]) -> Array:
    """`count` axes in a flat array: the given ones, or a new figure's, with panels of size `panel` (inches).

    Raises:
        ValueError: Fewer axes were given than there are panels.
    """
    if axes is None:
        columns = min(columns, count)
        rows = math.ceil(count / columns)
        figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
        flat = figure.subplots(rows, columns, squeeze=False).ravel()
        for spare in flat[count:]:
            spare.remove()
    else:
        flat = np.asarray(axes, dtype=object).ravel()
        if len(flat) < count:
            raise ValueError(f"{count} panels need {count} axes, not {len(flat)}")
    for ax in flat[:count]:
        one(ax)
    return flat[:count]


def legend(ax: Axes, loc: str = "best") -> None:
    """A small legend that lets the curves behind it be guessed."""
    ax.legend(loc=loc, fontsize="small", facecolor="white", edgecolor="none", framealpha=0.6)


def array(value: Any) -> Array:
    """A tensor (or what numpy takes) as an array on the host."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def colour_bar(ax: Axes, drawn: Any, label: str) -> None:
    """The scale of a map beside its panel."""
    bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.85)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(label)


def ink(colour: Any) -> str:
    """Black or white, whichever is read more easily on this colour (luminance of ITU-R BT.709)."""
    return BLACK if float(np.dot(to_rgb(colour), [0.2126, 0.7152, 0.0722])) > 0.5 else "white"


def percent(share: float) -> str:
    """A share as text: ``90 %``, ``89.9 %``."""
    return f"{round(100 * share, 1):g} %"
