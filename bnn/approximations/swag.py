"""The Gaussian of stochastic weight averaging."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bnn.approximations.base import Approximation, Values, check_fit
from bnn.layout import Layout


class Iterates(Approximation):
    """``Normal(mean, (diag(variance) + D D' / (K - 1)) / 2)`` over the unconstrained numbers, D the K last deviations.

    Equation 1 of Maddox et al. (2019), arXiv:1902.02476.

    Args:
        layout: From numbers to sites.
        mean: ``(D,)``, of the iterates.
        variance: ``(D,)``, theirs about the mean.
        deviations: ``(K, D)``, each the difference of an iterate from the mean at its time; K = 0 or at least 2.
    """

    kind = "swag"

    def __init__(self, layout: Layout, mean: Tensor, variance: Tensor, deviations: Tensor):
        self.layout, self.mean, self.variance, self.deviations = layout, mean, variance, deviations

    @property
    def shape(self) -> None:
        """Continuous."""
        return None

    def sample(self, num: int) -> Values:
        """Two vectors of noise a draw, so that draw i is the same whatever their number."""
        mean, deviations = self.mean, self.deviations
        noise = [(torch.randn_like(mean), torch.randn_like(deviations[:, 0])) for _ in range(num)]
        diagonal, low_rank = (torch.stack([pair[i] for pair in noise]) for i in (0, 1))
        vectors = mean + (self.variance / 2).sqrt() * diagonal
        if len(deviations):
            vectors = vectors + low_rank @ deviations / math.sqrt(2 * (len(deviations) - 1))
        return torch.func.vmap(self.layout.unflatten)(vectors)

    def tensors(self) -> Values:
        """The mean, the variances and the deviations."""
        return {"mean": self.mean, "variance": self.variance, "deviations": self.deviations}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> Iterates:
        """See `Approximation.restore`."""
        vector = torch.empty(layout.size, dtype=layout.dtype)
        vectors = {name: value for name, value in tensors.items() if name != "deviations"}
        check_fit(vectors, {"mean": vector, "variance": vector})
        deviations = {name: value for name, value in tensors.items() if name == "deviations"}
        check_fit(deviations, {"deviations": vector}, leading=1)
        if len(tensors["deviations"]) == 1:
            raise ValueError("a single deviation has no covariance: there are none, or at least two")
        return cls(layout, tensors["mean"], tensors["variance"], tensors["deviations"])
