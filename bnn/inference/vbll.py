"""Variational Bayesian last layers: features and a Gaussian over the last layer, trained together without sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.nn import functional as F

from bnn.approximations import Approximation, LocalGaussian
from bnn.approximations.blocks import Dense
from bnn.capture import Backend
from bnn.data import Batch
from bnn.distributions import base
from bnn.inference.base import GradientMethod
from bnn.inference.divergence import negative_log_prior
from bnn.inference.laplace.selection import last_layer
from bnn.inference.laplace.unknowns import Unknowns
from bnn.inference.last_layer import LinearLayer, features_of, linear_layer
from bnn.inference.objective import Objective, Params, Terms
from bnn.inference.readings import refuse_uncertain_inputs
from bnn.layout import Layout
from bnn.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from bnn.model import BNN
from bnn.random import isolated


@dataclass(frozen=True, kw_only=True)
class VBLL(GradientMethod):
    """A Gaussian over the last layer, one of full covariance for each output; all other weights are points.

    Harrison, Willes and Snoek (2024), arXiv:2404.11599. The loss is ``E_q[-log p(y | x, W)] + T (KL(q || p) - log
    p(other weights))``; its first term has no sampling noise. With features z, outputs ``m_j = z'mean_j`` and variances
    ``v_j = z' S_j z`` it is exact for Gaussian noise, ``-log p(y | m) + sum_j v_j / (2 noise^2)``, and for classes
    bounded by Jensen's inequality, ``-m_y + log sum_j exp(m_j + v_j / 2)``. The noise scale is a point, at the mode
    under its prior. Predictions are those of the linear layer: exact for Gaussian noise.

    Args:
        init_scale: Standard deviation that q starts from, divided by the square root of the number of features.

    Raises (from `fit`):
        ValueError: A likelihood without such a bound; a prior of the last layer that is not Gaussian; a network that
            does not end in a linear layer; a learned prior scale of weights that are points (see `bnn.MAP`).
    """

    init_scale: float = 0.1

    def __post_init__(self) -> None:
        """See `GradientMethod`."""
        super().__post_init__()
        if not self.init_scale > 0:
            raise ValueError(f"init_scale is positive, not {self.init_scale}")

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`."""
        refuse_uncertain_inputs(model, "VBLL")
        if _gap(model.likelihood) is None:
            raise ValueError(
                f"VBLL knows no bound for {model.likelihood!r}: it takes Gaussian, Categorical (without smoothing) and "
                "Bernoulli, without missing targets"
            )
        return VBLLLoss(self, model, n_data, backend)


