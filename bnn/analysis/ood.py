"""Knowing what it does not know: how unusual an input is, and how well that tells strangers from acquaintances.

`n` rows, `k` classes. In every score of this file larger means more unusual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn.analysis.estimate import Estimate
from bnn.analysis.score_table import scores
from bnn.likelihoods import Categorical
from bnn.prediction import Prediction


def unusualness(prediction: Prediction) -> dict[str, Tensor]:
    """Every score that the likelihood has, ``{name: (n,)}``; the outputs (labels, pixels) of a row are averaged.

    Of classes: ``mutual_information`` of label and weights (Houlsby et al. 2011), ``entropy`` of the label,
    ``confidence`` (one minus the largest probability; Hendrycks and Gimpel 2017, arXiv:1610.02136) and, for
    Categorical, ``energy``, minus the log of the summed exponentials of the logits, averaged over draws (Liu et al.
    2020, arXiv:2010.03759). Of numbers: ``variance``, and ``epistemic``, the part of it that more data would remove.

    Args:
        prediction: Of n rows.
    """
    fields = prediction.likelihood.fields
    found: dict[str, Tensor] = {}
    if "entropy" in fields:
        found |= {"mutual_information": prediction.entropy.epistemic, "entropy": prediction.entropy.total}
    if "probs" in fields:
        probs = prediction.probs
        labels = prediction.likelihood.labels
        found["confidence"] = 1 - (probs.max(-1).values if labels else torch.maximum(probs, 1 - probs))
    if isinstance(prediction.likelihood, Categorical):
        found["energy"] = -prediction.outputs.logsumexp(2).mean(0)  # the classes come first, pixels after them
    elif "variance" in fields and "probs" not in fields:
        found |= {"epistemic": prediction.variance.epistemic, "variance": prediction.variance.total}
    return {name: value.reshape(prediction.num_rows, -1).mean(1) for name, value in found.items()}


class Detection(NamedTuple):
    """How well a score tells two sets of rows apart."""

    #: Probability that a row from outside has a larger score than one from inside; 0.5 is chance.
    auroc: float
    #: Its standard error (DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988).
    auroc_error: float
    #: Area under precision over recall, rows from outside being what is sought (average precision).
    aupr: float
    #: Share of the rows from inside that are taken for strangers where 95 % of the strangers are found; 0 is best.
    fpr95: float


def detection(inside: Any, outside: Any) -> Detection:
    """How well a score, larger for what is unusual, finds the rows from outside; by scikit-learn.

    Args:
        inside: ``(n,)``, scores of rows like those of the training set.
        outside: ``(m,)``, scores of rows that are unlike them.

    Raises:
        ValueError: Either is empty, or holds what is not finite.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    low, high = (np.asarray(torch.as_tensor(value).detach().cpu().double()).ravel() for value in (inside, outside))
    for name, value in (("inside", low), ("outside", high)):
        if not len(value) or not np.isfinite(value).all():
            raise ValueError(f"{name} holds no scores, or some that are not finite")
    values, strangers = np.concatenate([low, high]), np.repeat([0, 1], [len(low), len(high)])
    false, true, _ = roc_curve(strangers, values, drop_intermediate=False)
    # The share of the other set that each row is above (below): its placement.
    ranks = rankdata(values)
    above = (ranks[len(low) :] - rankdata(high)) / len(low)
    below = 1 - (ranks[: len(low)] - rankdata(low)) / len(high)
    variance = sum(part.var(ddof=1) / len(part) if len(part) > 1 else np.nan for part in (above, below))
    return Detection(
        float(roc_auc_score(strangers, values)),
        float(np.sqrt(variance)),
        float(average_precision_score(strangers, values)),
        float(false[np.searchsorted(true, 0.95 - 1e-12)]),
    )


def under_shift(
    predict: Callable[[Any], Prediction], sets: Mapping[str, tuple[Any, Any]], **options: Any
) -> dict[str, dict[str, Estimate]]:
    """The table of scores on each of several test sets, such as one of growing corruption: does doubt grow with error?

    Ovadia et al. (2019), arXiv:1906.02530.

    Args:
        predict: From inputs to a prediction: ``posterior.predict``.
        sets: ``{name: (x, y)}``.
        options: Of `bnn.analysis.scores`.
    """
    return {name: scores(predict(x), y, **options) for name, (x, y) in sets.items()}
