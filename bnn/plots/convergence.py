"""Do the chains agree? R-hat and effective draws of the function itself, and part by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bnn.analysis import Convergence, Mixing, mixing
from bnn.analysis.convergence import EFFECTIVE, has_chains
from bnn.plots.style import BLUE, GREY, VERMILLION, Array, array, legend, several
from bnn.posterior import Posterior

_R_HAT, _ESS = "R-hat (1: chains agree)", "effective number of draws"


def function_mixing(
    posterior: Posterior,
    x: Any,
    axes: Axes | Sequence[Axes] | Array | None = None,
    *,
    output: int = 0,
    x_label: str = "x",
) -> Array:
    """R-hat and the effective number of draws of the network's output, at each of some inputs.

    Where the function is what is wanted this is what has to converge; weights can change places without any change of
    it (Izmailov et al. 2021, arXiv:2104.14421). See `bnn.analysis.convergence`.

    Args:
        posterior: Of a sampler, with chains.
        x: Inputs, n rows. Over ``(n,)`` or ``(n, 1)`` their values are the axis, else the number of the row is.
        axes: Two.
        output: Which of k outputs.
        x_label: Name and unit of a single input.

    Returns:
        The axes, flat.

    Raises:
        ValueError: There are no chains, or too few axes.
    """
    shape = posterior.approximation.shape
    if shape is None or not has_chains(posterior):
        raise ValueError(f"R-hat compares chains of draws, and this posterior ({posterior!r}) is none of a sampler")
    outputs = posterior.predict(x, posterior.draws()).outputs
    found = mixing(outputs.reshape(*outputs.shape[:2], -1)[..., output], shape)
    place, label = _places(x, outputs.shape[1], x_label)
    flat = several(axes, 2, columns=2, panel=(4.4, 3.4))
    limits = ((found.limit, f"limit {found.limit:.3g}"), (EFFECTIVE, f"{EFFECTIVE:g} are enough for means"))
    values = ((found.rhat, _R_HAT, True), (found.ess, _ESS, False))
    for ax, (value, title, low), (limit, said) in zip(flat, values, limits, strict=True):
        _limit(ax, limit, said)
        for good, colour, marker, name in ((True, BLUE, "o", "fine"), (False, VERMILLION, "D", "beyond the limit")):
            chosen = (value <= limit) if low == good else (value > limit)
            if chosen.any():
                ax.plot(
                    place[chosen], value[chosen], marker, color=colour, markersize=4, label=f"{name}: {chosen.sum()}"
                )
        ax.set(xlabel=label, ylabel=title)
        legend(ax)
    flat[0].set_title(f"{shape[0]} chains of {shape[1]} draws")
    flat[1].set_ylim(bottom=0)
    return flat


def mixing_by_part(found: Convergence, axes: Axes | Sequence[Axes] | Array | None = None) -> Array:
    """R-hat and effective draws of functions, log joint, hyper-parameters and the weights of each layer.

    A bar goes from the 5 % to the 95 % quantile over the quantities of a part, with the median on it. Large R-hats of
    weights mean little where the functions agree: the verdict does not ask them, and they are drawn hollow.

    Args:
        found: From `bnn.analysis.convergence`.
        axes: Two.

    Returns:
        The axes, flat.
    """
    parts: dict[str, tuple[Mixing, bool]] = {name: (part, True) for name, part in found.asked.items()}
    parts |= {f"weights {name}": (part, False) for name, part in found.layers.items()}
    flat = several(axes, 2, columns=2, panel=(4.8, 1.4 + 0.3 * len(parts)))
    limit = found.functions.limit
    for ax, kind, title, line in zip(flat, ("rhat", "ess"), (_R_HAT, _ESS), (limit, EFFECTIVE), strict=True):
        _limit(ax, line, f"limit {line:.3g}", upright=True)
        for row, (part, asked) in enumerate(parts.values()):
            if not np.isfinite(getattr(part, kind)).any():
                continue
            low, middle, high = part.quantiles()[kind]
            colour = BLUE if asked else GREY
            ax.plot([low, high], [row, row], color=colour, linewidth=4, alpha=0.5, solid_capstyle="butt")
            label = {True: "asked by the verdict", False: "weights: for information"}[asked]
            first = all(asked != other for _, other in list(parts.values())[:row])
            face = colour if asked else "white"
            ax.plot(middle, row, "o", color=colour, markerfacecolor=face, label=label if first else None)
        ax.set_yticks(range(len(parts)), list(parts) if kind == "rhat" else [""] * len(parts))
        ax.set(xlabel=title, ylim=(len(parts) - 0.5, -0.5))
    flat[0].set_title(f"{found.chains} chains of {found.draws} draws")
    flat[1].set_xlim(left=0)
    flat[1].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1, fontsize="small", frameon=False)
    return flat


def _limit(ax: Axes, value: float, label: str, *, upright: bool = False) -> None:
    line = ax.axvline if upright else ax.axhline
    line(value, color=GREY, linewidth=1, linestyle="--", label=label)


def _places(x: Any, rows: int, label: str) -> tuple[Array, str]:
    """Where on the axis the rows are."""
    if not isinstance(x, tuple | dict):
        values = array(x)
        if values.size == rows:
            return values.reshape(-1), label
    return np.arange(rows), "row"
