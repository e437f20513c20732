"""Leave-one-out cross-validation from the draws of one fit."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn.analysis import compatibility
from bnn.analysis.density import log_likelihood_chunks, refuse_other_targets
from bnn.posterior import Posterior

#: Draws of a continuous posterior.
_DRAWS = 1000


class LeaveOneOut(NamedTuple):
    """An estimate of how well each row is predicted from the others."""

    #: ``sum_i log p(y_i | the other rows)``, in nats: comparable between models and methods of the same rows.
    elpd: float
    #: Its standard error over rows.
    se: float
    #: Effective number of parameters: how much better the rows are predicted with themselves among the data.
    p: float
    #: The share of rows whose Pareto k is above ``min(1 - 1 / log10(draws), 0.7)``: their terms, and so `elpd`, are not
    #: to be trusted.
    bad: float
    #: ``(n,)``, float64: the terms of `elpd`, and the Pareto k of each.
    rows: Tensor
    k: Tensor


def loo(posterior: Posterior, x: Any, y: Any, *, num: int | None = None, seed: int = 0) -> LeaveOneOut:
    """PSIS-LOO by ArviZ: Vehtari, Gelman and Gabry (2017), arXiv:1507.04544.

    For draws that stand for the posterior (MCMC, and approximations near it). An ensemble's few members are too few,
    and a point has no uncertainty to be reweighted. Rows are taken some at a time.

    Args:
        posterior: Fitted on these rows, without sample weights.
        x: The training inputs.
        y: Their targets.
        num: Draws; ``None``: all of a finite posterior, 1,000 of a continuous one.
        seed: Of the draws.

    Raises:
        ValueError: Fewer than 100 draws, a temperature other than 1, sample weights.
    """
    have = posterior.num_draws
    num = num if num is not None or have is not None else _DRAWS
    count = have if num is None else num
    if count is None or count < 100:
        raise ValueError(f"leave-one-out reweights draws, of which {count} are too few: 100 at least")
    refuse_other_targets(posterior, "leave-one-out")
    chunks = log_likelihood_chunks(posterior, posterior.draws(num, seed), x, y)
    found = [compatibility.loo_by_row(chunk.cpu().numpy()) for chunk in chunks]
    elpd, k, p = (np.concatenate(column) for column in zip(*found, strict=True))
    good = min(1 - 1 / math.log10(count), 0.7)  # Vehtari et al. (2024), arXiv:1507.02646, equation 13
    se = float(elpd.std() * math.sqrt(len(elpd)))
    rows = torch.from_numpy(elpd)
    return LeaveOneOut(float(elpd.sum()), se, float(p.sum()), float((k > good).mean()), rows, torch.from_numpy(k))
