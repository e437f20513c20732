"""Prior elicitation: the scale of a prior from what its functions are to be like, on given inputs.

That knowledge is of functions and not of weights: Flam-Shepherd, Requeima and Duvenaud (2017), Mapping Gaussian process
priors to Bayesian neural networks; Tran et al. (2022), arXiv:2011.12829. Here one number, a factor on the scales, meets
one number, a measure of the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnn.priors.base import Prior

if TYPE_CHECKING:
    from bnn.model import BNN
    from bnn.posterior import Posterior
    from bnn.prediction import Prediction

#: From a prediction and its inputs to one number: see `bnn.priors.measures`.
Measure = Callable[["Prediction", Any], float]

#: The factor is looked for between 1 / _LARGEST and _LARGEST, in steps of 2 away from 1.
_LARGEST = 2.0**10
#: How exactly the logarithm of the factor is found.
_TOLERANCE = 1e-8
#: Groups of draws that are left out in turn, for the Monte Carlo error.
_GROUPS = 20


@dataclass(frozen=True)
class Measured:
    """A measure of functions drawn from a prior."""

    value: float
    #: Monte Carlo standard error, by the jackknife over 20 groups of draws (Efron and Stein, Ann. Statist. 9, 1981).
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.1g}"


@dataclass(frozen=True)
class Calibrated:
    """A prior whose functions are as they were asked to be, and how that went. ``str()`` says it in words."""

    #: The model under the new prior; of the same network.
    model: BNN
    #: All scales that were to change are multiplied by it.
    factor: float
    target: float
    #: Under the old prior, and under the new one from the same draws: the target, but for measures that move in steps.
    before: Measured
    after: Measured
    #: Under the new prior, from other draws: what the target is met to.
    fresh: Measured
    #: How often the measure was worked out to find the factor.
    evaluations: int

    @property
    def prior(self) -> Prior | Mapping[str, Prior | None]:
        """The new prior, as `bnn.BNN` takes it."""
        return self.model.prior

    def __str__(self) -> str:
        return (
            f"asked for {self.target:.3g}: {self.before} before, {self.fresh} now, with all scales times "
            f"{self.factor:.4g}"
        )


def calibrate(
    model: BNN,
    x: Any,
    measure: Measure,
    target: float,
    *,
    patterns: Sequence[str] | None = None,
    draws: int = 500,
    seed: int = 0,
) -> Calibrated:
    """Choose a prior's scale so that a measure of functions drawn from it, on inputs x, is `target`.

    All scales of the chosen priors (those of hyper-priors where a scale is learned) are multiplied by one factor. It is
    found by Brent's method on its logarithm, between the two of 1, 2, 1/2, 4, 1/4, ..., 1024, 1/1024 that enclose the
    target nearest to 1, with the same random numbers at every factor: the weights of every draw are those of the first
    times the factor, so that the measure is a smooth function of it. The Monte Carlo error of the answer is that of
    `Calibrated.fresh`, and falls with the root of `draws`.

    What the likelihood adds to f (a noise scale, cut points) keeps its prior, as does what no chosen pattern holds.

    Args:
        model: Its network and its prior are left as they are.
        x: Inputs as in `bnn.BNN.prior_predictive`, for `bnn.priors.measures.slope` and its like of one feature.
        measure: One of `bnn.priors.measures`, or one's own: a function of a `bnn.Prediction` and of x.
        target: What it is to be.
        patterns: Which priors of a model that has several, by the patterns that they were given under; ``None``: all.
        draws: From the prior; at least 40.
        seed: Of the draws.

    Raises:
        ValueError: The target is out of reach of any factor (with the range that was seen); a pattern that the model
            does not have; a prior without a scale that a factor could multiply.
    """
    from bnn.prior_predictive import prior_as_posterior

    if draws < 2 * _GROUPS:
        raise ValueError(f"calibrate takes {2 * _GROUPS} draws at least, not {draws}")
    chosen = _chosen(model, patterns)
    prior = prior_as_posterior(model, draws, seed)
    functions = _Functions(prior, prior.draws(), _centres(model, chosen), x, seed)
    seen: dict[float, float] = {}

    def away(log_factor: float) -> float:
        seen[log_factor] = measure(functions.at(math.exp(log_factor)), x)
        return seen[log_factor] - target

    factor = math.exp(_root(away, seen, target))
    evaluations = len(seen)
    new = model.with_prior(_replaced(model, chosen, factor))
    fresh = new.prior_predictive(x, draws, seed + 1)
    return Calibrated(
        new,
        factor,
        target,
        _measured(functions.at(1.0), x, measure),
        _measured(functions.at(factor), x, measure),
        _measured(fresh, x, measure),
        evaluations,
    )


@dataclass(frozen=True)
class _Functions:
    """The functions of one set of draws from a prior, whatever its scale."""

    prior: Posterior
    #: ``{site: (s, *shape)}``.
    drawn: Mapping[str, Tensor]
    #: ``{name: centre}`` of the weights that a factor on the scale moves away from it.
    centre: Mapping[str, Tensor]
    x: Any
    seed: int

    def at(self, factor: float) -> Prediction:
        # Every prior with a scale is closed under it: these are the draws of the rescaled one.
        moved = {name: loc + factor * (self.drawn[name] - loc) for name, loc in self.centre.items()}
        return self.prior.predict(self.x, {**self.drawn, **moved}, self.seed)


def _root(away: Callable[[float], float], seen: Mapping[float, float], target: float) -> float:
    """Where `away` is 0, from 0 outwards.

    Raises:
        ValueError: It changes its sign nowhere.
    """
    from scipy.optimize import brentq

    ends = {side: (0.0, start) for start in [away(0.0)] for side in (1, -1)}
    if ends[1][1] == 0:
        return 0.0
    for step in range(1, round(math.log2(_LARGEST)) + 1):
        for side, (near, value) in list(ends.items()):
            far = side * step * math.log(2)
            found = away(far)
            if not math.isfinite(found):
                del ends[side]  # outputs too large for the dtype
            elif found * value <= 0:
                return float(brentq(away, near, far, xtol=_TOLERANCE))
            else:
                ends[side] = (far, found)
    values = [value for value in seen.values() if math.isfinite(value)]
    low, high = (math.exp(end) for end in (min(seen), max(seen)))
    raise ValueError(
        f"no factor on the scales reaches {target:.4g}: between factors {low:.3g} and {high:.3g} the measure goes from "
        f"{min(values):.4g} to {max(values):.4g}; change the target, the network (depth, width, activation) or the "
        "family of the prior"
    )


def _measured(prediction: Prediction, x: Any, measure: Measure) -> Measured:
    """A measure, and how far it would move with other draws: each of 20 groups left out in turn."""
    groups = torch.arange(prediction.num_draws, device=prediction.outputs.device) % _GROUPS
    left = [measure(_some(prediction, groups != group), x) for group in range(_GROUPS)]
    deviations = torch.tensor(left, dtype=torch.float64)
    error = math.sqrt((_GROUPS - 1) * float(deviations.var(correction=0)))
    return Measured(measure(prediction, x), error)


def _some(prediction: Prediction, keep: Tensor) -> Prediction:
    latents = {name: value[keep] for name, value in prediction.latents.items()}
    return type(prediction)(prediction.likelihood, prediction.outputs[keep], latents)


def _by_pattern(model: BNN) -> dict[str, Prior]:
    """The priors of a model, by the patterns that they were given under."""
    given = model.prior if isinstance(model.prior, Mapping) else {"*": model.prior}
    return {pattern: prior for pattern, prior in given.items() if prior is not None}


def _chosen(model: BNN, patterns: Sequence[str] | None) -> dict[str, Prior]:
    """The priors that are to change."""
    given = _by_pattern(model)
    if patterns is not None and (not patterns or set(patterns) - set(given)):
        raise ValueError(f"patterns are some of {list(given)}, under which this model has priors, not {list(patterns)}")
    return given if patterns is None else {pattern: given[pattern] for pattern in patterns}


def _centres(model: BNN, chosen: Mapping[str, Prior]) -> dict[str, Tensor]:
    """Around what the weights of these priors are scaled: ``{name: centre}``."""
    from bnn.priors.rescaled import centres

    patterns = list(model.prior) if isinstance(model.prior, Mapping) else ["*"]
    found: dict[str, Tensor] = {}
    for pattern, (_, prior, params) in zip(patterns, model._groups, strict=True):
        if pattern in chosen and prior is not None:
            found.update(centres(prior, params))
    return found


def _replaced(model: BNN, chosen: Mapping[str, Prior], factor: float) -> Prior | Mapping[str, Prior | None]:
    from bnn.priors.rescaled import rescaled  # here, so that a fit need not import it

    new = {pattern: rescaled(prior, factor) for pattern, prior in chosen.items()}
    return {**model.prior, **new} if isinstance(model.prior, Mapping) else new["*"]
