"""A whole fit."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Reach, Work

#: After which the held-out log-density moves no more than from seed to seed; at 125, 250, 500, 750, 1,000, 2,000 and
#: 3,000 epochs it was 0.25, 0.72, 0.91, 1.02, 1.02, 0.99 and 1.04.
EPOCHS = 1000
_SVI = "Pyro SVI(AutoNormal)"


def _contender(name: str, who: str, role: str = "beside", **settings: str) -> Contender:
    return Contender(name, "yacht:whole", {"who": who, "epochs": EPOCHS, **settings}, role=role)


FAMILY = Family(
    "fit",
    "A whole fit, everything counted",
    f"""Yacht (UCI; the first of the 20 published splits), 6-50-1, mean-field, {EPOCHS:,} epochs of batches of 32,
Adam at 0.01: from the start of the interpreter to the held-out log-density of 200 draws. Imports, capture
and compilation (no caches) are counted. Without `--data-dir` generated rows of the same shape are fitted.""",
    (
        Work(
            "yacht",
            "yacht, 6-50-1",
            "s",
            (
                _contender("bnn, auto", "bnn", "own"),
                _contender("bnn, inductor", "bnn", backend="inductor"),
                _contender(_SVI, "pyro", "peer"),
            ),
            rounds=2,
            reaches=(Reach("whole fit of yacht / Pyro SVI(AutoNormal)", "bnn, auto", (_SVI,), 0.15),),
        ),
    ),
)
