"""What is kept of the draws of a run, and the posterior that they make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn.approximations.chains import Chains
from bnn.history import History
from bnn.inference.base import Method, Run
from bnn.inference.mcmc.target import Target
from bnn.inference.store import open_store
from bnn.model import BNN
from bnn.posterior import Posterior


class Record:
    """The draws and statistics of all chains, warm-up and thinned ones left out.

    Args:
        target: What is sampled.
        run: Where draws are stored.
        names: Of the statistics.
        chains: How many.
        num_samples: Draws kept a chain.
        warmup: Draws a chain before the first that may be kept.
        keep_every: Of so many one is kept.
    """

    def __init__(
        self,
        target: Target,
        run: Run,
        names: Sequence[str],
        *,
        chains: int,
        num_samples: int,
        warmup: int,
        keep_every: int,
    ):
        self.target, self.names = target, list(names)
        self.num_samples, self.warmup, self.keep_every = num_samples, warmup, keep_every
        #: Draws a chain, warm-up among them, until it is done.
        self.total = warmup + num_samples * keep_every
        self._store = open_store(target.objective, run.store, chains, num_samples, target.kept)
        self._statistics = torch.zeros(len(names), chains, num_samples, dtype=self._store.vectors.dtype)
        #: Draws that each chain has made.
        self.counts = [0] * chains
        self.interrupted = False

    @property
    def done(self) -> int:
        """Draws that every chain has made, the last one at most."""
        return min(self.total, *self.counts)

    def add(self, chain: int, draw: Tensor, statistics: Tensor) -> None:
        """The next draw ``(D,)`` of a chain and its statistics, ``(names,)``; what is not kept is dropped."""
        index = self.counts[chain] - self.warmup
        place, left = divmod(index + 1, self.keep_every)
        if index >= 0 and not left and place <= self.num_samples:
            self._statistics[:, chain, place - 1] = statistics
            self._store.append_to(chain, draw[: self.target.kept.size])
        self.counts[chain] += 1  # last: what Ctrl-C leaves half-written does not count

    def posterior(self, method: Method, model: BNN, run: Run, history: History) -> Posterior:
        """The draws that every chain has.

        Raises:
            KeyboardInterrupt: The run was stopped before there were any.
        """
        count = max(0, self.done - self.warmup) // self.keep_every
        if not count:
            raise KeyboardInterrupt("stopped during the warm-up: there is no draw yet")
        objective = self.target.objective
        statistics = dict(zip(self.names, self._statistics[:, :, :count].clone(), strict=True))
        history.interrupted = self.interrupted
        settings = {"n_data": objective.n_data, "seed": run.seed, "compile": history.backend}
        return Posterior(
            model,
            Chains(self.target.kept, self._store.finished(count), statistics),
            points={},
            state=objective.state,
            history=history,
            settings={**method.settings(), **settings},
            input_shapes=objective.input_shapes,
        )
