"""Weights before and after the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bnn.plots.style import BLACK, BLUE, MAP, Array, array, colour_bar, legend, several
from bnn.posterior import Posterior
from bnn.random import isolated

_BINS = 40
#: Draws of the prior, and numbers of each parameter tensor that are kept of each.
_PRIOR_DRAWS, _KEPT = 500, 40
#: Panels of a figure where no names are given.
_PANELS = 12


def weights_against_prior(
    posterior: Posterior,
    axes: Axes | Sequence[Axes] | Array | None = None,
    *,
    names: Sequence[str] | None = None,
    num: int = 100,
    seed: int = 0,
) -> Array:
    """The weights of each layer under the posterior and under the prior: one panel a parameter tensor.

    Each histogram is over all numbers of the tensor and all draws. A layer whose posterior looks like its prior has
    learned nothing from the data, or has more weights than the data can tell apart.

    Args:
        posterior: Any.
        axes: One a panel.
        names: The parameters, in this order; without it all that have a prior, the first 12 if there are more.
        num: Draws of the posterior, fewer if it has fewer.
        seed: Of the draws.

    Returns:
        The axes, flat.

    Raises:
        ValueError: A name that is no parameter with a prior, or too few axes.
    """
    model, have = posterior.model, posterior.num_draws
    drawn = posterior.draws(num if have is None else min(num, have), seed)
    known = [name for name, p in model.net.named_parameters() if p.requires_grad and name in drawn]
    if names is not None and (unknown := set(names) - set(known)):
        raise ValueError(f"no parameters with a prior: {sorted(unknown)}; there are {known}")
    chosen = list(names) if names is not None else known[:_PANELS]
    prior = _prior_numbers(posterior, chosen, seed)
    flat = several(axes, len(chosen), columns=4 if len(chosen) > 6 else 2, panel=(3.4, 2.5))
    for ax, name in zip(flat, chosen, strict=True):
        _panel(ax, prior[name], array(drawn[name]).ravel())
        size = drawn[name][0].numel()
        ax.set(title=f"{name} ({size} {'number' if size == 1 else 'numbers'})", xlabel="value", ylabel="density")
    if len(flat):
        legend(flat[0])
    if axes is None and len(chosen) < len(known) and names is None:
        flat[0].figure.suptitle(f"{len(chosen)} of {len(known)} parameter tensors (names= chooses others)")
    return flat


def weight_grid(
    posterior: Posterior,
    name: str,
    axes: Axes | Sequence[Axes] | Array | None = None,
    *,
    num: int = 200,
    seed: int = 0,
) -> Array:
    """The weights of one layer as grids: their means, their standard deviations, and how sure their signs are.

    A row is a unit (an output channel), a column one of its inputs. The sign of a weight that the data have not
    determined has a probability of one half.

    Args:
        posterior: Any.
        name: Of the parameter, such as ``"0.weight"``.
        axes: Three.
        num: Draws, fewer if there are fewer.
        seed: Of the draws.

    Returns:
        The axes, flat.

    Raises:
        ValueError: A name that is no parameter with a prior, or too few axes.
    """
    have = posterior.num_draws
    drawn = posterior.draws(num if have is None else min(num, have), seed)
    known = [key for key, _ in posterior.model.net.named_parameters() if key in drawn]
    if name not in known:
        raise ValueError(f"no parameter with a prior: {name!r}; there are {known}")
    values = array(drawn[name]).astype(float)
    values = values.reshape(len(values), values.shape[1] if values.ndim > 2 else 1, -1)
    positive = (values > 0).mean(0)
    maps: tuple[tuple[str, Array, dict[str, float]], ...] = (
        ("mean", values.mean(0), {}),
        ("standard deviation", values.std(0), {"vmin": 0.0}),
        ("probability of its likelier sign", np.maximum(positive, 1 - positive), {"vmin": 0.5, "vmax": 1.0}),
    )
    flat = several(axes, 3, columns=3, panel=(3.6, 3.0))
    for ax, (title, value, limits) in zip(flat, maps, strict=True):
        shown = ax.imshow(value, cmap=MAP, aspect="auto", interpolation="nearest", **limits)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(title=title, xlabel="input")
        colour_bar(ax, shown, "")
    flat[0].set_ylabel(f"unit of {name}")
    return flat


def _panel(ax: Axes, prior: Array, posterior: Array) -> None:
    """Both histograms on the same bins. The range leaves out 1 % of each: the tails of heavy priors have no end."""
    ends = np.array([np.quantile(values, [0.005, 0.995]) for values in (prior, posterior)])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    margin = 0.02 * (high - low) or 1.0
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    ax.stairs(_density(posterior, edges), edges, fill=True, color=BLUE, alpha=0.6, label="posterior")
    ax.stairs(_density(prior, edges), edges, color=BLACK, linestyle="--", linewidth=1.4, label="prior")


def _density(values: Array, edges: Array) -> Array:
    """Of all numbers, those outside the range among them: numpy's own would leave them out."""
    counts: Array = np.histogram(values, edges)[0] / (values.size * np.diff(edges))
    return counts


def _prior_numbers(posterior: Posterior, names: Sequence[str], seed: int) -> dict[str, Array]:
    """Numbers of each parameter under draws from the prior."""
    model = posterior.model
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    with torch.no_grad(), isolated(seed, model.like.device):
        for _ in range(_PRIOR_DRAWS if names else 0):
            weights = model.prior_draw()
            if any(name not in weights for name in names):  # a non-centred prior draws something else
                weights = model.weights(weights, posterior.points)
            for name in names:
                flat = weights[name].flatten()
                kept[name].append(flat[:: max(1, len(flat) // _KEPT)][:_KEPT])
    return {name: array(torch.cat(values)) for name, values in kept.items()}
