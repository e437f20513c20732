"""Two ranks against one."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Work

_ONE, _TWO = "one rank", "two ranks"


def _step(inputs: int, hidden: int, batch: int, steps: int) -> Work:
    what = {"inputs": inputs, "hidden": hidden, "batch": batch, "steps": steps}
    return Work(
        f"{inputs}-{hidden}-{batch}",
        f"{inputs}-{hidden}-{hidden}-1, {batch:,} rows a step",
        "ms a step",
        (
            Contender(_ONE, "ranks:step", {"ranks": 1, **what}, role="limit"),
            Contender(_TWO, "ranks:step", {"ranks": 2, **what}, role="own"),
        ),
        rounds=3,
    )


FAMILY = Family(
    "ranks",
    "Two ranks against one",
    """Mean-field on `graph`, gloo over the loopback device, one thread a process, the same rows a step in all: two
ranks have half of them each. Bytes a step stand on the page of scaling.""",
    (_step(8, 50, 128, 60), _step(8, 50, 8192, 20), _step(64, 256, 1024, 20), _step(256, 1024, 1024, 4)),
)
