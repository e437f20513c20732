"""Step size by dual averaging, and a diagonal mass matrix by windows of draws: Stan's warm-up, in tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]


def chosen(condition: Tensor, new: State, old: State) -> State:
    """``new`` where the condition holds, else ``old``, entry by entry; one a chain holds for all of its numbers."""

    def along(value: Tensor) -> Tensor:
        return condition[:, None] if condition.dim() == 1 and value.dim() == 2 else condition

    return {name: torch.where(along(value), value, old[name]) for name, value in new.items()}


# Hoffman and Gelman (2014), section 3.2.1: how fast the step size forgets, and how strongly it is pulled.
_SHRINKAGE, _SLOWNESS, _FORGETTING = 0.05, 10.0, 0.75


def windows(warmup: int, first: int = 75, base: int = 25, last: int = 50) -> tuple[list[bool], list[bool]]:
    """The draws of a warm-up that count for the mass matrix, and those after which it is set anew.

    A stretch for the step size alone, windows of doubled length for the mass matrix, and a last stretch for the step
    size under the final one (Stan Reference Manual, "Automatic parameter tuning"; shares of a short warm-up as there).

    Returns:
        Two lists of `warmup` entries: whether draw t counts, whether a window ends with it.
    """
    if warmup < 20:
        return [False] * warmup, [False] * warmup
    if first + base + last > warmup:
        first, last = int(0.15 * warmup), int(0.1 * warmup)
        base = warmup - first - last
    counts = [first <= t < warmup - last for t in range(warmup)]
    ends = [False] * warmup
    end, size = first, base
    while end < warmup - last:
        end += size
        size *= 2
        if end + size > warmup - last:  # the next would not fit: this one takes the rest
            end = warmup - last
        ends[end - 1] = True
    return counts, ends


@dataclass(frozen=True)
class Adaptation:
    """Of one chain, over its own draws.

    Args:
        warmup: Draws over which it adapts; afterwards step size and mass matrix stay.
        target_accept: The mean acceptance probability to reach.
    """

    warmup: int
    target_accept: float

    #: The tensors of a chain's state that this keeps.
    names = (
        "count",
        "step",
        "inverse_mass",
        "log_step",
        "log_step_average",
        "gradient_average",
        "updates",
        "pull",
        "window_mean",
        "window_squares",
        "window_count",
    )

    def begin(self, q: Tensor, step: Tensor) -> State:
        """The state before the first draw, with a unit mass matrix."""
        zero = torch.zeros_like(step)
        return {
            "count": torch.zeros_like(step, dtype=torch.long),
            "step": step,
            "inverse_mass": torch.ones_like(q),
            **averaging(step.log()),
            "window_mean": torch.zeros_like(q),
            "window_squares": torch.zeros_like(q),
            "window_count": zero,
        }

    def update(self, state: State, q: Tensor, acceptance: Tensor) -> State:
        """The state after draw ``q`` ``(D,)``, whose trajectory had this mean acceptance probability."""
        if self.warmup == 0:
            return {**state, "count": state["count"] + 1}
        counted, ends = (torch.tensor(flags, device=q.device) for flags in windows(self.warmup))
        t = state["count"].clamp(max=self.warmup - 1)
        adapting, final = state["count"] < self.warmup, state["count"] == self.warmup - 1
        new = {**state, **dual_averaging(state, acceptance, self.target_accept)}
        new = {**new, **chosen(counted[t], _welford(state, q), new)}
        at_end = ends[t]
        new = {**new, **chosen(at_end, _new_mass(new), new)}
        step = torch.where(final, new["log_step_average"], new["log_step"]).exp()
        new = chosen(adapting, {**new, "step": step}, state)
        return {**new, "count": state["count"] + 1}


def dual_averaging(state: State, acceptance: Tensor, target: float) -> State:
    """The next step size, from the last acceptance (Nesterov 2009; Hoffman and Gelman 2014, equation 6)."""
    m = state["updates"] + 1
    weight = 1 / (m + _SLOWNESS)
    gradient = (1 - weight) * state["gradient_average"] + weight * (target - acceptance)
    log_step = state["pull"] - m.sqrt() / _SHRINKAGE * gradient
    share = m**-_FORGETTING
    average = share * log_step + (1 - share) * state["log_step_average"]
    return {"updates": m, "gradient_average": gradient, "log_step": log_step, "log_step_average": average}


def averaging(log_step: Tensor) -> State:
    """Dual averaging from here, pulled towards ten times the present step: large ones cost less to try."""
    zero = torch.zeros_like(log_step)
    return {
        "log_step": log_step,
        "log_step_average": zero,
        "gradient_average": zero,
        "updates": zero,
        "pull": log_step + 2.302585092994046,
    }


def _welford(state: State, q: Tensor) -> State:
    """Running mean and sum of squared deviations (Welford 1962)."""
    count = state["window_count"] + 1
    delta = q - state["window_mean"]
    mean = state["window_mean"] + delta / count
    return {
        "window_count": count,
        "window_mean": mean,
        "window_squares": state["window_squares"] + delta * (q - mean),
    }


def _new_mass(state: State) -> State:
    """The window's variances, shrunk a little towards 1e-3 (as in Stan); dual averaging starts again."""
    n = state["window_count"]
    variance = state["window_squares"] / (n - 1).clamp(min=1)
    return {
        "inverse_mass": (n * variance + 5e-3) / (n + 5),
        **averaging(state["log_step"]),
        "window_mean": torch.zeros_like(variance),
        "window_squares": torch.zeros_like(variance),
        "window_count": torch.zeros_like(n),
    }
