"""Variational inference with a normalising flow, over small networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnn import approximations
from bnn.approximations.flow import FlowNetwork
from bnn.capture import Backend
from bnn.data import Batch
from bnn.inference.base import GradientMethod
from bnn.inference.divergence import cross_entropy
from bnn.inference.draws import mean_over_draws
from bnn.inference.gaussian import Schedule
from bnn.inference.mean_field import narrow
from bnn.inference.memory import check_memory
from bnn.inference.objective import Objective, Params, Terms
from bnn.model import BNN
from bnn.noise import standard_normal


@dataclass(frozen=True, kw_only=True)
class Flow(GradientMethod):
    """Variational inference with a normalising flow: a Gaussian draw bent by networks, whose density is known.

    Minimises ``E_q[-log p(y | w)] + T KL(q || p)`` with q the distribution of ``loc + scale * f(noise)``, f a row of
    inverse autoregressive transforms. Rezende and Mohamed (2015), arXiv:1505.05770; Kingma et al. (2016),
    arXiv:1606.04934.

    Each transform has some ``9 D^2`` numbers or more: for networks of up to some hundred weights.

    Args:
        transforms: How many, one after the other.
        hidden: Units of each transform's hidden layer; ``None``: 2 D, and at least 32.
        draws: Draws a step.
        init_scale: Standard deviation that q starts from, for a weight divided by sqrt(fan-in).
    """

    epochs: int = 2000
    schedule: Schedule | None = torch.optim.lr_scheduler.CosineAnnealingLR
    transforms: int = 4
    hidden: int | None = None
    draws: int = 16
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        """See `GradientMethod`."""
        super().__post_init__()
        for name in ("transforms", "draws"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} is a whole number from 1, not {getattr(self, name)!r}")
        if not self.init_scale > 0:
            raise ValueError(f"init_scale is positive, not {self.init_scale}")

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`."""
        return FlowLoss(self, model, n_data, backend)


class FlowLoss(Objective):
    """The negative evidence lower bound per datum of a flow."""

    method: Flow
    bound = True

    def initial(self) -> dict[str, Tensor]:
        """A narrow Gaussian around the starting point: the transforms begin as the identity."""
        size = self.latents.size
        hidden = self.method.hidden or max(32, 2 * size)
        if hidden < size:
            raise ValueError(f"hidden is at least the number of unconstrained numbers, {size}, not {hidden}")
        # Input, output and skip weights; each with mask, masked weight, their gradients and two moments of Adam.
        values = 6 * self.method.transforms * (3 * size * hidden + 2 * size * size)
        check_memory("Flow", self.latents, values, "LowRank or MeanField")
        loc, log_scale = narrow(self.method, self.model, self.latents, self.method.init_scale)
        network = FlowNetwork(size, self.method.transforms, hidden, loc)
        self._network = (network,)  # in a tuple, so that its parameters do not count as this module's
        weights = network.places.flatten(dict(network.named_parameters()))
        return {"loc": loc, "log_scale": log_scale, "weights": weights}

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """log q - log p at the draws; for the noise's log-density its mean, which has the same gradient."""
        q = self.approximation(params)
        noise = standard_normal((self.method.draws, *q.loc.shape), q.loc)
        vectors, log_det = q.push(noise)

        def one(own: Sequence[Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            nll, trace = self.data_nll(self.latents.unflatten(own[0]), points, batch, buffers)
            return nll, cross_entropy(self.latents, trace, own[0], None, own[0])

        nll, cross = mean_over_draws(one, [vectors], state, self.mapped)
        entropy = log_det.mean() + 0.5 * (1 + math.log(2 * math.pi)) * self.latents.size
        return Terms(nll, cross - entropy)

    def approximation(self, params: Params) -> approximations.Flow:
        """The flow of these parameters."""
        (network,) = self._network
        return approximations.Flow(self.latents, params["loc"], params["log_scale"], params["weights"], network)
