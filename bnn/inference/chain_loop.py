"""The loop of stochastic-gradient Markov chain Monte Carlo: steps, draws, and the record."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from bnn.data import Batch, Source
from bnn.history import History
from bnn.inference.base import Run
from bnn.inference.batches import batch_sizes, epoch_batches, first_batch, prepare
from bnn.inference.keeper import Keeper
from bnn.inference.loop import NonFiniteLossError, Progress
from bnn.inference.replicated import ReplicatedLoss
from bnn.inference.step_sizes import Metric
from bnn.random import generator_state, set_generator_state

if TYPE_CHECKING:
    from bnn.inference.sgmcmc import StochasticGradientMCMC

#: Steps between two looks at the loss, each of which waits for the device.
_LOOK_EVERY = 100
#: Before the names of what the kernel holds.
_KERNEL = "kernel."


class ChainLoop:
    """One run: the chains, the draws so far, and the record."""

    def __init__(self, method: StochasticGradientMCMC, loss: ReplicatedLoss, source: Source, run: Run):
        self.method, self.loss, self.source, self.run_settings = method, loss, source, run
        self.plan = method.plan()
        self.device = loss.model.like.device
        whole = first_batch(loss, source)
        sizes = batch_sizes(loss, source, whole)
        self.per_epoch = sum(sizes.values())
        steps = self.plan.steps
        self.keeper = Keeper(run, method.chains, self.device)
        if not self.keeper.finished:
            prepare(loss, whole, {size: math.ceil(times * steps / self.per_epoch) for size, times in sizes.items()})
        loss.first.input_shapes = loss.input_shapes
        self.store = self.keeper.open(loss.first, method.num_samples)
        self.theta = loss.get_parameter("theta").detach()
        self.kernel = method.kernel()
        self.learner = None if method.preconditioner is None else Metric(method.preconditioner, self.theta[0])
        self.metric: Tensor | None = None
        # One table: a tensor a step would take half a gigabyte in a million steps.
        self.stats = self.theta.new_zeros(steps, 3)
        #: Steps made; the epoch, from 1, the batches of it that were taken, and the random state that it began in.
        self.done, self.epoch, self.taken = 0, 1, 0
        self.epoch_random = generator_state(self.device)
        self.interrupted = False
        self._place = source.place(method.chains)
        self._resume()

    @property
    def history(self) -> History:
        """The record of the steps so far."""
        history = self.keeper.history(self.loss.backends, self.loss.notes)
        table = self.stats[: self.done].cpu()
        history.loss, history.nll, history.kl = (column.clone() for column in table.unbind(1))
        history.steps_per_epoch, history.epochs = self.per_epoch, self.done // self.per_epoch
        history.interrupted = self.interrupted
        return history

    def run(self) -> None:
        """All steps; fewer if a callback or Ctrl-C ends the run."""
        if self.keeper.finished:
            return
        try:
            self._steps()
        except KeyboardInterrupt:
            if not int(self.store.counts[0]):
                raise  # in the warm-up there is nothing to keep
            self.interrupted = True
            self.keeper.interrupted()
        self._look()
        if not int(self.store.counts[0]):
            raise ValueError("a callback stopped the run before its first draw: there is no posterior")
        if not self.interrupted:
            self._save(finished=True)

    def _steps(self) -> None:
        from tqdm.auto import tqdm

        lrs, noises, keeps = (self.method.lr * self.plan.lr).tolist(), self.plan.noise.tolist(), self.plan.kept.tolist()
        steps = self.plan.steps
        hidden = not self.run_settings.progress
        with tqdm(total=steps, initial=self.done, disable=hidden, unit="step", leave=False) as bar:
            while True:
                for batch in self._rest_of_epoch():
                    now = self.done
                    self._step(batch, lrs[now], noises[now])
                    self.taken += 1
                    if keeps[now]:
                        self.store.append(self.theta)
                    if self.done % _LOOK_EVERY == 0:
                        self._look()
                        bar.update(self.done - bar.n)
                    if self.done == steps:
                        break
                    if self._place != "start" and self.keeper.due():
                        self._save()
                if self._told_to_stop(self.epoch) or self.done == steps:
                    return
                of_epoch, self.epoch, self.taken = self.taken, self.epoch + 1, 0
                if self._place == "start" and self.keeper.due(of_epoch):
                    self._save()

    def _rest_of_epoch(self) -> Iterator[Batch]:
        """The batches of this epoch that are to come, in the order that it had from its beginning."""
        taken, now = self.taken, generator_state(self.device)
        if taken:
            set_generator_state(self.epoch_random, self.device)
        self.epoch_random = generator_state(self.device)
        batches = epoch_batches(self.loss, self.source)
        for _ in range(taken):
            next(batches, None)
        if taken:
            set_generator_state(now, self.device)
        yield from batches

    def _save(self, *, finished: bool = False) -> None:
        """Write a state, from which `_resume` goes on."""
        tensors = {"theta": self.theta, "stats": self.stats[: self.done], "epoch_random": self.epoch_random}
        numbers = {"done": self.done, "epoch": self.epoch, "taken": self.taken}
        if self.learner is not None:
            tensors["mean"], numbers["learned"] = self.learner.state()
        tensors |= {_KERNEL + name: value for name, value in self.kernel.state().items()}
        self.keeper.save(tensors, numbers, self.loss.backends, finished=finished)

    def _resume(self) -> None:
        state = self.keeper.go_on(self.loss.backends)
        if state is None:
            return
        tensors, numbers = state
        self.done, self.epoch, self.taken = numbers["done"], numbers["epoch"], numbers["taken"]
        self.theta.copy_(tensors["theta"])
        self.stats[: self.done] = tensors["stats"]
        self.epoch_random = tensors["epoch_random"].cpu()
        if self.learner is not None and numbers["learned"]:
            self.learner.restore(tensors["mean"], numbers["learned"])
            self.metric = self.learner.value()
        if self._place == "start" and not self.keeper.finished:
            told = (
                f"the loader keeps no place in an epoch: the run went on from the start of epoch {self.epoch}, whose "
                "batches may come in another order than they would have"
            )
            self.keeper.note(told)
            warnings.warn(told, stacklevel=2)
        kernel = {name: value for name, value in tensors.items() if name.startswith(_KERNEL)}
        self.kernel.restore({name.removeprefix(_KERNEL): value for name, value in kernel.items()})

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
