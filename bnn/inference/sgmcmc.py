"""Stochastic-gradient Markov chain Monte Carlo: draws at the cost of training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bnn.approximations import Chains
from bnn.data import Data, as_source
from bnn.inference.base import IterativeMethod, Run
from bnn.inference.chain_loop import ChainLoop
from bnn.inference.mcmc.target import refuse_validation, refuse_what_is_no_density
from bnn.inference.particles import several_points
from bnn.inference.readings import refuse_uncertain_inputs
from bnn.inference.step_sizes import Constant, Plan, RMSProp, StepSizes
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import isolated, other_seed


class Kernel(ABC):
    """The update of all chains of a run: it may hold momenta."""

    @abstractmethod
    def step(self, theta: Tensor, gradient: Tensor, lr: float, heat: float, metric: Tensor | None) -> None:
        """Move `theta` in place.

        Args:
            theta: ``(chains, D)``.
            gradient: ``(chains, D)``, of the loss per datum, ``(nll + T kl) / N``.
            lr: The step.
            heat: T / N: the loss per datum times N / T is the potential energy. 0: no noise.
            metric: ``(D,)``, a diagonal preconditioner, the same at all theta.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What it holds from one step to the next, by name."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` gave."""


@dataclass(frozen=True, kw_only=True)
class StochasticGradientMCMC(IterativeMethod):
    """What `SGLD` and `SGHMC` share: many cheap steps on minibatches, and no acceptance test.

    All chains run side by side in one captured program, each with rows, noise and start of its own. They sample
    ``p(y | w)^(1/T) p(w)`` over the unconstrained numbers, Jacobian included. The network is in evaluation mode, since
    a density is a function: no dropout, and batch statistics as they were when the fit began.

    Args:
        lr: The step, in the units of ``torch.optim.SGD``: a step without noise is ``theta - lr * gradient`` of the loss
            per datum.
        num_samples: Draws kept a chain.
        keep_every: Steps from one draw to the next.
        warmup: Steps before the first of them.
        chains: How many.
        batch_size: Rows a step; ``None``: all. A DataLoader keeps its own.
        schedule: Of the step size: `Constant`, `Polynomial` or `Cyclical`.
        preconditioner: `RMSProp`, which learns a step size a coordinate in the warm-up; ``None``: the same for all.
        init: Where chains start: all at the network's weights (``"net"``), each at its own draw of the prior
            (``"prior"``) or of another posterior.

    Raises (from `fit`):
        ValueError: Points without a prior, sample weights, batch statistics that were never taken, validation rows.
        NonFiniteLossError: The chains diverged.
    """

    makes_chains: ClassVar[bool] = True

    lr: float = 1e-3
    num_samples: int = 500
    keep_every: int = 10
    warmup: int = 2000
    chains: int = 4
    batch_size: int | None = 128
    schedule: StepSizes = field(default_factory=Constant)
    preconditioner: RMSProp | None = None

    def __post_init__(self) -> None:
        """See `IterativeMethod`."""
        super().__post_init__()
        for name, least in (("num_samples", 1), ("keep_every", 1), ("warmup", 0), ("chains", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= least) and not (value is None and name == "batch_size"):
                raise ValueError(f"{name} is a whole number from {least}, not {value!r}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is positive, not {self.lr}")
        if not isinstance(self.schedule, StepSizes):
            raise TypeError(f"schedule is bnn.inference.Constant(), Polynomial() or Cyclical(), not {self.schedule!r}")
        if self.preconditioner is not None and not self.warmup:
            raise ValueError("the preconditioner is learned in the warm-up: give warmup= some steps")
        self.plan()

    @abstractmethod
    def kernel(self) -> Kernel:
        """A new kernel."""

    def plan(self) -> Plan:
        """The steps of a run."""
        return self.schedule.plan(self.warmup, self.num_samples, self.keep_every)

    def fit(self, model: BNN, data: Data, run: Run) -> Posterior:
        """Run the chains; see `bnn.fit`. Ctrl-C keeps the draws that there are."""
        name = type(self).__name__
        refuse_what_is_no_density(model, run.weight, name)
        refuse_uncertain_inputs(model, name)
        refuse_validation(run, name)
        source = as_source(data, model.likelihood, model.like, self.batch_size, n_data=run.n_data)
        with isolated(other_seed(run.seed, "fit"), model.like.device), torch.no_grad():
            loss = several_points(self, model, source.n, run.compile, self.chains)
            loss.first.settings["seed"] = run.seed
            chains = ChainLoop(self, loss, source, run)
            chains.run()
        history = chains.history
        return Posterior(
            model,
            Chains(loss.latents, chains.keeper.vectors()),
            points={},
            state=loss.first.state,
            history=history,
            settings={**loss.first.settings, "n_data": source.n, "compile": history.backend},
            input_shapes=loss.input_shapes,
        )


@dataclass(frozen=True, kw_only=True)
class SGLD(StochasticGradientMCMC):
    """Stochastic-gradient Langevin dynamics: Welling and Teh, ICML 2011.

    ``theta' = theta - lr * grad(loss) + sqrt(2 lr T / N) * noise``, the loss per datum. With the potential energy
    ``U = nll / T + kl`` and the step ``h = 2 lr T / N`` that is ``theta - (h / 2) grad U + sqrt(h) * noise``.

    The law of the draws differs from the posterior by the step and by the noise of the minibatches: on all rows of a
    Gaussian posterior of precision A its covariance is ``A^-1 (I - h A / 4)^-1`` instead of ``A^-1``.
    """

    def kernel(self) -> Kernel:
        """See `StochasticGradientMCMC`."""
        return _Langevin()


class _Langevin(Kernel):
    """Euler and Maruyama's step of the overdamped Langevin equation."""

    def step(self, theta: Tensor, gradient: Tensor, lr: float, heat: float, metric: Tensor | None) -> None:
        """See `Kernel`."""
        theta.sub_(_times(gradient, metric), alpha=lr)
        if heat:
            theta.add_(_times(torch.randn_like(theta), _root(metric)), alpha=math.sqrt(2 * lr * heat))

    def state(self) -> dict[str, Tensor]:
        """Nothing: the next step depends on theta alone."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to go back to."""


@dataclass(frozen=True, kw_only=True)
class SGHMC(StochasticGradientMCMC):
    """Stochastic-gradient Hamiltonian Monte Carlo, with friction: Chen, Fox and Guestrin (2014), arXiv:1402.4102.

    The underdamped Langevin equation, of which the momentum is that of SGD: ``v' = (1 - friction) v - lr * grad(loss)``
    and ``theta' = theta + v'``, with noise that keeps the variance of v at ``lr T / N``. The step is split as
    kick, half drift, friction and noise (exactly), half drift (Leimkuhler and Matthews 2013, arXiv:1203.5428): on all
    rows of a Gaussian posterior the draws have its covariance at any stable step, ``lr < 4 / largest curvature``,
    where Chen's Euler step is biased. The noise of minibatches is not subtracted (Chen's B is 0), and adds variance.

    Args:
        friction: The share of the momentum that a step takes away, 1 - momentum: Chen's alpha.
    """

    friction: float = 0.1

    def __post_init__(self) -> None:
        """See `StochasticGradientMCMC`."""
        super().__post_init__()
        if not 0 < self.friction <= 1:
            raise ValueError(f"friction is above 0 and at most 1, not {self.friction}")

    def kernel(self) -> Kernel:
        """See `StochasticGradientMCMC`."""
        return _Underdamped(1 - self.friction)


class _Underdamped(Kernel):
    """A kick, and a drift in two halves with friction and noise between them."""

    def __init__(self, momentum: float):
        self.momentum = momentum
        self.velocity: Tensor | None = None

    def step(self, theta: Tensor, gradient: Tensor, lr: float, heat: float, metric: Tensor | None) -> None:
        """See `Kernel`."""
        if self.velocity is None:
            self.velocity = torch.zeros_like(theta)
        v = self.velocity
        v.sub_(_times(gradient, metric), alpha=lr)
        theta.add_(v, alpha=0.5)
        v.mul_(self.momentum)
        if heat:
            deviation = math.sqrt((1 - self.momentum**2) * lr * heat)
            v.add_(_times(torch.randn_like(v), _root(metric)), alpha=deviation)
        theta.add_(v, alpha=0.5)

    def state(self) -> dict[str, Tensor]:
        """The momenta, once there was a step."""
        return {} if self.velocity is None else {"velocity": self.velocity}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Kernel`."""
        self.velocity = state.get("velocity")


def _times(vectors: Tensor, diagonal: Tensor | None) -> Tensor:
    return vectors if diagonal is None else vectors * diagonal


def _root(metric: Tensor | None) -> Tensor | None:
    return None if metric is None else metric.sqrt()
