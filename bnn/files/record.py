"""What a posterior stands on, in words that can be compared: prior, likelihood, sites, inputs, versions."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from bnn.approximations import described
from bnn.input_law import InputLaw
from bnn.model import BNN


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {}
    for name in ("bnn-toolkit", "torch", "pyro-ppl", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def checked_shapes(shapes: Any) -> list[tuple[int, ...]] | None:
    """The shapes of the inputs' rows, as read from JSON; raises `TypeError` if they are none."""
    if shapes is None:
        return None
    if not isinstance(shapes, list) or not all(
        isinstance(shape, list) and all(isinstance(size, int) for size in shape) for shape in shapes
    ):
        raise TypeError(f"input_shapes are {shapes}")
    return [tuple(shape) for shape in shapes]


def model_record(model: BNN) -> dict[str, Any]:
    """What a posterior stands on: prior, likelihood, and the shape, dtype and support of every site."""
    sites = model.sites()
    shown = {site.name: f"{described(site.value)} in {site.base_support}" for site in [*sites.latents, *sites.points]}
    record = {"prior": repr(model.prior), "likelihood": repr(model.likelihood), "sites": shown}
    if model.readings is not None:
        law = model.readings.law
        numbers = {} if law is None else {"mean": law.mean.tolist(), "covariance": law.covariance.tolist()}
        record["inputs"] = {"readings": repr(model.readings), **numbers}
    return record


def check_model(record: dict[str, Any], model: BNN) -> None:
    """Raise `ValueError` if a model is not the one whose `model_record` this is."""
    ours = model_record(model)
    for what in ("prior", "likelihood"):
        if record[what] != ours[what]:
            raise ValueError(f"the saved {what} was {record[what]}, this model has {ours[what]}")
    read = [_readings(found) for found in (record, ours)]
    if read[0] != read[1]:
        raise ValueError(f"the inputs of the saved model had {read[0]}, those of this one have {read[1]}")
    was, now = record["sites"], ours["sites"]
    other = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if other:
        shown = [f"{name!r} was {was.get(name, 'not there')}, is {now.get(name, 'not there')}" for name in other[:5]]
        raise ValueError(f"{len(other)} sites do not fit this model: {'; '.join(shown)}")


def _readings(record: dict[str, Any]) -> str:
    inputs = record.get("inputs")
    return str(inputs.get("readings")) if isinstance(inputs, dict) else "nothing uncertain"


def with_inputs_of(record: dict[str, Any], model: BNN) -> BNN:
    """The model with the law of uncertain inputs that was saved.

    Raises:
        ValueError: The record is damaged.
    """
    if model.readings is None:
        return model
    try:
        numbers = [torch.tensor(record["inputs"][name], dtype=torch.float64) for name in ("mean", "covariance")]
        law = InputLaw(*numbers)
        if law.mean.dim() != 1 or law.covariance.shape != (len(law.mean), len(law.mean)):
            raise ValueError(f"shapes {[tuple(value.shape) for value in numbers]}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the saved law of the inputs is damaged: {type(error).__name__}: {error}") from error
    other = model.copy()
    other.readings = replace(model.readings, law=law)
    return other


def check_names(what: str, got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise `ValueError` if names, shapes or dtypes differ."""
    theirs, ours = ({name: described(value) for name, value in tensors.items()} for tensors in (got, expected))
    if theirs != ours:
        raise ValueError(f"the saved {what} do not fit this model: saved {theirs}, expected {ours}")
