"""Gaussian noise: one scale, a scale an output, a full covariance between outputs, a scale that the network gives."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bnn.likelihoods.base import Likelihood, Missing, Positive, diagonal_root

#: Log-scales that a network gives are kept between -10 and 10; see `bounded`.
BOUND = 10.0


class Gaussian(Likelihood):
    """y = f(x) + noise, with Gaussian noise of one scale: ``y ~ Normal(outputs, scale)``, per output independent.

    Args:
        scale: The noise's standard deviation, in units of y: fixed, ``"learned"`` or a prior. The default prior,
            half-Cauchy(1), suits targets whose spread is around 1. A tensor or a prior of shape ``(k,)`` has one scale
            an output.
        missing: See `Likelihood`.
    """

    tails = True

    def __init__(self, scale: Positive | None = None, *, missing: Missing = None):
        super().__init__(missing=missing, scale=dist.HalfCauchy(1.0) if scale is None else scale)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Normal(outputs, scale)`` with the output dimension, if there is one, in the event."""
        return dist.Normal(outputs, latents["likelihood.scale"]).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """1 / scale, for each output by itself; see `OutputFisher`."""
        return diagonal_root(outputs, latents["likelihood.scale"].reciprocal())

    def averaged(self, outputs: Tensor, latents: Mapping[str, Tensor], covariance: Tensor) -> TorchDistributionMixin:
        """Gaussian, with both variances added; see `GaussianAverage`."""
        noise = latents["likelihood.scale"].square().expand(outputs.shape)
        if outputs.dim() == 1:
            return dist.Normal(outputs, (covariance[:, 0, 0] + noise).sqrt())
        return dist.MultivariateNormal(outputs, covariance + torch.diag_embed(noise))


class MultivariateGaussian(Likelihood):
    """Gaussian noise that is correlated between the k outputs: ``y ~ Normal(outputs, covariance)``.

    Give the number of outputs, and the covariance is unknown: ``diag(scale) L L' diag(scale)``, with one scale an
    output, and L the Cholesky factor of a correlation matrix under the LKJ prior (Lewandowski, Kurowicka and Joe,
    Journal of Multivariate Analysis 100, 2009), the latent ``likelihood.correlation``, ``(k, k)``. Or give the
    covariance, and it is fixed.

    Args:
        outputs: k, for an unknown covariance.
        covariance: ``(k, k)``, symmetric and positive definite, in squared units of y.
        scale: The noise's standard deviations, as in `Gaussian`; by default latent with half-Cauchy(1) priors.
        concentration: Of the LKJ prior: 1 is uniform over correlation matrices, more draws them to the identity.
        missing: See `Likelihood`; the numbers of a row that are there keep their joint density.
    """

    def __init__(
        self,
        outputs: int | None = None,
        *,
        covariance: Tensor | None = None,
        scale: Positive | None = None,
        concentration: float = 1.0,
        missing: Missing = None,
    ):
        if (outputs is None) == (covariance is None):
            raise ValueError("give the number of outputs (an unknown covariance), or covariance= (a fixed one)")
        self._correlation: Tensor | TorchDistributionMixin
        self.covariance = covariance
        if covariance is not None:
            if scale is not None:
                raise ValueError("scale= is a part of an unknown covariance: the one that is given holds it already")
            scale, self._correlation = _split(covariance)
            self.outputs = len(scale)
            settings = {"correlation": self._correlation.tolist()}
        else:
            assert outputs is not None
            if outputs < 2 or not concentration > 0:
                raise ValueError(f"outputs is at least 2, concentration positive; not {outputs} and {concentration}")
            self.outputs = outputs
            scale = dist.HalfCauchy(torch.ones(outputs)) if scale is None else scale
            self._correlation = dist.LKJCholesky(outputs, torch.tensor(concentration))
            settings = {"outputs": outputs, "concentration": concentration}
        super().__init__(missing=missing, settings=settings, scale=scale)

    def latents(self, like: Tensor) -> dict[str, Tensor]:
        """The scales and the Cholesky factor of the correlations; see `Likelihood.latents`."""
        own = super().latents(like)
        if isinstance(self._correlation, Tensor):
            return {**own, "likelihood.correlation": self._correlation.to(like)}
        concentration = self._correlation.concentration.to(like)
        prior = dist.LKJCholesky(self.outputs, concentration)
        return {**own, "likelihood.correlation": pyro.sample("likelihood.correlation", prior)}

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``MultivariateNormal(outputs, scale_tril=diag(scale) L)``."""
        return dist.MultivariateNormal(outputs, scale_tril=self._root(outputs, latents))

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """The inverse of the covariance's Cholesky factor, transposed; see `OutputFisher`."""
        root = self._root(outputs, latents)
        eye = torch.eye(self.outputs, dtype=root.dtype, device=root.device)
        return torch.linalg.solve_triangular(root, eye, upper=False).mT.expand(len(outputs), -1, -1)

    def left_out(self, root: Tensor, there: Tensor) -> Tensor:
        """The inverse of the covariance of those there: the Schur complement of the others in the precision."""
        absent = root * ~there.unsqueeze(-1)
        products = absent @ absent.mT + torch.diag_embed(there.to(root))
        return (root - root @ (absent.mT @ torch.linalg.solve(products, absent))) * there.unsqueeze(-1)

    def averaged(self, outputs: Tensor, latents: Mapping[str, Tensor], covariance: Tensor) -> TorchDistributionMixin:
        """Gaussian, with both covariances added; see `GaussianAverage`."""
        root = self._root(outputs, latents)
        return dist.MultivariateNormal(outputs, covariance + root @ root.mT)

    def event(self, outputs: Tensor) -> tuple[int, ...]:
        """``(k,)``."""
        if outputs.dim() != 2 or outputs.shape[1] != self.outputs:
            raise ValueError(
                f"a MultivariateGaussian of {self.outputs} outputs needs them of shape (n, {self.outputs}); the "
                f"network gives {tuple(outputs.shape)}"
            )
        return (self.outputs,)

    def _root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """The Cholesky factor of the covariance: ``(k, k)``, or one a row."""
        scale, correlation = latents["likelihood.scale"], latents["likelihood.correlation"]
        return scale.unsqueeze(-1) * correlation if scale.dim() else scale * correlation


