"""The optimiser of a fit: made from a method's settings, and put back as it was."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from bnn.inference.base import GradientMethod


def make(method: GradientMethod, params: list[Any]) -> torch.optim.Optimizer:
    """The method's optimiser, fused where torch has a fused form of it: same result, one call for all parameters."""
    target = getattr(method.optimizer, "func", method.optimizer)
    given = getattr(method.optimizer, "keywords", {})
    options: dict[str, Any] = {"lr": method.lr}
    exclusive = {"fused", "foreach", "capturable", "differentiable"} & set(given)
    if (
        not exclusive
        and "fused" in inspect.signature(target).parameters
        and target.__module__.startswith("torch.optim")
    ):
        options["fused"] = True
    return method.optimizer(params, **options)


def restore(optimizer: torch.optim.Optimizer, kept: dict[str, Any]) -> None:
    """Put an optimiser's state back as it was."""
    optimizer.load_state_dict(kept)
    # That casts to the parameters' dtype, which the tensors of a state need not have.
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for index, values in kept.get("state", {}).items():
        if isinstance(index, int):
            optimizer.state[params[index]] = values


def clip(params: list[Any], largest: float, members: int | None) -> None:
    """Limit the norm of the gradient, of each member by itself.

    Args:
        params: With their gradients, which are altered.
        largest: Norm.
        members: How many of them lie along the first dimension; None: one without such a dimension.
    """
    if members is None:
        torch.nn.utils.clip_grad_norm_(params, largest)
        return
    norms = torch.cat([p.grad.flatten(1) for p in params], dim=1).norm(dim=1)
    factor = (largest / (norms + 1e-6)).clamp(max=1.0)  # as torch does for one
    for p in params:
        p.grad.mul_(factor.view(-1, *[1] * (p.dim() - 1)))
