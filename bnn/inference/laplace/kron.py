"""Kronecker-factored curvature (K-FAC): each layer's curvature is ``G x A``, from output gradients and inputs.

See `bnn.inference.laplace.layers` for the factors of each kind of layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bnn.approximations.blocks import Block, Kronecker
from bnn.data import Source
from bnn.forward import maps_well
from bnn.inference.laplace.curvature import Curvature, CurvatureBlock, DenseCurvature, Place
from bnn.inference.laplace.layers import Layer, rule_of

_INSTEAD = "use covariance='diag' or 'full', or name the weights of other layers in weights="


class Factor:
    """A symmetric factor and its eigendecomposition, made once.

    Args:
        parts: ``(m, d, d)``, or ``(m, d)`` for a diagonal one.
    """

    def __init__(self, parts: Tensor):
        self.parts = parts

    @cached_property
    def _fixed(self) -> tuple[Tensor, Tensor]:
        return _eigen(self.parts[0])

    def eigen(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues ``(d,)`` and vectors ``(d, d)`` (``(0, 0)`` for a diagonal factor) of ``sum_m a_m F_m``."""
        if len(shares) == 1:
            values, vectors = self._fixed
            return shares * values, vectors
        return _eigen(torch.tensordot(shares, self.parts, 1))


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    if matrix.dim() == 1:
        return matrix, matrix.new_zeros(0, 0)
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp(min=0), vectors


