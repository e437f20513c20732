"""Step sizes of stochastic-gradient MCMC: over a run (schedules) and over coordinates (a preconditioner)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """What each step of a run does: three tensors ``(steps,)``."""

    #: Multiples of `lr`.
    lr: Tensor
    #: Whether the step has noise.
    noise: Tensor
    #: Whether the state after the step is a draw.
    kept: Tensor

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.lr)


class StepSizes(ABC):
    """How the step size changes over a run."""

    @abstractmethod
    def plan(self, warmup: int, num_samples: int, keep_every: int) -> Plan:
        """The steps of a run.

        Args:
            warmup: Steps before the first of which a draw may be kept.
            num_samples: Draws to keep.
            keep_every: Steps from one draw to the next.

        Raises:
            ValueError: These do not go together.
        """


@dataclass(frozen=True)
class Constant(StepSizes):
    """The same step throughout: a stationary law, which differs from the target by a bias that the step decides."""

    def plan(self, warmup: int, num_samples: int, keep_every: int) -> Plan:
        """See `StepSizes`."""
        return _decaying(torch.ones(warmup + num_samples * keep_every, dtype=torch.float64), warmup, keep_every)


@dataclass(frozen=True)
class Polynomial(StepSizes):
    """``lr * (1 + t / offset)^-power`` at step t: Welling and Teh (2011), with ``a = lr * offset^power``.

    Draws count equally here; there they are weighted by the step that leads to them.

    Args:
        power: Above 1/2 and at most 1, so that the steps' sum is infinite and their squares' sum is finite.
        offset: Steps after which `lr` has fallen to ``2^-power`` of itself.
    """

    power: float = 0.55
    offset: float = 1000.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for a setting that makes no sense."""
        if not 0.5 < self.power <= 1:
            raise ValueError(f"power is above 0.5 and at most 1, not {self.power}")
        if not 0 < self.offset < math.inf:
            raise ValueError(f"offset is a positive number of steps, not {self.offset}")

    def plan(self, warmup: int, num_samples: int, keep_every: int) -> Plan:
        """See `StepSizes`."""
        t = torch.arange(warmup + num_samples * keep_every, dtype=torch.float64)
        return _decaying((1 + t / self.offset) ** -self.power, warmup, keep_every)


@dataclass(frozen=True)
class Cyclical(StepSizes):
    """Cosine cycles from `lr` to 0: Zhang et al. (2020), arXiv:1902.03932, algorithm 1.

    Each cycle first explores, without noise (it descends to another mode), then samples; draws are kept only there.
    Warm-up steps, if any, come before the first cycle, at `lr` and with noise.

    Args:
        cycles: How many; `num_samples` is a multiple of it.
        exploration: The share of a cycle without noise.
    """

    cycles: int = 4
    exploration: float = 0.8

    def __post_init__(self) -> None:
        """Raise `ValueError` for a setting that makes no sense."""
        cycles: object = self.cycles
        if not (isinstance(cycles, int) and cycles >= 1):
            raise ValueError(f"cycles is a whole number from 1, not {self.cycles!r}")
        if not 0 <= self.exploration < 1:
            raise ValueError(f"exploration is a share of a cycle, at least 0 and below 1, not {self.exploration}")

    def plan(self, warmup: int, num_samples: int, keep_every: int) -> Plan:
        """See `StepSizes`."""
        if num_samples % self.cycles:
            raise ValueError(f"num_samples is {num_samples}, which {self.cycles} cycles cannot share equally")
        sampling = num_samples // self.cycles * keep_every
        length = math.ceil(sampling / (1 - self.exploration))
        place = torch.arange(length, dtype=torch.float64)
        left = torch.arange(length - 1, -1, -1)
        noise = left < sampling
        before = torch.ones(warmup, dtype=torch.float64)
        return Plan(
            torch.cat([before, ((1 + (math.pi * place / length).cos()) / 2).repeat(self.cycles)]),
            torch.cat([before.bool(), noise.repeat(self.cycles)]),
            torch.cat([~before.bool(), (noise & (left % keep_every == 0)).repeat(self.cycles)]),
        )


def _decaying(lr: Tensor, warmup: int, keep_every: int) -> Plan:
    """Noise at every step; after the warm-up, every so many steps a draw."""
    step = torch.arange(1, len(lr) + 1)
    kept = (step > warmup) & ((step - warmup) % keep_every == 0)
    return Plan(lr, torch.ones(len(lr), dtype=torch.bool), kept)


@dataclass(frozen=True)
class RMSProp:
    """A diagonal preconditioner ``G = 1 / (eps + sqrt(V))``, V a running mean of squared gradients per datum.

    Li et al. (2016), arXiv:1512.07666. It moves during the warm-up and is fixed afterwards, so that the chain's law is
    right: a G that goes on moving would need the drift ``Gamma(theta)``, the divergence of G, which the paper's own
    algorithm leaves out. One G serves all chains, from the mean of their squared gradients.

    Args:
        decay: Of the running mean, a step.
        eps: Least divisor.
    """

    decay: float = 0.99
    eps: float = 1e-5

    def __post_init__(self) -> None:
        """Raise `ValueError` for a setting that makes no sense."""
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is at least 0 and below 1, not {self.decay}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps is positive, not {self.eps}")


class Metric:
    """The preconditioner of a run."""

    def __init__(self, settings: RMSProp, size: Tensor):
        self._settings, self._mean, self._steps = settings, torch.zeros_like(size), 0

    def learn(self, gradient: Tensor) -> Tensor:
        """G after one more gradient ``(chains, D)``: ``(D,)``."""
        self._steps += 1
        self._mean.lerp_(gradient.square().mean(0), 1 - self._settings.decay)
        return self.value()

    def value(self) -> Tensor:
        """G, from the gradients so far: ``(D,)``."""
        mean = self._mean / (1 - self._settings.decay**self._steps)  # it started from 0
        return 1 / (self._settings.eps + mean.sqrt())

    def state(self) -> tuple[Tensor, int]:
        """What it has learned: the running mean ``(D,)``, and of how many gradients."""
        return self._mean, self._steps

    def restore(self, mean: Tensor, steps: int) -> None:
        """Go back to what `state` gave."""
        self._mean.copy_(mean)
        self._steps = steps
