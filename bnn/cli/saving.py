"""What a run folder holds beside the estimator, and how it gets its name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bnn.cli import folder as at
from bnn.cli.folder import Place
from bnn.cli.output import Output, muted
from bnn.cli.rows import Data
from bnn.cli.settings import Settings
from bnn.cli.verdict import Verdict
from bnn.files import add_file

#: Numbers of the largest ArviZ tree: draws times rows.
_TREE = 20_000_000


def type_of(model: Any) -> str:
    """The method that ran."""
    return str(model.posterior_.settings.get("method", model.posterior_.approximation.kind))


def save(model: Any, verdict: Verdict, settings: Settings, data: Data, place: Place, output: Output) -> dict[str, Any]:
    """Write the run into a folder inside the unfinished one, which then takes the run's name.

    Returns:
        What ``--json`` prints.
    """
    new = place.part / "run"
    posterior = model.posterior_
    document = {
        "run": str(place.out),
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
    if settings.arviz and (tree := _tree(model, settings, data, place, output)) is not None:
        add_file(new, at.TREE, tree)
    place.finish(new)
    return document


def _tree(model: Any, settings: Settings, data: Data, place: Place, output: Output) -> bytes | None:
    """The ArviZ tree as netCDF; None where it would be too large."""
    posterior = model.posterior_
    rows = data.everything if settings.refit or not len(data.held_out) else data.train
    if len(rows) * (posterior.num_draws or 1000) > _TREE:
        output.note("The ArviZ tree would be too large: left out (posterior.to_arviz makes one of fewer rows).")
        return None
    path = place.part / at.TREE
    with muted():
        tree = posterior.to_arviz(model.encode_inputs(rows.x), model.encode_targets(rows.y))
        tree.to_netcdf(path, engine="h5netcdf")
    return path.read_bytes()


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
