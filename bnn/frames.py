"""Predictions as tables and labelled arrays: pandas and xarray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnn.prediction import Prediction

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def to_dataframe(
    prediction: Prediction,
    *,
    level: float = 0.9,
    classes: Sequence[Any] | None = None,
    targets: Sequence[str] | None = None,
    index: Any = None,
) -> pd.DataFrame:
    """See `bnn.Prediction.to_dataframe`."""
    import pandas as pd

    columns: dict[str, NDArray[Any]] = {}
    names = _targets(prediction, targets)
    low, high = f"lower_{_percent(level)}", f"upper_{_percent(level)}"
    fields = prediction.likelihood.fields
    values: dict[str, Tensor] = {}
    if "mean" in fields:
        values["mean"] = prediction.mean
    if "variance" in fields:
        values |= _deviations(prediction)
    if "quantile" in fields:
        values |= dict(zip((low, high), prediction.interval(level), strict=True))
    if "entropy" in fields:
        values |= {"entropy": prediction.entropy.total, "mutual_information": prediction.entropy.epistemic}
    for name, value in values.items():
        columns |= _split(name, value, names)
    if "probs" in fields:
        columns |= _probabilities(prediction, classes, names)
    return pd.DataFrame(columns, index=index)


def to_xarray(
    prediction: Prediction,
    *,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    draws: int = 0,
    seed: int = 0,
    classes: Sequence[Any] | None = None,
    targets: Sequence[str] | None = None,
    index: Any = None,
) -> xr.Dataset:
    """See `bnn.Prediction.to_xarray`."""
    import xarray as xr

    fields, names = prediction.likelihood.fields, _targets(prediction, targets)
    event = prediction.event
    dims = [] if not event else ["target"] if len(event) == 1 else [f"target_{i}" for i in range(len(event))]
    found: dict[str, Any] = {}
    coords: dict[str, Any] = {"row": np.arange(prediction.num_rows) if index is None else np.asarray(index)}
    if len(event) == 1:
        coords["target"] = list(names) or np.arange(event[0])
    if "mean" in fields:
        found["mean"] = (["row", *dims], _array(prediction.mean))
    if "variance" in fields:
        found |= {name: (["row", *dims], _array(value)) for name, value in _deviations(prediction).items()}
    if "quantile" in fields and quantiles:
        found["quantiles"] = (["quantile", "row", *dims], _array(prediction.quantile(quantiles)))
        coords["quantile"] = list(quantiles)
    if "entropy" in fields:
        measure = prediction.entropy
        found["entropy"] = (["row", *dims], _array(measure.total))
        found["mutual_information"] = (["row", *dims], _array(measure.epistemic))
    if "probs" in fields:
        probs = _array(prediction.probs)
        several = prediction.likelihood.labels
        found["probabilities"] = (["row", *dims, "class"] if several else ["row", *dims], probs)
        if several:
            coords["class"] = _classes(classes, probs.shape[-1])
    if draws:
        found["draws"] = (["draw", "row", *dims], _array(prediction.sample(draws, seed)))
        coords["draw"] = np.arange(draws)
    return xr.Dataset(found, coords, {"likelihood": repr(prediction.likelihood), "num_draws": prediction.num_draws})


def _deviations(prediction: Prediction) -> dict[str, Tensor]:
    parts = prediction.variance
    return {"sd": parts.total.sqrt(), "epistemic_sd": parts.epistemic.sqrt(), "aleatoric_sd": parts.aleatoric.sqrt()}


def _targets(prediction: Prediction, given: Sequence[str] | None) -> list[str]:
    """Names of several targets, ``[]`` of a single one.

    Raises:
        ValueError: Another number of names than of targets.
    """
    event = prediction.event
    count = int(np.prod(event)) if event else 0
    if given is not None and len(given) != max(count, 1):
        raise ValueError(f"targets are {len(given)} names, but there are {max(count, 1)} targets a row")
    if not event:
        return []
    return list(given) if given is not None else ["_".join(map(str, place)) for place in np.ndindex(*event)]


def _split(name: str, value: Tensor, targets: list[str]) -> dict[str, NDArray[Any]]:
    """One column, or one a target."""
    array = _array(value)
    if not targets:
        return {name: array}
    flat = array.reshape(len(array), -1)
    return {f"{name}_{target}": flat[:, i] for i, target in enumerate(targets)}


def _probabilities(
    prediction: Prediction, classes: Sequence[Any] | None, targets: list[str]
) -> dict[str, NDArray[Any]]:
    probs = prediction.probs
    if not prediction.likelihood.labels:  # P(y = 1)
        if classes is None or targets:
            return _split("probability", probs, targets)
        probs = torch.stack([1 - probs, probs], dim=-1)
    found: dict[str, NDArray[Any]] = {}
    for i, label in enumerate(_classes(classes, probs.shape[-1])):
        found |= _split(f"probability_{label}", probs[..., i], targets)
    return found


def _classes(given: Sequence[Any] | None, count: int) -> list[Any]:
    if given is not None and len(given) != count:
        raise ValueError(f"classes are {len(given)} names, but there are {count} classes")
    return list(range(count)) if given is None else list(given)


def _percent(level: float) -> str:
    return f"{100 * level:g}"


def _array(value: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = value.detach().cpu().numpy()
    return found
