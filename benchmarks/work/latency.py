"""Latency."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Work

_NAMES = ("predict", "predict, quantiles", "exported", "exported, quantiles", "distilled", "plain forward")


def _work(rows: int) -> Work:
    contenders = tuple(
        Contender(
            name,
            "latency:call",
            {"name": name, "draws": 100, "rows": rows},
            role="own" if name == "exported" else "beside",
        )
        for name in _NAMES
    )
    return Work(f"rows-{rows}", f"{rows:,} rows", "ms", contenders, rounds=7)


FAMILY = Family(
    "latency",
    "Latency of predictions in production",
    """100 draws of 8-50-50-1. `predict` and the file that `posterior.export` writes give mean and standard
deviation, and where it says so three quantiles; `distilled` is a student of `bnn.distil`, `plain forward`
one pass of the net.""",
    tuple(_work(rows) for rows in (1, 10, 100, 1000, 10_000)),
)
