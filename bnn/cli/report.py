"""``bnn report``."""

from __future__ import annotations

import sys

import click

from bnn.cli.options import speaking
from bnn.cli.output import Output


@click.command()
@click.argument("run")
@click.option("--data", metavar="FILE", help="The table of the fit.  [default: where it was]")
@click.option("--out", metavar="FILE", help="The page.  [default: report.html in the folder of the run]")
@click.option("--seed", type=int, default=0, metavar="N", help="Of what is drawn.  [default: 0]")
@speaking
def report(output: Output, run: str, data: str | None, out: str | None, seed: int) -> None:
    """Write one HTML page about a run: data, scores, calibration, doubtful rows, whether to trust it.

    RUN is the folder of a run. The rows of the fit are read again from where they were; the page is refused if that
    file is not what it was.

    \b
    bnn report runs/price
    """
    from bnn.cli.reporting import run_report

    run_report(run, data, out, seed, output, sys.stdin.buffer)
