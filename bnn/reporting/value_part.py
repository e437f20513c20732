"""The later parts of a report: scores beside a baseline, calibration, single cases, comparison, how to repeat it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bnn import plots
from bnn.analysis import Comparison, Estimate, coverage_by_level, paired
from bnn.files import versions
from bnn.plots.style import percent
from bnn.reporting.baseline import Baseline
from bnn.reporting.blocks import Cell, Listing, Section, Table, Text, cell, picture, plain
from bnn.reporting.subject import Subject

#: What a score is called, which way is better, and what it says.
SCORES = {
    "log_density": ("log-density", "higher", "how probable the targets were, in nats a row"),
    "accuracy": ("accuracy", "higher", "share of rows whose most probable class is right"),
    "nll": ("negative log-likelihood", "lower", "minus the log-density"),
    "brier": ("Brier score", "lower", "squared distance of the probabilities from the label"),
    "ece": ("calibration error", "lower", "distance of stated from observed shares (bins of equal width)"),
    "ece_mass": ("calibration error, equal mass", "lower", "the same in bins of equally many rows"),
    "ece_classwise": ("calibration error by class", "lower", "the same for each class, averaged"),
    "ece_adaptive": ("calibration error by class, equal mass", "lower", "the same in bins of equally many rows"),
    "entropy": ("entropy", "", "how undecided the predictions are, in nats"),
    "rmse": ("root mean squared error", "lower", "typical error of the mean, in the units of the target"),
    "mae": ("mean absolute error", "lower", "average error of the mean, in the units of the target"),
    "crps": ("CRPS", "lower", "distance of the whole predicted distribution from the target"),
    "interval_score": ("interval score", "lower", "width of the intervals, with a fine for each miss"),
    "coverage": ("coverage", "its level", "share of targets inside their interval"),
    "sharpness": ("sharpness", "", "mean width of the intervals"),
}
#: Classes of which a table can still be read.
_CLASSES = 15
_PACKAGES = ("scikit-learn", "matplotlib", "arviz-stats", "xarray", "scipy")


def scores(subject: Subject, base: Baseline | str) -> Section:
    """Every score with its error, beside the baseline."""
    section = Section("scores", "How good are the predictions?")
    section.blocks.append(Text(_of_which(subject)))
    known = base.scores if isinstance(base, Baseline) else {}
    rows = []
    for name, value in subject.scores.items():
        title, better, says = SCORES.get(name, (name.replace("_", " "), "", ""))
        row = [Cell(title, title), with_error(value), cell(better)]
        if known:
            other = known.get(name)
            apart = None if other is None else paired(value, other)
            row += [cell("–") if other is None else with_error(other)]
            row += [cell("–") if apart is None else with_error(apart, signed=True)]
        rows.append([*row, cell(says)])
    head = ["score", "this model", "better is"]
    head += [base.title, "difference"] if isinstance(base, Baseline) and known else []
    caption = f"Scores of {len(subject.known):,} {subject.where} rows, each ± its standard error"
    section.blocks.append(Table(caption, [*head, "what it says"], rows))
    if isinstance(base, Baseline):
        said = f"Baseline: {base.how}. Differences are taken row by row, so that what makes a row hard drops out."
        section.blocks.append(Text(said, "small"))
    else:
        section.blocks.append(Text(f"No baseline: {base}.", "small"))
    return section


def _of_which(subject: Subject) -> str:
    if subject.held_out is None:
        return "No held-out rows were given: these scores are of the rows that the model was fitted to, and too good."
    return "Of rows that the model was not fitted to."


def with_error(value: Estimate, *, signed: bool = False) -> Cell:
    """A score ± its standard error."""
    text = f"{value.mean:+.3g}" if signed else f"{value.mean:.4g}"
    # None: a single row, or a score that is the same in every row but for rounding.
    error = f" ± {value.standard_error:.2g}" if value.standard_error > 1e-9 * abs(value.mean) else ""
    return Cell(f"{text}{error}".replace("-", "−"), value.mean)


def calibration(subject: Subject) -> Section:
    """Whether stated probabilities come true."""
    section = Section("calibration", "Do the stated probabilities come true?")
    prediction, y = subject.prediction, subject.known.y
    if "quantile" in subject.fields:
        found = coverage_by_level(prediction, y, seed=subject.seed)
        rows = [[Cell(percent(level), level), with_error(value)] for level, value in found.items()]
        head = ["level of the interval", "share of targets inside"]
        section.blocks.append(Table(f"Coverage by level, {len(subject.known):,} {subject.where} rows", head, rows))
        at = "; ".join(f"{percent(value.mean)} in the {percent(level)} interval" for level, value in found.items())
        drawn = plots.interval_calibration(prediction, y)
        section.blocks.append(picture(drawn, f"Coverage by level: {at}.", "Intervals: stated and true coverage"))
        said = "Histogram of the places of the targets within their predicted distributions."
        section.blocks.append(picture(plots.pit_histogram(prediction, y), said, "Where the targets lie"))
    if "probs" in subject.fields:
        said = f"Accuracy against stated probability; calibration error {percent(subject.scores['ece'].mean)}."
        section.blocks.append(picture(plots.reliability(prediction, y), said, "Classes: stated and true probability"))
    if subject.one_label and (drawn := _confusion(subject)) is not None:
        said = f"Predicted against true classes; accuracy {percent(subject.scores['accuracy'].mean)}."
        section.blocks.append(picture(drawn, said, "What is taken for what, and how certainly"))
    if not section.blocks:
        section.blocks.append(Text("This kind of target has no intervals or probabilities that could be checked."))
    return section


def _confusion(subject: Subject) -> Any:
    k = subject.prediction.probs.shape[-1] if subject.prediction.likelihood.labels else 2
    if k > _CLASSES:
        return None
    return plots.confusion(
        subject.prediction, subject.known.y, names=[plain(subject.class_name(i)[:20]) for i in range(k)]
    )


def comparison(found: Comparison) -> Section:
    """Several posteriors on the same rows."""
    kind = {"coverage": "in 90 %", "ece": "calibration error", "": ""}[found.calibration]
    head = ["posterior", "log-density a row", "against the best", "weight in the best mixture", "seconds", kind]
    rows = []
    for name, row in found.rows.items():
        apart = cell("the best") if name == found.best else with_error(row.difference, signed=True)
        cells = [cell(name), with_error(row.log_density), Cell(apart.text, row.difference.mean)]
        cells += [cell(found.stacking[name], ".2f"), cell(row.seconds, ".1f")]
        rows.append(cells + ([with_error(row.calibration)] if row.calibration is not None else []))
    width = max(map(len, rows))
    table = Table("Posteriors, the best first", head[:width], rows)
    said = f"Intervals of the differences from the best posterior, {found.best}."
    section = Section("comparison", "Which of the methods?", [table])
    shown = replace(  # dollar signs in names are no formulas
        found,
        rows={plain(name): row for name, row in found.rows.items()},
        stacking={plain(name): weight for name, weight in found.stacking.items()},
    )
    section.blocks.append(picture(plots.comparison(shown), said, "How far each is below the best"))
    return section


def again(subject: Subject, command: str | None, made: str) -> Section:
    """Versions, seed, settings, command."""
    settings = subject.posterior.settings
    found = {"Python": platform.python_version(), **versions(), **{name: _version(name) for name in _PACKAGES}}
    rows = [[cell(name), cell(text)] for name, text in found.items()]
    rows.append([cell("system"), cell(f"{platform.system()} {platform.machine()}")])
    section = Section("again", "How to make it again")
    seed = settings.get("seed")
    said = f"Seed of the fit: {'unknown' if seed is None else seed}; of the draws in this report: {subject.seed}. "
    section.blocks.append(Text(said + f"Report made {made}."))
    if command:
        section.blocks.append(Listing(command, "Command"))
    section.blocks.append(Listing(_json(settings), "Settings of the fit"))
    section.blocks.append(Table("Versions of this report's libraries", ["what", "version"], rows))
    return section


def _json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False, default=str)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"
