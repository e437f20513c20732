"""``bnn experiment``."""

from __future__ import annotations

import ast
import difflib
import subprocess
import sys
from pathlib import Path

import click

import bnn
from bnn.cli.errors import UserError


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--list", "listing", is_flag=True, help="List the experiments, with what each asks.")
def experiment(name: str | None, arguments: tuple[str, ...], listing: bool) -> int:
    """Run one of the experiments of the repository: experiments/NAME.py.

    What follows NAME is handed to it; all take --quick. Experiments are not part of the installed package: run this
    in a copy of the repository.

    \b
    bnn experiment --list
    bnn experiment weight_decay --quick
    """
    folder = _folder()
    known = {path.stem: path for path in sorted(folder.glob("*.py")) if _runs(path)}
    if listing:
        for stem, path in known.items():
            click.echo(f"{stem:24} {_first_line(path)}")
        return 0
    if name is None:
        raise UserError("name an experiment, or give --list to see what there is")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"there is no experiment {name!r}; {hint}")
    return subprocess.run([sys.executable, str(known[name]), *arguments], check=False).returncode


def _folder() -> Path:
    """Where experiments are: beside the package, or here."""
    for place in (Path(bnn.__file__).parent.parent, Path.cwd()):
        folder = place / "experiments"
        if (place / "bnn").is_dir() and folder.is_dir():
            return folder
    raise UserError(
        "the experiments are not part of the installed package: they are in the folder experiments/ of the repository "
        "and of the source distribution; run this command in a copy of one of them"
    )


def _runs(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


def _first_line(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.partition("\n")[0]
