"""The folder of the demonstration: it writes over its own files, and over nobody else's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bnn.demo.scores import Score
from bnn.files import versions

#: The file by which the demonstration knows a folder as its own.
MARKER = "bnn-demo.json"


def claim(out: Path) -> None:
    """Make the folder, or see that it is an earlier one of the demonstration, before any work is done.

    Raises:
        FileExistsError: It is a file, or a folder with other things in it.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: choose another folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise FileExistsError(
            f"{out} is not empty, and no earlier demo wrote it (there is no {MARKER} in it): choose another with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    # Written first, so that a demo that was broken off can be run again.
    if not (out / MARKER).is_file():
        (out / MARKER).write_text("{}\n", encoding="utf-8")


def record(out: Path, seed: int, scores: Sequence[Score]) -> Path:
    """The scores and what they depend on, as JSON."""
    path = out / MARKER
    content = {"seed": seed, "versions": versions(), "scores": [asdict(row) for row in scores]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
