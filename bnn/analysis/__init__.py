"""Analysis of fitted posteriors and predictions: export to ArviZ, scores.

ArviZ and scikit-learn are imported when a function needs them, so that ``import bnn.analysis`` stays light.
"""

from __future__ import annotations

from bnn.analysis.arviz import to_arviz
from bnn.analysis.loo import LeaveOneOut, loo
from bnn.analysis.scores import (
    CalibrationBins,
    Estimate,
    accuracy,
    calibration_bins,
    expected_calibration_error,
    interval_coverage,
    log_density,
    pit,
    rmse,
    top_class,
)

__all__ = [
    "CalibrationBins",
    "Estimate",
    "LeaveOneOut",
    "accuracy",
    "calibration_bins",
    "expected_calibration_error",
    "interval_coverage",
    "log_density",
    "loo",
    "pit",
    "rmse",
    "to_arviz",
    "top_class",
]
