"""How do time and memory grow: with parameters, rows, draws, members and ranks? Exponents, from lines in logarithms.

Along each axis one number is varied and everything else stays. Seconds are of the processor, medians over repetitions:
what else the machine does changes them little. Bytes are those of tensors, at the peak of three steps (or one
prediction) above what was there before, counted by torch's profiler. An exponent is the slope of a straight line
through the logarithms, with its standard error; through all sizes, and through the upper half of them, where what every
step costs whatever the size has less weight. 1 is in proportion, 0 is free.

Ranks send what benchmarks/ranks.py counts, bytes of all ranks a step: it starts as many processes. Give ``--ranks ""``
where that is not wanted.

    python experiments/scaling.py             # four minutes
    python experiments/scaling.py --quick     # seconds; its times mean nothing
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from frame import ROOT, Study, experiment, which
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from tables import Table
from torch import nn

import bnn
from bnn.plots import style


@dataclass(frozen=True)
class Config:
    """Every number of the experiment. Sizes double, so that they are evenly spaced in logarithms."""

    axes: tuple[str, ...] = which(("parameters", "rows", "weight draws", "draws", "members", "ranks"))
    widths: tuple[int, ...] = which((32, 64, 128, 256, 512, 1024))  # of both hidden layers: 1,400 to a million weights
    rows: tuple[int, ...] = which((256, 512, 1024, 2048, 4096, 8192, 16384))
    draws: tuple[int, ...] = which((8, 16, 32, 64, 128, 256))  # of a prediction, and, an eighth of it, of a step
    members: tuple[int, ...] = which((1, 2, 4, 8, 16, 32))
    ranks: tuple[int, ...] = which((2, 3, 4))
    inputs: int = 8
    width: int = 64  # where it does not vary
    batch: int = 256  # rows a step, where they do not vary
    steps: int = 10  # an epoch
    epochs: int = 12  # the first is not counted: it prepares
    counts: int = which(2)  # of bytes: once in some fifty the profiler has lost most of its events
    seed: int = 0


QUICK = Config(
    axes=("parameters", "rows", "draws", "members"),
    widths=(16, 256),
    rows=(512, 4096),
    draws=(8, 128),
    members=(1, 8),
    ranks=(),
    steps=2,
    epochs=3,
    counts=1,
)


def net(config: Config, width: int) -> nn.Module:
    layers = [nn.Linear(config.inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)]
    return nn.Sequential(*layers, nn.Flatten(0))


def data(config: Config, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, config.inputs, generator=torch.Generator().manual_seed(config.seed))
    return x, x.sum(1)


def peak_bytes(work: Callable[[], object], counts: int = 1) -> int:
    """The most that tensors hold at once while it works, above what they held before: the largest of some counts.

    Every allocation and every release is an event of torch's profiler, which now and then loses some.
    """
    return max(_counted(work) for _ in range(counts))


def _counted(work: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints when it starts and when it stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(held.max())


def fitting(config: Config, width: int, rows: int, make: Callable[..., bnn.inference.Method]) -> dict[str, float]:
    """Processor seconds a step and bytes of a fit whose steps see `rows` rows.

    Args:
        config: Settings.
        width: Of the network.
        rows: A step.
        make: From ``epochs=`` and ``batch_size=`` to the method.
    """
    model = bnn.BNN(net(config, width), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    times: list[float] = []
    run = functools.partial(bnn.fit, model, compile="graph", progress=False)
    run(
        data(config, rows * config.steps),
        make(epochs=config.epochs, batch_size=rows),
        callbacks=[lambda _: times.append(time.process_time())],
    )
    seconds = statistics.median(b - a for a, b in itertools.pairwise(times)) / config.steps
    few = data(config, rows)  # one step an epoch
    return {
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "seconds": seconds,
        "bytes": peak_bytes(lambda: run(few, make(epochs=3, batch_size=rows)), config.counts),
    }


def predicting(config: Config, draws: int) -> dict[str, float]:
    """Processor seconds and bytes of a prediction at `batch` rows, the draws at once."""
    model = bnn.BNN(net(config, config.width), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    posterior = bnn.fit(model, data(config, config.batch), bnn.MeanField(epochs=1), compile="graph", progress=False)
    x, _ = data(config, config.batch)
    values = posterior.draws(draws)

    def once() -> float:
        started = time.process_time()
        _ = posterior.predict(x, draws=values, at_once=draws).mean
        return time.process_time() - started

    once()
    seconds = statistics.median(once() for _ in range(config.epochs))
    return {"seconds": seconds, "bytes": peak_bytes(once, config.counts)}


def sending(ranks: int) -> dict[str, float]:
    """Bytes that all ranks together send a step, of a million trained numbers."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.ranks import start

    (row,) = [row for row in start(ranks) if row["numbers"] == 1_000_000]
    return {"bytes": row["bytes"]}


def points(config: Config) -> dict[str, dict[int, Callable[[], dict[str, float]]]]:
    """What is measured: ``{axis: {size: work}}``."""
    fit = functools.partial(fitting, config)
    width, batch = config.width, config.batch
    return {
        "parameters": {w: functools.partial(fit, w, batch, bnn.MeanField) for w in config.widths},
        "rows": {n: functools.partial(fit, width, n, bnn.MeanField) for n in config.rows},
        "weight draws": {
            s // 8: functools.partial(fit, width, batch, functools.partial(bnn.MeanField, draws=s // 8))
            for s in config.draws
        },
        "draws": {s: functools.partial(predicting, config, s) for s in config.draws},
        "members": {k: functools.partial(fit, width, batch, functools.partial(ensemble, k)) for k in config.members},
        "ranks": {k: functools.partial(sending, k) for k in config.ranks},
    }


