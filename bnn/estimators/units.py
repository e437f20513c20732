"""Predictions in the target's own units, from a model of standardised targets: an affine map of laws, not of numbers.

With ``y = loc + scale * z`` the density of y is that of z over `scale`: ``log p(y) = log p(z) - sum(log scale)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import pyro
import torch
from numpy.typing import NDArray
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from bnn.likelihoods import GaussianAverage, Likelihood
from bnn.prediction import Prediction, Spread
from bnn.random import isolated


class InUnits(Likelihood):
    """A likelihood of standardised targets, said of ``loc + scale * target``. For predictions: nothing is fitted by it.

    Args:
        of: The likelihood that was fitted.
        loc: A number, or one a target ``(k,)``.
        scale: Likewise, positive.
    """

    def __init__(self, of: Likelihood, loc: Tensor, scale: Tensor):
        super().__init__(settings={"of": of, "loc": loc.tolist(), "scale": scale.tolist()})
        self.of, self.loc, self.scale = of, loc, scale
        self.fields, self.support = of.fields, of.support

    def latents(self, like: Tensor) -> dict[str, Tensor]:
        """Those of the likelihood that was fitted, in its units."""
        return self.of.latents(like)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """The law of y in its own units, from outputs in standardised ones."""
        return _mapped(self.of.distribution(outputs, latents), self.loc, self.scale)

    def averaged(self, outputs: Tensor, latents: Mapping[str, Tensor], covariance: Tensor) -> TorchDistributionMixin:
        """See `bnn.likelihoods.GaussianAverage`: `covariance` is in squared units of y, as `Spread` gives it here."""
        assert isinstance(self.of, GaussianAverage)
        return _mapped(
            self.of.averaged(outputs, latents, covariance / _squares(self.scale, covariance)), self.loc, self.scale
        )

    def event(self, outputs: Tensor) -> tuple[int, ...]:
        """That of the likelihood that was fitted."""
        return self.of.event(outputs)

    def prediction(self, standardised: Prediction) -> Prediction:
        """A prediction under the likelihood that was fitted as one of y in its own units, in double precision."""
        latents = {name: value.double() for name, value in standardised.latents.items()}
        spread = standardised.spread
        if spread is not None:
            covariance = spread.covariance.double()
            draw = spread.draw
            spread = Spread(covariance * _squares(self.scale, covariance), lambda num: draw(num).double())
        return Prediction(self, standardised.outputs.double(), latents, spread)


def in_units(prediction: Prediction, loc: NDArray[Any], scale: NDArray[Any]) -> Prediction:
    """A prediction of standardised targets as one of ``loc + scale * target``, in double precision.

    Args:
        prediction: Of standardised targets.
        loc: ``()`` or ``(k,)``.
        scale: Likewise.
    """
    device = prediction.outputs.device
    shift, factor = (torch.as_tensor(value, dtype=torch.float64, device=device) for value in (loc, scale))
    return InUnits(prediction.likelihood, shift, factor).prediction(prediction)


def can_be_scaled(likelihood: Likelihood, width: int | None) -> bool:
    """Whether standardised targets can be brought back: the law has a location and a scale, and no fixed bounds.

    Args:
        likelihood: Of the targets.
        width: How many outputs the network has; None: outputs ``(n,)``.
    """
    if likelihood.support is not None or likelihood.labels or likelihood.intervals:
        return False
    outputs = torch.zeros(2) if width is None else torch.zeros(2, width)
    with isolated(0), pyro.get_param_store().scope():
        latents = {name: value.detach() for name, value in likelihood.latents(outputs).items()}
    try:
        _mapped(likelihood.distribution(outputs, latents), torch.zeros(()), torch.ones(()))
    except NotImplementedError:
        return False
    return True


def _squares(scale: Tensor, covariance: Tensor) -> Tensor:
    """``scale scale'``, which broadcasts against covariances ``(..., k, k)``."""
    each = scale.expand(covariance.shape[-1])
    return each.unsqueeze(-1) * each


@singledispatch
def _mapped(fn: Distribution, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
    """The law of ``loc + scale * z`` where z has the law `fn`.

    Raises:
        NotImplementedError: The family has no location and scale.
    """
    raise NotImplementedError(f"{type(fn).__name__} has no location and scale")


@_mapped.register
def _(fn: torch.distributions.Independent, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:  # type: ignore[type-arg]
    return _mapped(fn.base_dist, loc, scale).to_event(fn.reinterpreted_batch_ndims)


@_mapped.register
def _(fn: dist.ExpandedDistribution, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
    return _mapped(fn.base_dist, loc, scale).expand(fn.batch_shape)


@_mapped.register
def _(fn: torch.distributions.Normal, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
    return dist.Normal(loc + scale * fn.loc, scale * fn.scale)


@_mapped.register
def _(fn: torch.distributions.Laplace, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
    return dist.Laplace(loc + scale * fn.loc, scale * fn.scale)


@_mapped.register
def _(fn: torch.distributions.StudentT, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
    return dist.StudentT(fn.df, loc + scale * fn.loc, scale * fn.scale)


@_mapped.register
def _(fn: dist.AsymmetricLaplace, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
    return dist.AsymmetricLaplace(loc + scale * fn.loc, scale * fn.scale, fn.asymmetry)


@_mapped.register
def _(fn: torch.distributions.MultivariateNormal, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
    root = fn.scale_tril * scale.expand(fn.event_shape).unsqueeze(-1)
    return dist.MultivariateNormal(loc + scale * fn.loc, scale_tril=root)


@_mapped.register
def _(fn: torch.distributions.MixtureSameFamily, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
    return dist.MixtureSameFamily(fn.mixture_distribution, _mapped(fn.component_distribution, loc, scale))
