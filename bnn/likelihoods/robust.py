"""Noise with heavier tails than a Gaussian's, of one scale or of one that the network gives; quantiles."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bnn.likelihoods.base import Likelihood, Missing, Positive, diagonal_root
from bnn.likelihoods.gaussian import BOUND, bounded, means_and_scales


class StudentT(Likelihood):
    """Robust regression: ``y ~ StudentT(df, outputs, scale)``, per output independent; outliers pull little.

    Args:
        scale: As in `Gaussian`; it is the standard deviation times ``sqrt((df - 2) / df)``.
        df: Degrees of freedom: fixed, ``"learned"`` or a prior, such as ``Gamma(2, 0.1)`` (Juárez and Steel, Journal of
            Business and Economic Statistics 28, 2010). Up to 2 the variance is infinite, up to 1 there is no mean: a
            prediction says so.
        missing: See `Likelihood`.
    """

    def __init__(self, scale: Positive | None = None, df: Positive = 4.0, *, missing: Missing = None):
        super().__init__(missing=missing, scale=dist.HalfCauchy(1.0) if scale is None else scale, df=df)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``StudentT(df, outputs, scale)``, per output independent."""
        df, scale = latents["likelihood.df"], latents["likelihood.scale"]
        return dist.StudentT(df, outputs, scale).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``sqrt((df + 1) / (df + 3)) / scale``: Lange, Little and Taylor, JASA 84 (1989), appendix B."""
        df = latents["likelihood.df"]
        return diagonal_root(outputs, ((df + 1) / (df + 3)).sqrt() / latents["likelihood.scale"])


class HeteroscedasticStudentT(Likelihood):
    """Robust regression with a scale that the network gives too: ``y ~ StudentT(2 + excess, m, exp(bounded(t)))``.

    Outputs are those of `HeteroscedasticGaussian`: ``(n, 2)``, mean m and log-scale t of targets ``(n,)``, or
    ``(n, 2k)``. It holds one noise scale (t constant) and Gaussian noise (many degrees of freedom) as special cases.
    The degrees of freedom are above 2, so that there always is a variance.

    Args:
        excess: Degrees of freedom above 2: fixed, ``"learned"`` or a prior; by default ``Gamma(2, 0.1)`` (Juárez and
            Steel, Journal of Business and Economic Statistics 28, 2010, who take it for the degrees of freedom).
        missing: See `Likelihood`.
    """

    def __init__(self, excess: Positive | None = None, *, missing: Missing = None):
        super().__init__(missing=missing, excess=dist.Gamma(2.0, 0.1) if excess is None else excess)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``StudentT(2 + excess, m, exp(bounded(t)))``, per target independent."""
        means, logs = outputs.chunk(2, dim=1)
        df = (2 + latents["likelihood.excess"]).expand(means.shape)
        scales = bounded(logs).exp()
        if means.shape[1] == 1:
            return dist.StudentT(df[:, 0], means[:, 0], scales[:, 0])
        return dist.StudentT(df, means, scales).to_event(1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``sqrt((df + 1) / (df + 3)) / scale`` for a mean, ``sqrt(2 df / (df + 3)) d log scale / dt`` for a log-scale.

        Lange, Little and Taylor, JASA 84 (1989), appendix B: the two are uncorrelated.
        """
        logs = outputs.chunk(2, dim=1)[1]
        df = (2 + latents["likelihood.excess"]).expand(logs.shape)
        slopes = 1 - torch.tanh(logs / BOUND).square()
        of_means = ((df + 1) / (df + 3)).sqrt() * (-bounded(logs)).exp()
        return torch.diag_embed(torch.cat([of_means, (2 * df / (df + 3)).sqrt() * slopes], dim=1))

    def event(self, outputs: Tensor) -> tuple[int, ...]:
        """``()`` for two outputs, ``(k,)`` for 2k."""
        return means_and_scales(self, outputs)


class Laplace(Likelihood):
    """Absolute errors: ``y ~ Laplace(outputs, scale)``, per output independent; the outputs are medians.

    Args:
        scale: The mean absolute error, in units of y; otherwise as in `Gaussian`.
        missing: See `Likelihood`.
    """

    tails = True

    def __init__(self, scale: Positive | None = None, *, missing: Missing = None):
        super().__init__(missing=missing, scale=dist.HalfCauchy(1.0) if scale is None else scale)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Laplace(outputs, scale)``, per output independent."""
        return dist.Laplace(outputs, latents["likelihood.scale"]).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """1 / scale: the variance of the gradient, since there is no second derivative; see `OutputFisher`."""
        return diagonal_root(outputs, latents["likelihood.scale"].reciprocal())


class Quantile(Likelihood):
    """The q-quantile of y: the pinball loss as an asymmetric Laplace density, ``P(y < outputs) = q``.

    The outputs are that quantile (``prediction.outputs``). The density is a device for finding it, no description of
    y: other quantiles of a prediction, and the spread of the posterior, are to be taken with care. Yu and Moyeed,
    Statistics and Probability Letters 54 (2001); on the spread, Yang, Wang and He, arXiv:1505.06170.

    Args:
        q: The level, between 0 and 1.
        scale: Of the density ``q (1 - q) / scale exp(-pinball / scale)``; otherwise as in `Gaussian`.
        missing: See `Likelihood`.
    """

    tails = True

    def __init__(self, q: float, scale: Positive | None = None, *, missing: Missing = None):
        if not 0 < q < 1:
            raise ValueError(f"q is the level of a quantile, strictly between 0 and 1, not {q}")
        self.q = float(q)
        unknown = dist.HalfCauchy(1.0) if scale is None else scale
        super().__init__(missing=missing, settings={"q": self.q}, scale=unknown)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """Exponential on both sides of the output: of scale ``scale / (1 - q)`` below it, ``scale / q`` above."""
        scale = latents["likelihood.scale"] / math.sqrt(self.q * (1 - self.q))
        asymmetry = scale.new_tensor(math.sqrt(self.q / (1 - self.q)))
        return dist.AsymmetricLaplace(outputs, scale, asymmetry).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``sqrt(q (1 - q)) / scale``: the variance of the gradient; see `OutputFisher`."""
        return diagonal_root(outputs, math.sqrt(self.q * (1 - self.q)) / latents["likelihood.scale"])
