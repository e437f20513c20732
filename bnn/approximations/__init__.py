"""Distributions over the latents of a model, as inference leaves them: what a `Posterior` draws from.

A new one is one class with its `kind`, and one line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bnn.approximations.base import Approximation, Values, check_fit, described
from bnn.approximations.chains import Chains
from bnn.approximations.correlated import Correlated, FullRank, LowRank
from bnn.approximations.draws import Draws
from bnn.approximations.dropout import Thinned
from bnn.approximations.flow import Flow
from bnn.approximations.gaussian import Gaussian
from bnn.approximations.guide import Guide
from bnn.approximations.laplace import LocalGaussian
from bnn.approximations.mixture import OWN, Mixture
from bnn.approximations.swag import Iterates
from bnn.layout import Layout

#: By the name under which they are saved.
KINDS: dict[str, type[Approximation]] = {
    kind.kind: kind
    for kind in (Chains, Draws, Flow, FullRank, Gaussian, Guide, Iterates, LocalGaussian, LowRank, Mixture, Thinned)
}

__all__ = [
    "KINDS",
    "Approximation",
    "Chains",
    "Correlated",
    "Draws",
    "Flow",
    "FullRank",
    "Gaussian",
    "Guide",
    "Iterates",
    "LocalGaussian",
    "LowRank",
    "Mixture",
    "Thinned",
    "Values",
    "check_fit",
    "described",
    "held",
    "joined",
    "restored",
]


def joined(parts: Sequence[Approximation], own: Sequence[Values]) -> Approximation:
    """The equal mixture of several approximations.

    Args:
        parts: Of the members of an ensemble.
        own: What each member's draws hold besides its latents: learned points, buffers.
    """
    if all(isinstance(part, Draws) for part in parts):
        tables = [
            part.tensors() | {name: value.expand(*part.shape, *value.shape) for name, value in other.items()}
            for part, other in zip(parts, own, strict=True)
            if part.shape is not None
        ]
        return Draws({name: torch.cat([table[name] for table in tables], dim=1) for name in tables[0]})
    shared = {name: torch.stack([other[name] for other in own]) for name in own[0]}
    return Mixture(parts, shared)


def held(kind: str, tensors: Mapping[str, Tensor]) -> set[str]:
    """The learned points and buffers that each draw has for itself, and any latents of theirs, in saved tensors."""
    if kind == Draws.kind:
        return set(tensors)
    return {name.removeprefix(OWN) for name in tensors if kind == Mixture.kind and name.startswith(OWN)}


def restored(kind: str, tensors: Mapping[str, Tensor], layout: Layout) -> Approximation:
    """An approximation from its kind and what `Approximation.tensors` gave; see `Approximation.restore`."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of posterior {kind!r}: it was saved by a newer version of bnn")
    return KINDS[kind].restore(tensors, layout)
