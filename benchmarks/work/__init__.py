"""The pieces of work, a family a module: tables of who does what, that import neither torch nor bnn."""

from __future__ import annotations

from benchmarks.frame import Family, Work
from benchmarks.work import (
    ensembles,
    growth,
    laplaces,
    latency,
    memories,
    predictions,
    ranks,
    sampling,
    starts,
    steps,
    yacht,
)

DEFAULT = (
    "step.tiny,step.small,step.mnist,ivon,predict.tiny-100-1000,predict.small-100-1000,predict.mnist-100-1000,"
    "predict.mnist-100-1,ensemble.inductor,laplace,start"
)

_MODULES = (yacht, predictions, ensembles, laplaces, sampling, memories, starts, growth, ranks, latency)

FAMILIES: dict[str, Family] = {
    family.name: family for family in (steps.FAMILY, steps.IVON, *(module.FAMILY for module in _MODULES))
}


def selected(names: str) -> list[tuple[Family, list[Work]]]:
    """Pieces of work by ``FAMILY`` or ``FAMILY.NAME``, separated by commas; empty: the default selection.

    Raises:
        SystemExit: There is none of that name.
    """
    found: dict[str, list[Work]] = {}
    for name in filter(None, (names or DEFAULT).split(",")):
        family, _, one = name.strip().partition(".")
        works = [w for w in FAMILIES[family].works if one in ("", w.name)] if family in FAMILIES else []
        if not works:
            raise SystemExit(f"no piece of work is called {name!r}: --list names them")
        found.setdefault(family, []).extend(works)
    return [(FAMILIES[family], works) for family, works in found.items()]
