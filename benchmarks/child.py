"""``python -m benchmarks.child MODULE:FUNCTION SETTINGS [--once FILE]``: a contender in a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

from benchmarks.frame import Contender
from benchmarks.processes import peak, serve


def main() -> None:
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    if sys.argv[3:4] != ["--once"]:
        serve(Contender(name, name, settings))
        return
    module, function = name.split(":")
    answer = getattr(importlib.import_module(f"benchmarks.{module}"), function)(**settings)
    Path(sys.argv[4]).write_text(json.dumps({**answer, "peak": peak()}))


if __name__ == "__main__":
    main()
