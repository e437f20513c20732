"""The loop that runs a machine: captured once, then one call a leapfrog step for all chains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pyro
import torch
from torch import Tensor

from bnn.capture import Captured
from bnn.data import Data
from bnn.inference.base import Init, IterativeMethod, Run
from bnn.inference.mcmc.adaptation import Adaptation, State
from bnn.inference.mcmc.machine import Machine, Potential, Trajectory, kinetic, leapfrog
from bnn.inference.mcmc.packing import Packing
from bnn.inference.mcmc.record import Record
from bnn.inference.mcmc.target import Target
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import isolated, other_seed

#: log 1/2, and how many times a first step size is doubled or halved at most.
_HALF, _STEP_SIZES = math.log(0.5), 50


@dataclass(frozen=True, kw_only=True)
class MCMC(IterativeMethod):
    """What `HMC` and `NUTS` share.

    Args:
        num_samples: Draws kept a chain.
        warmup: Draws before them, in which step size and mass matrix adapt; they are not kept.
        chains: Independent chains, run side by side in one program.
        keep_every: Of so many draws one is kept; `num_samples` counts those kept.
        target_accept: Mean acceptance probability that the step size is adapted to.
        init: Where chains start: ``"prior"``, each at a draw of its own; ``"net"``, near the network's weights; or at
            draws of another `Posterior`, which spares most of the warm-up.
    """

    makes_chains: ClassVar[bool] = True
    num_samples: int = 1000
    warmup: int = 1000
    chains: int = 4
    keep_every: int = 1
    target_accept: float = 0.8
    init: Init = "prior"

    def __post_init__(self) -> None:
        """See `IterativeMethod`."""
        super().__post_init__()
        for name, least in (("num_samples", 1), ("warmup", 0), ("chains", 1), ("keep_every", 1)):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= least):
                raise ValueError(f"{name} is a whole number from {least}, not {value!r}")
        if not 0 < self.target_accept < 1:
            raise ValueError(f"target_accept lies between 0 and 1, not {self.target_accept}")


def sample(method: MCMC, trajectory: Trajectory, model: BNN, data: Data, run: Run) -> Posterior:
    """Run all chains; see `bnn.fit`. Ctrl-C keeps the draws that every chain has."""
    with isolated(other_seed(run.seed, "fit"), model.like.device):
        target = Target(method, model, data, run)
        machine = Machine(trajectory, Adaptation(method.warmup, method.target_accept))
        record = Record(method, target, run, machine.names)
        if record.keeper.finished:
            return record.posterior(model, [])
        # A step that is far too large leads to NaN: that is its answer, and no error to be told in words.
        with pyro.validation_enabled(False):
            chains = _Chains(machine, record, target.starts(method.chains), run)
            chains.run()
    return record.posterior(model, chains.program.backends)


class _Chains:
    """One run: the program, the state of every chain, and the draws so far."""

    def __init__(self, machine: Machine, record: Record, q: Tensor, run: Run):
        self.machine, self.record, self.progress = machine, record, run.progress
        self.target = target = record.target
        self.state = self._begin(q, target.potential(target.tensors))
        self.packing = Packing(self.state)
        what = f"the {type(record.method).__name__} step of this network"
        self.program = Captured(self._advance, run.compile, what)
        calls = record.total * machine.trajectory.usual_steps
        self.program.prepare(*self.packing.pack(self.state), *target.tensors, calls=calls)

    def _begin(self, q: Tensor, potential: Potential) -> State:
        """Every chain at its first point, with a step size of the right order."""
        step = first_step_size(q, potential)
        noise, uniform = _random(q)
        begin = torch.func.vmap(lambda q, step, xi, u: self.machine.begin(q, step, potential, xi, u))
        state: State = begin(q, step, noise, uniform[:, 3:])
        if not bool(state["energy"].isfinite().all()):
            chain = int((~state["energy"].isfinite()).nonzero()[0])
            raise ValueError(
                f"the log density is not finite where chain {chain} starts: try init='net', or inputs and targets "
                "scaled to unit variance"
            )
        return {name: value.contiguous() for name, value in state.items()}

    def _step(self, state: State, tensors: list[Tensor]) -> tuple[State, State]:
        """One leapfrog step of every chain."""
        potential = self.target.potential(tensors)
        noise, uniform = _random(state["at.q"])
        advance = torch.func.vmap(lambda state, xi, u: self.machine.advance(state, potential, xi, u))
        result: tuple[State, State] = advance(state, noise, uniform)
        return result

    def _advance(self, *tensors: Tensor) -> list[Tensor]:
        """`_step` over tensors without names: the new state, whether each chain completed a draw, the record."""
        count = len(self.packing.shapes)
        state, record = self._step(self.packing.unpack(tensors[:count]), list(tensors[count:]))
        statistics = [record[name].to(record["q"]) for name in self.machine.names]
        return [*self.packing.pack(state), record["complete"], record["q"], torch.stack(statistics)]

    def run(self) -> None:
        """Until every chain has its draws, or Ctrl-C."""
        from tqdm.auto import tqdm

        fixed, record = self.target.tensors, self.record
        state = record.resume(self.program.backends) or self.packing.pack(self.state)
        with tqdm(total=record.total, initial=record.done, disable=not self.progress, unit="draw", leave=False) as bar:
            try:
                while record.done < record.total:
                    *state, complete, draws, statistics = self.program(*state, *fixed)
                    done = complete.tolist()
                    if any(done):
                        for chain in [chain for chain, completed in enumerate(done) if completed]:
                            record.add(chain, draws[chain], statistics[:, chain])
                        bar.update(record.done - bar.n)
                    record.save(state, self.program.backends)
            except KeyboardInterrupt:
                record.interrupted = True


def _random(q: Tensor) -> tuple[Tensor, Tensor]:
    """Standard normal ``(chains, D)`` and uniform ``(chains, 6)`` numbers, drawn outside of vmap."""
    return torch.randn_like(q), torch.rand(len(q), 6, dtype=q.dtype, device=q.device)


def first_step_size(q: Tensor, potential: Potential) -> Tensor:
    """A step size of the right order for each chain: ``(chains,)``.

    Doubled or halved until the acceptance of one leapfrog step crosses 1/2 (Hoffman and Gelman 2014, algorithm 4).
    """
    noise = torch.randn_like(q)
    ones = torch.ones_like(q[0])
    gradient = torch.func.vmap(potential)
    g, u = gradient(q)

    def change(step: Tensor) -> Tensor:
        """The log acceptance probability of one step of these sizes."""

        def one(q: Tensor, p: Tensor, g: Tensor, u: Tensor, step: Tensor) -> Tensor:
            at = leapfrog(potential, q, p, g, step, ones)
            return u + kinetic(p, ones) - at["u"] - kinetic(at["p"], ones)

        result: Tensor = torch.func.vmap(one)(q, noise, g, u, step)
        return result.nan_to_num(-torch.inf)

    step = torch.full_like(u, 0.1)
    good = change(step) > _HALF
    growth = torch.where(good, 2.0, 0.5).to(step)
    moving = torch.ones_like(good)
    for _ in range(_STEP_SIZES):
        step = torch.where(moving, step * growth, step)
        moving = moving & ((change(step) > _HALF) == good)
        if not bool(moving.any()):
            # The last size was the first on the other side: of two neighbours the one that is accepted more often.
            return torch.where(good, step / 2, step)
    raise ValueError("no step size suits where a chain starts: try init='net', or inputs and targets of unit scale")
