"""The one training loop of all methods that optimise."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnn.capture import Backend
from bnn.data import Batch, Data, Source, as_source, numbered
from bnn.distributed import world
from bnn.history import History
from bnn.inference import optimizers
from bnn.inference.base import GradientMethod, Run
from bnn.inference.batches import batch_sizes, epoch_batches, first_batch, held_out, prepare, take
from bnn.inference.bound import elbo, is_bound
from bnn.inference.natural import NaturalOptimizer
from bnn.inference.objective import Objective
from bnn.inference.record import StepRecord
from bnn.inference.shared_rows import add_up, begin, own_gradients
from bnn.inference.states import Position, States
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import isolated, other_seed

#: Draws with which the held-out log-density of an epoch is estimated.
_VALIDATION_DRAWS = 20


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the step and what to try."""


@dataclass(frozen=True)
class Progress:
    """What a callback is given after each epoch. Returning True stops the fit."""

    epoch: int
    epochs: int
    step: int
    #: Means over the epoch, per datum.
    loss: float
    nll: float
    kl: float
    #: Held-out log-density per row, where there is a validation set.
    validation: float | None
    objective: Objective


def optimise(
    method: GradientMethod,
    build: Callable[[BNN, int, Backend], Objective],
    model: BNN,
    data: Data,
    run: Run,
    adapt: Callable[[Source, Objective], Source] = lambda source, _: source,
) -> Posterior:
    """Minimise a loss on the data, and give back the posterior at the end; see `bnn.fit`.

    Args:
        method: How: epochs, batches, optimiser and so on.
        build: The loss, given model, number of rows and backend; a method's own `GradientMethod.objective`, or one of
            several members.
        model: Not altered.
        data: As in `bnn.fit`.
        run: As in `bnn.fit`.
        adapt: From the data to what is fitted (targets with noise of their own for every member).
    """
    started = time.perf_counter()
    source = as_source(data, model.likelihood, model.like, method.batch_size, n_data=run.n_data, weight=run.weight)
    with isolated(other_seed(run.seed, "fit"), model.like.device):
        validation = held_out(run.validation, model)
        objective = build(model, source.n, run.compile)
        if any(part.needs_rows for part in (objective, *objective.parts)):
            source = numbered(source)
        source = begin(world(), objective, adapt(source, objective), run.seed)
        fit = Training(method, objective, source, validation, run, started)
        fit.run_epochs()
        answer = fit.answer()
        weighted = run.weight is not None or bool(model.likelihood.weighs)
        wanted = method.temperature == 1 and not weighted and not fit.history.interrupted
        evidence = {"evidence": elbo(objective, answer, fit.source)} if wanted and is_bound(objective) else {}
    history = fit.history
    history.seconds = fit.states.seconds
    history.backend = " + ".join(dict.fromkeys(objective.backends))
    history.notes = [*objective.notes, *fit.states.notes]
    posterior = objective.posterior(answer)
    posterior.history = history
    posterior.settings |= {"seed": run.seed, "compile": history.backend, "weighted": weighted, **evidence}
    return posterior


