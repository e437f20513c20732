"""The settings of `HMC` and `NUTS`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bnn.data import Data
from bnn.inference.base import Run
from bnn.inference.mcmc.hmc import RandomLength
from bnn.inference.mcmc.nuts import Doubling
from bnn.inference.mcmc.sampler import MCMC, sample
from bnn.model import BNN
from bnn.posterior import Posterior


@dataclass(frozen=True, kw_only=True)
class NUTS(MCMC):
    """The No-U-Turn sampler: exact up to Monte Carlo error, at many gradients of the whole data set a draw.

    Multinomial, over the unconstrained vector, with a diagonal mass matrix (`bnn.inference.mcmc.nuts`).
    Hoffman and Gelman, JMLR 15 (2014); Betancourt (2017), arXiv:1701.02434; Phan et al. (2019), arXiv:1912.11554.

    Args:
        max_depth: Doublings of a trajectory at most: 2^max_depth - 1 leapfrog steps.
    """

    max_depth: int = 10

    def __post_init__(self) -> None:
        """See `MCMC`."""
        super().__post_init__()
        if not 1 <= self.max_depth <= 20:
            raise ValueError(f"max_depth lies between 1 and 20, not {self.max_depth}")

    def fit(self, model: BNN, data: Data, run: Run) -> Posterior:
        """Sample; see `bnn.fit`."""
        return sample(self, Doubling(self.max_depth), model, data, run)


@dataclass(frozen=True, kw_only=True)
class HMC(MCMC):
    """Hamiltonian Monte Carlo with trajectories of random length (`bnn.inference.mcmc.hmc`).

    Neal (2011), "MCMC using Hamiltonian dynamics", arXiv:1206.1901.

    Args:
        trajectory_length: Mean length of a trajectory, step size x steps, where the mass matrix has made the target's
            standard deviations 1.
        max_steps: Leapfrog steps a trajectory at most.
    """

    trajectory_length: float = math.pi / 2
    max_steps: int = 1000

    def __post_init__(self) -> None:
        """See `MCMC`."""
        super().__post_init__()
        if not 0 < self.trajectory_length < math.inf:
            raise ValueError(f"trajectory_length is positive, not {self.trajectory_length}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps is at least 1, not {self.max_steps}")

    def fit(self, model: BNN, data: Data, run: Run) -> Posterior:
        """Sample; see `bnn.fit`."""
        return sample(self, RandomLength(self.trajectory_length, self.max_steps), model, data, run)
