"""Chains of draws, as Markov chain Monte Carlo leaves them: in memory, or mapped from a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bnn.approximations.base import Approximation, Values, check_fit
from bnn.layout import Layout

_STATISTICS = "statistics."


class Chains(Approximation):
    """Draws as flat vectors of unconstrained numbers. Those that nobody asks for are not touched.

    Args:
        layout: From numbers to sites.
        vectors: ``(chains, draws, D)``, in memory or mapped from a file, on any device.
        statistics: Of the sampler, ``{name: (chains, draws)}``, under ArviZ's names.

    Raises:
        ValueError: Shapes that do not fit.
    """

    kind = "chains"

    def __init__(self, layout: Layout, vectors: Tensor, statistics: Mapping[str, Tensor] | None = None):
        if vectors.dim() != 3 or vectors.shape[2] != layout.size or 0 in vectors.shape[:2]:
            raise ValueError(
                f"chains have shape (chains, draws, {layout.size}), with at least one draw, not {tuple(vectors.shape)}"
            )
        self.layout, self.vectors, self.statistics = layout, vectors, dict(statistics or {})
        for name, value in self.statistics.items():
            if value.shape != vectors.shape[:2]:
                raise ValueError(f"the statistic {name!r} has shape {tuple(value.shape)}, but there are {self.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        """(chains, draws)."""
        return self.vectors.shape[0], self.vectors.shape[1]

    def sample(self, num: int) -> Values:
        """Evenly spaced draws, the first and (if more than one is asked for) the last among them."""
        chains, draws = self.shape
        # In doubles: single precision cannot tell apart the places of more than 16 million draws.
        places = torch.linspace(0, chains * draws - 1, num, dtype=torch.float64).round().long()
        places = places.to(self.vectors.device)
        # By pairs of indices: to flatten a part of a mapped table would read it all.
        rows = self.vectors[places // draws, places % draws]
        if self.layout.sites:
            rows = rows.to(self.layout.sites[0].value.device)
        return torch.func.vmap(self.layout.unflatten)(rows)

    def tensors(self) -> Values:
        """The vectors, and the statistics under names of their own."""
        return {"vectors": self.vectors, **{_STATISTICS + name: value for name, value in self.statistics.items()}}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> Chains:
        """See `Approximation.restore`."""
        statistics = {name: value for name, value in tensors.items() if name.startswith(_STATISTICS)}
        others = {name: value for name, value in tensors.items() if name not in statistics}
        check_fit(others, {"vectors": torch.empty(layout.size, dtype=layout.dtype)}, leading=2)
        named = {name.removeprefix(_STATISTICS): value for name, value in statistics.items()}
        return cls(layout, others["vectors"], named)
