"""The command ``bnn`` (or ``python -m bnn``). Heavy imports wait for the command that needs them."""

from __future__ import annotations

import click

import bnn
from bnn.cli.compare import compare
from bnn.cli.demo import demo
from bnn.cli.errors import Guarded
from bnn.cli.evaluate import evaluate
from bnn.cli.experiment import experiment
from bnn.cli.fit import fit
from bnn.cli.predict import predict
from bnn.cli.report import report

__all__ = ["main"]


@click.group(cls=Guarded, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(bnn.__version__, prog_name="bnn")
def main() -> None:
    """Bayesian neural networks for tables: fit, predict, and know how sure to be.

    Exit codes: 0 done; 2 input or settings that cannot be used, said in one sentence; 130 interrupted by Ctrl-C;
    1 a mistake in bnn itself.
    """


for command in (fit, predict, evaluate, compare, report, demo, experiment):
    main.add_command(command)
