"""Prior terms of a training loss, over flat vectors: in closed form where there is one, else at the draw.

The priors are read off the Pyro trace. Neighbouring sites of one family are taken together: one operation on a long
vector in the place of one a site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import identity_transform

from bnn.distributions import GAUSSIAN_CROSS_ENTROPY, CrossEntropy, base, parameters
from bnn.layout import Layout


@dataclass(frozen=True)
class Run:
    """Neighbouring sites of the flat vector whose prior terms are computed together."""

    sites: list[int]
    size: int
    #: The closed form, and the prior's parameters (such as location and scale; scalars or flat); None: at the draw.
    closed: tuple[CrossEntropy, list[Tensor]] | None


def runs(layout: Layout, trace: poutine.Trace) -> list[Run]:
    """The sites of a layout, in order, grouped into runs."""
    fns: list[Any] = [trace.nodes[name]["fn"] for name in layout.names]

    def kind(site: int) -> type[Distribution] | None:
        family = type(base(fns[site]))
        real = layout.transforms[site] is identity_transform
        return family if real and family in GAUSSIAN_CROSS_ENTROPY else None

    found = []
    for family, members in groupby(range(len(fns)), key=kind):
        sites = list(members)
        closed = None
        if family is not None:
            shapes = [layout.free_shapes[i] for i in sites]
            each = zip(*(parameters(fns[i]) for i in sites), strict=True)
            closed = (GAUSSIAN_CROSS_ENTROPY[family], [_joined(list(values), shapes) for values in each])
        found.append(Run(sites, sum(layout.sizes[i] for i in sites), closed))
    return found


def _joined(values: list[Tensor], shapes: list[torch.Size]) -> Tensor:
    """One scalar that all sites share (the same tensor), or a flat vector over all of them."""
    first = values[0]
    if first.dim() == 0 and all(value is first for value in values):
        return first
    return torch.cat([value.expand(shape).reshape(-1) for value, shape in zip(values, shapes, strict=True)])


def kl_divergence(layout: Layout, trace: poutine.Trace, loc: Tensor, log_scale: Tensor, draw: Tensor) -> Tensor:
    """KL(q || p) of independent Gaussians q = Normal(loc, exp(log_scale)) over the unconstrained numbers.

    Closed form for the families that have one, given the hyper-parameters drawn; ``log q(draw) - log p(draw)`` for the
    others, with the Jacobian of constrained sites. This is what Pyro's ``TraceMeanField_ELBO`` computes.

    Args:
        layout: Of the latent sites.
        trace: Of the model, at the values that `draw` stands for.
        loc: ``(D,)``.
        log_scale: ``(D,)``.
        draw: ``(D,)``.

    Returns:
        A scalar, summed over all sites.
    """
    scale = log_scale.exp()
    found = runs(layout, trace)
    pieces = zip(found, *(_split(vector, found) for vector in (loc, log_scale, scale, draw)), strict=True)
    total: Tensor | float = 0.0
    for run, m, log_s, s, z in pieces:
        total = total + _cross_entropy(layout, trace, run, m, s, z) - log_s.sum()
        if run.closed is not None:
            total = total - 0.5 * (1 + math.log(2 * math.pi)) * run.size
        else:
            standard = (z - m) / s
            total = total - 0.5 * (standard * standard).sum() - 0.5 * math.log(2 * math.pi) * run.size
    return torch.as_tensor(total, dtype=loc.dtype, device=loc.device)


def local_divergence(node: Mapping[str, Any], loc: Tensor, log_scale: Tensor) -> Tensor:
    """KL(Normal(loc, exp(log_scale)) || Normal(0, I)), summed over the rows of a batch, each as its data count.

    Args:
        node: Of the rows' site in a trace of the model: its plate scales by N/n, sample weights multiply.
        loc: ``(n, d)``.
        log_scale: ``(n, d)``.

    Returns:
        A scalar.
    """
    per_row = 0.5 * (loc * loc + (2 * log_scale).exp() - 1).sum(-1) - log_scale.sum(-1)
    return scale_and_mask(per_row, node["scale"], node["mask"]).sum()


def cross_entropy(layout: Layout, trace: poutine.Trace, loc: Tensor, scale: Tensor | None, draw: Tensor) -> Tensor:
    """E_q[-log p(w)], densities over the unconstrained numbers, of any q with Gaussian marginals.

    Closed form for the families that have one, given the hyper-parameters drawn: it needs q's marginals only. The
    negative log-density at the draw for the others.

    Args:
        layout: Of the latent sites.
        trace: Of the model, at the values that `draw` stands for.
        loc: ``(D,)``, means.
        scale: ``(D,)``, marginal standard deviations; ``None``: a point mass at loc.
        draw: ``(D,)``.

    Returns:
        A scalar, summed over all sites.
    """
    found = runs(layout, trace)
    scales = [None] * len(found) if scale is None else _split(scale, found)
    pieces = zip(found, _split(loc, found), scales, _split(draw, found), strict=True)
    total = sum(_cross_entropy(layout, trace, run, m, s, z) for run, m, s, z in pieces)
    return torch.as_tensor(total, dtype=draw.dtype, device=draw.device)


def _cross_entropy(
    layout: Layout, trace: poutine.Trace, run: Run, loc: Tensor, scale: Tensor | None, draw: Tensor
) -> Tensor:
    if run.closed is None:
        return -_log_prior(layout, trace, run, draw)
    closed, settings = run.closed
    return closed(loc, scale, *settings)


def negative_log_prior(layout: Layout, trace: poutine.Trace, vector: Tensor) -> Tensor:
    """-log p of all latents at one point, as a density over their own (constrained) values: a scalar.

    No Jacobian: the mode is that of a noise scale, not of its logarithm.
    """
    found = runs(layout, trace)
    total: Tensor | float = 0.0
    for run, z in zip(found, _split(vector, found), strict=True):
        if run.closed is not None:
            total = total + _cross_entropy(layout, trace, run, z, None, z)
        else:
            total = total - sum(_site_log_prob(trace, layout.names[i]) for i in run.sites)
    return torch.as_tensor(total, dtype=vector.dtype, device=vector.device)


def _split(vector: Tensor, found: list[Run]) -> list[Tensor]:
    return [vector] if len(found) == 1 else list(vector.split([run.size for run in found]))


def _log_prior(layout: Layout, trace: poutine.Trace, run: Run, z: Tensor) -> Tensor:
    """log p of a run's sites as a density over the unconstrained numbers."""
    total: Tensor | float = 0.0
    for i, free in zip(run.sites, z.split([layout.sizes[i] for i in run.sites]), strict=True):
        total = total + _site_log_prob(trace, layout.names[i])
        transform = layout.transforms[i]
        if transform is not identity_transform:
            free = free.view(layout.free_shapes[i])
            total = total + transform.log_abs_det_jacobian(free, transform(free)).sum()
    return torch.as_tensor(total)


def _site_log_prob(trace: poutine.Trace, name: str) -> Tensor:
    node: Any = trace.nodes[name]
    return node["fn"].log_prob(node["value"]).sum()
