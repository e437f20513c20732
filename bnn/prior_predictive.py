"""What a model believes before it has seen data: its prior as a `Posterior` of draws, and predictions from it."""

from __future__ import annotations

from typing import Any

import pyro
import torch

from bnn.approximations import Draws
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.prediction import Prediction
from bnn.random import isolated, other_seed


def prior_as_posterior(model: BNN, draws: int, seed: int = 0) -> Posterior:
    """The prior, held as a posterior holds its draws: whatever is done with a posterior can be done with it.

    Args:
        model: Copied; learned points stay at the values that a fit would start from.
        draws: Of all unknowns, the likelihood's among them. Draw i does not depend on their number.
        seed: Of the draws.

    Raises:
        ValueError: Fewer than one draw.
    """
    if draws < 1:
        raise ValueError(f"the number of draws is at least 1, not {draws}")
    device = model.like.device
    with torch.no_grad(), isolated(other_seed(seed, "prior"), device), pyro.validation_enabled(False):
        drawn = [model.prior_draw() for _ in range(draws)]
    values = {name: torch.stack([draw[name] for draw in drawn]).unsqueeze(0) for name in drawn[0]}
    points = {site.name: site.value for site in model.sites().points}
    settings = {"method": "prior", "seed": seed}
    return Posterior(model, Draws(values), points=points, state=model.state(), settings=settings)


def prior_predictive(model: BNN, x: Any, draws: int = 200, seed: int = 0) -> Prediction:
    """Predictions from draws of the prior; see `bnn.BNN.prior_predictive`."""
    return prior_as_posterior(model, draws, seed).predict(x, draws, seed)
