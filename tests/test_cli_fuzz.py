"""Fuzzing of the command line: whatever is given, a result or one sentence, and never a traceback.

By default the parts before a fit run whole (options, settings, reading, planning, parting), and the fit itself does
nothing; a few dozen cases, and thousands of the slow test, go all the way.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import tomllib
from pathlib import Path

import polars as pl
import pytest
from command_line import QUICK, bnn, files, homes, refused
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from bnn.cli import errors, fitting, rows
from bnn.cli.errors import UserError
from bnn.cli.settings import Settings, from_toml, resolved
from bnn.tables import TableError, parse

FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)  # fmt: skip
FEW = settings(FUZZ, max_examples=12)
MANY = settings(FUZZ, max_examples=1500)

CELLS = st.one_of(
    st.integers(-5, 5).map(str), st.floats(allow_nan=True).map(repr), st.sampled_from(
        ["", "NA", "nan", "inf", "-1e999", "a", "b", "True", "false",
         "2024-02-30", "2024-01-31T25:61", "1,5", '"', '""',
         "0x1F", "1_000", " 7 ", "\t", "é", "\ufeff", "\u2028", "=1+1", "9" * 400, "x" * 3000]),
    st.text(max_size=6))  # fmt: skip
NAMES = st.one_of(st.sampled_from(["x", "y", "z", "id", "", " y", "Y", "a b", "é"]), st.text(max_size=5))


@st.composite
def tables(draw) -> bytes:
    """A CSV that is more or less one: mostly regular columns, some wild cells, some rows of another length."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4))
    rows = draw(st.sampled_from([0, 1, 9, 10, 12, 30]))
    kinds = [draw(st.sampled_from(["count", "number", "name", "flag", "wild", "same", "none"])) for _ in names]
    own = {
        "count": lambda i: str(i), "number": lambda i: f"{(i * 7919) % 101 / 7:.3f}", "name": lambda i: "abc"[i % 3],
        "flag": lambda i: str(i % 2), "same": lambda i: "1", "none": lambda i: "",
    }  # fmt: skip
    lines = []
    for i in range(rows):
        cells = [draw(CELLS) if kind == "wild" else own[kind](i) for kind in kinds]
        lines.append(cells)
    for _ in range(draw(st.integers(0, 2))):
        if lines:
            row = lines[draw(st.integers(0, len(lines) - 1))]
            row[draw(st.integers(0, len(row) - 1)) if row else 0 :] = draw(st.lists(CELLS, max_size=5))
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(
        draw(st.sampled_from([",", ",", ",", ";", "\t"])).join(cells) for cells in [names, *lines]
    )
    return text.encode("utf-8", "surrogatepass")


@st.composite
def mutations(draw) -> bytes:
    """A table with bytes flipped, cut out, doubled or put in."""
    content = bytearray(homes(14).encode())
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "double", "put"]))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 60))]
        elif kind == "double":
            content[at:at] = content[at : at + draw(st.integers(1, 60))]
        else:
            content[at:at] = draw(st.binary(max_size=6))
    return bytes(content)


@st.composite
def mild(draw) -> bytes:
    """A regular table whose numbers and texts are odd, and seldom wrong: most of these are fitted."""
    rows = draw(st.sampled_from([12, 15, 30]))
    odd = st.sampled_from(["", "NA", "0", "-0.0", " 7 ", "1e-300", "1e30", "-3e8", "1_000", "inf"])
    own = {
        "x": lambda i: f"{(i * 7919) % 101 / 7:.3f}", "name": lambda i: "ab\u00e9"[i % 3],
        "flag": lambda i: ["true", "False"][i * 5 % 7 % 2], "day": lambda i: f"2024-01-{i % 27 + 1:02d}",
        "y": draw(st.sampled_from([lambda i: str(i * i % 17), lambda i: "no" if i % 3 else "yes, sir",
                                   lambda i: str(i % 2), lambda i: f"{i % 5}e{i % 4}"])),
    }  # fmt: skip
    names = draw(st.permutations([*draw(st.sets(st.sampled_from(["x", "name", "flag", "day"]), min_size=1)), "y"]))
    lines = [[own[name](i) for name in names] for i in range(rows)]
    for _ in range(draw(st.integers(0, 4))):
        lines[draw(st.integers(0, rows - 1))][draw(st.integers(0, len(names) - 1))] = draw(odd)
    return "\n".join(",".join(f'"{cell}"' for cell in cells) for cells in [names, *lines]).encode()


@contextlib.contextmanager
def somewhere():
    """An empty folder to be in."""
    before, folder = Path.cwd(), Path(tempfile.mkdtemp())
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def result_or_sentence(*arguments, stdin=None) -> bool:
    """Whether there was a result; what there is else is one sentence."""
    result = bnn(*arguments, stdin=stdin)
    if result.exit_code == 0:
        return True
    refused(result)
    return False


@pytest.fixture
def no_fit(monkeypatch):
    """The fit itself does nothing."""

    def nothing(self, model):
        self.place.forget()
        return {}

    monkeypatch.setattr(fitting._Work, "run", nothing)


def fitted(content: bytes, target: str, *options: str) -> None:
    """From a table to a run, or to one sentence and nothing on the disk."""
    with somewhere() as folder:
        (folder / "t.csv").write_bytes(content)
        done = result_or_sentence("fit", "t.csv", "--target", target, *QUICK, "--out", "runs/a", *options)
        event("a result" if done else "a refusal")  # pytest --hypothesis-show-statistics counts them
        found = files(folder)
        if not done:
            assert found == {"t.csv"}
        elif "runs/a" in found:
            assert result_or_sentence("predict", "runs/a", "t.csv")
            result_or_sentence("evaluate", "runs/a", "t.csv")


