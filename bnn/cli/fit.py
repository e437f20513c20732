"""``bnn fit``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bnn.cli.errors import UserError
from bnn.cli.options import names, speaking, widths
from bnn.cli.output import Output
from bnn.cli.settings import BACKENDS, LIKELIHOODS, NAMES, PRIORS, TASKS, Settings, from_toml, resolved

_ACTIVATIONS = "relu, tanh, gelu, silu, ..."


@click.command()
@click.argument("data", required=False)
@click.option("--target", metavar="COLUMN", help="The column to predict.")
@click.option("--out", metavar="FOLDER", help="The folder of the run; there must be none of that name.")
@click.option("--task", type=click.Choice(TASKS), help="Numbers or classes; auto: by the values of the target.")
@click.option(
    "--features", metavar="A,B,...", help="Columns to learn from.  [default: all but the target and identifiers]"
)
@click.option("--drop", metavar="A,B,...", help="Columns to leave out.")
@click.option("--categorical", metavar="A,B,...", help="Columns of numbers that are names, such as postcodes.")
@click.option(
    "--method",
    metavar="NAME",
    help="How to infer: auto, map, mean_field, laplace, ensemble, nuts, ...  [default: auto]",
)
@click.option("--hidden", metavar="50,50", help="Units of each hidden layer; none: a linear model.  [default: 50,50]")
@click.option("--activation", metavar="NAME", help=f"Between the layers: {_ACTIVATIONS}  [default: relu]")
@click.option("--epochs", type=int, metavar="N", help="Passes over the data.  [default: by the number of rows]")
@click.option("--lr", type=float, metavar="RATE", help="Learning rate.  [default: the method's]")
@click.option("--batch-size", type=int, metavar="N", help="Rows a step.  [default: the method's]")
@click.option("--prior", metavar="NAME[:GAIN]", help=f"Of the weights: {', '.join(PRIORS)}.")
@click.option("--likelihood", metavar="NAME[:NUMBER]", help=f"Of numbers: {', '.join(LIKELIHOODS)}.")
@click.option("--set", "extra", metavar="NAME=VALUE", multiple=True, help="A further setting of the method.")
@click.option("--seed", type=int, metavar="N", help="Of everything random.  [default: 0]")
@click.option(
    "--test-share", type=float, metavar="SHARE", help="Rows that are held out for the verdict.  [default: 0.2]"
)
@click.option(
    "--refit/--no-refit", default=None, help="Once judged, fit again to all rows and keep that.  [default: no-refit]"
)
@click.option("--interval", type=float, metavar="LEVEL", help="Of the intervals.  [default: 0.9]")
@click.option("--device", metavar="NAME", help="Where to compute: auto, cpu, cuda, mps.  [default: auto]")
@click.option("--compile", type=click.Choice(BACKENDS), help="How the training step is run.  [default: auto]")
@click.option(
    "--checks/--no-checks", default=None, help="Compare with simpler models, diagnose the inference.  [default: checks]"
)
@click.option("--arviz/--no-arviz", default=None, help="Write an ArviZ tree beside the run.  [default: arviz]")
@click.option("--checkpoint-seconds", type=float, metavar="S", help="Between two states on disk.  [default: 60]")
@click.option("--force", is_flag=True, help="Replace the run that is at --out; never anything else.")
@click.option("--resume", metavar="FOLDER", help="Go on with an interrupted run; needs no other option.")
@click.option("-c", "--config", metavar="FILE", help="Read settings from a TOML file; options overrule it.")
@speaking
def fit(
    output: Output,
    out: str | None,
    force: bool,
    resume: str | None,
    config: str | None,
    **given: Any,
) -> None:
    """Fit a Bayesian neural network to a table, and say how good it is.

    DATA is a CSV, TSV, Parquet or Feather file, or - for standard input. A part of the rows is held out; the verdict
    compares predictions of these rows with a linear model and a plain network, and says whether intervals hold what
    they promise.

    \b
    bnn fit houses.csv --target price --out runs/price
    bnn fit --resume runs/price
    bnn fit -c runs/price/config.toml --seed 1 --out runs/price-1
    """
    _refuse_ranks()
    if resume is not None:
        _refuse_others(click.get_current_context())
        unfinished, force, text = _of_unfinished(resume, output)
        if unfinished is None:
            return
        settings = unfinished
    elif out is None:
        raise UserError("--out is missing: give the folder of the run, as in --out runs/price")
    else:
        settings, text = _asked(given, config), out
    from bnn.cli.folder import place_of
    from bnn.cli.rows import load

    place = place_of(text)
    if resume is None and text.rstrip("/").endswith(".part"):
        raise UserError(f"{text!r} is a name of unfinished runs: choose another --out")
    if resume is None:
        place.check_free(force=force)
    data, content = load(settings, place, sys.stdin.buffer)
    from bnn.cli.fitting import run  # and torch with it, which takes seconds: only now that there is something to fit

    document = run(settings, place, data, content, output, force=force, resume=resume is not None)
    output.document(document)
    if not output.json:
        output.note(f"\nWritten to {place.out}.")


def _asked(given: dict[str, Any], config: str | None) -> Settings:
    """Options over the file over the defaults."""
    values: dict[str, Any] = {} if config is None else from_toml(Path(config))
    extra = given.pop("extra")
    for name in ("features", "drop", "categorical"):
        given[name] = names(given[name])
    given["hidden"] = widths(given["hidden"])
    values |= {name: value for name, value in given.items() if value is not None}
    if extra:
        known = values.get("set") if isinstance(values.get("set"), dict) else {}
        values["set"] = {**(known or {}), **dict(map(_pair, extra))}
    return resolved({name: value for name, value in values.items() if name in NAMES})


def _pair(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise UserError(f"--set is NAME=VALUE, not {text!r}")
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = value
    return name.strip(), found if isinstance(found, bool | int | float | str) else value


def _refuse_ranks() -> None:
    """Several processes would each fit alone, and write to one folder."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and ranks != "1":
        raise UserError(
            f"bnn fit runs in one process, and torchrun has started {ranks}: call bnn.fit in a script of your own, "
            "as docs/scaling.md shows"
        )


def _refuse_others(context: click.Context) -> None:
    allowed = {"resume", "as_json", "quiet", "debug"}
    for name in context.params:
        if name not in allowed and context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            shown = "DATA" if name == "data" else f"--{'set' if name == 'extra' else name.replace('_', '-')}"
            raise UserError(f"--resume takes its settings from the folder: leave {shown} out")


def _of_unfinished(text: str, output: Output) -> tuple[Settings | None, bool, str]:
    """The settings of an unfinished run, whether it replaces another, its place; no settings where it is finished."""
    from bnn.cli.folder import is_run, place_of

    place = place_of(text)
    if place.unfinished:
        replaces = place.started().get("force") is True
        if replaces or not is_run(place.out):
            return resolved(from_toml(place.config)), replaces, str(place.out)
        place.forget()  # it was stopped when all was done but tidying up
    if is_run(place.out):
        output.note(f"{place.out} is finished: there is nothing to go on with.")
        output.document({"run": str(place.out), "finished": True})
        return None, False, str(place.out)
    raise UserError(f"there is no unfinished run at {place.out}: nothing to go on with")
