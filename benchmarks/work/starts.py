"""Imports, and the start of the command line."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Reach, Work

FAMILY = Family(
    "start",
    "Imports and the start of the command line",
    """Each in a fresh interpreter, files in the system's cache. `import bnn` is what it takes after torch and
pyro; public names are imported when they are first used: "its names" are `BNN`, `fit`, `MeanField`, a prior
and a likelihood, after that.""",
    (
        Work(
            "import",
            "import",
            "ms",
            (
                Contender("import bnn", "starts:imports", {"what": "bnn"}, role="own"),
                Contender("its names", "starts:imports", {"what": "names"}),
                Contender("torch and pyro", "starts:imports", {"what": "before"}),
            ),
            rounds=5,
            reaches=(Reach("`import bnn` beyond torch and pyro, ms", "import bnn", (), 200.0),),
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
