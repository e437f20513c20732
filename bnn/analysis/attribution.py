"""Which inputs make the prediction uncertain: attribution of predictive variance to features.

`n` rows, `d` features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bnn.inputs import as_tensor
from bnn.posterior import Posterior
from bnn.prediction import Prediction
from bnn.random import other_seed

#: From a prediction to the uncertainty of each row, ``(n,)``.
Measure = Callable[[Prediction], Tensor]


def epistemic(prediction: Prediction) -> Tensor:
    """The part of the uncertainty that more data would remove, summed over outputs: variance, or mutual information."""
    has_variance = "variance" in prediction.likelihood.fields
    part = prediction.variance.epistemic if has_variance else prediction.entropy.epistemic
    return part.reshape(prediction.num_rows, -1).sum(1)


def variance_gradients(
    posterior: Posterior,
    x: Any,
    baseline: Any,
    *,
    of: Measure = epistemic,
    steps: int = 64,
    draws: int | None = None,
    seed: int = 0,
) -> Tensor:
    """How much each feature adds to the uncertainty of each row, from a baseline to x: ``(n, d)``.

    Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv:1703.01365) of an uncertainty: the attributions of a
    row add up to its uncertainty less that of the baseline. Gradients of `of` are taken along the straight line.

    Args:
        posterior: Its network takes one tensor and is differentiable in it.
        x: ``(n, d)``, floating.
        baseline: ``(d,)``, an input to compare with, such as the mean of the training rows.
        of: What is attributed; a differentiable function of a prediction.
        steps: Points on the line; the midpoint rule is exact for a variance that is quadratic in x, a linear model's.
        draws: Of the posterior.
        seed: Of these.

    Raises:
        ValueError: x is no floating ``(n, d)``, or the posterior predicts otherwise than by its network under draws.
    """
    x = as_tensor(x, "x", posterior.model.like)
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"x is a floating tensor (n, d), not {tuple(x.shape)} of {x.dtype}")
    baseline = as_tensor(baseline, "baseline", x).expand(x.shape)
    values = posterior.draws(draws, seed)
    predict = _differentiable(posterior, values)
    _check_same(predict(x), posterior.predict(x, values))
    total = torch.zeros_like(x)
    for i in range(steps):
        at = (baseline + (i + 0.5) / steps * (x - baseline)).requires_grad_()
        total += torch.autograd.grad(of(predict(at)).sum(), at)[0]
    return total / steps * (x - baseline)


def _differentiable(posterior: Posterior, values: dict[str, Tensor]) -> Callable[[Tensor], Prediction]:
    """As ``posterior.predict(x, values)``, where gradients pass through the network."""
    model = posterior.model
    names = [name for name, _ in [*model.net.named_parameters(), *model.net.named_buffers()]]
    shared = {**posterior.state, **{name: v for name, v in posterior.points.items() if name in names}}
    weights = {name: value for name, value in values.items() if name in names}
    num = len(next(iter(values.values()))) if values else 1

    def predict(x: Tensor) -> Prediction:
        outputs = [model.forward({name: v[i] for name, v in weights.items()}, x, shared) for i in range(num)]
        like = posterior.predict(x.detach()[:1], values)
        return Prediction(model.likelihood, torch.stack(outputs), like.latents)

    return predict


def _check_same(own: Prediction, usual: Prediction) -> None:
    if not torch.allclose(own.outputs, usual.outputs, rtol=1e-3, atol=1e-4):
        raise ValueError(
            "this posterior predicts otherwise than by its network under draws (a linearised network): "
            "sobol works on its predictions"
        )


class Sobol(NamedTuple):
    """Shares of the variance, over inputs, of an uncertainty."""

    #: ``(d,)``: the share that a feature explains by itself.
    first: npt.NDArray[np.float64]
    #: ``(d,)``: its share with all its interactions. 0: the uncertainty does not depend on it.
    total: npt.NDArray[np.float64]


class _Column:
    """The law of the values of a column, as far as scipy asks for it."""

    def __init__(self, values: npt.NDArray[np.float64]):
        self._values = np.sort(values)

    def ppf(self, q: Any) -> Any:
        return np.quantile(self._values, q)


def sobol(
    predict: Callable[[Any], Prediction], x: Any, *, of: Measure = epistemic, num: int = 1024, seed: int = 0
) -> Sobol:
    """Which features decide where the prediction is uncertain: Sobol indices of the uncertainty, by scipy.

    Saltelli et al., Computer Physics Communications 181 (2010). The inputs have the distribution of the columns of x,
    independent of each other: where features go together, it asks about inputs that do not occur.

    Args:
        predict: From inputs to a prediction: ``posterior.predict``; called once, on ``num (d + 2)`` rows.
        x: ``(n, d)``, rows such as those of the training set.
        of: The uncertainty of each row.
        num: Of inputs, a power of 2.
        seed: Of these.
    """
    from scipy.stats import sobol_indices

    table = torch.as_tensor(x).detach()
    columns = [_Column(column) for column in table.double().cpu().numpy().T]

    def uncertainty(points: Any) -> Any:
        """``(d, m)`` points, as scipy has them."""
        rows = torch.as_tensor(np.ascontiguousarray(points.T)).to(table)
        return of(predict(rows)).detach().double().cpu().numpy()

    found = sobol_indices(func=uncertainty, n=num, dists=columns, rng=np.random.default_rng(other_seed(seed, "sobol")))
    return Sobol(found.first_order, found.total_order)
