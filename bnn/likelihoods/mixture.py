"""Mixture density networks: a conditional density with several modes."""

from __future__ import annotations

from collections.abc import Mapping

from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bnn.likelihoods.base import Likelihood, Missing
from bnn.likelihoods.gaussian import bounded


class MixtureDensity(Likelihood):
    """A mixture of K Gaussians, all of which the network gives: Bishop (1994), "Mixture density networks".

    Outputs ``(n, 3K)`` are K log-weights, K means and K log-scales (bounded as in `HeteroscedasticGaussian`) of targets
    ``(n,)``. For targets ``(n, k)``, of which each component has independent ones, outputs are ``(n, K (1 + 2k))``: K
    log-weights, then K rows of k means, then K rows of k log-scales.

    Args:
        components: K.
        missing: See `Likelihood`; for targets ``(n,)``.
    """

    def __init__(self, components: int, *, missing: Missing = None):
        if components < 1:
            raise ValueError(f"a mixture has at least one component, not {components}")
        self.components = components
        super().__init__(missing=missing, settings={"components": components})

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``MixtureSameFamily`` of Gaussians."""
        k = self.components
        numbers = (outputs.shape[1] - k) // 2
        logits, means, logs = outputs.split([k, numbers, numbers], dim=1)
        weights = dist.Categorical(logits=logits)
        if numbers == k:
            return dist.MixtureSameFamily(weights, dist.Normal(means, bounded(logs).exp()))
        shape = (len(outputs), k, numbers // k)
        parts = dist.Normal(means.reshape(shape), bounded(logs).exp().reshape(shape))
        return dist.MixtureSameFamily(weights, parts.to_event(1))

    def event(self, outputs: Tensor) -> tuple[int, ...]:
        """``()`` for 3K outputs, ``(k,)`` for ``K (1 + 2k)``."""
        per, left = divmod(outputs.shape[-1], self.components)
        if outputs.dim() != 2 or left or per < 3 or per % 2 == 0:
            raise ValueError(
                f"a MixtureDensity of {self.components} components needs outputs of shape (n, {3 * self.components}), "
                f"or (n, {self.components} * (1 + 2k)) for k targets a row; the network gives {tuple(outputs.shape)}"
            )
        return () if per == 3 else ((per - 1) // 2,)
