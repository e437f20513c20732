"""``bnn evaluate``."""

from __future__ import annotations

import sys

import click

from bnn.cli.options import speaking
from bnn.cli.output import Output


@click.command()
@click.argument("run")
@click.argument("data")
@click.option("--interval", type=float, metavar="LEVEL", help="Of the intervals.  [default: that of the fit]")
@click.option("--seed", type=int, default=0, metavar="N", help="Of what is drawn.  [default: 0]")
@speaking
def evaluate(output: Output, run: str, data: str, interval: float | None, seed: int) -> None:
    """Score the predictions of a run on rows whose target is known.

    RUN is the folder of a run; DATA a table with the target, or - for standard input. Every score has its standard
    error, and the calibration is set against what chance would leave of it.

    \b
    bnn evaluate runs/price test.csv
    """
    from bnn.cli.evaluating import run_evaluate

    run_evaluate(run, data, interval, seed, output, sys.stdin.buffer)
