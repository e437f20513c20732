"""The example of docs/command_line.md: its commands run, and do what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import polars as pl
import pytest
from command_line import bnn

from bnn.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "command_line.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.startswith("bnn ")]


@pytest.mark.slow
def test_the_commands_of_the_example_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(code, {})
    outputs = {}
    for command in commands():
        result = bnn(*shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"
        outputs[command.split()[1]] = result.stdout
    found = pl.read_csv("predictions.csv")
    assert found.columns == ["row", "id", "mean", "sd", "low", "high", "epistemic_sd", "aleatoric_sd"]
    assert len(found) == 20
    verdict = Path("runs/price/verdict.txt").read_text()
    for said in (
        "ridge regression",
        "deterministic net",
        "Calibration: ",
        "Inference: ",
        "'id' tells rows apart",
        "Next:",
    ):
        assert said in verdict
    assert {"report.html", "arviz.nc", "config.toml", "run.json"} <= {
        path.name for path in Path("runs/price").iterdir()
    }
    assert "runs/ensemble" in outputs["compare"]


def test_the_example_is_there_and_names_commands_that_there_are():
    assert len(commands()) == 6
    named = set(re.findall(r"`bnn (\w+)", TEXT))
    assert named - {"fit"} <= set(main.commands)
    assert set(main.commands) <= named
    options = {
        name
        for command in main.commands.values()
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
    }
    assert set(re.findall(r"`(--[\w-]+)", TEXT)) <= options | {"--help"}
