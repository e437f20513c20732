"""What a run found, as JSON and as Markdown."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.frame import Family, Gap, Options, machine
from benchmarks.processes import fresh
from benchmarks.work import FAMILIES

Row = dict[str, Any]
#: Pieces of work that stand beside each other in a table on its side.
_BESIDE = 3


def save(folder: Path, family: Family, rows: Sequence[Row], options: Options) -> None:
    """The rows of a family, with those of its other pieces of work that the file has already, as ``NAME.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{family.name}.json"
    kept: dict[str, Row] = {}
    if path.exists():
        kept = {row["work"]: row for row in json.loads(path.read_text())["rows"]}
    where = machine(options)
    for python in options.pythons.values():
        if python != sys.executable:
            with contextlib.suppress(Gap, OSError):
                where["versions"] |= fresh("frame:versions", {}, python=python)["versions"]
    kept |= {row["work"]: {"machine": where, **row} for row in rows}
    ordered = [kept[work.name] for work in family.works if work.name in kept]
    path.write_text(json.dumps({"family": family.name, "rows": _rounded(ordered)}, indent=1) + "\n")


def read(folder: Path) -> dict[str, list[Row]]:
    """Rows by family, of the files that are there."""
    files = {name: folder / f"{name}.json" for name in FAMILIES}
    return {name: json.loads(path.read_text())["rows"] for name, path in files.items() if path.exists()}


def table(family: Family, rows: Sequence[Row]) -> str:
    """A row for each piece of work, a column for each contender: medians (quartiles), ratios below them."""
    names = list(dict.fromkeys(n for row in rows for n in row["contenders"]))
    unit = rows[0]["unit"]
    wide = f"| {unit} |"
    if len(names) > len(rows) + 3:  # more contenders than fit a page's width: on their side
        if len(rows) > _BESIDE:
            return "\n".join(table(family, rows[at : at + _BESIDE]) for at in range(0, len(rows), _BESIDE))
        lines = [wide + "".join(f" {row['title']} | ratios |" for row in rows), "|---|" + "---|---|" * len(rows)]
        lines += [
            f"| {name} |" + "".join(f" {_cell(row, name)} | {_ratios(row, name)} |" for row in rows) for name in names
        ]
    else:
        lines = [wide + "".join(f" {name} |" for name in names), "|---|" + "---|" * len(names)]
        for row in rows:
            lines.append(f"| {row['title']} |" + "".join(f" {_cell(row, n)}{_below(row, n)} |" for n in names))
    return "\n".join(lines) + "\n"


def _cell(row: Row, name: str) -> str:
    if name in row["figures"]:
        low, middle, high = row["figures"][name]
        return f"{_short(middle)} ({_short(low)} to {_short(high)})"
    return "gap" if name in row["gaps"] else ""


def _ratios(row: Row, name: str) -> str:
    found = [f"{_short(v[1])} of {k.split(' / ')[1]}" for k, v in row["to_limit"].items() if k.startswith(f"{name} / ")]
    if name in row["to_best_peer"]:
        found.append(f"{_short(row['to_best_peer'][name][1])} of {row['best_peer']}")
    return "; ".join(found)


def _below(row: Row, name: str) -> str:
    found = _ratios(row, name)
    return f"<br>{found}" if found else ""


def reaches(found: dict[str, list[Row]]) -> str:
    """The goals, what was measured, and whether they are reached."""
    lines = ["| what | goal | measured (quartiles) | |", "|---|---|---|---|"]
    for rows in found.values():
        for row in rows:
            for reach in row["reaches"]:
                goal = f"{'at most' if reach['at_most'] else 'at least'} {_short(reach['limit'])}"
                if reach["measured"] is None:
                    lines.append(f"| {reach['what']} | {goal} | not measured | |")
                    continue
                low, middle, high = reach["measured"]
                told = "reached" if reach["reached"] else "**not reached**"
                lines.append(
                    f"| {reach['what']} | {goal} | {_short(middle)} ({_short(low)} to {_short(high)}) | {told} |"
                )
    return "\n".join(lines) + "\n"


def page(found: dict[str, list[Row]]) -> str:
    """docs/benchmarks.md."""
    parts = [_INTRODUCTION, "## Goals, and what was measured\n\n" + reaches(found)]
    for name, rows in found.items():
        family = FAMILIES[name]
        part = [f"## {family.title}\n\n{family.text}\n"]
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(row["unit"], []).append(row)
        part += [table(family, group) for group in groups.values()]
        gaps = {(n, why) for row in rows for n, why in row["gaps"].items()}
        part += [f"A gap: {n}: {why}.\n" for n, why in sorted(gaps)]
        told = {(n, note["loss"]) for row in rows for n, note in row["notes"].items() if "loss" in note}
        part += [f"Of {n}: {note}.\n" for n, note in sorted(told)]
        part.append(f"{_machine(rows)} [All rounds](measurements/{name}.json).\n")
        parts.append("\n".join(part))
    return "\n".join(parts)


def _machine(rows: Sequence[Row]) -> str:
    one = rows[0]["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
    threads = "; ".join(f"{row['title']}: {row['machine']['threads']}, load {row['machine']['load']}" for row in rows)
    return f"{one['processor']}, {one['cores']} cores, Python {one['python']}; {versions}. Threads: {threads}."


def _short(number: float) -> str:
    """Three digits."""
    if number == 0 or not abs(number) < float("inf"):
        return str(number)
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def _rounded(value: Any) -> Any:
    """Six digits: more are noise, and make the files longer."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


_INTRODUCTION = """# Benchmarks

Everything on this page is written by `python -m benchmarks --page` from the files in `docs/measurements/`, which
`python -m benchmarks` makes (`make bench ARGS="--work step.tiny"`; `--list` names the pieces of work). Contenders
other than Pyro are optional: `pip install -c constraints.txt -e '.[bench]'`; one that is missing is a gap. NumPyro
and BlackJAX may have an environment of their own: `--jax-python PATH`.

Figures are medians of interleaved rounds in one run, with quartiles: each round measures every contender once, and
a ratio is the median over rounds of the ratio within a round. They are those of one machine, a shared one of two
cores: run them on your own. Where a step's time goes, and what was tried: [performance](design/performance.md).
"""
