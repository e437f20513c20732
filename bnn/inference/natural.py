"""Natural-gradient optimisers: steps in the geometry of the Gaussian that is fitted, not of its parameters."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bnn.capture import Backend

#: Learning rate of points (parameters without a prior), which Adam trains beside the Gaussian.
_POINTS_LR = 1e-2


class NaturalOptimizer(torch.optim.Optimizer, ABC):
    """An optimiser of the tensors of a Gaussian; what further parameters there are (points) Adam takes.

    Args:
        params: The objective's parameters, the Gaussian's first.
        count: How many of them are the Gaussian's.
        lr: Share of the way to the optimum of a quadratic target that a step goes.
        **settings: Further settings of the group.
    """

    def __init__(self, params: Iterable[Any], count: int, lr: float, **settings: Any):
        own = list(params)
        super().__init__([{"params": own[:count]}], {"lr": lr, **settings})
        #: What a step runs on, where it is captured; see `bnn.capture.Captured`.
        self.backend: Backend = "graph"
        self._points = torch.optim.Adam(own[count:], lr=_POINTS_LR) if len(own) > count else None
        if self._points is not None:  # a schedule reaches both, and so does a state_dict
            self.param_groups += self._points.param_groups
            self._points.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimiser, the one of the points included."""
        super().load_state_dict(state_dict)
        if self._points is not None:
            self._points.param_groups, self._points.state = self.param_groups[1:], self.state

    @abstractmethod
    def move(self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """One step of the Gaussian's parameters, in place."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        self.move(group["params"], [p.grad for p in group["params"]], group)
        if self._points is not None:
            self._points.step()
        return loss


class FullRankOptimizer(NaturalOptimizer):
    """Natural-gradient descent on the mean and the Cholesky factor R of a Gaussian.

    In the coordinates ``loc + R d`` and ``R (I + A)`` around the present Gaussian the Fisher information is the
    identity (and two on A's diagonal): the natural gradient is ``R' g`` and the lower triangle of ``R' G`` with half
    its diagonal, g and G the gradients of the negative ELBO with respect to mean and R; the factor moves to
    ``R (I + A + A^2 / 2)``, which stays lower triangular with a positive diagonal. Lin et al. (2021), arXiv:2102.07405,
    section 3; Salimbeni, Eleftheriadis and Hensman (2018), arXiv:1803.09151.

    Takes the parameters of `bnn.approximations.FullRank`, with gradients in nats (not per datum). A step costs two
    products of D x D matrices.

    Args:
        params: ``loc``, ``factor`` and ``landing``, and any points.
        lr: Share of the way to the optimum of a quadratic target that a step goes.
    """

    #: What an estimate of `landing` counts against those before.
    LANDING = 0.1
    #: Bounds on a step, far from the optimum and under noise: of the mean, in standard deviations a coordinate; of the
    #: factor, the entries of A's diagonal, and the largest singular value of what is below it. They are limited
    #: separately: the scales find their size while the correlations are still noise.
    LARGEST_MEAN, LARGEST_FACTOR = 1.0, 0.5

    def __init__(self, params: Iterable[Any], lr: float):
        super().__init__(params, 3, lr)

    def move(self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """See the class."""
        (loc, factor, landing), (to_loc, to_factor, to_landing), lr = params, gradients, group["lr"]
        log_scale = factor.diagonal(dim1=-2, dim2=-1)
        scale = log_scale.exp()
        below = factor.tril(-1)
        root = scale[..., None] * below + scale.diag_embed()
        # From the gradient in (log scale, C) to that in R = diag(scale) (I + C).
        lower = to_factor.tril(-1)
        on_diagonal = to_factor.diagonal(dim1=-2, dim2=-1) - (lower * below).sum(-1)
        gradient = (lower + on_diagonal.diag_embed()) / scale[..., None]
        change = -lr * (root.mT @ gradient)
        below, own = change.tril(-1), 0.5 * change.diagonal(dim1=-2, dim2=-1)
        sizes = below.abs()  # the largest singular value is at most sqrt(largest row sum * largest column sum)
        bound = (sizes.sum(-1).amax(-1) * sizes.sum(-2).amax(-1)).sqrt()
        below = below * (self.LARGEST_FACTOR / bound.clamp(min=1e-30)).clamp(max=1.0)[..., None, None]
        change = below + own.clamp(-self.LARGEST_FACTOR, self.LARGEST_FACTOR).diag_embed()
        away = -lr * (root.mT @ to_loc[..., None]).squeeze(-1)
        away = away * _factor(away, self.LARGEST_MEAN * math.sqrt(away.shape[-1]))
        loc += (root @ away[..., None]).squeeze(-1)
        root = root + root @ (change + 0.5 * change @ change)
        scale = root.diagonal(dim1=-2, dim2=-1)
        landing.sub_(to_landing, alpha=self.LANDING).clamp_(0, 1)
        factor.copy_((root / scale[..., None]).tril(-1) + scale.log().diag_embed())


def _factor(vector: Tensor, largest: float) -> Tensor:
    """What scales vectors down to a largest norm: ``(..., 1)``."""
    return (largest / vector.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
