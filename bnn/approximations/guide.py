"""Pyro guides."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bnn.approximations.base import Approximation, Values
from bnn.layout import Layout


class Guide(Approximation):
    """A Pyro guide at its fitted parameters. It is code, so that only its parameters and draws can be saved.

    Args:
        draw: One draw of all latents from torch's present random state: ``{site: value}``.
        params: The guide's parameters.
    """

    kind = "guide"

    def __init__(self, draw: Callable[[], Values], params: Mapping[str, Tensor]):
        self._draw, self.params = draw, dict(params)

    @property
    def shape(self) -> None:
        """Continuous."""
        return None

    def sample(self, num: int) -> Values:
        """The guide, run once a draw."""
        draws = [self._draw() for _ in range(num)]
        return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    def tensors(self) -> Values:
        """The parameters; the caller saves draws beside them."""
        return self.params

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> Approximation:
        """Never: what is saved of a guide are draws, and `bnn.load` takes the method that it was fitted with."""
        raise ValueError("a guide is code and cannot be read from a file: give load(..., method=)")
