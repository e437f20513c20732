"""Nested dicts and lists of tensors and numbers as JSON beside a table of tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Nested dicts, lists and tuples of tensors and numbers as JSON; see `unpack`.

    Args:
        value: What to keep, such as an optimiser's ``state_dict()``.
        tensors: Takes the tensors in.
        name: Under which, and what the value is called in messages.

    Raises:
        TypeError: There is something else among it: where, and of which type.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, float):  # numpy's
        return float(value)
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value.detach()
        return {"tensor": [name, value.device.type != "cpu"]}
    if isinstance(value, Mapping):
        odd = [key for key in value if not (key is None or type(key) in (bool, int, float, str))]
        if not odd:
            return {"dict": [[key, pack(part, tensors, f"{name}/{key}")] for key, part in value.items()]}
    if type(value) in (list, tuple):
        parts = [pack(part, tensors, f"{name}/{i}") for i, part in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    raise TypeError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be kept in a file that is read "
        "without executing anything: leave checkpoint= out, or take another optimiser, schedule or loader"
    )


def unpack(packed: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """What was packed; mappings come back as dicts, and tensors of a device on this one.

    Raises:
        KeyError: A tensor is not there.
    """
    if isinstance(packed, list):
        return [unpack(part, tensors, device) for part in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        name, elsewhere = content
        return tensors[name].to(device) if elsewhere else tensors[name]
    if kind == "tuple":
        return tuple(unpack(part, tensors, device) for part in content)
    return {key: unpack(part, tensors, device) for key, part in content}
