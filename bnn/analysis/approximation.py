"""How good an approximation is, against the model's true joint density: k-hat, the bound, and its width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnn.analysis import compatibility
from bnn.analysis.density import draw_chunks, log_joint, log_q, refuse_other_targets, rows_of, vectors_of
from bnn.approximations import LocalGaussian
from bnn.data import Batch
from bnn.layout import Layout
from bnn.posterior import Posterior
from bnn.random import other_seed

#: Step of the difference quotient of `Width`, relative to a draw's distance from the centre.
_STEP = 0.05


@dataclass(frozen=True)
class ImportanceCheck:
    """What importance sampling from an approximation q tells of it: Yao et al. (2018), arXiv:1802.02538."""

    #: Pareto shape of the tail of p(y, w) / q(w) over draws of q. Below 0.7 the weights can correct what q gets wrong.
    k: float
    #: ``min(1 - 1 / log10(draws), 0.7)``: above this, for so many draws, estimates by weighting are not to be trusted.
    threshold: float
    #: Draws of q.
    draws: int
    #: The evidence lower bound, the mean of the log-ratios, in nats; and its standard error.
    elbo: float
    elbo_error: float
    #: Random numbers that q is over.
    size: int
    #: ``(s,)``: log p(y, w) - log q(w).
    log_ratios: Tensor

    @property
    def good(self) -> bool:
        """Whether k-hat is below its threshold."""
        return self.k < self.threshold

    def __str__(self) -> str:
        if self.k == -math.inf:
            return f"k-hat: none, this is the model's own density of {self.size} unknowns, up to rounding"
        return f"k-hat {self.k:.2f} (limit {self.threshold:.2f}) over {self.size} unknowns, {self.draws} draws"


def psis(posterior: Posterior, x: Any, y: Any, *, num: int = 1000, seed: int = 0) -> ImportanceCheck:
    """Set an approximation against the true joint by importance sampling.

    Both are densities over the unconstrained numbers, so that what q takes for the logarithm of a scale is compared
    with the model's density of that logarithm. A posterior of a linearised network is compared with the network itself.
    Where only some unknowns are random (a last layer), p is the joint given the others.

    k-hat grows with the number of unknowns: of two approximations with the same error in every weight, the one over
    more weights has the larger. Above its limit, corrections by weighting fail; predictions may be good all the same.

    Args:
        posterior: Variational, Laplace or SWAG: continuous, with a density.
        x: All training inputs.
        y: Their targets.
        num: Draws of q, at least 100.
        seed: Of the draws.

    Raises:
        ValueError: Too few draws, a temperature other than 1, sample weights, prior scales that were tuned.
        TypeError: The posterior has no density.
    """
    if num < 100:
        raise ValueError(f"k-hat describes a tail: {num} draws are too few for it, 100 at least")
    check_same_target(posterior)
    if posterior.num_draws is not None:
        raise TypeError(f"{posterior!r} is known by its draws and has no density to be compared with the model's")
    batch = rows_of(posterior, x, y)
    parts = []
    for values in draw_chunks(posterior, num, seed):
        vectors = vectors_of(posterior, values)
        q = log_q(posterior.approximation, vectors)
        parts.append(log_joint(posterior, vectors, batch) - q)
    ratios = torch.cat(parts).cpu()
    if not bool(ratios.isfinite().all()):
        raise ValueError(f"the log joint is not finite at {int((~ratios.isfinite()).sum())} of {num} draws")
    _, k = compatibility.smoothed(ratios.numpy())
    threshold = min(1 - 1 / math.log10(num), 0.7)
    error = float(ratios.std()) / math.sqrt(num)
    return ImportanceCheck(k, threshold, num, float(ratios.mean()), error, size_of(posterior), ratios)


@dataclass(frozen=True)
class Width:
    """How wide a posterior is, on the whole: ``-E[(w - c) . grad log p(y, w)] / D``.

    By Stein's identity it is 1 for the true posterior, whatever its shape and the centre c (Stein 1972; Gorham and
    Mackey 2015, arXiv:1506.03039). For a Gaussian q it is the mean, over directions, of q's variance in units of what
    the density around it asks for, and 1 at the optimum of a variational bound: there it is the derivative of the bound
    by the scale. It is a mean over weights, which number no longer makes worse: what k-hat cannot say of a network.
    """

    value: float
    #: Standard error, over draws.
    error: float

    def __str__(self) -> str:
        return f"width {self.value:.2f} ± {self.error:.2f} (1 is right, less too narrow, more too wide)"


def width(posterior: Posterior, x: Any, y: Any, *, num: int | None = None, seed: int = 0) -> Width:
    """See `Width`; for densities, and for chains of draws.

    Args:
        posterior: With a density, or of draws.
        x: All training inputs.
        y: Their targets.
        num: Draws; ``None``: 200, of more than 20 unknowns so many that there are 4,000 numbers in them, 50 at least:
            the error is ``sqrt(2 / (D num))`` for a Gaussian. Of a finite posterior at most as many as there are.
        seed: Of the draws.

    Raises:
        ValueError: As in `psis`.
    """
    check_same_target(posterior)
    batch = rows_of(posterior, x, y)
    size, have = size_of(posterior), posterior.num_draws
    num = num or min(200, max(50, 4000 // size))
    num = num if have is None else min(num, have)
    if num < 2:
        raise ValueError("a single draw has no width")
    centre = _mean(posterior, num, other_seed(seed, "centre"))
    parts = [_slopes(posterior, vectors_of(posterior, v), centre, batch) for v in draw_chunks(posterior, num, seed)]
    slopes = torch.cat(parts)
    count = float(num)
    if have is not None and num >= 4:  # draws of a chain are alike: the error is that of so many independent ones
        ess = float(compatibility.ess(slopes.reshape(1, -1, 1).cpu().numpy())[0])
        count = min(count, max(2.0, ess)) if math.isfinite(ess) else count
    return Width(-float(slopes.mean()) / size, float(slopes.std()) / math.sqrt(count) / size)


def _slopes(posterior: Posterior, vectors: Tensor, centre: Tensor, batch: Batch) -> Tensor:
    """The derivative of the log joint along each draw's own direction from the centre, by central differences."""
    moves = vectors - centre
    ahead = log_joint(posterior, centre + (1 + _STEP) * moves, batch)
    behind = log_joint(posterior, centre + (1 - _STEP) * moves, batch)
    return (ahead - behind) / (2 * _STEP)


def _mean(posterior: Posterior, num: int, seed: int) -> Tensor:
    """A point in the middle, from other draws where there are any: ``(D,)``."""
    return torch.stack([vectors_of(posterior, v).sum(0) for v in draw_chunks(posterior, num, seed)]).sum(0) / num


def size_of(posterior: Posterior) -> int:
    """How many numbers of a posterior are random."""
    approximation = posterior.approximation
    if isinstance(approximation, LocalGaussian):
        return len(approximation.where)
    return Layout(posterior.model.sites().latents).size


def check_same_target(posterior: Posterior) -> None:
    """Raise `ValueError` where a posterior was made for another density than the model's own joint."""
    refuse_other_targets(posterior, "a comparison with the model's joint density")
    tuned = [name for name in posterior.settings.get("hyper") or {} if str(name).startswith("scale of ")]
    if tuned:
        raise ValueError(f"prior scales were tuned with the fit ({tuned[0]} ...): its target has another prior")
