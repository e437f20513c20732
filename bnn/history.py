"""What happened during a fit."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(repr=False)
class History:
    """The course of a fit, kept with its posterior.

    All losses are per datum: divided by N, the number of training rows.
    """

    #: ``(steps,)``: nll + temperature * kl.
    loss: Tensor = field(default_factory=lambda: torch.zeros(0))
    #: ``(steps,)``: negative log-likelihood of the batch, scaled to all rows.
    nll: Tensor = field(default_factory=lambda: torch.zeros(0))
    #: ``(steps,)``: divergence from the prior; the negative log prior where a method fits one point.
    kl: Tensor = field(default_factory=lambda: torch.zeros(0))
    #: Optimiser steps an epoch.
    steps_per_epoch: int = 0
    #: Epochs that were run (early stopping may end before the number asked for).
    epochs: int = 0
    #: ``(evaluations,)``: mean held-out log-density per row, in the units of y, and the epochs it was taken at.
    validation: Tensor = field(default_factory=lambda: torch.zeros(0))
    validation_epochs: list[int] = field(default_factory=list)
    #: Wall-clock time of the fit, capture and compilation included.
    seconds: float = 0.0
    #: What ran: "graph", "inductor", "eager", or several, by batch size.
    backend: str = ""
    #: What a reader should know, such as parameters that local reparameterisation does not reach.
    notes: list[str] = field(default_factory=list)
    #: Whether the fit was stopped by Ctrl-C.
    interrupted: bool = False

    def __repr__(self) -> str:
        last = f", loss {self.loss[-1]:.4g}" if len(self.loss) else ""
        return f"History({len(self.loss)} steps, {self.epochs} epochs{last}, {self.seconds:.1f} s, {self.backend!r})"
