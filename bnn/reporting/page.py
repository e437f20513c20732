"""From a posterior to a page."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from bnn.analysis import Verdict, compare, diagnose, paired
from bnn.plots.style import percent
from bnn.posterior import Posterior
from bnn.reporting import case_part, model_part, value_part
from bnn.reporting.baseline import Baseline, baseline
from bnn.reporting.blocks import Section, Text
from bnn.reporting.subject import OwnUnits, Subject, subject_of


def report(
    posterior: Posterior | Mapping[str, Posterior],
    data: tuple[Any, Any],
    path: str | Path,
    *,
    held_out: tuple[Any, Any] | None = None,
    title: str = "Report of a Bayesian neural network",
    target: str = "y",
    columns: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    command: str | None = None,
    level: float = 0.9,
    seed: int = 0,
    units: OwnUnits | None = None,
) -> Path:
    """Write one HTML page about a fit, which needs nothing but a browser: no network, no other file.

    Data and model, training, whether the inference can be trusted, scores with standard errors beside a baseline,
    calibration, the rows of the largest uncertainty and of the largest surprise, a comparison where there are several
    posteriors, and how to make it again. All names and values are shown as text, whatever they hold.

    Args:
        posterior: What the report is about; or several by name, ``{name: posterior}``, of the same data: it is about
            the first, and compares all.
        data: ``(x, y)``, the training rows: arrays, tensors, or for x a data frame, whose column names are shown.
        path: The file. It appears whole or not at all; one that is there is replaced.
        held_out: ``(x, y)`` that were not fitted, on which the predictions are scored. Without it they are scored on
            the training rows, and the report says so.
        title: Of the page.
        target: Name and unit of the target.
        columns: Names of the columns of x; those of a data frame if not given.
        classes: Names of the classes, in the order of their numbers.
        command: What made the fit, for the record; shown as it is.
        level: Of the intervals.
        seed: Of all draws for the report.
        units: How the reader knows the numbers, where `data` are standardised; `bnn report` gives it.

    Returns:
        The path.

    Raises:
        ValueError: Data that do not fit the model, as many names as there are not columns or classes; no posterior.
        FileNotFoundError: The folder is not there.
    """
    several = dict(posterior) if isinstance(posterior, Mapping) else {}
    if isinstance(posterior, Mapping) and not several:
        raise ValueError("there is no posterior to report on")
    main = next(iter(several.values())) if isinstance(posterior, Mapping) else posterior
    place = Path(path)
    if not place.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {place.parent} to write the report to")
    subject = subject_of(
        main, data, held_out, columns=columns, classes=classes, target=target, level=level, seed=seed, units=units,
    )  # fmt: skip
    sections = _sections(subject, several, command)
    _write(place, _page(str(title), sections))
    return place


def _sections(subject: Subject, several: Mapping[str, Posterior], command: str | None) -> list[Section]:
    rows = subject.train
    held_out = None if subject.held_out is None else (subject.known_fitted.x, subject.known_fitted.y)
    verdict = diagnose(subject.posterior, rows.x, rows.y, held_out=held_out, seed=subject.seed)
    base = baseline(subject)
    sections = [
        _in_short(subject, verdict, base),
        value_part.scores(subject, base),
        value_part.calibration(subject),
        case_part.cases(subject),
        model_part.trust(subject, verdict),
    ]
    if len(several) > 1:
        found = compare(several, (subject.judged.x, subject.judged.y), seed=subject.seed)
        sections.append(value_part.comparison(found))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [
        *sections,
        model_part.training(subject),
        model_part.data(subject),
        model_part.model(subject),
        value_part.again(subject, command, made),
    ]


def _in_short(subject: Subject, verdict: Verdict, base: Baseline | str) -> Section:
    """The answers, in one sentence each."""
    section = Section("short", "In short")
    if subject.held_out is None:
        said = "Warning: no held-out rows were given. All scores are of the training rows, and too good."
        section.blocks.append(Text(said, "bad"))
    section.blocks.append(_trusted(verdict))
    section.blocks += _against(subject, base)
    rows = f"{len(subject.known):,} {subject.where}"
    if "coverage" in subject.scores:
        found = subject.scores["coverage"]
        said = f"Of {rows} targets, {percent(found.mean)} lie in their {percent(subject.level)} interval"
        section.blocks.append(Text(f"{said} (standard error {percent(found.standard_error)})."))
    if "accuracy" in subject.scores:
        right, error = subject.scores["accuracy"], subject.scores["ece"]
        said = f"Of {rows} labels, {percent(right.mean)} are predicted rightly; stated and true probabilities are "
        section.blocks.append(Text(f"{said}{percent(error.mean)} apart."))
    return section


def _trusted(verdict: Verdict) -> Text:
    if verdict.good and not verdict.judged:
        said = "Inference: no objection to what could be asked. It could not be asked whether a few fitted networks"
        return Text(f"{said} stand for the posterior: they may agree more than they should, and be too sure.")
    if verdict.good:
        return Text("Inference: no objection was found.", "good")
    if set(verdict.names) == {"poor_approximation"}:
        said = "Inference: no objection but that of k-hat, which objects to nearly every approximation of a network."
        return Text(f"{said} See below.")
    names = ", ".join(dict.fromkeys(name.replace("_", " ") for name in verdict.names))
    return Text(f"Inference: {names}; see below what it means.", "bad")


def _against(subject: Subject, base: Baseline | str) -> list[Text]:
    """The score that a reader knows best, against the baseline's."""
    if isinstance(base, str):
        return []
    name = next((name for name in ("log_density", "rmse") if name in base.scores and name in subject.scores), None)
    if name is None:
        return []
    title, better, _ = value_part.SCORES[name]
    apart = paired(subject.scores[name], base.scores[name])
    gain = apart.mean if better == "higher" else -apart.mean
    clear = abs(gain) > 1.96 * apart.standard_error
    said = ("better than" if gain > 0 else "worse than") if clear else "not told apart from"
    numbers = f"{apart.mean:+.3g} ± {apart.standard_error:.2g}".replace("-", "−")
    tone = ("good" if gain > 0 else "bad") if clear else "plain"
    return [Text(f"Predictions: {said} {base.title} ({title} {numbers}; {better} is better).", tone)]


def _page(title: str, sections: Sequence[Section]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    frame, style, script = (
        files("bnn.reporting").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "page.js")
    )
    # The page's own script is the only one that a browser may run on it.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    return environment.from_string(frame).render(
        title=title, sections=sections, digest=digest, style=Markup(style), script=Markup(script)
    )


def _write(path: Path, page: str) -> None:
    """Beside its place, and renamed: whoever opens the file sees all of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(page, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
