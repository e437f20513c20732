"""A fit from a table to a run folder, and the verdict on it."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from bnn.checkpoint import Checkpoint
from bnn.cli import folder as at
from bnn.cli.build import estimator as build
from bnn.cli.errors import Interrupted, UserError, in_words, of_system
from bnn.cli.folder import Place
from bnn.cli.output import Output
from bnn.cli.plan import Plan, make_plan, split
from bnn.cli.rivals import Rival, linear, scored
from bnn.cli.settings import Settings
from bnn.cli.verdict import Verdict, calibration, diagnosed
from bnn.estimators.choice import enough_epochs
from bnn.estimators.columns import read_columns
from bnn.likelihoods import Gaussian
from bnn.tables import Table, TableError, parse, read_table

#: Rows up to which the diagnosis of the inference is asked: it goes over all of them with 1,000 draws.
_DIAGNOSED = 50_000
#: Numbers of the largest ArviZ tree: draws times rows.
_TREE = 20_000_000


@dataclass(frozen=True)
class Rows:
    """Inputs as a frame, targets as the estimator takes them."""

    x: pl.DataFrame
    y: NDArray[Any]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Some of them."""
        return Rows(self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Data:
    """The rows of a fit, and what was decided about their columns."""

    plan: Plan
    train: Rows
    #: No rows where none were held out.
    held_out: Rows
    everything: Rows
    notes: list[str]
    record: dict[str, Any]


def read_data(settings: Settings, table: Table, digest: str) -> Data:
    """Plan the columns, check the values, and part the rows.

    Raises:
        UserError: A table that cannot be used, in a sentence.
    """
    try:
        plan, notes = make_plan(table, settings)
        targets, there = plan.targets(table)
        everything = Rows(plan.inputs(table).filter(pl.Series(there)), targets)
    except TableError as error:
        raise UserError(str(error)) from error
    train, held = split(plan, targets, settings.test_share, settings.seed)
    path = settings.data if settings.data == "-" else str(Path(settings.data).absolute())
    record = {"path": path, "sha256": digest, "rows": len(there), "rows_with_target": len(targets)}
    return Data(plan, everything.take(train), everything.take(held), everything, notes, record)


def load_table(settings: Settings, place: Place, stdin: Any) -> tuple[Table, str, bytes | None]:
    """The table, the SHA-256 of its bytes, and these where they came from standard input."""
    try:
        if settings.data == "-":
            kept = place.data.is_file()
            content = place.data.read_bytes() if kept else stdin.read()
            return parse(content, "standard input"), hashlib.sha256(content).hexdigest(), None if kept else content
        table = read_table(settings.data)
        with Path(settings.data).open("rb") as file:
            return table, hashlib.file_digest(file, "sha256").hexdigest(), None
    except TableError as error:
        raise UserError(str(error)) from error


def run(settings: Settings, place: Place, output: Output, stdin: Any, *, force: bool, resume: bool) -> dict[str, Any]:
    """Everything that `bnn fit` does; gives back what ``--json`` prints.

    Raises:
        UserError: Input or settings that cannot be used; nothing is written then.
        Interrupted: Ctrl-C; what has been computed is kept, and the message says how to go on.
    """
    if not resume:
        place.check_free(force=force)
    table, digest, content = load_table(settings, place, stdin)
    data = read_data(settings, table, digest)
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
        raise Interrupted(_how_to_resume(place)) from None
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


def _how_to_resume(place: Place) -> str:
    return f"Interrupted; nothing that was computed is lost: bnn fit --resume {place.out} goes on."


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
        document = self._save(model, verdict)
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
            found = scored(prediction, y, settings.interval, settings.seed)
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
                    table = scored(
                        prediction, y.to(prediction.outputs.device), self.settings.interval, self.settings.seed
                    )
            except (ValueError, TypeError, np.linalg.LinAlgError) as error:
                missing.append(f"No {title}: {' '.join(str(error).split())}.")
                continue
            if discrete and isinstance(prediction.likelihood, Gaussian):
                del table["log_density"]  # of a density, where the model's is a probability
            rivals.append(Rival(name, table))
        return rivals, missing

    def _linear(self, model: Any, judged: Rows) -> tuple[str, Any]:
        train = self.data.train
        labels = self._targets(model, train).numpy()
        return linear(
            encoded(model, train.x), labels, encoded(model, judged.x), len(self.data.plan.classes)
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
            (encoded(model, rows.x), as_fitted(model, rows.y)) for rows in (data.train, data.held_out or data.train)
        )
        with muted():
            try:
                return diagnosed(model.posterior_, train, held if len(data.held_out) else None, self.settings.seed)
            except (ValueError, TypeError) as error:
                return [f"Inference: not diagnosed: {' '.join(str(error).split())}."], True

    def _save(self, model: Any, verdict: Verdict) -> dict[str, Any]:
        """Into a folder inside the unfinished one, which then takes the run's name."""
        from bnn.files import add_file

        settings, data = self.settings, self.data
        new = self.place.part / "run"
        posterior = model.posterior_
        document = {
            "run": str(self.place.out),
            "task": data.plan.task,
            "target": data.plan.target,
            "method": type_of(model),
            "rows": {"fitted": model.n_rows_, "held_out": len(data.held_out), "refitted": settings.refit},
            "seconds": posterior.history.seconds,
            **verdict.to_json(),
        }
        record = {
            "schema": at.SCHEMA,
            "plan": data.plan.to_json(),
            "interval": float(settings.interval),
            "data": data.record,
            "rows": document["rows"],
        }
        why = posterior.settings.get("auto")
        config = replace(settings, task=data.plan.task).to_toml(
            {"method": f"chose {why}"} if isinstance(why, str) else None
        )
        model.save(new, overwrite=True)
        contents: dict[str, Callable[[], bytes]] = {
            at.CONFIG: config.encode,
            at.SCORES: lambda: _as_json(document),
            at.HISTORY: lambda: _curves(posterior.history),
            at.VERDICT: lambda: ("\n".join(verdict.lines()) + "\n").encode(),
            at.RECORD: lambda: _as_json(record),
        }
        for name, content in contents.items():
            add_file(new, name, content())
        if settings.arviz and (tree := self._tree(model)) is not None:
            add_file(new, at.TREE, tree)
        self.place.finish(new)
        return document

    def _tree(self, model: Any) -> bytes | None:
        """The ArviZ tree as netCDF; None where it would be too large."""
        posterior = model.posterior_
        rows = self.data.everything if self.settings.refit or not len(self.data.held_out) else self.data.train
        if len(rows) * (posterior.num_draws or 1000) > _TREE:
            self.output.note(
                "The ArviZ tree would be too large: left out (posterior.to_arviz makes one of fewer rows)."
            )
            return None
        path = self.place.part / at.TREE
        with muted():
            tree = posterior.to_arviz(encoded(model, rows.x), as_fitted(model, rows.y))
            tree.to_netcdf(path, engine="h5netcdf")
        return path.read_bytes()


def type_of(model: Any) -> str:
    """The method that ran."""
    return str(model.posterior_.settings.get("method", model.posterior_.approximation.kind))


def encoded(model: Any, x: pl.DataFrame) -> Any:
    """Rows of a table as the network takes them."""
    return model.encoder_.transform(read_columns(model, x, model.categorical, reset=False))


def as_fitted(model: Any, y: NDArray[Any]) -> Any:
    """Targets as the likelihood takes them: standardised, or labels from 0."""
    return model._encode_targets(y, None, first=False, classes=None)


def muted() -> Any:
    """No warnings: they are of a split that the user did not make, or were told in better words."""
    return warnings.catch_warnings(action="ignore")


def _notes(model: Any) -> list[str]:
    """What the history has for a reader, but for the choice of the method, which is said anyway."""
    return [note for note in model.posterior_.history.notes if not note.startswith("auto chose")]


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _curves(history: Any) -> bytes:
    """Loss and its two parts by step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "loss", "nll", "kl"])
    for step, row in enumerate(
        zip(*(c.tolist() for c in (history.loss, history.nll, history.kl)), strict=True), start=1
    ):
        writer.writerow([step, *row])
    return text.getvalue().encode()
