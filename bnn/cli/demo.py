"""``bnn demo``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
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
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def demo(out: Path, seed: int, epochs: int, debug: bool) -> None:
    """Fit two real data sets, compare MAP with mean-field VI on held-out rows, and draw what came out."""
    from bnn.demo import run

    del debug  # the group looks for it
    run(out, seed=seed, epochs=epochs, echo=click.echo)
