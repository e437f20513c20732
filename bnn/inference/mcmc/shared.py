"""The adaptation that many chains share: trajectory length by ChEES, step size, mass matrix.

What is shared has one value, which stands in every chain's state: ``(chains,)`` or ``(chains, D)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnn.inference.mcmc.adaptation import State, averaging, chosen, dual_averaging, windows

# Adam on the logarithm of the trajectory length (Hoffman et al. 2021, section 4).
_LR, _DECAY, _SQUARE_DECAY = 0.025, 0.9, 0.95
_LEAST_AT_FIRST, _LEAST = 1e-3, 0.1


def adapted(old: State, end: State, warmup: int, target: float) -> State:
    """The entries that change after a trajectory of the warm-up.

    Args:
        old: Before it.
        end: ``q, p`` that it led to, ``(chains, D)``, and with what ``probability`` they were accepted; the ``draw``
            taken; the ``jitter``, the share of the trajectory length that it had.
        warmup: Draws of the whole warm-up.
        target: The harmonic mean of the acceptance probabilities to reach.
    """
    # The harmonic mean hears the chains whose steps are too long, which the arithmetic one would drown. At first one
    # stuck chain is to free itself; later it is bounded, lest one chain alone sets the step size of all.
    least = torch.where(old["count"] < warmup / 2, _LEAST_AT_FIRST, _LEAST)
    harmonic = 1 / (1 / torch.maximum(end["probability"], least.to(end["probability"]))).mean()
    changed = {**dual_averaging(old, harmonic, target), **_length(old, end)}
    counted, ends = (torch.tensor(flags, device=harmonic.device) for flags in windows(warmup))
    t = old["count"].long().clamp(max=warmup - 1)
    changed |= chosen(counted[t], _pooled(old, end["draw"]), old)
    changed = {"inverse_mass": old["inverse_mass"], "pull": old["pull"], **changed}
    changed = chosen(ends[t], {**changed, **_new_mass(changed, old)}, changed)
    final = t == warmup - 1
    changed["log_length"] = torch.where(final, changed["log_length_average"], changed["log_length"])
    changed["step"] = torch.where(final, changed["log_step_average"], changed["log_step"]).exp()
    return changed


def _length(old: State, end: State) -> State:
    """One step of Adam on log T, up the gradient of ChEES in T (Hoffman et al. 2021, equation 9)."""
    unit = old["inverse_mass"].rsqrt()
    # A trajectory that diverged tells nothing, and its numbers are none: it counts as one that stood still.
    told = end["probability"] > 1e-4
    q = torch.where(told[:, None], end["q"], old["q"])
    velocity = torch.where(told[:, None], end["p"], 0.0) / unit
    new, before = ((q - q.mean(0)) * unit for q in (q, old["q"]))
    change = (new * new).sum(1) - (before * before).sum(1)
    rate = change * (new * velocity).sum(1)
    weight = end["probability"]
    mean = (weight * rate).sum() / weight.sum().clamp(min=1e-10)
    gradient = end["jitter"] * mean * old["log_length"].exp()
    count = old["count"] + 1
    first = _DECAY * old["first_moment"] + (1 - _DECAY) * gradient
    second = _SQUARE_DECAY * old["second_moment"] + (1 - _SQUARE_DECAY) * gradient**2
    direction = (first / (1 - _DECAY**count)) / ((second / (1 - _SQUARE_DECAY**count)).sqrt() + 1e-8)
    log_length = old["log_length"] + _LR * direction
    share = (old["updates"] + 1) ** -0.5
    average = share * log_length + (1 - share) * old["log_length_average"]
    return {"first_moment": first, "second_moment": second, "log_length": log_length, "log_length_average": average}


def _pooled(old: State, q: Tensor) -> State:
    """Mean and sum of squared deviations of the window, with these draws of all chains (Chan et al. 1979)."""
    chains, n = len(q), old["window_count"][:, None]
    mean = q.mean(0)
    delta = mean - old["window_mean"]
    share = chains / (n + chains)
    return {
        "window_mean": old["window_mean"] + delta * share,
        "window_squares": old["window_squares"] + ((q - mean) ** 2).sum(0) + delta**2 * n * share,
        "window_count": old["window_count"] + chains,
    }


def _new_mass(changed: State, old: State) -> State:
    """The pooled variances of the window, shrunk as one chain's are; dual averaging begins anew, the length goes on."""
    n = changed["window_count"][:, None]
    variance = changed["window_squares"] / (n - 1).clamp(min=1)
    return {
        "inverse_mass": (n * variance + 5e-3) / (n + 5),
        **averaging(changed["log_step"]),
        "window_mean": torch.zeros_like(variance),
        "window_squares": torch.zeros_like(variance),
        "window_count": torch.zeros_like(old["window_count"]),
    }
