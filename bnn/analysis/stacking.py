"""Weights of several posteriors from log-densities of the same rows, and their mixture as one predictor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bnn.posterior import Posterior
from bnn.prediction import Prediction
from bnn.random import other_seed

Array = npt.NDArray[np.float64]

#: Draws of the mixture where nothing else is said.
_DRAWS = 1000
#: Bayesian bootstrap samples of pseudo-BMA+.
_BOOTSTRAP = 1000


def stacking_weights(log_densities: Mapping[str, Any]) -> dict[str, float]:
    """Weights of the mixture with the largest mean log-density: Yao et al. (2018), arXiv:1704.02030, equation 5.

    A concave problem, solved by expectation maximisation to 1e-6 nats a row of the optimum (the duality gap says so).

    Args:
        log_densities: ``{name: (n,)}``, held-out or leave-one-out, of the same rows in the same order.

    Returns:
        ``{name: weight}``, at least 0, adding up to 1.

    Raises:
        ValueError: Different numbers of rows, values that are not finite.
    """
    names, table = _table(log_densities)
    density = np.exp(table - table.max(1, keepdims=True))  # (n, m): a factor a row changes nothing
    weights = _slsqp(density)
    for _ in range(100_000):
        gain = (density / (density @ weights)[:, None]).mean(0)  # 1 at the optimum where the weight is not 0
        if gain.max() - 1 < 1e-6:
            break
        weights = weights * gain
    weights = np.where(weights < 1e-6, 0.0, weights)
    return dict(zip(names, (weights / weights.sum()).tolist(), strict=True))


def _slsqp(density: Array) -> Array:
    """A start near the optimum; inside the simplex, so that expectation maximisation can still move any weight."""
    from scipy.optimize import minimize

    m = density.shape[1]

    def loss(weights: Array) -> tuple[float, Array]:
        mixed = np.maximum(density @ weights, 1e-300)
        return -float(np.log(mixed).mean()), -(density / mixed[:, None]).mean(0)

    found = minimize(
        loss,
        np.full(m, 1 / m),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * m,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(m)},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    weights = np.clip(found.x, 0, 1) + 1e-9
    result: Array = weights / weights.sum()
    return result


def pseudo_bma_weights(log_densities: Mapping[str, Any], *, seed: int = 0) -> dict[str, float]:
    """Pseudo-BMA+: weights from expected log-densities, their uncertainty taken in by the Bayesian bootstrap.

    Yao et al. (2018), arXiv:1704.02030, section 3.4.

    Args:
        log_densities: As in `stacking_weights`.
        seed: Of the bootstrap.
    """
    names, table = _table(log_densities)
    rng = np.random.default_rng(other_seed(seed, "bootstrap"))
    shares = rng.dirichlet(np.ones(len(table)), _BOOTSTRAP)  # (b, n)
    weights = _softmax(len(table) * shares @ table).mean(0)
    return dict(zip(names, weights.tolist(), strict=True))


def bma_weights(posteriors: Mapping[str, Posterior]) -> dict[str, float] | None:
    """Bayesian model averaging: in proportion to the evidence, under equal prior odds; None where one has none.

    Bounds and Laplace approximations of the evidence are not the evidence, and a mixture of both kinds compares what
    cannot be compared.
    """
    found = {name: posterior.evidence for name, posterior in posteriors.items()}
    values = [evidence.value for evidence in found.values() if evidence is not None]
    if len(values) < len(found):
        return None
    return dict(zip(found, _softmax(np.asarray(values)[None])[0].tolist(), strict=True))


def _softmax(values: Array) -> Array:
    powers = np.exp(values - values.max(1, keepdims=True))
    result: Array = powers / powers.sum(1, keepdims=True)
    return result


def _table(log_densities: Mapping[str, Any]) -> tuple[list[str], Array]:
    columns = {
        name: np.asarray(torch.as_tensor(value).cpu(), dtype=np.float64) for name, value in log_densities.items()
    }
    sizes = {name: column.shape for name, column in columns.items()}
    if not columns or len(set(sizes.values())) > 1 or any(len(shape) != 1 for shape in sizes.values()):
        raise ValueError(f"log-densities are one a row, of the same rows for all; these have shapes {sizes}")
    table = np.stack(list(columns.values()), axis=1)
    if not np.isfinite(table).all():
        worst = [name for name, column in columns.items() if not np.isfinite(column).all()]
        raise ValueError(f"some log-densities of {worst} are not finite")
    return list(columns), table


class Stack:
    """Several posteriors that predict as one: a mixture with weights.

    Args:
        posteriors: ``{name: posterior}``, under the same likelihood.
        weights: ``{name: weight}``, at least 0, adding up to 1.
    """

    def __init__(self, posteriors: Mapping[str, Posterior], weights: Mapping[str, float]):
        self.posteriors, self.weights = dict(posteriors), dict(weights)

    def __repr__(self) -> str:
        return f"Stack({', '.join(f'{name}: {weight:.3g}' for name, weight in self.weights.items())})"

    def counts(self, draws: int = _DRAWS) -> dict[str, int]:
        """Draws of each, out of so many in all, by the method of largest remainders: off by less than one."""
        shares = {name: weight * draws for name, weight in self.weights.items()}
        counts = {name: math.floor(share + 1e-9) for name, share in shares.items()}
        left = sorted(shares, key=lambda name: counts[name] - shares[name])[: draws - sum(counts.values())]
        return {name: count + (name in left) for name, count in counts.items()}

    def predict(self, x: Any, draws: int | None = None, seed: int = 0, at_once: int | None = None) -> Prediction:
        """The predictive distribution of the mixture at x, exact for weights rounded to ``1 / draws``.

        A `Prediction` is an equal mixture: each posterior enters it with draws in proportion to its weight (`counts`).
        A finite posterior with fewer draws than its share has them repeated, all equally often or once more; one with
        more gives evenly spaced ones.

        Args:
            x: As in `bnn.Posterior.predict`.
            draws: In all; ``None``: 1,000.
            seed: Of the draws.
            at_once: As in `bnn.Posterior.predict`.

        Raises:
            ValueError: No draws; networks whose outputs have different shapes.
        """
        total = _DRAWS if draws is None else draws
        if total < 1:
            raise ValueError(f"the number of draws is at least 1, not {total}")
        parts = []
        for name, count in self.counts(total).items():
            if count:
                posterior, have = self.posteriors[name], self.posteriors[name].num_draws
                taken = count if have is None else min(count, have)
                own = posterior.predict(x, taken, other_seed(seed, name), at_once)
                parts.append(_repeated(own, count))
        shapes = {(part.outputs.shape[1:], *(v.shape[1:] for v in part.latents.values())) for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"the posteriors of a mixture have outputs and likelihoods of one shape, not {shapes}")
        outputs = torch.cat([part.outputs for part in parts])
        sites = {site for part in parts for site in part.latents}
        latents = {site: torch.cat([part.latents[site] for part in parts]) for site in sites}
        return Prediction(parts[0].likelihood, outputs, latents)


def _repeated(prediction: Prediction, count: int) -> Prediction:
    """As many draws, each of them equally often or once more: every k-th has its repetition."""
    places = torch.arange(count) * prediction.num_draws // count

    def taken(value: Tensor) -> Tensor:
        return value[places.to(value.device)]

    latents = {name: taken(value) for name, value in prediction.latents.items()}
    return Prediction(prediction.likelihood, taken(prediction.outputs), latents)


def stack(posteriors: Mapping[str, Posterior], weights: Mapping[str, float]) -> Stack:
    """Several posteriors as one that predicts: ``bnn.stack(posteriors, comparison.stacking).predict(x)``.

    Args:
        posteriors: ``{name: posterior}``, of any methods and networks, under one family of likelihood.
        weights: ``{name: weight}`` for each of them.

    Raises:
        ValueError: Weights that do not fit: other names, below 0, a sum that is not 1; different likelihoods.
    """
    if set(posteriors) != set(weights):
        raise ValueError(f"weights are for {sorted(weights)}, posteriors are {sorted(posteriors)}")
    total = sum(weights.values())
    if any(not weight >= 0 for weight in weights.values()) or abs(total - 1) > 1e-6:
        raise ValueError(f"weights are at least 0 and add up to 1; these are {dict(weights)}")
    likelihoods = {name: posterior.model.likelihood for name, posterior in posteriors.items()}
    # Unknowns may differ, and so may their fixed values: they come with the draws. What else tells them apart may not.
    if len({likelihood.family for likelihood in likelihoods.values()}) > 1:
        raise ValueError(
            f"a mixture is held as draws of one family's parameters, and these likelihoods differ: {likelihoods}; mix "
            "their log_prob by hand: logsumexp of log weight + log_prob"
        )
    return Stack(posteriors, {name: weight / total for name, weight in weights.items()})
