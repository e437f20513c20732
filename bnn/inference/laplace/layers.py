"""What each kind of layer adds to its Kronecker factors (K-FAC), ``H = G x A``, from a batch.

For a weight ``(o, i)`` that meets every row T times (positions of a sequence or an image),
``G = sum_{n,t} g g'`` and ``A = 1/(N T) sum_{n,t} a a'``: K-FAC expand in the terms of Eschenhagen et al. (2023),
arXiv:2311.00636. Linear layers: Martens and Grosse (2015), arXiv:1503.05671; convolutions: Grosse and Martens (2016),
arXiv:1602.01573; embeddings are linear layers on one-hot inputs, so that A is diagonal. Biases are blocks of their own
with A = 1. The scale and the shift of normalisation layers are each one dense block, without approximation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnn.inference.laplace.curvature import precise


@dataclass
class Layer:
    """What is gathered for one module: its inputs and outputs in this batch, and sums over batches."""

    module: nn.Module
    name: str
    #: Its parameters that are asked for: ``{attribute: parameter name}``.
    wanted: dict[str, str]
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, key: str, value: Tensor) -> None:
        """Add a batch to one of the sums."""
        self.sums[key] = self.sums[key] + value if key in self.sums else value


def _square(rows: Tensor) -> Tensor:
    """``rows' rows`` of ``(..., n, d)`` in the working precision; the sum over rows."""
    product = rows.mT @ rows
    return product.to(precise(product))


def _parts(rows: Tensor, *, split: bool) -> Tensor:
    """``(r, N, d)``, or all columns together: ``(1, r N, d)``."""
    return rows if split else rows.reshape(1, -1, rows.shape[-1])


def _linear(layer: Layer, a: Tensor, g: Tensor, split: bool) -> None:
    _add_factors(layer, a.reshape(-1, a.shape[-1]), g.flatten(1, -2), len(a), split)


def _conv(layer: Layer, a: Tensor, g: Tensor, split: bool) -> None:
    module: Any = layer.module
    rows = patches(module, a)
    _add_factors(layer, rows.reshape(-1, rows.shape[-1]), g.movedim(2, -1).flatten(1, -2), len(a), split)


def _add_factors(layer: Layer, a: Tensor, g: Tensor, n: int, split: bool) -> None:
    layer.add("g", _square(_parts(g, split=split)))
    if "weight" in layer.wanted:
        layer.add("a", _square(a) * (n / len(a)))  # the mean over the positions of a row


def _embedding(layer: Layer, a: Tensor, g: Tensor, split: bool) -> None:
    module: Any = layer.module
    counts = torch.bincount(a.reshape(-1), minlength=module.num_embeddings).to(precise(g))
    if module.padding_idx is not None:
        counts[module.padding_idx] = 0
        g = g * (a != module.padding_idx).unsqueeze(-1)
    layer.add("g", _square(_parts(g.flatten(1, -2), split=split)))
    layer.add("a", counts * (len(a) / a.numel()))


def _norm(layer: Layer, a: Tensor, g: Tensor, split: bool) -> None:
    """Each row's own gradient by scale and shift."""
    module: Any = layer.module
    if isinstance(module, nn.LayerNorm):
        standard = F.layer_norm(a, module.normalized_shape, eps=module.eps)
        keep = len(module.normalized_shape)
        own = [value.flatten(-keep) for value in (g * standard, g)]
    else:
        if isinstance(module, nn.GroupNorm):
            standard = F.group_norm(a, module.num_groups, eps=module.eps)
        else:
            standard = F.batch_norm(a, module.running_mean, module.running_var, eps=module.eps)
        own = [value.movedim(2, -1) for value in (g * standard, g)]
    for attribute, value in zip(("weight", "bias"), own, strict=True):
        if attribute in layer.wanted:
            rows = value.flatten(2, -2).sum(2) if value.dim() > 3 else value
            layer.add(attribute, _square(_parts(rows, split=split)))


def patches(module: Any, x: Tensor) -> Tensor:
    """What a convolution multiplies its weight by, at each position: ``(n, positions, inputs * kernel)``."""
    dims = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        x = x.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # (n, c, positions..., kernel...) -> (n, positions..., c, kernel...)
    return x.movedim(1, 1 + dims).flatten(1 + dims).flatten(1, dims)


Rule = Callable[[Layer, Tensor, Tensor, bool], None]
_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.Embedding: _embedding,
    nn.LayerNorm: _norm,
    nn.GroupNorm: _norm,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm3d: _norm,
}


def rule_of(module: nn.Module) -> Rule | None:
    """How the factors of a module are gathered: None where that is not known."""
    return next((rule for kind, rule in _RULES.items() if isinstance(module, kind)), None)