class VBLLLoss(Objective):
    """The negative evidence lower bound of the last layer, and the negative log prior of the rest, per datum."""

    method: VBLL

    def initial(self) -> dict[str, Tensor]:
        """Features and means at the start, narrow covariances, hyper-parameters at the median of their prior."""
        unknowns = Unknowns(self.model, tuned=False)
        linear = [name for name, module in self.model.net.named_modules() if isinstance(module, torch.nn.Linear)]
        if not linear:
            raise ValueError("VBLL needs a network that ends in a torch.nn.Linear: this one has none")
        self.layer: LinearLayer = linear_layer(self.model, linear[-1], unknowns)
        self._name, self._checked = linear[-1], False
        self._refuse_learned_scales()
        sites = [site for site in self.latents.sites if site.name not in self.layer.names]
        own = set(unknowns.weights.names)
        self._features = Layout([site for site in sites if site.name in own])
        self._hyper = Layout([site for site in sites if site.name not in own])
        last = Layout([site for site in self.latents.sites if site.name in self.layer.names])
        values = last.unflatten(self.method.start(self.model, last))
        mean = self.layer.rows(values)
        log_scale = math.log(self.method.init_scale / math.sqrt(self.layer.columns))
        parts = {
            "features": self.method.start(self.model, self._features),
            "hyper": self.method.start(self.model, self._hyper),
        }
        return {
            **{name: value for name, value in parts.items() if value.numel()},
            "mean": mean,
            "root": torch.diag_embed(torch.full_like(mean, log_scale)),
        }

    def _refuse_learned_scales(self) -> None:
        for group, prior, members in self.model._groups:
            others = set(members) - set(self.layer.names)
            if prior is not None and prior.learned_scale() and others:
                raise ValueError(
                    f"VBLL cannot be used with a learned prior scale of weights that are points ({group}: "
                    f"{sorted(others)}): their joint density with the scale grows without bound. Give them a fixed "
                    "scale, and the last layer a pattern of its own"
                )

    def _roots(self, raw: Tensor) -> Tensor:
        """``(k, p, p)``, lower triangular: the diagonal is kept as its logarithm."""
        return raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The bound at the mean of q, and what the variance of the outputs adds to it."""
        if not self._checked:
            self._check_last(batch)
        mean, raw = params["mean"], params["root"]
        empty = mean.new_zeros(0)
        features, hyper = params.get("features", empty), params.get("hyper", empty)
        values = {**self._features.unflatten(features), **self._hyper.unflatten(hyper), **self.layer.values(mean)}
        with features_of(self.layer) as seen:
            nll, trace = self.data_nll(values, points, batch, state)
        roots = self._roots(raw)
        variance = torch.einsum("np,jpq->njq", self.layer.inputs(seen[0]), roots).square().sum(-1)
        y: Any = trace.nodes["y"]
        gap = _gap(self.model.likelihood)
        assert gap is not None
        added = scale_and_mask(gap(base(y["fn"]), variance), y["scale"], y["mask"]).sum()
        kl = self._divergence(trace, mean, raw, roots) + negative_log_prior(self._features, trace, features)
        return Terms(nll + added, kl + negative_log_prior(self._hyper, trace, hyper))

    def _divergence(self, trace: Any, mean: Tensor, raw: Tensor, roots: Tensor) -> Tensor:
        """KL(q || p) of the last layer, summed over outputs."""
        loc, scale = self.layer.gaussian(trace, {})
        squares = (mean - loc).square() + roots.square().sum(-1)
        log_scales = scale.log().sum() - raw.diagonal(dim1=-2, dim2=-1).sum()
        return 0.5 * (squares / scale.square()).sum() - 0.5 * mean.numel() + log_scales

    def _check_last(self, batch: Batch) -> None:
        """Once: the last linear layer is what gives the outputs."""
        with isolated(device=batch.y.device):
            found = last_layer(self.model, [*self._features.names, *self.layer.names], batch.x)
        if found != self._name:
            raise ValueError(f"the network's output is that of {found!r}, not of its last linear layer {self._name!r}")
        self._checked = True

    def approximation(self, params: Params) -> Approximation:
        """One block an output; everything else stays at its point."""
        values = {
            **self._features.unflatten(params.get("features", params["mean"].new_zeros(0))),
            **self._hyper.unflatten(params.get("hyper", params["mean"].new_zeros(0))),
            **self.layer.values(params["mean"]),
        }
        centre = self.latents.flatten(values)
        indices = torch.arange(self.latents.size, device=centre.device).split(self.latents.sizes)
        places = dict(zip(self.latents.names, indices, strict=True))
        where = torch.cat([places[name] for name in self.layer.names])[self.layer.order().to(centre.device)]
        blocks = [Dense(root) for root in self._roots(params["root"])]
        return LocalGaussian(self.latents, centre, where, blocks, linear=True)


Gap = Callable[[Any, Tensor], Tensor]


def _gaussian_gap(fn: Any, variance: Tensor) -> Tensor:
    """``E[-log p(y | f)] + log p(y | m)`` for f with this mean and these variances ``(n, k)``: exact, ``(n,)``."""
    return 0.5 * (variance / fn.scale.reshape(variance.shape).square()).sum(1)


def _categorical_gap(fn: Any, variance: Tensor) -> Tensor:
    """An upper bound of the same, by Jensen's inequality on the logarithm: ``log sum_j p_j exp(v_j / 2)``."""
    return (fn.logits + 0.5 * variance).logsumexp(-1)


def _bernoulli_gap(fn: Any, variance: Tensor) -> Tensor:
    """The same for two classes, of which one has outputs of 0."""
    logits = fn.logits.reshape(variance.shape)
    return (F.softplus(logits + 0.5 * variance) - F.softplus(logits)).sum(1)


_GAPS: dict[type[Likelihood], Gap] = {
    Gaussian: _gaussian_gap,
    Categorical: _categorical_gap,
    Bernoulli: _bernoulli_gap,
}


def _gap(likelihood: Likelihood) -> Gap | None:
    if likelihood.missing or (isinstance(likelihood, Categorical) and likelihood.smoothing):
        return None
    return next((gap for kind, gap in _GAPS.items() if isinstance(likelihood, kind)), None)
