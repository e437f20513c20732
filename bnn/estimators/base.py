"""What all estimators share: from a table and targets to a posterior, and from a table to a prediction."""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted
from torch import nn

from bnn.continual import likelihood_as_prior
from bnn.estimators.choice import chosen
from bnn.estimators.columns import Column, read_columns
from bnn.estimators.encoding import Encoder, fit_encoder
from bnn.estimators.outputs import flat
from bnn.estimators.sampled import backend_for, to_sample
from bnn.inference import fit as infer
from bnn.inference.base import Run
from bnn.likelihoods import Likelihood
from bnn.model import BNN
from bnn.prediction import Prediction
from bnn.priors import Normal, Prior
from bnn.random import isolated, other_seed

#: The fewest rows of a fit.
_FEWEST = 2
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Estimator(BaseEstimator, ABC):  # type: ignore[misc]
    """An estimator of scikit-learn around a `bnn.BNN`. What is abstract here is what network and task differ in.

    Attributes:
        posterior_: The `bnn.Posterior`, in the standardised units of inputs and targets.
        model_: The `bnn.BNN` that was fitted.
        encoder_: How a table becomes inputs (`bnn.estimators.encoding.Encoder`).
        n_features_in_: Columns of the table.
        feature_names_in_: Their names, where the table has names.
        categories_: ``{column: levels}`` of the columns of categories.
        imputed_: ``{column: median}`` of the columns of numbers that had missing ones in training.
        n_rows_: Rows seen: all of them under `partial_fit`.
    """

    #: Of the default prior, ``Normal("fan_in", gain)``: the scale of the network's outputs before any row was seen.
    gain: ClassVar[float]
    #: Whether `_network` makes networks with as many outputs as are asked for, the last layer of which is called "out".
    resizable: ClassVar[bool]

    # The constructor's arguments, which `BuiltNet` and `OwnNet` take; see there.
    prior: Prior | Mapping[str, Prior | None] | None
    likelihood: Likelihood | None
    method: Any
    standardise: bool
    categorical: Any
    encoding: Any
    unknown: Any
    missing: Any
    constant: Any
    epochs: int | None
    lr: float | None
    batch_size: int | None
    early_stopping: bool
    validation_fraction: float
    patience: int
    draws: int | None
    dtype: str
    device: Any
    compile: Any
    random_state: Any
    verbose: bool

    @abstractmethod
    def _network(self, encoder: Encoder, outputs: int) -> nn.Module:
        """A new network from the encoder's inputs to so many outputs."""

    @abstractmethod
    def _encode_targets(self, y: Any, weight: NDArray[Any] | None, *, first: bool, classes: Any) -> NDArray[Any]:
        """Targets as the likelihood takes them, checked; what they are encoded by is learned where this is the first.

        Classes may be given beforehand.
        """

    @abstractmethod
    def _likelihood_of(self, y: NDArray[Any]) -> tuple[Likelihood, int | None]:
        """The likelihood of these targets and the width of the outputs; None: outputs ``(n,)``."""

    @abstractmethod
    def _targets_record(self) -> dict[str, Any]:
        """What was learned of the targets, as JSON."""

    @abstractmethod
    def _take_targets(self, record: Mapping[str, Any]) -> None:
        """Set what `_targets_record` gave; raises `ValueError`, `TypeError` or `KeyError` for what it never gives."""

    def save(self, path: str | Path, *, overwrite: bool = False, arviz: bool = False) -> Path:
        """Write a run folder, which `bnn.load` makes the same estimator of: see docs/files.md.

        The folder appears whole or not at all. Nothing in it is executed when it is read.

        Args:
            path: The folder.
            overwrite: Replace a run that is there. Nothing else is ever replaced.
            arviz: Whether to write the posterior as an ArviZ tree too, ``arviz.nc``.

        Raises:
            FileExistsError: There is something at `path`; with `overwrite`, something that is more than a run.
            ValueError: A setting that cannot be rebuilt, such as a function of one's own: its name.
            OSError: The disk is full, say: nothing is left at `path`, or what was there before.
        """
        from bnn.estimators.saved import save_estimator

        return save_estimator(self, path, overwrite=overwrite, arviz=arviz)

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        first: bool = True,
        stream: bool = False,
        classes: Any = None,
        checkpoint: Any = None,
    ) -> None:
        """Everything that `fit` and `partial_fit` do."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        self._check_settings()
        with self._all_or_nothing():
            table = read_columns(self, X, self.categorical, reset=first)
            rows = len(table[0].missing)
            check_consistent_length(table[0].missing, y)
            weight = _weights(sample_weight, rows)
            self._seed = _seed(self.random_state)
            keep = slice(None) if weight is None else weight > 0
            table = [_rows(column, keep) for column in table]
            weight = None if weight is None else weight[keep]
            if len(table[0].missing) < _FEWEST:
                raise ValueError(
                    f"too few rows: n_samples={len(table[0].missing)} with a weight, and a fit needs {_FEWEST}"
                )
            targets = self._encode_targets(_take(y, keep), weight, first=first, classes=classes)
            if first:
                self.encoder_ = self._new_encoder(table, weight)
                self.n_rows_ = 0
            inputs = self.encoder_.transform(table)
            self.n_rows_ += len(targets)
            self._infer(inputs, targets, weight, first=first, stream=stream, checkpoint=checkpoint)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A fit that fails leaves the estimator as it was: no new encoder beside an old posterior."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _check_settings(self) -> None:
        known = {
            "encoding": ("onehot", "embedding"),
            "unknown": ("warn", "error"),
            "missing": ("impute", "error"),
            "constant": ("error", "drop"),
            "dtype": tuple(_DTYPES),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is one of {', '.join(map(repr, values))}, not {getattr(self, name)!r}")
        if self.early_stopping and not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is a share between 0 and 1, not {self.validation_fraction}")

    def _new_encoder(self, table: list[Column], weight: NDArray[Any] | None) -> Encoder:
        return fit_encoder(
            table,
            weight,
            encoding=self.encoding,
            standardise=self.standardise,
            unknown=self.unknown,
            missing=self.missing,
            constant=self.constant,
            always=self.categorical,
        )

    def _infer(
        self, x: Any, y: NDArray[Any], weight: NDArray[Any] | None, *, first: bool, stream: bool, checkpoint: Any
    ) -> None:
        """Fit the model to encoded rows."""
        (x, y, weight), validation = self._held_out(x, y, weight)
        likelihood, width = self._likelihood_of(y)
        model = self._model(likelihood, width) if first else self._next_model()
        run = Run(seed=self._seed, validation=validation, weight=weight)
        training = {name: getattr(self, name) for name in ("epochs", "lr", "batch_size")}
        training["patience"] = self.patience if self.early_stopping else None
        given = {name: value for name, value in training.items() if value is not None}
        own = self.prior is None and self.likelihood is None
        going_on, resizable = stream or not first, self.resizable and self.standardise
        found = chosen(self.method, model, len(y), run, given, own=own, stream=going_on, resizable=resizable)
        fit = functools.partial(
            infer,
            data=(x, y),
            seed=self._seed,
            validation=validation,
            weight=weight,
            device=self.device,
            compile=self.compile,
            progress=self.verbose,
        )
        method = found.method
        if found.sampled:
            model, method = to_sample(model, self._new_network, found.method, fit, self._seed)
            fit = functools.partial(fit, compile=backend_for(self.compile, model))
        self.posterior_ = fit(model, method=method, checkpoint=checkpoint)
        if found.why is not None:
            self.posterior_.settings["auto"] = f"{type(method).__name__}: {found.why}"
            self.posterior_.history.notes.insert(0, f"auto chose {self.posterior_.settings['auto']}")
        self.model_ = model

    def _held_out(self, x: Any, y: NDArray[Any], weight: NDArray[Any] | None) -> tuple[tuple[Any, Any, Any], Any]:
        """Training rows, and under early stopping those held out."""
        if not self.early_stopping:
            return (x, y, weight), None
        classes = y if self._by_class() else None
        try:
            train, test = train_test_split(
                np.arange(len(y)), test_size=self.validation_fraction, random_state=self._seed % 2**32, stratify=classes
            )
        except ValueError as error:
            raise ValueError(f"too few rows to hold out {self.validation_fraction} of {len(y)}: {error}") from None
        own = None if weight is None else weight[train]
        return (_take(x, train), y[train], own), (_take(x, test), y[test])

    @abstractmethod
    def _by_class(self) -> bool:
        """Whether held-out rows are taken from each class alike."""

    def _new_network(self, outputs: int) -> nn.Module:
        """A new network of the table's size, from the seed."""
        with isolated(other_seed(self._seed, "network")):
            return self._network(self.encoder_, outputs).to(_DTYPES[self.dtype])

    def _model(self, likelihood: Likelihood, width: int | None) -> BNN:
        self._outputs = width or 1
        prior = Normal("fan_in", gain=self.gain) if self.prior is None else self.prior
        net = self._new_network(self._outputs)
        return BNN(net, prior, likelihood, output=flat if width is None else None)

    def _next_model(self) -> BNN:
        """The same network under what is known of its weights by now, from where it starts."""
        prior, likelihood = self.posterior_.as_prior(), likelihood_as_prior(self.posterior_)
        model = self.model_
        net = copy.deepcopy(model.net)
        draws = self.posterior_.draws()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name in draws:
                    parameter.copy_(draws[name].mean(0))
        return BNN(net, prior, likelihood, output=model.output)

    def _predict(self, X: Any) -> Prediction:
        """The prediction of the model at the rows of a table, in the units of the fit."""
        inputs = self.encode_inputs(X)
        return self.posterior_.predict(inputs, self.draws)

    def encode_inputs(self, X: Any) -> Any:
        """The rows of a table as the network of `posterior_` takes them: standardised, categories as numbers.

        With `encode_targets`, what the functions of `bnn.analysis` need to work on `posterior_`.

        Args:
            X: ``(n, d)``, the columns of the fit.

        Returns:
            ``(n, k)`` numbers; of ``encoding="embedding"`` a mapping of the network's inputs by name.
        """
        check_is_fitted(self, "posterior_")
        return self.encoder_.transform(read_columns(self, X, self.categorical, reset=False))

    def encode_targets(self, y: Any) -> NDArray[Any]:
        """Targets as the likelihood of `posterior_` takes them: standardised numbers, or labels from 0.

        Args:
            y: ``(n,)`` or ``(n, k)``, in their own units, or classes of the fit.

        Raises:
            ValueError: A class that was not there in the fit.
        """
        check_is_fitted(self, "posterior_")
        return self._encode_targets(y, None, first=False, classes=None)

    def export(
        self,
        path: str | Path,
        *,
        quantiles: Sequence[float] = (0.05, 0.5, 0.95),
        format: Literal["pt2", "onnx"] | None = None,
    ) -> Path:
        """Write one file that takes the table and gives predictions in the targets' own units; see docs/export.md.

        The file takes ``(n, d)`` numbers in double precision, the columns in their order: NaN for a missing value, and
        for a category the number of its level in the file's metadata. Scaling and encoding are inside.

        Args:
            path: ``model.pt2``, for ``torch.export.load``, or ``model.onnx``.
            quantiles: See `bnn.Posterior.export`.
            format: ``"pt2"`` or ``"onnx"``, where the name of the file does not say.

        Raises:
            ValueError: See `bnn.Posterior.export`.
        """
        from bnn.export import export_estimator

        check_is_fitted(self, "posterior_")
        return export_estimator(self, path, quantiles=quantiles, format=format)

    def __sklearn_is_fitted__(self) -> bool:
        """Whether there is a posterior."""
        return "posterior_" in vars(self)

    @property
    def categories_(self) -> dict[str, tuple[str, ...]]:
        """``{column: levels}``; a level of missing values is not among them."""
        check_is_fitted(self, "posterior_")
        return {column.name: column.levels for column in self.encoder_.categorical}

    @property
    def imputed_(self) -> dict[str, float]:
        """``{column: median}`` of the columns of numbers that had missing ones in training."""
        check_is_fitted(self, "posterior_")
        return {column.name: column.median for column in self.encoder_.numeric if column.missing}

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect: categories in frames, NaN unless that is an error."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "impute"
        tags.input_tags.categorical = True
        return tags


def _weights(sample_weight: Any, rows: int) -> NDArray[Any] | None:
    if sample_weight is None:
        return None
    weight: NDArray[Any] = _check_sample_weight(
        sample_weight, np.empty((rows, 1)), dtype=np.float64, ensure_non_negative=True
    )
    return weight


def _seed(random_state: Any) -> int:
    """A seed of torch from what scikit-learn takes: a whole number is itself."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def _rows(column: Column, keep: Any) -> Column:
    numbers = None if column.numbers is None else column.numbers[keep]
    return Column(column.name, numbers, None if column.texts is None else column.texts[keep])


def _take(x: Any, rows: Any) -> Any:
    if isinstance(x, Mapping):
        return {name: value[rows] for name, value in x.items()}
    return np.asarray(x)[rows]
