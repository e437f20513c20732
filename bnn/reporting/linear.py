"""Linear models of scikit-learn, that a network has to be better than."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Strengths of the penalties, and folds to choose among those of logistic regression.
_PENALTIES, _INVERSE, _FOLDS = np.logspace(-3, 4, 15), np.logspace(-4, 4, 9), 5


def ridge(x: NDArray[Any], y: NDArray[Any], new: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Ridge regression on standardised inputs, its penalty by leave-one-out errors, one a target.

    Args:
        x: ``(n, d)``.
        y: ``(n, k)``.
        new: ``(m, d)``.

    Returns:
        Predictions ``(m, k)``, and the root mean square of the leave-one-out errors ``(k,)``.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    inputs = scaler.transform(x)
    columns, noise = [], []
    for column in y.T:
        fit = RidgeCV(_PENALTIES, store_cv_results=True).fit(inputs, column)
        columns.append(torch.as_tensor(fit.predict(scaler.transform(new))))
        chosen = int(np.argmin(np.abs(_PENALTIES - fit.alpha_)))
        noise.append(float(np.sqrt(fit.cv_results_[:, chosen].mean())))
    return torch.stack(columns, -1), torch.tensor(noise, dtype=torch.float64).clamp(min=1e-12)


def logistic(x: NDArray[Any], y: NDArray[Any], new: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Logistic regression on standardised inputs; its penalty by cross-validation, where each class has rows enough.

    Args:
        x: ``(n, d)``.
        y: ``(n,)``, labels from 0, two different ones at least.
        new: ``(m, d)``.
        classes: How many there are; those without a row get a probability of 1e-6.

    Returns:
        Log-probabilities ``(m, classes)``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    fewest = int(np.unique(y, return_counts=True)[1].min())
    model: Any = LogisticRegression(max_iter=2000)
    if fewest >= 2:
        folds = min(_FOLDS, fewest)
        model = GridSearchCV(model, {"C": _INVERSE}, scoring="neg_log_loss", cv=folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that were not enough, at penalties that are not chosen
        found = np.asarray(model.fit(scaler.transform(x), y).predict_proba(scaler.transform(new)))
    full = np.full((len(new), classes), 1e-6)
    full[:, np.asarray(model.classes_)] = np.clip(found, 1e-6, None)
    logs: NDArray[np.float64] = np.log(full / full.sum(axis=1, keepdims=True))
    return logs