class KroneckerCurvature(CurvatureBlock):
    """``G x A`` over a matrix of shape (rows of G, rows of A), or ``A x G`` over its transpose.

    The prior's precision is added to the products of eigenvalues, so that nothing is approximated in that step.

    Args:
        name: The parameter.
        left: The factor over the first dimension.
        right: The factor over the others; a parameter without any has the right factor ``(1,)`` of 1.
        shares_left: Whether the parts that are summed with shares are the left factor's; the other one is fixed.
    """

    def __init__(self, name: str, left: Factor, right: Factor, *, shares_left: bool = True):
        self.name, self.left, self.right, self._shares_left = name, left, right, shares_left
        self.size = left.parts.shape[1] * right.parts.shape[1]

    def _decomposed(self, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones_like(shares[:1])
        l_values, l_vectors = self.left.eigen(shares if self._shares_left else one)
        r_values, r_vectors = self.right.eigen(one if self._shares_left else shares)
        return torch.outer(l_values, r_values), l_vectors, r_vectors

    def log_det(self, shares: Tensor, prior: Tensor) -> Tensor:
        """See `CurvatureBlock`."""
        return (self._decomposed(shares)[0] + self._one(prior)).log().sum()

    def block(self, shares: Tensor, prior: Tensor) -> Block:
        """See `CurvatureBlock`."""
        values, left, right = self._decomposed(shares)
        return Kronecker(left, right, (values + self._one(prior)).rsqrt())

    def _one(self, prior: Tensor) -> Tensor:
        if not bool((prior == prior[0]).all()):
            raise ValueError(
                f"covariance='kron' needs one prior precision for all of {self.name!r}; its prior has several (a scale "
                "that varies, or a density that is not Gaussian): use covariance='diag' or 'full'"
            )
        return prior[0]


def kron_curvature(place: Place, source: Source) -> Curvature:
    """Factors of every layer, summed over the data.

    Raises:
        ValueError: A parameter of a layer whose factors are not known, or of one that a row meets in several calls.
    """
    layers = _layers(place)
    outputs, targets = [], []
    # A batched backward pass is one call; where vmap has no rule or a slow one, the columns are taken one by one.
    batched = maps_well(place.model.net)
    for batch in source.batches():
        with _recorded(layers.values()):
            f = _run(place, batch.x)
        roots = place.roots(f.detach(), batch.y).movedim(-1, 0).reshape(-1, *f.shape)
        ends = [_single(layer) for layer in layers.values()]
        gradients = _gradients(f, ends, roots, batched=batched)
        for layer, g in zip(layers.values(), gradients, strict=True):
            rule = rule_of(layer.module)
            assert rule is not None  # `_layers` has seen to it
            a = layer.inputs.pop().detach()
            # Under autocast a layer may run in half precision; the sums over rows need more.
            rule(layer, a.to(f.dtype) if a.is_floating_point() else a, g.to(f.dtype), place.split)
        outputs.append(f.detach())
        targets.append(batch.y)
    blocks = _blocks(place, layers, source.n)
    return Curvature(blocks, torch.cat(outputs), torch.cat(targets))


def _layers(place: Place) -> dict[str, Layer]:
    layers: dict[str, Layer] = {}
    for name in place.weights:
        owner, _, attribute = name.rpartition(".")
        module = place.model.net.get_submodule(owner)
        known = rule_of(module)
        if known is None or (isinstance(module, nn.Embedding) and module.max_norm is not None):
            raise ValueError(f"covariance='kron' knows no factors of {type(module).__name__} ({name!r}): {_INSTEAD}")
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups != 1:
            raise ValueError(f"covariance='kron' knows no factors of a grouped convolution ({name!r}): {_INSTEAD}")
        if name in place.model.ties.values():
            raise ValueError(f"covariance='kron' knows no factors of a shared parameter ({name!r}): {_INSTEAD}")
        layers.setdefault(owner, Layer(module, owner, {})).wanted[attribute] = name
    return layers


def _run(place: Place, x: Any) -> Tensor:
    weights = {name: value.detach().requires_grad_() for name, value in place.weights.items()}
    with torch.enable_grad():
        return place.model.forward(weights, x, place.shared)


@contextmanager
def _recorded(layers: Any) -> Iterator[None]:
    """Keep what goes into and comes out of the layers."""
    handles = []

    def hook(layer: Layer) -> Callable[..., Tensor]:
        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            layer.inputs.append(args[0])
            layer.outputs.append(output)
            return output.clone()  # what follows may work in place

        return keep

    try:
        handles += [layer.module.register_forward_hook(hook(layer)) for layer in layers]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _single(layer: Layer) -> Tensor:
    calls = len(layer.outputs)
    if calls != 1:
        how = "is not called as a module" if calls == 0 else f"is called {calls} times in one pass"
        names = sorted(layer.wanted.values())
        raise ValueError(f"covariance='kron' has no factors of {names}: the layer {how}; {_INSTEAD}")
    return layer.outputs.pop()


def _gradients(f: Tensor, ends: list[Tensor], roots: Tensor, *, batched: bool) -> list[Tensor]:
    """The gradients of ``sum(f * roots_r)`` by each layer's outputs: ``(r, n, ...)`` each."""
    if batched and len(roots) > 1:
        return list(torch.autograd.grad(f, ends, roots, is_grads_batched=True))
    parts = [torch.autograd.grad(f, ends, root, retain_graph=True) for root in roots]
    return [torch.stack(column) for column in zip(*parts, strict=True)]


def _blocks(place: Place, layers: dict[str, Layer], n: int) -> list[CurvatureBlock]:
    """One block a parameter, in the order of the weights."""
    blocks: list[CurvatureBlock] = []
    factors = {owner: Factor(layer.sums["g"]) for owner, layer in layers.items() if "g" in layer.sums}
    for name in place.weights:
        owner, _, attribute = name.rpartition(".")
        layer = layers[owner]
        if attribute in layer.sums:
            blocks.append(DenseCurvature(layer.sums[attribute]))
            continue
        g = factors[owner]
        if attribute == "bias":
            blocks.append(KroneckerCurvature(name, g, Factor(g.parts.new_ones(1, 1))))
            continue
        a = Factor((layer.sums["a"] / n).unsqueeze(0))
        one_hot = isinstance(layer.module, nn.Embedding)
        blocks.append(KroneckerCurvature(name, *((a, g) if one_hot else (g, a)), shares_left=not one_hot))
    return blocks
