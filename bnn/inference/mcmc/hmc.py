"""Hamiltonian Monte Carlo with trajectories of random length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnn.inference.mcmc.adaptation import State, chosen
from bnn.inference.mcmc.machine import Leaf, Trajectory


@dataclass(frozen=True)
class RandomLength(Trajectory):
    """A trajectory of a length uniform on (0, 2 x length], whose end is accepted or not (Neal 2011, section 5.3).

    A fixed length would come back to where it started in the directions whose period it is a multiple of.

    Args:
        length: Mean length in time: step size x steps, in units in which the mass matrix makes the target's standard
            deviations 1; pi / 2 is a quarter of a period of a Gaussian.
        max_steps: Leapfrog steps at most.
    """

    length: float
    max_steps: int

    @property
    def usual_steps(self) -> int:
        """As many as a network usually needs, if it may."""
        return min(100, self.max_steps)

    def begin(self, point: State, step: Tensor, uniform: Tensor) -> State:
        """The number of steps to make, and the draw if the end is not accepted."""
        steps = (2 * self.length * uniform[0] / step).ceil().clamp(1, self.max_steps)
        return {
            "sign": torch.ones_like(step),
            "left": steps.nan_to_num(1.0).long(),
            "acceptance": torch.zeros_like(step),
            **{f"draw.{name}": point[name] for name in "qgu"},
        }

    def extend(self, kept: State, leaf: Leaf, inverse_mass: Tensor, uniform: Tensor) -> tuple[State, State, Tensor]:
        """See `Trajectory`."""
        left = kept["left"] - 1
        complete = (left == 0) | leaf.divergent
        taken = complete & ~leaf.divergent & (uniform[0].log() < -leaf.error)
        point = {f"draw.{name}": leaf.at[name] for name in "qgu"}
        acceptance = torch.where(leaf.divergent, torch.zeros_like(leaf.error), (-leaf.error).exp().clamp(max=1.0))
        kept = {**kept, **chosen(taken, point, kept), "left": left, "acceptance": acceptance}
        return kept, {name: leaf.at[name] for name in ("q", "p", "g")}, complete

    def draw(self, kept: State) -> State:
        """See `Trajectory`."""
        return {name: kept[f"draw.{name}"] for name in "qgu"}

    def acceptance(self, kept: State, mean: Tensor) -> Tensor:
        """That of the end, which is what is accepted."""
        return kept["acceptance"]

    def statistics(self, kept: State) -> State:
        """Nothing more."""
        return {}
