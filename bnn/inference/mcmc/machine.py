"""Hamiltonian dynamics as a state machine: one call moves every chain on by one leapfrog step.

A chain whose trajectory is complete takes its draw, adapts and begins the next trajectory within the same call, so that
chains with short and long trajectories never wait for each other, and the whole sampler is one tensor program without a
branch: it can be captured, compiled, and mapped over chains. All that a chain knows stands in named tensors.

Everything here is written for one chain; `torch.func.vmap` makes the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnn.inference.mcmc.adaptation import Adaptation, State, chosen

#: From a point to its gradient and its potential energy, the negative log density.
Potential = Callable[[Tensor], tuple[Tensor, Tensor]]

#: What every trajectory tells of itself, under ArviZ's names.
_STATISTICS = ("acceptance_rate", "n_steps", "diverging", "energy", "lp", "step_size")

#: An energy error above which a trajectory is given up as divergent (as in Stan).
DIVERGENCE = 1000.0


def leapfrog(potential: Potential, q: Tensor, p: Tensor, g: Tensor, step: Tensor, inverse_mass: Tensor) -> State:
    """One leapfrog step of a signed size: half a kick, a drift, half a kick (Neal 2011, section 5.2)."""
    p = p - 0.5 * step * g
    q = q + step * inverse_mass * p
    g, u = potential(q)
    return {"q": q, "p": p - 0.5 * step * g, "g": g, "u": u}


def kinetic(p: Tensor, inverse_mass: Tensor) -> Tensor:
    """``p' M^-1 p / 2``."""
    return 0.5 * (p * inverse_mass * p).sum()


@dataclass(frozen=True)
class Leaf:
    """A point of a trajectory, just reached."""

    at: State
    #: Energy minus that of the trajectory's first point; infinite where it is not a number.
    error: Tensor
    divergent: Tensor


class Trajectory(ABC):
    """A rule that says where a trajectory goes next, when it is complete, and which of its points is the draw."""

    #: Names of its own `statistics`.
    names: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def usual_steps(self) -> int:
        """Leapfrog steps of a trajectory that the choice of the backend reckons with: networks need hundreds."""

    @abstractmethod
    def begin(self, point: State, step: Tensor, uniform: Tensor) -> State:
        """What the rule keeps of a new trajectory; ``sign`` among it, the direction in time to go on in.

        Args:
            point: ``q, p, g, u`` where it starts.
            step: The step size.
            uniform: ``(3,)``, uniform random numbers.
        """

    @abstractmethod
    def extend(self, kept: State, leaf: Leaf, inverse_mass: Tensor, uniform: Tensor) -> tuple[State, State, Tensor]:
        """Take one more point.

        Returns:
            What the rule keeps now; the point ``q, p, g`` to go on from; whether it is complete.
        """

    @abstractmethod
    def draw(self, kept: State) -> State:
        """``q, g, u`` of the draw of a complete trajectory."""

    @abstractmethod
    def acceptance(self, kept: State, mean: Tensor) -> Tensor:
        """The acceptance probability that the step size is adapted to, given its mean over the trajectory's points."""

    @abstractmethod
    def statistics(self, kept: State) -> State:
        """What ArviZ is told of a complete trajectory besides energies and acceptance."""


@dataclass(frozen=True)
class Machine:
    """The sampler of one chain: a trajectory rule and the adaptation of its step size and mass matrix."""

    trajectory: Trajectory
    adaptation: Adaptation

    @property
    def names(self) -> list[str]:
        """Of the statistics of a draw."""
        return [*_STATISTICS, *self.trajectory.names]

    def begin(self, q: Tensor, step: Tensor, potential: Potential, noise: Tensor, uniform: Tensor) -> State:
        """The state of a chain at its first point ``q``, ``(D,)``, with a step size to start from."""
        adapted = self.adaptation.begin(q, step)
        g, u = potential(q)
        return {**adapted, **self._trajectory(q, g, u, adapted, noise, uniform)}

    def _trajectory(self, q: Tensor, g: Tensor, u: Tensor, adapted: State, noise: Tensor, uniform: Tensor) -> State:
        """A new trajectory with a fresh momentum ``p ~ N(0, M)``."""
        p = noise * adapted["inverse_mass"].rsqrt()
        point = {"q": q, "p": p, "g": g, "u": u}
        kept = self.trajectory.begin(point, adapted["step"], uniform)
        zero = torch.zeros_like(u)
        return {
            "energy": u + kinetic(p, adapted["inverse_mass"]),
            "accept_sum": zero,
            "num_steps": torch.zeros_like(adapted["count"]),
            "at.q": q,
            "at.p": p,
            "at.g": g,
            **{f"kept.{name}": value for name, value in kept.items()},
        }

    def advance(self, state: State, potential: Potential, noise: Tensor, uniform: Tensor) -> tuple[State, State]:
        """One leapfrog step, and at the end of a trajectory the draw, the adaptation and a new beginning.

        Args:
            state: From `begin` or the last call.
            potential: Of the target.
            noise: ``(D,)``, standard normal: the next momentum, if one is needed.
            uniform: ``(6,)``, uniform on [0, 1): three for this trajectory, three for the next one's beginning.

        Returns:
            The new state; and the record: ``complete``, the draw ``q``, and its statistics, which mean something only
            where it is complete.
        """
        adapted = {name: state[name] for name in self.adaptation.names}
        kept = {name.removeprefix("kept."): value for name, value in state.items() if name.startswith("kept.")}
        signed = adapted["step"] * kept["sign"]
        at = leapfrog(potential, state["at.q"], state["at.p"], state["at.g"], signed, adapted["inverse_mass"])
        error = at["u"] + kinetic(at["p"], adapted["inverse_mass"]) - state["energy"]
        error = torch.where(error.isnan(), torch.full_like(error, torch.inf), error)
        leaf = Leaf(at, error, error > DIVERGENCE)
        kept, towards, complete = self.trajectory.extend(kept, leaf, adapted["inverse_mass"], uniform[:3])
        accept_sum = state["accept_sum"] + (-error).exp().clamp(max=1.0)
        num_steps = state["num_steps"] + 1
        draw = self.trajectory.draw(kept)
        acceptance = self.trajectory.acceptance(kept, accept_sum / num_steps)
        record = {
            "complete": complete,
            "q": draw["q"],
            "acceptance_rate": acceptance,
            "n_steps": num_steps,
            "diverging": leaf.divergent,
            "energy": state["energy"],
            "lp": -draw["u"],
            "step_size": adapted["step"],
            **self.trajectory.statistics(kept),
        }
        after = self.adaptation.update(adapted, draw["q"], acceptance)
        adapted = chosen(complete, after, adapted)
        begun = self._trajectory(draw["q"], draw["g"], draw["u"], adapted, noise, uniform[3:])
        going = {
            "energy": state["energy"],
            "accept_sum": accept_sum,
            "num_steps": num_steps,
            **{f"at.{name}": value for name, value in towards.items()},
            **{f"kept.{name}": value for name, value in kept.items()},
        }
        return {**adapted, **chosen(complete, begun, going)}, record
