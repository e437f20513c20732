"""The settings of a fit: one record, from options and from a TOML file, and back into one."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bnn.cli.errors import UserError

TASKS = ("auto", "regression", "classification")
BACKENDS = ("auto", "graph", "inductor", "eager")
#: Names of priors and likelihoods: here for the help, which must not import the real ones (`bnn.cli.build`).
PRIORS = ("normal", "laplace", "student_t", "scale_mixture", "spike_and_slab", "horseshoe", "regularised_horseshoe")
LIKELIHOODS = (
    "gaussian", "heteroscedastic", "student_t", "laplace", "mixture", "log_normal", "gamma", "weibull", "beta",
    "poisson", "negative_binomial",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides the answer, and how it is computed; what is not here is where the run goes."""

    data: str
    target: str
    task: str = "auto"
    #: Columns to fit on; none: all but the target, those dropped, and identifiers.
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    #: Columns whose values are names, even where they look like numbers.
    categorical: tuple[str, ...] = ()
    method: str = "auto"
    hidden: tuple[int, ...] = (50, 50)
    activation: str = "relu"
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    prior: str | None = None
    likelihood: str | None = None
    seed: int = 0
    #: The share of the rows that the verdict is of.
    test_share: float = 0.2
    #: Whether the run that is kept is fitted to all rows, once the verdict is spoken.
    refit: bool = False
    interval: float = 0.9
    device: str = "auto"
    compile: str = "auto"
    #: Whether the verdict has baselines and a diagnosis of the inference.
    checks: bool = True
    arviz: bool = True
    checkpoint_seconds: float = 60.0
    #: Further settings of the method.
    set: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise `UserError` for a value that makes no sense, with the name of the setting."""
        for f in fields(self):
            _check_type(f.name, str(f.type), getattr(self, f.name))
        for name, known in (("task", TASKS), ("compile", BACKENDS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        _between("test_share", self.test_share, 0, 1, closed=True)
        _between("interval", self.interval, 0, 1)
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is a whole number from 1, not {value}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"lr is a positive number, not {self.lr}")
        if not 0 <= self.checkpoint_seconds < math.inf:
            raise UserError(f"checkpoint_seconds is at least 0, not {self.checkpoint_seconds}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is a whole number from 0 to 2^63 - 1, not {self.seed}")
        if any(not 1 <= width <= 100_000 for width in self.hidden):
            raise UserError(f"hidden has whole numbers from 1 to 100000, not {', '.join(map(str, self.hidden))}")

    def to_toml(self, notes: Mapping[str, str] | None = None) -> str:
        """As a file that `from_toml` reads; what is None is left out, and notes stand behind their lines."""
        lines = ["# The settings of this run: `bnn fit -c` with this file and another --out repeats it."]
        table = []
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "set":
                table = ["", "[set]", *(f"{_key(name)} = {_toml(v)}" for name, v in value.items())] if value else []
            elif value is not None:
                note = (notes or {}).get(f.name)
                lines.append(f"{f.name} = {_toml(value)}" + (f"  # {' '.join(note.split())}" if note else ""))
        return "\n".join([*lines, *table]) + "\n"


#: Their names, in order.
NAMES = tuple(f.name for f in fields(Settings))
_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


def from_toml(path: Path) -> dict[str, Any]:
    """The settings in a file, checked by name.

    Raises:
        UserError: No such file, no TOML, a name that is none.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8: byte {error.start} cannot be read") from None
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML: {error}") from None
    for name in found:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)}"
            raise UserError(f"{path} has a setting {name!r} that is none; {hint}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def resolved(given: Mapping[str, Any]) -> Settings:
    """Settings from values by name; the rest are defaults.

    Raises:
        UserError: Data or target is missing; a value of the wrong type.
    """
    for name, option in (("data", "the data, as in: bnn fit data.csv --target NAME"), ("target", "--target")):
        if given.get(name) is None:
            raise UserError(f"{name} is missing: give {option}")
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _check_type(name: str, kind: str, value: Any) -> None:
    if value is None and "None" in kind:
        return
    if kind.startswith("tuple"):
        item = kind.removeprefix("tuple[").split(",")[0]
        good = isinstance(value, tuple) and all(_is(v, item) for v in value)
        said = {"str": "a list of names", "int": "a list of whole numbers"}[item]
    elif kind.startswith("Mapping"):
        good, said = isinstance(value, Mapping) and all(_plain(v) for v in value.values()), "a table of plain values"
    else:
        base = kind.split(" ")[0]
        good = _is(value, base)
        said = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}[base]
    if not good:
        raise UserError(f"{name} is {said}, not {value!r}")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, list | tuple) and all(map(_plain, value)))


def _between(name: str, value: float, low: float, high: float, *, closed: bool = False) -> None:
    if not (low < value < high or (closed and value == low)):
        raise UserError(f"{name} lies between {low} and {high}, not {value}")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)  # inf and nan are written alike
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's; of the control characters it leaves one as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(map(_toml, value))}]"


def _key(name: str) -> str:
    return name if name.replace("_", "").isalnum() and name.isascii() else _toml(name)
