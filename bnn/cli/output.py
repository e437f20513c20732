"""Where words go: results to standard output, everything else to standard error; bars on a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click

#: Seconds between two lines of progress in a log.
_EVERY = 30.0


@dataclass
class Output:
    """What a command says.

    Args:
        json: One JSON document on standard output, and nothing else there.
        quiet: No progress and no remarks; warnings and results stay.
    """

    json: bool = False
    quiet: bool = False
    warned: list[str] = field(default_factory=list)

    def say(self, text: str = "") -> None:
        """A line of the result."""
        if not self.json:
            click.echo(text)

    def note(self, text: str) -> None:
        """A line about what is being done."""
        if not self.quiet:
            click.echo(text, err=True)

    def warn(self, text: str, *, show: bool = True) -> None:
        """Something that the user should know; each once."""
        said = " ".join(text.split())
        if said not in self.warned:
            self.warned.append(said)
            if show:
                click.echo(f"Warning: {said}", err=True)

    def document(self, content: dict[str, Any]) -> None:
        """The result, for a machine."""
        if self.json:
            click.echo(json.dumps(content, indent=2, default=str, ensure_ascii=False, allow_nan=False))

    @property
    def bars(self) -> bool:
        """Whether progress is shown at all."""
        return not self.quiet

    @contextlib.contextmanager
    def listening(self, *, show: bool = True) -> Iterator[None]:
        """Warnings of the library become remarks; those of other packages, about themselves, are dropped."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            finally:
                for warning in caught:
                    if warning.category is UserWarning:
                        self.warn(str(warning.message), show=show)

    @contextlib.contextmanager
    def progress(self) -> Iterator[None]:
        """Bars of tqdm: as they are on a terminal, elsewhere a plain line now and then."""
        if sys.stderr.isatty() or self.quiet:
            yield
            return
        with contextlib.redirect_stderr(_Lines(sys.stderr)):
            yield


class _Lines(io.TextIOBase):
    """A stream to which a bar is drawn over and over, as plain lines, one every so many seconds."""

    def __init__(self, to: Any):
        self._to, self._last = to, time.monotonic()

    def write(self, text: str) -> int:
        """Keep the text, if it is a whole line or time for one."""
        if "\r" not in text:
            if text.strip():
                self._to.write(text.strip("\n") + "\n")
            return len(text)
        shown = text.split("\r")[-1].strip()
        if shown and time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            self._to.write(shown + "\n")
            self._to.flush()
        return len(text)

    def flush(self) -> None:
        """See `io.TextIOBase`."""
        self._to.flush()

    def isatty(self) -> bool:
        """It is none."""
        return False


def muted() -> Any:
    """No warnings: they are of a split that the user did not make, or were told in better words."""
    return warnings.catch_warnings(action="ignore")


def finite(value: float) -> float | None:
    """A number as JSON knows them: NaN and infinity are none."""
    return value if value == value and abs(value) != float("inf") else None
