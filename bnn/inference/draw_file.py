"""The file of a store of draws: a safetensors file of its full size from the start, mapped."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnn.files import checked_shapes, parse_json
from bnn.writing import flush

_FORMAT = "bnn draws 1"
#: As safetensors calls them.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


#: Dtypes and shapes by name.
Tables = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def create(path: Path, tensors: Tables, record: Mapping[str, Any]) -> None:
    """A new file of zeros.

    Args:
        path: Where nothing is.
        tensors: Dtypes and shapes by name.
        record: JSON for the header.

    Raises:
        FileExistsError: There is something.
        OSError: The disk has no room; nothing is left.
        ValueError: A dtype that cannot be stored.
    """
    for name, (dtype, _) in tensors.items():
        if dtype not in _DTYPES:
            raise ValueError(f"{name!r} is of {dtype}, which cannot be stored")
    header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, "record": json.dumps(dict(record))}}
    # Wide numbers first, so that all lie at multiples of their width.
    order = sorted(tensors, key=lambda name: -tensors[name][0].itemsize)
    end = 0
    for name in order:
        dtype, shape = tensors[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    _write(path, len(text).to_bytes(8, "little") + text, 8 + len(text) + end)


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `create` made, mapped: what is written into them is written into the file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    whole = torch.from_file(str(path), shared=True, size=path.stat().st_size, dtype=torch.uint8)
    dtypes = {name: dtype for dtype, name in _DTYPES.items()}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = whole[start:stop].view(dtypes[entry["dtype"]]).view(entry["shape"])
    return tensors


def check_goes_on(path: Path, wanted: Tables, fit: str | None) -> None:
    """Raise `ValueError` unless there is the whole file of this fit."""
    if not path.is_file():
        raise ValueError(
            f"{path} is not there, where the draws that this fit has made so far should be: put it back, give the "
            "store= that the fit had, or begin anew with another checkpoint"
        )
    record, tensors = read(path)
    if fit is None or record.get("fit") != fit:
        raise ValueError(f"{path} holds the draws of another fit, which are never written over: choose another place")
    if wanted != {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}:
        raise ValueError(f"{path} is damaged: its tables are not those of this fit")


def _write(path: Path, header: bytes, size: int) -> None:
    """A new file of this size that starts so, whole or not at all.

    The disk is asked for all of it now: once mapped, a full one kills.
    """
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under a name that the next attempt uses too: a run killed here leaves no second file of this size.
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(header)
            file.flush()
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(f"{path} cannot hold all draws, {size / 1e9:.3g} GB: {error}") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush(path.parent)


def check_free(path: str | Path | None) -> None:
    """Raise `FileExistsError` if there is something at `path`."""
    if path is not None and Path(path).exists():
        raise FileExistsError(f"{path} exists, and draws are never written over: choose another store=")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the tensors, mapped; safetensors checks that names, shapes and sizes fit the file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("format")
            if found != _FORMAT:
                raise ValueError(f"{path} is no file of draws, or was written by a newer bnn: {found!r}")
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        record = _parsed(path, metadata["record"])
        for key, kind in (("prior", str), ("likelihood", str), ("sites", dict), ("settings", dict)):
            if not isinstance(record[key], kind):
                raise TypeError(f"{key} is of the wrong type")
        record["input_shapes"] = checked_shapes(record["input_shapes"])
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return record, tensors


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return parse_json(text.encode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
