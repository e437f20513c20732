"""What anybody would have predicted without a network: ridge regression, or how often each class occurs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnn.analysis import Estimate, scores
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.prediction import Prediction
from bnn.reporting.subject import Subject, flat_features

_STRENGTHS = np.logspace(-3, 4, 15)


class Baseline(NamedTuple):
    """A prediction to be better than."""

    title: str
    #: How it was made.
    how: str
    scores: dict[str, Estimate]


def baseline(subject: Subject) -> Baseline | str:
    """By scikit-learn, fitted to the training rows and scored as the posterior is; or why there is none."""
    likelihood = subject.posterior.model.likelihood
    train = subject.train
    here = ~likelihood.absent(train.y).reshape(len(train), -1).any(1).cpu()
    if likelihood.intervals:
        return "targets are intervals (censored): there is no simple prediction of them"
    if "probs" in likelihood.fields:
        if not subject.one_label:
            return "a row has several labels"
        title, how, prediction = _frequencies(subject, here)
    elif "mean" in likelihood.fields and train.y.dim() <= 2:
        found = _ridge(subject, here)
        if isinstance(found, str):
            return found
        title, how, prediction = found
    else:
        return f"targets of {type(likelihood).__name__} have no mean, or more than one dimension a row"
    table = scores(prediction, subject.known.y.cpu(), level=subject.level, seed=subject.seed)
    if subject.prediction.likelihood.labels or "probs" in likelihood.fields or not subject.prediction.discrete:
        return Baseline(title, how, table)
    del table["log_density"]  # of a density: that of a count is a probability
    return Baseline(title, how, table)


def _frequencies(subject: Subject, here: Tensor) -> tuple[str, str, Prediction]:
    from sklearn.dummy import DummyClassifier

    y = subject.train.y.reshape(len(subject.train)).long().cpu()[here].numpy()
    of_labels = subject.prediction.likelihood.labels
    k = subject.prediction.probs.shape[-1] if of_labels else 2
    # Every class once more, so that none is impossible.
    labels = np.concatenate([y, np.arange(k)])
    shares = DummyClassifier(strategy="prior").fit(np.zeros((len(labels), 1)), labels).class_prior_
    logs = torch.log(torch.as_tensor(shares))
    n = len(subject.known)
    how = "the shares of the classes among the training rows, each counted once more (scikit-learn's DummyClassifier)"
    if of_labels:
        return "majority class", how, Prediction(Categorical(), logs.expand(1, n, k), {})
    return "majority class", how, Prediction(Bernoulli(), (logs[1] - logs[0]).expand(1, *subject.known.y.shape), {})


def _ridge(subject: Subject, here: Tensor) -> tuple[str, str, Prediction] | str:
    x, new = flat_features(subject.train.x), flat_features(subject.known.x)
    if x is None or new is None:
        return "no input is a number"
    if not bool(x.isfinite().all()) or not bool(new.isfinite().all()):
        return "some inputs are missing, which ridge regression cannot take"
    if int(here.sum()) < 3:
        return "there are fewer than three training rows"
    y = subject.told(subject.train.y).reshape(len(subject.train), -1).double().cpu()[here]
    columns, noise = ridge(x[here].numpy(), y.numpy(), new.numpy())
    shape = subject.known.y.shape
    scale = noise if len(shape) == 1 else noise[None]
    how = (
        "ridge regression on the standardised inputs (scikit-learn's RidgeCV), with Gaussian noise of the size of its "
    )
    how += "leave-one-out errors"
    return "ridge regression", how, Prediction(Gaussian(), columns.reshape(1, *shape), {"likelihood.scale": scale})


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
        fit = RidgeCV(_STRENGTHS, store_cv_results=True).fit(inputs, column)
        columns.append(torch.as_tensor(fit.predict(scaler.transform(new))))
        chosen = int(np.argmin(np.abs(_STRENGTHS - fit.alpha_)))
        noise.append(float(np.sqrt(fit.cv_results_[:, chosen].mean())))
    return torch.stack(columns, -1), torch.tensor(noise, dtype=torch.float64).clamp(min=1e-12)
