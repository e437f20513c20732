"""Autocast is for the network's forward pass and for nothing else: one place that says what runs in which precision.

Weights, their draws, densities and losses keep the dtype of the network's parameters. A matrix product of a covariance,
or a sum over rows, in bfloat16 would have two or three digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

HALF = (torch.float16, torch.bfloat16)

_network: ContextVar[torch.dtype | None] = ContextVar("bnn_network_autocast", default=None)


def network_dtype() -> torch.dtype | None:
    """What autocast, if any, networks run in here; see `autocast_for_network`."""
    return _network.get()


@contextmanager
def autocast_for_network(device: torch.device) -> Iterator[None]:
    """A block in which the autocast that surrounds it applies to networks alone."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    token = _network.set(torch.get_autocast_dtype(device.type))
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _network.reset(token)


def network_region(device: torch.device) -> AbstractContextManager[Any]:
    """Entered around a network's forward pass: autocast again, where `autocast_for_network` has put it aside.

    Without its cache of weights, which knows a tensor by its identity: here they change from call to call.
    """
    dtype = _network.get()
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def check_precision(net: nn.Module) -> None:
    """Raise `ValueError` for a network whose parameters to be learned are in half precision."""
    for name, p in net.named_parameters():
        if p.requires_grad and p.dtype in HALF:
            raise ValueError(
                f"the network's parameter {name!r} is {p.dtype}, and inference needs single or double precision: a "
                "step or a draw that is small beside a weight is lost in rounding. Call net.float(), and fit under "
                f"torch.autocast({p.device.type!r}, dtype={p.dtype}) to run the network itself in half precision"
            )
