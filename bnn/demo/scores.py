"""The scores of the demonstration, as a table, and what they say."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from bnn.analysis import accuracy, expected_calibration_error, interval_coverage, log_density, paired, rmse
from bnn.demo.problems import Problem
from bnn.inference import Method
from bnn.posterior import Posterior
from bnn.prediction import Prediction

_LEVEL = 0.9
_BINS = 10


@dataclass(frozen=True)
class Fit:
    """One method on one data set, and its predictions of the test rows."""

    problem: Problem
    label: str
    method: Method
    posterior: Posterior
    prediction: Prediction


@dataclass(frozen=True)
class Score:
    """One line of the table. RMSE and coverage are of regressions, accuracy and ECE of classifications."""

    data_set: str
    method: str
    rows: int
    log_density: float
    log_density_standard_error: float
    seconds: float
    rmse: float | None = None
    coverage: float | None = None
    accuracy: float | None = None
    ece: float | None = None


def score(made: Fit) -> Score:
    """A fit on its test rows."""
    prediction, y = made.prediction, made.problem.test[1]
    density = log_density(prediction, y)
    seconds = made.posterior.history.seconds
    common = (made.problem.name, made.label, len(y), density.mean, density.standard_error, seconds)
    if made.problem.regression:
        return Score(*common, rmse=rmse(prediction, y).mean, coverage=interval_coverage(prediction, y, _LEVEL).mean)
    ece = expected_calibration_error(prediction, y, _BINS).mean
    return Score(*common, accuracy=accuracy(prediction, y).mean, ece=ece)


def table(scores: Sequence[Score]) -> list[str]:
    """Aligned lines of text, a header first."""
    rows = [("data set", "method", "error", "log-density", "calibration", "seconds")]
    for i, row in enumerate(scores):
        again = i > 0 and scores[i - 1].data_set == row.data_set
        rows.append(
            (
                "" if again else f"{row.data_set} ({row.rows} test rows)",
                row.method,
                f"RMSE {row.rmse:.1f}" if row.rmse is not None else f"accuracy {_percent(row.accuracy)}",
                f"{row.log_density:.3f} ± {row.log_density_standard_error:.3f}",
                f"coverage {_percent(row.coverage)}" if row.coverage is not None else f"ECE {_percent(row.ece)}",
                f"{row.seconds:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=False)), row[-1].rjust(widths[-1])])
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def how_to_read() -> list[str]:
    """What the columns mean."""
    level = f"{100 * _LEVEL:.0f} %"
    return [
        "How to read it (scores are of test rows, which no fit has seen):",
        "RMSE         typical error, in the target's own units; smaller is better",
        "accuracy     share of rows whose more probable class is the right one; larger is better",
        "log-density  mean over rows of log p(y | x), in nats, ± its standard error; larger is better",
        f"coverage     share of rows inside their {level} interval; {level} is right, up to chance",
        "ECE          gap between stated probability and share of right answers; 0 is right, up to chance",
    ]


def closing_sentence(fits: Sequence[Fit]) -> list[str]:
    """What the table shows, worked out from the differences row by row between the second method and the first."""
    verdicts = []
    for first, second in zip(fits[::2], fits[1::2], strict=True):
        y = first.problem.test[1]
        gain = paired(log_density(second.prediction, y), log_density(first.prediction, y))
        clear = abs(gain.mean) > 2 * gain.standard_error
        how = ("more likely" if gain.mean > 0 else "less likely") if clear else "about as likely"
        verdicts.append(f"the test rows of {first.problem.name} {how} ({gain:+.3f} nats a row)")
    regression = next(made for made in fits[1::2] if made.problem.regression)
    variance = regression.prediction.variance
    share = (variance.epistemic.mean() / variance.total.mean()).item()
    sentence = (
        "What it shows: next to the single best weights of MAP, averaging over many plausible weights (mean-field VI) "
        f"makes {' and '.join(verdicts)}, and it alone says how much of its uncertainty more data would "
        f"remove: {_percent(share)} of the predictive variance on {regression.problem.name}."
    )
    return textwrap.wrap(sentence, width=100, break_on_hyphens=False)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
