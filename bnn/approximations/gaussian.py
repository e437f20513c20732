"""Independent Gaussians."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bnn.approximations.base import Approximation, Values, check_fit
from bnn.layout import Layout


class Gaussian(Approximation):
    """Independent Gaussians over the unconstrained numbers.

    Args:
        layout: From numbers to sites.
        loc: ``(D,)``.
        log_scale: ``(D,)``, the logarithm of the standard deviations.
    """

    kind = "gaussian"

    def __init__(self, layout: Layout, loc: Tensor, log_scale: Tensor):
        self.layout, self.loc, self.log_scale = layout, loc, log_scale

    @property
    def shape(self) -> None:
        """Continuous."""
        return None

    def sample(self, num: int) -> Values:
        """One vector of noise a draw, so that draw i is the same whatever their number."""
        noise = torch.stack([torch.randn_like(self.loc) for _ in range(num)])
        return torch.func.vmap(self.layout.unflatten)(self.loc + self.log_scale.exp() * noise)

    def tensors(self) -> Values:
        """Both vectors."""
        return {"loc": self.loc, "log_scale": self.log_scale}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> Gaussian:
        """See `Approximation.restore`."""
        vector = torch.empty(layout.size, dtype=layout.dtype)
        check_fit(tensors, {"loc": vector, "log_scale": vector})
        return cls(layout, tensors["loc"], tensors["log_scale"])
