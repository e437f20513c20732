"""How far chains have come, kept such that a run that was killed goes on to the same bytes.

Draws only grow in number, and a state that held them would write all of them again each time. So they stand in a file
of their own (`DrawStore`), and a state says how many of them it counts, and their checksum. They reach the disk before
the state that counts them; those that came after it are made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bnn.checkpoint import SURROUNDINGS
from bnn.history import History
from bnn.inference.base import Run
from bnn.inference.draw_file import check_free
from bnn.inference.objective import Objective
from bnn.inference.store import DrawStore, open_store
from bnn.layout import Layout
from bnn.random import generator_state, set_generator_state

_DRAWS, _RANDOM = "draws.safetensors", "random"


class Keeper:
    """The draws of a run and, with ``fit(checkpoint=...)``, its states.

    Args:
        run: Where.
        chains: How many.
        device: Whose random state belongs to a state.

    Raises:
        ValueError: The states are of another fit, or all damaged.
    """

    #: The draws, once they have a place: see `open`.
    store: DrawStore

    def __init__(self, run: Run, chains: int, device: torch.device):
        self._started = time.perf_counter()
        self._run, self._saver, self._chains, self._device = run, run.checkpoint, chains, device
        self._state = None if self._saver is None else self._saver.read()
        self._numbers = _nothing_yet(chains) if self._state is None else self._state.numbers
        #: As the run before this call left it.
        self._before = self._numbers
        self._prepared: list[str] = []
        self._told = [] if self._state is None else list(self._state.notes)
        if self.finished:
            self.note("found finished")
        elif self._numbers["loop"] is not None:
            self.note(f"went on from a state of {sum(self._numbers['draws'])} draws")

    def open(
        self, objective: Objective, capacity: int, layout: Layout | None = None, statistics: Sequence[str] = ()
    ) -> DrawStore:
        """Make the store of the draws, or find the one of the run that is gone on with.

        Args:
            objective: Whose unknowns are drawn; of one member. See `open_store`.
            capacity: Draws a chain.
            layout: Of what is kept of a draw; None: all latents.
            statistics: Names of the sampler's statistics of each draw.

        Raises:
            FileExistsError: `run.store` is there, and no state says that it is this fit's.
            ValueError: The draws that the state counts are of another fit, damaged or gone.
        """
        path, fit, counts = self._run.store, None, None
        if self._saver is not None:
            if self._state is None:
                # From here on, a file at the place of the draws is this fit's.
                check_free(path)
                self._saver.write({}, self._numbers)
            path = path or self._saver.folder / _DRAWS
            fit, counts = _fit_name(self._saver.identity), self._numbers["draws"]
        self.store = open_store(
            objective, path, self._chains, capacity, layout=layout, statistics=statistics, fit=fit, resume=counts
        )
        self._check_draws()
        return self.store

    @property
    def finished(self) -> bool:
        """Whether the run is over: there is nothing left but its posterior."""
        return bool(self._numbers["finished"])

    def go_on(self, backends: Iterable[str] = ()) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save` was given last, with the random state that it was given in; None: from the start.

        Args:
            backends: What has been captured before the first step.

        Raises:
            ValueError: That was something else in the run that is gone on with.
        """
        self._prepared = list(backends)
        if self._state is None or self._numbers["loop"] is None:
            return None
        was = self._numbers["prepared"]
        if not self.finished and self._prepared != was:
            raise ValueError(
                f"the fit ran on {' + '.join(was)}, and would go on on {' + '.join(self._prepared)}, which gives other "
                "bytes: is a C++ compiler missing? Give compile= by its name, and another folder"
            )
        tensors = {name: value.to(self._device) for name, value in self._state.tensors.items() if name != _RANDOM}
        set_generator_state(self._state.tensors[_RANDOM], self._device)
        loop: dict[str, Any] = self._numbers["loop"]
        return tensors, loop

    def due(self, steps: int = 1) -> bool:
        """Whether it is time to `save`, asked after every step, or after so many."""
        return self._saver is not None and self._saver.due(steps)

    def save(
        self, tensors: Mapping[str, Tensor], loop: Mapping[str, Any], backends: Iterable[str], *, finished: bool = False
    ) -> None:
        """Write a state, if the run has a place for it.

        Args:
            tensors: By name; what the loop needs to go on, besides draws and random state.
            loop: The same in numbers.
            backends: What was captured.
            finished: Whether this is the last one.

        Raises:
            OSError: The disk is full, say; the last state is as it was.
        """
        if self._saver is None:
            return
        self.store.flush()
        counts, before = self.store.counts.tolist(), self._numbers
        digests = [
            self.store.digest(chain, range(had, count), digest)
            for chain, (had, count, digest) in enumerate(zip(before["draws"], counts, before["digests"], strict=True))
        ]
        numbers = {
            "draws": counts,
            "digests": digests,
            "seconds": self._seconds(),
            "prepared": self._prepared,
            "backends": self._used(backends),
            "notes": self._notes(),
            "finished": finished,
            "loop": dict(loop),
        }
        self._saver.write({**tensors, _RANDOM: generator_state(self._device)}, numbers)
        self._started = time.perf_counter()
        self._numbers = numbers

    def vectors(self, count: int | None = None) -> Tensor:
        """The draws: ``(chains, draws, D)``; see `DrawStore.finished`."""
        drawn = self.store.finished(count)
        # What would have been in memory without a checkpoint is in memory.
        return drawn.clone() if self._run.store is None and self.store.path is not None else drawn

    def history(self, backends: Iterable[str], notes: Sequence[str]) -> History:
        """The record of the run, of all of its parts."""
        used = " + ".join(self._used(backends))
        return History(seconds=self._seconds(), backend=used, notes=[*notes, *self._notes()])

    def note(self, text: str) -> None:
        """Have the reader of the history know."""
        self._told.append(text)

    def interrupted(self) -> None:
        """Note from where the next call will go on after Ctrl-C."""
        if self._saver is not None:
            known = self._numbers["loop"] is not None
            place = f"a state of {sum(self._numbers['draws'])} draws" if known else "the beginning: there is no state"
            self.note(f"interrupted; the next call goes on from {place}")

    def _notes(self) -> list[str]:
        return [*self._before["notes"], *self._told]

    def _used(self, backends: Iterable[str]) -> list[str]:
        return list(dict.fromkeys([*self._before["backends"], *backends]))

    def _seconds(self) -> float:
        now = 0.0 if self.finished else time.perf_counter() - self._started
        return float(self._numbers["seconds"]) + now

    def _check_draws(self) -> None:
        """Raise `ValueError` unless the draws are those that the state counted."""
        numbers = self._numbers
        for chain, (count, digest) in enumerate(zip(numbers["draws"], numbers["digests"], strict=True)):
            if self.store.digest(chain, range(count)) != digest:
                raise ValueError(
                    f"{self.store.path} is damaged: the first {count} draws of chain {chain} are not those that were "
                    "written. Remove it and the checkpoint to begin anew"
                )


def _nothing_yet(chains: int) -> dict[str, Any]:
    """The numbers of a state before the first step."""
    return {
        "draws": [0] * chains,
        "digests": [""] * chains,
        "seconds": 0.0,
        "prepared": [],
        "backends": [],
        "notes": [],
        "finished": False,
        "loop": None,
    }


def _fit_name(identity: Mapping[str, Any]) -> str:
    """A name for a fit, by which its file of draws is known."""
    same = {key: value for key, value in identity.items() if key != SURROUNDINGS}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
