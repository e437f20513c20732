"""Variational inference with correlated Gaussians: full covariance, or low rank plus diagonal."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnn import approximations
from bnn.approximations import Correlated
from bnn.capture import Backend
from bnn.data import Batch
from bnn.inference.base import GradientMethod
from bnn.inference.divergence import cross_entropy
from bnn.inference.draws import mean_over_draws
from bnn.inference.mean_field import narrow
from bnn.inference.memory import check_memory
from bnn.inference.natural import FullRankOptimizer
from bnn.inference.objective import Objective, Params, Terms
from bnn.model import BNN
from bnn.noise import standard_normal

Schedule = Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]


@dataclass(frozen=True, kw_only=True)
class CorrelatedMethod(GradientMethod):
    """What `FullRank` and `LowRank` share.

    Args:
        draws: Draws a step, in antithetic pairs, so that an even number.
        init_scale: Standard deviation that q starts from, for a weight divided by sqrt(fan-in).
    """

    schedule: Schedule | None = torch.optim.lr_scheduler.CosineAnnealingLR
    draws: int = 8
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        """See `GradientMethod`."""
        super().__post_init__()
        if self.draws < 2 or self.draws % 2:
            raise ValueError(f"draws come in antithetic pairs: an even number from 2, not {self.draws}")
        if not self.init_scale > 0:
            raise ValueError(f"init_scale is positive, not {self.init_scale}")


@dataclass(frozen=True, kw_only=True)
class FullRank(CorrelatedMethod):
    """Variational inference with one Gaussian of full covariance over all unconstrained numbers.

    Minimises ``E_q[-log p(y | w)] + T KL(q || p)`` by natural gradients (`bnn.inference.natural.FullRankOptimizer`),
    from reparameterised draws in antithetic pairs whose gradient leaves out the score of q: where q is the posterior
    it is zero at every draw, not only on average ("sticking the landing", Roeder, Wu and Duvenaud 2017,
    arXiv:1703.09194). Kucukelbir et al. (2017), arXiv:1603.00788.

    The covariance has D^2 / 2 numbers and a step costs D^3 multiplications: up to some 1,000 weights.

    Args:
        lr: Share of the way to the optimum of a quadratic target that a step goes.
    """

    epochs: int = 500
    lr: float = 0.1
    optimizer: Callable[..., torch.optim.Optimizer] = FullRankOptimizer

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`. The gradient of its parameters is in nats, N / T that of the loss."""
        return FullRankLoss(self, model, n_data, backend)


