"""What anybody would have predicted without a network: ridge regression, or how often each class occurs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
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
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    x, new = flat_features(subject.train.x), flat_features(subject.known.x)
    if x is None or new is None:
        return "no input is a number"
    if not bool(x.isfinite().all()) or not bool(new.isfinite().all()):
        return "some inputs are missing, which ridge regression cannot take"
    if int(here.sum()) < 3:
        return "there are fewer than three training rows"
    y = subject.train.y.reshape(len(subject.train), -1).double().cpu()[here]
    scaler = StandardScaler().fit(x[here].numpy())
    inputs = scaler.transform(x[here].numpy())
    columns, noise = [], []
    for column in y.T.numpy():
        fit = RidgeCV(_STRENGTHS, store_cv_results=True).fit(inputs, column)
        columns.append(torch.as_tensor(fit.predict(scaler.transform(new.numpy()))))
        chosen = int(np.argmin(np.abs(_STRENGTHS - fit.alpha_)))
        noise.append(float(np.sqrt(fit.cv_results_[:, chosen].mean())))
    shape = subject.known.y.shape
    outputs = torch.stack(columns, -1).reshape(1, *shape)
    scale = torch.tensor([noise], dtype=torch.float64).clamp(min=1e-12)
    scale = scale[:, 0] if len(shape) == 1 else scale
    how = (
        "ridge regression on the standardised inputs (scikit-learn's RidgeCV), with Gaussian noise of the size of its "
    )
    how += "leave-one-out errors"
    return "ridge regression", how, Prediction(Gaussian(), outputs, {"likelihood.scale": scale})
