"""Analysis of fitted posteriors and predictions: export to ArviZ, scores.

ArviZ and scikit-learn are imported when a function needs them, so that ``import bnn.analysis`` stays light.
"""

from __future__ import annotations

from bnn.analysis.acquisition import (
    Batch,
    bald,
    batch_bald,
    epistemic_variance,
    expected_improvement,
    improvement_of_mean,
    thompson,
)
from bnn.analysis.alignment import align, hidden_layers
from bnn.analysis.approximation import ImportanceCheck, Width, psis, width
from bnn.analysis.arviz import to_arviz
from bnn.analysis.attribution import Sobol, sobol, variance_gradients
from bnn.analysis.calibration import (
    Reliability,
    Temperature,
    Widening,
    fit_temperature,
    fit_widening,
    reliability,
)
from bnn.analysis.classification import (
    BrierDecomposition,
    CalibrationBins,
    accuracy,
    brier,
    brier_decomposition,
    calibration_bins,
    class_probs,
    classwise_calibration_error,
    expected_calibration_error,
    nll,
    top_class,
)
from bnn.analysis.collapse import LayerSpread, layer_spread
from bnn.analysis.comparison import Compared, Comparison, compare
from bnn.analysis.conformal import CVIntervals, SplitIntervals, cv_plus, split_intervals
from bnn.analysis.conformal_sets import SplitSets, split_sets
from bnn.analysis.convergence import Convergence, Mixing, convergence, mixing, rhat_limit
from bnn.analysis.coverage import Surprise, surprise
from bnn.analysis.decisions import Decision, decide, decide_by_draws
from bnn.analysis.density import log_joint, log_likelihood
from bnn.analysis.distance import Distance, distance, sliced_wasserstein
from bnn.analysis.estimate import Estimate, estimate, paired
from bnn.analysis.features import FeatureDistance, feature_distance
from bnn.analysis.guard import HistoryCheck, LossCheck, check_history, check_loss
from bnn.analysis.isotonic import (
    ProbabilityMap,
    QuantileMap,
    RecalibratedQuantiles,
    fit_probability_map,
    fit_quantile_map,
)
from bnn.analysis.loo import LeaveOneOut, loo
from bnn.analysis.ood import Detection, detection, under_shift, unusualness
from bnn.analysis.regression import (
    coverage_by_level,
    crps,
    interval_coverage,
    interval_score,
    mae,
    pit,
    rmse,
    sharpness,
)
from bnn.analysis.sbc import Calibration, sbc
from bnn.analysis.score_table import log_density, scores
from bnn.analysis.selective import RiskCoverage, risk_coverage
from bnn.analysis.sensitivity import Moves, Sensitivity, sensitivity
from bnn.analysis.stacking import Stack, bma_weights, pseudo_bma_weights, stack, stacking_weights
from bnn.analysis.verdict import FLAGS, Flag, Verdict, diagnose

__all__ = [
    "FLAGS",
    "Batch",
    "BrierDecomposition",
    "CVIntervals",
    "Calibration",
    "CalibrationBins",
    "Compared",
    "Comparison",
    "Convergence",
    "Decision",
    "Detection",
    "Distance",
    "Estimate",
    "FeatureDistance",
    "Flag",
    "HistoryCheck",
    "ImportanceCheck",
    "LayerSpread",
    "LeaveOneOut",
    "LossCheck",
    "Mixing",
    "Moves",
    "ProbabilityMap",
    "QuantileMap",
    "RecalibratedQuantiles",
    "Reliability",
    "RiskCoverage",
    "Sensitivity",
    "Sobol",
    "SplitIntervals",
    "SplitSets",
    "Stack",
    "Surprise",
    "Temperature",
    "Verdict",
    "Widening",
    "Width",
    "accuracy",
    "align",
    "bald",
    "batch_bald",
    "bma_weights",
    "brier",
    "brier_decomposition",
    "calibration_bins",
    "check_history",
    "check_loss",
    "class_probs",
    "classwise_calibration_error",
    "compare",
    "convergence",
    "coverage_by_level",
    "crps",
    "cv_plus",
    "decide",
    "decide_by_draws",
    "detection",
    "diagnose",
    "distance",
    "epistemic_variance",
    "estimate",
    "expected_calibration_error",
    "expected_improvement",
    "feature_distance",
    "fit_probability_map",
    "fit_quantile_map",
    "fit_temperature",
    "fit_widening",
    "hidden_layers",
    "improvement_of_mean",
    "interval_coverage",
    "interval_score",
    "layer_spread",
    "log_density",
    "log_joint",
    "log_likelihood",
    "loo",
    "mae",
    "mixing",
    "nll",
    "paired",
    "pit",
    "pseudo_bma_weights",
    "psis",
    "reliability",
    "rhat_limit",
    "risk_coverage",
    "rmse",
    "sbc",
    "scores",
    "sensitivity",
    "sharpness",
    "sliced_wasserstein",
    "sobol",
    "split_intervals",
    "split_sets",
    "stack",
    "stacking_weights",
    "surprise",
    "thompson",
    "to_arviz",
    "top_class",
    "under_shift",
    "unusualness",
    "variance_gradients",
    "width",
]
