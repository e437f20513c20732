"""How far the training loop has come: everything that the steps to come depend on, kept and put back."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnn.checkpoint import Saver
from bnn.data import Batch, Place
from bnn.inference.objective import Objective
from bnn.inference.optimizers import restore
from bnn.inference.record import StepRecord
from bnn.packed import pack, unpack
from bnn.random import generator_state, other_seed, seed_generators, set_generator_state

if TYPE_CHECKING:
    from bnn.inference.loop import Training


@dataclass
class Position:
    """Where a fit is."""

    #: The epoch that runs, from 1.
    epoch: int = 1
    #: Optimiser steps and batches of it that are done.
    steps: int = 0
    batches: int = 0
    #: Whether there is nothing left to do; `epoch` is then the last one that was run.
    finished: bool = False
    #: The random state that the epoch's order was drawn from.
    order: Tensor | None = None

    @property
    def done(self) -> int:
        """Epochs that are over."""
        return self.epoch if self.finished else self.epoch - 1


class States:
    """The states of one fit; none, without a place for them.

    Args:
        training: The fit, ready for its first step.
        saver: Its place.
        started: When it began, by `time.perf_counter`.
    """

    def __init__(self, training: Training, saver: Saver | None, started: float):
        self.training, self.saver = training, saver
        self._started, self._earlier = started, 0.0
        self._device = training.objective.model.like.device
        self._place: Place = training.source.place(training.objective.members)
        self._ranks = training.ranks
        self._tried = False
        #: Steps in the last state; None: there is none.
        self._written: int | None = None
        #: What the reader of the history is to know.
        self.notes: list[str] = []
        #: A loader's own place in the epoch that is to be gone on with.
        self._loader: Any = None

    @property
    def seconds(self) -> float:
        """Wall-clock time of the fit, calls that were killed included up to their last state."""
        return self._earlier + time.perf_counter() - self._started

    def batches(self, epoch: Iterator[Batch]) -> Iterator[Batch]:
        """The batches that are left of the present epoch.

        Args:
            epoch: A fresh epoch, of which nothing has been drawn yet.
        """
        at = self.training.at
        if not at.batches:
            at.order = None if self.saver is None else generator_state(self._device)
            return epoch
        present = generator_state(self._device)
        if self._place == "own":
            epoch = self.training.source.rest(self._loader)
        else:
            assert at.order is not None
            set_generator_state(at.order, self._device)
            for _ in range(at.batches):
                next(epoch)
        set_generator_state(present, self._device)
        return epoch

    def after_step(self) -> None:
        """Write a state if it is time for one, and if the place in the epoch can be found again."""
        if self.saver is None:
            return
        if not self._tried:  # a state that cannot be kept is told now, and not after the first hour
            pack(self._captured(), {}, "the fit")
            self._tried = True
        if self._place != "start" and self._ranks.decide(self.saver.due()):
            self.write()

    def after_epoch(self, steps: int) -> None:
        """The same between two epochs, the first of so many steps, for loaders that keep no place."""
        if self.saver is not None and self._place == "start" and self._ranks.decide(self.saver.due(steps)):
            self.write()

    def write(self) -> None:
        """Write a state now."""
        if self.saver is None:
            return
        tensors: dict[str, Tensor] = {}
        kept = self._captured()
        kept["ranks"] = self._ranks.gather(self._own()) if self._ranks.size > 1 else None
        if self._ranks.rank == 0:
            self.saver.write(tensors, {"fit": pack(kept, tensors, "the fit")})
        self._written = len(self.training.stats)

    def interrupted(self) -> None:
        """Note from where the next call will go on after Ctrl-C."""
        if self.saver is not None:
            place = "from the beginning: there is no state yet" if not self._written else f"from step {self._written}"
            self.notes.append(f"interrupted after step {len(self.training.stats)}; the next call goes on {place}")

    def go_on(self) -> None:
        """Put the last state back, if there is one.

        Raises:
            ValueError: It is of another fit, or damaged, or this computer captures the loss in another way.
        """
        state = None if self.saver is None else self.saver.read()
        if state is None:
            return
        kept = unpack(state.numbers["fit"], state.tensors, self._device)
        self.notes = [*kept["notes"], *state.notes]
        self._put_back(kept)
        at, steps = self.training.at, len(self.training.stats)
        self._written = steps
        done = "found finished, after" if at.finished else "went on from"
        self.notes.append(f"{done} step {steps}")
        if self._place == "start" and not at.finished:
            told = (
                f"the loader does not tell where in an epoch it is: the fit went on from the start of epoch {at.epoch},"
                " whose batches may come in another order than they would have"
            )
            self.notes.append(told)
            warnings.warn(f"{told}. One with state_dict and load_state_dict goes on where it was", stacklevel=2)

    def _own(self) -> dict[str, Any]:
        """What each rank has for itself."""
        given = {name: value.cpu() for name, value in self.training.objective.given_tensors.items()}
        return {"random": generator_state(self._device), "order": self.training.at.order, "given": given}

    def _put_own_back(self, ranks: list[dict[str, Any]] | None, step: int) -> None:
        """What this rank had; noise of other numbers if there were fewer ranks, or more."""
        if ranks is None or len(ranks) != self._ranks.size:
            before = 1 if ranks is None else len(ranks)
            told = f"ranks: {self._ranks.size} go on, where there were {before}: the noise of other ranks is new"
            if self._ranks.rank:
                seed_generators(other_seed(step, f"rank {self._ranks.rank}"), self._device)
                self.training.at.order = generator_state(self._device)
            self.notes.append(told)
            return
        own = ranks[self._ranks.rank]
        set_generator_state(own["random"], self._device)
        self.training.at.order = own["order"]
        self.training.objective.given_tensors |= {n: v.to(self._device) for n, v in own["given"].items()}

    def _captured(self) -> dict[str, Any]:
        training, history = self.training, self.training.history
        best = None
        if training.best is not None:
            score, epoch, params, state = training.best
            best = (score, epoch, params, {name: state[name] for name in training.objective.buffers_moved})
        own = self._place == "own" and not training.at.finished
        return {
            "at": vars(training.at),
            "random": generator_state(self._device),
            "loader": training.source.state() if own else None,
            "params": [p.detach() for p in training.params],
            "optimizer": training.optimizer.state_dict(),
            "schedule": None if training.scheduler is None else training.scheduler.state_dict(),
            "objective": _memory(training.objective),
            "average": (training.averaged, training.averaged_steps),
            "best": best,
            "stats": training.stats.table,
            "validation": (history.validation, history.validation_epochs),
            "steps_per_epoch": history.steps_per_epoch,
            "backends": training.backends,
            "seconds": self.seconds,
            "told": list(training.objective.notes),
            "notes": self.notes,
        }

    def _put_back(self, kept: dict[str, Any]) -> None:
        training, history = self.training, self.training.history
        if kept["backends"] != training.backends:
            raise ValueError(
                f"the fit ran on {' + '.join(kept['backends'])}, and would go on on {' + '.join(training.backends)}, "
                "which gives other bytes: is a C++ compiler missing? Give compile= by its name, and another folder"
            )
        training.at = Position(**kept["at"])
        if training.at.finished:  # what steps would have told
            training.objective.notes[:] = kept["told"]
        with torch.no_grad():
            for param, value in zip(training.params, kept["params"], strict=True):
                param.copy_(value)
        restore(training.optimizer, kept["optimizer"])
        if training.scheduler is not None:
            training.scheduler.load_state_dict(kept["schedule"])
        _remember(training.objective, kept["objective"])
        training.averaged, training.averaged_steps = kept["average"]
        if kept["best"] is not None:
            score, epoch, params, state = kept["best"]
            training.best = (score, epoch, params, {**training.objective.state, **state})
        training.stats = StepRecord(kept["stats"])
        history.validation, history.validation_epochs = kept["validation"]
        history.steps_per_epoch = kept["steps_per_epoch"]
        self._loader, self._earlier = kept["loader"], kept["seconds"]
        set_generator_state(kept["random"], self._device)
        if self._ranks.size > 1 or kept["ranks"] is not None:
            self._put_own_back(kept["ranks"], len(training.stats))


def _memory(objective: Objective) -> dict[str, Any]:
    """What an objective keeps from step to step besides its parameters."""
    return {
        "buffers": {name: objective.state[name] for name in objective.buffers_moved},
        "given": dict(objective.given_tensors),
        "gathered": dict(objective.gathered),
        "remembered": dict(objective.remembered),
        "parts": [_memory(part) for part in objective.parts],
    }


def _remember(objective: Objective, kept: dict[str, Any]) -> None:
    objective.state |= kept["buffers"]
    objective.given_tensors |= kept["given"]
    objective.gathered, objective.remembered = kept["gathered"], kept["remembered"]
    for part, own in zip(objective.parts, kept["parts"], strict=True):
        _remember(part, own)
