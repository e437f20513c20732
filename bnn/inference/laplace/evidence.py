"""The Laplace approximation of the marginal likelihood, and its maximum over the hyper-parameters.

    log p(D | h) ~ log p(D | w, h) + log p(w | h) + d/2 log 2 pi - 1/2 log |H + P|,

w the mode, H the curvature of the likelihood, P that of the prior: MacKay (1992), Neural Computation 4; for networks,
with H the Gauss-Newton matrix, Immer et al. (2021), arXiv:2104.04975.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bnn.approximations import LocalGaussian
from bnn.approximations.blocks import Block
from bnn.data import Data, as_source
from bnn.inference.laplace.curvature import Curvature, DenseCurvature, Kind, output_root, precise
from bnn.inference.laplace.mode import Mode
from bnn.inference.laplace.unknowns import (
    Hyper,
    Unknowns,
    Values,
    correlated,
    log_prior,
    prior_precision,
    unknowns_trace,
)
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import isolated


class HyperParameters:
    """The hyper-parameters around a mode, in double precision: what they make of the priors, and their own density.

    Args:
        model: Copied.
        unknowns: Of the model.
        mode: Weights and points, and the hyper-parameters to start from.
    """

    def __init__(self, model: BNN, unknowns: Unknowns, mode: Mode):
        self.model = model.copy()
        self.dtype = precise(model.like)
        self.model.net.to(self.dtype)
        self.unknowns = unknowns
        self._weights = {name: value.to(self.dtype) for name, value in mode.weights.items()}
        self._points = {name: value.to(self.dtype) for name, value in mode.points.items()}
        self.start = mode.hyper.to(self.dtype)

    def at(self, vector: Tensor) -> tuple[Hyper, Values, Any]:
        """What ``(size,)`` numbers stand for, the likelihood's unknowns with them, and the trace of the priors."""
        hyper = self.unknowns.hyper(vector)
        hyper = Hyper(*({name: v.to(self.dtype) for name, v in part.items()} for part in vars(hyper).values()))
        latents, trace = unknowns_trace(self.model, self._weights, hyper, self._points)
        return hyper, latents, trace

    def joint_prior_precision(self, names: list[str]) -> Tensor:
        """The Hessian of the weights' negative log prior over all numbers of these weights: ``(d, d)``."""
        sizes = [self._weights[name].numel() for name in names]

        def negative(flat: Tensor) -> Tensor:
            parts = zip(names, flat.split(sizes), strict=True)
            moved = self._weights | {name: part.view_as(self._weights[name]) for name, part in parts}
            _, trace = unknowns_trace(self.model, moved, self.unknowns.hyper(self.start), self._points)
            return -torch.stack([log_prior(trace, name, None) for name in names]).sum()

        flat = torch.cat([self._weights[name].reshape(-1) for name in names])
        return torch.func.jacrev(torch.func.grad(negative))(flat)

    def log_prior(self, vector: Tensor) -> Tensor:
        """The log-density of the random ones, over their own (constrained) values: a scalar."""
        hyper, _, trace = self.at(vector)
        terms = [log_prior(trace, name, None) for name in hyper.latents]
        return torch.stack(terms).sum() if terms else vector.new_zeros(())


