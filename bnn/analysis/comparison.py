"""Which of several posteriors? Log-densities of the same rows with paired errors, calibration, cost, weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from bnn.analysis.classification import expected_calibration_error
from bnn.analysis.estimate import Estimate, estimate, paired
from bnn.analysis.loo import loo
from bnn.analysis.regression import coverage_by_level
from bnn.analysis.stacking import bma_weights, pseudo_bma_weights, stacking_weights
from bnn.posterior import Posterior
from bnn.prediction import Prediction

By = Literal["held_out", "loo"]

#: The level of the intervals whose coverage is shown.
_LEVEL = 0.9


@dataclass(frozen=True)
class Compared:
    """One posterior among others."""

    #: Mean log-density of a row, with its rows and standard error.
    log_density: Estimate
    #: How much larger than that of the best, row by row: 0 for the best itself, negative for the others.
    difference: Estimate
    #: Share of targets inside their 90 % interval (numbers), or expected calibration error (labels); None where
    #: neither applies.
    calibration: Estimate | None
    #: Seconds that the fit took.
    seconds: float
    #: Share of rows of which leave-one-out is not to be trusted; None for held-out rows.
    bad: float | None


@dataclass(frozen=True)
class Comparison:
    """Several posteriors on the same rows, the best first. ``str()`` is a table."""

    rows: dict[str, Compared]
    #: What the log-densities are: of held-out rows, or leave-one-out.
    by: By
    #: What `Compared.calibration` is: ``"coverage"``, ``"ece"`` or ``""``.
    calibration: str
    #: Of the mixture with the best log-density: for `bnn.stack`.
    stacking: dict[str, float]
    #: From expected log-densities and their uncertainty.
    pseudo_bma: dict[str, float]
    #: From the evidence; None where one of the posteriors has none.
    bma: dict[str, float] | None

    @property
    def best(self) -> str:
        """The name with the largest log-density."""
        return next(iter(self.rows))

    def __str__(self) -> str:
        titles = {"coverage": f"in {_LEVEL:.0%}", "ece": "ece", "": ""}
        head = ["", "log-density a row", "against the best", titles[self.calibration], "stacking", "pseudo-BMA+"]
        head += ["BMA"] * (self.bma is not None) + ["seconds"] + ["bad k"] * (self.by == "loo")
        lines = [head]
        for name, row in self.rows.items():
            best = name == self.best
            cells = [name, f"{row.log_density:.3f}", "" if best else f"{row.difference:.3f}"]
            cells += ["" if row.calibration is None else f"{row.calibration.mean:.3f}"]
            cells += [f"{self.stacking[name]:.2f}", f"{self.pseudo_bma[name]:.2f}"]
            cells += [] if self.bma is None else [f"{self.bma[name]:.2f}"]
            cells += [f"{row.seconds:.1f}"] + ([] if row.bad is None else [f"{row.bad:.0%}"])
            lines.append(cells)
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )


def compare(
    posteriors: Mapping[str, Posterior],
    data: tuple[Any, Any],
    *,
    by: By = "held_out",
    draws: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare posteriors of the same targets, of any methods, networks and likelihoods.

    Differences are paired row by row, so that what makes a row hard for all drops out (Vehtari, Gelman and Gabry 2017).
    A difference below some two of its standard errors, or below four nats in all, decides nothing (Sivula et al. 2020,
    arXiv:2008.10296).

    Args:
        posteriors: ``{name: posterior}``.
        data: ``(x, y)``: rows that none was fitted to; with ``by="loo"`` the training rows of all.
        by: ``"held_out"``: log p(y | x, data) of new rows. ``"loo"``: of each training row given the others, from the
            draws of the one fit (`bnn.analysis.loo`, with its demands); calibration is then in-sample.
        draws: Of each continuous posterior; ``None``: 200, with ``by="loo"`` 1,000.
        seed: Of the draws.

    Raises:
        ValueError: No posterior; targets that do not fit one of them, with its name.
    """
    if not posteriors:
        raise ValueError("there is no posterior to compare")
    if by not in ("held_out", "loo"):
        raise ValueError(f"by is 'held_out' or 'loo', not {by!r}")
    x, y = data
    densities: dict[str, Estimate] = {}
    calibrations: dict[str, tuple[str, Estimate | None]] = {}
    bad: dict[str, float | None] = {}
    for name, posterior in posteriors.items():
        try:
            finite = posterior.num_draws is not None
            prediction = posterior.predict(x, None if finite else draws, seed)
            values, bad[name] = _log_densities(posterior, prediction, data, by, None if finite else draws, seed)
            densities[name], calibrations[name] = estimate(values), _calibration(prediction, y, seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    order = sorted(densities, key=lambda name: -densities[name].mean)
    terms = {name: densities[name].rows for name in order}
    kinds = {kind for kind, _ in calibrations.values()}
    kind = kinds.pop() if len(kinds) == 1 else ""
    rows = {
        name: Compared(
            densities[name],
            paired(densities[name], densities[order[0]]),
            calibrations[name][1] if kind else None,
            posteriors[name].history.seconds,
            bad[name],
        )
        for name in order
    }
    bma = bma_weights({name: posteriors[name] for name in order})
    return Comparison(rows, by, kind, stacking_weights(terms), pseudo_bma_weights(terms, seed=seed), bma)


def _log_densities(
    posterior: Posterior, prediction: Prediction, data: tuple[Any, Any], by: By, draws: int | None, seed: int
) -> tuple[Tensor, float | None]:
    if by == "held_out":
        return prediction.log_prob(data[1]), None
    found = loo(posterior, *data, num=draws, seed=seed)
    return found.rows, found.bad


def _calibration(prediction: Prediction, y: Any, seed: int) -> tuple[str, Estimate | None]:
    fields = prediction.likelihood.fields
    if prediction.likelihood.intervals:
        return "", None
    if "probs" in fields:
        return "ece", expected_calibration_error(prediction, y)
    if "quantile" in fields:
        return "coverage", coverage_by_level(prediction, y, (_LEVEL,), seed=seed)[_LEVEL]
    return "", None
