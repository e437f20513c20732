"""The negative log joint of a model at one point: the loss of methods that fit points or move them."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bnn.approximations import Approximation, Draws
from bnn.capture import Backend
from bnn.data import Batch
from bnn.inference.base import IterativeMethod
from bnn.inference.divergence import negative_log_prior
from bnn.inference.objective import Objective, Params, Terms
from bnn.model import BNN

Coordinates = Literal["own", "unconstrained"]


class PointLoss(Objective):
    """(negative log-likelihood + temperature * negative log prior) / N at one point.

    Args:
        method: See `Objective`.
        model: See `Objective`.
        n_data: See `Objective`.
        backend: See `Objective`.
        coordinates: In which the density is taken: the latents' ``"own"`` (the mode of a noise scale), or the
            ``"unconstrained"`` numbers (its logarithm), with the Jacobian, as sampling in them needs.
    """

    def __init__(
        self,
        method: IterativeMethod,
        model: BNN,
        n_data: int,
        backend: Backend = "auto",
        *,
        coordinates: Coordinates = "own",
    ):
        super().__init__(method, model, n_data, backend)
        self.coordinates = coordinates

    def initial(self) -> dict[str, Tensor]:
        """One flat vector of unconstrained numbers."""
        return {"theta": self.method.start(self.model, self.latents)} if self.latents.size else {}

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The density at theta; `kl` is the negative log prior."""
        theta = params["theta"] if self.latents.size else self.temperature.new_zeros(0)
        nll, trace = self.data_nll(self.latents.unflatten(theta), points, batch, state)
        kl = negative_log_prior(self.latents, trace, theta)
        if self.coordinates == "unconstrained" and not self.latents.plain:
            kl = kl - self.latents.log_abs_det(theta)
        return Terms(nll, kl)

    def approximation(self, params: Params) -> Approximation:
        """A single draw."""
        if not self.latents.size:
            return Draws({})
        values = self.latents.unflatten(params["theta"])
        return Draws({name: value[None, None] for name, value in values.items()})
