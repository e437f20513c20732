"""Finite sets of draws."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bnn.approximations.base import Approximation, Values, check_fit
from bnn.layout import Layout


class Draws(Approximation):
    """A finite set of draws, in chains.

    Args:
        values: ``{site: (chains, draws, *shape)}``.
    """

    kind = "draws"

    def __init__(self, values: Mapping[str, Tensor]):
        self.values = dict(values)
        sizes = {(value.shape[0], value.shape[1]) for value in self.values.values()} or {(1, 1)}
        if len(sizes) > 1:
            raise ValueError(f"sites have different numbers of chains and draws: {sorted(sizes)}")
        (self._shape,) = sizes

    @property
    def shape(self) -> tuple[int, int]:
        """(chains, draws)."""
        return self._shape

    def sample(self, num: int) -> Values:
        """Evenly spaced draws, the first and (if more than one is asked for) the last among them."""
        chains, draws = self._shape
        rows = torch.linspace(0, chains * draws - 1, num).round().long()
        return {name: value.flatten(0, 1)[rows.to(value.device)] for name, value in self.values.items()}

    def tensors(self) -> Values:
        """The draws."""
        return self.values

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> Draws:
        """See `Approximation.restore`."""
        check_fit(tensors, {site.name: site.value for site in layout.sites}, leading=2)
        return cls(tensors)
