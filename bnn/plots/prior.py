"""Functions drawn from a prior: what a model believes before it has seen data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bnn.plots.predictive import _one_output, inputs_in_order
from bnn.plots.style import BLACK, BLUE, GREY, SKY, VERMILLION, Array, array, legend, one, percent, several
from bnn.prediction import Prediction
from bnn.priors.measures import class_probs

_LINES = ("-", "--", ":", "-.")
_BINS = 20


def prior_functions(
    prediction: Prediction,
    x: Any,
    ax: Axes | None = None,
    level: float = 0.9,
    *,
    num: int = 8,
    output: int | None = None,
    x_label: str = "x",
    y_label: str = "f(x)",
) -> Axes:
    """Some functions drawn from the prior, and where at each input half of all and `level` of all lie.

    f is the network's output: on the scale of y for a Gaussian likelihood, of log-odds for labels.

    Args:
        prediction: ``model.prior_predictive(x)``, at n inputs.
        x: ``(n,)`` or ``(n, 1)``, those inputs, in any order.
        ax: Where to draw.
        level: Share of the functions inside the outer band, at each input by itself.
        num: Functions drawn as lines, the first ones.
        output: Which of k outputs.
        x_label: Name and unit of the input.
        y_label: Name and unit of f.

    Raises:
        ValueError: Inputs with several columns, or of another length than the prediction; several outputs and no
            `output`.
    """
    inputs, order = inputs_in_order(prediction, x)
    functions = np.stack([_one_output(draw, output) for draw in array(prediction.outputs)])[:, order]
    ax = one(ax)
    for share, colour, alpha in ((level, SKY, 0.3), (0.5, BLUE, 0.3)):
        low, high = np.quantile(functions, [(1 - share) / 2, (1 + share) / 2], axis=0)
        label = f"{percent(share)} of the functions"
        ax.fill_between(inputs, low, high, color=colour, alpha=alpha, linewidth=0, label=label)
    looks = itertools.product(_LINES, (BLACK, VERMILLION, BLUE))
    for function, (style, colour) in zip(functions[:num], itertools.cycle(looks), strict=False):
        ax.plot(inputs, function, color=colour, linestyle=style, linewidth=0.9)
    ax.set(xlabel=x_label, ylabel=y_label)
    legend(ax)
    return ax


def before_and_after(
    before: Prediction,
    after: Prediction,
    x: Any,
    axes: Sequence[Axes] | Array | None = None,
    level: float = 0.9,
    *,
    num: int = 8,
    output: int | None = None,
    titles: tuple[str, str] = ("before", "after"),
) -> Array:
    """Functions drawn from two priors side by side, on the same scale: before and after `bnn.priors.calibrate`.

    Args:
        before: ``model.prior_predictive(x)``.
        after: ``calibrated.model.prior_predictive(x)``.
        x: The inputs of both.
        axes: Two.
        level: See `prior_functions`.
        num: See `prior_functions`.
        output: See `prior_functions`.
        titles: Of the two.

    Returns:
        The two axes.
    """
    flat = several(axes, 2, columns=2, panel=(4.0, 3.2))
    for ax, prediction, title in zip(flat, (before, after), titles, strict=True):
        prior_functions(prediction, x, ax, level, num=num, output=output)
        ax.set_title(title)
    ends = np.array([ax.get_ylim() for ax in flat])
    for ax in flat:
        ax.set_ylim(ends[:, 0].min(), ends[:, 1].max())
    return flat


def class_balance(prediction: Prediction, ax: Axes | None = None) -> Axes:
    """How each function drawn from the prior parts the inputs among the classes.

    For every function and class, the share of the inputs that the class gets: its mean probability over them. Shares
    near 0 and 1: each function puts nearly all inputs into one class. Shares at the dashed line: all classes alike.

    Args:
        prediction: ``model.prior_predictive(x)`` of class labels.
        ax: Where to draw.

    Raises:
        ValueError: The likelihood is not one of class labels.
    """
    by_function = class_probs(prediction).mean(1)  # (s, labels, k)
    shares, k = array(by_function).ravel(), by_function.shape[-1]
    ax = one(ax)
    edges = np.linspace(0, 1, _BINS + 1).tolist()
    weights = np.full(len(shares), 1 / len(shares))
    ax.hist(shares, edges, weights=weights, color=BLUE, alpha=0.6, label=f"{prediction.num_draws} functions")
    ax.axvline(1 / k, color=GREY, linestyle="--", linewidth=1.2, label=f"1 / {k}: all classes alike")
    ax.set(xlabel="share of the inputs that a class gets", ylabel="share of functions and classes", xlim=(0, 1))
    legend(ax)
    return ax
