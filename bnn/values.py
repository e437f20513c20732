"""Settings as JSON, and back, by an allow-list: what is not on it is neither written nor made.

    None, true, false, numbers, texts      themselves; {"float": "inf"} where JSON has no word for it
    a list, a tuple, a mapping             [...], {"tuple": [...]}, {"mapping": {...}}
    a tensor                               {"tensor": {"dtype": ..., "shape": [...], "values": [...]}}, or the name of
                                           one that lies in a file of tensors, {"tensor": "..."}
    a prior, likelihood, method, ...       {"type": "priors.Normal", "with": {"scale": 1.0, ...}}
    an optimiser, a schedule               {"name": "torch.optim.SGD"}, {"partial": "torch.optim.SGD", "with": {...}}

Reading calls the constructors of the classes that are named below, which check their arguments, and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from bnn.distributions import function_in_words, in_words
from bnn.likelihoods import Likelihood

#: What ``{"type": "GROUP.NAME"}`` may stand for: by group the module, and its classes.
TYPES: dict[str, tuple[str, str]] = {
    "priors": (
        "bnn.priors",
        "CorrelatedFilters ElasticNet FromPyro GroupLasso Hierarchical Horseshoe Laplace Normal Pretrained "
        "RegularisedHorseshoe ScaleMixture SpikeAndSlab StudentT",
    ),
    "continual": ("bnn.continual", "JointNormal"),
    "likelihoods": (
        "bnn.likelihoods",
        "Bernoulli Beta Binomial Categorical Censored Gamma Gaussian HeteroscedasticGaussian HeteroscedasticStudentT "
        "Laplace LogNormal MixtureDensity MultivariateGaussian NegativeBinomial Ordinal Poisson Quantile StudentT "
        "Truncated Weibull",
    ),
    "methods": (
        "bnn.inference",
        "Auto ChEES Ensemble Flow FullRank HMC IVON Laplace LastLayer LowRank MAP MCDropout MeanField NUTS SGHMC SGLD "
        "SVGD SWAG VBLL Variational Constant Cyclical Polynomial RMSProp",
    ),
    "encoding": ("bnn.estimators.encoding", "CategoricalColumn Encoder NumericColumn"),
}
#: ``{"type": "pyro.NAME"}``: distributions, and the arguments that they are made from.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "Beta": ("concentration1", "concentration0"),
    "Cauchy": ("loc", "scale"),
    "Chi2": ("df",),
    "Exponential": ("rate",),
    "Gamma": ("concentration", "rate"),
    "Gumbel": ("loc", "scale"),
    "HalfCauchy": ("scale",),
    "HalfNormal": ("scale",),
    "Independent": ("base_dist", "reinterpreted_batch_ndims"),
    "InverseGamma": ("concentration", "rate"),
    "Laplace": ("loc", "scale"),
    "LogNormal": ("loc", "scale"),
    "MultivariateNormal": ("loc", "scale_tril"),
    "Normal": ("loc", "scale"),
    "StudentT": ("df", "loc", "scale"),
    "Uniform": ("low", "high"),
    "Weibull": ("scale", "concentration"),
}
#: Where an argument has another name than what it is kept as.
_ARGUMENTS = {"base_dist": "base_distribution"}
#: ``{"name": "MODULE.NAME"}``: classes and functions that are settings themselves.
NAMES: dict[str, str] = {
    "torch.optim": "ASGD Adadelta Adagrad Adam AdamW Adamax NAdam RAdam RMSprop SGD",
    "torch.optim.lr_scheduler": "CosineAnnealingLR",
    "pyro.infer.autoguide": (
        "AutoDelta AutoDiagonalNormal AutoIAFNormal AutoLowRankMultivariateNormal AutoMultivariateNormal AutoNormal "
        "AutoStructured"
    ),
    "bnn.estimators.outputs": "flat",
}
_DTYPES = {
    name: getattr(torch, name)
    for name in ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
}
_UNWRITTEN = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class NotPlainError(TypeError):
    """A setting that cannot be written such that it can be rebuilt: a function of one's own, say."""


