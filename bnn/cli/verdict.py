"""What is said of a run: scores beside rivals, calibration, what is wrong with the inference, and what to do next."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bnn.analysis import Estimate, class_probs, paired
from bnn.cli.output import finite
from bnn.cli.rivals import Rival
from bnn.prediction import Prediction

#: Scores that a table shows, and what they are called there; the first two that there are.
_SHOWN = {"rmse": "RMSE", "accuracy": "accuracy", "log_density": "log-density", "crps": "CRPS", "ece": "ECE"}
#: Of intervals in which chance leaves a figure.
_CHANCE = 0.95
_REPLICATES = 400
_BINS = 10
_WIDTH = 100
#: Of one objection to the inference, so many are shown.
_FINDINGS = 2
_POINTS = (
    "It could not be asked whether a few fitted networks stand for the posterior: they may agree more than they "
    "should, and then epistemic uncertainty is understated (--method laplace or nuts says more of it)"
)


@dataclass(frozen=True)
class Calibration:
    """Whether stated probabilities come true, against what chance leaves of it."""

    #: ``"coverage"`` or ``"ece"``.
    kind: str
    value: float
    #: Where the figure of a calibrated model of these rows lies, 95 times out of 100.
    low: float
    high: float
    rows: int
    level: float | None = None

    @property
    def good(self) -> bool:
        """Whether it is there."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        if self.kind == "coverage":
            inside = round(self.value * self.rows)
            said = f"{inside} of {self.rows} targets ({self.value:.0%}) lie in their {self.level:.0%} interval"
            band = f"of a calibrated model {self.low:.0%} to {self.high:.0%} would, 95 times out of 100"
        else:
            said = f"stated probabilities are {self.value:.1%} off the shares of right answers (ECE)"
            band = f"of a calibrated model up to {self.high:.1%} would be chance, 95 times out of 100"
        return f"{said}; {band}: {self.meaning}."

    @property
    def meaning(self) -> str:
        """In a few words."""
        if self.good:
            return "no objection"
        if self.kind == "ece":
            return "the probabilities are not to be taken at their word"
        return "the intervals are too narrow" if self.value < self.low else "the intervals are wider than they need be"

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        band = [finite(self.low), finite(self.high)]
        return {"kind": self.kind, "value": finite(self.value), "band": band, "rows": self.rows, "level": self.level,
                "good": self.good}  # fmt: skip


def calibration(
    prediction: Prediction, y: Tensor, found: dict[str, Estimate], level: float, seed: int
) -> Calibration | None:
    """Coverage within its binomial band, or the calibration error beside what chance makes of it; None: neither."""
    n = len(y)
    if "coverage" in found:
        from scipy.stats import binom

        low, high = binom.interval(_CHANCE, n, level)
        high = n if prediction.discrete else high  # an interval of a count holds at least its level
        return Calibration("coverage", found["coverage"].mean, float(low) / n, float(high) / n, n, level)
    if "ece" in found:
        chance = chance_of_ece(class_probs(prediction).detach().double().cpu().numpy(), seed)
        return Calibration("ece", found["ece"].mean, 0.0, float(np.quantile(chance, _CHANCE)), n)
    return None


