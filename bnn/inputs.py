"""Inputs of a network in the forms that people have them, as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]

#: Rows at a time where a Dataset is only read.
_READ_ROWS = 1024
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


@runtime_checkable
class ArrayLike(Protocol):
    """Arrays, tensors, data frames: a data frame can be iterated over too, but gives the names of its columns."""

    def __array__(self) -> Any: ...


def as_inputs(x: Any, like: Tensor) -> Inputs:
    """Inputs of any accepted form as tensors: floats in the dtype of `like`, all on its device."""
    if isinstance(x, Mapping | tuple) and not x:
        raise ValueError(f"x is an empty {type(x).__name__}: it holds no input")
    if isinstance(x, Mapping):
        return {name: as_tensor(value, f"x[{name!r}]", like) for name, value in x.items()}
    if isinstance(x, tuple):
        return tuple(as_tensor(value, f"x[{i}]", like) for i, value in enumerate(x))
    return as_tensor(x, "x", like)


def as_tensor(value: Any, name: str, like: Tensor) -> Tensor:
    """A tensor on the device of `like`; floating values take its dtype."""
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(_array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        why = _text_in(value) if isinstance(error, TypeError) else ""
        raise TypeError(f"{name} cannot be read as numbers: {why or error}") from None
    if tensor.is_complex():
        raise TypeError(f"{name} has complex numbers ({tensor.dtype})")
    return tensor.to(device=like.device, dtype=like.dtype if tensor.is_floating_point() else None)


def _text_in(value: Any) -> str:
    """Of values that torch refuses: which text is among them, and what to do; empty without one."""
    text = next((v for v in np.asarray(value).ravel().tolist() if isinstance(v, str)), None)
    if text is None:
        return ""
    return (
        f"it holds text, as {text!r}. Labels become 0 to k-1 by numpy.unique(labels, return_inverse=True)[1]; "
        "bnn.BayesianClassifier and bnn.BayesianRegressor take tables and labels with text in them"
    )


def _array(value: Any) -> np.ndarray[Any, Any]:
    """An array that torch can share; one that it cannot (read-only, reversed, of foreign byte order) is copied."""
    array = np.asarray(value)
    return np.require(array, array.dtype.newbyteorder("="), ["C", "W"])


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise `ValueError` with the rows that hold NaN or infinite values."""
    # One pass, and nothing to hold: NaN and infinity never leave a sum. Only where it is not finite are rows looked at.
    if not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all()):
        return
    rows = (~tensor.isfinite()).flatten(1).any(1) if tensor.dim() > 1 else ~tensor.isfinite()
    where = rows.nonzero().flatten().tolist()
    shown = ", ".join(map(str, where[:5])) + (", ..." if len(where) > 5 else "")
    raise ValueError(f"{name} has NaN or infinite values in {len(where)} of {len(rows)} rows: {shown}")


def input_leaves(x: Inputs) -> list[Tensor]:
    """The tensors of an input."""
    return list(x.values()) if isinstance(x, Mapping) else list(x) if isinstance(x, tuple) else [x]


def named_leaves(x: Inputs) -> list[tuple[str, Tensor]]:
    """The tensors of an input with their names for messages."""
    if isinstance(x, Mapping):
        return [(f"x[{name!r}]", leaf) for name, leaf in x.items()]
    return [(f"x[{i}]", leaf) for i, leaf in enumerate(x)] if isinstance(x, tuple) else [("x", x)]


def num_rows(x: Inputs) -> int:
    """The number of rows that all parts of an input have.

    Raises:
        ValueError: They differ, or there is a single number, with the shapes.
    """
    shapes = [(name, tuple(leaf.shape)) for name, leaf in named_leaves(x)]
    if any(not shape for _, shape in shapes) or len({shape[0] for _, shape in shapes}) > 1:
        raise ValueError(
            f"inputs have rows first and equally many: {', '.join(f'{n} has shape {s}' for n, s in shapes)}"
        )
    return shapes[0][1][0]


def row_shapes(x: Inputs) -> list[tuple[int, ...]]:
    """The shape of one row of each tensor of an input."""
    return [tuple(leaf.shape[1:]) for leaf in input_leaves(x)]


def slice_inputs(x: Inputs, rows: slice) -> Inputs:
    """Some rows of an input."""
    if isinstance(x, Mapping):
        return {name: value[rows] for name, value in x.items()}
    return tuple(value[rows] for value in x) if isinstance(x, tuple) else x[rows]


def input_batches(x: Any, like: Tensor, num_inputs: int | None) -> Iterator[Inputs]:
    """The inputs alone, all at once where they are arrays, else batch by batch from a Dataset or a loader.

    Args:
        x: Inputs, or what gives ``x``, ``(x, y)`` or ``(x1, x2, ..., y)``.
        like: Gives dtype and device.
        num_inputs: How many of a loader's parts are inputs, where that is known; else all but the last.

    Raises:
        ValueError: Inputs with different numbers of rows, or none at all; a loader that shuffles.
    """
    if isinstance(x, Dataset):
        x = as_loader(x, _READ_ROWS, shuffle=False)
    if isinstance(x, DataLoader) and isinstance(x.sampler, _SHUFFLING):
        raise ValueError(
            "x is a DataLoader that shuffles: its rows come in another order each time. Give shuffle=False"
        )
    empty = True
    if isinstance(x, ArrayLike | tuple | list | Mapping) or not isinstance(x, Iterable):
        x = [x]
    else:
        x = (_without_target(item, num_inputs) for item in x)
    for item in x:
        inputs = as_inputs(item, like)
        if num_rows(inputs):
            empty = False
            yield inputs
    if empty:
        raise ValueError("x is empty: there is no row to predict")


def _without_target(item: Any, num_inputs: int | None) -> Any:
    """The inputs of a loader's item."""
    if not isinstance(item, tuple | list):
        return item
    count = 1 if isinstance(item[0], Mapping) else num_inputs or max(1, len(item) - 1)
    return item[0] if count == 1 else tuple(item[:count])


def as_loader(dataset: Dataset[Any], batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
    """A loader of a Dataset; `TypeError` for one without a length."""
    if not isinstance(dataset, Sized | IterableDataset):
        raise TypeError(f"the Dataset {type(dataset).__name__} has no length: it needs __len__, or give a DataLoader")
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle)
