"""Networks of sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnn.nets.checks import share, whole
from bnn.nets.recipe import recorded


class LSTM(nn.Module):
    """See `lstm`."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int, dropout: float, *, bidirectional: bool):
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, layers, batch_first=True, dropout=dropout, bidirectional=bidirectional)
        self.directions = 1 + bidirectional
        self.out = nn.Linear(self.directions * hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, steps, inputs)`` to ``(n, outputs)``."""
        _, (states, _) = self.lstm(x)
        # The last layer's state after the whole sequence: of each direction, since they end at other ends.
        ends = torch.cat(states[-self.directions :].unbind(0), dim=1)
        result: Tensor = self.out(ends)
        return result


@recorded
def lstm(
    inputs: int,
    hidden: int = 50,
    outputs: int = 1,
    *,
    layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
) -> LSTM:
    """A recurrent network that reads a sequence and answers at its end: ``(n, steps, inputs)`` to ``(n, outputs)``.

    Hochreiter and Schmidhuber (1997), Neural Computation 9. Names: ``lstm.weight_ih_l0``, ..., ``out.weight``. A step
    of training unrolls the sequence: beyond some 100 steps it is not captured (docs/design/capture.md).

    Args:
        inputs: Features of one step.
        hidden: Units of each layer and direction.
        outputs: Outputs or classes.
        layers: One above the other.
        bidirectional: Whether a second one reads each layer's sequence from its end.
        dropout: Share of the units that are dropped between layers in training.

    Raises:
        ValueError: An argument out of its range; dropout with a single layer, where it would do nothing.
    """
    if share("dropout", dropout) and whole("layers", layers) == 1:
        raise ValueError(f"dropout={dropout} acts between layers, and layers=1: give layers=2 or more")
    sizes = whole("inputs", inputs), whole("hidden", hidden), whole("outputs", outputs), whole("layers", layers)
    return LSTM(*sizes, dropout, bidirectional=bidirectional)
