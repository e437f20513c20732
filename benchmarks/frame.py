"""The frame of every benchmark: pieces of work, contenders, interleaved rounds, and figures made of them.

Nothing here needs more than Python: the interpreter of a peer may have neither torch nor bnn.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Gap(Exception):
    """A contender cannot take part; the message says why, and stands in the table."""


@dataclass(frozen=True)
class Ready:
    """A contender before its first round.

    Args:
        round: Does a round's work and gives its figure, in the unit of the piece of work.
        loss: Its training loss per datum on the first batch at `problems.Problem.point`: ``loss(size) -> values`` of
            repeated evaluations; None: there is none to compare.
        terms: Of that loss: ``"elbo"``, or ``"nll"`` alone.
        notes: What the reader is to know: where its loss differs by design, what it found.
    """

    round: Callable[[], float]
    loss: Callable[[float], Sequence[float]] | None = None
    terms: str = "elbo"
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """Who does the work.

    Args:
        name: Of its column.
        make: ``"module:function"`` within `benchmarks`, called with `settings`; it returns a `Ready`.
        settings: Keywords, as JSON.
        python: ``"here"``: in this process; else the key of another interpreter (`Options.pythons`), where the
            contender lives in a process of its own.
        role: ``"own"``, ``"limit"`` (what the work would cost at best, or done plainly), ``"peer"`` or ``"beside"``
            (neither: another form of ours, or for information).
    """

    name: str
    make: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    python: str = "here"
    role: str = "beside"


@dataclass(frozen=True)
class Reach:
    """A ratio that was set as a goal: `own` to the best of `bases`; without bases, the figure itself."""

    what: str
    own: str
    bases: tuple[str, ...]
    limit: float
    #: Whether the ratio is to stay below the limit; else above it.
    at_most: bool = True


@dataclass(frozen=True)
class Work:
    """A piece of work: a row.

    Args:
        name: To select it by: ``family.name`` on the command line.
        title: Of its row.
        unit: Of a figure; smaller is better, unless `larger_is_better`.
        contenders: In the order of the columns.
        rounds: How often each is measured, in turn.
        problem: Whose loss those of the contenders are held against (`problems.check`); None: they have none.
    """

    name: str
    title: str
    unit: str
    contenders: tuple[Contender, ...]
    rounds: int = 11
    larger_is_better: bool = False
    problem: str | None = None
    reaches: tuple[Reach, ...] = ()


@dataclass(frozen=True)
class Family:
    """Pieces of work that stand in one table."""

    name: str
    title: str
    text: str
    works: tuple[Work, ...]


@dataclass(frozen=True)
class Options:
    """How a run goes."""

    threads: int
    #: Instead of each work's own number.
    rounds: int | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)
    #: Only contenders in whose name one of these occurs.
    only: tuple[str, ...] = ()
    #: Rounds of a contender end when they have taken this long in all, three of them at least.
    seconds: float = 60.0


def timed(work: Callable[[], Any], count: float) -> float:
    """Milliseconds of a unit, of which `work` does so many. The one place where a clock is read around work."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) / count * 1e3


def make(contender: Contender) -> Ready:
    """The contender, in this process.

    Raises:
        Gap: It is not installed, or cannot do this work.
    """
    module, function = contender.make.split(":")
    try:
        return getattr(importlib.import_module(f"benchmarks.{module}"), function)(**contender.settings)
    except ImportError as error:
        raise Gap(f"not installed: {error}") from error


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    found = sorted(values)
    return found[len(found) // 4], statistics.median(found), found[-1 - len(found) // 4]


def ratio(own: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios of two contenders, round by round."""
    return quartiles([a / b for a, b in zip(own, base, strict=False)])


def summary(work: Work, figures: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What a row tells: of every contender median and quartiles, ratios to the limit, ours to the best peer."""
    names = {role: [c.name for c in work.contenders if c.role == role and c.name in figures] for role in ROLES}
    medians = {name: quartiles(values)[1] for name, values in figures.items()}
    best = (max if work.larger_is_better else min)(names["peer"], key=lambda n: medians[n], default=None)
    row: dict[str, Any] = {
        "best_peer": best,
        "figures": {name: list(quartiles(values)) for name, values in figures.items()},
        "to_limit": {
            f"{name} / {limit}": list(ratio(values, figures[limit]))
            for limit in names["limit"]
            for name, values in figures.items()
            if name != limit
        },
        "to_best_peer": {name: list(ratio(figures[name], figures[best])) for name in names["own"] if best is not None},
    }
    row["reaches"] = [_reach(reach, figures, medians) for reach in work.reaches]
    return row


ROLES = ("own", "limit", "peer", "beside")


def _reach(reach: Reach, figures: Mapping[str, Sequence[float]], medians: Mapping[str, float]) -> dict[str, Any]:
    bases = [name for name in reach.bases if name in figures]
    told: dict[str, Any] = {"what": reach.what, "limit": reach.limit, "at_most": reach.at_most}
    if reach.own not in figures or (reach.bases and not bases):
        return {**told, "measured": None, "reached": None}
    base = (min if reach.at_most else max)(bases, key=lambda name: medians[name], default=None)
    found = quartiles(figures[reach.own]) if base is None else ratio(figures[reach.own], figures[base])
    reached = found[1] <= reach.limit if reach.at_most else found[1] >= reach.limit
    return {**told, "own": reach.own, "base": base, "measured": list(found), "reached": reached}


def machine(options: Options) -> dict[str, Any]:
    """Where and with what a run was made."""
    import platform

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions(),
    }


def versions() -> dict[str, dict[str, str]]:
    """Of the packages that take part, as far as this interpreter has them, under ``"versions"``."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return {"versions": found}


PACKAGES = (
    "torch", "pyro-ppl", "numpy", "tyxe", "blitz-bayesian-pytorch", "torchbnn", "bayesian-torch", "posteriors",
    "torch-uncertainty", "ivon-opt", "laplace-torch", "jax", "numpyro", "blackjax", "nutpie",
)  # fmt: skip


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"