def to_json(value: Any, tensors: dict[str, Tensor] | None = None, *, name: str = "value") -> Any:
    """A setting as JSON.

    Args:
        value: Of what stands at the top of this module.
        tensors: Takes the tensors, under names that begin with `name`; None: their numbers are written out.
        name: What it is called in messages.

    Raises:
        NotPlainError: It is, or holds, something else; with its place.
    """
    found = _plain(value, tensors, name)
    if in_words(value) != in_words(from_json(found, tensors)):
        raise NotPlainError(f"{name} would not be rebuilt as it is: {in_words(value)[:200]}")
    return found


def from_json(record: Any, tensors: Mapping[str, Tensor] | None = None, *, most: int | None = None) -> Any:
    """The setting of which `to_json` made this.

    Args:
        record: JSON, of any origin.
        tensors: Those that lie in a file.
        most: How many numbers an object may make room for; None: any.

    Raises:
        ValueError: A name that is not on the list, arguments that do not fit: it is damaged, or of a newer bnn.
    """
    try:
        return _made(record, tensors or {}, most)
    except RecursionError as error:
        raise ValueError("a setting is nested too deeply") from error


def in_a_line(error: BaseException) -> str:
    """What an error says, in one line: torch adds stacks, and a file may make words of any length."""
    words = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {words[0][:300]}"


def _plain(value: Any, tensors: dict[str, Tensor] | None, name: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list | tuple):
        items = [_plain(item, tensors, f"{name}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: _plain(item, tensors, f"{name}[{key!r}]") for key, item in value.items()}}
    if isinstance(value, Tensor):
        return {"tensor": _tensor(value, tensors, name)}
    if isinstance(value, functools.partial) and not value.args:
        given = {key: _plain(item, tensors, f"{name}.{key}") for key, item in value.keywords.items()}
        return {"partial": _name_of(value.func, name), "with": given}
    if isinstance(value, type) or inspect.isroutine(value):
        return {"name": _name_of(value, name)}
    kind, arguments = _taken_apart(value, name)
    return {"type": kind, "with": {k: _plain(item, tensors, f"{name}.{k}") for k, item in arguments.items()}}


def _tensor(value: Tensor, tensors: dict[str, Tensor] | None, name: str) -> Any:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise NotPlainError(f"{name} is a tensor of {value.dtype}, which cannot be written")
    value = value.detach().cpu()
    if tensors is None:
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NotPlainError(f"{name} has numbers that are not finite")
        return {"dtype": dtype, "shape": list(value.shape), "values": value.tolist()}
    key = f"{name}#{len(tensors)}"
    tensors[key] = value.contiguous().clone()
    return key


def _name_of(value: Any, what: str) -> str:
    for module, names in NAMES.items():
        for name in names.split():
            if module in sys.modules and getattr(sys.modules[module], name, None) is value:
                return f"{module}.{name}"
    raise NotPlainError(f"{what} is code of one's own, {function_in_words(value)}, which is not written in files")


def _taken_apart(value: Any, what: str) -> tuple[str, dict[str, Any]]:
    """The name of its type, and the arguments that it is made from."""
    name = type(value).__name__
    if isinstance(value, Distribution):
        arguments = DISTRIBUTIONS.get(name)
        if arguments is None or type(value) is not getattr(import_module("pyro.distributions"), name):
            raise NotPlainError(f"{what} is a distribution that is not written in files: {in_words(value)[:200]}")
        return f"pyro.{name}", {key: getattr(value, key) for key in arguments}
    for group, (module, names) in TYPES.items():
        if name in names.split() and module in sys.modules and type(value) is getattr(sys.modules[module], name):
            return f"{group}.{name}", _of_likelihood(value) if group == "likelihoods" else _of_fields(value)
    shown = in_words(value)[:200]
    raise NotPlainError(f"{what} is a {type(value).__qualname__}, which is not written in files: {shown}")


def _of_fields(value: Any) -> dict[str, Any]:
    found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    if type(value).__name__ == "Pretrained":
        found["prefix"] = ""  # its weights bear the prefix already
    return found


def _of_likelihood(value: Likelihood) -> dict[str, Any]:
    """Constructors of likelihoods have no fields: their arguments are kept as unknowns, attributes or settings."""
    held: dict[str, Any] = {**value._settings, **vars(value), **value._unknowns}
    names = [name for name in inspect.signature(type(value)).parameters if name in held]
    if held.get("covariance") is not None:
        names = ["covariance", "missing"]  # which the others were made from
    return {name: held[name] for name in names}


def _made(record: Any, tensors: Mapping[str, Tensor], most: int | None) -> Any:
    if record is None or isinstance(record, bool | int | float | str):
        return record
    if isinstance(record, list):
        return [_made(item, tensors, most) for item in record]
    if not isinstance(record, dict):
        raise ValueError(f"a setting is no JSON but a {type(record).__name__}")
    match record:
        case {"float": str(text), **rest} if not rest and text in _UNWRITTEN:
            return _UNWRITTEN[text]
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_made(item, tensors, most) for item in items)
        case {"mapping": dict(items), **rest} if not rest:
            return {key: _made(item, tensors, most) for key, item in items.items()}
        case {"tensor": str(key), **rest} if not rest:
            if key not in tensors:
                raise ValueError(f"the tensor {key!r} of a setting is not in the file")
            return tensors[key]
        case {"tensor": dict(written), **rest} if not rest:
            return _read_tensor(written)
        case {"name": str(name), **rest} if not rest:
            return _named(name)
        case {"partial": str(name), "with": dict(given), **rest} if not rest:
            return functools.partial(_named(name), **{key: _made(item, tensors, most) for key, item in given.items()})
        case {"type": str(name), "with": dict(given), **rest} if not rest:
            return _built(name, {key: _made(item, tensors, most) for key, item in given.items()}, most)
    raise ValueError(f"a setting is no value that this bnn knows: {str(record)[:100]}")


def _read_tensor(written: dict[str, Any]) -> Tensor:
    try:
        value = torch.tensor(written["values"], dtype=_DTYPES[written["dtype"]])
        return value.reshape(written["shape"])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"a tensor of a setting is damaged: {in_a_line(error)}") from error


