"""Randomised maximum a posteriori: a prior centre and noise on the targets of its own for every member."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

from bnn.data import ArraySource, Source
from bnn.distributions import base, loc_and_scale
from bnn.inference.objective import Objective
from bnn.likelihoods import Gaussian
from bnn.model import BNN


def anchor_shifts(objective: Objective, members: int) -> Tensor:
    """How far each member's prior is moved, ``(K, D)``: a draw from the prior, minus the prior's mean.

    Raises:
        ValueError: A prior that is not Gaussian with a fixed scale.
    """
    latents, like = objective.latents, objective.model.like
    with pyro.get_param_store().scope(), torch.no_grad():
        trace = poutine.trace(objective.model.sample_unknowns).get_trace()
    nodes: dict[str, Any] = dict(trace.nodes)
    fns: dict[str, torch.distributions.Distribution] = {name: nodes[name]["fn"] for name in latents.names}
    # A scale of the likelihood that is itself unknown is one of them.
    other = [name for name, fn in fns.items() if type(base(fn)) is not dist.Normal]
    if other or objective.model.learned_prior_scales():
        what = ", ".join([*other, *objective.model.learned_prior_scales()])
        raise ValueError(
            "an anchored ensemble needs Gaussian priors with fixed scales, and a likelihood without unknowns that have "
            f"another prior; this does not hold for {what}"
        )
    scales = {name: loc_and_scale(fn)[1].expand(fn.batch_shape + fn.event_shape) for name, fn in fns.items()}
    scale = latents.flatten(scales).to(like.device)
    return scale * torch.randn(members, latents.size, dtype=scale.dtype, device=scale.device)


def noisy_targets(source: Source, objective: Objective, members: int) -> Source:
    """The data with noise on the targets of every member, one number a row, if the likelihood is Gaussian.

    `members` are those of the whole ensemble, of which the objective may have a part.

    A row of weight w counts as w rows, whose mean has noise of the scale divided by sqrt(w); the target of temperature
    T is the posterior under noise of the scale times sqrt(T).

    Raises:
        ValueError: A scale that is not fixed; a loader, which does not tell which rows it gives.
    """
    model = objective.model
    if not isinstance(model.likelihood, Gaussian):
        objective.notes.append(
            f"anchored under {type(model.likelihood).__name__}: the members differ in their prior's centre, and not in "
            "their targets, which have no Gaussian noise"
        )
        return source
    scale = _fixed_scale(model)
    if not isinstance(source, ArraySource):
        raise ValueError(
            "an anchored ensemble gives each row noise that stays, and a loader does not tell which rows it gives: "
            "pass (x, y) as arrays"
        )
    whole = source.whole
    noise = torch.randn(members, *whole.y.shape, dtype=whole.y.dtype, device=whole.y.device)
    noise = noise * (scale * objective.temperature.sqrt())
    if whole.weight is not None:
        weight = whole.weight.where(whole.weight > 0, 1.0)
        noise = noise / weight.sqrt().reshape(-1, *[1] * (whole.y.dim() - 1))
    return ArraySource(whole, source.batch_size, member_targets=whole.y + noise)


def _fixed_scale(model: BNN) -> Tensor:
    with pyro.get_param_store().scope():
        trace = poutine.trace(model.likelihood.latents).get_trace(model.like)
    unknown = [name for name, node in trace.nodes.items() if node["type"] in ("sample", "param")]
    if unknown:
        raise ValueError(
            f"an anchored ensemble needs a fixed noise scale, as in bnn.likelihoods.Gaussian(0.5); unknown is {unknown}"
        )
    return model.likelihood.latents(model.like)["likelihood.scale"]
