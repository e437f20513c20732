"""Isotonic recalibration, by scikit-learn: a monotone map of probabilities, learned on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bnn.analysis.classification import class_probs
from bnn.analysis.estimate import checked_level, targets
from bnn.analysis.regression import pit
from bnn.likelihoods import Bernoulli, Categorical
from bnn.prediction import Prediction


@dataclass(frozen=True)
class RecalibratedQuantiles:
    """A prediction of which other quantiles are asked than are wanted; see `fit_quantile_map`."""

    prediction: Prediction
    #: Stated probabilities, ascending from 0 to 1, ``(n + 2,)``, and how often they came true.
    stated: npt.NDArray[np.float64]
    observed: npt.NDArray[np.float64]

    def quantile(self, q: float | Sequence[float]) -> Tensor:
        """Quantiles of y: the shape of ``prediction.mean``, with a leading dimension if `q` has one."""
        levels = np.array([checked_level(float(level)) for level in np.atleast_1d(q)])
        # A stated level of exactly 0 or 1 has no quantile, and the nearest to it is a matter of the dtype: a held-out y
        # that lies far outside was stated to be 0 or 1.
        tiny = float(torch.finfo(self.prediction.outputs.dtype).eps)
        asked = np.interp(levels, self.observed, self.stated).clip(tiny, 1 - tiny)
        found = self.prediction.quantile(asked.tolist())
        return found if np.ndim(q) else found[0]

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The equal-tailed interval that holds y with this probability: lower and upper ends."""
        low, high = self.quantile([(1 - checked_level(level)) / 2, (1 + level) / 2])
        return low, high


@dataclass(frozen=True)
class QuantileMap:
    """From stated to observed probabilities of ``Y <= y``; see `fit_quantile_map`."""

    stated: npt.NDArray[np.float64]
    observed: npt.NDArray[np.float64]

    def apply(self, prediction: Prediction) -> RecalibratedQuantiles:
        """The prediction with its quantiles recalibrated."""
        return RecalibratedQuantiles(prediction, self.stated, self.observed)


def fit_quantile_map(prediction: Prediction, y: Any) -> QuantileMap:
    """Recalibrated quantiles: Kuleshov, Fenner and Ermon (2018), arXiv:1807.00263.

    The map is the isotonic regression of how often Y <= y came true on what was stated, at the held-out rows'
    probability integral transforms.

    Args:
        prediction: Of n held-out rows, with quantiles.
        y: Their targets, ``(n,)`` or ``(n, k)``; outputs share one map.
    """
    from sklearn.isotonic import IsotonicRegression

    stated = np.sort(pit(prediction, y).flatten().double().cpu().numpy())
    observed = (np.arange(len(stated)) + 1) / (len(stated) + 1)
    # Values that differ by rounding are one to it, and the outer of them outside of what it has seen.
    observed = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(stated, observed).predict(stated)
    return QuantileMap(np.concatenate([[0.0], stated, [1.0]]), np.concatenate([[0.0], observed, [1.0]]))


@dataclass(frozen=True)
class ProbabilityMap:
    """From stated to observed class probabilities; see `fit_probability_map`."""

    _maps: list[Any]
    #: The least probability that comes out, so that no label is impossible after finitely many rows.
    least: float

    def apply(self, prediction: Prediction) -> Prediction:
        """The prediction of the mapped probabilities: one component, since the map is of the mixture, not of draws."""
        probs = class_probs(prediction).double().cpu().numpy()
        mapped = np.stack([one.predict(column) for one, column in zip(self._maps, probs.T, strict=True)], -1)
        mapped = mapped.clip(self.least, 1 - self.least)
        new = torch.as_tensor(mapped / mapped.sum(-1, keepdims=True)).to(prediction.outputs)
        if isinstance(prediction.likelihood, Bernoulli):
            return Prediction(Bernoulli(), new[:, 1].logit().reshape(1, *prediction.probs.shape), {})
        return Prediction(Categorical(), new.log().unsqueeze(0), {})


def fit_probability_map(prediction: Prediction, y: Any) -> ProbabilityMap:
    """Isotonic regression of each class's label on its probability, then scaled to sum to one.

    Zadrozny and Elkan (2002). Where held-out rows are few, `fit_temperature`, of one number, is the safer choice.

    Args:
        prediction: Of n held-out rows, with class probabilities.
        y: Their labels, ``(n,)``.
    """
    from sklearn.isotonic import IsotonicRegression

    probs = class_probs(prediction).double().cpu().numpy()
    labels = targets(prediction, y).reshape(-1).cpu().numpy()
    maps = [
        IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(column, labels == j)
        for j, column in enumerate(probs.T)
    ]
    return ProbabilityMap(maps, 1 / (len(labels) + 2))
