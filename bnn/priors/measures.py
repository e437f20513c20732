"""What functions drawn from a prior are like, as one number: what `bnn.priors.calibrate` can be asked for.

A measure is a function of a `Prediction` and its inputs that gives one number; one's own is just that. f is the
network's output (before a link), and draws are of all unknowns.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from bnn.distributions import base

if TYPE_CHECKING:
    from bnn.prediction import Prediction


def spread(prediction: Prediction, x: Any = None) -> float:
    """How far functions differ: the standard deviation of f over draws, root mean square over inputs and outputs.

    In the units of f. For ``Linear(d, 1)`` under `Normal(s)` it is ``s * sqrt(mean |x|^2 + 1)``.
    """
    _several(prediction)
    return math.sqrt(float(prediction.outputs.double().var(0).mean()))


def magnitude(prediction: Prediction, x: Any = None, *, level: float = 0.95) -> float:
    """How large |f| gets: its quantile at `level`, over draws, inputs and outputs. In the units of f."""
    if not 0 < level < 1:
        raise ValueError(f"a level lies strictly between 0 and 1, not {level}")
    # torch.quantile takes no more than 16 million numbers.
    values = prediction.outputs.double().abs().flatten()
    return float(values.kthvalue(max(1, math.ceil(level * len(values)))).values)


def slope(prediction: Prediction, x: Any) -> float:
    """How steep functions of one input are: root mean square of f', over draws, outputs and the range of the inputs.

    f is joined by straight lines between neighbouring inputs, so that this is
    ``sqrt(sum (f_{i+1} - f_i)^2 / (x_{i+1} - x_i) / (x_n - x_1))``, averaged under the root. In units of f by those of
    x; inputs further apart than the wiggles of f see less of them.
    """
    along, order = _one_input(prediction, x)
    steps = along.diff()
    values = prediction.outputs.double()[:, order]
    changes = values.reshape(*values.shape[:2], -1).diff(dim=1)
    return math.sqrt(float((changes.square() / steps.unsqueeze(1)).sum(1).mean() / steps.sum()))


def crossings(prediction: Prediction, x: Any) -> float:
    """How wiggly functions of one input are: sign changes of f along the inputs, mean over draws and outputs.

    A whole number for each draw, so that the mean over draws moves in steps. Any scale of the last layer leaves it.
    """
    _, order = _one_input(prediction, x)
    positive = prediction.outputs[:, order] >= 0
    return float((positive[:, 1:] != positive[:, :-1]).double().sum(1).mean())


def confidence(prediction: Prediction, x: Any = None) -> float:
    """How sure each function is: the largest class probability, mean over draws and inputs. From 1/k to 1."""
    return float(class_probs(prediction).max(-1).values.mean())


def entropy(prediction: Prediction, x: Any = None) -> float:
    """How unsure each function is: the entropy of a label given the draw, mean over draws and inputs, in nats."""
    probs = class_probs(prediction)
    return float(-torch.special.xlogy(probs, probs).sum(-1).mean())


def balance(prediction: Prediction, x: Any = None) -> float:
    """How evenly each function parts the inputs among the classes: from 0, all in one class, to 1.

    The entropy of a function's class shares (its mean class probabilities over the inputs), divided by log k; mean over
    draws, and over labels where a row has several.
    """
    shares = class_probs(prediction).mean(1)
    return float(-torch.special.xlogy(shares, shares).sum(-1).mean() / math.log(shares.shape[-1]))


def class_probs(prediction: Prediction) -> Tensor:
    """Probabilities of the classes under each draw: ``(s, n, m, k)``, float64, of m labels a row.

    Raises:
        ValueError: The likelihood is not one of class labels.
    """
    if "probs" not in prediction.likelihood.fields:
        raise ValueError(f"{type(prediction.likelihood).__name__} has no classes, and this measure is of their shares")
    fn = base(prediction.distribution())
    probs: Tensor = fn.probs.double()  # type: ignore[attr-defined]
    if isinstance(fn, Bernoulli):
        probs = torch.stack([1 - probs, probs], dim=-1)
    return probs.reshape(prediction.num_draws, prediction.num_rows, -1, probs.shape[-1])


def _several(prediction: Prediction) -> None:
    if prediction.num_draws < 2:
        raise ValueError("how far functions differ takes two draws of them at least")


def _one_input(prediction: Prediction, x: Any) -> tuple[Tensor, Tensor]:
    """The inputs in order, and that order.

    Raises:
        ValueError: Inputs of several columns, equal ones, fewer than two, or of another number than the prediction.
    """
    along = torch.as_tensor(x).detach().double().cpu()
    along = along.squeeze(1) if along.dim() == 2 and along.shape[1] == 1 else along
    if along.dim() != 1 or len(along) != prediction.num_rows or len(along) < 2:
        raise ValueError(
            f"this measure is of functions of one input: x is (n,) or (n, 1) with n = {prediction.num_rows} >= 2, not "
            f"{tuple(torch.as_tensor(x).shape)}"
        )
    along, order = along.sort()
    if bool((along.diff() == 0).any()):
        raise ValueError("this measure needs different inputs: some in x are equal")
    return along.to(prediction.outputs.device), order.to(prediction.outputs.device)
