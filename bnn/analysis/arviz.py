"""Posteriors in ArviZ's schema: https://python.arviz.org/en/stable/schema/schema.html.

Written for both ArviZ series, 0.8 (Python 3.11) and 1.x: all that is used of them is ``arviz_base.dict_to_dataset``,
which is the same in both.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import torch
from torch import Tensor

from bnn.analysis.density import log_prior_by_site, marginal
from bnn.data import as_batch
from bnn.files import versions
from bnn.inputs import Inputs, as_inputs
from bnn.posterior import Posterior
from bnn.prediction import Prediction
from bnn.random import isolated

if TYPE_CHECKING:
    import xarray

#: What ArviZ and netCDF need for themselves.
_RESERVED = ("chain", "draw", "sample")


def to_arviz(
    posterior: Posterior,
    x: Any = None,
    y: Any = None,
    *,
    num: int | None = None,
    seed: int = 0,
    predict_x: Any = None,
    log_prior: bool = False,
) -> xarray.DataTree:
    """A posterior as a tree in ArviZ's schema, for any method.

    Groups: ``posterior`` (every site, by its own name); ``sample_stats`` of a sampler that keeps any (divergences,
    energies, step sizes, ...); with x and y ``posterior_predictive``, ``log_likelihood`` (of
    each row by itself, never scaled to a whole data set), ``observed_data``, ``constant_data``; with `predict_x`
    ``predictions`` and ``predictions_constant_data``; with `log_prior` the group of that name, for ArviZ's power
    scaling: log p of each site given those before it, summed over its numbers. Parameters learned without a prior are
    in ``constant_data``.
    A draw of a predictive group belongs to the draw of the weights at the same place.

    The dimensions are ``chain``, ``draw``, ``row`` (of x and y), ``prediction_row`` (of `predict_x`), and, for all
    others, the variable's name with a number, so that no two variables share one by accident. A finite posterior keeps
    its chains; the draws of a continuous one are one chain.

    Attributes of the tree: ``inference_library`` and its version, ``method``, ``seed`` (of the fit) and ``draws_seed``,
    ``seconds``, ``settings`` and ``versions`` (these two as JSON).

    Args:
        posterior: Any.
        x: Inputs, n rows: a tensor or array, a tuple or a dict of them. The training rows, for ``loo`` and its like.
        y: Their targets, ``(n,)`` or ``(n, k)``.
        num: Draws over all chains, evenly spaced in each; ``None``: all of a finite posterior, 200 of a continuous one.
        seed: Of the draws and of the predictive noise.
        predict_x: Further inputs, to predict.
        log_prior: Whether to work out the prior's density at every draw.

    Returns:
        The tree. ``tree.to_netcdf(path, engine="h5netcdf")`` writes it.

    Raises:
        ValueError: One of x and y without the other; a `num` that the chains cannot share equally or that is more than
            there are; a name that the schema needs for itself; inputs and targets that do not fit the model.
    """
    import xarray

    _check_both(x, y)
    model = posterior.model
    values, shape = chained_draws(posterior, num, seed)
    # Where each draw is a net of its own, its buffers (batch statistics) come with it: these are no unknowns.
    buffers = set(model.state())
    groups = {"posterior": _drawn({name: v for name, v in values.items() if name not in buffers}, shape)}
    if log_prior:
        latent = {site.name: values[site.name] for site in model.sites().latents}
        groups["log_prior"] = _drawn(log_prior_by_site(model, latent, posterior.points), shape)
    if posterior.approximation.statistics:
        groups["sample_stats"] = _statistics(posterior, shape)
    points = {name: _Variable(value) for name, value in posterior.points.items()}
    if x is not None:
        batch = as_batch(x if model.readings is None else model.read(x), y, model.likelihood, model.like)
        prediction = posterior.predict(batch.x, values)
        groups["posterior_predictive"] = _drawn({"y": _noisy(prediction, seed)}, shape, "row")
        log_p = prediction.log_prob_draws(batch.y) if model.readings is None else marginal(posterior, values, batch)
        groups["log_likelihood"] = _drawn({"y": log_p}, shape, "row")
        groups["observed_data"] = {"y": _Variable(batch.y, ("row",))}
        groups["constant_data"] = _inputs(batch.x, "row")
        _check_apart(groups["constant_data"], points)
        groups["constant_data"] |= points
    elif points:
        groups["constant_data"] = points
    if predict_x is not None:
        inputs = as_inputs(predict_x, model.like)
        # Another stream than that of the posterior predictive draws: at the same rows the noise is to be new.
        drawn = _noisy(posterior.predict(inputs, values), seed + 1)
        groups["predictions"] = _drawn({"y": drawn}, shape, "prediction_row")
        groups["predictions_constant_data"] = _inputs(inputs, "prediction_row")
    attributes = _attributes(posterior, seed)
    tree = xarray.DataTree.from_dict({name: _dataset(name, group, attributes) for name, group in groups.items()})
    tree.attrs = attributes
    return tree


class _Variable(NamedTuple):
    """A tensor, and the names of its leading dimensions; the others are called after the variable."""

    value: Tensor
    dims: tuple[str, ...] = ()


_Group = dict[str, _Variable]


def _dataset(group: str, variables: Mapping[str, _Variable], attributes: Mapping[str, Any]) -> xarray.Dataset:
    """One group, with a dimension of its own for every axis that has no name."""
    from arviz_base import dict_to_dataset

    arrays = {name: _array(variable.value) for name, variable in variables.items()}
    dims: dict[Hashable, Sequence[Hashable]] = {
        name: [*variable.dims, *(f"{name}_dim_{i}" for i in range(arrays[name].ndim - len(variable.dims)))]
        for name, variable in variables.items()
    }
    _check_names(group, dims)
    library = {name: attributes[name] for name in ("inference_library", "inference_library_version")}
    # ArviZ 1.x writes these down as an attribute of the group and reads them back.
    sample_dims = [] if "data" in group else ["chain", "draw"]
    return dict_to_dataset(arrays, dims=dims, sample_dims=sample_dims, attrs=library)


def _drawn(values: Mapping[str, Tensor], shape: tuple[int, int], *more: str) -> _Group:
    """Draws ``(s, ...)`` parted into chains."""
    return {name: _Variable(value.unflatten(0, shape), ("chain", "draw", *more)) for name, value in values.items()}


def _inputs(x: Inputs, row: str) -> _Group:
    """Inputs by name: ``x``, or ``x0``, ``x1``, ... of a tuple, or the names of the network's arguments."""
    if not isinstance(x, Mapping):
        x = {f"x{i}": leaf for i, leaf in enumerate(x)} if isinstance(x, tuple) else {"x": x}
    return {name: _Variable(leaf, (row,)) for name, leaf in x.items()}


