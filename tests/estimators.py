"""Small estimators for the tests: quick, through Pyro, without capture."""

from __future__ import annotations

from typing import Any

from torch import nn

import bnn

#: Quick settings: whole batches, so that the course of a fit does not depend on the order of the rows.
QUICK: dict[str, Any] = {
    "method": bnn.Ensemble(members=2, of=bnn.MAP(batch_size=None)),
    "epochs": 30,
    "lr": 0.1,
    "compile": "eager",
}


def small_net(inputs: int, outputs: int) -> nn.Module:
    """One hidden layer of eight units."""
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def every_estimator() -> list[Any]:
    """One of each, quick."""
    return [
        bnn.BayesianRegressor((8,), "tanh", **QUICK),
        bnn.BayesianClassifier((8,), "tanh", **QUICK),
        bnn.BayesianModuleRegressor(small_net, **QUICK),
        bnn.BayesianModuleClassifier(small_net, **QUICK),
    ]
