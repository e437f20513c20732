"""The evidence of a fit: how probable the data are under the model, or a bound on it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bnn.data import Source
from bnn.distributed import world
from bnn.forward import depends_on_mode
from bnn.inference.objective import Objective

#: Evaluations over which the bound is averaged, at least, and two epochs at least.
_EVALUATIONS = 64


def is_bound(objective: Objective) -> bool:
    """Whether the loss bounds the evidence of the model that predicts.

    Not where points are learned, at whose best values it would be; nor under dropout or batch statistics, since it is
    taken in training mode and predictions are not.
    """
    return objective.bound and not objective.points.size and not depends_on_mode(objective.model.net)


def elbo(objective: Objective, params: Mapping[str, Tensor], source: Source) -> dict[str, float | str]:
    """The evidence lower bound at these parameters, in nats for the whole data set, with its Monte Carlo error.

    ``E_q[log p(y | w)] - KL(q || p)`` by draws, in whole epochs of the batches of the fit. The parameters and buffers
    of the objective are afterwards as they were.

    Args:
        objective: One of which the loss is the negative bound (`Objective.bound`).
        params: ``{name: value}``.
        source: The data.

    Returns:
        ``kind`` ("elbo"), ``value`` and ``se``, the standard error of `value` over epochs.
    """
    kept = {name: p.detach().clone() for name, p in objective.named_parameters()}
    state = {name: value.clone() for name, value in objective.state.items()}
    _put(objective, params)
    epochs: list[float] = []
    evaluations = 0
    while evaluations < _EVALUATIONS or len(epochs) < 2:
        total = weight = 0.0
        objective.renew_all()  # the standard error takes epochs for independent
        for batch in source.batches():
            size = len(batch.y)
            if not size:
                continue
            total += size * float(objective.gradients(batch)[1][0])
            weight += size
            evaluations += 1
        total, weight = world().sum(total, weight)
        epochs.append(-objective.n_data * total / weight)
        objective.state = {name: value.clone() for name, value in state.items()}
    _put(objective, kept)
    values = torch.tensor(epochs, dtype=torch.float64)
    se = float(values.std()) / math.sqrt(len(values))
    return {"kind": "elbo", "value": float(values.mean()), "se": se}


@torch.no_grad()
def _put(objective: Objective, params: Mapping[str, Tensor]) -> None:
    for name, parameter in objective.named_parameters():
        parameter.copy_(params[name])
