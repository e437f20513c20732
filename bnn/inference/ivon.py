"""IVON: mean-field variational inference by an online Newton method, at about the cost of Adam."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnn.approximations import Approximation, Gaussian
from bnn.capture import Backend, Captured
from bnn.data import Batch
from bnn.inference.base import GradientMethod
from bnn.inference.divergence import kl_divergence
from bnn.inference.draws import mean_over_draws
from bnn.inference.gaussian import Schedule
from bnn.inference.mean_field import narrow
from bnn.inference.natural import NaturalOptimizer
from bnn.inference.objective import Objective, Params, Terms
from bnn.model import BNN


class IVONOptimizer(NaturalOptimizer):
    """The update of Shen et al. (2024), arXiv:2402.17641, algorithm 1, of the mean m and the precision p = 1 / s^2.

    In the paper p is N (h + d), h the Hessian's diagonal a datum and d the weight decay. With the gradients g of m and
    r of p that `IVONLoss` gives, rho = 1 - betas[1] and t steps done::

        v <- betas[0] v + (1 - betas[0]) g
        p <- p - rho r + rho^2 r^2 / (2 p)
        m <- m - lr v / (1 - betas[0]^t) / p

    The last term of the second line is what keeps the precision positive (Lin, Schmidt and Khan 2020,
    arXiv:2002.10060). rho is larger in the beginning, 5 / (t + 100): the estimate of h forgets its start, and averages
    over the last fifth of the steps, until that is longer than 1 / (1 - betas[1]) steps. And both steps are bounded:
    far from the optimum an estimate of h is almost only noise, and a Newton step with one that is too small runs away.

    Args:
        params: ``loc`` and ``precision``, and any points.
        lr: Share of a Newton step.
        betas: Of the average gradient, and of the average Hessian.
    """

    #: Bounds on the root mean square of a step: of the mean in standard deviations, of the precision relative to it.
    LARGEST_MEAN, LARGEST_PRECISION = 1.0, 0.1

    def __init__(self, params: Iterable[Any], lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.99999)):
        super().__init__(params, 2, lr, betas=betas)
        self._program: Captured | None = None

    def move(self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """See the class."""
        (loc, precision), (beta, slow) = params, group["betas"]
        state = self.state[loc]
        if not state:
            state["momentum"], state["step"] = torch.zeros_like(loc), torch.zeros(())
        state["step"] += 1
        step = int(state["step"])
        rate, lr = max(1 - slow, 5 / (step + 100)), float(group["lr"]) / (1 - beta**step)
        numbers = torch.tensor([1 - beta, rate, lr], dtype=loc.dtype).to(loc.device)
        self._program = self._program or Captured(self._moved, self.backend, "IVON's step")
        # New tensors in the place of the old ones: to copy them would be three more passes over memory.
        loc.data, precision.data, state["momentum"] = self._program(
            loc.detach(), precision.detach(), state["momentum"], *gradients, numbers
        )

    def _moved(self, *tensors: Tensor) -> list[Tensor]:
        """Mean, precision and average gradient, ``(..., size)`` each, after a step."""
        loc, precision, momentum, to_loc, to_precision, numbers = tensors
        share, rate, lr = numbers.unbind()
        momentum = torch.lerp(momentum, to_loc, share)
        change = to_precision / precision
        size = change.square().mean(-1, keepdim=True).sqrt()
        rate = torch.minimum(rate, self.LARGEST_PRECISION / size.clamp(min=1e-30))
        precision = precision - rate * to_precision + 0.5 * rate * rate * change * to_precision
        away = momentum / precision
        size = (away * momentum).mean(-1, keepdim=True).clamp(min=0.0).sqrt()
        loc = loc - torch.minimum(lr, self.LARGEST_MEAN / size.clamp(min=1e-30)) * away
        return [loc, precision, momentum]


@dataclass(frozen=True, kw_only=True)
class IVON(GradientMethod):
    """Improved variational online Newton (Shen et al. 2024, arXiv:2402.17641): mean-field at about Adam's cost.

    The same Gaussian as `MeanField`, ``Normal(m, T / (N (h + d)))`` over the unconstrained numbers, h the average
    Hessian's diagonal a datum and d the prior's, by natural gradients: h is estimated from the gradient at a draw, and
    preconditions the step of the mean. The prior comes in through the gradient of the divergence, in closed form
    where one is known: for a Gaussian prior of scale s that is the paper's weight decay d = T / (N s^2), but within the
    average gradient; other priors, and constrained latents with their Jacobian, are taken at the draw or by their own
    closed form.

    The optimiser is part of the method: `optimizer` cannot be chosen.

    Args:
        lr: Share of a Newton step.
        betas: Decay of the average gradient, and of the average Hessian in the long run; see `IVONOptimizer`.
        draws: Draws a step: 1, or an even number, in antithetic pairs.
        init_scale: Standard deviation s that q starts from, for a weight divided by sqrt(fan-in). The paper's initial
            Hessian h0 is T / (N s^2) - d.
    """

    lr: float = 0.1
    optimizer: Callable[..., torch.optim.Optimizer] = IVONOptimizer
    schedule: Schedule | None = torch.optim.lr_scheduler.CosineAnnealingLR
    betas: tuple[float, float] = (0.9, 0.99999)
    draws: int = 1
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        """See `GradientMethod`."""
        super().__post_init__()
        if getattr(self.optimizer, "func", self.optimizer) is not IVONOptimizer:
            raise ValueError("IVON is its own optimiser: leave optimizer= out, or take MeanField(optimizer=...)")
        if not all(0 <= beta < 1 for beta in self.betas) or len(self.betas) != 2:
            raise ValueError(f"betas are two numbers from 0, below 1, not {self.betas}")
        if self.draws < 1 or (self.draws > 1 and self.draws % 2):
            raise ValueError(f"draws are 1, or an even number (antithetic pairs), not {self.draws}")
        if not self.init_scale > 0:
            raise ValueError(f"init_scale is positive, not {self.init_scale}")
        object.__setattr__(self, "optimizer", functools.partial(IVONOptimizer, betas=self.betas))

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`. Its gradients are for `IVONOptimizer`."""
        return IVONLoss(self, model, n_data, backend)