class Training:
    """One run of the loop: optimiser, averages, the best so far, and the record."""

    def __init__(
        self,
        method: GradientMethod,
        objective: Objective,
        source: Source,
        validation: Batch | None,
        run: Run,
        started: float,
    ):
        self.method, self.objective, self.source, self.validation, self.run = method, objective, source, validation, run
        self.names = [name for name, _ in objective.named_parameters()]
        self.params = list(objective.parameters())
        self.optimizer = optimizers.make(method, self.params)
        if isinstance(self.optimizer, NaturalOptimizer) and method.clip_norm is not None:
            raise ValueError(
                f"{type(self.optimizer).__name__} bounds its own steps, and its gradients are not those of the loss: "
                "leave clip_norm= out"
            )
        self.history = History()
        self.stats = StepRecord()
        self.best: tuple[float, int, list[Tensor], dict[str, Tensor]] | None = None
        self.averaged: list[Tensor] | None = None
        self.averaged_steps = 0
        self.at = Position()
        self.ranks = world()
        self._prepare()
        #: What the programs of the known batch sizes run on.
        self.backends = list(objective.backends)
        if isinstance(self.optimizer, NaturalOptimizer):
            self.optimizer.backend = cast(Backend, objective.backends[0])
        self.scheduler = None if method.schedule is None else method.schedule(self.optimizer, self.total_steps)
        self.steps = optimizers.Steps(self.optimizer)
        self.states = States(self, run.checkpoint, started)
        self.states.go_on()

    def _prepare(self) -> None:
        """Capture for every batch size that will come, before the first step: backends follow from counts alone."""
        whole = first_batch(self.objective, self.source)
        if self.validation is not None:
            try:
                self.objective.check_rows(self.validation)
            except (ValueError, TypeError) as error:
                raise type(error)(f"validation: {error}") from error
        sizes = batch_sizes(self.objective, self.source, whole)
        steps = self.method.epochs * math.ceil(sum(sizes.values()) / self.method.accumulate)
        self.total_steps = int(self.ranks.decide(steps))
        norms = any(isinstance(m, _BatchNorm) for m in self.objective.model.net.modules())
        if 1 in sizes and self.source.n > 1 and norms:
            raise ValueError(
                f"{self.source.n} rows in batches of {max(sizes)} leave a last batch of one row, of which BatchNorm "
                "cannot take statistics: choose another batch_size"
            )
        prepare(self.objective, whole, {size: times * self.method.epochs for size, times in sizes.items()})

    def run_epochs(self) -> None:
        """All epochs; fewer if early stopping, a callback or Ctrl-C ends the fit, and none if it has ended before."""
        from tqdm.auto import tqdm

        epochs = self.method.epochs
        if self.at.finished:
            self._record(self.at.epoch)
        hidden = not self.run.progress
        with tqdm(total=epochs, initial=self.at.done, disable=hidden, unit="epoch", leave=False) as bar:
            while not self.at.finished:
                try:
                    self._epoch()
                    progress = self._record(self.at.epoch, self.at.steps)
                    shown = {name: f"{getattr(progress, name):.4g}" for name in ("loss", "nll", "kl")}
                    bar.set_postfix(OrderedDict(shown), refresh=False)
                    bar.update()
                    self._end_epoch(progress)
                except KeyboardInterrupt:
                    if self.ranks.size > 1:
                        raise  # the others wait in the middle of a step
                    self.history.interrupted = True
                    self._record(self.at.done)
                    self.states.interrupted()
                    return

    def _end_epoch(self, progress: Progress) -> None:
        """Go on to the next epoch, or end the fit."""
        epoch, steps = self.at.epoch, self.at.steps
        stopped = [callback(progress) is True for callback in self.run.callbacks]
        stop = any(stopped) or self._patience_is_over(epoch) or epoch == self.method.epochs
        if self.ranks.decide(stop):
            self.at = Position(epoch, finished=True)
            self.states.write()
        else:
            self.at = Position(epoch + 1)
            self.states.after_epoch(steps)

    def _epoch(self) -> None:
        batches = self.states.batches(epoch_batches(self.objective, self.source))
        while group := list(take(batches, self.method.accumulate)):
            self._step(group)
            self.at.steps += 1
            self.at.batches += len(group)
            self.states.after_step()

    def _step(self, group: list[Batch]) -> None:
        def closure() -> Any:
            results = [own_gradients(self.objective, batch) for batch in group]
            stats = results[0][1]
            if len(results) > 1:
                stats = torch.stack([s for _, s in results]).mean(0)
            for i, param in enumerate(self.params):
                param.grad = results[0][0][i] if len(results) == 1 else torch.stack([g[i] for g, _ in results]).mean(0)
            stats = add_up(self.ranks, self.objective, [p.grad for p in self.params], stats, group)
            if self.method.clip_norm is not None:
                optimizers.clip(self.params, self.method.clip_norm, self.objective.members)
            if not seen:
                seen.append(stats)
            # Of several members the sum, of which these are the gradients: a search along a line compares the two.
            members = self.objective.members
            return stats[0] if members is None else stats[0] * members

        # One closure for all optimisers: those that look for a step along a line (LBFGS) call it several times.
        seen: list[Tensor] = []
        self.steps(closure)
        self.stats.append(seen[0])
        if self.scheduler is not None:
            self.scheduler.step()
        self.objective.after_step(len(self.stats), self.total_steps, self._named(self.params))
        if len(self.stats) > (1 - self.method.average) * self.total_steps:
            self._average()

    def _average(self) -> None:
        now = [p.detach() for p in self.params]
        self.averaged_steps += 1
        if self.averaged is None:
            self.averaged = [p.clone() for p in now]
        else:
            torch._foreach_lerp_(self.averaged, now, 1 / self.averaged_steps)

    def _record(self, epoch: int, steps: int = 0) -> Progress:
        """Write down an epoch; raise if its loss is not finite."""
        history = self.history
        table = self.stats.table.cpu()
        history.loss, history.nll, history.kl = (column.clone() for column in table.unbind(1))
        history.epochs, history.steps_per_epoch = epoch, steps or history.steps_per_epoch
        finite = history.loss.isfinite()
        if not bool(finite.all()):
            step = int((~finite).nonzero()[0])
            clip = "" if isinstance(self.optimizer, NaturalOptimizer) else "clip_norm=1.0, "
            raise NonFiniteLossError(
                f"the loss is {history.loss[step].item()} at step {step + 1} (epoch {step // max(1, steps) + 1}; nll "
                f"{history.nll[step].item():.4g}, kl {history.kl[step].item():.4g}): try a smaller lr (it is "
                f"{self.method.lr}), {clip}or inputs and targets scaled to unit variance"
            )
        score = self._validate(epoch) if steps else None
        loss, nll, kl = table[-max(1, steps) :].mean(0).tolist() if len(table) else [math.nan] * 3
        return Progress(epoch, self.method.epochs, len(table), loss, nll, kl, score, self.objective)

    def _validate(self, epoch: int) -> float | None:
        if self.validation is None:
            return None
        posterior = self.objective.posterior()
        draws = None if posterior.num_draws else posterior.draws(_VALIDATION_DRAWS)
        score = float(posterior.predict(self.validation.x, draws).log_prob(self.validation.y).mean())
        score = self.ranks.decide(score)
        self.history.validation = torch.cat([self.history.validation, torch.tensor([score])])
        self.history.validation_epochs.append(epoch)
        if self.best is None or score > self.best[0]:
            params = [p.detach().clone() for p in self.params]
            self.best = (score, epoch, params, {name: t.clone() for name, t in self.objective.state.items()})
        return score

    def _patience_is_over(self, epoch: int) -> bool:
        return (
            self.method.patience is not None and self.best is not None and epoch - self.best[1] >= self.method.patience
        )

    def answer(self) -> dict[str, Tensor]:
        """The parameters to keep: the best on held-out rows under early stopping, the average, or the last."""
        chosen = [p.detach() for p in self.params]
        if self.method.patience is not None and self.best is not None:
            chosen, self.objective.state = self.best[2], self.best[3]
        elif self.averaged is not None and self.method.average > 0:
            chosen = self.averaged
        return self._named(chosen)

    def _named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, [value.detach() for value in values], strict=True))
