"""What makes a fit the one that it is, as JSON: so that it goes on from its own states only.

Nothing here depends on the process: functions are told by name and code, tensors by a digest of their bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bnn.checkpoint import SURROUNDINGS, digest
from bnn.data import Data, as_source
from bnn.files import model_record, versions
from bnn.inference.base import Method, Run
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.precision import network_dtype

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def identity_of(method: Method, model: BNN, data: Data, run: Run) -> dict[str, Any]:
    """What a fit is: a state of one that differs in anything of this is refused.

    Under `SURROUNDINGS` stands what may differ, and is told: versions, threads, and the values that the network starts
    from, since a fit that goes on has left them behind.

    Args:
        method: With its settings.
        model: Structure, constants (buffers, frozen parameters), prior and likelihood.
        data: Of arrays a digest, of a loader the number of rows only.
        run: Seed, weights, held-out rows, backend.
    """
    like = model.like
    learned = [p for p in model.net.parameters() if p.requires_grad]
    return {
        "method": described(method),
        "network": {name: _module(module) for name, module in model.net.named_modules()},
        "constants": digest(model.state()),
        **model_record(model),
        "prior": described(model.prior),
        "likelihood": described(model.likelihood),
        "seed": run.seed,
        "data": _rows(model, data, n_data=run.n_data, weight=run.weight),
        "validation": None if run.validation is None else _rows(model, run.validation),
        "compile": run.compile,
        "device": like.device.type,
        "dtype": str(like.dtype),
        "autocast": str(network_dtype()),
        SURROUNDINGS: {
            **versions(),
            "threads": torch.get_num_threads(),
            "start of the network": digest({str(i): p.detach() for i, p in enumerate(learned)}),
        },
    }


def described(value: Any, within: tuple[int, ...] = ()) -> Any:
    """A setting, a prior, a function as JSON that is the same in every process.

    Args:
        value: Any.
        within: Ids of what it is a part of; what is a part of itself is told once.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in within:
        return "itself"
    within = (*within, id(value))
    if isinstance(value, Mapping):
        return {str(key): described(part, within) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [described(part, within) for part in value]
    if isinstance(value, set | frozenset):  # in an order of their own in every process
        return {"set": sorted((described(part, within) for part in value), key=repr)}
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {digest({'': value})[:16]}"
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {value.dtype} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, functools.partial):
        parts = {"partial": value.func, "args": value.args, "given": value.keywords}
        return {name: described(part, within) for name, part in parts.items()}
    if isinstance(value, FunctionType):
        return _function(value, within)
    if isinstance(value, MethodType):
        return {"method": described(value.__func__, within), "of": described(value.__self__, within)}
    return _object(value, within)


def _object(value: Any, within: tuple[int, ...]) -> Any:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Posterior):
        parts = {"approximation": value.approximation.tensors(), "points": value.points, "state": value.state}
        return {"class": name, **{part: digest(tensors) for part, tensors in parts.items()}}
    if isinstance(value, nn.Module):
        return {"class": name, "state": digest(value.state_dict())}
    if is_dataclass(value):
        return {"class": name, **{f.name: described(getattr(value, f.name), within) for f in fields(value)}}
    own, shown = getattr(value, "__dict__", {}), getattr(type(value), "__repr__", None)
    if shown is object.__repr__:  # which tells nothing but an address
        return {"class": name, **{key: described(part, within) for key, part in own.items()}}
    tensors = {str(i): t for i, t in enumerate(_tensors(own.values()))}
    return {"class": name, "repr": _ADDRESS.sub("", repr(value)), **({"tensors": digest(tensors)} if tensors else {})}


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(list(values)) if isinstance(leaf, Tensor)]


def _function(value: FunctionType, within: tuple[int, ...]) -> dict[str, Any]:
    closed = {}
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # one that is empty
            closed[name] = cell.cell_contents
    return {
        "function": f"{value.__module__}.{value.__qualname__}",
        "code": _code_digest(value),
        "defaults": described([value.__defaults__, value.__kwdefaults__], within),
        "closure": described(closed, within),
    }


def _code_digest(value: FunctionType) -> str:
    found = hashlib.sha256(_code(value.__code__).encode()).hexdigest()[:16]
    return f"{found} of Python {sys.version_info.major}.{sys.version_info.minor}"


def _code(code: CodeType) -> str:
    """What a function does, in a text that neither an address nor the order of a set is in."""
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {[_constant(c) for c in code.co_consts]}"


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, frozenset):
        return f"set {sorted(map(_constant, value))}"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


def _module(module: nn.Module) -> str:
    """Its class, numbers and mode; of a class of one's own, what it does."""
    forward: object = type(module).forward
    code = ""
    if isinstance(forward, FunctionType) and forward.__module__.split(".")[0] not in ("torch", "bnn"):
        code = f", forward {_code_digest(forward)}"
    mode = "" if module.training else ", in evaluation mode"
    return f"{type(module).__qualname__}({_ADDRESS.sub('', module.extra_repr())}){mode}{code}"


def _rows(model: BNN, data: Data, **options: Any) -> dict[str, Any]:
    return as_source(data, model.likelihood, model.like, 1, **options).identity()