class IVONLoss(Objective):
    """The negative evidence lower bound per datum of ``Normal(loc, 1 / precision)``.

    The gradient of `loc` is in nats, N / T that of the loss. That of `precision` is the natural one: at p it is
    p - (N / T) (d + h), where h is the Hessian's diagonal a datum, estimated as g e / s at the draw ``loc + s e`` with
    gradient g (Shen et al. 2024, algorithm 1).
    """

    method: IVON
    bound = True

    def initial(self) -> dict[str, Tensor]:
        """Around the starting point, narrow."""
        self.remembered["fresh"] = False  # whether the noise has been used once
        loc, log_scale = narrow(self.method, self.model, self.latents, self.method.init_scale)
        return {"loc": loc, "precision": (-2 * log_scale).exp()}

    def _gaussian(self, loc: Tensor, precision: Tensor) -> Gaussian:
        return Gaussian(self.latents, loc, -0.5 * precision.log())

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The likelihood term averaged over the draws, and the divergence."""
        total = self.n_data / self.temperature
        loc, precision = params["loc"], params["precision"]
        still, middle = precision.detach(), loc.detach()
        # In nats, and times the inverse of the precision's Fisher information, 2 p^2.
        q = self._gaussian(middle + total * (loc - middle), still + 2 * total * still * still * (precision - still))
        scale = q.log_scale.exp()
        draws = self.method.draws
        noise = params["noise"]
        if draws > 1:
            noise = torch.cat([noise, -noise])

        def one(own: Sequence[Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            draw = q.loc + scale * own[0]
            nll, trace = self.data_nll(self.latents.unflatten(draw), points, batch, buffers)
            return nll, kl_divergence(self.latents, trace, q.loc, q.log_scale, draw)

        return Terms(*mean_over_draws(one, [noise], state, self.mapped))

    def given(self) -> dict[str, Tensor]:
        """The noise of the draws: half of them, the others are its mirror images."""
        loc = self.get_parameter("loc").detach()
        return {"noise": loc.new_zeros((max(1, self.method.draws // 2), *loc.shape))}

    def renew(self, given: dict[str, Tensor]) -> None:
        """New noise; with one draw a step the mirror image of the last is taken first.

        Half the random numbers, which on large networks are a third of a step, and less noise in two steps together:
        what is odd in the noise cancels.
        """
        if self.method.draws == 1 and self.remembered["fresh"]:
            given["noise"].neg_()
        else:
            given["noise"].normal_()
        self.remembered["fresh"] = not self.remembered["fresh"]

    def renew_all(self) -> None:
        """No mirror image next."""
        self.remembered["fresh"] = False

    def approximation(self, params: Params) -> Approximation:
        """The Gaussian itself."""
        return self._gaussian(params["loc"], params["precision"])
