"""Stein variational gradient descent: particles that repel each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bnn.approximations import Approximation, Draws
from bnn.capture import Backend
from bnn.data import Batch
from bnn.inference.base import GradientMethod, Init
from bnn.inference.mcmc.target import refuse_what_is_no_density
from bnn.inference.objective import Objective, Params, Terms
from bnn.inference.particles import several_points
from bnn.inference.replicated import ReplicatedLoss
from bnn.model import BNN


@dataclass(frozen=True, kw_only=True)
class SVGD(GradientMethod):
    """Stein variational gradient descent: Liu and Wang (2016), arXiv:1608.04471.

    The n particles move along ``phi(x) = mean_j [k(x_j, x) grad log p(x_j) + grad_{x_j} k(x_j, x)]``: towards high
    density, and away from each other. They live among the unconstrained numbers, Jacobian included. The direction is
    taken per datum, ``-T phi / N``, in the place of a gradient, so that optimiser and lr mean what they mean in
    PyTorch; one particle alone would find the mode in these coordinates.

    All particles move in one captured program, the kernel in it; each has minibatches of its own. The network is in
    evaluation mode, since a density is a function: no dropout, batch statistics as they were.

    Args:
        particles: How many, from 2: the draws of the posterior.
        kernel: ``"rbf"``: ``exp(-|x - x'|^2 / h)``, h the median of the squared distances divided by log n, at each
            step (section 5 of the paper). ``"linear"``: ``x . x' + 1``, which gives a Gaussian posterior's mean and
            covariance (divided by n) exactly, from D + 1 particles (Liu and Wang 2018, arXiv:1810.11693), and of
            others only such moments.
        init: ``"prior"``, a draw for each particle, or a `Posterior`. Particles at one place would stay together:
            ``"net"`` is refused.
    """

    particles: int = 20
    kernel: Literal["rbf", "linear"] = "rbf"
    init: Init = "prior"

    def __post_init__(self) -> None:
        """See `GradientMethod`."""
        super().__post_init__()
        particles: object = self.particles
        if not (isinstance(particles, int) and particles >= 2):
            raise ValueError(f"particles is a whole number from 2, not {self.particles!r}")
        if self.kernel not in _REPULSIONS:
            raise ValueError(f"kernel is {' or '.join(map(repr, _REPULSIONS))}, not {self.kernel!r}")
        if self.init == "net":
            raise ValueError("init='net' puts all particles at one place, where they stay together: give init='prior'")

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`."""
        refuse_what_is_no_density(model, None, type(self).__name__)
        loss = SteinLoss(self, model, n_data, backend)
        loss.eval()
        return loss


class SteinLoss(Objective):
    """The mean negative log joint of the particles; its gradient is Stein's direction.

    Raises:
        ValueError: All particles start at one place.
    """

    method: SVGD

    def __init__(self, method: SVGD, model: BNN, n_data: int, backend: Backend):
        self.members = method.particles
        points = several_points(method, model, n_data, backend, method.particles)
        theta = points.get_parameter("theta").detach()
        if bool((theta == theta[0]).all()):
            raise ValueError(
                "all particles start at one place, where they stay together: the posterior given as init= has too few "
                "draws; give init='prior'"
            )
        self._inner = (points,)  # in a tuple, so that its parameters do not count as this module's
        super().__init__(method, model, n_data, backend)

    @property
    def points_loss(self) -> ReplicatedLoss:
        """The negative log joint at each particle."""
        return self._inner[0]

    def initial(self) -> dict[str, Tensor]:
        """The particles, ``(n, D)``."""
        return {"theta": self.points_loss.get_parameter("theta")}

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The terms of each particle, ``(n,)``; the gradient of their sum per datum is ``-T phi / N``."""
        theta = params["theta"]
        fixed = theta.detach()
        heat = self.temperature / self.n_data

        def energy(at: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            # A copy: tensors of the inner gradient must not get out, and buffers stay in evaluation mode.
            terms = self.points_loss.terms({"theta": at}, points, batch, dict(state))
            return (terms.nll + self.temperature * terms.kl).sum() / self.n_data, (terms.nll, terms.kl)

        gradient, (nll, kl) = torch.func.grad(energy, has_aux=True)(fixed)
        k, repulsion = _REPULSIONS[self.method.kernel](fixed)
        direction = k @ gradient / len(theta) - heat * repulsion
        # A linear function of theta with this gradient, worth nothing.
        pull = self.n_data * (theta * direction.detach()).sum(1)
        return Terms(nll.detach() + (pull - pull.detach()), kl.detach())

    def approximation(self, params: Params) -> Approximation:
        """The particles, as one chain; each holds the network's buffers, as any member's draw does."""
        values = torch.func.vmap(self.latents.unflatten)(params["theta"])
        values |= {name: self.state[name] for name in self.buffers_moved}
        return Draws({name: value[None] for name, value in values.items()})


def rbf(x: Tensor) -> tuple[Tensor, Tensor]:
    """``k(x_i, x_j)``, ``(n, n)``, and ``mean_j grad_{x_j} k(x_j, x_i)``, ``(n, D)``, at points ``(n, D)``."""
    n = len(x)
    centred = x - x.mean(0)  # the distances stay, and lose fewer digits
    products = centred @ centred.T
    norms = products.diagonal()
    squared = (norms[:, None] + norms - 2 * products).clamp(min=0.0)
    rows, columns = torch.triu_indices(n, n, 1, device=x.device)
    h = squared[rows, columns].median().clamp(min=torch.finfo(x.dtype).tiny) / math.log(n)
    k = (-squared / h).exp()
    return k, (centred * k.sum(1, keepdim=True) - k @ centred) * (2 / h) / n


def linear(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of ``k(x, x') = x . x' + 1``."""
    return x @ x.T + 1, x


_REPULSIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"rbf": rbf, "linear": linear}
