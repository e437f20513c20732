"""The store of draws of a chain: in memory, or in a file that is mapped, so that a long run need not fit in memory.

The file is a safetensors file of its full size from the start: numbers that are known beforehand (`state`), a table
of draws that is filled row by row, and how many rows each chain has filled. A run that was killed is read back up to
what it had written (`read_store`).
"""

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

from bnn.approximations import Chains
from bnn.files import check_model, check_names, checked_shapes, model_record, with_inputs_of
from bnn.history import History
from bnn.inference.objective import Objective
from bnn.layout import Layout
from bnn.model import BNN
from bnn.posterior import Posterior

_FORMAT = "bnn draws 1"
_COUNTS, _VECTORS, _STATE = "counts", "vectors", "state/"
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


class DrawStore:
    """A table of draws to write into.

    Args:
        chains: How many.
        capacity: Draws a chain.
        size: D, unconstrained numbers a draw.
        dtype: Of the numbers.
        path: The file, which must not exist; its folder is made. None: in memory.
        state: ``{name: value}``, buffers and frozen parameters of the network, for the file.
        record: JSON for the file: what `read_store` needs.

    Raises:
        FileExistsError: There is something at `path`.
        OSError: The disk has no room for all draws; nothing is left there.
        ValueError: No chains, or no draws.
    """

    def __init__(
        self,
        chains: int,
        capacity: int,
        size: int,
        dtype: torch.dtype,
        path: str | Path | None = None,
        *,
        state: Mapping[str, Tensor] | None = None,
        record: Mapping[str, Any] | None = None,
    ):
        if min(chains, capacity) < 1:
            raise ValueError(f"a store has at least one chain and one draw, not {chains} and {capacity}")
        self.path = None if path is None else Path(path)
        if self.path is None:
            self.counts = torch.zeros(chains, dtype=torch.int64)
            self.vectors = torch.zeros(chains, capacity, size, dtype=dtype)
            return
        state = state or {}
        shapes = {name: (value.dtype, tuple(value.shape)) for name, value in state.items()}
        tensors = _created(
            self.path,
            {
                _COUNTS: (torch.int64, (chains,)),
                _VECTORS: (dtype, (chains, capacity, size)),
                **{_STATE + name: shape for name, shape in shapes.items()},
            },
            {"format": _FORMAT, "record": json.dumps(dict(record or {}))},
        )
        for name, value in state.items():
            tensors[_STATE + name].copy_(value)
        #: ``(chains,)``, how many draws of each chain are there. It is written after them.
        self.counts = tensors[_COUNTS]
        #: ``(chains, capacity, D)``, on the CPU; the first `counts` of each chain mean something.
        self.vectors = tensors[_VECTORS]

    def append(self, draws: Tensor) -> None:
        """One more draw of every chain: ``(chains, D)``, on any device. All chains are equally far."""
        row = int(self.counts[0])
        self.vectors[:, row].copy_(draws.detach())
        self.counts.fill_(row + 1)

    def append_to(self, chain: int, draw: Tensor) -> None:
        """One more draw of one chain: ``(D,)``."""
        row = int(self.counts[chain])
        self.vectors[chain, row].copy_(draw.detach())
        self.counts[chain] = row + 1

    def finished(self, count: int | None = None) -> Tensor:
        """What there is, without a copy: ``(chains, draws, D)``, mapped if the store is.

        Args:
            count: Draws a chain; ``None``: as many as are there. Of chains that are not equally far, the first few and
                their common draws, such that most draws are kept.
        """
        if self.path is not None:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return self.vectors[:, :count] if count is not None else _rectangle(self.vectors, self.counts)


def open_store(
    objective: Objective, path: str | Path | None, chains: int, capacity: int, layout: Layout | None = None
) -> DrawStore:
    """The store of a run, with all that `read_store` needs.

    Args:
        objective: Whose latents are drawn, with its model, settings, state and input shapes; of one member.
        path: The file; None: in memory.
        chains: How many.
        capacity: Draws a chain.
        layout: Of what is kept of a draw; None: all latents.
    """
    record = {
        **model_record(objective.model),
        "settings": {**objective.settings, "n_data": objective.n_data},
        "input_shapes": objective.input_shapes,
    }
    layout = layout or objective.latents
    return DrawStore(chains, capacity, layout.size, layout.dtype, path, state=objective.state, record=record)


