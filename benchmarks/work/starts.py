"""Imports, and the start of the command line."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Reach, Work

FAMILY = Family(
    "start",
    "Imports and the start of the command line",
    """Each in a fresh interpreter, files in the system's cache. "bnn, beyond torch and pyro" is `import bnn` and the names that a first
script uses (`BNN`, `fit`, `MeanField`, a prior, a likelihood), after torch and pyro.""",
    (
        Work(
            "import",
            "import",
            "ms",
            (
                Contender("bnn, beyond torch and pyro", "starts:imports", {"what": "bnn"}, role="own"),
                Contender("torch and pyro", "starts:imports", {"what": "before"}),
            ),
            rounds=5,
            reaches=(Reach("`import bnn` beyond torch and pyro, ms", "bnn, beyond torch and pyro", (), 200.0),),
        ),
        Work(
            "cli",
            "command line",
            "ms",
            (
                Contender("python -c pass", "starts:command", {"line": "-c pass"}, role="limit"),
                Contender("bnn --help", "starts:command", {"line": "-m bnn --help"}, role="own"),
                Contender("bnn fit --help", "starts:command", {"line": "-m bnn fit --help"}),
            ),
            rounds=5,
        ),
    ),
)
