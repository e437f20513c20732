"""Figures of predictions and fits.

Every function draws on the axes that it is given and gives them back; without any it makes a figure of its own, which
pyplot does not know and need not close: ``ax.figure.savefig("band.png")``. For a window, hand in pyplot's axes
(``_, ax = plt.subplots()``). No style is set; colours are those of Okabe and Ito (2008), which the colour-blind can
tell apart, maps are dark where there is more, and nothing is told by colour alone.
"""

from __future__ import annotations

from bnn.plots.approximation import information_by_layer, k_hat
from bnn.plots.calibration import interval_calibration, pit_histogram, reliability
from bnn.plots.choosing import comparison
from bnn.plots.convergence import function_mixing, mixing_by_part
from bnn.plots.labels import confusion, image_grid
from bnn.plots.maps import grid, uncertainty_maps
from bnn.plots.predictive import predicted_against_observed, predictive_band
from bnn.plots.prior import before_and_after, class_balance, prior_functions
from bnn.plots.selective import retention, risk_coverage
from bnn.plots.training import training_curves
from bnn.plots.unusual import detection_curve, under_shift, unusual_rows
from bnn.plots.weights import weight_grid, weights_against_prior

__all__ = [
    "before_and_after",
    "class_balance",
    "comparison",
    "confusion",
    "detection_curve",
    "function_mixing",
    "grid",
    "image_grid",
    "information_by_layer",
    "interval_calibration",
    "k_hat",
    "mixing_by_part",
    "pit_histogram",
    "predicted_against_observed",
    "predictive_band",
    "prior_functions",
    "reliability",
    "retention",
    "risk_coverage",
    "training_curves",
    "uncertainty_maps",
    "under_shift",
    "unusual_rows",
    "weight_grid",
    "weights_against_prior",
]
