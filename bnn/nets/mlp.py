"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from bnn.nets.checks import activation_of, one_of, share, whole, widths
from bnn.nets.recipe import recorded

Norm = Literal["batch", "layer"] | None

_NORMS: dict[str | None, type[nn.Module] | None] = {None: None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class Hidden(nn.Module):
    """A linear layer, then normalisation, activation and dropout, where there are; around all of it perhaps a skip."""

    def __init__(self, inputs: int, outputs: int, activation: str, dropout: float, norm: Norm, *, skip: bool):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        make = _NORMS[norm]
        self.norm = nn.Identity() if make is None else make(outputs)
        self.activation = activation_of(activation)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs)`` to ``(n, outputs)``."""
        out: Tensor = self.dropout(self.activation(self.norm(self.linear(x))))
        return x + out if self.skip else out


class MLP(nn.Module):
    """See `mlp`."""

    def __init__(self, hidden: Sequence[Hidden], out: nn.Linear):
        super().__init__()
        self.hidden = nn.Sequential(*hidden)
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs)`` to ``(n, outputs)``."""
        result: Tensor = self.out(self.hidden(x))
        return result


@recorded
def mlp(
    inputs: int,
    hidden: Sequence[int] = (50, 50),
    outputs: int = 1,
    *,
    activation: str = "relu",
    dropout: float = 0.0,
    norm: Norm = None,
    residual: bool = False,
) -> MLP:
    """A fully connected network, ``(n, inputs)`` to ``(n, outputs)``: ``hidden.0.linear.weight``, ..., ``out.weight``.

    Args:
        inputs: Features.
        hidden: Units of each hidden layer; ``()``: a linear model.
        outputs: Outputs or classes.
        activation: A name in `bnn.nets.checks.ACTIVATIONS`.
        dropout: Share of the units of each hidden layer that are dropped in training.
        norm: After each hidden layer's product: ``"batch"``, ``"layer"``, or none.
        residual: Whether each hidden layer that keeps the width is added to its input (He et al. 2016,
            arXiv:1512.03385).

    Raises:
        ValueError: An argument out of its range; `residual` where no hidden layer keeps the width.
    """
    sizes = [whole("inputs", inputs), *widths("hidden", hidden)]
    one_of("norm", norm, _NORMS)
    share("dropout", dropout)
    pairs = list(pairwise(sizes))
    if residual and not any(a == b for a, b in pairs):
        raise ValueError(
            f"residual=True adds a layer to its input where both have the same width, and none has: inputs={inputs}, "
            f"hidden={tuple(hidden)}"
        )
    layers = [Hidden(a, b, activation, dropout, norm, skip=residual and a == b) for a, b in pairs]
    activation_of(activation)  # checked without a hidden layer too
    return MLP(layers, nn.Linear(sizes[-1], whole("outputs", outputs)))