@FUZZ
@given(
    content=st.one_of(tables(), mutations(), st.binary(max_size=200)),
    target=st.sampled_from(["y", "x", "price", "dear"]),
)
def test_random_tables_up_to_the_fit(no_fit, content, target):
    fitted(content, target)


@FEW
@given(content=mild())
def test_random_tables_with_the_fit(content):
    fitted(content, "y")


@pytest.mark.slow
@MANY
@given(content=st.one_of(tables(), mutations()), target=st.sampled_from(["y", "x", "price", "dear"]))
def test_many_random_tables_with_the_fit(content, target):
    fitted(content, target)


@pytest.mark.slow
@settings(FUZZ, max_examples=300)
@given(content=mild())
def test_many_tables_that_are_nearly_right(content):
    fitted(content, "y")


@pytest.mark.parametrize(
    ("owner", "name", "old", "new", "seen"),
    [
        (rows, "load", "except TableError as error:", "except ZeroDivisionError as error:", AssertionError),
        (errors, "_told", "said, code = _sentence(error)", "raise error", UserError),
    ],
)
def test_errors_that_are_not_put_into_words_turn_the_fuzz_red(no_fit, patch_line, owner, name, old, new, seen):
    """Controls: a line of the conversion is taken out."""
    patch_line(owner, name, old, new)
    with pytest.raises(seen):
        fitted(b"x,y\n1\n", "y")  # a short row


OPTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(
                ["--task", "--features", "--drop", "--categorical", "--method", "--hidden", "--activation", "--epochs",
                 "--lr", "--batch-size", "--prior",
                 "--likelihood", "--set", "--seed", "--test-share", "--interval", "--device",
                 "--compile", "--checkpoint-seconds", "--target", "--config", "-c"]),
            st.one_of(st.text(max_size=8), st.integers().map(str), st.floats().map(repr), st.sampled_from(
                ["auto", "map", "laplace", "classification", "area,rooms", "name", "price", "none", "3,3", "tanh",
                 "normal:2", "gamma", "members=2", "temperature=0.5", "0.5", "cpu", "eager"])),
        ),
        st.tuples(st.sampled_from(["--refit", "--no-checks", "--force", "--json", "--quiet", "--wat", "extra"])),
    ), max_size=4,
)  # fmt: skip


@FUZZ
@given(options=OPTIONS)
def test_random_options_up_to_the_fit(no_fit, options):
    with somewhere() as folder:
        (folder / "t.csv").write_text(homes(20))
        given_ = [word.replace("\0", "") for option in options for word in option]
        if not result_or_sentence("fit", "t.csv", "--target", "price", "--out", "runs/a", *given_):
            assert files(folder) == {"t.csv"}


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=2)),
    max_leaves=4,
)


@FUZZ
@given(name=st.sampled_from([*Settings.__dataclass_fields__]), value=VALUES)
def test_random_settings_are_settings_or_a_sentence(name, value):
    value = tuple(value) if isinstance(value, list) else value
    with contextlib.suppress(UserError):
        resolved({"data": "d", "target": "t", name: value})


@FUZZ
@given(
    target=st.text(), drop=st.lists(st.text(), max_size=3), hidden=st.lists(st.integers(1, 99), max_size=3),
    lr=st.none() | st.floats(1e-300, 1e300),
    values=st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text(), max_size=3),
)  # fmt: skip
def test_settings_in_a_file_come_back(target, drop, hidden, lr, values):
    before = Settings(data="d.csv", target=target, drop=tuple(drop), hidden=tuple(hidden), lr=lr, set=values)
    text = before.to_toml({"method": "a note\nof two lines"})
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert tomllib.loads(text)["target"] == target
    path = Path(tempfile.mkstemp(suffix=".toml")[1])
    path.write_text(text, encoding="utf-8", newline="")
    assert resolved(from_toml(path)) == before
    path.unlink()


@FUZZ
@given(content=st.binary(max_size=300), form=st.sampled_from(["text", None]))
def test_random_bytes_are_a_table_or_a_sentence(content, form):
    with contextlib.suppress(TableError):
        table = parse(content, "t", form)
        for name in table.names:
            with contextlib.suppress(TableError):
                table.values(name, table.kind(name))


@FUZZ
@given(data=st.data(), form=st.sampled_from(["parquet", "feather"]))
def test_binary_tables_with_flipped_bytes(data, form, capfd):
    frame = pl.read_csv(io.StringIO(homes(14)))
    buffer = io.BytesIO()
    frame.write_parquet(buffer) if form == "parquet" else frame.write_ipc(buffer)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(4, len(content) - 7))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(TableError):
        table = parse(bytes(content), "t", form)
        for name in table.names:
            with contextlib.suppress(TableError):
                table.values(name, table.kind(name))
    assert "panicked" not in capfd.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "homes.csv").write_text(homes(20))
    assert bnn("fit", folder / "homes.csv", "--target", "price", "--out", folder / "a", *QUICK).exit_code == 0
    return folder / "a"


@settings(FUZZ, max_examples=40)
@given(content=st.one_of(mutations(), tables()))
def test_random_tables_to_predict(run, content):
    if result_or_sentence("predict", run, "-", "--json", stdin=content):
        return
    result = bnn("predict", run, "-", "--json", stdin=content)
    assert json.loads(result.stdout)["exit_code"] == 2
