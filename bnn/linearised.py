"""The network linearised in its weights, ``f(x; c) + J(x) (w - c)``: under draws, and under a Gaussian as a Gaussian.

Khan et al. (2019), arXiv:1906.01930; Immer, Korzepa and Bauer (2021), arXiv:2008.08400.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bnn.approximations import LocalGaussian
from bnn.inputs import Inputs, input_leaves, slice_inputs
from bnn.model import BNN

#: Modules whose kernels know neither forward-mode derivatives nor vmap.
_FUSED = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.utils.parametrize.ParametrizationList)
#: Numbers of a Jacobian, and of the activations of several draws, at a time.
_JACOBIAN, _ACTIVATIONS = 20_000_000, 5_000_000
#: Rows at a time, so that hidden activations never dominate memory.
_ROWS = 16_384


def jacobian(
    model: BNN, weights: Mapping[str, Tensor], shared: Mapping[str, Tensor], x: Inputs
) -> tuple[Tensor, Tensor]:
    """The outputs of each row, and their derivatives by some weights.

    Args:
        model: Its network is in evaluation mode: a row's outputs depend on that row alone.
        weights: ``{parameter: (*shape)}``, by which to differentiate; D numbers, joined in this order.
        shared: The other parameters, and buffers.
        x: Inputs, n rows; `chunks` says how many at a time fit in memory.

    Returns:
        Outputs ``(n,)`` or ``(n, k)``, and the Jacobian ``(n, k, D)``, with k = 1 for outputs ``(n,)``.
    """

    def one(values: dict[str, Tensor], row: Inputs) -> tuple[Tensor, Tensor]:
        out = model.forward(values, tree_map(lambda leaf: leaf.unsqueeze(0), row), shared).squeeze(0)
        return out.reshape(-1), out

    at = dict(weights)
    if is_fused(model):
        by_row = torch.func.jacrev(one, has_aux=True, chunk_size=1)
        rows = [by_row(at, tree_map(lambda leaf, i=i: leaf[i], x)) for i in range(len(input_leaves(x)[0]))]
        outputs = torch.stack([row[1] for row in rows])
        parts = {name: torch.stack([row[0][name] for row in rows]) for name in at}
    else:
        parts, outputs = torch.func.vmap(torch.func.jacrev(one, has_aux=True), in_dims=(None, 0))(at, x)
    return outputs.detach(), torch.cat([parts[name].flatten(2) for name in at], dim=2).detach()


def chunks(x: Inputs, numbers: int) -> list[Inputs]:
    """Inputs in pieces of which a Jacobian with so many numbers a row fits in memory."""
    n, step = len(input_leaves(x)[0]), max(1, _JACOBIAN // max(1, numbers))
    return [x] if n <= step else [slice_inputs(x, slice(start, start + step)) for start in range(0, n, step)]


def _import_forward_mode() -> None:
    """Torch 2.13 uses its own deprecated decorator while it imports its rules of forward-mode derivatives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def is_fused(model: BNN) -> bool:
    """Whether the network has modules whose kernels know neither forward-mode derivatives nor vmap."""
    return any(isinstance(module, _FUSED) for module in model.net.modules())


@dataclass(frozen=True)
class Linearised:
    """A network linearised at the centre of a Gaussian posterior.

    Args:
        model: Its network is in evaluation mode.
        local: The posterior.
        shared: Learned points and buffers.
    """

    model: BNN
    local: LocalGaussian
    shared: Mapping[str, Tensor]

    def over_draws(self, values: Mapping[str, Tensor]) -> Callable[[Inputs], Tensor]:
        """From inputs to the outputs under each of these draws of all sites: ``(s, n)`` or ``(s, n, k)``."""
        centre, shared = self.split()
        moves = {name: values[name] - centre[name] for name in centre}
        count = len(next(iter(values.values())))
        return lambda x: self._moved(centre, shared, moves, x, count)

    def moments(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """Mean ``(n,)`` or ``(n, k)`` and covariance ``(n, k, k)`` of each row's outputs under the posterior."""
        centre, shared = self.split()
        wide = self._numbers(centre, shared, x)
        means, covariances = [], []
        for rows in chunks(x, wide):
            outputs, derivatives = jacobian(self.model, centre, shared, rows)
            means.append(outputs)
            covariances.append(self.local.output_covariance(derivatives))
        return torch.cat(means), torch.cat(covariances)

    def split(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights that are random, at the centre; and all else that the network needs."""
        mode, random = self.local.mode, set(self.local.random_sites)
        own = {name for name, _ in self.model.net.named_parameters()}
        centre = {name: mode[name] for name in self.local.layout.names if name in random}
        fixed = {name: value for name, value in mode.items() if name in own and name not in random}
        return centre, {**self.shared, **fixed}

    @torch.no_grad()
    def _numbers(self, centre: Mapping[str, Tensor], shared: Mapping[str, Tensor], x: Inputs) -> int:
        """Entries of the Jacobian of one row."""
        outputs = self.model.forward(centre, slice_inputs(x, slice(0, 1)), shared).numel()
        return outputs * sum(value.numel() for value in centre.values())

    def _moved(
        self,
        centre: dict[str, Tensor],
        shared: dict[str, Tensor],
        moves: dict[str, Tensor],
        x: Inputs,
        count: int,
    ) -> Tensor:
        if not centre:
            with torch.no_grad():
                single = self.model.forward({}, x, shared)
            return single.expand(count, *single.shape)
        if is_fused(self.model):
            flat = torch.cat([moves[name].flatten(1) for name in centre], dim=1)
            parts = []
            for rows in chunks(x, self._numbers(centre, shared, x)):
                outputs, derivatives = jacobian(self.model, centre, shared, rows)
                change = torch.einsum("nkd,sd->snk", derivatives, flat)
                parts.append(outputs + change.reshape(count, *outputs.shape))
            return torch.cat(parts, dim=1)
        n = len(input_leaves(x)[0])
        pieces = [slice_inputs(x, slice(start, start + _ROWS)) for start in range(0, n, _ROWS)]
        return torch.cat([self._tangents(centre, shared, moves, piece) for piece in pieces], dim=1)

    @torch.no_grad()
    def _tangents(
        self, centre: dict[str, Tensor], shared: dict[str, Tensor], moves: dict[str, Tensor], x: Inputs
    ) -> Tensor:
        """By forward-mode derivatives: as many draws at a time as the activations of a small network allow."""

        def along(move: dict[str, Tensor]) -> Tensor:
            def run(values: dict[str, Tensor]) -> Tensor:
                return self.model.forward(values, x, shared)

            outputs, change = torch.func.jvp(run, (centre,), (move,))[:2]
            return outputs + change

        _import_forward_mode()
        work = len(input_leaves(x)[0]) * sum(value.numel() for value in centre.values())
        at_once = max(1, _ACTIVATIONS // work)
        groups = zip(*(moves[name].split(at_once) for name in centre), strict=True)
        results: list[Any] = [torch.func.vmap(along)(dict(zip(centre, group, strict=True))) for group in groups]
        return torch.cat(results)