def _named(name: str) -> Any:
    module, _, own = name.rpartition(".")
    if own not in NAMES.get(module, "").split():
        raise ValueError(f"{name!r} is none of the names that may stand in a file; is it of a newer bnn?")
    return getattr(import_module(module), own)


def _built(name: str, arguments: dict[str, Any], most: int | None) -> Any:
    group, _, own = name.partition(".")
    if group == "pyro" and own in DISTRIBUTIONS:
        make: Callable[..., Any] = getattr(import_module("pyro.distributions"), own)
        known = set(DISTRIBUTIONS[own])
    elif own in TYPES.get(group, ("", ""))[1].split():
        make = getattr(import_module(TYPES[group][0]), own)
        known = set(inspect.signature(make).parameters)
    else:
        raise ValueError(f"{name!r} is none of the types that may stand in a file; is it of a newer bnn?")
    if set(arguments) - known:
        raise ValueError(f"{name} has no settings {sorted(set(arguments) - known)}; is the file of a newer bnn?")
    _check_room(name, arguments, most)
    try:
        return make(**{_ARGUMENTS.get(key, key): value for key, value in arguments.items()})
    except (TypeError, ValueError, AttributeError, RuntimeError, LookupError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"{name} cannot be made from its settings: {in_a_line(error)}") from error


def _check_room(name: str, arguments: Mapping[str, Any], most: int | None) -> None:
    """Raise `ValueError` for an object that makes room by a number in the file, where the file has no such numbers."""
    size = {"likelihoods.Ordinal": "grades", "likelihoods.MultivariateGaussian": "outputs"}.get(name)
    count = arguments.get(size) if size else None
    needed = 0 if not isinstance(count, int) else count - 1 if size == "grades" else count * (count - 1) // 2
    if most is not None and needed > most:
        raise ValueError(f"{name} with {size}={count} has more unknowns than the file has numbers, {most}")
