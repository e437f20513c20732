"""How many outputs a network needs for a likelihood and its targets, and the default noise of these."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor

from bnn.likelihoods import Likelihood

#: The noise scale of standardised targets before any were seen: 95 % between 0.05 and 2.7, so that "all is noise" (1)
#: is possible, but not where a fit starts.
NOISE = (-1.0, 1.0)
#: What a likelihood may say of outputs that it cannot use.
_EXPECTED = (ValueError, TypeError, RuntimeError, IndexError)


def noise_prior(targets: int | None) -> Any:
    """The prior of the noise scale of standardised targets: one number, or one a target."""
    loc, scale = NOISE
    return dist.LogNormal(loc, scale) if targets is None else dist.LogNormal(torch.full((targets,), loc), scale)


def width_for(likelihood: Likelihood, event: tuple[int, ...], least: int = 1, most: int = 1000) -> int | None:
    """The fewest outputs a row under which the targets of a row have this shape; None: outputs ``(n,)``.

    Raises:
        ValueError: There is none.
    """
    with pyro.get_param_store().scope():
        for width in (None, *range(least, most + 1)):
            try:
                if likelihood.event(torch.zeros(2) if width is None else torch.zeros(2, width)) == event:
                    return width
            except _EXPECTED:
                continue
    raise ValueError(f"{likelihood!r} does not describe targets of shape {('n', *event)}")


def flat(outputs: Tensor) -> Tensor:
    """``(n, 1)`` as ``(n,)``."""
    return outputs.squeeze(-1)
