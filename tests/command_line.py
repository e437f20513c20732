"""Small tables and short fits for the tests of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bnn.cli import main

#: A fit that costs next to nothing.
QUICK = (
    "--method",
    "map",
    "--epochs",
    "1",
    "--hidden",
    "2",
    "--compile",
    "eager",
    "--no-checks",
    "--no-arviz",
    "--quiet",
)


def bnn(*arguments: Any, stdin: str | bytes | None = None) -> Result:
    """Run a command in this process; anything but an exit is a traceback that a user would have seen."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result) -> str:
    """The one sentence on standard error of a command that ended with exit code 2."""
    assert result.exit_code == 2, (result.exit_code, result.output)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", "?", "!"))
    assert "Traceback" not in result.output
    assert len(lines[0]) < 600
    return lines[0]


def homes(rows: int = 40, seed: int = 0) -> str:
    """A table: an identifier, numbers, a category, true and false, dates, a price and whether it is dear."""
    rng = np.random.default_rng(seed)
    lines = ["name,area,rooms,town,garden,sold,price,dear"]
    for i in range(rows):
        area, town = rng.uniform(30, 150), rng.choice(["Aarau", "Bern", "Chur"])
        price = 3 * area + 60 * (town == "Bern") + rng.normal(0, 20)
        rooms = "" if i == 3 else str(rng.integers(1, 6))
        lines.append(
            f"home {i},{area:.1f},{rooms},{town},{bool(rng.integers(2))},2024-{rng.integers(1, 13):02d}-11,{price:.1f},"
            f"{'yes' if price > 300 else 'no'}"
        )
    return "\n".join(lines) + "\n"


def files(folder: Path) -> set[str]:
    """Names of everything in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def document(result: Result) -> dict[str, Any]:
    """The one JSON document on standard output."""
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to be in, with a table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "homes.csv").write_text(homes())
    return tmp_path
