"""Where a run is: `runs/price` once it is finished, `runs/price.part` before.

Nothing unfinished ever has the first name, and no command takes the second for a run.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnn.cli.errors import UserError, in_words
from bnn.cli.plan import Plan

SCHEMA = 1
#: What the command line writes into a run folder, beside what an estimator saves.
RECORD, CONFIG, SCORES, HISTORY, VERDICT, TREE, REPORT = (
    "run.json", "config.toml", "scores.json", "history.csv", "verdict.txt", "arviz.nc", "report.html",
)  # fmt: skip
_PART, _STARTED, _DATA = ".part", "started.json", "data"


@dataclass(frozen=True)
class Place:
    """The folder of a run that is to be made."""

    out: Path

    @property
    def part(self) -> Path:
        """Where it is until it is finished."""
        return self.out.with_name(self.out.name + _PART)

    @property
    def data(self) -> Path:
        """A copy of the rows, where they came from standard input."""
        return self.part / _DATA

    @property
    def config(self) -> Path:
        """The settings of an unfinished run."""
        return self.part / CONFIG

    def checkpoint(self, name: str) -> Path:
        """Of one of the fits of the run."""
        return self.part / "checkpoint" / name

    @property
    def unfinished(self) -> bool:
        """Whether a run was begun here and not finished."""
        return (self.part / _STARTED).is_file()

    @property
    def has_state(self) -> bool:
        """Whether an unfinished run has come so far that it can go on."""
        return any(self.part.glob("checkpoint/**/*.safetensors"))

    def check_free(self, *, force: bool) -> None:
        """See that a run may be written here, before any work is done.

        Raises:
            UserError: There is something; with `force`, something that is no run, or more than one.
        """
        if self.out.is_symlink() or self.out.exists():
            if not is_run(self.out):
                raise UserError(f"{self.out} is there and is no run of bnn: it is never replaced, choose another --out")
            if not force:
                raise UserError(f"{self.out} holds a run already: --force replaces it, or choose another --out")
            more = foreign(self.out)
            if more:
                raise UserError(
                    f"{self.out} has files that are not its own ({', '.join(more[:5])}) and is not replaced: move them"
                )
        if self.part.exists() and not self.unfinished:
            raise UserError(f"{self.part} is in the way, and is no unfinished run of bnn: move it")
        if self.unfinished and not force:
            raise UserError(
                f"{self.part} is an unfinished run: bnn fit --resume {self.out} goes on with it, --force begins anew"
            )

    def begin(self, config: str, record: Mapping[str, Any], stdin: bytes | None) -> None:
        """Make the folder of the unfinished run; one that is there is removed first."""
        if self.unfinished:
            shutil.rmtree(self.part)
        self.part.mkdir(parents=True)
        try:
            self.config.write_text(config, encoding="utf-8")
            if stdin is not None:
                self.data.write_bytes(stdin)
            # Last: by this file the folder is known for an unfinished run.
            (self.part / _STARTED).write_text(json.dumps({"schema": SCHEMA, **record}), encoding="utf-8")
        except BaseException:
            shutil.rmtree(self.part, ignore_errors=True)
            raise

    def started(self) -> dict[str, Any]:
        """What was written down at the beginning.

        Raises:
            UserError: It cannot be read.
        """
        return _json(self.part / _STARTED)

    def finish(self, folder: Path) -> None:
        """Give the finished folder its name, and remove the rest."""
        from bnn.writing import move_folder

        move_folder(folder, self.out)
        self.forget()

    def forget(self) -> None:
        """Remove what is unfinished."""
        shutil.rmtree(self.part, ignore_errors=True)


def place_of(text: str) -> Place:
    """The place of a run from what the user gave; the name of its unfinished folder means the same.

    Raises:
        UserError: No name of a folder.
    """
    path = Path(text)
    name = path.name.removesuffix(_PART)
    if not name or name == ".." or "\0" in text:
        raise UserError(f"{text!r} is no name for the folder of a run")
    return Place(path.with_name(name))


def is_run(path: Path) -> bool:
    """Whether a folder is a finished run."""
    return path.is_dir() and (path / RECORD).is_file()


def foreign(path: Path) -> list[str]:
    """Files in the folder of a run that are not of it."""
    try:
        own = set(_json(path / "manifest.json")["files"])
    except (UserError, KeyError, TypeError):
        own = set()
    own |= {"manifest.json", RECORD, CONFIG, SCORES, HISTORY, VERDICT, TREE, REPORT}
    return sorted(
        str(found.relative_to(path)) for found in path.rglob("*")
        if found.relative_to(path).as_posix() not in own and not found.is_dir()
    )  # fmt: skip


@dataclass(frozen=True)
class Saved:
    """A finished run, read back."""

    path: Path
    #: A `bnn.BayesianRegressor` or a `bnn.BayesianClassifier`.
    estimator: Any
    plan: Plan
    record: dict[str, Any]


def find(text: str) -> Path:
    """The folder of a finished run.

    Raises:
        UserError: There is none, or it is unfinished.
    """
    place = place_of(text)
    if is_run(place.out) and Path(text).name == place.out.name:
        return place.out
    if place.unfinished:
        raise UserError(f"the run {place.out} is not finished: bnn fit --resume {place.out} goes on with it")
    if place.out.exists():
        raise UserError(f"{place.out} is no run of bnn fit: there is no {RECORD} in it")
    raise UserError(f"there is no run at {place.out}{_beside(place.out)}")


def open_run(text: str) -> Saved:
    """Read a finished run.

    Raises:
        UserError: See `find`; files that are damaged or of a newer version.
    """
    path = find(text)
    record = _json(path / RECORD)
    if isinstance(record.get("schema"), int) and record["schema"] > SCHEMA:
        raise UserError(
            f"{path} was written by a newer bnn (schema {record['schema']}, this one reads {SCHEMA}): upgrade"
        )
    try:
        plan = Plan.from_json(record["plan"])
        level, data, rows = record["interval"], record["data"], record["rows"]
        if (
            not isinstance(level, float)
            or not 0 < level < 1
            or not isinstance(data, dict)
            or not isinstance(rows, dict)
        ):
            raise TypeError("of wrong types")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / RECORD} is damaged: {error}") from error
    import bnn

    with in_words():
        estimator = bnn.load(path)
    return Saved(path, estimator, plan, record)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it is no record")
    return found


def _beside(path: Path) -> str:
    try:
        names = [other.name for other in path.parent.iterdir() if is_run(other)]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""