def ensemble(members: int, **training: Any) -> bnn.Ensemble:
    return bnn.Ensemble(members=members, of=bnn.MAP(**training))


#: What an axis counts, and what each point of it is the cost of.
MEANING = {
    "parameters": ("weights of the network", "a step of mean-field VI"),
    "rows": ("rows of a step", "a step of mean-field VI"),
    "weight draws": ("draws of the weights in a step", "a step of mean-field VI"),
    "draws": ("draws of a prediction", "a prediction"),
    "members": ("members", "a step of an ensemble"),
    "ranks": ("ranks less one", "what all ranks send a step"),
}


def slope(x: Sequence[float], y: Sequence[float]) -> dict[str, float | None]:
    """Of log y over log x by least squares, and its standard error (None for two points, which any line meets)."""
    a, b = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    centred = a - a.mean()
    found = float(centred @ b / (centred @ centred))
    left = b - b.mean() - found * centred
    error = float(np.sqrt(left @ left / (len(a) - 2) / (centred @ centred))) if len(a) > 2 else None
    return {"slope": found, "slope_se": error}


def exponents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row an axis: of seconds and of bytes, over all sizes and over the upper half."""
    found = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        line: dict[str, Any] = {"axis": axis, "over": MEANING[axis][0], "cost": MEANING[axis][1]}
        for key in ("seconds", "bytes"):
            own = [row for row in rows if row["axis"] == axis and key in row]
            for name, part in (("", own), ("_upper", own[len(own) // 2 :] if len(own) > 3 else [])):
                if len(part) > 1:
                    fitted = slope([row["size"] for row in part], [row[key] for row in part])
                    line |= {key + name + end: fitted[f"slope{end}"] for end in ("", "_se")}
        found.append(line)
    return found


def draw(rows: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> Figure:
    """An axis a column: seconds above, bytes below, on logarithmic axes; the line through all sizes."""
    axes = [line["axis"] for line in lines]
    figure = Figure(figsize=(2.6 * len(axes), 5.2), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False)
    for column, line in zip(panels.T, lines, strict=True):
        for ax, (key, unit) in zip(column, {"seconds": (1e3, "ms"), "bytes": (1e-6, "MB")}.items(), strict=True):
            own = [row for row in rows if row["axis"] == line["axis"] and key in row]
            if not own:
                ax.set_axis_off()
                continue
            size, value = (np.array([row[k] for row in own], dtype=float) for k in ("size", key))
            middle = np.exp(np.log(size).mean()), np.exp(np.log(value * unit[0]).mean())
            ax.loglog(size, value * unit[0], "o", ms=4, color=style.BLUE)
            ax.loglog(size, middle[1] * (size / middle[0]) ** line[key], "-", lw=1, color=style.GREY)
            upper = f", upper half {line[f'{key}_upper']:.2f}" if f"{key}_upper" in line else ""
            ax.set_title(f"{line['cost']}:\nexponent {line[key]:.2f}{upper}", fontsize=8)
            ax.set(xlabel=line["over"], ylabel=unit[1])
            for axis, shown, words in ((ax.xaxis, size, EngFormatter(sep="")), (ax.yaxis, value, "{x:g}")):
                far = shown.max() > 100 * shown.min()
                axis.set_major_locator(LogLocator(subs=(1.0,) if far else (1.0, 3.0)))
                axis.set_major_formatter(words)
                axis.set_minor_formatter(NullFormatter())
    return figure


@experiment(Config(), quick=QUICK)
def main(study: Study[Config]) -> None:
    config, rows = study.config, []
    for axis, sizes in points(config).items():
        for size, work in sizes.items() if axis in config.axes else ():
            found = study.unit(f"{axis.replace(' ', '-')}-{size}", work)
            counted = {"parameters": found.get("parameters"), "ranks": size - 1}.get(axis, size)
            rows.append({"axis": axis, **found, "size": counted})
    lines = exponents(rows)
    study.figure("scaling", draw(rows, lines))
    headings = {
        "over": ("grows", ""),
        "cost": ("cost of", ""),
        "seconds": ("seconds: exponent", ".2f"),
        "seconds_upper": ("upper half", ".2f"),
        "bytes": ("bytes: exponent", ".2f"),
        "bytes_upper": ("upper half", ".2f"),
    }
    each = {"axis": ("axis", ""), "size": ("size", ",d"), "seconds": ("seconds", ".2e"), "bytes": ("bytes", ",.0f")}
    tables = [Table("exponents", headings, lines, "± one standard error of the slope."), Table("points", each, rows)]
    without = (
        "" if config.ranks and "ranks" in config.axes else " Ranks were left out: no processes were to be started."
    )
    text = f"Network {config.inputs}-{config.width}-{config.width}-1 and {config.batch} rows where these do not vary."
    study.finish({"points": rows, "exponents": lines}, tables, text + without)


if __name__ == "__main__":
    main()