def read_store(path: str | Path, model: BNN) -> Posterior:
    """The posterior in a file that ``fit(..., store=path)`` wrote, or was writing when it was killed.

    The draws stay in the file, and are read when they are asked for.

    Args:
        path: The file.
        model: The model that was fitted, built anew: same network, prior and likelihood.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or none of these, does not fit the model, or has no draw yet.
    """
    path = Path(path)
    record, tensors = _read(path)
    check_model(record, model)
    model = with_inputs_of(record, model)
    layout = Layout(model.sites().latents)
    counts, vectors = tensors.get(_COUNTS), tensors.get(_VECTORS)
    if counts is None or vectors is None or vectors.dim() != 3 or not len(vectors):
        raise ValueError(f"{path} is damaged: it has no table of draws")
    if (vectors.shape[2], vectors.dtype) != (layout.size, layout.dtype):
        raise ValueError(
            f"{path} has {vectors.shape[2]} numbers a draw of {vectors.dtype}, this model {layout.size} of "
            f"{layout.dtype}"
        )
    if counts.dtype != torch.int64 or counts.shape != vectors.shape[:1]:
        raise ValueError(f"{path} is damaged: its counts are {tuple(counts.shape)} of {counts.dtype}")
    if bool((counts < 0).any()) or bool((counts > vectors.shape[1]).any()):
        raise ValueError(f"{path} is damaged: its counts {counts.tolist()} are not within 0 and {vectors.shape[1]}")
    if not int(counts[0]):
        raise ValueError(f"{path} has no draw yet: the run ended before the first")
    state = {name.removeprefix(_STATE): value for name, value in tensors.items() if name.startswith(_STATE)}
    check_names("state", state, model.state())
    drawn = _rectangle(vectors, counts)
    history = History(interrupted=drawn.shape != vectors.shape)
    history.notes.append(f"read from {path}: {drawn.shape[0]} chains of {drawn.shape[1]} draws")
    device = model.like.device
    return Posterior(
        model,
        Chains(layout, drawn),
        points={},
        state={name: value.to(device) for name, value in state.items()},
        history=history,
        settings=record["settings"],
        input_shapes=record["input_shapes"],
    )


def _rectangle(vectors: Tensor, counts: Tensor) -> Tensor:
    """The first k chains and the draws that all of them have, for the k that keeps most: ``(k, draws, D)``."""
    least = counts.cummin(0).values
    chains = int((least * torch.arange(1, len(counts) + 1)).argmax()) + 1
    return vectors[:chains, : int(least[chains - 1])]


def _created(
    path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """A new safetensors file of zeros, mapped: what is written into the tensors is written into the file."""
    for name, (dtype, _) in tensors.items():
        if dtype not in _DTYPES:
            raise ValueError(f"{name!r} is of {dtype}, which cannot be stored")
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # Wide numbers first, so that all lie at multiples of their width.
    order = sorted(tensors, key=lambda name: -tensors[name][0].itemsize)
    end = 0
    for name in order:
        dtype, shape = tensors[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    _write(path, len(text).to_bytes(8, "little") + text, begin + end)
    whole = torch.from_file(str(path), shared=True, size=begin + end, dtype=torch.uint8)
    mapped = {}
    for name in order:
        start, stop = header[name]["data_offsets"]
        dtype, shape = tensors[name]
        mapped[name] = whole[begin + start : begin + stop].view(dtype).view(shape)
    return mapped


def _write(path: Path, header: bytes, size: int) -> None:
    """A new file of this size that starts so. The disk is asked for all of it now: once mapped, a full one kills."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("xb")
    except FileExistsError as error:
        raise FileExistsError(f"{path} exists, and draws are never written over: choose another store=") from error
    try:
        with file:
            file.write(header)
            file.flush()
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path} cannot hold all draws, {size / 1e9:.3g} GB: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
        record = json.loads(metadata["record"])
        for key, kind in (("prior", str), ("likelihood", str), ("sites", dict), ("settings", dict)):
            if not isinstance(record[key], kind):
                raise TypeError(f"{key} is of the wrong type")
        record["input_shapes"] = checked_shapes(record["input_shapes"])
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return record, tensors
