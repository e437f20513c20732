"""The course of a fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from bnn.history import History
from bnn.plots.style import BLUE, GREY, SKY, VERMILLION, Array, array, legend, several

#: Points of a curve: more cannot be told apart on a page.
_POINTS = 300
#: The top of a panel leaves out a start that is this many times as high as the whole course after it.
_STEEP = 4.0

_PANELS = (
    ("loss", "loss = nll + temperature × kl"),
    ("nll", "nll: misfit to the training data"),
    ("kl", "kl: distance from the prior"),
)


class _Curve(NamedTuple):
    """A value by epoch: the mean over some steps, and the span of these."""

    epoch: Array
    mean: Array
    low: Array
    high: Array


def training_curves(history: History, axes: Axes | Sequence[Axes] | Array | None = None) -> Array:
    """Loss, nll and kl by epoch, each in its own panel, and the held-out log-density if there is one.

    The curves are means over epochs (over several epochs of a long fit), with the span of 90 % of the steps behind
    them. Where the start is so high that nothing else could be seen, it lies above the panel, and its value is told.

    Args:
        history: Of a fit that takes steps.
        axes: Three of them, or four with validation.

    Returns:
        The axes, flat.

    Raises:
        ValueError: A history without steps, or too few axes.
    """
    if not len(history.loss):
        raise ValueError("this history has no steps: there is no curve to draw")
    validated = len(history.validation) > 0
    count = len(_PANELS) + validated
    flat = several(axes, count, columns=2 if validated else 3, panel=(4.0, 3.0))
    for ax, (name, title) in zip(flat, _PANELS, strict=False):
        curve = _curve(array(getattr(history, name)), history.steps_per_epoch)
        if len(history.loss) > len(curve.mean):
            ax.fill_between(
                curve.epoch, curve.low, curve.high, color=SKY, alpha=0.4, linewidth=0, label="90 % of steps"
            )
        ax.plot(curve.epoch, curve.mean, color=BLUE, linewidth=1.5, label="mean")
        ax.set(title=title, xlabel="epoch", ylabel="nats per row")
        _leave_out_start(ax, curve)
    if validated:
        _validation(flat[-1], history)
    legend(flat[0], "upper right")
    return flat


def _curve(values: Array, steps_per_epoch: int) -> _Curve:
    """At most `_POINTS` points, each a whole number of epochs wide."""
    per_epoch = max(1, steps_per_epoch)
    width = per_epoch * max(1, math.ceil(len(values) / per_epoch / _POINTS))
    pieces = np.split(values, range(width, len(values), width))
    ends = np.cumsum([len(piece) for piece in pieces])
    low, high = np.array([np.quantile(piece, [0.05, 0.95]) for piece in pieces]).T
    return _Curve(ends / per_epoch, np.array([piece.mean() for piece in pieces]), low, high)


def _leave_out_start(ax: Axes, curve: _Curve) -> None:
    """Let the panel show the later course, if the first tenth would squeeze it into a line."""
    later = slice(max(1, len(curve.mean) // 10), None)
    if len(curve.mean[later]) < 2:
        return
    bottom, top = curve.low[later].min(), curve.high[later].max()
    span = top - bottom
    if span <= 0 or curve.mean.max() - bottom < _STEEP * span:
        return
    ax.set_ylim(min(bottom, curve.mean.min()) - 0.1 * span, top + 0.3 * span)
    text = f"starts at {curve.mean[0]:.3g}, above the panel"
    ax.annotate(text, (0.98, 0.66), xycoords="axes fraction", ha="right", va="top", fontsize="small", color=GREY)


def _validation(ax: Axes, history: History) -> None:
    """Held-out log-density, and where it was best."""
    epochs, scores = np.asarray(history.validation_epochs), array(history.validation)
    best = int(scores.argmax())
    ax.plot(epochs, scores, color=BLUE, linewidth=1.5)
    ax.plot(epochs[best], scores[best], "D", color=VERMILLION, markersize=6, label=f"best: epoch {epochs[best]}")
    start = max(1, len(scores) // 10)
    later = scores[start:]
    if len(later) > 1 and (span := later.max() - later.min()) > 0 and later.max() - scores.min() > _STEEP * span:
        ax.set_ylim(later.min() - 0.3 * span, scores.max() + 0.1 * span)
        text = f"starts at {scores[0]:.3g}, below the panel".replace("-", "−")
        ax.annotate(text, (0.98, 0.16), xycoords="axes fraction", ha="right", fontsize="small", color=GREY)
    ax.set(title="held-out log-density (higher is better)", xlabel="epoch", ylabel="nats per row")
    legend(ax, "lower right")
