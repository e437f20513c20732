"""Run folders for tests: made whole again after a change, as an attacker would, and as an older bnn wrote them."""

from __future__ import annotations

import json
from pathlib import Path

from bnn.files import MANIFEST, Manifest, read_manifest


def reseal(folder: Path) -> None:
    """A manifest with the right checksums of whatever the files are now."""
    old = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_bytes(Manifest.of(folder, old["kind"]).written())
    assert read_manifest(folder) is not None


def as_schema_1(folder: Path) -> Path:
    """The folder of a posterior as the first version wrote it: no manifest, no model, no values."""
    path = folder / "posterior.json"
    record = json.loads(path.read_text())
    record.pop("model")
    path.write_text(json.dumps(record | {"schema": 1}, indent=2))
    (folder / MANIFEST).unlink()
    return folder
