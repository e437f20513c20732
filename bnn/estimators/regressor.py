"""What regressors do: targets to standardised ones, and predictions back in the target's own units."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array

from bnn.estimators.base import Estimator
from bnn.estimators.encoding import moments
from bnn.estimators.nets import BuiltNet, OwnNet
from bnn.estimators.outputs import noise_prior, width_for
from bnn.estimators.units import can_be_scaled, in_units
from bnn.likelihoods import Gaussian, Likelihood
from bnn.prediction import Prediction

Floats = NDArray[np.float64]


class Regression(RegressorMixin, Estimator, ABC):  # type: ignore[misc]
    """Targets are numbers: ``(n,)``, or ``(n, k)`` for several a row.

    Attributes:
        target_mean_: What was taken off the targets: a number, or ``(k,)``; 0 where they were left in their own units.
        target_scale_: By what they were divided; 1 likewise.
    """

    #: That of standardised targets.
    gain = 1.0
    target_mean_: NDArray[Any]
    target_scale_: NDArray[Any]

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, checkpoint: Any = None) -> Any:
        """Fit to a table and its targets.

        Args:
            X: A pandas or polars frame, or numbers ``(n, d)``.
            y: ``(n,)`` or ``(n, k)`` numbers, in their own units.
            sample_weight: ``(n,)``: each row counts as this many.
            checkpoint: A folder, or a `bnn.Checkpoint`, for how far the fit has come: the same call goes on from there.

        Raises:
            ValueError: Data that cannot be used, in words, with the column and the row.
        """
        self._fit(X, y, sample_weight, checkpoint=checkpoint)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learn from further rows: what is known of the weights is the prior of this fit (`bnn.continual`).

        The first call decides how the table is encoded and by what it is scaled. Earlier rows are not looked at again.
        What a posterior keeps of its correlations is what `Posterior.as_prior` keeps; what is known of the noise scale
        is its prior too (`bnn.continual.likelihood_as_prior`).

        Raises:
            ValueError: As `fit`; a method whose posterior cannot be a prior (points: ``"map"``).
        """
        self._fit(X, y, sample_weight, first=not self.__sklearn_is_fitted__(), stream=True)
        return self

    def predict_distribution(self, X: Any) -> Prediction:
        """The predictive distribution of each row, in the target's own units: moments, quantiles, log-densities."""
        found = self._predict(X)
        scaled = np.any(self.target_mean_ != 0) or np.any(self.target_scale_ != 1)
        return in_units(found, self.target_mean_, self.target_scale_) if scaled else found

    def predict(self, X: Any, *, return_std: bool = False) -> Any:
        """The predictive mean, ``(n,)`` or ``(n, k)``; with `return_std` also the standard deviation, noise included.

        Of a network under ``bnn.likelihoods.Quantile`` see `predict_distribution`: its mean is no quantile.
        """
        found = self.predict_distribution(X)
        mean = _array(found.mean)
        return (mean, _array(found.std)) if return_std else mean

    def predict_interval(self, X: Any, level: float = 0.9) -> tuple[Floats, Floats]:
        """The ends of the equal-tailed interval that holds y with this probability, each shaped as `predict`."""
        low, high = self.predict_distribution(X).interval(level)
        return _array(low), _array(high)

    def predict_quantile(self, X: Any, q: float | Sequence[float]) -> Floats:
        """Quantiles of y: the shape of `predict`, with a leading dimension if `q` is a sequence."""
        return _array(self.predict_distribution(X).quantile(q))

    def sample_y(self, X: Any, n_samples: int = 1, random_state: int = 0) -> Floats:
        """Draws of y, joint over rows: ``(n, n_samples)``, or ``(n, k, n_samples)`` for several targets."""
        drawn = self.predict_distribution(X).sample(n_samples, random_state)
        return np.moveaxis(_array(drawn), 0, -1)

    def _encode_targets(self, y: Any, weight: NDArray[Any] | None, *, first: bool, classes: Any) -> NDArray[Any]:
        values = _numbers(y)
        shape = values.shape[1:]
        if not first and shape != np.shape(self.target_mean_):
            raise ValueError(f"y has {shape or 'one'} target a row, but the first rows had {self.target_mean_.shape}")
        if first:
            flat = (values == values[:1]).all(axis=0)
            if np.any(flat):
                which = "y" if not shape else f"columns {np.flatnonzero(flat).tolist()} of y"
                raise ValueError(f"{which} has the same value in every row: there is nothing to learn")
            self.target_mean_, self.target_scale_ = np.zeros(shape), np.ones(shape)
            if self.standardise and self._scales(shape):
                self.target_mean_, self.target_scale_ = (np.asarray(m) for m in moments(values, weight))
        return (values - self.target_mean_) / self.target_scale_

    def _targets_record(self) -> dict[str, Any]:
        return {name: np.asarray(getattr(self, f"target_{name}_")).tolist() for name in ("mean", "scale")}

    def _take_targets(self, record: Mapping[str, Any]) -> None:
        mean, scale = (np.asarray(record[name], dtype=np.float64) for name in ("mean", "scale"))
        if mean.shape != scale.shape or mean.ndim > 1 or not np.isfinite(mean).all() or not (scale > 0).all():
            raise ValueError(f"targets have means {mean.shape} and scales {scale.shape}, or these are no scales")
        self.target_mean_, self.target_scale_ = mean, scale

    def _scales(self, event: tuple[int, ...]) -> bool:
        """Whether the likelihood is one of standardised targets."""
        if self.likelihood is None:
            return True
        if self.likelihood.labels or self.likelihood.intervals:
            raise ValueError(f"{self.likelihood!r} is not of numbers, one or several a row: a regressor cannot use it")
        return can_be_scaled(self.likelihood, width_for(self.likelihood, event))

    def _likelihood_of(self, y: NDArray[Any]) -> tuple[Likelihood, int | None]:
        several = y.shape[1] if y.ndim > 1 else None
        likelihood = Gaussian(noise_prior(several)) if self.likelihood is None else self.likelihood
        return likelihood, width_for(likelihood, y.shape[1:])

    def _by_class(self) -> bool:
        return False

    def __sklearn_tags__(self) -> Any:
        """Several targets are fine."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class BayesianRegressor(BuiltNet, Regression):
    """A Bayesian neural network for one or several numbers a row; for its settings see `BuiltNet`."""


class BayesianModuleRegressor(OwnNet, Regression):
    """A network of one's own for one or several numbers a row; for its settings see `OwnNet`."""


def _numbers(y: Any) -> Floats:
    try:
        values: Floats = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
    except ValueError as error:
        text = _first_text(y)
        if text is None:
            raise
        raise ValueError(f"y holds numbers, but row {text[0]} has the text {text[1]!r}") from error
    if values.ndim not in (1, 2):
        raise ValueError(f"y should be a 1d array, or 2d with a column a target; its shape is {values.shape}")
    return values


def _first_text(y: Any) -> tuple[int, str] | None:
    """The first row that is a text and no number."""
    for row, value in enumerate(np.asarray(y, dtype=object).reshape(len(y), -1)[:, 0]):
        try:
            float(value)
        except (TypeError, ValueError):
            return row, value
    return None


def _array(values: Any) -> Floats:
    found: Floats = values.detach().cpu().numpy().astype(np.float64)
    return found
