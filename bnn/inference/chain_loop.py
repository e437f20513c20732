"""The loop of stochastic-gradient Markov chain Monte Carlo: steps, draws, and the record."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from torch import Tensor

from bnn.data import Batch, Source
from bnn.history import History
from bnn.inference.base import Run
from bnn.inference.loop import NonFiniteLossError, Progress, batch_sizes, epoch_batches, first_batch, prepare
from bnn.inference.replicated import ReplicatedLoss
from bnn.inference.step_sizes import Metric
from bnn.inference.store import open_store

if TYPE_CHECKING:
    from bnn.inference.sgmcmc import StochasticGradientMCMC

#: Steps between two looks at the loss, each of which waits for the device.
_LOOK_EVERY = 100


class ChainLoop:
    """One run: the chains, the draws so far, and the record."""

    def __init__(self, method: StochasticGradientMCMC, loss: ReplicatedLoss, source: Source, run: Run):
        self.method, self.loss, self.source, self.run_settings = method, loss, source, run
        self.plan = method.plan()
        whole = first_batch(loss, source)
        sizes = batch_sizes(loss, source, whole)
        self.per_epoch = sum(sizes.values())
        steps = self.plan.steps
        prepare(loss, whole, {size: math.ceil(times * steps / self.per_epoch) for size, times in sizes.items()})
        loss.first.input_shapes = loss.input_shapes
        self.store = open_store(loss.first, run.store, method.chains, method.num_samples)
        self.theta = loss.get_parameter("theta").detach()
        self.kernel = method.kernel()
        self.learner = None if method.preconditioner is None else Metric(method.preconditioner, self.theta[0])
        self.metric: Tensor | None = None
        # One table: a tensor a step would take half a gigabyte in a million steps.
        self.stats = self.theta.new_zeros(steps, 3)
        self.done = 0
        self.history = History()

    def run(self) -> None:
        """All steps; fewer if a callback or Ctrl-C ends the run."""
        try:
            self._steps()
        except KeyboardInterrupt:
            if not int(self.store.counts[0]):
                raise  # in the warm-up there is nothing to keep
            self.history.interrupted = True
        self._look()
        table = self.stats[: self.done].cpu()
        history = self.history
        history.loss, history.nll, history.kl = (column.clone() for column in table.unbind(1))
        history.steps_per_epoch, history.epochs = self.per_epoch, self.done // self.per_epoch
        history.backend = " + ".join(dict.fromkeys(self.loss.backends))
        history.notes = list(self.loss.notes)
        if not int(self.store.counts[0]):
            raise ValueError("a callback stopped the run before its first draw: there is no posterior")

    def _steps(self) -> None:
        from tqdm.auto import tqdm

        lrs, noises, keeps = (self.method.lr * self.plan.lr).tolist(), self.plan.noise.tolist(), self.plan.kept.tolist()
        with tqdm(total=self.plan.steps, disable=not self.run_settings.progress, unit="step", leave=False) as bar:
            for epoch in itertools.count(1):
                for batch in epoch_batches(self.loss, self.source):
                    now = self.done
                    self._step(batch, lrs[now], noises[now])
                    if keeps[now]:
                        self.store.append(self.theta)
                    if self.done % _LOOK_EVERY == 0:
                        self._look()
                        bar.update(_LOOK_EVERY)
                    if self.done == self.plan.steps:
                        break
                if self._told_to_stop(epoch) or self.done == self.plan.steps:
                    return

    def _step(self, batch: Batch, lr: float, noisy: bool) -> None:
        (gradient,), self.stats[self.done] = self.loss.gradients(batch)
        if self.learner is not None and self.done < self.method.warmup:
            self.metric = self.learner.learn(gradient)
        heat = self.method.temperature / self.loss.n_data if noisy else 0.0
        self.kernel.step(self.theta, gradient, lr, heat, self.metric)
        self.done += 1

    def _look(self) -> None:
        """Raise if a loss since the last look was not finite."""
        first = (self.done - 1) // _LOOK_EVERY * _LOOK_EVERY
        finite = self.stats[max(0, first) : self.done, 0].isfinite()
        if not bool(finite.all()):
            step = first + int((~finite).nonzero()[0]) + 1
            raise NonFiniteLossError(
                f"the loss of a chain is {self.stats[step - 1, 0].item()} at step {step}: try a smaller lr (it is "
                f"{self.method.lr}), or inputs and targets scaled to unit variance"
            )

    def _told_to_stop(self, epoch: int) -> bool:
        if not self.run_settings.callbacks:
            return False
        loss, nll, kl = self.stats[max(0, self.done - self.per_epoch) : self.done].mean(0).tolist()
        epochs = math.ceil(self.plan.steps / self.per_epoch)
        progress = Progress(epoch, epochs, self.done, loss, nll, kl, None, self.loss)
        stopped = [callback(progress) is True for callback in self.run_settings.callbacks]
        return any(stopped)
