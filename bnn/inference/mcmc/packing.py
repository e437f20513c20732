"""Many named tensors of a state in a few: a call of a compiled program costs by the tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Packing:
    """Which entries of a state share a tensor: those of one shape. Whole numbers are held as floating ones.

    Args:
        example: ``{name: (chains, *shape)}``. Whole numbers stay below 2^24, up to which single precision is exact.
    """

    def __init__(self, example: Mapping[str, Tensor]):
        self._dtypes = {name: value.dtype for name, value in example.items()}
        self._dtype = next(value.dtype for value in example.values() if value.is_floating_point())
        #: Shape of an entry without its chains -> the names of that shape.
        self.shapes: dict[torch.Size, list[str]] = {}
        for name, value in example.items():
            self.shapes.setdefault(value.shape[1:], []).append(name)

    def pack(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        """One tensor ``(chains, names, *shape)`` a shape."""
        return [torch.stack([state[name].to(self._dtype) for name in names], dim=1) for names in self.shapes.values()]

    def unpack(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The state that was packed."""
        state = {}
        for names, tensor in zip(self.shapes.values(), tensors, strict=True):
            for name, value in zip(names, tensor.unbind(1), strict=True):
                state[name] = value.to(self._dtypes[name])
        return {name: state[name] for name in self._dtypes}
