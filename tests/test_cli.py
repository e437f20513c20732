"""The command line: help without torch, and the demonstration from end to end."""

import json
import math
import resource
import subprocess
import sys

import click
import pytest
import torch
import xarray
from click.testing import CliRunner

import bnn
from bnn.cli import main
from bnn.demo import _one_thread
from bnn.demo.folder import MARKER, claim
from bnn.demo.problems import breast_cancer, diabetes
from bnn.demo.scores import Fit, Score, closing_sentence, score, table
from bnn.inference import MAP
from bnn.likelihoods import Gaussian
from bnn.prediction import Prediction


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The output and the folder of one short run."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    torch.manual_seed(0)
    random, threads = torch.random.get_rng_state(), torch.get_num_threads()
    result = CliRunner().invoke(main, ["demo", "--out", str(out), "--epochs", "2"])
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert result.exit_code == 0, result.output
    return result.output, out


def test_the_demo_writes_what_it_says(demo):
    output, out = demo
    said = {line.strip() for line in output.split(f"Written to {out}/:")[1].splitlines()} - {""}
    assert said == {path.name for path in out.iterdir()}
    figures = {name for name in said if name.endswith(".png")}
    for name in figures:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert {"diabetes-band.png", "diabetes-predictions.png", "breast-cancer-reliability.png"} <= figures


def test_the_demo_prints_a_table_and_what_it_shows(demo):
    output, out = demo
    header = next(line for line in output.splitlines() if line.startswith("data set"))
    columns = ["data set", "method", "error", "log-density", "calibration", "seconds"]
    assert [name.strip() for name in header.split("  ") if name.strip()] == columns
    rows = json.loads((out / MARKER).read_text())["scores"]
    pairs = [(row["data_set"], row["method"]) for row in rows]
    assert pairs == [(name, method) for name in ("diabetes", "breast cancer") for method in ("MAP", "mean-field VI")]
    for row in rows:
        assert f"{row['log_density']:.3f} ± {row['log_density_standard_error']:.3f}" in output
    assert f"RMSE {rows[0]['rmse']:.1f}" in output
    assert "What it shows:" in output


def test_the_demo_s_trees_can_be_read(demo):
    for name, rows in (("diabetes", 442), ("breast-cancer", 569)):
        with xarray.open_datatree(demo[1] / f"{name}.nc", engine="h5netcdf") as tree:
            assert tree.attrs["method"] == "MeanField"
            test = tree["predictions"].sizes["prediction_row"]
            assert test == round(0.25 * rows)
            assert tree["log_likelihood"].sizes["row"] == rows - test - round(0.15 * rows)


def test_the_demo_writes_over_its_own_folder_only(demo, tmp_path):
    (demo[1] / "notes.txt").write_text("mine")
    claim(demo[1])
    assert (demo[1] / "notes.txt").read_text() == "mine"
    (demo[1] / "notes.txt").unlink()
    (tmp_path / "thesis.tex").write_text("mine")
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "no earlier demo wrote it" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "thesis.tex")])
    assert result.exit_code == 2
    assert "is a file" in result.output


@pytest.mark.parametrize("arguments", [["demo", "--epochs", "0"], ["demo", "--what"], ["nothing"]])
def test_wrong_arguments_are_told(arguments, tmp_path):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Error" in result.output


def test_help_and_version_need_no_torch():
    code = (
        "import sys; from bnn.cli import main\n"
        "for argument in ('--help', '--version'): main([argument], prog_name='bnn', standalone_mode=False)\n"
        "for name in main.commands: main([name, '--help'], prog_name='bnn', standalone_mode=False)\n"
        "assert not {'torch', 'pyro', 'matplotlib', 'sklearn', 'numpy', 'polars'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
    assert bnn.__version__ in done.stdout


def test_help_is_quick():
    """Under half a second of the processor, the best of five: the clock would measure how busy the machine is."""
    best = math.inf
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "bnn", "--help"], capture_output=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if best < 0.5:
            return
    assert best < 0.5


