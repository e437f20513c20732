"""What a run folder holds: `manifest.json`, with the size and the SHA-256 of every file, and a checksum of itself."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnn.files.strict import check_name, open_file, read_json
from bnn.values import in_a_line
from bnn.writing import write_file

#: Of all JSON files of a run folder. 1: a posterior without a manifest.
SCHEMA = 2
MANIFEST = "manifest.json"
#: The files of a posterior.
JSON, TENSORS = "posterior.json", "posterior.safetensors"
#: What an estimator has besides.
ESTIMATOR, ESTIMATOR_TENSORS = "estimator.json", "estimator.safetensors"
_KINDS = ("posterior", "estimator")
_FILES = 1000


@dataclass(frozen=True)
class Entry:
    """One file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a run folder, and what they are: a ``"posterior"`` or an ``"estimator"``."""

    kind: str
    files: dict[str, Entry]

    def written(self) -> bytes:
        """As JSON, with its checksum."""
        record = self._record()
        return (json.dumps({**record, "checksum": _checksum(record)}, indent=2) + "\n").encode()

    def _record(self) -> dict[str, Any]:
        files = {name: vars(entry) for name, entry in sorted(self.files.items())}
        return {"schema": SCHEMA, "kind": self.kind, "files": files}

    @classmethod
    def of(cls, folder: Path, kind: str) -> Manifest:
        """Of all files that are in a folder."""
        names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
        return cls(kind, {check_name(name): _entry(folder / name) for name in names})

    def check(self, folder: Path) -> None:
        """Compare every file with what is written here.

        Raises:
            FileNotFoundError: One is missing.
            ValueError: One has another size or other bytes; its name.
        """
        for name, entry in self.files.items():
            path = folder / name
            with open_file(path) as file:
                size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise ValueError(f"{path} is damaged: it has {size:,} bytes, and {MANIFEST} says {entry.size:,}")
            if _entry(path).sha256 != entry.sha256:
                raise ValueError(f"{path} is damaged: its checksum is not the one in {MANIFEST}")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a run folder, which fits itself; None where there is none, as in a folder of schema 1.

    Raises:
        ValueError: It is damaged, of a newer version, or names what is no file of this folder.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    record = read_json(path)
    schema = record.get("schema")
    check_schema(folder, schema)
    checksum = record.pop("checksum", None)
    if checksum != _checksum(record):
        raise ValueError(f"{path} is damaged: its checksum is not that of what it says")
    try:
        if schema != SCHEMA or record["kind"] not in _KINDS or len(record["files"]) > _FILES:
            raise ValueError(f"schema {schema}, kind {record['kind']!r}, {len(record['files'])} files")
        files = {check_name(name): Entry(**entry) for name, entry in record["files"].items()}
        if MANIFEST in files or not all(_sound(entry) for entry in files.values()):
            raise ValueError("sizes are whole numbers, and checksums texts")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {in_a_line(error)}") from error
    return Manifest(record["kind"], files)


def check_schema(folder: Path, schema: object) -> None:
    """Raise `ValueError` if a file of a run folder is of a newer version than this one reads."""
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(f"{folder} was written by a newer bnn (schema {schema}, this one reads {SCHEMA}): upgrade")


def add_file(folder: str | Path, name: str, content: bytes) -> Path:
    """Put a file into a run folder, or another in its place, with its line in the manifest.

    Whenever the power fails, the folder is one that loads: with the old file, without it, or with the new one.

    Args:
        folder: Of a posterior or an estimator.
        name: A plain file name. What `bnn.load` itself reads is not replaced.
        content: Its bytes.

    Raises:
        FileNotFoundError: There is no manifest in the folder.
        ValueError: The manifest is damaged; the name is none, or is that of a file that `bnn.load` reads.
    """
    folder = Path(folder)
    if check_name(name) in (MANIFEST, JSON, TENSORS, ESTIMATOR, ESTIMATOR_TENSORS):
        raise ValueError(f"{name} is a part of what was saved, and is written by save alone")
    known = _needed(folder)
    others = {key: entry for key, entry in known.files.items() if key != name}
    if name in known.files:  # for a moment it is no part of the run, so that no line is ever wrong
        write_file(folder / MANIFEST, Manifest(known.kind, others).written())
    write_file(folder / name, content)
    entry = Entry(len(content), hashlib.sha256(content).hexdigest())
    write_file(folder / MANIFEST, Manifest(known.kind, {**others, name: entry}).written())
    return folder / name


def read_file(folder: str | Path, name: str) -> bytes:
    """The bytes of one file of a run folder, if they are those that were written.

    Raises:
        FileNotFoundError: There is no such file, or no manifest.
        ValueError: It is damaged, or `name` is no plain file name.
    """
    folder = Path(folder)
    known = _needed(folder)
    if check_name(name) not in known.files:
        raise FileNotFoundError(f"{folder} has no file {name}: it has {', '.join(sorted(known.files))}")
    Manifest(known.kind, {name: known.files[name]}).check(folder)
    with open_file(folder / name) as file:
        return file.read(known.files[name].size)


def _needed(folder: Path) -> Manifest:
    known = read_manifest(folder)
    if known is None:
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: it is no run folder, or one of an older bnn; save anew")
    return known


def _entry(path: Path) -> Entry:
    with open_file(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(os.fstat(file.fileno()).st_size, found)


def _sound(entry: Entry) -> bool:
    whole: object = entry.size
    return isinstance(whole, int) and not isinstance(whole, bool) and whole >= 0 and isinstance(entry.sha256, str)


def _checksum(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
