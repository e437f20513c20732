"""Ten members."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Reach, Work


def _work(backend: str) -> Work:
    own = {"members": 10, "backend": backend}
    title = f"10 members, 8-50-1, {backend}"
    return Work(
        backend,
        title,
        "ms an epoch of all",
        (
            Contender("in turn", "ensembles:in_turn", own, role="limit"),
            Contender("at once", "ensembles:together", own, role="own"),
        ),
        reaches=(Reach(f"{title} / 10 fits in turn", "at once", ("in turn",), 0.2),),
    )


FAMILY = Family(
    "ensemble",
    "Ten members of an ensemble",
    """500 rows in batches of 32, maximum a posteriori with Adam; both sides by the loop behind `bnn.fit`. Set-up
(capture, compilation from an empty cache) stands in the file of rounds as `setup_s`: one for all members,
against one and nine that find inductor's cache.""",
    (_work("inductor"), _work("graph")),
)
