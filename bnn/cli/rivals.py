"""What a run is compared with on the rows that were held out: a linear model, and the same network without Bayes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from bnn.analysis import Estimate
from bnn.likelihoods import Categorical, Gaussian
from bnn.prediction import Prediction
from bnn.reporting.linear import logistic, ridge


class Rival(NamedTuple):
    """A prediction of the same rows."""

    title: str
    scores: dict[str, Estimate]


def linear(x: NDArray[Any], y: NDArray[Any], new: NDArray[Any], classes: int) -> tuple[str, Prediction]:
    """Ridge regression with Gaussian noise of its leave-one-out errors, or logistic regression.

    Both choose the strength of their penalty by cross-validation.

    Args:
        x: ``(n, d)``, standardised inputs of the training rows.
        y: ``(n,)``, their targets in their own units, or labels from 0.
        new: ``(m, d)``, inputs to predict.
        classes: How many there are; 0: targets are numbers.
    """
    if classes:
        return "logistic regression", Prediction(Categorical(), torch.as_tensor(logistic(x, y, new, classes))[None], {})
    outputs, noise = ridge(x, y[:, None], new)
    return "ridge regression", Prediction(Gaussian(), outputs[:, 0][None], {"likelihood.scale": noise[:1]})
