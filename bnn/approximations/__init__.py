"""Distributions over the latents of a model, as inference leaves them: what a `Posterior` draws from.

A new one is one class with its `kind`, and one line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bnn.approximations.base import Approximation, Values, check_fit, described
from bnn.approximations.draws import Draws
from bnn.approximations.gaussian import Gaussian
from bnn.approximations.guide import Guide
from bnn.layout import Layout

#: By the name under which they are saved.
KINDS: dict[str, type[Approximation]] = {kind.kind: kind for kind in (Draws, Gaussian, Guide)}

__all__ = ["KINDS", "Approximation", "Draws", "Gaussian", "Guide", "Values", "check_fit", "described", "restored"]


def restored(kind: str, tensors: Mapping[str, Tensor], layout: Layout) -> Approximation:
    """An approximation from its kind and what `Approximation.tensors` gave; see `Approximation.restore`."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of posterior {kind!r}: it was saved by a newer version of bnn")
    return KINDS[kind].restore(tensors, layout)