def chance_of_ece(probs: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Expected calibration errors (ten bins of equal width) of labels that are drawn from the probabilities themselves.

    Args:
        probs: ``(n, k)``.
        seed: Of the labels.
    """
    top = probs.max(axis=1)
    bins = np.clip(np.ceil(top * _BINS).astype(int) - 1, 0, _BINS - 1)
    # A label is the predicted class with the probability that is stated for it, whatever the others have.
    hits = np.random.default_rng(seed).random((_REPLICATES, len(top))) < top
    gaps = np.zeros((_REPLICATES, _BINS))
    for b in range(_BINS):
        gaps[:, b] = np.abs((top - hits)[:, bins == b].sum(axis=1))
    found: NDArray[np.float64] = gaps.sum(axis=1) / len(top)
    return found


@dataclass
class Verdict:
    """All that is said of a run."""

    run: str
    target: str
    #: What was fitted, in words.
    fitted: str
    #: Which rows the scores are of.
    where: str
    model: Rival
    rivals: list[Rival]
    calibration: Calibration | None
    #: What the diagnosis found, or that nothing was found.
    inference: list[str]
    warnings: list[str]
    held_out: bool
    good_inference: bool = True
    #: Rivals that there are not, and why.
    missing: list[str] = field(default_factory=list)

    @property
    def against(self) -> list[tuple[Rival, str, Estimate]]:
        """Each rival, the name of the score that decides, and how much better (positive) the run is."""
        found: list[tuple[Rival, str, Estimate]] = []
        for rival in self.rivals:
            name = next((n for n in ("log_density", "rmse") if n in rival.scores and n in self.model.scores), None)
            if name is not None:
                apart = paired(self.model.scores[name], rival.scores[name])
                found.append((rival, name, apart if name == "log_density" else negative(apart)))
        return found

    def lines(self) -> list[str]:
        """The verdict as text."""
        lines = [*_wrapped(self.fitted.splitlines()), ""]
        lines += table(f"Scores of {self.where}", [self.model, *self.rivals])
        lines += [""] if self.rivals else []
        lines += _wrapped([f"{said}." for said in self._compared()])
        lines += _wrapped(self.missing)
        if self.calibration is not None:
            lines += ["", *_wrapped([f"Calibration: {self.calibration}"])]
        lines += ["", *_wrapped(self.inference)] if self.inference else []
        if self.warnings:
            lines += ["", "Warnings:", *_bullets(self.warnings)]
        return [*lines, "", "Next:", *_bullets(self.next())]

    def _compared(self) -> list[str]:
        said = []
        for rival, name, gain in self.against:
            how = f"{_SHOWN[name]} {'better' if gain.mean > 0 else 'worse'}"
            how += f" by {shown(replace(gain, mean=abs(gain.mean)))}"
            how += " a row" if name == "log_density" else ""
            clear = abs(gain.mean) > 1.96 * gain.standard_error
            said.append(f"Against {rival.title}: {how}" + ("" if clear else ", which may be chance"))
        return said

    def next(self) -> list[str]:
        """What to do now."""
        said = []
        lost = [rival.title for rival, _, gain in self.against if gain.mean < -1.96 * gain.standard_error]
        if not self.held_out:
            said.append("these scores are of the rows that were fitted, and too good: --test-share gives honest ones")
        if lost:
            said.append(
                f"{' and '.join(lost)} predict{'s' * (len(lost) == 1)} better: use that, or try another "
                "--method, --hidden or --prior"
            )
        elif any(
            gain.mean < 1.96 * gain.standard_error for rival, _, gain in self.against if "regression" in rival.title
        ):
            said.append(
                "a linear model does as well as far as these rows can tell: more rows may tell, or it is enough"
            )
        if self.calibration is not None and not self.calibration.good:
            other = "nuts or ensemble" if self.calibration.kind == "coverage" else "ensemble"
            said.append(
                f"{self.calibration.meaning}: try --method {other}, or recalibrate on rows of their own "
                "(bnn.analysis.fit_widening, fit_temperature)"
            )
        if not self.good_inference:
            said.append("see under “Can the inference be trusted?” in the report what the objection means")
        said.append(f"bnn predict {self.run} new.csv --out predictions.csv")
        said.append(f"bnn report {self.run}")
        return said

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "scores": {rival.title: scores_json(rival.scores) for rival in (self.model, *self.rivals)},
            "scores_of": self.where,
            "held_out": self.held_out,
            "better_than": {
                rival.title: {"score": name, "by": finite(gain.mean), "standard_error": finite(gain.standard_error)}
                for rival, name, gain in self.against
            },
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "inference": self.inference,
            "warnings": self.warnings,
            "next": self.next(),
        }


def negative(value: Estimate) -> Estimate:
    """An estimate with the other sign."""
    return Estimate(-value.mean, value.standard_error, -value.rows)


def scores_json(found: dict[str, Estimate]) -> dict[str, Any]:
    """Scores as JSON; what is not finite is null."""
    return {
        name: {"mean": finite(value.mean), "standard_error": finite(value.standard_error)}
        for name, value in found.items()
    }


def table(caption: str, rivals: Sequence[Rival]) -> list[str]:
    """Aligned lines: the caption and the scores' names, then a line each."""
    names = [name for name in _SHOWN if name in rivals[0].scores][:4]
    cells = [[caption, *(_SHOWN[name] for name in names)]]
    for rival in rivals:
        cells.append(["  " + rival.title, *(shown(rival.scores.get(name)) for name in names)])
    widths = [max(len(row[i]) for row in cells) for i in range(len(names) + 1)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def shown(value: Estimate | None) -> str:
    """A score ± its standard error, to the digits that the error leaves."""
    if value is None:
        return "–"
    error = value.standard_error
    if not error > 1e-9 * abs(value.mean) or not np.isfinite(error):
        return f"{value.mean:.4g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value.mean:.{digits}f} ± {error:.{digits}f}" if digits < 8 else f"{value.mean:.4g} ± {error:.2g}"


def _wrapped(lines: Sequence[str]) -> list[str]:
    return [
        part for line in lines for part in textwrap.wrap(line, _WIDTH, break_long_words=False, break_on_hyphens=False)
    ]


def _bullets(lines: Sequence[str]) -> list[str]:
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    ]


def diagnosed(
    posterior: Any, train: tuple[Any, Any], held_out: tuple[Any, Any] | None, seed: int
) -> tuple[list[str], bool]:
    """What `bnn.analysis.diagnose` says, a line a flag, and whether there is no objection to be taken seriously."""
    from bnn.analysis import diagnose

    found = diagnose(posterior, *train, held_out=held_out, seed=seed)
    serious = [flag for flag in found.flags if flag.name != "poor_approximation"]
    if not serious:
        but = "" if found.good else " but that of k-hat, which objects to nearly every approximation of a network"
        if not found.judged:
            but = f" to what could be asked. {_POINTS}"
        return [f"Inference: no objection{but}."], True
    return [
        f"Inference: {flag.name.replace('_', ' ')}: {_shortened(flag.found)}. "
        f"{flag.meaning.split('. ')[0].rstrip('.')}."
        for flag in serious
    ], False


def _shortened(found: str) -> str:
    """The first of many findings; the report has all."""
    parts = found.split("; ")
    more = len(parts) - _FINDINGS
    return found if more <= 0 else f"{'; '.join(parts[:_FINDINGS])}; and {more} more, see the report"
