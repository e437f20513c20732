"""What is kept of the draws of a run, and the posterior that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from bnn.approximations.chains import Chains
from bnn.inference.base import Run
from bnn.inference.keeper import Keeper
from bnn.inference.mcmc.target import Target
from bnn.model import BNN
from bnn.posterior import Posterior

if TYPE_CHECKING:
    from bnn.inference.mcmc.sampler import MCMC


class Record:
    """The draws and statistics of all chains, warm-up and thinned ones left out, and how far the run has come.

    Args:
        method: Its numbers of draws.
        target: What is sampled.
        run: Where draws and states are kept.
        names: Of the statistics.
    """

    def __init__(self, method: MCMC, target: Target, run: Run, names: Sequence[str]):
        self.method, self.target, self._run = method, target, run
        self.names = list(names)
        #: Draws a chain, warm-up among them, until it is done.
        self.total = method.warmup + method.num_samples * method.keep_every
        self.keeper = Keeper(run, method.chains, target.objective.model.like.device)
        self.keeper.open(target.objective, method.num_samples, target.kept, self.names)
        #: Draws that each chain has made.
        self.counts = [0] * method.chains
        self.interrupted = False

    @property
    def done(self) -> int:
        """Draws that every chain has made, the last one at most."""
        return min(self.total, *self.counts)

    def add(self, chain: int, draw: Tensor, statistics: Tensor) -> None:
        """The next draw ``(D,)`` of a chain and its statistics, ``(names,)``; what is not kept is dropped."""
        method, store = self.method, self.keeper.store
        index = self.counts[chain] - method.warmup
        place, left = divmod(index + 1, method.keep_every)
        if index >= 0 and not left and place <= method.num_samples:
            store.statistics[:, chain, place - 1] = statistics
            store.append_to(chain, draw[: self.target.kept.size])
        self.counts[chain] += 1  # last: what Ctrl-C leaves half-written does not count

    def save(self, tensors: Sequence[Tensor], backends: Sequence[str]) -> None:
        """Write a state, if it is time for one or the run is over, from which `resume` goes on.

        Args:
            tensors: What the next step depends on, besides random state.
            backends: Of the programs so far.
        """
        finished = self.done == self.total
        if self.keeper.due() or finished:
            named = {str(place): tensor for place, tensor in enumerate(tensors)}
            self.keeper.save(named, {"counts": self.counts}, backends, finished=finished)

    def resume(self, backends: Sequence[str]) -> list[Tensor] | None:
        """What `save` was given last; None: from the start. Counts and random state go back to what they were.

        Args:
            backends: See `Keeper.go_on`.
        """
        state = self.keeper.go_on(backends)
        if state is None:
            return None
        tensors, loop = state
        self.counts = list(loop["counts"])
        return [tensors[str(place)] for place in range(len(tensors))]

    def posterior(self, model: BNN, backends: Sequence[str]) -> Posterior:
        """The draws that every chain has.

        Args:
            model: As it was given.
            backends: Of the programs of this run.

        Raises:
            KeyboardInterrupt: The run was stopped before there were any.
        """
        method, objective = self.method, self.target.objective
        done = self.total if self.keeper.finished else self.done
        count = max(0, done - method.warmup) // method.keep_every
        if not count:
            raise KeyboardInterrupt("stopped during the warm-up: there is no draw yet")
        if self.interrupted:
            self.keeper.interrupted()
        kept = self.keeper.store.statistics[:, :, :count].clone()
        history = self.keeper.history(backends, self.target.notes)
        history.interrupted = self.interrupted
        settings = {"n_data": objective.n_data, "seed": self._run.seed, "compile": history.backend}
        return Posterior(
            model,
            Chains(self.target.kept, self.keeper.vectors(count), dict(zip(self.names, kept, strict=True))),
            points={},
            state=objective.state,
            history=history,
            settings={**method.settings(), **settings},
            input_shapes=objective.input_shapes,
        )
