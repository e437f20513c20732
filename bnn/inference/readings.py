"""Models with uncertain inputs: their law is estimated, and the data are read, before a method sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.utils.data import TensorDataset

from bnn.data import Data
from bnn.inference.base import Run
from bnn.inputs import ArrayLike
from bnn.model import BNN
from bnn.readings import is_reading


def read_data(model: BNN, data: Data, run: Run) -> tuple[BNN, Data, Run]:
    """A model whose law of the inputs is known, and its data with readings in the place of inputs.

    Args:
        model: As it was given; not altered.
        data: ``(x, y)``, as in `bnn.fit`; x may be a reading already.
        run: Its held-out rows are read too.

    Raises:
        ValueError: Data that are not in arrays; inputs that cannot be uncertain, or leave nothing to estimate their law
            from; held-out rows whose noise is not known.
    """
    x, y = _arrays(data, "data")
    if not is_reading(x):
        model = model.with_inputs(x)
        x = model.read(x)
    if run.validation is not None:
        assert model.readings is not None
        held, targets = _arrays(run.validation, "validation")
        if model.readings.by_value and not is_reading(held):
            raise ValueError(
                "input_noise is one a value of the training set; held-out rows need theirs: "
                "validation=(model.with_inputs(x).read(x_held, noise=...), y_held)"
            )
        run = replace(run, validation=(model.read(held), targets))
    return model, (x, y), run


def refuse_uncertain_inputs(model: BNN, what: str, instead: str = "MAP, MeanField, an ensemble or NUTS") -> None:
    """Raise `ValueError` for a model whose inputs are uncertain, under a method that takes them as they are."""
    if model.readings is not None:
        raise ValueError(f"{what} needs inputs that are known, and this model has {model.readings!r}: take {instead}")


def _arrays(data: Any, name: str) -> tuple[Any, Any]:
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    arrays = isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], ArrayLike | list)
    if not arrays:
        raise ValueError(
            f"uncertain inputs are unknowns of rows that have to be told apart: give {name}=(x, y) in arrays, not a "
            f"{type(data).__name__}"
        )
    return data[0], data[1]
