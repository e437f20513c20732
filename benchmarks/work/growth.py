"""Growth with parameters and with rows; with draws: the family `predict`."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Work

_WIDTHS = {1e3: (25, 100), 1e4: (95, 100), 1e5: (311, 30), 1e6: (995, 5), 1e7: (3157, 2)}


def _parameters(size: float) -> Work:
    hidden, steps = _WIDTHS[size]
    settings = {"hidden": hidden, "steps": steps}
    weights = 8 * hidden + hidden + hidden * hidden + hidden + hidden + 1
    return Work(
        f"parameters-{size:.0e}".replace("e+0", "e"),
        f"8-{hidden}-{hidden}-1, {weights:,} weights, batch 128",
        "ms a step",
        (
            Contender("plain PyTorch", "growth:parameters", {"who": "plain", **settings}, role="limit"),
            Contender("MeanField", "growth:parameters", {"who": "bnn", **settings}, role="own"),
        ),
        rounds=5,
    )


def _rows(count: int) -> Work:
    contender = Contender("MeanField, graph", "growth:rows", {"count": count}, role="own")
    return Work(f"rows-{count}", f"8-50-50-1, {count:,} rows on disk", "us a row, an epoch", (contender,), rounds=1)


FAMILY = Family(
    "growth",
    "Growth with parameters and with rows",
    """Parameters: a step of 8-h-h-1 at batch 128. Rows: an epoch over rows in `bnn.streams.MemoryMapped` files, in
batches of 4,096, in a process of its own; its peak of memory, imports included, stands in the rounds' file
as `peak_mb`. Growth with draws is in the table of predictions.""",
    (*(_parameters(size) for size in _WIDTHS), *(_rows(10**k) for k in range(2, 8))),
)
