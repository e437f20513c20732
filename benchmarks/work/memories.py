"""Memory."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Reach, Work

_PLAIN = "plain Adam"


def _contender(name: str, who: str, role: str = "beside", **settings: str) -> Contender:
    return Contender(name, "memories:beyond", {"who": who, **settings}, role=role)


FAMILY = Family(
    "memory",
    "Memory at the peak of a fit, 10 million weights",
    """1000-2500-2850-100, 160 rows in batches of 32, two epochs, each fit in a process of its own; the peak that
the system tells (VmHWM) beyond what the process had before the fit (torch, bnn, the data), the weights of the net, 40
MB, included. Capture, compilation and the posterior that a fit gives back are part of it.""",
    (
        Work(
            "fit",
            "a fit",
            "MB",
            (
                _contender(_PLAIN, "plain", "limit"),
                _contender("MeanField", "mean_field", "own"),
                _contender("IVON", "ivon", "own"),
                _contender("MAP", "map"),
                _contender("MeanField, graph", "mean_field", backend="graph"),
            ),
            rounds=3,
            reaches=(
                Reach("peak memory, 10 million weights, mean-field / plain Adam", "MeanField", (_PLAIN,), 2.8),
                Reach("peak memory, 10 million weights, IVON / plain Adam", "IVON", (_PLAIN,), 1.6),
            ),
        ),
    ),
)
