"""Several draws of the weights in one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]
OneDraw = Callable[[Sequence[Tensor], State], Sequence[Tensor]]
All = tuple[list[Tensor], State]
Mapped = Callable[[Callable[[], All]], All | None]


def mean_over_draws(one: OneDraw, parts: Sequence[Tensor], state: State, mapped: Mapped) -> list[Tensor]:
    """What `one` returns, averaged over draws; buffers that a draw changes (batch statistics) become their mean.

    Args:
        one: Called with what belongs to one draw and with buffers of its own, which it may change in place; returns
            tensors.
        parts: What belongs to each draw, ``(draws, ...)`` each.
        state: Buffers and frozen parameters; changed in place.
        mapped: Makes a call that maps over the draws (`Objective.mapped`); where it gives None, they are taken in turn.
    """
    draws = len(parts[0])
    if draws == 1:
        return list(one([part.squeeze(0) for part in parts], state))

    def isolated(own: Sequence[Tensor], buffers: State) -> tuple[list[Tensor], State]:
        buffers = dict(buffers)
        return list(one(own, buffers)), buffers

    def copies() -> State:
        return {name: value.expand(draws, *value.shape).clone() for name, value in state.items()}

    together = mapped(lambda: torch.func.vmap(isolated, randomness="different")(list(parts), copies()))
    if together is not None:
        results, moved = together
    else:
        many = copies()
        each = [
            isolated([part[i] for part in parts], {name: value[i] for name, value in many.items()})
            for i in range(draws)
        ]
        results = [torch.stack(values) for values in zip(*(values for values, _ in each), strict=True)]
        moved = {name: torch.stack([buffers[name] for _, buffers in each]) for name in state}
    for name, value in moved.items():
        state[name].copy_(value.mean(0) if value.is_floating_point() else value[0])
    return [value.mean(0) for value in results]
