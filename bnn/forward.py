"""The forward pass over draws: the one place where a network is run under many weights."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from bnn.inputs import Inputs, input_leaves, slice_inputs
from bnn.model import BNN, arguments
from bnn.precision import network_region

_log = logging.getLogger(__name__)

#: Many draws go through the network in one batched call up to so many multiply-adds of one draw (weights x rows), where
#: Python's overhead outweighs the arithmetic, and up to so many rows, where reading the weights does. Above both a
#: batched call only moves more memory. Measured: docs/design/prediction.md.
_SMALL_WORK = 50_000
_FEW_ROWS = 64
#: Multiply-adds, and rows times draws, of one batched call, so that its activations stay in the cache.
_BATCHED_WORK = 5_000_000
_BATCHED_ROWS = 6_400
#: Rows at a time, so that hidden activations never dominate memory.
_ROWS = 16_384
#: Weights of a network up to which it runs under copies of them, and numbers that such a copy of many draws holds.
_COPIED = 20_000
_COPY = 1_000_000


@torch.no_grad()
def forward_over_draws(
    model: BNN,
    weights: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    x: Inputs,
    draws: int,
    at_once: int | None = None,
    *,
    own_inputs: bool = False,
) -> Tensor:
    """The network's outputs under each draw.

    Args:
        model: Its network is in evaluation mode, and the caller's own: its tensors are exchanged during the call.
        weights: ``{parameter: (s, *shape)}``.
        shared: Parameters and buffers that all draws have in common.
        x: Inputs, n rows.
        draws: s; it counts where every weight is shared.
        at_once: Draws a call of the network, 1 for one by one; chosen by size if not given. Results do not depend on it
            (up to rounding).
        own_inputs: Whether each draw has inputs of its own: x is ``(s, n, ...)``.

    Returns:
        ``(s, n)`` or ``(s, n, k)``.
    """
    if own_inputs:
        assert isinstance(x, Tensor)
        at_once = at_once or _choose_at_once(model.net, weights, x.shape[1])
        return _outputs_of_own(model, weights, shared, x, at_once)
    n = len(input_leaves(x)[0])
    chunks = [slice_inputs(x, slice(start, start + _ROWS)) for start in range(0, n, _ROWS)] if n > _ROWS else [x]
    at_once = at_once or _choose_at_once(model.net, weights, min(n, _ROWS))
    parts = [_outputs(model, weights, shared, chunk, draws, at_once) for chunk in chunks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _outputs(
    model: BNN, weights: Mapping[str, Tensor], shared: Mapping[str, Tensor], x: Inputs, draws: int, at_once: int
) -> Tensor:
    if not weights:
        single = model.forward({}, x, shared)
        return single.expand(draws, *single.shape)
    if at_once > 1:
        many = torch.func.vmap(lambda drawn: model.forward(drawn, x, shared))
        try:
            chunks = [
                many({name: value[start : start + at_once] for name, value in weights.items()})
                for start in range(0, draws, at_once)
            ]
            return chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        except RuntimeError as error:  # if the inputs are at fault, that is raised again below
            _say(one_by_one(model.net, error))
    # Closed at once where something fails here: until then the network holds the tensors of a draw.
    with contextlib.closing(_one_by_one(model, weights, shared, x)) as every:
        with torch.inference_mode():  # a little less work an operation than no_grad
            first = next(every)
        # Put where they belong at once: outputs kept one by one lie between the activations, whose memory then cannot
        # be used again (a third more time on 8-50-1).
        outputs = first.new_empty(draws, *first.shape)
        with torch.inference_mode():
            for place, output in zip(outputs.unbind(0), itertools.chain([first], every), strict=True):
                place.copy_(output)
    return outputs


def one_by_one(net: nn.Module, error: RuntimeError) -> str:
    """What is said where torch cannot map a network over draws."""
    why = str(error).strip().splitlines()[0]
    return f"the draws of {type(net).__name__} are computed one by one: torch cannot map over them ({why})"


@functools.cache
def _say(text: str) -> None:
    """Once: a network predicts again and again."""
    _log.warning(text)


def _outputs_of_own(
    model: BNN, weights: Mapping[str, Tensor], shared: Mapping[str, Tensor], x: Tensor, at_once: int
) -> Tensor:
    """As `_outputs`, of inputs ``(s, n, ...)``."""
    if not weights:
        return model.forward({}, x.flatten(0, 1), shared).unflatten(0, x.shape[:2])
    chunks = [
        ({name: value[start : start + at_once] for name, value in weights.items()}, x[start : start + at_once])
        for start in range(0, len(x), at_once)
    ]
    if at_once == 1:
        parts = [
            model.forward({name: value[0] for name, value in drawn.items()}, own[0], shared).unsqueeze(0)
            for drawn, own in chunks
        ]
    else:
        parts = [torch.func.vmap(lambda drawn, own: model.forward(drawn, own, shared))(*chunk) for chunk in chunks]
    return torch.cat(parts)


def _one_by_one(
    model: BNN, weights: Mapping[str, Tensor], shared: Mapping[str, Tensor], x: Inputs
) -> Generator[Tensor]:
    """One plain call of the module a draw: the tensors are put into it, at the cost of some dictionary entries."""
    args, kwargs = arguments(x)
    with network_region(model.like.device), _exchanged(model, list(shared)) as put:
        put(list(shared.values()))
        with _exchanged(model, list(weights)) as put:
            for values in _draw_by_draw(list(weights.values())):
                put(values)
                yield model.select(model.net(*args, **kwargs))


def _draw_by_draw(weights: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The tensors of one draw after the other.

    A layer transposes its weights, and of a tensor that inference mode has made torch makes such views in half the
    time: for a small network that is a tenth of its pass, and its weights are soon copied.
    """
    size = sum(value[0].numel() for value in weights)
    copied = size <= _COPIED
    step = max(1, _COPY // max(1, size)) if copied else len(weights[0])
    for some in zip(*(value.split(step) for value in weights), strict=True):
        parts = [value.clone() for value in some] if copied else some
        yield from zip(*(part.unbind(0) for part in parts), strict=True)


class _Places:
    """Where named tensors stand in a module, their second names too."""

    def __init__(self, model: BNN, names: Sequence[str]):
        second: dict[str, list[str]] = {}
        for name, first in model.ties.items():
            second.setdefault(first, []).append(name)
        named = [[_place(model.net, each) for each in [name, *second.get(name, [])]] for name in names]
        self._first = [places[0] for places in named]
        self._second = [(index, place) for index, places in enumerate(named) for place in places[1:]]

    def __call__(self, values: Sequence[Tensor]) -> None:
        """Put tensors there."""
        for (table, attribute), value in zip(self._first, values, strict=True):
            table[attribute] = value
        for index, (table, attribute) in self._second:
            table[attribute] = values[index]

    def read(self) -> list[Any]:
        """What is there."""
        return [table[attribute] for table, attribute in self._first]


def _place(net: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    owner, _, attribute = name.rpartition(".")
    module = net.get_submodule(owner)
    table = module._parameters if attribute in module._parameters else module._buffers
    return cast(dict[str, Any], table), attribute


@contextmanager
def _exchanged(model: BNN, names: Sequence[str]) -> Iterator[_Places]:
    """Other tensors in the network for a while."""
    places = _Places(model, names)
    before = places.read()
    try:
        yield places
    finally:
        places(before)


def maps_well(net: nn.Module) -> bool:
    """Whether vmap over weights pays.

    It has no rule for LSTM, GRU and RNN, nor for some parametrizations (weight normalisation), a slow one for
    attention, and makes slow grouped convolutions.
    """
    slow = nn.RNNBase | nn.modules.conv._ConvNd | nn.MultiheadAttention | nn.utils.parametrize.ParametrizationList
    return not any(isinstance(module, slow) for module in net.modules())


def depends_on_mode(net: nn.Module) -> list[str]:
    """The kinds of module that treat a row otherwise in training: by dropout, or by the other rows of its batch."""
    kinds = [
        type(module).__name__
        for module in net.modules()
        if isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)
    ]
    return list(dict.fromkeys(kinds))


def _choose_at_once(net: nn.Module, weights: Mapping[str, Tensor], rows: int) -> int:
    if not maps_well(net):
        return 1
    work = max(1, rows) * max(1, sum(value[0].numel() for value in weights.values()))
    if work <= _SMALL_WORK:
        return max(1, _BATCHED_WORK // work)
    return _BATCHED_ROWS // max(1, rows) if rows <= _FEW_ROWS else 1
