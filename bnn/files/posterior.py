"""Posteriors in files: tensors (safetensors) and JSON, nothing that is executed when it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributions import constraints

from bnn.approximations import Approximation, Guide, Mixture, held, restored
from bnn.files.manifest import JSON, MANIFEST, SCHEMA, TENSORS, Manifest, check_schema, read_manifest
from bnn.files.model import model_parts, needed, rebuilt_model
from bnn.files.record import check_model, check_names, checked_shapes, model_record, versions, with_inputs_of
from bnn.files.strict import read_json, read_tensors
from bnn.history import History
from bnn.layout import Layout, Site
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import isolated
from bnn.values import in_a_line
from bnn.writing import new_folder

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
_GROUPS = ("approximation", "points", "state", "history", "guide", "values")
#: Draws that stand in for a guide, which is code and cannot be saved.
_GUIDE_DRAWS = 1000


def save(posterior: Posterior, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a posterior into a folder: ``posterior.safetensors``, ``posterior.json`` and ``manifest.json``.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Args:
        posterior: Any. Of a custom guide, its parameters and 1,000 draws are saved.
        path: The folder.
        overwrite: Replace a posterior that is there. Nothing else is ever replaced.

    Raises:
        FileExistsError: There is something at `path`; with `overwrite`, something that is more than a posterior.
    """
    path = Path(path)
    check_place(path, overwrite=overwrite)
    with new_folder(path) as folder:
        write_posterior(posterior, folder)
        seal(folder, "posterior")
    return path


def write_posterior(posterior: Posterior, folder: Path) -> dict[str, Any]:
    """Write the two files of a posterior into a folder; what `bnn.files.model.model_parts` says is given back."""
    from safetensors.torch import save_file

    tensors, kind = _tensors(posterior)
    values: dict[str, Tensor] = {}
    parts = model_parts(posterior, values)
    tensors |= {f"values/{name}": value for name, value in values.items()}
    record = {
        "schema": SCHEMA,
        "kind": kind,
        **model_record(posterior.model),
        "model": parts,
        "settings": posterior.settings,
        "versions": versions(),
        "input_shapes": posterior.input_shapes,
        "history": {
            f.name: value
            for f in fields(History)
            if not isinstance(value := getattr(posterior.history, f.name), Tensor)
        },
    }
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, folder / TENSORS)
    (folder / JSON).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return parts


def seal(folder: Path, kind: str) -> None:
    """Write the manifest of a folder that is finished."""
    (folder / MANIFEST).write_bytes(Manifest.of(folder, kind).written())


@dataclass(frozen=True)
class Saved:
    """The two files of a posterior, read and checked in themselves."""

    path: Path
    record: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]

    def model(self, net: nn.Module | None = None) -> BNN:
        """The model, rebuilt.

        Args:
            net: Its network, where that is not in the files.

        Raises:
            ValueError: It is not all in the files, and why; the files are damaged.
        """
        parts = self.record.get("model")
        if not isinstance(parts, dict):
            raise ValueError(f"{self.path} does not say how its model was built: bnn.load needs model=, the bnn.BNN")
        words = needed(parts, net)
        if words:
            raise ValueError(f"{self.path} needs model=, the bnn.BNN that was fitted, built anew: {words}")
        tensors = [value for group in self.groups.values() for value in group.values()]
        layers = len(tensors) + len(self.record["sites"])
        numbers = sum(value.numel() for value in tensors)
        return rebuilt_model(parts, self.groups["values"], numbers=numbers, layers=layers, net=net)


def load_posterior(saved: Saved, model: BNN, method: Any = None) -> Posterior:
    """The posterior in files that were read, of this model.

    Raises:
        ValueError: They do not fit the model (names, shapes, dtypes, likelihood); `method` where there is no guide.
    """
    record, groups = saved.record, saved.groups
    check_model(record, model)
    model = with_inputs_of(record, model)
    like = model.like
    on = {name: {k: v.to(like.device) for k, v in group.items()} for name, group in groups.items() if name != "history"}
    sites, state = model.sites(), model.state()
    own = held(record["kind"], on["approximation"])
    points = [site for site in sites.points if site.name not in own]
    check_names("points", on["points"], {site.name: site.value for site in points})
    check_names("state", on["state"], {name: value for name, value in state.items() if name not in own})
    buffers = [Site(name, value, constraints.real) for name, value in state.items() if name in own]
    layout = Layout([*sites.latents, *[site for site in sites.points if site.name in own], *buffers])
    if method is not None:
        if not on["guide"]:
            raise ValueError(f"{saved.path} was not fitted with a custom guide: load it without method=")
        with isolated(0, like.device):  # a guide is made by running it
            approximation = method.restored_guide(model, on["guide"])
    else:
        approximation = restored(record["kind"], on["approximation"], layout)
    return Posterior(
        model,
        approximation,
        points=on["points"],
        state=on["state"],
        history=_history(record["history"], groups["history"]),
        settings=record["settings"],
        input_shapes=record["input_shapes"],
    )


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


def read_saved(path: Path) -> Saved:
    """Read the two files of a posterior.

    Raises:
        FileNotFoundError: One is missing.
        ValueError: They are damaged, or of a newer version.
    """
    record = read_json(path / JSON)
    try:
        check_schema(path, record["schema"])
        for key, kind in _TYPES.items():
            if not isinstance(record[key], kind):
                raise TypeError(f"{key} is of the wrong type")
        record["input_shapes"] = checked_shapes(record["input_shapes"])
        tensors = read_tensors(path / TENSORS)
        _check_history(record["history"], {key for key in tensors if key.startswith("history/")})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {in_a_line(error)}") from error
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in _GROUPS}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        if group not in groups or not name:
            raise ValueError(f"{path}: unexpected tensor {key!r} in {TENSORS}")
        groups[group][name] = value
    return Saved(path, record, groups)


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


def check_place(path: Path, *, overwrite: bool) -> None:
    """Raise `FileExistsError` if something is at a folder's place; with `overwrite`, if it is more than a run."""
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists: choose another folder, or save with overwrite=True")
    if not path.is_dir():
        raise FileExistsError(f"{path} is more than a posterior and is not overwritten: it is a file")
    known = read_manifest(path)
    own = {JSON, TENSORS, MANIFEST} | set({} if known is None else known.files)
    others = sorted({p.name for p in path.iterdir()} - own)
    if others:
        raise FileExistsError(f"{path} is more than a posterior and is not overwritten: there is {', '.join(others)}")
