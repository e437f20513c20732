"""Estimators in run folders: `bnn.load` makes the same estimator of what `save` wrote.

Beside the files of the posterior there are ``estimator.json`` (the estimator's own settings, and what it learned of the
table and its targets), and for readers ``settings.json``, ``history.csv`` and perhaps ``arviz.nc``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

import bnn.estimators as estimators
from bnn.estimators.base import Estimator
from bnn.estimators.encoding import CategoricalColumn, Encoder, NumericColumn
from bnn.estimators.nets import OwnNet
from bnn.files import (
    DAMAGE,
    check_place,
    load_posterior,
    read_json,
    read_saved,
    read_tensors,
    seal,
    versions,
    write_posterior,
)
from bnn.files.manifest import ESTIMATOR, ESTIMATOR_TENSORS, SCHEMA, check_schema
from bnn.history import History
from bnn.inference import Variational
from bnn.values import NotPlainError, from_json, in_a_line, to_json
from bnn.writing import new_folder

#: Settings that are code, and handed to `bnn.load`.
_GIVEN = "module"
#: Letters of a prior that are shown: one of tensors has all their numbers.
_SHOWN = 2000


def save_estimator(estimator: Estimator, path: str | Path, *, overwrite: bool, arviz: bool) -> Path:
    """See `Estimator.save`."""
    from safetensors.torch import save_file

    check_is_fitted(estimator, "posterior_")
    path = Path(path)
    check_place(path, overwrite=overwrite)
    tensors: dict[str, Tensor] = {}
    record = _record(estimator, tensors)
    with new_folder(path) as folder:
        parts = write_posterior(estimator.posterior_, folder)
        _check_rebuilt(parts["given"], own=isinstance(estimator, OwnNet))
        _write(folder / ESTIMATOR, record)
        if tensors:
            save_file(tensors, folder / ESTIMATOR_TENSORS)
        _write(folder / "settings.json", _for_readers(estimator))
        (folder / "history.csv").write_text(history_csv(estimator.posterior_.history), encoding="utf-8")
        if arviz:
            estimator.posterior_.to_arviz().to_netcdf(folder / "arviz.nc")
        seal(folder, "estimator")
    return path


def load_estimator(path: Path, module: Any = None) -> Estimator:
    """The estimator in a run folder whose files were compared with their checksums.

    Args:
        path: The folder.
        module: Of ``bnn.BayesianModuleRegressor`` and its like: the network, or the function that makes it.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The files are damaged or of a newer version, or do not fit the module; it is missing, or there is
            no use for it.
    """
    record = read_json(path / ESTIMATOR)
    try:
        check_schema(path, record["schema"])
        kind = getattr(estimators, record["class"]) if record["class"] in estimators.__all__ else None
        if kind is None:
            raise ValueError(f"{record['class']!r} is no estimator of this bnn")
        _check_module(path, record["class"], module, own=issubclass(kind, OwnNet))
        tensors = read_tensors(path / ESTIMATOR_TENSORS) if (path / ESTIMATOR_TENSORS).exists() else {}
        settings = {name: from_json(value, tensors) for name, value in record["settings"].items()}
        estimator: Estimator = kind(**settings, **({} if module is None else {_GIVEN: module}))
        estimator._check_settings()
        _take(estimator, record)
        _take_posterior(estimator, path)
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged: {in_a_line(error)}") from error
    return estimator


def history_csv(history: History) -> str:
    """The course of a fit as a table: a row a step; held-out log-densities stand at the last step of their epoch."""
    per = max(history.steps_per_epoch, 1)
    validation = {
        epoch * per: value for epoch, value in zip(history.validation_epochs, history.validation.tolist(), strict=False)
    }
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("step", "epoch", "loss", "nll", "kl", "validation"))
    columns = [value.tolist() for value in (history.loss, history.nll, history.kl)]
    for step in range(1, max(len(column) for column in columns) + 1):
        numbers = [column[step - 1] if step <= len(column) else "" for column in columns]
        writer.writerow((step, (step - 1) // per + 1, *numbers, validation.get(step, "")))
    return table.getvalue()


def _record(estimator: Estimator, tensors: dict[str, Tensor]) -> dict[str, Any]:
    settings = {name: value for name, value in estimator.get_params(deep=False).items() if name != _GIVEN}
    names = getattr(estimator, "feature_names_in_", None)
    try:
        return {
            "schema": SCHEMA,
            "class": type(estimator).__name__,
            "settings": {name: to_json(value, tensors, name=name) for name, value in settings.items()},
            "seed": estimator._seed,
            "outputs": estimator._outputs,
            "rows": int(estimator.n_rows_),
            "features": int(estimator.n_features_in_),
            "feature_names": None if names is None else [str(name) for name in names],
            "encoder": to_json(estimator.encoder_, name="encoder_"),
            "targets": estimator._targets_record(),
        }
    except NotPlainError as error:
        raise ValueError(f"this estimator cannot be written such that it can be rebuilt: {error}") from error


def _check_rebuilt(given: Mapping[str, str], *, own: bool) -> None:
    missing = [why for part, why in given.items() if not (own and part == "network")]
    if missing:
        raise ValueError(f"this estimator cannot be written such that it can be rebuilt: {'; '.join(missing)}")


def _for_readers(estimator: Estimator) -> dict[str, Any]:
    """What ran, resolved: nothing of it is read back."""
    posterior = estimator.posterior_
    return {
        "schema": SCHEMA,
        "estimator": type(estimator).__name__,
        "settings": {name: _shown(value) for name, value in estimator.get_params(deep=False).items()},
        "method": posterior.settings,
        "prior": repr(posterior.model.prior)[:_SHOWN],
        "likelihood": repr(posterior.model.likelihood),
        "network": str(posterior.model.net).splitlines(),
        "seed": estimator._seed,
        "rows": int(estimator.n_rows_),
        "device": str(posterior.model.like.device),
        "backend": posterior.history.backend,
        "seconds": posterior.history.seconds,
        "notes": posterior.history.notes,
        "versions": versions(),
    }


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_module(path: Path, kind: str, module: Any, *, own: bool) -> None:
    if own and module is None:
        raise ValueError(
            f"{path} holds a {kind}, whose network is code: give it as model=, the module= that it was made with"
        )
    if own and not callable(module):
        raise ValueError(f"model is the network of the {kind}, or the function that makes it, not {module!r}")
    if not own and module is not None:
        raise ValueError(f"{path} holds a {kind}, which is rebuilt whole: leave model= out")


def _take(estimator: Estimator, record: Mapping[str, Any]) -> None:
    """Set what was learned of the table and its targets."""
    encoder, names = from_json(record["encoder"]), record["feature_names"]
    _check_encoder(encoder, record["features"])
    if names is not None:
        if (
            not isinstance(names, list)
            or len(names) != record["features"]
            or not all(isinstance(n, str) for n in names)
        ):
            raise ValueError("feature names are a text a column")
        estimator.feature_names_in_ = np.array(names, dtype=object)
    if not all(isinstance(record[name], int) for name in ("seed", "rows", "outputs")):
        raise ValueError("seed, rows and outputs are whole numbers")
    estimator.encoder_, estimator.n_features_in_ = encoder, record["features"]
    estimator.n_rows_, estimator._seed, estimator._outputs = record["rows"], record["seed"], record["outputs"]
    estimator._take_targets(record["targets"])


def _check_encoder(encoder: object, features: object) -> None:
    """Raise `ValueError` for one that no fit makes."""
    if not isinstance(encoder, Encoder) or not isinstance(features, int):
        raise ValueError("there is no encoder")
    fields: dict[str, Any] = vars(encoder)
    columns, used = fields["columns"], fields["used"]
    if not isinstance(columns, tuple) or not all(_sound(column) for column in columns):
        raise ValueError("the encoder's columns are none")
    if (
        not isinstance(used, tuple)
        or len(used) != len(columns)
        or not all(isinstance(i, int) and 0 <= i < features for i in used)
    ):
        raise ValueError(f"the encoder uses columns {used} of {features}")


def _sound(column: Any) -> bool:
    """Whether a column's fields are of their types."""
    if not isinstance(column, NumericColumn | CategoricalColumn):
        return False
    fields: dict[str, Any] = vars(column)
    if not isinstance(fields["name"], str) or not isinstance(fields["missing"], bool):
        return False
    if isinstance(column, CategoricalColumn):
        return isinstance(fields["levels"], tuple) and all(isinstance(level, str) for level in fields["levels"])
    numbers = [fields[name] for name in ("median", "mean", "scale")]
    return all(isinstance(v, float) and np.isfinite(v) for v in numbers) and fields["scale"] != 0


def _take_posterior(estimator: Estimator, path: Path) -> None:
    saved = read_saved(path)
    net: nn.Module | None = None
    if isinstance(estimator, OwnNet):
        net = estimator._new_network(estimator._outputs)
    model = saved.model(net)
    # A guide is code that an estimator knows: with it draws are fresh, as they were.
    method = getattr(estimator, "method", None)
    guide = method if isinstance(method, Variational) and saved.groups["guide"] else None
    estimator.posterior_, estimator.model_ = load_posterior(saved, model, guide), model
