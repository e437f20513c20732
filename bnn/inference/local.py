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

from bnn.noise import standard_normal

Estimator = Literal["local", "flipout"]

_LAYERS = {F.linear, F.conv1d, F.conv2d, F.conv3d}


class LayerNoise(TorchFunctionMode):
    """While it is entered, layers with known weight moments return random activations.

    Args:
        moments: ``{id(weight as handed to the network): (mean, standard deviation)}``.
        estimator: ``"local"``: Normal(f(x; mean), f(x^2; sd^2)) for every activation by itself. ``"flipout"``:
            f(x; mean) + s_out * f(x * s_in; sd * eps), with one eps for all rows and signs s for each.
    """

    def __init__(self, moments: Mapping[int, tuple[Tensor, Tensor]], estimator: Estimator):
        super().__init__()
        self._moments, self._estimator = moments, estimator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS:
            return func(*args, **kwargs)
        x, weight, bias, rest, options = _layer_arguments(*args, **kwargs)
        if id(weight) not in self._moments:  # which ones are there, `LayerUses` has found out
            return func(*args, **kwargs)

        def layer(inputs: Tensor, matrix: Tensor) -> Tensor:
            return func(inputs, matrix, None, *rest, **options)

        mean, scale = self._moments[id(weight)]
        if self._estimator == "local":
            out = _local(layer, x, mean, scale)
        else:
            out = layer(x, mean)
            draw = layer(x * _signs(x, func), scale * standard_normal(mean.shape, mean))
            out = out + _signs(out, func) * draw
        if bias is None:
            return out
        channels = (-1,) if func is F.linear else (-1, *[1] * (weight.dim() - 2))
        if id(bias) not in self._moments:
            return out + bias.reshape(channels)
        mean, scale = (part.reshape(channels) for part in self._moments[id(bias)])
        # A bias is the weight of an input that is 1 in every row.
        return out + mean + scale * standard_normal(_per_row(out, func), out)


def _local(layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    centre, variance = layer(x, mean), layer(x * x, scale * scale)
    # The square root has no gradient at 0, where a row of inputs is all zero.
    noise = standard_normal(centre.shape, centre)
    return centre + (variance + torch.finfo(variance.dtype).tiny ** 0.5).sqrt() * noise


def _signs(like: Tensor, layer: Any) -> Tensor:
    """+1 or -1, one a row and unit (or channel)."""
    return standard_normal(_per_row(like, layer), like).sign()


def _per_row(activations: Tensor, layer: Any) -> tuple[int, ...]:
    """One number a row and unit: positions (of a sequence, of an image) meet the same weights, and share it."""
    rows, middle = activations.shape[0], [1] * (activations.dim() - 2)
    if layer is F.linear:
        return (rows, *middle, activations.shape[-1])
    return (rows, activations.shape[1], *middle)


def _layer_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Any, ...], dict[str, Any]]:
    return input, weight, bias, rest, options


class LayerUses(TorchFunctionMode):
    """Counts how each of some tensors is used: as the weight or bias of a layer, and at all."""

    def __init__(self, tensors: Mapping[str, Tensor], estimator: Estimator):
        super().__init__()
        self._estimator = estimator
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._uses: Counter[str] = Counter()
        self._layers: list[tuple[str, str | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "__get__":  # reading a shape or a dtype is no use of the numbers
            self._uses.update(self._names[id(t)] for t in tree_leaves((args, kwargs)) if id(t) in self._names)
        if func in _LAYERS:
            x, weight, bias, _, _ = _layer_arguments(*args, **kwargs)
            if id(weight) in self._names and self._exact(func, x, weight):
                self._layers.append((self._names[id(weight)], self._names.get(id(bias))))
        return func(*args, **kwargs)

    def _exact(self, layer: Any, x: Tensor, weight: Tensor) -> bool:
        """Whether noise in the activations has the law of noise in the weight, in each row by itself.

        Local reparameterisation draws every activation by itself, which is right only where a row meets the weight
        once: the positions of a sequence or an image meet it together, and independent noise would average out.
        """
        if self._estimator == "local":
            return layer is F.linear and x.dim() == 2
        return x.dim() >= 2 if layer is F.linear else x.dim() == weight.dim()

    @property
    def reached(self) -> list[str]:
        """The weights whose only use is in one layer, and such biases beside them."""
        layers = [layer for layer in self._layers if self._uses[layer[0]] == 1]
        biases = [bias for _, bias in layers if bias is not None and self._uses[bias] == 1]
        return [weight for weight, _ in layers] + biases
