"""What anybody would have predicted without a network: by a linear model, or how often each class occurs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn.analysis import Estimate, scores
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.prediction import Prediction
from bnn.reporting.linear import logistic, ridge
from bnn.reporting.subject import Subject, flat_features

#: Entries of the inputs up to which logistic regression, with its cross-validation, takes seconds.
_MOST = 300_000


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
        title, how, prediction = _logistic(subject, here) or _frequencies(subject, here)
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


def _logistic(subject: Subject, here: Tensor) -> tuple[str, str, Prediction] | None:
    """None where the inputs are no numbers, or too many, or the rows are of one class."""
    found = _numbers(subject)
    if isinstance(found, str):
        return None
    (x, new), y = found, _labels(subject, here)
    if x[here].numel() > _MOST or len(np.unique(y)) < 2:
        return None
    logs = torch.as_tensor(logistic(x[here].numpy(), y, new.numpy(), _classes(subject)))
    how = "logistic regression on the standardised inputs (scikit-learn's), its penalty by cross-validation"
    return "logistic regression", how, _of_classes(subject, logs)


def _frequencies(subject: Subject, here: Tensor) -> tuple[str, str, Prediction]:
    from sklearn.dummy import DummyClassifier

    # Every class once more, so that none is impossible.
    labels = np.concatenate([_labels(subject, here), np.arange(_classes(subject))])
    shares = DummyClassifier(strategy="prior").fit(np.zeros((len(labels), 1)), labels).class_prior_
    how = "the shares of the classes among the training rows, each counted once more (scikit-learn's DummyClassifier)"
    logs = torch.log(torch.as_tensor(shares)).expand(len(subject.known), -1)
    return "majority class", how, _of_classes(subject, logs)


def _numbers(subject: Subject) -> tuple[Tensor, Tensor] | str:
    """Inputs of training and of the rows that are judged, as a linear model takes them; or why there are none."""
    x, new = flat_features(subject.train.x), flat_features(subject.known.x)
    if x is None or new is None:
        return "no input is a number"
    if not bool(x.isfinite().all()) or not bool(new.isfinite().all()):
        return "some inputs are missing, which ridge regression cannot take"
    return x, new


def _labels(subject: Subject, here: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    found: np.ndarray[tuple[int], np.dtype[np.int64]]
    found = subject.train.y.reshape(len(subject.train)).long().cpu()[here].numpy()
    return found


def _classes(subject: Subject) -> int:
    return subject.prediction.probs.shape[-1] if subject.prediction.likelihood.labels else 2


def _of_classes(subject: Subject, logs: Tensor) -> Prediction:
    """Log-probabilities ``(n, classes)`` as the posterior's kind of prediction."""
    if subject.prediction.likelihood.labels:
        return Prediction(Categorical(), logs[None], {})
    return Prediction(Bernoulli(), (logs[:, 1] - logs[:, 0]).reshape(1, *subject.known.y.shape), {})


def _ridge(subject: Subject, here: Tensor) -> tuple[str, str, Prediction] | str:
    found = _numbers(subject)
    if isinstance(found, str):
        return found
    x, new = found
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
