"""A piece of work, measured: contenders made ready, their losses checked, and rounds in turn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.frame import Contender, Gap, Options, Ready, Work, make, summary
from benchmarks.problems import PROBLEMS, check
from benchmarks.processes import Child


def run(work: Work, options: Options, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """The row of a piece of work: figures by round, what follows from them, gaps and notes."""
    _threads(options.threads)
    gaps: dict[str, str] = {}
    notes: dict[str, dict[str, Any]] = {}
    ready: dict[str, Ready] = {}
    children: list[Child] = []
    try:
        for contender in work.contenders:
            if options.only and not any(part in contender.name for part in options.only):
                continue
            tell(f"{work.title}: {contender.name}")
            try:
                found = _ready(contender, options, children)
                _check(work, found)
            except Gap as gap:
                gaps[contender.name] = str(gap)
                tell(f"  a gap: {gap}")
                continue
            ready[contender.name], notes[contender.name] = found, found.notes
        figures = _rounds(work, ready, options, gaps)
    finally:
        for child in children:
            child.close()
    return {
        "work": work.name,
        "title": work.title,
        "unit": work.unit,
        "contenders": [c.name for c in work.contenders if c.name in figures or c.name in gaps],
        "gaps": gaps,
        "notes": {name: note for name, note in notes.items() if note and name in figures},
        "checked": [name for name, one in ready.items() if work.problem and one.loss is not None],
        "rounds": figures,
        **summary(work, figures),
    }


def _ready(contender: Contender, options: Options, children: list[Child]) -> Ready:
    if contender.python == "here":
        return make(contender)
    child = Child(contender, options)
    children.append(child)
    return child.ready()


def _check(work: Work, ready: Ready) -> None:
    """That the loss is the one of the work.

    Raises:
        Gap: It is another: the contender would do other work.
    """
    if work.problem is None or ready.loss is None:
        return
    wrong = check(PROBLEMS[work.problem], ready.loss, bayesian=ready.terms == "elbo")
    if wrong:
        raise Gap(f"it computes another loss: {wrong}")


def _rounds(work: Work, ready: dict[str, Ready], options: Options, gaps: dict[str, str]) -> dict[str, list[float]]:
    """Figures by contender, of rounds in turn. Who takes long, in all, makes three rounds only."""
    figures: dict[str, list[float]] = {name: [] for name in ready}
    spent = dict.fromkeys(ready, 0.0)
    for done in range(options.rounds or work.rounds):
        for name, contender in ready.items():
            if name in gaps or (done >= 3 and spent[name] > options.seconds):
                continue
            started = time.perf_counter()
            try:
                figures[name].append(contender.round())
            except Gap as gap:
                gaps[name] = str(gap)
                print(f"{name}: a gap: {gap}", file=sys.stderr, flush=True)
            spent[name] += time.perf_counter() - started
    return {name: values for name, values in figures.items() if values and name not in gaps}


def _threads(threads: int) -> None:
    """Of torch, in this process; children have theirs from the environment."""
    import torch

    torch.set_num_threads(threads)
