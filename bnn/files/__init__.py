"""Posteriors and estimators in folders: tensors and JSON, nothing that is executed when it is read (docs/files.md)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from bnn.files.manifest import JSON, MANIFEST, SCHEMA, TENSORS, Manifest, add_file, read_file, read_manifest
from bnn.files.posterior import check_place, load_posterior, read_saved, save, seal, write_posterior
from bnn.files.record import check_model, check_names, checked_shapes, model_record, versions, with_inputs_of
from bnn.files.strict import parse_json, read_json, read_tensors
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.values import in_a_line
from bnn.writing import set_aside

__all__ = [
    "DAMAGE",
    "MANIFEST",
    "SCHEMA",
    "Manifest",
    "add_file",
    "check_model",
    "check_names",
    "check_place",
    "checked_shapes",
    "load",
    "load_posterior",
    "model_record",
    "parse_json",
    "read_file",
    "read_json",
    "read_manifest",
    "read_saved",
    "read_tensors",
    "save",
    "seal",
    "versions",
    "with_inputs_of",
    "write_posterior",
]


#: What content that fits its checksums and nothing else may lead to.
DAMAGE = (TypeError, KeyError, IndexError, AttributeError, RuntimeError, ArithmeticError, AssertionError)


def load(path: str | Path, model: Any = None, *, method: Any = None) -> Any:
    """Read what `Posterior.save` or an estimator's `save` wrote: a `bnn.Posterior`, or the estimator.

    Every file of the folder is compared with its checksum before anything is made of it. Nothing is executed.

    Args:
        path: The folder.
        model: What is code and so is not in the files. Of a posterior: the `bnn.BNN` that was fitted, built anew with
            the same network, prior and likelihood, or its network alone, where prior and likelihood are in the files;
            None, where the network is one of `bnn.nets`. Of ``bnn.BayesianModuleRegressor`` and its like: their
            `module`.
        method: For a custom guide: the ``bnn.Variational`` that it was fitted with, for fresh draws; without it the
            saved draws are what there is.

    Raises:
        FileNotFoundError: There is nothing of this kind at `path`, or a file of it is missing.
        ValueError: The files are damaged (and which) or of a newer version, do not fit the model (names, shapes,
            dtypes, likelihood), or need `model`.
        TypeError: `model` or `method` is something else.
    """
    path = Path(path)
    _check_method(method)
    if not any(os.path.lexists(path / name) for name in (MANIFEST, JSON, TENSORS)):
        aside = "".join(f"; what was there is in {old}, where a save over it was killed" for old in set_aside(path))
        raise FileNotFoundError(f"there is nothing saved in {path}: it needs {JSON} and {TENSORS}{aside}")
    known = read_manifest(path)
    if known is not None:
        known.check(path)
        if known.kind == "estimator":
            from bnn.estimators.saved import load_estimator

            return load_estimator(path, model)
    if not isinstance(model, BNN | nn.Module | None):
        raise TypeError(
            f"model is the bnn.BNN that was fitted, built anew, or its network, not a {type(model).__name__}"
        )
    for name in (JSON, TENSORS):
        if not os.path.lexists(path / name):
            raise FileNotFoundError(f"there is no posterior in {path}: it needs {JSON} and {TENSORS}")
    try:
        return _posterior(path, known, model, method)
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged: {in_a_line(error)}") from error


def _posterior(path: Path, known: Manifest | None, model: BNN | nn.Module | None, method: Any) -> Posterior:
    saved = read_saved(path)
    if known is None and saved.record["schema"] > 1:
        raise FileNotFoundError(f"{path / MANIFEST} is missing, and nothing says whether the other files are whole")
    return load_posterior(saved, model if isinstance(model, BNN) else saved.model(model), method)


def _check_method(method: Any) -> None:
    from bnn.inference import Variational

    if not isinstance(method, Variational | None):
        raise TypeError(f"method is the bnn.Variational of a custom guide, not {type(method).__name__}")
