"""The documentation tells the truth: its code runs and prints what it says, its quotations stand in the files."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from marks import some

import bnn

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; its line is for messages."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in FENCE.finditer(text)]


def programs(page: Path) -> list[tuple[Block, str | None]]:
    """The Python blocks of a page in order, each with the output that the page shows directly under it."""
    found = blocks(page)
    return [
        (block, after.text if after is not None and after.language == "text" else None)
        for block, after in zip(found, [*found[1:], None], strict=False)
        if block.language == "python"
    ]


PROGRAMS = {str(page.relative_to(ROOT)): program for page in PAGES if (program := programs(page))}
#: Pages whose programs take more than seven seconds each.
LONG = {
    *("docs/likelihoods.md", "docs/gallery.md", "docs/checkpoints.md", "docs/coming_from.md", "docs/conformal.md"),
    *("docs/scores.md", "docs/methods/flow.md", "docs/methods/gaussian.md"),
}
QUOTATIONS = [block for page in PAGES for block in blocks(page) if block.language == "py"]


# ---------------------------------------------------------------------------------------------------------- programs


@pytest.mark.parametrize("page", some(PROGRAMS, lambda page: page not in LONG))
def test_the_python_of_a_page_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    """The blocks of a page are one program, run in an empty folder; see `same_output` for how output is compared."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block, expected in PROGRAMS[page]:
        # Line numbers in a traceback are those of the page.
        exec(compile("\n" * block.line + block.text, str(block.page), "exec"), namespace)
        printed = capsys.readouterr().out
        if expected is not None:
            assert same_output(printed, expected), f"{block} prints\n{printed}and not\n{expected}"
        else:
            assert not printed.strip(), f"{block} prints something that the page does not show:\n{printed}"


def same_output(printed: str, expected: str) -> bool:
    """Equal but for spaces, and for numbers: these may differ by 2 %, or by three in their last printed digit.

    On one machine a fit is the same each time; elsewhere rounding may differ, and hundreds of steps make more of it.
    """
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", expected).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=True)
    return all(abs(float(a) - float(b)) <= max(0.02 * abs(float(b)), 3 * _last_digit(b)) for a, b in pairs)


def _last_digit(number: str) -> float:
    mantissa, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("RMSE 0.71", True),
        ("RMSE  0.73\n", True),
        ("RMSE 0.90", False),
        ("RMSE -0.71", False),
        ("MAE 0.71", False),
        ("RMSE 0.71 0.1", False),
    ],
)
def test_output_is_compared_by_words_and_numbers(printed, same):
    assert same_output(printed, "RMSE 0.71\n") is same


# -------------------------------------------------------------------------------------------------------- quotations


@pytest.mark.parametrize("block", QUOTATIONS, ids=str)
def test_a_quotation_stands_in_the_function_that_it_names(block):
    problem = misquoted(block.text)
    assert problem is None, f"{block}: {problem}"


def misquoted(text: str) -> str | None:
    """What is wrong with a quotation, if anything. Its first line is ``# FILE: FUNCTION`` or ``# FILE: CLASS.METHOD``.

    The others stand in that function, one directly after the other; ``...`` stands for lines left out. Indentation does
    not count.
    """
    first, *lines = text.strip().splitlines()
    named = re.fullmatch(r"# (\S+\.py): (\S+)", first)
    if named is None:
        return f"a quotation begins with '# FILE: FUNCTION', not {first!r}"
    source = function_source(ROOT / named[1], named[2])
    if source is None:
        return f"{named[1]} has no {named[2]}"
    have = [line.strip() for line in source]
    place, adjacent = 0, False
    for line in (line.strip() for line in lines):
        if line in ("", "..."):
            adjacent = False
            continue
        if line not in have[place:]:
            return f"{named[1]}, {named[2]}, does not have (or not after the line before) {line!r}"
        found = have.index(line, place)
        if adjacent and found != place:
            return f"{line!r} does not follow directly: put '...' before it"
        place, adjacent = found + 1, True
    return None


def function_source(path: Path, name: str) -> list[str] | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        members = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part]
        if not members:
            return None
        node = members[0]
    return text.splitlines()[node.lineno - 1 : node.end_lineno]


def test_the_mathematics_are_quoted():
    assert len(QUOTATIONS) >= 15


@pytest.mark.parametrize(
    "text",
    [
        "# bnn/model.py: BNN.forward\nresult = net(x)",
        "# bnn/model.py: BNN.backward\nresult = None",
        "# bnn/models.py: BNN.forward\nresult = None",
        "result = None",
        "# bnn/random.py: isolated\ntry:\nyield",
    ],
)
def test_a_wrong_quotation_is_found(text):
    assert misquoted(text) is not None


# -------------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [(a or b).partition("#")[0] for a, b in LINK.findall(text)]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert not missing, f"{page.relative_to(ROOT)} links to {missing}"


def test_every_page_is_in_the_table_of_contents():
    """That of `docs/`, or, of the folders that have one, of their own."""
    tables = [page for page in PAGES[1:] if page.name == "index.md"]
    links = {(page.parent / a).resolve() for page in tables for a, _ in LINK.findall(page.read_text(encoding="utf-8"))}
    left_out = [
        str(page.relative_to(ROOT))
        for page in PAGES[1:]
        if page != ROOT / "docs" / "index.md" and page.resolve() not in links
    ]
    assert not left_out, f"no index.md names {left_out}"


# -------------------------------------------------------------------------------------------------------------- files


def test_the_page_on_files_names_every_key_of_a_saved_posterior(model, regression, quick, tmp_path):
    quick(model, regression, bnn.MeanField(epochs=1)).save(tmp_path / "a")
    record = json.loads((tmp_path / "a" / "posterior.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page.partition("## posterior.json")[2], re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted([*record, "inputs"])  # that of uncertain inputs alone
    assert set(re.findall(r"`(\w+)`", dict(rows)["history"])) == set(record["history"])


# ------------------------------------------------------------------------------------------------------------ picture


def test_the_picture_can_be_made_and_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_images.py", "--quick", "--out", str(tmp_path)])
    runpy.run_path(str(ROOT / "docs" / "make_images.py"), run_name="__main__")
    made = {path.name for path in tmp_path.iterdir()}
    kept = list((ROOT / "docs" / "images").glob("*.png"))
    assert made == {path.name for path in kept}
    assert all(path.stat().st_size < 150_000 for path in kept)
