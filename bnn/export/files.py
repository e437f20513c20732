"""Posteriors and estimators as files for production."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

from bnn.estimators.base import Estimator
from bnn.estimators.encoding import CategoricalColumn, NumericColumn
from bnn.estimators.units import InUnits
from bnn.export.program import Program, averages, ways
from bnn.export.record import Format, format_of, in_words, recorded, write
from bnn.export.rows import any_rows
from bnn.export.tables import TableInputs, TableProgram
from bnn.files import versions
from bnn.inputs import Inputs, as_inputs, input_leaves, named_leaves, num_rows
from bnn.likelihoods import Function, Truncated
from bnn.posterior import DEFAULT_DRAWS, Posterior
from bnn.prediction import Prediction
from bnn.random import isolated

_log = logging.getLogger(__name__)

QUANTILES = (0.05, 0.5, 0.95)
#: Rows of the example with which a program is recorded: a number that no layer is likely to have as its width, since
#: torch takes two equal numbers for the same one.
_ROWS = 23
#: How far a recorded program may be from `predict`, beside the size of the numbers.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


def export_posterior(
    posterior: Posterior,
    path: str | Path,
    example_inputs: Any = None,
    *,
    quantiles: Sequence[float] = QUANTILES,
    draws: int | None = None,
    seed: int = 0,
    format: Format | None = None,
) -> Path:
    """See `bnn.Posterior.export`."""
    form = format_of(path, format)
    x = _example(posterior, example_inputs)
    levels = _levels(posterior, quantiles)

    def build(over: Any) -> nn.Module:
        return Program(posterior, draws, seed, levels, None, over, x)

    program = _record(posterior, build, x, form)
    more = _more_rows(x)
    _compare(_called(program, more), posterior.predict(more, draws, seed))
    return write(program, path, form, _metadata(posterior, program, x, quantiles, draws, seed))


def export_estimator(
    estimator: Any,
    path: str | Path,
    *,
    quantiles: Sequence[float] = QUANTILES,
    format: Format | None = None,
) -> Path:
    """See `bnn.BayesianRegressor.export`."""
    assert isinstance(estimator, Estimator)
    form = format_of(path, format)
    posterior: Posterior = estimator.posterior_
    encoder, classes = estimator.encoder_, getattr(estimator, "classes_", None)
    count = None if classes is None else len(classes)
    units = None if classes is not None else _units(estimator, posterior)
    levels = _levels(posterior, quantiles)
    table = _example_table(estimator)
    encode = TableInputs(encoder, posterior.model.like)

    def build(over: Any) -> nn.Module:
        program = Program(posterior, estimator.draws, 0, levels, units, over, encode(table)[0])
        return TableProgram(encode, program, count)

    program = _record(posterior, build, table, form)
    more = _more_rows(table)
    expected = posterior.predict(encode(more)[0], estimator.draws)
    _compare(_called(program, more), expected if units is None else units.prediction(expected))
    found = _metadata(posterior, program, table, quantiles, estimator.draws, 0)
    found["columns"] = _columns(estimator)
    if classes is not None:
        found["classes"] = classes.tolist()
    return write(program, path, form, found)


def _example(posterior: Posterior, given: Any) -> Inputs:
    """A few rows of inputs: those given, else of the shapes that the fit has seen.

    Raises:
        ValueError: Uncertain inputs; no shapes are known, or several.
    """
    if posterior.model.readings is not None:
        raise ValueError("the inputs of this model are uncertain (input_noise, missing='infer'): it cannot be exported")
    like = posterior.model.like
    if given is None:
        shapes = posterior.input_shapes
        if shapes is None or len(shapes) != 1:
            raise ValueError("give example_inputs=, a few rows of x: the network takes several inputs, or unknown ones")
        with isolated(0, like.device):
            return torch.randn(_ROWS, *shapes[0], dtype=like.dtype, device=like.device)
    x = as_inputs(given, like)
    rows = num_rows(x)
    index = torch.arange(_ROWS, device=like.device) % rows
    if isinstance(x, Mapping):
        return {name: leaf[index] for name, leaf in x.items()}
    return tuple(leaf[index] for leaf in x) if isinstance(x, tuple) else x[index]


def _example_table(estimator: Any) -> Tensor:
    """Rows around the medians of the table; of categories the first level."""
    table = torch.zeros(
        _ROWS, estimator.n_features_in_, dtype=torch.float64, device=estimator.posterior_.model.like.device
    )
    for i, column in zip(estimator.encoder_.used, estimator.encoder_.columns, strict=True):
        if isinstance(column, NumericColumn):
            table[:, i] = column.median + column.scale * torch.linspace(-1, 1, _ROWS)
    return table


def _more_rows(x: Inputs) -> Inputs:
    """Other rows than those of a recording, and more: what it took for fixed shows."""
    n = num_rows(x)
    index = torch.arange(2 * n - 1, device=input_leaves(x)[0].device) % n
    return tree_map(lambda leaf: leaf[index], x)


def _levels(posterior: Posterior, quantiles: Sequence[float]) -> Tensor | None:
    if not all(0 < level < 1 for level in quantiles):
        raise ValueError(f"quantile levels lie strictly between 0 and 1, not {tuple(quantiles)}")
    return torch.tensor(quantiles, dtype=torch.float64) if quantiles else None


def _units(estimator: Any, posterior: Posterior) -> InUnits | None:
    loc, scale = (
        torch.as_tensor(value, dtype=torch.float64, device=posterior.model.like.device)
        for value in (estimator.target_mean_, estimator.target_scale_)
    )
    scaled = bool((loc != 0).any() or (scale != 1).any())
    return InUnits(posterior.model.likelihood, loc, scale) if scaled else None


def _record(posterior: Posterior, build: Callable[[Any], nn.Module], x: Inputs, form: Format) -> ExportedProgram:
    """The program, with the network over draws in the best way that goes.

    Raises:
        ValueError: It cannot be recorded, and why.
    """
    why = ""
    for over in ways(posterior, loops=form == "pt2"):
        try:
            with nullcontext() if posterior.linear is None else any_rows():
                program = recorded(build(over), x)
        except Exception as error:  # torch raises many kinds, from many places
            if isinstance(error, NotImplementedError) and "distribution function" in str(error):
                raise ValueError(
                    f"quantiles under {posterior.model.likelihood!r} cannot be exported: {error}. Export moments and "
                    "probabilities alone, with quantiles=()"
                ) from error
            why, cause = in_words(error), error
            _log.debug("the network over draws cannot be recorded by %s: %s", over, why)
        else:
            _log.info("recorded the network over draws by %s", over)
            return program
    if isinstance(posterior.model.likelihood, Truncated | Function):
        why = (
            f"its moments are not in closed form, as a file needs them ({why}); bnn.distil(posterior, x).net is a "
            "module that torch.export.export takes"
        )
    elif posterior.linear is not None:
        why = f"its network is linearised in its weights: {why}. Fit bnn.Laplace(predictive='draws'), or bnn.distil it"
    words = f"a posterior under {posterior.model.likelihood!r} of this {type(posterior.model.net).__name__}"
    raise ValueError(f"{words} cannot be exported: {why}") from cause


def _called(program: ExportedProgram, x: Inputs) -> dict[str, Tensor]:
    with torch.no_grad():
        if isinstance(x, Mapping):
            return program.module()(**x)
        return program.module()(*(x if isinstance(x, tuple) else (x,)))


def _compare(found: Mapping[str, Tensor], expected: Prediction) -> None:
    """Raise unless the program gives what `predict` gives."""
    for name, field in (("mean", "mean"), ("sd", "std"), ("probabilities", "probs")):
        if name not in found:
            continue
        value, own = getattr(expected, field), found[name]
        if own.dim() > value.dim():  # an estimator's file has both classes
            own = own[..., 1]
        close = _TOLERANCE.get(value.dtype, 1e-4) * (1 + value.abs())
        # Moments may be infinite or unknown (NaN): then in both.
        if not bool(
            ((own - value).abs() <= close).logical_or(own == value).logical_or(own.isnan() & value.isnan()).all()
        ):
            worst = (own - value).abs().max().item()
            raise ValueError(
                f"this posterior cannot be exported: the program's {name} is off by {worst:.2g} of predict's"
            )


def _metadata(
    posterior: Posterior, program: ExportedProgram, x: Inputs, quantiles: Sequence[float], draws: int | None, seed: int
) -> dict[str, Any]:
    """What a reader of the file needs to know, as JSON."""
    outputs = _called(program, x)
    like = posterior.model.like
    return {
        "schema": 1,
        "versions": versions(),
        "method": posterior.settings.get("method", posterior.approximation.kind),
        "likelihood": repr(posterior.model.likelihood),
        # None: averaged over all of them in closed form.
        "draws": None if averages(posterior, draws) else draws or posterior.num_draws or DEFAULT_DRAWS,
        "seed": seed,
        "quantiles": list(quantiles) if "quantiles" in outputs else [],
        "inputs": [_described(name, leaf) for name, leaf in named_leaves(x)],
        "outputs": {name: _described(name, value) for name, value in outputs.items()},
        "device": str(like.device),
    }


def _described(name: str, value: Tensor) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.")
    return {"name": name, "shape": ["rows", *value.shape[1:]], "dtype": dtype}


def _columns(estimator: Any) -> list[dict[str, Any]]:
    """The columns of the table in their order; those that are not used too."""
    known = dict(zip(estimator.encoder_.used, estimator.encoder_.columns, strict=True))
    names = getattr(estimator, "feature_names_in_", None)
    found = []
    for i in range(estimator.n_features_in_):
        column = known.get(i)
        entry: dict[str, Any] = {"name": f"x{i}" if names is None else str(names[i])}
        if isinstance(column, CategoricalColumn):
            entry |= {"kind": "category", "levels": list(column.levels), "missing": column.missing}
        else:
            entry |= {"kind": "unused" if column is None else "number"}
        found.append(entry)
    return found
