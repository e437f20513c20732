"""The network linearised in its weights as plain operations: derivatives are written out before ``torch.export``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import tree_flatten, tree_unflatten

from bnn.approximations import Values
from bnn.export.rows import any_rows
from bnn.inputs import Inputs
from bnn.linearised import Linearised, is_fused, jacobian


class LinearisedOverDraws(nn.Module):
    """``forward(x)`` gives outputs ``(s, n, ...)`` and their covariance ``(s, n, k, k)``; None where these are points.

    Args:
        linear: The network, and the Gaussian of its weights.
        values: Draws of every site; None: the Gaussian of the outputs itself, with s = 1.
        example: Inputs, of two rows or more.

    Raises:
        ValueError: The derivatives cannot be written out for any number of rows.
    """

    def __init__(self, linear: Linearised, values: Values | None, example: Inputs):
        super().__init__()
        if is_fused(linear.model):
            raise ValueError("torch takes the derivatives of recurrent, attention and parametrised layers row by row")
        self.net = linear.model.net.requires_grad_(requires_grad=False)
        self.exact = values is None
        self.graph = _written_out(_moments(linear) if values is None else _draws(linear, values), example)

    def forward(self, x: Inputs) -> tuple[Tensor, Tensor | None]:
        """See above."""
        found = self.graph(*tree_flatten(x)[0])
        return (found[0].unsqueeze(0), found[1].unsqueeze(0)) if self.exact else (found[0], None)


def _moments(linear: Linearised) -> Callable[[Inputs], tuple[Tensor, ...]]:
    centre, shared = linear.split()
    linear.local.columns  # noqa: B018  looks at values, which a recording cannot; kept from here on

    def moments(x: Inputs) -> tuple[Tensor, ...]:
        outputs, derivatives = jacobian(linear.model, centre, shared, x)
        return outputs, linear.local.output_covariance(derivatives)

    return moments


def _draws(linear: Linearised, values: Values) -> Callable[[Inputs], tuple[Tensor, ...]]:
    centre, shared = linear.split()
    moves = torch.cat([(values[name] - centre[name]).flatten(1) for name in centre], dim=1)

    def draws(x: Inputs) -> tuple[Tensor, ...]:
        # Not by forward-mode derivatives, which a recording cannot take for any number of rows.
        outputs, derivatives = jacobian(linear.model, centre, shared, x)
        change = torch.func.vmap(lambda row: moves @ row.mT, out_dims=1)(derivatives)
        return (outputs + change.reshape(len(moves), *outputs.shape),)

    return draws


def _written_out(function: Callable[[Inputs], tuple[Tensor, ...]], example: Inputs) -> torch.fx.GraphModule:
    """A function of inputs as a graph of operations: of their leaves, for any number of rows."""
    leaves, spec = tree_flatten(example)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    given = [mode.from_tensor(leaf, symbolic_context=_rows_change(leaf)) for leaf in leaves]
    with mode, any_rows():
        graph = make_fx(lambda *x: function(tree_unflatten(x, spec)), _allow_non_fake_inputs=True)(*given)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _rows_change(leaf: Tensor) -> Any:
    fixed = [DimDynamic.STATIC] * (leaf.dim() - 1)
    return StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, *fixed])
