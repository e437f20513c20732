"""Dropout at prediction: each draw is a thinned network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_map

from bnn.approximations import Approximation, Thinned
from bnn.capture import Backend
from bnn.data import Batch
from bnn.inference.base import GradientMethod
from bnn.inference.objective import Objective, Params, Terms
from bnn.inference.point import check_fixed_scales, point_terms, point_values, start_vector
from bnn.inputs import Inputs
from bnn.model import BNN
from bnn.random import generator_state, isolated

#: Dropout of whole channels, and the dimensions of a batch of activations ``(n, channels, ...)``.
_CHANNELS: dict[type[nn.Module], int] = {nn.Dropout1d: 3, nn.Dropout2d: 4, nn.Dropout3d: 5}


@dataclass(frozen=True, kw_only=True)
class MCDropout(GradientMethod):
    """Training with the network's own dropout, which stays on at prediction: each draw is one thinned network.

    Minimises ``E_masks[-log p(y | w, masks)] - T log p(w)``. Seen as variational inference, the posterior is a weight
    matrix with random columns at zero (Gal and Ghahramani 2016, arXiv:1506.02142). The penalty ``w^2 / (2 s^2)`` of a
    Gaussian prior of scale s is then, up to constants, the divergence from a Gaussian prior of scale
    ``s / sqrt(1 - rate)`` over the weights behind a dropout of that rate, as torch scales what it keeps.

    A draw holds the masks beside the weights, ``MODULE.mask``, and has one for all rows: a draw is a function, a
    prediction is joint over rows, and depends neither on chunks nor on batches. ``posterior.net(i)`` has the masks of
    draw i in place.

    The modules ``nn.Dropout``, ``nn.Dropout1d``, ``nn.Dropout2d`` and ``nn.Dropout3d`` are taken, those that are in
    training mode (a part of the net left in evaluation mode has none).

    Raises (from `fit`):
        ValueError: A network without dropout, or whose random numbers are drawn elsewhere: in `forward` by
            ``nn.functional``, inside attention or recurrent layers, by another kind of dropout; a dropout module that
            is used several times a call; activations without one dimension of rows; a learned prior scale.
    """

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`."""
        check_fixed_scales(model, "MCDropout")
        return DropoutLoss(self, model, n_data, backend)


class DropoutLoss(Objective):
    """The negative log joint per datum at one point, under masks of each step's own."""

    method: MCDropout

    def __init__(self, method: MCDropout, model: BNN, n_data: int, backend: Backend):
        super().__init__(method, model, n_data, backend)
        self._dropouts = _dropout_modules(self.model.net)

    def initial(self) -> dict[str, Tensor]:
        """One flat vector of unconstrained numbers."""
        return start_vector(self)

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """As of a `PointLoss`; dropout is on."""
        if "rates" not in self.remembered:  # a batch tells how large the masks are
            self.remembered["rates"] = self._find_rates(self.model.expected(batch.x))
        return point_terms(self, params, points, batch, state, "own")

    def _find_rates(self, x: Inputs) -> dict[str, tuple[list[int], float]]:
        """``{module: (the mask's shape, the rate)}``: numbers, since tensors made inside a gradient belong to it."""
        like = self.model.like
        values, points, _ = self._start
        weights = self.model.weights(values, points)
        twice = tree_map(lambda leaf: torch.cat([leaf, leaf]), x)
        shapes = []
        with isolated(device=like.device), torch.no_grad(), _quiet(self._dropouts):
            for inputs in (x, twice):
                with _shapes_before(self._dropouts) as seen:
                    self.model.forward(weights, inputs, self._start[2])
                shapes.append(seen)
            before = generator_state(like.device)
            self.model.forward(weights, x, self._start[2])
            if not torch.equal(generator_state(like.device), before):
                raise ValueError(
                    "the network draws random numbers outside its dropout modules: in forward by torch.nn.functional, "
                    "or inside attention or recurrent layers (set their own dropout to 0). MCDropout could not keep "
                    "them the same for all rows of a draw: use torch.nn.Dropout modules"
                )
        rates = {}
        for name, module in self._dropouts.items():
            mask = _mask_shape(name, module, shapes[0].get(name, []), shapes[1].get(name, []))
            rates[name] = (mask, float(module.p))
        return rates

    def approximation(self, params: Params) -> Approximation:
        """The point, and masks."""
        if "rates" not in self.remembered:
            raise ValueError("the size of the dropout masks is known once the loss has seen a batch")
        like = self.model.like
        rates = {name: like.new_full(mask, rate) for name, (mask, rate) in self.remembered["rates"].items()}
        return Thinned(point_values(self, params), rates)


def _dropout_modules(net: nn.Module) -> dict[str, Any]:
    """The dropout modules that are at work in training.

    Raises:
        ValueError: There is none, or one of a kind whose masks are not known here.
    """
    found: dict[str, Any] = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, _DropoutNd) and module.training and module.p > 0
    }
    if not found:
        raise ValueError(
            "MCDropout needs a network with dropout: modules of torch.nn.Dropout with p > 0, in training mode. For "
            "another network use method='map' or bnn.Ensemble()"
        )
    for name, module in found.items():
        if type(module) is not nn.Dropout and type(module) not in _CHANNELS:
            raise ValueError(f"{name!r} is a {type(module).__name__}: MCDropout takes Dropout, Dropout1d, 2d and 3d")
        if module.p >= 1:
            raise ValueError(f"the dropout module {name!r} drops everything: its p is {module.p}")
    return found


def _mask_shape(name: str, module: nn.Module, one: list[torch.Size], two: list[torch.Size]) -> list[int]:
    """The activations' shape with size 1 for the rows, which share a mask; for channels, their number alone.

    Args:
        name: Of the module.
        module: A dropout module.
        one: The shapes that it was called with in one call of the network.
        two: The same with twice the rows.
    """
    if len(one) != 1 or len(two) != 1:
        raise ValueError(
            f"the dropout module {name!r} is used {len(one)} times in a call of the network: MCDropout needs a module "
            "of its own for every place"
        )
    (a,), (b,) = one, two
    rows = [i for i, (m, n) in enumerate(zip(a, b, strict=True)) if m != n]
    if len(rows) != 1 or b[rows[0]] != 2 * a[rows[0]]:
        raise ValueError(
            f"the activations at the dropout module {name!r} have shapes {tuple(a)} and, with twice the rows, "
            f"{tuple(b)}: MCDropout needs one dimension that is the rows"
        )
    dims = _CHANNELS.get(type(module))
    if dims is None:
        return [1 if i in rows else size for i, size in enumerate(a)]
    if len(a) != dims or rows != [0]:
        raise ValueError(
            f"{type(module).__name__} {name!r} is given activations of shape {tuple(a)}: it needs {dims} dimensions, "
            "the first the rows and the second the channels"
        )
    return [1, a[1], *[1] * (dims - 2)]


@contextmanager
def _quiet(modules: dict[str, nn.Module]) -> Iterator[None]:
    """These modules in evaluation mode for a while."""
    for module in modules.values():
        module.training = False
    try:
        yield
    finally:
        for module in modules.values():
            module.training = True


@contextmanager
def _shapes_before(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[torch.Size]]]:
    """The shapes that these modules are called with, by name."""
    seen: dict[str, list[torch.Size]] = {}

    def hook(name: str) -> Any:
        return lambda _, args: seen.setdefault(name, []).append(args[0].shape)

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
