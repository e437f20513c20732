"""Posteriors in files: tensors (safetensors) and JSON, nothing that is executed when it is read."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints

from bnn.approximations import Approximation, Guide, Mixture, described, held, restored
from bnn.history import History
from bnn.input_law import InputLaw
from bnn.layout import Layout, Site
from bnn.model import BNN
from bnn.random import isolated
from bnn.writing import new_folder

if TYPE_CHECKING:
    from bnn.posterior import Posterior

SCHEMA = 1
_JSON, _TENSORS = "posterior.json", "posterior.safetensors"
#: What the JSON file holds, besides the versions that wrote it.
_TYPES = {
    "schema": int,
    "kind": str,
    "prior": str,
    "likelihood": str,
    "sites": dict,
    "settings": dict,
    "history": dict,
    "input_shapes": list | None,
}
#: Draws that stand in for a guide, which is code and cannot be saved.
_GUIDE_DRAWS = 1000


def save(posterior: Posterior, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a posterior into a folder: ``posterior.safetensors`` and ``posterior.json``.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Args:
        posterior: Any. Of a custom guide, its parameters and 1,000 draws are saved.
        path: The folder.
        overwrite: Replace a posterior that is there. Nothing else is ever replaced.

    Raises:
        FileExistsError: There is something at `path`; with `overwrite`, something that is more than a posterior.
    """
    from safetensors.torch import save_file

    path = Path(path)
    _check_place(path, overwrite=overwrite)
    tensors, kind = _tensors(posterior)
    record = {
        "schema": SCHEMA,
        "kind": kind,
        **model_record(posterior.model),
        "settings": posterior.settings,
        "versions": versions(),
        "input_shapes": posterior.input_shapes,
        "history": {
            f.name: value
            for f in fields(History)
            if not isinstance(value := getattr(posterior.history, f.name), Tensor)
        },
    }
    with new_folder(path) as folder:
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, folder / _TENSORS
        )
        (folder / _JSON).write_text(json.dumps(record, indent=2), encoding="utf-8")
    return path


def load(path: str | Path, model: BNN, *, method: Any = None) -> Posterior:
    """Read a posterior that `save` wrote.

    Args:
        path: The folder.
        model: The model that was fitted, built anew: same network, prior and likelihood.
        method: For a custom guide: the ``bnn.Variational`` that it was fitted with, for fresh draws; without it the
            saved draws are what there is.

    Raises:
        FileNotFoundError: There is no posterior at `path`.
        ValueError: The files are damaged or of a newer version, or they do not fit the model (names, shapes, dtypes,
            likelihood).
        TypeError: `method` is none that has a guide.
    """
    from bnn.inference import Variational
    from bnn.posterior import Posterior

    record, tensors = _read(Path(path))
    check_model(record, model)
    model = with_inputs_of(record, model)
    like = model.like
    groups: dict[str, dict[str, Tensor]] = {
        name: {} for name in ("approximation", "points", "state", "history", "guide")
    }
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        if group not in groups or not name:
            raise ValueError(f"{path}: unexpected tensor {key!r} in {_TENSORS}")
        groups[group][name] = value if group == "history" else value.to(like.device)
    sites, state = model.sites(), model.state()
    own = held(record["kind"], groups["approximation"])
    points = [site for site in sites.points if site.name not in own]
    check_names("points", groups["points"], {site.name: site.value for site in points})
    check_names("state", groups["state"], {name: value for name, value in state.items() if name not in own})
    buffers = [Site(name, value, constraints.real) for name, value in state.items() if name in own]
    layout = Layout([*sites.latents, *[site for site in sites.points if site.name in own], *buffers])
    if method is not None:
        if not isinstance(method, Variational):
            raise TypeError(f"method is the bnn.Variational of a custom guide, not {type(method).__name__}")
        if not groups["guide"]:
            raise ValueError(f"{path} was not fitted with a custom guide: load it without method=")
        with isolated(0, like.device):  # a guide is made by running it
            approximation = method.restored_guide(model, groups["guide"])
    else:
        approximation = restored(record["kind"], groups["approximation"], layout)
    return Posterior(
        model,
        approximation,
        points=groups["points"],
        state=groups["state"],
        history=_history(record["history"], groups["history"]),
        settings=record["settings"],
        input_shapes=record["input_shapes"],
    )


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {}
    for name in ("bnn-toolkit", "torch", "pyro-ppl", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _tensors(posterior: Posterior) -> tuple[dict[str, Tensor], str]:
    approximation = posterior.approximation
    kind, groups = approximation.kind, {"approximation": approximation.tensors()}
    if _is_code(approximation):
        values = posterior.draws(_GUIDE_DRAWS)
        sites = posterior.model.sites()
        latents = {site.name for site in sites.latents}
        own = {site.name for site in sites.points} | set(posterior.model.state())
        names = [name for name in values if name in latents | own]
        kind, groups = "draws", {"approximation": {name: values[name].unsqueeze(0) for name in names}}
        if isinstance(approximation, Guide):
            groups["guide"] = approximation.tensors()
    curves = {f.name: getattr(posterior.history, f.name) for f in fields(History)}
    groups |= {
        "points": posterior.points,
        "state": posterior.state,
        "history": {name: value for name, value in curves.items() if isinstance(value, Tensor)},
    }
    return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}, kind


