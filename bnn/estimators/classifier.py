"""What classifiers do: classes of any kind to labels, and probabilities back."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, column_or_1d

from bnn.estimators.base import Estimator
from bnn.estimators.nets import BuiltNet, OwnNet
from bnn.estimators.outputs import width_for
from bnn.likelihoods import Categorical, Likelihood
from bnn.prediction import Prediction

#: Types of classes, beside texts, true and false.
_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float16", "float32", "float64")


class Classification(ClassifierMixin, Estimator, ABC):  # type: ignore[misc]
    """Targets are classes: numbers, texts, true and false.

    Attributes:
        classes_: ``(k,)``, sorted; columns of `predict_proba` are in their order.
    """

    #: Of log-odds: with 1 the prior would say that no class is ever clear.
    gain = 2.0

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, checkpoint: Any = None) -> Any:
        """Fit to a table and the class of each row.

        Args:
            X: A pandas or polars frame, or numbers ``(n, d)``.
            y: ``(n,)`` classes.
            sample_weight: ``(n,)``: each row counts as this many.
            checkpoint: A folder, or a `bnn.Checkpoint`, for how far the fit has come: the same call goes on from there.

        Raises:
            ValueError: Data that cannot be used, in words, with the column and the row; one class only.
        """
        self._fit(X, y, sample_weight, checkpoint=checkpoint)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """Learn from further rows: what is known of the weights is the prior of this fit (`bnn.continual`).

        The first call decides how the table is encoded. Earlier rows are not looked at again. What a posterior keeps of
        its correlations is what `Posterior.as_prior` keeps.

        Args:
            X: As in `fit`.
            y: As in `fit`.
            classes: All classes that will ever come, in the first call; by default those of its rows.
            sample_weight: As in `fit`.

        Raises:
            ValueError: As `fit`; a class that was not among the first; a method whose posterior cannot be a prior.
        """
        first = not self.__sklearn_is_fitted__()
        self._fit(X, y, sample_weight, first=first, stream=True, classes=classes)
        return self

    def predict_distribution(self, X: Any) -> Prediction:
        """The predictive distribution of each row: probabilities, entropies and their parts."""
        return self._predict(X)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities ``(n, k)``, in the order of ``classes_``: averages over the posterior."""
        found = self._predict(X).probs.detach().cpu().numpy().astype(np.float64)
        if found.ndim == 1:
            return np.column_stack([1 - found, found])
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """The logarithm of `predict_proba`."""
        return np.log(np.maximum(self.predict_proba(X), np.finfo(np.float64).tiny))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each row, ``(n,)``."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(axis=1)])

    def sample_y(self, X: Any, n_samples: int = 1, random_state: int = 0) -> NDArray[Any]:
        """Draws of the class, joint over rows: ``(n, n_samples)``."""
        drawn = self._predict(X).sample(n_samples, random_state).cpu().numpy()
        return np.asarray(self.classes_[np.moveaxis(drawn, 0, -1).astype(np.int64)])

    def _encode_targets(self, y: Any, weight: NDArray[Any] | None, *, first: bool, classes: Any) -> NDArray[Any]:
        values = column_or_1d(check_array(y, ensure_2d=False, dtype=None, input_name="y"), warn=True)
        check_classification_targets(values)
        if first:
            self.classes_ = np.unique(values if classes is None else classes)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class only, {self.classes_.tolist()[0]!r}: a classifier needs rows of at least two"
            )
        labels = np.searchsorted(self.classes_, values).clip(max=len(self.classes_) - 1)
        rows = np.flatnonzero(self.classes_[labels] != values)
        if len(rows):
            raise ValueError(
                f"row {rows[0]} has the class {values.tolist()[rows[0]]!r}, which is not among those of the first "
                f"call: {self.classes_.tolist()}. Give all of them there, as classes="
            )
        return np.asarray(labels, dtype=np.int64)

    def _targets_record(self) -> dict[str, Any]:
        kind = self.classes_.dtype
        classes = self.classes_.tolist()
        if not all(isinstance(value, str | bool | int | float) for value in classes):
            raise ValueError("classes_ are numbers or texts in files, not other objects: give such classes")
        return {"classes": classes, "dtype": "str" if kind.kind == "U" else kind.name}

    def _take_targets(self, record: Mapping[str, Any]) -> None:
        values, dtype = record["classes"], record["dtype"]
        whole = {"bool": bool, "str": str} | dict.fromkeys(_WHOLE, int) | dict.fromkeys(_FLOATS, float)
        kind = whole.get(dtype, bool | int | float | str if dtype == "object" else None)
        if kind is None or not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise ValueError(f"classes are a list of values of type {dtype!r}")
        self.classes_ = np.array(values, dtype=dtype)
        if len(values) < 2:
            raise ValueError(f"there are {len(values)} classes")

    def _likelihood_of(self, y: NDArray[Any]) -> tuple[Likelihood, int | None]:
        likelihood = Categorical() if self.likelihood is None else self.likelihood
        if "probs" not in likelihood.fields:
            raise ValueError(f"{likelihood!r} gives no probabilities of classes: a classifier cannot use it")
        classes = len(self.classes_)
        return likelihood, classes if isinstance(likelihood, Categorical) else width_for(likelihood, ())

    def _by_class(self) -> bool:
        return True


class BayesianClassifier(BuiltNet, Classification):
    """A Bayesian neural network for the class of each row; for its settings see `BuiltNet`."""


class BayesianModuleClassifier(OwnNet, Classification):
    """A network of one's own for the class of each row; for its settings see `OwnNet`."""