def _split(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and the Cholesky factor of the correlations of a covariance, in double precision."""
    matrix = torch.as_tensor(covariance).double()
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not torch.allclose(matrix, matrix.mT):
        raise ValueError(f"covariance is a symmetric matrix (k, k), not of shape {tuple(matrix.shape)}")
    root, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        raise ValueError("covariance is not positive definite: it has no Cholesky factor")
    scale = matrix.diagonal().sqrt()
    return scale, root / scale.unsqueeze(-1)


class HeteroscedasticGaussian(Likelihood):
    """Gaussian noise whose scale the network gives too: ``y ~ Normal(m, exp(bounded(t)))``.

    Outputs ``(n, 2)`` are mean m and log-scale t of targets ``(n,)``; outputs ``(n, 2k)`` the k means, then the k
    log-scales, of targets ``(n, k)``. The log-scale is ``10 tanh(t / 10)``, which is t to within 1 % for ``|t| < 1.7``
    and stays within ``e^-10`` and ``e^10``: without a bound, an output of -50 divides residuals by e^-50, which single
    precision cannot square. A softplus in its place would leave the small scales unbounded. Scale targets to a spread
    around 1.

    Args:
        beta: Beta-NLL (Seitzer et al. 2022, arXiv:2203.09168): the training loss of a row is multiplied by
            ``scale^(2 beta)``, which is held constant for the gradient; 0.5 is the paper's choice. It makes training
            weights, no density: `log_prob`, MCMC, Laplace and leave-one-out know nothing of it, or refuse it.
        missing: See `Likelihood`.
    """

    tails = True

    def __init__(self, beta: float = 0.0, *, missing: Missing = None):
        if not 0 <= beta <= 1:
            raise ValueError(f"beta lies between 0 (the likelihood) and 1 (squared errors), not {beta}")
        self.beta = float(beta)
        self.weighs = f"beta={beta}" if beta else ""
        super().__init__(missing=missing, settings={"beta": self.beta})

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Normal(m, exp(bounded(t)))``."""
        if outputs.shape[1] == 2:
            return dist.Normal(outputs[:, 0], bounded(outputs[:, 1]).exp())
        means, logs = outputs.chunk(2, dim=1)
        return dist.Normal(means, bounded(logs).exp()).to_event(1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """1 / scale for a mean, ``sqrt(2) d log scale / dt`` for a log-scale; see `OutputFisher`."""
        logs = outputs.chunk(2, dim=1)[1]
        slopes = 1 - torch.tanh(logs / BOUND).square()
        return torch.diag_embed(torch.cat([(-bounded(logs)).exp(), math.sqrt(2) * slopes], dim=1))

    def training_weights(self, outputs: Tensor, latents: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """``scale^(2 beta)``, without a gradient; see `Likelihood.training_weights`."""
        return (2 * self.beta * bounded(outputs[:, 1])).exp().detach()

    def event(self, outputs: Tensor) -> tuple[int, ...]:
        """``()`` for two outputs, ``(k,)`` for 2k."""
        event = means_and_scales(self, outputs)
        if self.weighs and event:
            raise ValueError(f"{self.weighs} weighs rows, which have one target each; here are {event[0]}")
        return event


def bounded(log_scale: Tensor) -> Tensor:
    """A log-scale between -10 and 10: ``10 tanh(t / 10)``."""
    return BOUND * torch.tanh(log_scale / BOUND)


def means_and_scales(likelihood: Likelihood, outputs: Tensor) -> tuple[int, ...]:
    """The shape of one row's target under outputs of k means, then k log-scales: ``()`` for two, ``(k,)`` for 2k."""
    if outputs.dim() != 2 or outputs.shape[1] % 2:
        raise ValueError(
            f"a {type(likelihood).__name__} needs outputs of shape (n, 2k), k means and k log-scales; the network "
            f"gives {tuple(outputs.shape)}"
        )
    return () if outputs.shape[1] == 2 else (outputs.shape[1] // 2,)
