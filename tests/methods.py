"""Every method that `bnn.fit` knows by name: a quick form of it, and what it claims. A new one is one line here."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch

import bnn
from bnn.inference import Method

#: What a method claims of the posterior of linear regression with known noise:
#: "full": its mean and covariance; "mean field": its mean and variances 1 / diag(precision); "mode": its mean;
#: "own law": something else, for which there is a test of its own, named beside it.
Claim = Literal["full", "mean field", "mode", "own law"]


@dataclass(frozen=True)
class Enrolled:
    """One line of the table."""

    #: A few steps, for contracts that hold of any fit.
    quick: Method
    claim: Claim
    #: Settings under which the claim is tested; None where the test of its own law does that.
    exact: Method | None = None
    #: Independent fits over which the error bar is taken; 1: exact to rounding, and no error bar.
    seeds: int = 1
    #: What a finite number of steps leaves, in standard deviations and in variances: a fifth of what has to be seen.
    bias: float = 1e-3
    #: Whether it needs a network with dropout.
    dropout: bool = False


def decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-3)


newton = functools.partial(
    torch.optim.LBFGS, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15
)
MODE = bnn.MAP(epochs=20, batch_size=None, lr=1.0, optimizer=newton)
VI = {"epochs": 400, "batch_size": 30, "lr": 0.03, "schedule": decay, "average": 0.5, "draws": 16}
SHORT = {"chains": 2, "warmup": 4, "num_samples": 5}
LONG = {"chains": 128, "warmup": 100}

TABLE: dict[str, Enrolled] = {
    "map": Enrolled(bnn.MAP(epochs=2, batch_size=8), "mode", MODE),
    "mean_field": Enrolled(bnn.MeanField(epochs=2), "mean field", bnn.MeanField(**VI), seeds=8),
    "full_rank": Enrolled(bnn.FullRank(epochs=2), "full", bnn.FullRank(epochs=150, batch_size=30), seeds=8, bias=0.02),
    "low_rank": Enrolled(
        bnn.LowRank(epochs=2), "full", bnn.LowRank(epochs=600, batch_size=30, lr=0.1, rank=3), seeds=8, bias=0.04
    ),
    "flow": Enrolled(bnn.Flow(epochs=2), "own law"),  # test_flow.py
    "ivon": Enrolled(bnn.IVON(epochs=2), "own law"),  # test_ivon.py: the mean-field law, at its own step sizes
    "laplace": Enrolled(
        bnn.Laplace(of=bnn.MAP(epochs=2, batch_size=8)),
        "full",
        bnn.Laplace(of=MODE, covariance="full", tune=None),
        seeds=1,
    ),
    "last_layer": Enrolled(bnn.LastLayer(of=bnn.MAP(epochs=2, batch_size=8)), "own law"),  # test_last_layer.py
    "vbll": Enrolled(bnn.VBLL(epochs=2, batch_size=8), "own law"),  # test_last_layer.py
    "ensemble": Enrolled(
        bnn.Ensemble(members=3, of=bnn.MAP(epochs=2, batch_size=8)),
        "full",
        bnn.Ensemble(members=6000, of=MODE, anchored=True),
    ),
    "swag": Enrolled(
        bnn.SWAG(epochs=8, rank=2, batch_size=8), "own law"
    ),  # test_swag.py: the iterates' discrete Lyapunov law
    "multi_swag": Enrolled(
        bnn.Ensemble(members=2, of=bnn.SWAG(epochs=8, rank=2, batch_size=8)), "own law"
    ),  # test_swag.py
    "mc_dropout": Enrolled(bnn.MCDropout(epochs=2), "own law", dropout=True),  # test_dropout.py
    "sgld": Enrolled(bnn.SGLD(**SHORT), "own law"),  # test_sgmcmc.py: its discretised law
    "sghmc": Enrolled(bnn.SGHMC(**SHORT), "own law"),  # test_sgmcmc.py
    "svgd": Enrolled(bnn.SVGD(epochs=2, particles=4), "own law"),  # test_svgd.py: Stein's identities
    "hmc": Enrolled(bnn.HMC(**SHORT), "full", bnn.HMC(**LONG, num_samples=60, max_steps=50)),
    "nuts": Enrolled(bnn.NUTS(**SHORT), "full", bnn.NUTS(**LONG, num_samples=50)),
    "auto": Enrolled(bnn.Auto(), "own law"),  # test_auto.py: what it chooses has a line of its own
    "chees": Enrolled(bnn.ChEES(**SHORT), "full", bnn.ChEES(**LONG, num_samples=150)),
}
