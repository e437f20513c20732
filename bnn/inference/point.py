"""The negative log joint of a model at one point: the loss of methods that fit points or move them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from bnn.approximations import Approximation, Draws, Values
from bnn.capture import Backend
from bnn.data import Batch
from bnn.inference.base import IterativeMethod
from bnn.inference.divergence import negative_log_prior
from bnn.inference.objective import Objective, Params, Terms
from bnn.layout import Site
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
        local: Sites beside the model's own, after them: unknowns of all rows.
    """

    def __init__(
        self,
        method: IterativeMethod,
        model: BNN,
        n_data: int,
        backend: Backend = "auto",
        *,
        coordinates: Coordinates = "own",
        local: Sequence[Site] = (),
    ):
        self.local = local
        super().__init__(method, model, n_data, backend)
        self.coordinates = coordinates

    def initial(self) -> dict[str, Tensor]:
        """One flat vector of unconstrained numbers."""
        return start_vector(self)

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The density at theta; `kl` is the negative log prior."""
        return point_terms(self, params, points, batch, state, self.coordinates)

    def approximation(self, params: Params) -> Approximation:
        """A single draw."""
        values = point_values(self, params)
        return Draws({name: value[None, None] for name, value in values.items()})


def start_vector(objective: Objective) -> dict[str, Tensor]:
    """The parameter ``theta``, ``(D,)``: where the method starts; none where no latent is to be found."""
    latents = objective.latents
    return {"theta": objective.method.start(objective.model, latents)} if latents.size else {}


def point_values(objective: Objective, params: Params) -> Values:
    """``{site: value}`` of the latents at ``theta``."""
    return objective.latents.unflatten(_theta(objective, params))


def point_terms(
    objective: Objective,
    params: Params,
    points: Params,
    batch: Batch,
    state: dict[str, Tensor],
    coordinates: Coordinates,
) -> Terms:
    """The terms of a loss at one point; see `PointLoss` and `Objective.terms`.

    Args:
        objective: Whose model.
        params: ``theta``; and ``shift``, ``(D,)``, where the prior is moved by that much (`bnn.inference.anchors`).
        points: As in `Objective.terms`.
        batch: As in `Objective.terms`.
        state: As in `Objective.terms`.
        coordinates: As in `PointLoss`.
    """
    theta, latents = _theta(objective, params), objective.latents
    nll, trace = objective.data_nll(latents.unflatten(theta), points, batch, state)
    kl = negative_log_prior(latents, trace, theta - params["shift"] if "shift" in params else theta)
    if coordinates == "unconstrained" and not latents.plain:
        kl = kl - latents.log_abs_det(theta)
    return Terms(nll, kl)


def check_fixed_scales(model: BNN, method: str) -> None:
    """Raise `ValueError` for a learned prior scale, under which a point of highest density is no use."""
    groups = model.learned_prior_scales()
    if groups:
        raise ValueError(
            f"{method} cannot be used with a learned prior scale (in {', '.join(groups)}): the joint density of "
            "weights and scale grows without bound as both shrink to zero. Give the prior a fixed scale, or use "
            "mean_field"
        )


def _theta(objective: Objective, params: Params) -> Tensor:
    return params["theta"] if objective.latents.size else objective.temperature.new_zeros(0)