def chained_draws(posterior: Posterior, num: int | None, seed: int) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Draws of all sites, chain after chain, and the numbers of chains and draws a chain."""
    shape = posterior.approximation.shape
    if shape is None:
        values = posterior.draws(num, seed)
        return values, (1, len(next(iter(values.values()))))
    values = posterior.draws()
    chains, draws = shape
    if num is None or num == chains * draws:
        return values, shape
    if num < 1 or num % chains or num > chains * draws:
        raise ValueError(
            f"num is {num}, but this posterior has {chains} chains of {draws} draws: give a multiple of {chains}, "
            f"at most {chains * draws}"
        )
    rows = _thinned(draws, num // chains)
    thinned = {
        name: value.unflatten(0, shape)[:, rows.to(value.device)].flatten(0, 1) for name, value in values.items()
    }
    return thinned, (chains, num // chains)


def _thinned(draws: int, count: int) -> Tensor:
    """Evenly spaced draws of a chain, the first and the last among them."""
    return torch.linspace(0, draws - 1, count).round().long()


#: The statistics that are no floating-point numbers.
_KINDS = {"diverging": torch.bool, "n_steps": torch.long, "tree_depth": torch.long}


def _statistics(posterior: Posterior, shape: tuple[int, int]) -> _Group:
    """What the sampler tells of the draws that the tree has."""
    found = {}
    for name, value in posterior.approximation.statistics.items():
        rows = _thinned(value.shape[1], shape[1]).to(value.device)
        found[name] = _Variable(value[:, rows].to(_KINDS.get(name, value.dtype)), ("chain", "draw"))
    return found


def _noisy(prediction: Prediction, seed: int) -> Tensor:
    """One y for every draw and row, in the order of the draws: ``(s, n, ...)``."""
    with isolated(seed, prediction.outputs.device), pyro.validation_enabled(False):
        drawn = prediction.distribution().sample()
    return drawn.reshape(prediction.num_draws, prediction.num_rows, *drawn.shape[1:])


def _array(value: Tensor) -> npt.NDArray[Any]:
    value = value.detach().cpu()
    # numpy has no bfloat16, and netCDF no half precision.
    return np.asarray(value.float() if value.dtype in (torch.bfloat16, torch.float16) else value)


def _check_both(x: Any, y: Any) -> None:
    if (x is None) != (y is None):
        given, missing = ("x", "y") if y is None else ("y", "x")
        raise ValueError(
            f"to_arviz was given {given} without {missing}: log-likelihoods need both; for predictions at new inputs "
            "give predict_x="
        )


def _check_apart(inputs: _Group, points: _Group) -> None:
    for name in inputs.keys() & points.keys():
        raise ValueError(f"{name!r} is both an input and a parameter without a prior: rename one of them")


def _check_names(group: str, dims: Mapping[Hashable, Sequence[Hashable]]) -> None:
    """Refuse names under which xarray would lose a variable without a word, or netCDF could not hold it."""
    taken = {*_RESERVED, *(dim for own in dims.values() for dim in own)}
    for name in dims:
        if name in taken or "/" in str(name):
            raise ValueError(
                f"{name!r} cannot be a variable of the ArviZ group {group!r}: the name is that of a dimension, or it "
                "has a '/' in it; rename the parameter (or the input)"
            )


def _attributes(posterior: Posterior, seed: int) -> dict[str, Any]:
    """What is known of the fit, as netCDF can hold it: numbers and strings."""
    settings = posterior.settings
    found = versions()
    return {
        "inference_library": "bnn",
        "inference_library_version": found["bnn-toolkit"],
        "method": str(settings.get("method", posterior.approximation.kind)),
        **({"seed": settings["seed"]} if "seed" in settings else {}),
        "draws_seed": seed,
        "seconds": float(posterior.history.seconds),
        "settings": json.dumps(settings),
        "versions": json.dumps(found),
    }
