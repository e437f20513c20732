"""What makes a fit the one that it is, as JSON: so that it goes on from its own states only.

Nothing here depends on the process: functions are told by name and code, tensors by a digest of their bytes.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType
from typing import Any

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


def described(value: Any) -> Any:
    """A setting, a prior, a function as JSON that is the same in every process."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [described(part) for part in value]
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {digest({'': value})[:16]}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, functools.partial):
        return {"partial": described(value.func), "args": described(value.args), "given": described(value.keywords)}
    if isinstance(value, FunctionType):
        return _function(value)
    return _object(value)


def _object(value: Any) -> Any:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Posterior):
        parts = {"approximation": value.approximation.tensors(), "points": value.points, "state": value.state}
        return {"class": name, **{part: digest(tensors) for part, tensors in parts.items()}}
    if isinstance(value, nn.Module):
        return {"class": name, "state": digest(value.state_dict())}
    if is_dataclass(value):
        return {"class": name, **{f.name: described(getattr(value, f.name)) for f in fields(value)}}
    tensors = {str(i): t for i, t in enumerate(_tensors(getattr(value, "__dict__", {}).values()))}
    return {"class": name, "repr": _ADDRESS.sub("", repr(value)), **({"tensors": digest(tensors)} if tensors else {})}


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(list(values)) if isinstance(leaf, Tensor)]


def _function(value: FunctionType) -> dict[str, Any]:
    closed = [cell.cell_contents for cell in value.__closure__ or ()]
    return {
        "function": f"{value.__module__}.{value.__qualname__}",
        "code": hashlib.sha256(_code(value.__code__).encode()).hexdigest()[:16],
        "defaults": described(value.__defaults__),
        "closure": described(closed),
    }


def _code(code: CodeType) -> str:
    """What a function does, in a text that no address is in."""
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _module(module: nn.Module) -> str:
    mode = "" if module.training else ", in evaluation mode"
    return f"{type(module).__qualname__}({_ADDRESS.sub('', module.extra_repr())}){mode}"


def _rows(model: BNN, data: Data, **options: Any) -> dict[str, Any]:
    return as_source(data, model.likelihood, model.like, 1, **options).identity()