def _is_code(approximation: Approximation) -> bool:
    parts = approximation.parts if isinstance(approximation, Mixture) else [approximation]
    return any(isinstance(part, Guide) for part in parts)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (path / _JSON).is_file() or not (path / _TENSORS).is_file():
        raise FileNotFoundError(f"there is no posterior in {path}: it needs {_JSON} and {_TENSORS}")
    try:
        record = json.loads((path / _JSON).read_text(encoding="utf-8"))
        schema = record["schema"]
        if isinstance(schema, int) and schema > SCHEMA:
            raise ValueError(f"{path} was written by a newer bnn (schema {schema}, this one reads {SCHEMA}): upgrade")
        for key, kind in _TYPES.items():
            if not isinstance(record[key], kind):
                raise TypeError(f"{key} is of the wrong type")
        record["input_shapes"] = checked_shapes(record["input_shapes"])
        tensors = load_file(path / _TENSORS)
        _check_history(record["history"], {key for key in tensors if key.startswith("history/")})
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return record, tensors


def checked_shapes(shapes: Any) -> list[tuple[int, ...]] | None:
    """The shapes of the inputs' rows, as read from JSON; raises `TypeError` if they are none."""
    if shapes is None:
        return None
    if not isinstance(shapes, list) or not all(
        isinstance(shape, list) and all(isinstance(size, int) for size in shape) for shape in shapes
    ):
        raise TypeError(f"input_shapes are {shapes}")
    return [tuple(shape) for shape in shapes]


def _history(numbers: dict[str, Any], curves: dict[str, Any]) -> History:
    return History(**numbers, **curves)


def _check_history(numbers: dict[str, Any], curves: set[str]) -> None:
    """Raise `TypeError` for what is no field of a `History`; a field that is missing keeps its default."""
    for f in fields(History):
        default = getattr(History(), f.name)
        kind = int | float if isinstance(default, float) else type(default)
        if f.name in numbers and not isinstance(numbers[f.name], kind):
            raise TypeError(f"the history's {f.name} is of the wrong type")
    unknown = {*numbers, *(name.removeprefix("history/") for name in curves)} - {f.name for f in fields(History)}
    if unknown:
        raise TypeError(f"the history has unknown fields {sorted(unknown)}")


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


def _check_place(path: Path, *, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists: choose another folder, or save with overwrite=True")
    others = sorted({p.name for p in path.iterdir()} - {_JSON, _TENSORS}) if path.is_dir() else [path.name]
    if others:
        raise FileExistsError(f"{path} is more than a posterior and is not overwritten: there is {', '.join(others)}")
