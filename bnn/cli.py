"""The command ``bnn`` (or ``python -m bnn``). Heavy imports wait for the command that needs them."""

from __future__ import annotations

from pathlib import Path

import click

import bnn


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(bnn.__version__, prog_name="bnn")
def main() -> None:
    """Bayesian neural networks from any torch module."""


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for figures, ArviZ files and scores; an earlier demo's is written over, anything else is not.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of data splits, initial weights and fits.")
@click.option(
    "--epochs", type=click.IntRange(min=1), default=200, show_default=True, help="Most passes over the data a fit."
)
def demo(out: Path, seed: int, epochs: int) -> None:
    """Fit two real data sets, compare MAP with mean-field VI on held-out rows, and draw what came out."""
    from bnn.demo import run

    try:
        run(out, seed=seed, epochs=epochs, echo=click.echo)
    except OSError as error:  # a folder that is somebody else's, or that cannot be written
        raise click.ClickException(str(error)) from error
