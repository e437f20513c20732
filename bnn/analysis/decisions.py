"""Decisions of least expected loss. Berger (1985), *Statistical Decision Theory and Bayesian Analysis*, section 4.4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnn.analysis.classification import class_probs
from bnn.prediction import Prediction


class Decision(NamedTuple):
    """What to do at each row."""

    #: ``(n,)``: the index of the action.
    action: Tensor
    #: ``(n, a)``: the expected loss of every action.
    expected_loss: Tensor


def decide(prediction: Prediction, loss: Any) -> Decision:
    """The action of least expected loss at each row, for a label.

    Args:
        prediction: Of n rows, with class probabilities; for Bernoulli the classes are no and yes.
        loss: ``(k, a)``: the loss of each action (column) where each class (row) is true. Actions need not be classes:
            a further one may be to ask somebody. A utility is minus a loss.

    Raises:
        ValueError: The matrix does not have one row a class, or is not finite.
    """
    probs = class_probs(prediction).double()
    table = torch.as_tensor(loss).to(probs)
    if table.dim() != 2 or len(table) != probs.shape[1] or not bool(table.isfinite().all()):
        raise ValueError(
            f"loss is a finite matrix with one row for each of {probs.shape[1]} classes, not of shape "
            f"{tuple(table.shape)}"
        )
    expected = probs @ table
    return Decision(expected.argmin(1), expected)


def decide_by_draws(
    prediction: Prediction,
    loss: Callable[[Tensor, Any], Tensor],
    actions: Sequence[Any],
    *,
    num: int = 1000,
    seed: int = 0,
) -> Decision:
    """The action of least expected loss at each row, for any y: the expectation is a mean over draws of y.

    Args:
        prediction: Of n rows.
        loss: From draws of y, ``(num, n)`` or ``(num, n, k)``, and an action to the losses, ``(num, n)``.
        actions: What can be done, such as quantities to order.
        num: Draws of y.
        seed: Of these.

    Raises:
        ValueError: There is no action, or the losses have another shape.
    """
    if not actions:
        raise ValueError("there is no action to choose from")
    drawn = prediction.sample(num, seed)
    losses = [loss(drawn, action) for action in actions]
    wrong = [tuple(value.shape) for value in losses if value.shape != drawn.shape[:2]]
    if wrong:
        raise ValueError(f"loss gives one number for each draw and row, {tuple(drawn.shape[:2])}, not {wrong[0]}")
    expected = torch.stack([value.double().mean(0) for value in losses], -1)
    return Decision(expected.argmin(1), expected)
