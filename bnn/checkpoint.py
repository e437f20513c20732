"""How far a fit has come, in files: written whole or not at all, and read back only by the same fit.

A state is one safetensors file: tensors, and JSON in its header with a checksum of both. The state before the last one
is kept beside it, for the day on which the last one cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnn.writing import flush, write_file

SCHEMA = 1
#: What of an identity may differ, and is told in a note: versions, threads, where the network's weights started.
SURROUNDINGS = "surroundings"
#: What of an identity names the part of the fit, as its folder does.
_PART = "part"
_LAST, _BEFORE, _NEXT = "state.safetensors", "state.before.safetensors", "state.next.safetensors"
_DIGEST = re.compile("[0-9a-f]{64}")
#: How many differences of two fits are told.
_TOLD = 4
#: Seconds after which what a killed write has left is taken away.
_STALE = 60.0


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit writes how far it has come, and how often.

    Args:
        path: A folder, made if it is not there. The same fit, called again, goes on from what it finds there.
        seconds: At least so long between two states; what is lost at worst.
        steps: Besides, a state after every so many steps; ``None``: by the clock alone.
    """

    path: str | Path
    seconds: float = 60.0
    steps: int | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for intervals that make no sense."""
        if not self.seconds >= 0:
            raise ValueError(f"seconds is at least 0, not {self.seconds}")
        if self.steps is not None and not self.steps >= 1:
            raise ValueError(f"steps is a whole number from 1, or None, not {self.steps}")


@dataclass(frozen=True)
class State:
    """Tensors by name, and numbers as JSON."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    #: What the reader is to be told: that the last state was damaged, or that versions differ.
    notes: list[str] = field(default_factory=list)


