"""``bnn predict``."""

from __future__ import annotations

import sys

import click

from bnn.cli.options import names, speaking
from bnn.cli.output import Output


@click.command()
@click.argument("run")
@click.argument("data")
@click.option(
    "--out", metavar="FILE", default="-", help="CSV, TSV, Parquet or Feather by its name; -: CSV to standard output."
)
@click.option("--interval", type=float, metavar="LEVEL", help="Of the intervals.  [default: that of the fit]")
@click.option("--keep", metavar="A,B,...", help="Columns of the table to copy beside the predictions.")
@speaking
def predict(output: Output, run: str, data: str, out: str, interval: float | None, keep: str | None) -> None:
    """Predict the rows of a table: mean, standard deviation, interval, and what the doubt is made of.

    RUN is the folder of a run; DATA a table with the columns of the fit in any order, or - for standard input. Rows
    stay in their order, and bear their number and the identifiers of the table. Numbers get mean, sd, low and high
    (the ends of the interval), epistemic_sd (what more data would remove) and aleatoric_sd (noise); classes get the
    most probable one, the probability of each, and the entropy with its two parts.

    \b
    bnn predict runs/price new.csv --out predictions.csv
    """
    from bnn.cli.predicting import run_predict

    run_predict(run, data, out, interval, names(keep) or (), output, sys.stdin.buffer)
