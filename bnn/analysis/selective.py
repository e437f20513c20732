"""Selective prediction: how much better the answers are if the least certain ones are left to somebody else."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class RiskCoverage(NamedTuple):
    """Losses among the rows that are answered, from the most certain one to all."""

    #: ``(n,)``: the share of rows that is answered, 1/n to 1.
    coverage: Tensor
    #: ``(n,)``: the mean loss of the rows that are answered.
    risk: Tensor
    #: ``(n,)``: the loss that is left where the others' is 0, over all rows: ``risk * coverage``, the retention curve.
    retained: Tensor
    #: Mean of `risk` (Geifman and El-Yaniv 2017, arXiv:1705.08500); lower is better.
    aurc: float
    #: How much of `aurc` an order by the losses themselves would save; 0 is best (Geifman, Uziel and El-Yaniv 2019).
    excess: float
    #: Mean of `retained` (Malinin and Gales 2021, arXiv:2002.07650); lower is better.
    retention: float


def risk_coverage(uncertainty: Any, loss: Any) -> RiskCoverage:
    """Risk-coverage and retention curves, and the areas under them.

    Rows of equal uncertainty are left out in random order: their mean loss stands for each of them.

    Args:
        uncertainty: ``(n,)``, larger for what is to be left out first, such as ``prediction.entropy.total``.
        loss: ``(n,)``, such as 0 and 1 for right and wrong, or the rows of a score.

    Raises:
        ValueError: They are not two sets of n finite numbers.
    """
    uncertainty, loss = (torch.as_tensor(value).detach().cpu().double() for value in (uncertainty, loss))
    if uncertainty.dim() != 1 or uncertainty.shape != loss.shape or not len(loss):
        raise ValueError(
            f"uncertainty and loss are one number a row: they have shapes {tuple(uncertainty.shape)} and "
            f"{tuple(loss.shape)}"
        )
    if not bool((uncertainty.isfinite() & loss.isfinite()).all()):
        raise ValueError("uncertainty or loss has NaN or infinite values")
    counts = torch.arange(1, len(loss) + 1, dtype=torch.float64)
    risk = _shared(uncertainty, loss).cumsum(0) / counts
    best = loss.sort().values.cumsum(0) / counts
    coverage = counts / len(loss)
    retained = risk * coverage
    aurc, least = risk.mean().item(), best.mean().item()
    return RiskCoverage(coverage, risk, retained, aurc, aurc - least, retained.mean().item())


def _shared(uncertainty: Tensor, loss: Tensor) -> Tensor:
    """Losses in ascending order of uncertainty, the mean of each tie in the place of its members."""
    values, which, counts = uncertainty.unique(return_inverse=True, return_counts=True)
    means = loss.new_zeros(len(values)).index_add_(0, which, loss) / counts
    return means.repeat_interleave(counts)
