"""Samplers."""

from __future__ import annotations

from typing import Any

from benchmarks.frame import Contender, Family, Reach, Work

_COUNTS = {"num_samples": 200, "warmup": 200, "chains": 4, "max_depth": 8}
_FEW = {"num_samples": 50, "warmup": 50, "chains": 2, "max_depth": 8}
_JAX = "BNN_BENCH_JAX_PYTHON"
_PYRO, _NUMPYRO = "Pyro NUTS", "NumPyro NUTS, chains in turn"


def _contender(name: str, by: str, role: str = "beside", **settings: Any) -> Contender:
    return Contender(name, "sampling:effective", {"by": by, **settings}, role=role)


_CHEES = _contender(
    "bnn ChEES", "bnn", "own", sampler="chees", backend="inductor", num_samples=200, warmup=300, chains=64
)

FAMILY = Family(
    "sampling",
    "Effective draws per second",
    """1-20-1 (tanh), 200 rows, N(0, 1) weights, half-Cauchy noise scale. The least bulk ESS over the function's
values at 10 inputs, by seconds of everything but imports: capture, compilation (no caches), warm-up, draws.
NUTS: 4 chains of 200 + 200 draws, trees of at most 2^8 steps, for all; ChEES: 64 chains of 300 + 200 in one
program. Pyro's NUTS, which had not finished that in 150 seconds, has a row of its own: two chains of 50 + 50.""",
    (
        Work(
            "nuts",
            "1-20-1, 200 rows",
            "ESS/s",
            (
                _contender("bnn NUTS", "bnn", "own", sampler="nuts", backend="inductor", **_COUNTS),
                _CHEES,
                _contender(_NUMPYRO, "numpyro", "peer", python=_JAX, together="sequential", **_COUNTS),
                _contender(
                    "NumPyro NUTS, chains mapped", "numpyro", "peer", python=_JAX, together="vectorized", **_COUNTS
                ),
                _contender("BlackJAX NUTS", "blackjax", "peer", python=_JAX, **_COUNTS),
            ),
            rounds=1,
            larger_is_better=True,
            reaches=(
                Reach("NUTS, effective draws a second / NumPyro's NUTS", "bnn NUTS", (_NUMPYRO,), 1.0, at_most=False),
                Reach("chains in one graph (ChEES) / NumPyro's NUTS", "bnn ChEES", (_NUMPYRO,), 1.0, at_most=False),
            ),
        ),
        Work(
            "pyro",
            "1-20-1, 200 rows, few draws of NUTS",
            "ESS/s",
            (_CHEES, _contender(_PYRO, "pyro", "peer", limit=400.0, **_FEW)),
            rounds=1,
            larger_is_better=True,
            reaches=(Reach("chains in one graph (ChEES) / Pyro's NUTS", "bnn ChEES", (_PYRO,), 20.0, at_most=False),),
        ),
    ),
)
