"""Conformal sets of classes, of a size that follows the posterior's uncertainty.

Shapes: `n` calibration rows, `m` new rows, `k` classes (2 for Bernoulli). For what a set promises: `conformal`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from bnn.analysis.classification import class_probs
from bnn.analysis.conformal import smallest
from bnn.analysis.estimate import targets
from bnn.prediction import Prediction
from bnn.random import isolated, other_seed

Kind = Literal["adaptive", "regularised", "threshold"]
Among = Literal["all", "class"]


@dataclass(frozen=True)
class SplitSets:
    """Sets of classes: see `split_sets`."""

    #: One for all, or one a class: the nonconformity of the calibration rows, ``(n,)``, in ascending order.
    nonconformity: list[Tensor]
    _of: Callable[[Tensor, Tensor], Tensor] = field(repr=False)

    def sets(self, prediction: Prediction, level: float = 0.9, *, seed: int = 0) -> Tensor:
        """Which classes are in the set of each row: boolean ``(m, k)``.

        Args:
            prediction: Of m new rows.
            level: Between 0 and 1: the set holds the label with at least this probability.
            seed: Of the numbers, one a row, that decide about the class at the border of an adaptive set.
        """
        probs = class_probs(prediction).double()
        limits = torch.stack([smallest(values, level) for values in self.nonconformity])
        return self._of(probs, _border(probs, seed, "new rows")) <= limits


def split_sets(
    prediction: Prediction,
    y: Any,
    kind: Kind = "adaptive",
    among: Among = "all",
    *,
    penalty: float = 0.01,
    free: int = 1,
    seed: int = 0,
) -> SplitSets:
    """Split conformal sets of classes, from rows that the posterior has not seen.

    Args:
        prediction: Of n calibration rows, with class probabilities.
        y: Their labels, ``(n,)``.
        kind: ``"adaptive"``: the most probable classes until their sum is large enough (APS; Romano, Sesia and Candès
            2020, arXiv:2006.02544); ``"regularised"``: the same with `penalty` for each class beyond `free`, for
            smaller sets (RAPS; Angelopoulos et al. 2021, arXiv:2009.14193); ``"threshold"``: all classes of enough
            probability, the smallest sets on average (Sadinle, Lei and Wasserman, JASA 114, 2019).
        among: ``"all"``: right for all new rows together; ``"class"``: for those of each class by itself, from the
            calibration rows of that class (Vovk 2012, arXiv:1209.2673). A class without enough of them is in every set.
        penalty: Of `regularised`, not negative.
        free: Of `regularised`: the number of classes without penalty.
        seed: Of the numbers, one a row, that decide about the class at the border of an adaptive set.

    Raises:
        ValueError: Several labels a row; a setting that makes no sense.
    """
    if penalty < 0 or free < 0:
        raise ValueError(f"penalty and free are not negative: they are {penalty} and {free}")
    if among not in ("all", "class"):
        raise ValueError(f"among is 'all' or 'class', not {among!r}")
    probs = class_probs(prediction).double()
    labels = targets(prediction, y).long().reshape(-1)
    of = _nonconformity(kind, penalty, free)
    own = of(probs, _border(probs, seed, "calibration"))[torch.arange(len(labels)), labels]
    groups = [own] if among == "all" else [own[labels == j] for j in range(probs.shape[1])]
    return SplitSets([group.sort().values for group in groups], of)


def _border(probs: Tensor, seed: int, purpose: str) -> Tensor:
    """One uniform number a row, ``(n, 1)``, from another seed for each purpose."""
    with isolated(other_seed(seed, purpose), probs.device):
        return torch.rand(len(probs), 1, dtype=probs.dtype, device=probs.device)


def _nonconformity(kind: Kind, penalty: float, free: int) -> Callable[[Tensor, Tensor], Tensor]:
    """From ``(n, k)`` probabilities and ``(n, 1)`` uniform numbers to how strange each class would be, ``(n, k)``."""

    def adaptive(probs: Tensor, u: Tensor) -> Tensor:
        """The probability of all more probable classes, and a random share of the class's own."""
        sums, _ = _above(probs)
        return sums + u * probs

    def regularised(probs: Tensor, u: Tensor) -> Tensor:
        sums, ranks = _above(probs)
        return sums + u * probs + penalty * (ranks + 1 - free).clamp(min=0).to(probs)

    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "adaptive": adaptive,
        "regularised": regularised,
        "threshold": lambda probs, u: 1 - probs,
    }
    if kind not in kinds:
        raise ValueError(f"kind is one of {list(kinds)}, not {kind!r}")
    return kinds[kind]


def _above(probs: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the classes before each one, from the most probable on, and their number: ``(n, k)`` each."""
    order = probs.argsort(dim=-1, descending=True, stable=True)
    ranks = order.argsort(-1)
    sums = probs.gather(-1, order).cumsum(-1).gather(-1, ranks) - probs
    return sums, ranks
