"""What a page is made of: sections of text, tables and pictures. All text in them is text: the template escapes it."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: A drawing with more bytes than this as vectors becomes pixels.
_VECTORS = 150_000
_DPI = 110


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    #: ``"plain"``, ``"good"``, ``"bad"`` (said by a word too, not by colour alone), ``"small"``.
    tone: str = "plain"
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Listing:
    """Text with its own line breaks: code, settings."""

    text: str
    label: str
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True)
class Cell:
    """A text, and what it is sorted by."""

    text: str
    key: float | str

    @property
    def number(self) -> bool:
        """Whether it is sorted as a number, and stands on the right."""
        return not isinstance(self.key, str)


@dataclass(frozen=True)
class Table:
    """Rows under a head; sortable unless there are fewer than three."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: ClassVar[str] = "table"

    def numbers(self, column: int) -> bool:
        """Whether a column is one of numbers, some of which may be unknown."""
        cells = [row[column] for row in self.rows if column < len(row)]
        return any(c.number for c in cells) and all(c.number or not c.key or c.text == "–" for c in cells)


@dataclass(frozen=True)
class Picture:
    """A figure as part of the page."""

    #: A ``data:`` address.
    source: str
    #: What is to be seen, for those who do not see it.
    alternative: str
    caption: str
    #: Whether it shows photographs, whose brightness stays as it is on a dark page.
    photographs: bool = False
    kind: ClassVar[str] = "picture"


Block = Text | Listing | Table | Picture


@dataclass
class Section:
    """A part of the page, with an anchor."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def picture(drawn: Any, alternative: str, caption: str, *, photographs: bool = False) -> Picture:
    """A figure, given by its axes or one of them, as a block: vectors where these are few, else pixels."""
    axes = drawn if isinstance(drawn, Axes) else np.asarray(drawn, dtype=object).ravel()[0]
    figure = axes.get_figure(root=True)
    assert figure is not None
    vectors = b"" if photographs else _written(figure, "svg", metadata={"Date": None})
    if vectors and len(vectors) < _VECTORS:
        return Picture(_address("image/svg+xml", vectors), alternative, caption)
    pixels = _written(figure, "png", dpi=_DPI, metadata={"Software": None})
    return Picture(_address("image/png", pixels), alternative, caption, photographs)


def plain(text: str) -> str:
    """Text for a figure, in which matplotlib takes dollar signs for formulas."""
    return text.replace("$", r"\$")


def cell(value: Any, spec: str = ".4g") -> Cell:
    """A number or a text as a cell."""
    if isinstance(value, bool | str):
        return Cell(str(value), str(value))
    number = float(value)
    text = f"{int(number):,}" if isinstance(value, int) else format(number, spec)
    return Cell(text.replace("-", "−") if math.isfinite(number) else "–", number if math.isfinite(number) else "")


def _written(figure: Figure, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        figure.savefig(out, format=kind, **options)
    return out.getvalue()


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
