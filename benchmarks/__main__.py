"""``python -m benchmarks``: time pieces of work, each contender in turn, and write what was found.

    python -m benchmarks                                  # the default selection, a quarter of an hour on two cores
    python -m benchmarks --work step.tiny,predict         # pieces of work, or whole families
    python -m benchmarks --jax-python ~/jax/bin/python    # where JAX has an environment of its own
    python -m benchmarks --page                           # docs/benchmarks.md anew, from docs/measurements

Rounds are interleaved: each measures every contender once, so that what else the machine does hits all of them; a ratio
is the median over rounds of the ratio within a round. A contender that is not there is a gap in the table.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

from benchmarks.frame import Options
from benchmarks.report import page, read, save, table
from benchmarks.runner import run
from benchmarks.work import FAMILIES, selected

MEASUREMENTS = Path("docs/measurements")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="", help="FAMILY or FAMILY.NAME, separated by commas")
    parser.add_argument("--list", action="store_true", help="list the pieces of work")
    parser.add_argument("--only", default="", help="contenders in whose name one of these occurs")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--jax-python", default=os.environ.get("BNN_BENCH_JAX_PYTHON", sys.executable))
    parser.add_argument("--data-dir", default=os.environ.get("BNN_BENCH_DATA"), help="a folder with uci/yacht.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--page", action="store_true", help=f"write docs/benchmarks.md from {MEASUREMENTS}")
    given = parser.parse_args()
    if given.page:
        Path("docs/benchmarks.md").write_text(page(read(MEASUREMENTS)))
        return
    if given.list:
        print("\n".join(f"{f.name}.{w.name}  {w.title}" for f in FAMILIES.values() for w in f.works))
        return
    if given.data_dir:
        os.environ["BNN_BENCH_DATA"] = str(Path(given.data_dir).resolve())
    only = tuple(filter(None, given.only.split(",")))
    os.environ["BNN_BENCH_JAX_PYTHON"] = given.jax_python  # for processes that measure a whole run themselves
    options = Options(given.threads or 1, given.rounds, {"jax": given.jax_python}, only)
    for family, works in selected(given.work):
        rows = []
        for work in works:
            rows.append(run(work, options, tell=lambda line: print(line, file=sys.stderr, flush=True)))
            print(table(family, rows[-1:]), flush=True)
            save(given.out, family, rows, options)
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
