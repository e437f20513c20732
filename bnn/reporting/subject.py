"""What a report is about: the posterior, its data as tensors, and its prediction for the rows that it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bnn.analysis import Estimate, log_density, scores
from bnn.inputs import Inputs, as_inputs, as_tensor, num_rows
from bnn.posterior import Posterior
from bnn.prediction import Prediction


@dataclass(frozen=True)
class Rows:
    """Inputs and targets."""

    x: Inputs
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class OwnUnits:
    """How a reader knows the numbers, where the model was fitted to standardised ones."""

    #: From a standardised target to its own units: ``loc + scale * y``.
    loc: float
    scale: float
    #: The same for predictions.
    prediction: Callable[[Prediction], Prediction]
    #: ``(d,)`` each, the same for the columns of x: ``mean + scale * x``.
    column_means: Tensor
    column_scales: Tensor
    #: Of the rows that the predictions are judged by: what they are called; None: by their place, from 0.
    rows: Sequence[int] | None = None


@dataclass(frozen=True)
class Subject:
    """One posterior and the data that are said to belong to it."""

    posterior: Posterior
    train: Rows
    #: Rows that were not fitted; None if there are none.
    held_out: Rows | None
    columns: tuple[str, ...]
    classes: tuple[str, ...] | None
    target: str
    level: float
    seed: int
    units: OwnUnits | None = None

    def told(self, y: Tensor) -> Tensor:
        """Targets as the reader knows them."""
        if self.units is None or (self.units.loc, self.units.scale) == (0.0, 1.0):
            return y
        return self.units.loc + self.units.scale * y.double()

    def shown(self, table: Tensor) -> Tensor:
        """Columns of x ``(n, d)`` as the reader knows them."""
        return (
            table if self.units is None else self.units.column_means + self.units.column_scales * table.double().cpu()
        )

    def row(self, i: int) -> int:
        """What one of the judged rows is called."""
        return i if self.units is None or self.units.rows is None else self.units.rows[i]

    def predict(self, x: Inputs) -> Prediction:
        """At any inputs, in the units of the reader."""
        found = self.posterior.predict(x, seed=self.seed)
        return found if self.units is None else self.units.prediction(found)

    @property
    def judged(self) -> Rows:
        """The rows that scores are of: held out, or the training rows for want of others."""
        return self.train if self.held_out is None else self.held_out

    @property
    def where(self) -> str:
        """What these rows are called."""
        return "training" if self.held_out is None else "held-out"

    @cached_property
    def known(self) -> Rows:
        """Those of the judged rows whose target is known, which is in the units of the reader."""
        return Rows(self.known_fitted.x, self.told(self.known_fitted.y))

    @cached_property
    def known_fitted(self) -> Rows:
        """The same, as the model takes them."""
        rows = self.judged
        absent = self.posterior.model.likelihood.absent(rows.y).reshape(len(rows), -1).any(1)
        return rows if not bool(absent.any()) else Rows(_picked(rows.x, ~absent), rows.y[~absent])

    @cached_property
    def prediction(self) -> Prediction:
        """For the rows in `known`."""
        return self.predict(self.known.x)

    @cached_property
    def fields(self) -> frozenset[str]:
        """Of the prediction; none that needs a target where targets are intervals."""
        likelihood = self.posterior.model.likelihood
        return frozenset() if likelihood.intervals else likelihood.fields

    @cached_property
    def scores(self) -> dict[str, Estimate]:
        """Of `known`; of the log-density alone where targets are intervals."""
        if self.posterior.model.likelihood.intervals:
            return {"log_density": log_density(self.prediction, self.known.y)}
        return scores(self.prediction, self.known.y, level=self.level, seed=self.seed)

    @property
    def one_label(self) -> bool:
        """Whether a row has one class, with a probability for each."""
        return "probs" in self.fields and self.known.y.reshape(len(self.known), -1).shape[1] == 1

    @cached_property
    def uncertainty(self) -> tuple[str, Tensor, Tensor] | None:
        """What rows are ordered by: its name, it, and the share of it that is epistemic, ``(n,)`` each; None: nothing.

        The entropy of a label, the standard deviation of a number; outputs are averaged.
        """
        prediction, n = self.prediction, self.prediction.num_rows
        if "entropy" in prediction.likelihood.fields:
            parts, title = prediction.entropy, "entropy (nats)"
        elif "variance" in prediction.likelihood.fields:
            parts, title = prediction.variance, "standard deviation"
        else:
            return None
        total, epistemic = (part.reshape(n, -1).double().mean(1).cpu() for part in (parts.total, parts.epistemic))
        share = (epistemic / total.clamp(min=1e-300)).clamp(0, 1)
        return title, total.sqrt() if title == "standard deviation" else total, share

    @cached_property
    def interval(self) -> tuple[Tensor, Tensor]:
        """Of each of the known rows, at the report's level."""
        return self.prediction.interval(self.level)

    @cached_property
    def images(self) -> Tensor | None:
        """The judged inputs, where they are images: ``(n, 1, h, w)`` or ``(n, 3, h, w)``."""
        x = self.known.x
        image = isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) > 1
        return x if image else None  # type: ignore[return-value]

    @cached_property
    def features(self) -> Tensor | None:
        """The judged inputs, where they are a table: ``(n, d)``."""
        return as_table(self.known.x)

    def class_name(self, label: int) -> str:
        """Of one class."""
        return self.classes[label] if self.classes is not None and 0 <= label < len(self.classes) else str(label)