@dataclass(frozen=True, kw_only=True)
class LowRank(CorrelatedMethod):
    """Variational inference with a Gaussian whose covariance is ``diag(s) (I + W W') diag(s)``, W of some columns.

    Minimises ``E_q[-log p(y | w)] + T KL(q || p)`` from reparameterised draws, as `FullRank` takes them. Ong, Nott and
    Smith (2018), arXiv:1701.03208; Roeder, Wu and Duvenaud (2017), arXiv:1703.09194.

    Args:
        rank: Columns of W: directions in which all weights vary together. At the number of weights every covariance
            can be had.
    """

    epochs: int = 1000
    lr: float = 0.05
    rank: int = 10

    def __post_init__(self) -> None:
        """See `GradientMethod`."""
        super().__post_init__()
        if self.rank != int(self.rank) or self.rank < 1:
            raise ValueError(f"rank is a whole number from 1, not {self.rank!r}")

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`."""
        return LowRankLoss(self, model, n_data, backend)


class CorrelatedLoss(Objective):
    """The negative evidence lower bound per datum, its divergence in closed form where one is known."""

    method: CorrelatedMethod
    bound = True

    @abstractmethod
    def approximation(self, params: Params) -> Correlated:
        """The Gaussian of these parameters."""

    @abstractmethod
    def scaled(self, params: Params) -> Params:
        """The parameters as they are, their gradients in the optimiser's unit."""

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The value is that of the closed forms; the gradient is that of log q - log p along the path of the draws.

        Both have the same expectation. The share `landing` of the entropy's gradient is taken at the draws, the rest in
        closed form: at 1 the gradient has no variance where q is the posterior, at 0 it has the least where q is much
        narrower. `landing` follows c = E[e R' H R e] / D, e the noise of a draw R e and H the Hessian of -log p: the
        regression coefficient of the likelihood's and prior's pull on that of the entropy. c is the derivative of the
        loss by the draws' width, so that a gradient step of `landing` moves it there.
        """
        q = self.approximation(self.scaled(params))
        still = self.approximation({name: value.detach() for name, value in params.items()})
        landing, total = params["landing"].squeeze(-1), self.n_data / self.temperature
        share, moving = landing.detach().clamp(0, 1), landing - landing.detach()
        shape = (self.method.draws // 2, q.noise_size)
        half = standard_normal(shape, q.loc)
        deviation = q.deviation(torch.cat([half, -half]))
        pull, scale = share * still.precision_times(deviation.detach()), still.marginal_scale()
        width = 1 - total / self.latents.size * moving

        def one(own: Sequence[Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            away, pull = own
            draw = q.loc + width * away
            nll, trace = self.data_nll(self.latents.unflatten(draw), points, batch, buffers)
            path = cross_entropy(self.latents, trace, draw, None, draw) - (pull * away).sum()
            value = cross_entropy(self.latents, trace, still.loc, scale, draw.detach())
            return nll, path, value.detach()

        nll, path, value = mean_over_draws(one, [deviation, pull], state, self.mapped)
        path = path - (1 - share) * q.entropy() + total * share * moving
        return Terms(nll, value - still.entropy() + path - path.detach())


class FullRankLoss(CorrelatedLoss):
    """The loss of `FullRank`."""

    method: FullRank

    def initial(self) -> dict[str, Tensor]:
        """Around the starting point, narrow and uncorrelated."""
        # The factor, its root, their gradients, and four in the optimiser's step.
        check_memory("FullRank", self.latents, 8 * self.latents.size**2, "LowRank or MeanField")
        loc, log_scale = narrow(self.method, self.model, self.latents, self.method.init_scale)
        return {"loc": loc, "factor": log_scale.diag(), "landing": loc.new_zeros(1)}

    def scaled(self, params: Params) -> Params:
        """In nats: the natural gradient knows no data set whose size it could be divided by."""
        total = self.n_data / self.temperature
        own = {name: params[name] for name in ("loc", "factor")}
        return {name: value.detach() + total * (value - value.detach()) for name, value in own.items()}

    def approximation(self, params: Params) -> approximations.FullRank:
        """The Gaussian of these parameters."""
        return approximations.FullRank(self.latents, params["loc"], params["factor"])


class LowRankLoss(CorrelatedLoss):
    """The loss of `LowRank`."""

    method: LowRank

    def initial(self) -> dict[str, Tensor]:
        """Around the starting point, narrow; W at random and small, since at zero it would stay there."""
        size, rank = self.latents.size, self.method.rank
        if rank > size > 0:
            raise ValueError(f"rank is at most the number of unconstrained numbers, {size}, not {rank}")
        # The factor, its gradient, two moments of Adam and two temporaries.
        check_memory(f"LowRank(rank={rank})", self.latents, 6 * size * rank, "a smaller rank or MeanField")
        loc, log_scale = narrow(self.method, self.model, self.latents, self.method.init_scale)
        factor = torch.randn(size, rank, dtype=loc.dtype, device=loc.device) * 0.1 / math.sqrt(rank)
        return {"loc": loc, "log_scale": log_scale, "factor": factor, "landing": loc.new_zeros(1)}

    def scaled(self, params: Params) -> Params:
        """Per datum, like the loss."""
        return params

    def approximation(self, params: Params) -> approximations.LowRank:
        """The Gaussian of these parameters."""
        return approximations.LowRank(self.latents, params["loc"], params["log_scale"], params["factor"])