def test_every_command_and_option_has_a_help_text():
    assert set(main.commands) == {"fit", "predict", "evaluate", "compare", "report", "demo", "experiment"}
    for name, command in main.commands.items():
        assert command.help, name
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help, (name, option.name)
        said = CliRunner().invoke(main, [name, "--help"]).output
        assert max(map(len, said.splitlines())) <= 80, name


def test_the_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "bnn", "--version"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.strip().endswith(bnn.__version__)


def rows_of(problem) -> list[list[float]]:
    """All rows of all parts, sorted."""
    parts = (problem.train, problem.validation, problem.test)
    return sorted(row for x, y in parts for row in torch.cat([x, y[:, None].float()], dim=1).tolist())


@pytest.mark.parametrize("make", [diabetes, breast_cancer])
def test_rows_are_parted_and_standardised_by_the_training_rows(make):
    problem, other = make(0), make(1)
    assert rows_of(problem) == rows_of(other)  # so that none is twice, and none is missing
    assert not torch.equal(problem.test[0], other.test[0])
    state = problem.model.state()
    torch.testing.assert_close(state["standardise.mean"], problem.train[0].mean(0))
    standardised = problem.model.net.standardise(problem.train[0])
    torch.testing.assert_close(standardised.std(0), torch.ones(standardised.shape[1]), rtol=1e-4, atol=1e-4)


def test_densities_are_those_of_the_target_in_its_own_units():
    """The density of y is that of z = (y - mean) / std, divided by std."""
    problem = diabetes(0)
    x, y = problem.test
    net, (mean, std) = problem.model.net, (problem.train[1].mean(), problem.train[1].std())
    z = (net.output(net.tanh(net.hidden(net.standardise(x))))).squeeze(-1).detach()
    scaled = Prediction(Gaussian(), z[None], {"likelihood.scale": torch.tensor([0.8])})
    own = Prediction(Gaussian(), net(x).detach()[None], {"likelihood.scale": 0.8 * std[None]})
    torch.testing.assert_close(own.log_prob(y), scaled.log_prob((y - mean) / std) - std.log(), rtol=1e-4, atol=1e-4)


def sure(problem, label: str, scale: float) -> Fit:
    """A made-up fit that predicts the test targets exactly, with noise of this scale."""
    y = problem.test[1]
    draws = torch.stack([y, y])
    prediction = Prediction(Gaussian(), draws, {"likelihood.scale": torch.full((2,), scale)})
    posterior = bnn.fit(problem.model, problem.train, MAP(epochs=1), compile="eager", progress=False)
    return Fit(problem, label, MAP(), posterior, prediction)


def test_the_closing_sentence_says_who_is_better():
    problem = diabetes(0)
    narrow, wide = sure(problem, "narrow", 1.0), sure(problem, "wide", 10.0)
    assert "diabetes less likely (-2.303" in " ".join(closing_sentence([narrow, wide]))
    assert "diabetes more likely (+2.303" in " ".join(closing_sentence([wide, narrow]))
    assert "diabetes about as likely (+0.000" in " ".join(closing_sentence([wide, wide]))
    assert score(narrow).rmse == pytest.approx(0, abs=1e-4)
    assert score(narrow).coverage == 1


def test_the_table_is_aligned():
    rows = [
        Score("a", "MAP", 10, -1.0, 0.1, 1.0, rmse=12.5, coverage=0.9),
        Score("a", "mean-field VI", 10, -10.0, 0.1, 100.0, accuracy=0.5, ece=0.05),
    ]
    lines = table(rows)
    assert len({len(line) for line in lines}) == 1
    assert "a (10 test rows)" in lines[2]
    assert lines[3].startswith(" ")
    assert "coverage 90.0 %" in lines[2]
    assert "ECE 5.0 %" in lines[3]


def test_threads_are_given_back_after_an_error():
    before = torch.get_num_threads()

    def fail():
        with _one_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.get_num_threads() == before
