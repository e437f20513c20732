"""Noise in the layers instead of in the weights: local reparameterisation and flipout, without patching torch.

A `TorchFunctionMode` meets the calls of ``torch.nn.functional.linear`` and ``conv1d`` to ``conv3d``. It knows a weight
by being the very tensor that was handed to the network, so that it reaches layers of any module, and not those that use
fused kernels (LSTM, MultiheadAttention) or that work on the weight before they use it (weight_norm, sharing).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Estimator = Literal["local", "flipout"]

_LAYERS = {F.linear, F.conv1d, F.conv2d, F.conv3d}


class LayerNoise(TorchFunctionMode):
    """While it is entered, layers with known weight moments return random activations.

    Args:
        moments: ``{id(weight as handed to the network): (mean, standard deviation)}``.
        estimator: ``"local"``: Normal(f(x; mean), f(x^2; sd^2)) for every activation by itself. ``"flipout"``:
            f(x; mean) + s_out * f(x * s_in; sd * eps), with one eps and signs s a row.
    """

    def __init__(self, moments: Mapping[int, tuple[Tensor, Tensor]], estimator: Estimator):
        super().__init__()
        self._moments, self._estimator = moments, estimator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS:
            return func(*args, **kwargs)
        x, weight, bias, rest, options = _layer_arguments(*args, **kwargs)
        if id(weight) not in self._moments:
            return func(*args, **kwargs)

        def layer(inputs: Tensor, matrix: Tensor) -> Tensor:
            return func(inputs, matrix, None, *rest, **options)

        activation = _local if self._estimator == "local" else _flipout
        mean, scale = self._moments[id(weight)]
        out = activation(layer, x, mean, scale)
        if bias is None:
            return out
        channels = (-1,) if func is F.linear else (-1, *[1] * (weight.dim() - 2))
        if id(bias) not in self._moments:
            return out + bias.reshape(channels)
        mean, scale = (part.reshape(channels) for part in self._moments[id(bias)])
        # A bias is the weight of an input that is 1 in every row (at every position of an image alike).
        noise = torch.randn_like(
            out if func is F.linear else out.flatten(2).mean(2).reshape(*out.shape[:2], *channels[1:])
        )
        return out + mean + scale * noise


def _local(layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    centre, variance = layer(x, mean), layer(x * x, scale * scale)
    # The square root has no gradient at 0, where a row of inputs is all zero.
    return centre + (variance + torch.finfo(variance.dtype).tiny ** 0.5).sqrt() * torch.randn_like(centre)


def _flipout(layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    centre = layer(x, mean)
    draw = layer(x * _signs(x, mean.dim()), scale * torch.randn_like(mean))
    return centre + _signs(centre, mean.dim()) * draw


def _signs(like: Tensor, weight_dim: int) -> Tensor:
    """+1 or -1: for a linear layer one a row and unit, for a convolution one a row and channel."""
    shape = like.shape if weight_dim == 2 else (*like.shape[:2], *[1] * (like.dim() - 2))
    return torch.randn(shape, dtype=like.dtype, device=like.device).sign()


def _layer_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Any, ...], dict[str, Any]]:
    return input, weight, bias, rest, options


class LayerUses(TorchFunctionMode):
    """Counts how each of some tensors is used: as the weight or bias of a layer, and at all."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._uses: Counter[str] = Counter()
        self._layers: list[tuple[str, str | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "__get__":  # reading a shape or a dtype is no use of the numbers
            self._uses.update(self._names[id(t)] for t in tree_leaves((args, kwargs)) if id(t) in self._names)
        if func in _LAYERS:
            _, weight, bias, _, _ = _layer_arguments(*args, **kwargs)
            if id(weight) in self._names:
                self._layers.append((self._names[id(weight)], self._names.get(id(bias))))
        return func(*args, **kwargs)

    @property
    def reached(self) -> list[str]:
        """The weights whose only use is in one layer, and such biases beside them."""
        layers = [layer for layer in self._layers if self._uses[layer[0]] == 1]
        biases = [bias for _, bias in layers if bias is not None and self._uses[bias] == 1]
        return [weight for weight, _ in layers] + biases
