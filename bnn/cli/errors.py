"""What goes wrong, in one sentence and an exit code that a script can trust.

0: done. 1: a mistake in bnn itself. 2: input or settings that cannot be used. 130: interrupted by Ctrl-C.
141: the reader of a pipe went away.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

#: 141 is what the shell calls an end by SIGPIPE.
UNUSABLE, INTERNAL, INTERRUPTED, UNREAD = 2, 1, 130, 141


class UserError(click.ClickException):
    """Something that the user can mend; exit code 2."""

    exit_code = UNUSABLE


class Interrupted(click.ClickException):
    """Ctrl-C, and how to go on; exit code 130."""

    exit_code = INTERRUPTED


@contextmanager
def in_words(before: str = "") -> Iterator[None]:
    """Errors that the library raises in words, `ValueError` and `TypeError`, as a `UserError`."""
    from bnn.inference import NonFiniteLossError

    try:
        yield
    except (ValueError, TypeError, NonFiniteLossError) as error:
        raise UserError(f"{before}{error}") from error


class Guarded(click.Group):
    """A group of commands out of which no traceback comes."""

    def main(  # type: ignore[override] # whose overloads tell the two modes apart
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run, and exit; see `click.Command.main`."""
        if not extra.pop("standalone_mode", True):
            return super().main(args, prog_name, standalone_mode=False, **extra)
        given = list(sys.argv[1:] if args is None else args)
        try:
            # What a library says about itself is no matter of the user's; what is, is said in words (`Output.warn`).
            with warnings.catch_warnings(action="default" if "--debug" in given else "ignore"):
                code = self._code(super().main(given, prog_name, standalone_mode=False, **extra))
            sys.exit(code)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(UNUSABLE)
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(_told(error, given))

    @staticmethod
    def _code(returned: Any) -> int:
        return returned if isinstance(returned, int) else 0


def _told(error: BaseException, given: Sequence[str]) -> int:
    """Say what went wrong; the exit code."""
    if "--debug" in given and not isinstance(error, click.Abort | KeyboardInterrupt):
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, BrokenPipeError):  # the reader of a pipe has what it wanted
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - Python flushes it at its end
        return UNREAD
    said, code = _sentence(error)
    if code == INTERNAL and "--debug" not in given:
        said += f" (the traceback is in {_written(error)})"
    said = " ".join(said.split())
    if not said.endswith((".", "!", "?")):
        said += "."
    click.echo(f"Error: {said}" if code != INTERRUPTED else said, err=True)
    if "--json" in given:
        click.echo(json.dumps({"error": said, "exit_code": code}))
    return code


def _sentence(error: BaseException) -> tuple[str, int]:
    if isinstance(error, Interrupted):
        return error.message, INTERRUPTED
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx is not None else "bnn"
        return f"{error.format_message().rstrip('.')}; {where} --help says what there is", UNUSABLE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code if error.exit_code != INTERNAL else UNUSABLE
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "Interrupted.", INTERRUPTED
    if isinstance(error, MemoryError):
        return "there is not enough memory for this", UNUSABLE
    if isinstance(error, OSError):
        return of_system(error), UNUSABLE
    return f"this is a mistake in bnn, not yours: {type(error).__name__}: {str(error)[:200]}", INTERNAL


def of_system(error: OSError) -> str:
    """What the operating system says, with the place."""
    if error.errno == errno.ENOSPC:
        where = f" for {error.filename}" if error.filename else ""
        return f"no space is left on the device{where}"
    if error.errno is None:
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{os.strerror(error.errno)}"


def _written(error: BaseException) -> str:
    handle, path = tempfile.mkstemp(prefix="bnn-traceback-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return path
