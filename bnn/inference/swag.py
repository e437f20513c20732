"""Stochastic weight averaging, Gaussian: mean and covariance of the iterates of SGD."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnn.approximations import Approximation, Draws, Iterates
from bnn.capture import Backend
from bnn.data import Batch
from bnn.inference.base import GradientMethod
from bnn.inference.objective import Objective, Params, Terms
from bnn.inference.point import check_fixed_scales, point_terms, point_values, start_vector
from bnn.model import BNN

_SGD = functools.partial(torch.optim.SGD, momentum=0.9)


@dataclass(frozen=True, kw_only=True)
class SWAG(GradientMethod):
    """A Gaussian with the mean and covariance of SGD's last iterates, low rank plus diagonal.

    SGD at a constant rate does not come to rest: it moves around the mode, more along flat directions. From the
    iterates t_1, ..., t_n of the last part of the fit,

        mean = average of t_i,    V = average of t_i^2 - mean^2,    D = [t_i - mean_i of the last `rank` i],
        w ~ Normal(mean, (diag(V) + D D' / (rank - 1)) / 2),

    mean_i being the average of the first i: Maddox et al. (2019), arXiv:1902.02476, algorithm 1 and equation 1. How
    wide that is follows from `lr`, `batch_size` and the optimiser, and not from the posterior alone: this is an
    approximation without a limit in which it is exact (Mandt et al. 2017, arXiv:1704.04289).

    All is done in the unconstrained numbers (the logarithm of a noise scale), in which the density has its Jacobian.
    Learned points end at the average of their iterates. `average` is the share of the steps, from the end, over which
    iterates are gathered. A cyclical rate (Izmailov et al. 2018, arXiv:1803.05407) is a `schedule` whose period is
    `every`.

    Args:
        rank: Iterates that the low-rank part is made of.
        every: Steps from one gathered iterate to the next; ``None``: an epoch, or less if fewer than `rank` would be
            gathered.

    Raises (from `fit`):
        ValueError: A learned prior scale; batch normalisation, whose statistics would have to be taken anew for every
            drawn network; fewer than two iterates to gather.
    """

    lr: float = 1e-2
    optimizer: Callable[..., torch.optim.Optimizer] = _SGD
    average: float = 0.5
    rank: int = 20
    every: int | None = None

    def __post_init__(self) -> None:
        """See `GradientMethod`."""
        super().__post_init__()
        for name, least in (("rank", 2), ("every", 1)):
            value = getattr(self, name)
            optional = name == "every"
            if not (isinstance(value, int) and value >= least) and not (value is None and optional):
                raise ValueError(f"{name} is a whole number from {least}{' or None' * optional}, not {value!r}")
        if self.average == 0:
            raise ValueError("average, the share of the steps whose iterates SWAG gathers, is more than 0")
        if self.patience is not None:
            raise ValueError("SWAG gathers iterates over the last part of the fit: patience= would cut that off")

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`."""
        check_fixed_scales(model, "SWAG")
        norms = [name for name, module in model.net.named_modules() if isinstance(module, _BatchNorm)]
        if norms:
            raise ValueError(
                f"SWAG would have to take the batch statistics of {norms} anew for every network that is drawn, from "
                "all training rows: put GroupNorm or LayerNorm in their place, or use another method"
            )
        return SWAGLoss(self, model, n_data, backend)


class SWAGLoss(Objective):
    """The negative log joint per datum at one point, with the moments of its iterates."""

    method: SWAG

    def initial(self) -> dict[str, Tensor]:
        """One flat vector of unconstrained numbers."""
        if not self.latents.size:
            raise ValueError("no parameter has a prior: there is nothing to infer but points, which method='map' fits")
        return start_vector(self)

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """As of a `PointLoss` over the unconstrained numbers."""
        return point_terms(self, params, points, batch, state, "unconstrained")

    def after_step(self, step: int, steps: int, params: Params) -> None:
        """Take the iterate into the moments (Welford 1962: differences of large squares would lose their digits)."""
        start = math.floor((1 - self.method.average) * steps)
        every = self.method.every or max(1, min(steps // self.method.epochs, (steps - start) // self.method.rank))
        if step == 1 and steps // every - start // every < 2:
            raise ValueError(
                f"SWAG takes every {every}th iterate after step {start} of {steps}, which are fewer than two: more "
                "epochs, or a smaller every"
            )
        if step <= start or step % every:
            return
        theta = params["theta"]
        now = self.gathered or {
            "count": theta.new_zeros(theta.shape[:-1]),
            "mean": torch.zeros_like(theta),
            "squares": torch.zeros_like(theta),
            "deviations": theta.new_zeros(*theta.shape[:-1], 0, theta.shape[-1]),
        }
        count = now["count"] + 1
        before = theta - now["mean"]
        mean = now["mean"] + before / count.unsqueeze(-1)
        after = theta - mean
        deviations = torch.cat([now["deviations"], after.unsqueeze(-2)], dim=-2)[..., -self.method.rank :, :]
        squares = now["squares"] + before * after
        self.gathered = {"count": count, "mean": mean, "squares": squares, "deviations": deviations}

    def approximation(self, params: Params) -> Approximation:
        """The Gaussian; the point itself as long as there are not two iterates."""
        if "count" not in params or params["count"] < 2:
            return Draws({name: value[None, None] for name, value in point_values(self, params).items()})
        variance = params["squares"] / params["count"]
        return Iterates(self.latents, params["mean"], variance, params["deviations"])
