"""``bnn compare``."""

from __future__ import annotations

import sys

import click

from bnn.cli.options import speaking
from bnn.cli.output import Output


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--data", metavar="FILE", help="Rows to compare by.  [default: those that all runs held out]")
@click.option("--interval", type=float, metavar="LEVEL", help="Of the intervals.  [default: that of the first fit]")
@click.option("--seed", type=int, default=0, metavar="N", help="Of what is drawn.  [default: 0]")
@speaking
def compare(output: Output, runs: tuple[str, ...], data: str | None, interval: float | None, seed: int) -> None:
    """Say which of several runs predicts better, row by row.

    Differences are paired: what makes a row hard for all runs drops out. Without --data the rows are those that the
    runs held out, which must be the same: fits of one file with the same --seed and --test-share.

    \b
    bnn compare runs/laplace runs/ensemble --data test.csv
    """
    from bnn.cli.evaluating import run_compare

    run_compare(runs, data, interval, seed, output, sys.stdin.buffer)
