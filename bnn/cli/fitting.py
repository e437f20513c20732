"""A fit from a table to a run folder, and the verdict on it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnn.analysis import scores
from bnn.checkpoint import Checkpoint
from bnn.cli.build import estimator as build
from bnn.cli.errors import Interrupted, UserError, in_words, of_system
from bnn.cli.folder import Place
from bnn.cli.output import Output, muted
from bnn.cli.rivals import Rival, linear
from bnn.cli.rows import Data, Rows
from bnn.cli.saving import save, type_of
from bnn.cli.settings import Settings
from bnn.cli.verdict import Verdict, calibration, diagnosed
from bnn.estimators.choice import enough_epochs
from bnn.likelihoods import Gaussian

#: Rows up to which the diagnosis of the inference is asked: it goes over all of them with 1,000 draws.
_DIAGNOSED = 50_000


def run(
    settings: Settings, place: Place, data: Data, content: bytes | None, output: Output, *, force: bool, resume: bool
) -> dict[str, Any]:
    """Fit to rows that were read, judge, and save; gives back what ``--json`` prints.

    Args:
        settings: Of the run.
        place: Its folder.
        data: See `bnn.cli.rows.load`.
        content: What to keep of standard input.
        output: Where words go.
        force: Whether a run that is there is replaced.
        resume: Whether to go on with the unfinished one.

    Raises:
        UserError: Input or settings that cannot be used; nothing is written then.
        Interrupted: Ctrl-C; what has been computed is kept, and the message says how to go on.
    """
    digest = data.record["sha256"]
    if resume and place.started().get("sha256") != digest:
        raise UserError(f"{settings.data} is not what it was when {place.part} was begun: --force begins anew")
    settings = replace(settings, data=data.record["path"])
    model = build(settings, data.plan, verbose=output.bars)
    new = [] if resume else [folder for folder in place.part.parents if not folder.exists()]
    if not resume:
        place.begin(settings.to_toml(), {"sha256": digest, "force": force}, content)
    try:
        return _Work(settings, place, data, output).run(model)
    except KeyboardInterrupt:
        seconds = f"{settings.checkpoint_seconds:g} s"
        raise Interrupted(
            f"Interrupted: bnn fit --resume {place.out} goes on from the last checkpoint, {seconds} back at most."
        ) from None
    except BaseException as error:
        # A state is worth keeping where time or space ran out; where the input is at fault it would lead there again.
        if not (resume or (place.has_state and not isinstance(error, UserError))):
            place.forget()
            _remove_empty(new)
        elif isinstance(error, OSError):
            raise UserError(
                f"{of_system(error)}; bnn fit --resume {place.out} goes on from the last checkpoint"
            ) from error
        raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


class _Work:
    """The fits of one run, and what is made of them."""

    def __init__(self, settings: Settings, place: Place, data: Data, output: Output):
        self.settings, self.place, self.data, self.output = settings, place, data, output

    def run(self, model: Any) -> dict[str, Any]:
        """Fit, judge, save."""
        settings, data, output = self.settings, self.data, self.output
        for note in data.notes:
            output.warn(note, show=False)
        held = f", {len(data.held_out)} held out" if len(data.held_out) else ""
        output.note(f"Fitting {len(data.train)} rows of {len(data.plan.features)} columns{held} ...")
        self._fit(model, data.train, "model")
        if len(data.held_out):
            output.note("Judging it by the rows that were held out ...")
        verdict = self._verdict(model)
        if settings.refit and len(data.held_out):
            output.note(f"Fitting again, to all {len(data.everything)} rows ...")
            model = build(settings, data.plan, verbose=output.bars)
            self._fit(model, data.everything, "refit")
            verdict.fitted += f" The run that is kept was then fitted to all {len(data.everything)} rows."
        document = save(model, verdict, settings, data, self.place, output)
        for line in verdict.lines():
            output.say(line)
        return document

    def _fit(self, model: Any, rows: Rows, name: str) -> None:
        place = Checkpoint(self.place.checkpoint(name), seconds=self.settings.checkpoint_seconds)
        with self.output.listening(show=False), self.output.progress(), in_words():
            model.fit(rows.x, rows.y, checkpoint=place)
        if model.posterior_.history.interrupted:
            raise KeyboardInterrupt

    def _verdict(self, model: Any) -> Verdict:
        settings, data = self.settings, self.data
        judged = data.held_out if len(data.held_out) else data.train
        y = self._targets(model, judged)
        with muted(), in_words():
            prediction = model.predict_distribution(judged.x)
            found = scores(prediction, y, level=settings.interval, seed=settings.seed)
        method, discrete = type_of(model), not data.plan.classes and prediction.discrete
        rivals, missing = self._rivals(model, judged, y, method, discrete=discrete) if settings.checks else ([], [])
        inference, good = self._diagnosis(model) if settings.checks else ([], True)
        return Verdict(
            run=str(self.place.out),
            target=settings.target,
            fitted=self._fitted(model),
            where=f"{len(judged)} {'held-out' if len(data.held_out) else 'training'} rows",
            model=Rival(f"this model ({method})", found),
            rivals=rivals,
            calibration=calibration(prediction, y, found, settings.interval, settings.seed),
            inference=inference,
            warnings=[*self.output.warned, *_notes(model)],
            held_out=bool(len(data.held_out)),
            good_inference=good,
            missing=missing,
        )

    def _fitted(self, model: Any) -> str:
        data, history = self.data, model.posterior_.history
        held = f", {len(data.held_out)} held out" if len(data.held_out) else ""
        why = model.posterior_.settings.get("auto")
        chosen = f", chosen because {why.partition(': ')[2]}" if isinstance(why, str) else ""
        classes = f" ({len(data.plan.classes)} classes)" if data.plan.classes else ""
        return (
            f"{data.plan.task.capitalize()} of {data.plan.target!r}{classes} on {len(data.plan.features)} columns: "
            f"{len(data.train)} rows fitted{held}.\n{type_of(model)} in {history.seconds:.1f} s{chosen}."
        )

    def _targets(self, model: Any, rows: Rows) -> torch.Tensor:
        if self.data.plan.classes:
            return torch.as_tensor(np.searchsorted(model.classes_, rows.y))
        return torch.as_tensor(rows.y)

    def _rivals(
        self, model: Any, judged: Rows, y: torch.Tensor, method: str, *, discrete: bool
    ) -> tuple[list[Rival], list[str]]:
        """A linear model and a deterministic net."""
        rivals, missing = [], []
        for title, make in (("linear model", self._linear), ("deterministic net", self._plain_net)):
            if title == "deterministic net" and method == "MAP":
                continue
            try:
                with muted():
                    name, prediction = make(model, judged)
                    own = y.to(prediction.outputs.device)
                    table = scores(prediction, own, level=self.settings.interval, seed=self.settings.seed)
            except (ValueError, TypeError, np.linalg.LinAlgError) as error:
                missing.append(f"No {title}: {_said(error)}.")
                continue
            if discrete and isinstance(prediction.likelihood, Gaussian):
                del table["log_density"]  # of a density, where the model's is a probability
            rivals.append(Rival(name, table))
        return rivals, missing

    def _linear(self, model: Any, judged: Rows) -> tuple[str, Any]:
        train = self.data.train
        labels = self._targets(model, train).numpy()
        return linear(
            model.encode_inputs(train.x), labels, model.encode_inputs(judged.x), len(self.data.plan.classes)
        )  # fmt: skip

    def _plain_net(self, model: Any, judged: Rows) -> tuple[str, Any]:
        settings, train = self.settings, self.data.train
        epochs = settings.epochs or enough_epochs(len(train))
        plain = build(replace(settings, method="map", set={}, epochs=epochs), self.data.plan, verbose=False)
        self._fit(plain, train, "net")
        return "deterministic net (MAP)", plain.predict_distribution(judged.x)

    def _diagnosis(self, model: Any) -> tuple[list[str], bool]:
        data = self.data
        if len(data.train) > _DIAGNOSED:
            return [f"Inference: not diagnosed, since there are more than {_DIAGNOSED:,} rows."], True
        train, held = (
            (model.encode_inputs(rows.x), model.encode_targets(rows.y))
            for rows in (data.train, data.held_out or data.train)
        )
        with muted():
            try:
                return diagnosed(model.posterior_, train, held if len(data.held_out) else None, self.settings.seed)
            except (ValueError, TypeError) as error:
                return [f"Inference: not diagnosed: {_said(error)}."], True


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def _notes(model: Any) -> list[str]:
    """What the history has for a reader, but for the choice of the method, which is said anyway."""
    return [note for note in model.posterior_.history.notes if not note.startswith("auto chose")]
