"""The runner of benchmarks, on one tiny piece of work without peers; and its page, against what was measured."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bnn.inference.mean_field import MeanFieldLoss

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import frame, problems, processes, report, runner, torch_steps  # noqa: E402
from benchmarks.frame import Contender, Family, Gap, Options, Reach, Ready, Work  # noqa: E402
from benchmarks.work import FAMILIES, selected  # noqa: E402

OWN = {"problem": "smoke"}
WORK = Work(
    "smoke",
    "3-4-1, batch 8",
    "ms a step",
    (
        Contender("plain", "torch_steps:plain", OWN, role="limit"),
        Contender("ours", "torch_steps:ours", {**OWN, "backend": "graph"}, role="own"),
        Contender("Pyro", "torch_steps:pyro_svi", OWN, role="peer"),
        Contender("elsewhere", "absent_library:step", OWN, role="peer"),
    ),
    rounds=3,
    problem="smoke",
    reaches=(Reach("ours / Pyro", "ours", ("Pyro", "elsewhere"), 1.0), Reach("absent", "ours", ("elsewhere",), 1.0)),
)
OPTIONS = Options(threads=1)


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Benchmarks set threads and Pyro's validation for the whole process."""
    import pyro

    monkeypatch.setattr(pyro, "enable_validation", lambda _: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_run_from_work_to_table(tmp_path):
    row = runner.run(WORK, OPTIONS, tell=lambda _: None)
    assert [len(row["rounds"][name]) for name in ("plain", "ours", "Pyro")] == [3, 3, 3]
    assert row["gaps"] == {"elsewhere": "not installed: No module named 'benchmarks.absent_library'"}
    assert set(row["checked"]) == {"plain", "ours", "Pyro"}
    assert row["best_peer"] == "Pyro"
    first, second = row["reaches"]
    assert first["base"] == "Pyro"
    assert first["reached"] is (first["measured"][1] <= 1)
    assert second["measured"] is None
    family = Family("step", "Steps", "", (WORK,))
    report.save(tmp_path, family, [row], OPTIONS)
    (kept,) = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert kept["machine"]["threads"] == 1
    assert kept["machine"]["versions"]["torch"]
    lines = report.table(family, [kept]).splitlines()
    assert lines[0] == "| ms a step | plain | ours | Pyro | elsewhere |"
    assert lines[2].endswith("| gap |")
    assert "reached" in report.reaches({"step": [kept]})


def test_quartiles_and_ratios_by_round():
    assert frame.quartiles([5, 1, 3, 2, 4]) == (2, 3, 4)
    assert frame.ratio([2, 8, 4], [1, 2, 4]) == (1, 2, 4)


def test_control_another_loss_is_a_gap(patch_line):
    """Half the divergence: an error of some hundredths a datum."""
    patch_line(MeanFieldLoss, "_one", "return Terms(nll, kl)", "return Terms(nll, 0.5 * kl)")
    row = runner.run(replace(WORK, contenders=WORK.contenders[1:2], reaches=()), OPTIONS, tell=lambda _: None)
    assert row["gaps"]["ours"].startswith("it computes another loss")


def test_control_a_likelihood_that_is_not_scaled_is_a_gap():
    ready = torch_steps.plain("smoke")
    assert ready.loss is not None
    loss = ready.loss
    wrong = Ready(ready.round, lambda size: [value / 2 for value in loss(size)], "nll")
    with pytest.raises(Gap, match="another loss"):
        runner._check(WORK, wrong)


def test_a_contender_in_another_process():
    contender = Contender("plain", "torch_steps:plain", OWN, python="other")
    child = processes.Child(contender, Options(1, pythons={"other": sys.executable}))
    ready = child.ready()
    assert ready.round() > 0
    assert ready.loss is not None
    problem = problems.PROBLEMS["smoke"]
    x, y = (part[:8] for part in problem.data())
    expected = problems.nll(problem, problems.forward(problem, problem.start(), x), y)
    assert list(ready.loss(0.0)) == pytest.approx([expected], rel=1e-5)
    child.close()
    with pytest.raises(Gap, match="no interpreter named"):
        processes.Child(contender, OPTIONS)


def test_every_contender_names_a_function_and_every_reach_a_contender():
    import ast

    for family in FAMILIES.values():
        assert len({work.name for work in family.works}) == len(family.works)
        for work in family.works:
            names = {contender.name for contender in work.contenders}
            assert all({reach.own, *reach.bases} <= names for reach in work.reaches), work.name
            for contender in work.contenders:
                module, function = contender.make.split(":")
                tree = ast.parse((ROOT / "benchmarks" / f"{module}.py").read_text())
                assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, contender


def test_selection():
    assert [work.name for _, works in selected("step.tiny,ivon") for work in works] == ["tiny", "mnist"]
    assert selected("")
    with pytest.raises(SystemExit, match="no piece of work"):
        selected("step.huge")


def test_the_page_is_what_was_measured():
    found = report.read(ROOT / "docs" / "measurements")
    assert found
    written = (ROOT / "docs" / "benchmarks.md").read_text()
    assert written == report.page(found), "python -m benchmarks --page"
