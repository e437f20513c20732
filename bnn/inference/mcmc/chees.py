"""Hamiltonian Monte Carlo with many chains in one batch, which learn one trajectory length together (ChEES)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnn.capture import Captured
from bnn.data import Data
from bnn.inference.base import Run
from bnn.inference.mcmc.adaptation import State, averaging, chosen
from bnn.inference.mcmc.machine import DIVERGENCE, kinetic, leapfrog
from bnn.inference.mcmc.packing import Packing
from bnn.inference.mcmc.record import Record
from bnn.inference.mcmc.sampler import MCMC, first_step_size
from bnn.inference.mcmc.shared import adapted
from bnn.inference.mcmc.target import Target
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import isolated, other_seed

_STATISTICS = ["acceptance_rate", "n_steps", "diverging", "energy", "lp", "step_size"]
#: Leapfrog steps of the first trajectory.
_FIRST_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class ChEES(MCMC):
    """HMC with many chains side by side, whose trajectory length is adapted across them.

    All chains make the same number of leapfrog steps, so that a step of 64 chains is one batched call of one program.
    The length is learned by stochastic gradient ascent on the change in the estimator of the expected square, the mean
    of ``(|q' - m'|^2 - |q - m|^2)^2 / 4``, which is large where draws forget where they came from. Step size, length
    and a diagonal mass matrix are shared and use what all chains know, so that the warm-up is short.

    Hoffman, Radul and Sountsov, "An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo",
    AISTATS 2021. Squares are taken in units in which the mass matrix makes the standard deviations 1.

    Args:
        max_steps: Leapfrog steps a trajectory at most.
    """

    num_samples: int = 250
    warmup: int = 500
    chains: int = 64
    target_accept: float = 0.651
    max_steps: int = 1000

    def __post_init__(self) -> None:
        """See `MCMC`."""
        super().__post_init__()
        if self.chains < 2:
            raise ValueError(f"ChEES learns from several chains; chains is {self.chains}: take 16 or more")
        if self.max_steps < 1:
            raise ValueError(f"max_steps is at least 1, not {self.max_steps}")

    def fit(self, model: BNN, data: Data, run: Run) -> Posterior:
        """Sample; see `bnn.fit`. Ctrl-C keeps the draws that there are."""
        with isolated(other_seed(run.seed, "fit"), model.like.device):
            target = Target(self, model, data, run)
            record = Record(self, target, run, _STATISTICS)
            if record.keeper.finished:
                return record.posterior(model, [])
            batch = _Batch(self, record, target.starts(self.chains), run)
            batch.run()
        return record.posterior(model, batch.backends)


class _Batch:
    """One run: two programs, one that moves all chains by a leapfrog step and one that ends a trajectory."""

    def __init__(self, method: ChEES, record: Record, q: Tensor, run: Run):
        self.method, self.record, self.progress = method, record, run.progress
        self.target = target = record.target
        self.state = self._begin(q)
        self.packing = Packing(self.state)
        self.leap = Captured(self._leap, run.compile, "the leapfrog step of this network")
        self.finish = Captured(self._finish, run.compile, "the end of a trajectory of this network")
        q, g, u = (self.state[name] for name in ("q", "g", "u"))
        calls, packed = self.record.total, self.packing.pack(self.state)
        fixed = [self.state["step"].contiguous(), self.state["inverse_mass"], *target.tensors]
        self.leap.prepare(q, q, g, u, *fixed, calls=calls * min(100, method.max_steps))
        self.finish.prepare(q, q, g, u, q, u, *packed, calls=calls)

    @property
    def backends(self) -> list[str]:
        """Of both programs."""
        return self.leap.backends + self.finish.backends

    def _begin(self, q: Tensor) -> State:
        """All chains at their first points. What they share stands in each of them, with the same value."""
        potential = self.target.potential(self.target.tensors)
        g, u = torch.func.vmap(potential)(q)
        if not bool(u.isfinite().all()):
            raise ValueError("the log density is not finite where a chain starts: try init='net', or scaled data")
        # The harmonic mean: the step has to suit the chains that it suits least.
        step = (1 / (1 / first_step_size(q, potential)).mean()).expand(len(q))
        zero = torch.zeros_like(u)
        return {
            "q": q,
            "g": g,
            "u": u,
            "inverse_mass": torch.ones_like(q),
            "count": zero,
            "step": step,
            "log_length": (_FIRST_STEPS * step).log(),
            "log_length_average": zero,
            "first_moment": zero,
            "second_moment": zero,
            **averaging(step.log()),
            "window_mean": torch.zeros_like(q),
            "window_squares": torch.zeros_like(q),
            "window_count": zero,
        }

    def _leap(self, *tensors: Tensor) -> list[Tensor]:
        """One leapfrog step of all chains: ``q, p, g, u, step, inverse_mass, data ...`` to ``q, p, g, u``."""
        q, p, g, _, step, inverse_mass, *data = tensors
        potential = self.target.potential(data)
        at = torch.func.vmap(lambda q, p, g, e, m: leapfrog(potential, q, p, g, e, m))(q, p, g, step, inverse_mass)
        return [at[name] for name in ("q", "p", "g", "u")]

    def _finish(self, *tensors: Tensor) -> list[Tensor]:
        """Accept or not, adapt, and draw the next momenta.

        ``q', p', g', u'`` at the end, ``p`` at the beginning, the share of the length, and the packed state, to the
        packed state, the next ``p``, and the statistics but the number of steps.
        """
        q, p, g, u, first_p, jitter, *packed = tensors
        state = self.packing.unpack(packed)
        energy = torch.func.vmap(kinetic)
        before = state["u"] + energy(first_p, state["inverse_mass"])
        error = (u + energy(p, state["inverse_mass"]) - before).nan_to_num(torch.inf)
        probability = (-error).exp().clamp(max=1.0)
        taken = torch.rand_like(u) < probability
        end = {"q": torch.where(taken[:, None], q, state["q"]), "g": torch.where(taken[:, None], g, state["g"])}
        new = {**state, **end, "u": torch.where(taken, u, state["u"])}
        if self.method.warmup:
            new = self._adapted(state, new, {"q": q, "p": p, "probability": probability, "jitter": jitter})
        new["count"] = state["count"] + 1
        noise = torch.randn_like(q) * new["inverse_mass"].rsqrt()
        statistics = [probability, error > DIVERGENCE, before, -new["u"], state["step"]]
        return [*self.packing.pack(new), noise, torch.stack([value.to(u) for value in statistics])]

    def _adapted(self, old: State, new: State, end: State) -> State:
        """The state after a trajectory: adapted, as long as the warm-up goes on."""
        changed = adapted(old, {**end, "draw": new["q"]}, self.method.warmup, self.method.target_accept)
        longest = self.method.max_steps * changed["step"]
        changed["log_length"] = changed["log_length"].exp().clamp(min=changed["step"], max=longest).log()
        adapting = old["count"] < self.method.warmup
        return new | chosen(adapting, changed, old)

    def run(self) -> None:
        """Until every chain has its draws, or Ctrl-C."""
        from tqdm.auto import tqdm

        record, data = self.record, self.target.tensors
        first = [*self.packing.pack(self.state), torch.randn_like(self.state["q"])]
        *state, p = record.resume(self.backends) or first
        with tqdm(total=record.total, initial=record.done, disable=not self.progress, unit="draw", leave=False) as bar:
            try:
                while record.done < record.total:
                    now, jitter = self.packing.unpack(state), van_der_corput(record.done + 1)
                    steps = self._steps(now, jitter)
                    at = [now["q"].contiguous(), p, now["g"].contiguous(), now["u"].contiguous()]
                    fixed = [now["step"].contiguous(), now["inverse_mass"].contiguous(), *data]
                    for _ in range(steps):
                        at = list(self.leap(*at, *fixed))
                    share = torch.full_like(now["u"], jitter)
                    *state, p, statistics = self.finish(*at, p, share, *state)
                    self._keep(self.packing.unpack(state)["q"], statistics, steps)
                    bar.update()
                    record.save([*state, p], self.backends)
            except KeyboardInterrupt:
                record.interrupted = True

    def _steps(self, state: State, jitter: float) -> int:
        """Leapfrog steps of the next trajectory, whose length is a share of the learned one: no period is met twice."""
        length = jitter * float(state["log_length"][0].exp())
        return max(1, min(self.method.max_steps, math.ceil(length / float(state["step"][0]))))

    def _keep(self, draws: Tensor, statistics: Tensor, steps: int) -> None:
        table = torch.cat([statistics[:1], torch.full_like(statistics[:1], steps), statistics[1:]])
        for chain in range(len(draws)):
            self.record.add(chain, draws[chain], table[:, chain])


def van_der_corput(n: int) -> float:
    """The n-th number, from 1, of a sequence that fills (0, 1) evenly: the bits of n, mirrored at the point."""
    value, share = 0.0, 0.5
    while n:
        value, n, share = value + share * (n & 1), n >> 1, share / 2
    return value
