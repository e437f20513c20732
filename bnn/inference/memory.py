"""Sizes that cannot work are refused before memory is asked for."""

from __future__ import annotations

from bnn.layout import Layout

#: Bytes that the parameters of an approximation may take, with all that a step needs of their size.
MEMORY = 8 * 2**30


def check_memory(what: str, latents: Layout, values: int, instead: str) -> None:
    """Raise `ValueError` for more values than memory holds, with what would be needed.

    Args:
        what: The method, for the message.
        latents: Of the model.
        values: How many numbers the fit holds at once.
        instead: What to take.
    """
    needed = values * latents.dtype.itemsize
    if needed > MEMORY:
        raise ValueError(
            f"{what} over {latents.size:,} unknowns needs about {needed / 2**30:,.0f} GiB, and {MEMORY / 2**30:.0f} "
            f"are allowed: take {instead}, or give fewer parameters a prior"
        )
