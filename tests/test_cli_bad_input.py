"""Bad input at the command line: one sentence, exit code 2, and no half-written run folder."""

from __future__ import annotations

import errno
import io
import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from command_line import QUICK, bnn, files, here, homes, refused

from bnn.cli.folder import Place
from bnn.tables import TableError, parse

__all__ = ["here"]


def table(**columns) -> str:
    """A CSV of 20 rows: x counts, y follows it; columns given are there too, or in their place."""
    own = {"x": range(20), "z": [i % 7 for i in range(20)], "y": [2.5 * i + i % 3 for i in range(20)]} | columns
    rows = zip(*own.values(), strict=True)
    return "\n".join([",".join(own), *(",".join(map(str, row)) for row in rows)]) + "\n"


WITH_TEXT = table(x=[*range(15), "many", *range(16, 20)])
BAD = {
    "missing target": (table(), "price", "no target column 'price'; there are 'x', 'z', 'y'"),
    "near target": (table(), "Y ", "no target column 'Y '; did you mean 'y'?"),
    "text among numbers": (WITH_TEXT, "y",
        "column 'x' of t.csv holds numbers, but 1 of 20 values are not, the first in row 16: 'many'"),
    "decimal comma": (table(x=[f'"{i},5"' for i in range(20)]), "y", "decimal comma, such as '0,5'"),
    "constant column": (table(x=[3] * 20), "y", "column 'x' of t.csv has the same value in every row, 3"),
    "constant text": (table(x=["a"] * 20), "y", "the same value in every row, 'a'"),
    "empty column": (table(x=["NA"] * 20), "y", "column 'x' of t.csv has no value in any row"),
    "infinite value": (table(x=[*range(19), "inf"]), "y",
        "column 'x' of t.csv has an infinite number, the first in row 20"),
    "overflow": (table(x=[*range(19), "-1e999"]), "y", "infinite number, the first in row 20: '-1e999'"),
    "one class": (table(y=["yes"] * 20), "y", "one class only, 'yes'"),
    "constant target": (table(y=[4.5] * 20), "y", "the same value in every row, 4.5"),
    "empty target": (table(y=[""] * 20), "y", "the target 'y' has no value in any row"),
    "text in the target": (table(y=[*range(19), "much"]), "y", "column 'y' of t.csv holds numbers, but 1 of 20"),
    "infinite target": (table(y=[*range(19), "inf"]), "y", "column 'y' of t.csv has an infinite number"),
    "date target": (table(y=[f"2024-01-{i:02d}" for i in range(1, 21)]), "y", "holds dates"),
    "too many classes": (table(y=[f"c{i}" for i in range(20)]), "y", "20 different values in 20 rows"),
    "too few rows": ("x,y\n1,2\n3,5\n", "y", "2 rows with a target, and a fit needs 10"),
    "no rows": ("x,y\n", "y", "a header, but no rows"),
    "empty": ("", "y", "t.csv is empty"),
    "blank": (" \n\n", "y", "t.csv is empty"),
    "target alone": ("y\n" + "\n".join(map(str, range(20))), "y", "no column but the target 'y'"),
    "identifiers alone": ("n,y\n" + "\n".join(f"home {i},{i}" for i in range(20)), "y",
        "no column to learn from but identifiers ('n')"),
    "not UTF-8": (table().encode() + b"\xff,1,2\n", "y", "not in UTF-8: byte 192 (0xff, line 22)"),
    "UTF-16": (table().encode("utf-16"), "y", "in UTF-16"),
    "zeros": (table() + "\0,1,2\n", "y", "there is a zero at character 192"),
    "duplicate names": (table().replace("x,z,y", "x,x,y"), "y",
        "1 column names that come more than once, the first is 'x'"),
    "long row": (table() + "1,2,3,4\n", "y", "3 columns, but row 21 (line 22) has 4 values"),
    "short row": (table() + "1\n", "y", "3 columns, but row 21 (line 22) has 1 value"),
    "open quotation": (table() + '"1,2,3\n', "y", "line 22: a quotation mark was opened and never closed"),
    "text after quotation": (table() + '"1"x,2,3\n', "y", "text after a closing quotation mark"),
    "no header": ("\n,,\n1,2,3\n", "y", "no header"),
    "spreadsheet": (b"PK\x03\x04" + b"x" * 50, "y", "begins like a spreadsheet"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_cannot_be_used(case, here):
    content, target, said = BAD[case]
    (here / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    found = refused(bnn("fit", "t.csv", "--target", target, "--out", "runs/t", *QUICK))
    assert said in found
    assert files(here) == {"homes.csv", "t.csv"}


def test_a_file_that_is_none(here):
    (here / "folder.csv").mkdir()
    (here / "t.xlsx").write_bytes(b"x")
    for source, said in {
        "folder.csv": "is a directory", "t.xlsx": "no format that is known", "home.csv": "did you mean 'homes.csv'?",
        "a\0b.csv": "no name of a file", "homes.csv/t.csv": "Not a directory", "x" * 300 + ".csv": "too long",
    }.items():  # fmt: skip
        assert said in refused(bnn("fit", source, "--target", "price", "--out", "runs/t", *QUICK)), source
    assert files(here) == {"homes.csv", "folder.csv", "t.xlsx"}


@pytest.mark.parametrize("form", ["parquet", "feather"])
def test_binary_tables_that_are_damaged(form, here):
    buffer = io.BytesIO()
    frame = pl.read_csv(io.StringIO(table()))
    frame.write_parquet(buffer) if form == "parquet" else frame.write_ipc(buffer)
    whole = buffer.getvalue()
    middle = len(whole) // 2
    for content, said in (
        (whole[:middle], "cut off"), (b"x,y\n1,2\n", "is not a"), (b"", "is empty"),
        (whole[:-40] + b"\xff" * 20 + whole[-20:], "damaged"),
    ):  # fmt: skip
        (here / f"t.{form}").write_bytes(content)
        assert said in refused(bnn("fit", f"t.{form}", "--target", "y", "--out", "runs/t", *QUICK))
    (here / f"t.{form}").write_bytes(whole)
    assert bnn("fit", f"t.{form}", "--target", "y", "--out", "runs/t", *QUICK).exit_code == 0


def test_types_that_no_column_has(here):
    frame = pl.read_csv(io.StringIO(table())).with_columns(x=pl.concat_list("x", "z"))
    frame.write_parquet("t.parquet")
    assert "of type List(Int64)" in refused(bnn("fit", "t.parquet", "--target", "y", "--out", "runs/t", *QUICK))
    assert bnn("fit", "t.parquet", "--target", "y", "--drop", "x", "--out", "runs/t", *QUICK).exit_code == 0


OPTIONS = {
    "--task": ("ranking", "'ranking' is not one of"), "--method": ("nutz", "did you mean 'nuts'?"),
    "--hidden": ("a,b", "a list of whole numbers"), "--activation": ("relux", "relux"),
    "--epochs": ("0", "epochs is a whole number from 1"), "--lr": ("-1", "lr is a positive number"),
    "--batch-size": ("0", "batch_size"), "--prior": ("gauss", "unknown prior 'gauss'"),
    "--likelihood": ("gausian", "did you mean 'gaussian'?"), "--seed": ("-1", "seed"),
    "--test-share": ("1.5", "test_share lies between 0 and 1"), "--interval": ("1", "interval lies between"),
    "--device": ("tpu9", "device 'tpu9' cannot be used here"), "--compile": ("fast", "not one of"),
    "--features": ("area,rom", "--features names the column 'rom'"), "--drop": ("price", "--drop names the target"),
    "--categorical": ("zip", "--categorical names the column 'zip'"), "--set": ("members", "NAME=VALUE"),
    "--checkpoint-seconds": ("-1", "checkpoint_seconds"), "--config": ("no.toml", "there is no file no.toml"),
    "--out": ("..", "no name for the folder of a run"),
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_options_that_make_no_sense(option, here):
    value, said = OPTIONS[option]
    quick = [*QUICK[QUICK.index("--compile") :]]
    given = ["fit", "homes.csv", "--target", "price", "--method", "map", "--out", "runs/t", *quick, option, value]
    assert said in refused(bnn(*given))
    assert files(here) == {"homes.csv"}


def test_what_is_missing_is_asked_for(here):
    assert "data is missing" in refused(bnn("fit", "--target", "price", "--out", "runs/t"))
    assert "target is missing" in refused(bnn("fit", "homes.csv", "--out", "runs/t"))
    assert "--out is missing" in refused(bnn("fit", "homes.csv", "--target", "price"))
    assert "Missing argument" in refused(bnn("predict"))
    assert "No such command 'ft'" in refused(bnn("ft"))
    assert "No such option" in refused(bnn("fit", "--tagret", "x"))
    assert "--likelihood" not in refused(
        bnn("fit", "homes.csv", "--target", "dear", "--likelihood", "poisson", "--out", "r")
    )


def test_settings_in_files_are_checked(here):
    for text, said in {
        "epoch = 3": "did you mean 'epochs'?", "epochs = 'x'": "epochs is a whole number", "epochs =": "no TOML",
        "hidden = 50": "hidden is a list of whole numbers", "refit = 1": "refit is true or false",
        "seed = true": "seed is a whole number", "features = [1]": "a list of names", "set = 3": "a table",
    }.items():  # fmt: skip
        (here / "c.toml").write_text(text)
        assert said in refused(bnn("fit", "homes.csv", "--target", "price", "-c", "c.toml", "--out", "runs/t")), text
    (here / "c.toml").write_bytes(b"epochs = 3 # \xff")
    assert "not in UTF-8" in refused(bnn("fit", "homes.csv", "--target", "price", "-c", "c.toml", "--out", "runs/t"))


def test_nothing_but_a_run_is_replaced(here):
    fit = ["fit", "homes.csv", "--target", "price", *QUICK, "--out"]
    (here / "thesis").mkdir()
    (here / "thesis" / "thesis.tex").write_text("mine")
    for force in ([], ["--force"]):
        assert "is no run of bnn" in refused(bnn(*fit, "thesis", *force))
        assert "is no run of bnn" in refused(bnn(*fit, "homes.csv", *force))
    assert bnn(*fit, "runs/a").exit_code == 0
    before = (here / "runs/a/run.json").read_bytes()
    assert "--force replaces it" in refused(bnn(*fit, "runs/a"))
    (here / "runs/a/notes.md").write_text("mine")
    assert "not its own (notes.md)" in refused(bnn(*fit, "runs/a", "--force"))
    (here / "runs/a/notes.md").unlink()
    assert "did you mean" in refused(bnn(*fit, "runs/a", "--force", "--features", "aera"))
    assert (here / "runs/a/run.json").read_bytes() == before
    assert bnn(*fit, "runs/a", "--force", "--seed", "1").exit_code == 0
    assert "seed = 1" in (here / "runs/a/config.toml").read_text()
    assert [path.name for path in (here / "runs").iterdir()] == ["a"]


def test_no_space_left(here, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a.part")

    for broken in ("begin", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(Place, broken, full)
            found = refused(bnn("fit", "homes.csv", "--target", "price", *QUICK, "--out", "runs/a"))
        assert "no space is left on the device" in found
        assert not (here / "runs/a").exists()
    assert "--resume runs/a" in found  # once there is a state, it is kept
    assert bnn("fit", "--resume", "runs/a", "--quiet").exit_code == 0


def test_a_mistake_in_bnn_is_said_to_be_one(here, monkeypatch):
    monkeypatch.setattr("bnn.cli.rows.make_plan", lambda *_: 1 / 0)
    result = bnn("fit", "homes.csv", "--target", "price", *QUICK, "--out", "runs/a")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    path = line.split("the traceback is in ")[1].rstrip(").")
    assert "ZeroDivisionError" in Path(path).read_text()
    result = bnn("fit", "homes.csv", "--target", "price", *QUICK, "--out", "runs/a", "--debug")
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert files(here) == {"homes.csv"}


def test_json_says_what_went_wrong(here):
    result = bnn("fit", "homes.csv", "--target", "prize", "--out", "runs/a", "--json")
    assert json.loads(result.stdout)["exit_code"] == result.exit_code == 2
    assert "did you mean 'price'?" in json.loads(result.stdout)["error"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "homes.csv").write_text(homes())
    assert bnn("fit", folder / "homes.csv", "--target", "price", "--out", folder / "a", *QUICK).exit_code == 0
    return folder / "a"


def test_tables_to_predict_that_cannot_be_used(run, here):
    def said(old, new, *more):
        (here / "new.csv").write_text(homes(12).replace(old, new))
        return refused(bnn("predict", run, "new.csv", *more))

    assert "no column 'area'; the nearest are 'aera'" in said("name,area", "name,aera")
    assert "no columns 'area', 'rooms'" in said("name,area,rooms", "name,a,b")
    lines = homes(12).splitlines()
    area = lines[5].split(",")[1]
    assert "holds numbers, but the first in row 5: 'wide'" in said(area, "wide")
    assert "holds true and false, but the first in row 1" in said(",True,", ",perhaps,").replace("row 2", "row 1")
    assert "has an infinite number" in said(area, "inf")
    assert "holds dates, but the first in row" in said("-11,", "-99,")
    assert "no columns 'area', 'rooms'" in refused(bnn("predict", run, "-", stdin="price\n3\n"))
    assert "--keep names the column 'nam'" in said("x", "x", "--keep", "nam")
    assert "interval lies between" in said("x", "x", "--interval", "2")
    assert "is the table itself" in said("x", "x", "--out", "new.csv")
    assert "no format that is known" in said("x", "x", "--out", "p.doc")
    assert "is a directory" in said("x", "x", "--out", ".")
    assert "no target column 'price'" in refused(bnn("evaluate", run, "-", stdin=homes(12).replace("price", "prize")))
    assert files(here) == {"homes.csv", "new.csv"}


def test_runs_that_are_none(run, here):
    for command in (["predict", "R", "homes.csv"], ["evaluate", "R", "homes.csv"], ["report", "R"],
                    ["compare", "R", str(run)]):  # fmt: skip
        for name, said in {"nothing": "there is no run at nothing", ".": "no name for the folder"}.items():
            assert said in refused(bnn(*[name if word == "R" else word for word in command]))
    (here / "empty").mkdir()
    assert "is no run of bnn fit" in refused(bnn("report", "empty"))
    assert "no unfinished run" in refused(bnn("fit", "--resume", "nothing"))
    assert "leave --seed out" in refused(bnn("fit", "--resume", "nothing", "--seed", "3"))
    assert "a comparison needs two runs" in refused(bnn("compare", run, run))


def test_runs_that_are_damaged(run, here):
    for name in ("run.json", "posterior.safetensors", "estimator.json", "manifest.json", "config.toml"):
        copy = here / f"copy-{name}"
        shutil.copytree(run, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        found = refused(bnn("predict", copy, "homes.csv"))
        assert name in found
        assert "damaged" in found
    shutil.copytree(run, here / "new")
    text = (here / "new/manifest.json").read_text()
    (here / "new/manifest.json").write_text(text.replace('"schema": 2', '"schema": 9'))
    assert "newer bnn" in refused(bnn("predict", "new", "homes.csv"))


def test_a_report_needs_the_table_of_the_fit(run, here):
    (here / "homes.csv").write_text(homes(30))
    assert "is not the table that" in refused(bnn("report", run, "--data", here / "homes.csv", "--out", "r.html"))
    assert files(here) == {"homes.csv"}


def test_positions_are_those_of_the_file():
    """Rows from 1 without the header; lines with it, also where a value has several."""
    with pytest.raises(TableError, match=r"row 2 \(line 4\) has 1 value"):
        parse(b'a,b\n"x\ny",2\n3\n', "t")
    with pytest.raises(TableError, match=r"byte 6 \(0xfe, line 2\)"):
        parse(b"\xef\xbb\xbfa,\n\xfe1", "t")


def test_experiments_that_there_are_not(here, monkeypatch):
    assert "did you mean 'weight_decay'?" in refused(bnn("experiment", "weight_decoy"))
    assert "name an experiment" in refused(bnn("experiment"))
    assert "weight_decay" in bnn("experiment", "--list").output
    monkeypatch.setattr("bnn.__file__", str(here / "bnn" / "__init__.py"))
    assert "not part of the installed package" in refused(bnn("experiment", "--list"))
