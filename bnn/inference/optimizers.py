"""The optimiser of a fit: made from a method's settings, and put back as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable
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


class Steps:
    """``optimizer.step(closure)``, and for torch's own fused Adam and AdamW the call of their kernel alone.

    What stands around that kernel (hooks, profiling, checks, sorting by device) costs several times the kernel on a
    small network, and finds the same at every step. The first step is the optimiser's own: it makes the state, which
    stays in the optimiser, as do its settings.

    Args:
        optimizer: Which nobody steps besides; hooks that are added later are not called.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self._direct = _is_fused_adam(optimizer)
        self._begun = False
        self._groups: list[tuple[dict[str, Any], Any, list[list[Any]]]] | None = None
        self._one = torch.ones(())

    def __call__(self, closure: Callable[[], Any]) -> None:
        """One step; the closure leaves the gradients with the parameters."""
        if not (self._direct and self._begun):
            self.optimizer.step(closure)
            self._begun = True
            return
        closure()
        if self._groups is None:
            self._groups = [self._group(group) for group in self.optimizer.param_groups]
            self._one = self._one.to(self._groups[0][2][-1][0])
        with torch.no_grad():
            one = self._one
            for group, kernel, (params, *state, steps) in self._groups:
                for count in steps:
                    count.add_(one)  # a tensor: a number would be made one at each step
                kernel(
                    params,
                    [p.grad for p in params],
                    *state,
                    steps,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=group["amsgrad"],
                    maximize=group["maximize"],
                    grad_scale=None,
                    found_inf=None,
                )

    def _group(self, group: dict[str, Any]) -> tuple[dict[str, Any], Any, list[list[Any]]]:
        """Settings, kernel, and its tensors: parameters, both averages, the largest of the second, counts of steps."""
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        states = [self.optimizer.state[p] for p in group["params"]]
        names = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"]
        tensors = [[s[name] for s in states if name in s] for name in names]
        return group, kernel, [list(group["params"]), *tensors]


def _is_fused_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of torch's own, on one kind of tensors, with nothing hooked to its steps."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return (
        type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
        and all(group["fused"] and not isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)
        and len({(p.dtype, p.device) for p in params}) == 1
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
    )


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