def subject_of(
    posterior: Posterior,
    data: Any,
    held_out: Any,
    *,
    columns: Sequence[str] | None,
    classes: Sequence[str] | None,
    target: str,
    level: float,
    seed: int,
    units: OwnUnits | None = None,
) -> Subject:
    """Data in the forms that people have them, checked.

    Raises:
        ValueError: Data that do not fit the model or each other, as many names as there are not columns.
    """
    train = _rows(posterior, data, "data")
    names = _columns(train.x, data[0], columns)
    known = None if held_out is None else _rows(posterior, held_out, "held_out")
    shown = None if classes is None else tuple(map(str, classes))
    return Subject(posterior, train, known, names, shown, str(target), level, seed, units)


def _rows(posterior: Posterior, data: Any, name: str) -> Rows:
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"{name} is (x, y): inputs and their targets, not {type(data).__name__}")
    model = posterior.model
    x = as_inputs(data[0], model.like)
    y = model.likelihood.convert(as_tensor(data[1], "y", model.like), model.like.dtype)
    if y.dim() == 0 or len(y) != num_rows(x) or not len(y):
        raise ValueError(f"{name}: x has {num_rows(x)} rows, y has shape {tuple(y.shape)}")
    model.likelihood.check_numbers(y)
    return Rows(x, y)


def _columns(x: Inputs, given: Any, columns: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the columns of a table: those that were given, those of a data frame, or x0, x1, ..."""
    table = as_table(x)
    if table is None:
        if columns is not None:
            raise ValueError("columns= names the columns of a table; these inputs are none, of shape (n, d)")
        return ()
    width = table.shape[1]
    found = columns if columns is not None else getattr(given, "columns", None)  # a data frame has them
    names = tuple(f"x{i}" for i in range(width)) if found is None else tuple(map(str, found))
    if len(names) != width:
        raise ValueError(f"x has {width} columns, and there are {len(names)} names")
    return names


def as_table(x: Inputs) -> Tensor | None:
    """Inputs as ``(n, d)``, where they are a table or one number a row; None where they are something else."""
    if not isinstance(x, Tensor) or x.dim() > 2:
        return None
    return x.reshape(len(x), -1)


def _picked(x: Inputs, chosen: Tensor) -> Inputs:
    if isinstance(x, Mapping):
        return {name: value[chosen] for name, value in x.items()}
    return tuple(value[chosen] for value in x) if isinstance(x, tuple) else x[chosen]


def flat_features(x: Inputs) -> Tensor | None:
    """All floating inputs side by side, ``(n, d)``, float64; None if there is none."""
    leaves = list(x.values()) if isinstance(x, Mapping) else list(x) if isinstance(x, tuple) else [x]
    floating = [leaf.reshape(len(leaf), -1).double().cpu() for leaf in leaves if leaf.is_floating_point()]
    return torch.cat(floating, 1) if floating else None
