"""Do held-out targets fall where the posterior says? A test that is exact where the posterior is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnn.analysis.classification import top_class
from bnn.analysis.estimate import targets
from bnn.prediction import Prediction
from bnn.random import other_seed

#: Replicated data sets.
_REPLICATES = 2000
_CHUNK = 10_000_000  # numbers of these at a time
#: Of the intervals.
LEVEL = 0.9


@dataclass(frozen=True)
class Surprise:
    """How often rows fall outside of what was predicted, against how often they should."""

    #: ``"coverage"``: the share of targets outside the 90 % interval. ``"confidence"``: the mean probability of the
    #: predicted class less the accuracy.
    kind: str
    value: float
    #: The mean of the same figure over data that the posterior itself makes.
    expected: float
    #: The share of such data sets with a figure at least as large: small if the posterior is too sure of itself.
    p_value: float
    rows: int

    def __str__(self) -> str:
        if self.kind == "coverage":
            often = "so many or more miss"
            said = f"{1 - self.value:.1%} of {self.rows} targets are inside their 90 % interval"
            said += f" ({1 - self.expected:.1%} expected)"
        else:
            often = "it is as large or larger"
            said = f"confidence less accuracy is {self.value:+.1%} over {self.rows} rows"
            said += f" ({self.expected:+.1%} expected)"
        return f"{said}; of a right posterior, {often} with probability {self.p_value:.2g}"


def surprise(prediction: Prediction, y: Any, *, seed: int = 0) -> Surprise | None:
    """Whether a posterior is too sure, on rows that it was not fitted to; None where the likelihood allows no test.

    The figure is compared with the same figure of data sets drawn from the posterior predictive distribution, each from
    one draw of the weights for all rows: if the posterior is right, the real data are one more of these, and the
    p-value is exact whatever the rows have in common (Rubin, Annals of Statistics 12, 1984). A binomial test would not
    be: errors of neighbouring rows go together.

    Args:
        prediction: At held-out inputs, n rows.
        y: Their targets.
        seed: Of the replicated data.
    """
    fields = prediction.likelihood.fields
    if not fields & {"quantile", "probs"}:
        return None
    y = targets(prediction, y)
    if "quantile" in fields:
        kind, (low, high) = "coverage", prediction.interval(LEVEL)

        def figure(values: Tensor) -> Tensor:
            return ((values < low) | (values > high)).double().flatten(1).mean(1)
    else:
        kind, (top, confidence) = "confidence", top_class(prediction)

        def figure(values: Tensor) -> Tensor:
            return confidence.double().mean() - (values == top).double().flatten(1).mean(1)

    found = float(figure(y.unsqueeze(0)))
    step = max(1, min(_REPLICATES, _CHUNK // max(1, y.numel())))
    others = torch.cat(
        [
            figure(prediction.sample(min(step, _REPLICATES - i), other_seed(seed, f"replicates {i}")))
            for i in range(0, _REPLICATES, step)
        ]
    )
    # Ties (shares of few rows) are broken by halves.
    larger = float((others > found + 1e-12).sum()) + 0.5 * float(((others - found).abs() <= 1e-12).sum())
    p_value = (0.5 + larger) / (1 + len(others))
    return Surprise(kind, found, float(others.mean()), p_value, len(y))