class Evidence:
    """The log marginal likelihood at a mode as a function of the hyper-parameters, in nats for the whole data set.

    The curvature is taken once. Where the noise scale is a hyper-parameter, the curvature follows it by the ratio of
    the curvatures in the outputs, which is exact where that scale multiplies all of them, or all of one output.

    Args:
        hyper: Around the mode; they start from the values at which the curvature was taken.
        names: The weights that it is over, in the order of the curvature's blocks. The evidence is that of the model in
            which the others are fixed.
        curvature: At the mode.
        kind: Of curvature.
        temperature: T; the likelihood counts to the power 1/T.
    """

    def __init__(
        self,
        hyper: HyperParameters,
        names: list[str],
        curvature: Curvature,
        kind: Kind,
        temperature: float = 1.0,
    ):
        self.hyper, self.curvature, self.names, self.kind = hyper, curvature, names, kind
        self.temperature = temperature
        self.likelihood = hyper.model.likelihood
        self._sizes = [block.size for block in curvature.blocks]
        self._outputs = curvature.outputs.to(hyper.dtype)
        self._targets = self.likelihood.convert(curvature.targets, hyper.dtype)
        self._split = by_output(hyper.unknowns, hyper.start)
        self._strength = self._strengths(hyper.at(hyper.start)[1]).detach()

    def __call__(self, vector: Tensor) -> Tensor:
        """The log marginal likelihood at hyper-parameters ``(size,)``: a scalar, differentiable."""
        hyper, latents, trace = self.hyper.at(vector)
        prior = torch.stack([log_prior(trace, name, hyper.factors.get(name)) for name in self.names]).sum()
        shares = self._shares(latents)
        pieces = zip(self.curvature.blocks, self._precisions(hyper, trace), strict=True)
        log_det = torch.stack([block.log_det(shares, precision) for block, precision in pieces]).sum()
        likelihood = self.likelihood.observation(self._outputs, latents).log_prob(self._targets).sum()
        return likelihood / self.temperature + prior + 0.5 * sum(self._sizes) * math.log(2 * math.pi) - 0.5 * log_det

    def blocks(self, vector: Tensor) -> list[Block]:
        """The Gaussian at hyper-parameters ``(size,)``."""
        with torch.no_grad():
            hyper, latents, trace = self.hyper.at(vector)
            shares = self._shares(latents)
            pieces = zip(self.curvature.blocks, self._precisions(hyper, trace), strict=True)
            return [block.block(shares, prior) for block, prior in pieces]

    def _precisions(self, hyper: Hyper, trace: Any) -> tuple[Tensor, ...]:
        """The prior's, for each block."""
        if correlated(trace, self.names):
            return (self._joint_precision,)
        precisions = [prior_precision(trace, name, hyper.factors.get(name)) for name in self.names]
        return torch.cat(precisions).split(self._sizes)

    @cached_property
    def _joint_precision(self) -> Tensor:
        """Of a prior under which weights are correlated, ``(d, d)``. It has no hyper-parameters, so that it stays.

        Raises:
            ValueError: The covariance of the posterior is not one whole matrix.
        """
        if len(self.curvature.blocks) > 1 or not isinstance(self.curvature.blocks[0], DenseCurvature):
            raise ValueError(
                "the prior correlates the weights (a posterior as prior), which only covariance='full' can keep: use "
                "it, or posterior.as_prior(covariance='diag')"
            )
        return self.hyper.joint_prior_precision(self.names)

    def _shares(self, latents: Values) -> Tensor:
        """How much the curvature of each part is of what it was, ``(m,)``."""
        if not self.hyper.unknowns.size:
            return torch.ones_like(self._strength) / self.temperature
        return self._strengths(latents) / self._strength / self.temperature

    def _strengths(self, latents: Values) -> Tensor:
        root = output_root(self.likelihood, self._outputs, latents, self._targets, self.kind)
        parts = root.square().sum((0, 1))
        return (parts if self._split else parts.sum(0, keepdim=True)).clamp(min=1e-300)


def by_output(unknowns: Unknowns, hyper: Tensor) -> bool:
    """Whether the likelihood has a hyper-parameter with one value an output: the curvature is then kept by outputs."""
    found = unknowns.hyper(hyper)
    own = {name: value for name, value in {**found.latents, **found.points}.items() if name.startswith("likelihood.")}
    return any(value.numel() > 1 for value in own.values())


def tuned(hyper: HyperParameters, evidence: Callable[[Tensor], Tensor], steps: int = 100) -> Tensor:
    """The hyper-parameters at which marginal likelihood times their prior is largest, ``(size,)``, by L-BFGS.

    Those on which the marginal likelihood does not depend (such as the prior scale of weights that are not among the
    ones that it is over) stay where they are.
    """
    vector = hyper.start.detach().clone().requires_grad_()
    if not vector.numel():
        return hyper.start
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(evidence(vector), vector)
    active = (slope != 0).to(vector)
    optimizer = torch.optim.LBFGS(
        [vector], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-7, tolerance_change=1e-12
    )

    def closure() -> Tensor:
        loss = -(evidence(vector) + hyper.log_prior(vector))
        (gradient,) = torch.autograd.grad(loss, vector)
        vector.grad = gradient * active
        return loss

    optimizer.step(closure)
    best = vector.detach()
    if not bool(best.isfinite().all()):
        raise RuntimeError("tuning the hyper-parameters left the finite numbers: give tune=None, or narrower priors")
    return best


def log_marginal_likelihood(posterior: Posterior, data: Data, n_data: int | None = None) -> float:
    """The Laplace approximation of log p(data | hyper-parameters) that a fitted posterior stands for, in nats.

    Args:
        posterior: From `bnn.Laplace`: a Gaussian around a mode.
        data: What it was fitted on; see `bnn.fit`.
        n_data: As in `bnn.fit`.

    Raises:
        TypeError: A posterior of another kind.
    """
    local, model = posterior.approximation, posterior.model
    if not isinstance(local, LocalGaussian):
        raise TypeError(f"the Laplace marginal likelihood is that of a bnn.Laplace posterior, not of {posterior!r}")
    source = as_source(data, model.likelihood, model.like, 1024, n_data=n_data)
    values = {**local.mode, **posterior.points}
    own = {name: value for name, value in values.items() if name in dict(model.net.named_parameters())}
    hyper = Hyper({name: value for name, value in local.mode.items() if name not in own}, {}, {})
    total = 0.0
    with torch.no_grad(), isolated(0, model.like.device):
        latents, trace = unknowns_trace(model, own, hyper, posterior.points)
        for batch in source.batches():
            outputs = model.forward(own, batch.x, posterior.state)
            total += float(model.likelihood.observation(outputs, latents).log_prob(batch.y).double().sum())
        prior = sum(float(log_prior(trace, name, None)) for name in local.random_sites)
    return total + prior + 0.5 * len(local.where) * math.log(2 * math.pi) + 0.5 * float(local.log_det())
