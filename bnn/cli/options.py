"""Options that several commands have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from bnn.cli.errors import UserError
from bnn.cli.output import Output

Command = Callable[..., Any]


_SPEAKING: tuple[Any, ...] = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document to standard output, and no more."),
    click.option("--quiet", "-q", is_flag=True, help="No progress and no remarks, but results and warnings."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)


def speaking(command: Command) -> Any:
    """``--json``, ``--quiet`` and ``--debug``; the command is given an `Output`."""

    @functools.wraps(command)
    def with_output(*args: Any, as_json: bool, quiet: bool, debug: bool, **options: Any) -> Any:
        del debug  # the group looks for it, when there is an error
        return command(*args, output=Output(json=as_json, quiet=quiet), **options)

    decorated: Any = with_output
    for option in reversed(_SPEAKING):
        decorated = option(decorated)
    return decorated


def names(value: str | None) -> tuple[str, ...] | None:
    """``a,b`` as a tuple; blanks around the names are not of them."""
    return None if value is None else tuple(part for part in (piece.strip() for piece in value.split(",")) if part)


def widths(value: str | None) -> tuple[int, ...] | None:
    """``50,50`` as a tuple; an empty text or "none" is no hidden layer."""
    if value is None:
        return None
    parts = names(value) or ()
    if parts == ("none",):
        return ()
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise UserError(f"hidden is a list of whole numbers such as 50,50, or none, not {value!r}") from None
