"""What a run is compared with on the rows that were held out: a linear model, and the same network without Bayes."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bnn.analysis import Estimate
from bnn.likelihoods import Categorical, Gaussian
from bnn.prediction import Prediction
from bnn.reporting.baseline import ridge

#: Strengths of the penalty of logistic regression, and folds to choose among them.
_STRENGTHS, _FOLDS = np.logspace(-4, 4, 9), 5


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
        return "logistic regression", Prediction(
            Categorical(), torch.as_tensor(_logistic(x, y, new, classes))[None], {}
        )
    outputs, noise = ridge(x, y[:, None], new)
    return "ridge regression", Prediction(Gaussian(), outputs[:, 0][None], {"likelihood.scale": noise[:1]})


def _logistic(x: NDArray[Any], y: NDArray[Any], new: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Log-probabilities ``(m, classes)``; the penalty by cross-validation, where each class has rows enough."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    fewest = int(np.unique(y, return_counts=True)[1].min())
    model: Any = LogisticRegression(max_iter=2000)
    if fewest >= 2:
        folds = min(_FOLDS, fewest)
        model = GridSearchCV(model, {"C": _STRENGTHS}, scoring="neg_log_loss", cv=folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that were not enough, at penalties that are not chosen
        found = np.asarray(model.fit(x, y).predict_proba(new))
    full = np.full((len(new), classes), 1e-6)
    full[:, np.asarray(model.classes_)] = np.clip(found, 1e-6, None)
    logs: NDArray[np.float64] = np.log(full / full.sum(axis=1, keepdims=True))
    return logs
