"""Which input should be labelled, or tried, next? Acquisition functions of the prediction at candidate inputs.

`n` candidates, `s` draws, `k` classes. Larger is better, always.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from bnn.distributions import base
from bnn.likelihoods import Bernoulli
from bnn.prediction import Prediction

Goal = Literal["max", "min"]

#: Joint outcomes of a batch, times draws, that are held at a time.
_OUTCOMES = 50_000_000
_NODES = 16  # of a Gauss-Hermite rule
_CHUNK = 4_000_000  # numbers at a time, over all pairs of draws
_NO_DRAWS = "this prediction is an average without draws; predict(x, draws=200) has the draws that are needed here"


class Batch(NamedTuple):
    """Candidates that were chosen together, in the order of their choice."""

    #: ``(size,)``: their rows.
    rows: Tensor
    #: ``(size,)``: mutual information of the labels up to and with each one and the weights, in nats.
    information: Tensor


def bald(prediction: Prediction) -> Tensor:
    """What the target of each candidate would tell about the weights: their mutual information, in nats, ``(n,)``.

    Houlsby et al. (2011), arXiv:1112.5745. Labels: exact. Gaussian y: the mean over draws of the divergence of a draw's
    density from the mixture's, by Gauss-Hermite quadrature.

    Args:
        prediction: Of n candidates: of labels (of several labels a row, the sum of each one's), or of one Gaussian y a
            row under each draw.

    Raises:
        AttributeError: Another likelihood.
        ValueError: The prediction has been averaged over the weights already (a linearised network's, by default).
    """
    if "entropy" in prediction.likelihood.fields:
        return prediction.entropy.epistemic.reshape(prediction.num_rows, -1).sum(1)
    if prediction.spread is not None:
        raise ValueError(_NO_DRAWS)
    loc, scale = _gaussian(prediction)
    if loc.dim() > 2:
        raise AttributeError(f"the mutual information of one number a row is known; {prediction!r} has several")
    step = max(1, _CHUNK // len(loc) ** 2)
    return torch.cat([_information(*part) for part in zip(loc.split(step, 1), scale.split(step, 1), strict=True)])


def _information(loc: Tensor, scale: Tensor) -> Tensor:
    """Mean over i of KL(Normal_i || mixture) for ``(s, n)`` components: ``(n,)``."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    total = torch.zeros_like(loc[0])
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        y = loc + node * scale  # (s, n)
        z = (y.unsqueeze(1) - loc) / scale  # (component that y is from, component of the density, n)
        log_mixture = (-0.5 * z.square() - scale.log()).logsumexp(1) - math.log(len(loc))
        total += weight * (-0.5 * node**2 - scale.log() - log_mixture).mean(0)
    return total.clamp(min=0)


def epistemic_variance(prediction: Prediction) -> Tensor:
    """The variance over draws of the mean of y, summed over outputs: ``(n,)``, in squared units of y."""
    return prediction.variance.epistemic.reshape(prediction.num_rows, -1).sum(1)


def batch_bald(prediction: Prediction, size: int) -> Batch:
    """Candidates whose labels together tell most about the weights, chosen one after the other.

    Kirsch, van Amersfoort and Gal (2019), arXiv:1906.08158: not the `size` best ones by `bald`, which would be much the
    same input. Joint entropies are exact: sums over all k^size joint labels.

    Args:
        prediction: Of n candidates, with one label a row.
        size: Of the batch, at most n.

    Raises:
        AttributeError: The likelihood has no labels.
        ValueError: More candidates than there are, or too many joint labels to be gone through.
    """
    log_probs = _log_probs(prediction)
    s, n, k = log_probs.shape
    if not 1 <= size <= n:
        raise ValueError(f"size is at least 1 and at most the number of candidates, {n}, not {size}")
    if s * k**size > _OUTCOMES:
        raise ValueError(f"{size} labels of {k} classes have {k**size} joint values: too many, take a smaller batch")
    probs = log_probs.exp()
    conditional = -torch.special.xlogy(probs, probs).sum(-1).mean(0)  # (n,): mean entropy under a draw
    joint = probs.new_ones(s, 1)  # p(labels so far | draw), for all their joint values
    rows: list[int] = []
    information: list[float] = []
    for _ in range(size):
        entropy = _joint_entropy(joint, probs)
        gain = entropy - conditional - conditional[rows].sum()
        gain[rows] = -math.inf
        best = int(gain.argmax())
        rows.append(best)
        information.append(gain[best].item())
        joint = (joint.unsqueeze(-1) * probs[:, best].unsqueeze(1)).flatten(1)
    return Batch(torch.tensor(rows), torch.tensor(information, dtype=torch.float64))


def _joint_entropy(joint: Tensor, probs: Tensor) -> Tensor:
    """Of the labels so far, ``(s, c)``, with each candidate's, ``(s, n, k)``: ``(n,)``."""
    s, n, k = probs.shape
    step = max(1, _OUTCOMES // (joint.shape[1] * k * s))
    parts = []
    for start in range(0, n, step):
        some = probs[:, start : start + step].flatten(1)
        mean = (joint.T @ some / s).reshape(joint.shape[1], -1, k)
        parts.append(-torch.special.xlogy(mean, mean).sum((0, 2)))
    return torch.cat(parts)


def _log_probs(prediction: Prediction) -> Tensor:
    """Of each label under each draw: ``(s, n, k)``, float64."""
    if isinstance(prediction.likelihood, Bernoulli):
        values = [torch.full(prediction.event, float(j)) for j in range(2)]
        if prediction.event and math.prod(prediction.event) != 1:
            raise AttributeError(f"one label a row is needed; {prediction!r} has {math.prod(prediction.event)}")
    elif prediction.likelihood.labels and not prediction.event:
        values = [torch.tensor(j) for j in range(prediction.probs.shape[-1])]
    else:
        raise AttributeError(f"a batch is chosen for its labels, one a row; {prediction!r} has none")
    each = [prediction.log_prob_draws(value.expand(prediction.num_rows, *prediction.event)) for value in values]
    return torch.stack(each, -1).double()


def expected_improvement(prediction: Prediction, best: float, goal: Goal = "max") -> Tensor:
    """By how much y is expected to be better than `best`, where it is better at all: ``(n,)``, in the units of y.

    Jones, Schonlau and Welch, Journal of Global Optimization 13 (1998); of the mixture, the mean over draws of
    ``s phi(z) + (m - best) Phi(z)``, z = (m - best) / s. The noise in y is part of y: an input is worth something for
    being noisy. `improvement_of_mean` leaves it out.

    Args:
        prediction: Of n candidates, with one Gaussian y a row under each draw.
        best: What has been reached.
        goal: Whether y should be large or small.

    Raises:
        AttributeError: Another likelihood.
    """
    loc, scale = _gaussian(prediction)
    if loc.dim() > 2:
        raise AttributeError(f"an improvement is one of a single number; {prediction!r} has several a row")
    ahead = _sign(goal) * (loc - best)
    unit = Normal(torch.zeros_like(loc), torch.ones_like(loc))
    z = ahead / scale
    return (scale * unit.log_prob(z).exp() + ahead * unit.cdf(z)).mean(0)


def improvement_of_mean(prediction: Prediction, best: float, goal: Goal = "max") -> Tensor:
    """As `expected_improvement`, of the mean of y under a draw of the weights: ``(n,)``; any likelihood with a mean.

    Args:
        prediction: Of n candidates, with one number a row.
        best: What has been reached.
        goal: Whether the mean should be large or small.
    """
    return (_sign(goal) * (_means(prediction) - best)).clamp(min=0).mean(0)


def thompson(prediction: Prediction, goal: Goal = "max") -> Tensor:
    """For each draw of the weights, the candidate whose mean is the best under it: ``(s,)`` rows.

    Thompson, Biometrika 25 (1933): the first of them is one Thompson draw, the first b a batch.

    Args:
        prediction: Of n candidates, with one number a row; its draws are joint over the candidates.
        goal: Whether the mean should be large or small.
    """
    return (_sign(goal) * _means(prediction)).argmax(1)


def _means(prediction: Prediction) -> Tensor:
    """``(s, n)``: the mean of y under each draw."""
    if prediction.spread is not None:
        raise ValueError(_NO_DRAWS)
    means = prediction.means
    if means.dim() > 2 and means.shape[2:].numel() != 1:
        raise AttributeError(f"one number a row is needed; {prediction!r} has several")
    return means.reshape(means.shape[:2]).double()


def _gaussian(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Means and scales of y under each draw, ``(s, n)``, or ``(s, n, k)`` where there are several; float64."""
    fn = base(prediction.marginal())
    if not isinstance(fn, Normal):
        raise AttributeError(f"y has to be Gaussian under each draw; that of {prediction!r} is not")
    event = prediction.event if math.prod(prediction.event) != 1 else ()
    shape = (prediction.num_draws, prediction.num_rows, *event)
    loc, scale = (value.expand(fn.batch_shape).reshape(shape).double() for value in (fn.loc, fn.scale))
    return loc, scale


def _sign(goal: Goal) -> int:
    if goal not in ("max", "min"):
        raise ValueError(f"goal is 'max' or 'min', not {goal!r}")
    return 1 if goal == "max" else -1
