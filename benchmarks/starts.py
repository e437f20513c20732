"""What it costs to begin: imports and the command line, each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from benchmarks.frame import Ready, timed
from benchmarks.processes import environment, fresh


def importing() -> dict[str, Any]:
    """Seconds of torch and pyro, of bnn after them, and of the names that a first script uses."""
    started = time.perf_counter()
    import pyro
    import torch

    del pyro, torch
    middle = time.perf_counter()
    import bnn

    end = time.perf_counter()
    _ = bnn.BNN, bnn.fit, bnn.MeanField, bnn.priors.Normal, bnn.likelihoods.Gaussian
    return {"before": middle - started, "bnn": end - middle, "names": time.perf_counter() - end}


def imports(what: str) -> Ready:
    """``"bnn"``: what it adds; ``"names"``: what using it adds to that; ``"before"``: torch and pyro."""
    return Ready(lambda: 1e3 * float(fresh("starts:importing", {})[what]))


def command(line: str) -> Ready:
    """A whole run of a command."""

    def run() -> None:
        subprocess.run([sys.executable, *line.split()], check=True, capture_output=True, env=environment(1))

    return Ready(lambda: timed(run, 1))
