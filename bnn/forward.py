"""The forward pass over draws: the one place where a network is run under many weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bnn.data import Inputs, input_leaves, slice_inputs
from bnn.model import BNN

#: Multiply-adds (weights x rows) up to which several draws at once are faster than one by one, and how many at once.
#: Measured on two cores: docs/design/prediction.md.
_SMALL_WORK, _AT_ONCE = 4_000_000, 10
#: Rows at a time, so that hidden activations never dominate memory.
_ROWS = 16_384


def forward_over_draws(
    model: BNN,
    weights: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    x: Inputs,
    draws: int,
    at_once: int | None = None,
) -> Tensor:
    """The network's outputs under each draw.

    Args:
        model: Its network is in evaluation mode.
        weights: ``{parameter: (s, *shape)}``.
        shared: Parameters and buffers that all draws have in common.
        x: Inputs, n rows.
        draws: s; it counts where every weight is shared.
        at_once: Draws a call of the network, 1 for one by one; chosen by size if not given. Results do not depend on it
            (up to rounding).

    Returns:
        ``(s, n)`` or ``(s, n, k)``.
    """
    n = len(input_leaves(x)[0])
    parts = [
        _outputs(model, weights, shared, slice_inputs(x, slice(start, start + _ROWS)), draws, at_once)
        for start in range(0, max(n, 1), _ROWS)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@torch.no_grad()
def _outputs(
    model: BNN,
    weights: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    x: Inputs,
    draws: int,
    at_once: int | None,
) -> Tensor:
    def one(drawn: Mapping[str, Tensor]) -> Tensor:
        return model.forward(drawn, x, shared)

    if not weights:
        single = one({})
        return single.expand(draws, *single.shape)
    at_once = at_once or _choose_at_once(model.net, weights, x)
    if at_once == 1:
        names, stacks = list(weights), [value.unbind(0) for value in weights.values()]
        return torch.stack([one(dict(zip(names, values, strict=True))) for values in zip(*stacks, strict=True)])
    many = torch.func.vmap(one)
    chunks = [
        many({name: value[start : start + at_once] for name, value in weights.items()})
        for start in range(0, draws, at_once)
    ]
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)


def _choose_at_once(net: nn.Module, weights: Mapping[str, Tensor], x: Inputs) -> int:
    if any(isinstance(module, nn.RNNBase) for module in net.modules()):
        return 1  # vmap has no rule for the fused kernels of LSTM, GRU and RNN
    rows = len(input_leaves(x)[0])
    work = rows * sum(value[0].numel() for value in weights.values())
    return _AT_ONCE if work <= _SMALL_WORK else 1