class Saver:
    """One fit's place for its states.

    Args:
        checkpoint: Where, and how often.
        identity: What makes this fit the one that it is, as JSON: method, model, data, seed. A state of another one is
            refused. What stands under `SURROUNDINGS` may differ, and is told.
        name: Of a part of a fit that has several, one after the other; each has a folder of its own.

    Raises:
        ValueError: The place is taken by a file.
    """

    def __init__(self, checkpoint: Checkpoint, identity: Mapping[str, Any], name: str = ""):
        self.checkpoint, self.identity = checkpoint, json.loads(json.dumps(dict(identity)))
        self.folder = Path(checkpoint.path) / name if name else Path(checkpoint.path)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"a checkpoint is a folder, and {self.folder} is a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._written, self._steps = time.monotonic(), 0

    def part(self, name: str, identity: Mapping[str, Any] | None = None) -> Saver:
        """The place of a part of this fit, such as the mode that a Laplace approximation is made around.

        Args:
            name: Of its folder; "": this one's.
            identity: What the part is, besides being one of this fit.
        """
        place = Checkpoint(self.folder, self.checkpoint.seconds, self.checkpoint.steps)
        whose = {**self.identity, **(identity or {})}
        return Saver(place, whose | {_PART: [*whose.get(_PART, []), name]} if name else whose, name)

    def check(self) -> None:
        """See whether the states here, and those of the fit's parts, are this fit's, before any work is done.

        Raises:
            ValueError: They are of another fit (and what differs), or of a newer version.
        """
        for depth in ("", "*/", "*/*/"):
            for path in sorted(self.folder.glob(f"{depth}{_LAST}")):
                try:
                    theirs = _read(path)[0]["identity"]
                except _Damaged:  # `read` takes the one before it
                    continue
                if theirs.get(_PART, []) == list(path.parent.relative_to(self.folder).parts):
                    self._check(path, {key: value for key, value in theirs.items() if key in self.identity})

    def due(self, steps: int = 1) -> bool:
        """Whether it is time for a state, `steps` steps after the last question."""
        self._steps += steps
        by_steps = self.checkpoint.steps is not None and self._steps >= self.checkpoint.steps
        return by_steps or time.monotonic() - self._written >= self.checkpoint.seconds

    def write(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Write a state; the one before stays until this one stands.

        Raises:
            OSError: The disk is full, say: where, and how much was to be written. The last state is as it was.
        """
        from safetensors.torch import save

        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        text = json.dumps({"schema": SCHEMA, "identity": self.identity, "numbers": dict(numbers)})
        content = save(_without_shared(plain), {"record": text, "checksum": digest(plain, text)})
        last, following = self.folder / _LAST, self.folder / _NEXT
        try:
            # The new one reaches the disk first: while it is written, both old ones are there.
            write_file(following, content)
            if last.exists():
                os.replace(last, self.folder / _BEFORE)
            os.replace(following, last)
            flush(self.folder)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the fit ends, since its state ({len(content):,} bytes) cannot be written to {self.folder}: "
                f"{error.strerror or error}. The last state there is as it was, and the same call goes on from it",
            ) from error
        self._written, self._steps = time.monotonic(), 0

    def read(self) -> State | None:
        """The last state that can be read; None where there is none yet.

        Raises:
            ValueError: The states are of another fit (and what differs), of a newer version, or all are damaged.
        """
        self._tidy()
        damaged = []
        for name in (_LAST, _BEFORE):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                record, tensors = _read(path)
            except _Damaged as error:
                damaged.append(str(error))
                continue
            told = self._check(path, record["identity"])
            used = [f"{what}; the one before it was taken" for what in damaged]
            return State(tensors, record["numbers"], [*used, *told])
        if damaged:
            raise ValueError(
                f"{'; '.join(damaged)}: no state is left to go on from; remove {self.folder} to begin anew"
            )
        return None

    def _check(self, path: Path, theirs: dict[str, Any]) -> list[str]:
        """Raise `ValueError` for another fit's state; say what else differs."""
        ours = self.identity
        other = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key) and key != SURROUNDINGS]
        if other:
            each = [text for key in other for text in _differences(key, theirs.get(key), ours.get(key))]
            told = "; ".join(each[:_TOLD]) + (f"; and {len(each) - _TOLD} more" if len(each) > _TOLD else "")
            raise ValueError(
                f"{path} is how far another fit has come: {told}. Give checkpoint= another folder, or remove this one"
            )
        was, now = (found.get(SURROUNDINGS, {}) for found in (theirs, ours))
        return [
            f"went on under another {name} (it was {was.get(name)}, is {now.get(name)}): the bytes may differ from "
            "those of a fit that was not interrupted"
            for name in {**was, **now}
            if was.get(name) != now.get(name)
        ]

    def _tidy(self) -> None:
        """Take away what writes that were killed have left."""
        for path in self.folder.glob(".state.*.part"):
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink(missing_ok=True)


class _Damaged(Exception):
    """A state that cannot be read, and why."""


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Copies, which lie where torch puts a tensor: the last bit of a sum goes by where its numbers lie.
            tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
        text = metadata["record"]
        if digest(tensors, text) != metadata["checksum"]:
            raise _Damaged(f"{path} is damaged: its checksum does not fit")
        record = json.loads(text)
        schema, _, _ = record["schema"], record["identity"], record["numbers"]
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise _Damaged(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if schema > SCHEMA:
        raise ValueError(f"{path} was written by a newer bnn (schema {schema}, this one reads {SCHEMA})")
    return record, tensors


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of names, dtypes, shapes, bytes and text."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _without_shared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those that share memory, which safetensors refuses."""
    seen: set[int] = set()
    own = {}
    for name, value in tensors.items():
        start = value.untyped_storage().data_ptr()
        own[name] = value.clone() if start in seen else value
        seen.add(start)
    return own


def _differences(key: str, theirs: Any, ours: Any) -> list[str]:
    """Where two values differ, by the paths of their parts."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        inner = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        return [text for name in inner for text in _differences(f"{key}.{name}", theirs.get(name), ours.get(name))]
    if all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (theirs, ours)):
        return [f"{key} had other numbers"]
    return [f"{key} was {theirs!r}, is {ours!r}"]
