"""What the benchmarks share: their options, the ratios of interleaved rounds, and the file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bnn.inference.loop import Training
from bnn.inference.states import Position


def parser(doc: str, rounds: int, path: str) -> argparse.ArgumentParser:
    """``--rounds``, ``--threads`` and ``--json``; more can be added."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=os.cpu_count())
    made.add_argument("--json", type=Path, default=Path(path))
    return made


def ratios(own: Sequence[float], base: Sequence[float]) -> tuple[float, list[float]]:
    """Median and quartiles of the ratios of two contenders, round by round."""
    found = sorted(a / b for a, b in zip(own, base, strict=True))
    return statistics.median(found), [found[len(found) // 4], found[-1 - len(found) // 4]]


def epoch(fit: Training) -> None:
    """One epoch of a fit, and the place of the next."""
    fit._epoch()
    fit.at = Position(fit.at.epoch + 1)


def write(options: argparse.Namespace, rows: list[dict[str, Any]], **versions: str) -> None:
    """Rows, and the machine that they are from, as JSON."""
    machine = {
        "torch": torch.__version__,
        **versions,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": options.threads,
        "rounds": options.rounds,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    print(f"\n{machine}\nwritten to {options.json}")
