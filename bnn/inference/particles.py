"""Several points that move under the log joint of one model, in one captured program: chains and particles."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from bnn.capture import Backend
from bnn.inference.base import IterativeMethod
from bnn.inference.point import PointLoss
from bnn.inference.replicated import ReplicatedLoss
from bnn.layout import Layout
from bnn.model import BNN
from bnn.posterior import Posterior


def several_points(method: IterativeMethod, model: BNN, n_data: int, backend: Backend, num: int) -> ReplicatedLoss:
    """The negative log joint per datum at several points, its parameter ``theta`` of shape ``(num, D)``.

    Over unconstrained numbers, Jacobian included, with the network in evaluation mode.

    Args:
        method: Its temperature and start.
        model: Copied.
        n_data: N, the rows of the whole set.
        backend: See `bnn.capture.Captured`.
        num: How many points.

    Raises:
        ValueError: Nothing in the model is random.
    """
    first = PointLoss(method, model, n_data, backend, coordinates="unconstrained")
    if not first.latents.size:
        raise ValueError("no parameter has a prior: there is nothing to infer but points, which method='map' fits")
    first.notes += what_is_fixed(first.model)
    loss = ReplicatedLoss([first] * num)
    loss.eval()
    with torch.no_grad():
        loss.get_parameter("theta").copy_(starts(method, first.model, first.latents, num))
    return loss


def what_is_fixed(model: BNN) -> list[str]:
    """What evaluation mode changes, for the record."""
    modules = list(model.net.modules())
    notes = []
    if any(isinstance(module, _DropoutNd) and module.p > 0 for module in modules):
        notes.append("dropout is off: the density is a function of the weights alone")
    if any(isinstance(module, _NormBase) and module.track_running_stats for module in modules):
        notes.append("batch statistics stay as they were before the fit")
    return notes


def starts(method: IterativeMethod, model: BNN, layout: Layout, num: int) -> Tensor:
    """Points to start from, ``(num, D)``: the network's weights are the same for all, draws are drawn for each.

    Raises:
        ValueError: The posterior to start from does not know all latents.
    """
    init = method.init
    if not isinstance(init, Posterior):
        return torch.stack([method.start(model, layout) for _ in range(num)])
    seed = int(torch.randint(2**62, ()))  # from the state of the fit: other seeds start elsewhere
    known = init.draws(num if init.num_draws is None else min(num, init.num_draws), seed)
    missing = [name for name in layout.names if name not in known]
    if missing:
        raise ValueError(f"the posterior to start from does not know {missing}")
    points = torch.func.vmap(layout.flatten)({name: known[name] for name in layout.names})
    return points[torch.arange(num) % len(points)]
