"""Figures of predictions and fits.

Every function draws on the axes that it is given and gives them back; without any it makes a figure of its own, which
pyplot does not know and need not close: ``ax.figure.savefig("band.png")``. For a window, hand in pyplot's axes
(``_, ax = plt.subplots()``). No style is set; colours are those of Okabe and Ito (2008), which the colour-blind can
tell apart, and nothing is told by colour alone.
"""

from __future__ import annotations

from bnn.plots.calibration import interval_calibration, reliability
from bnn.plots.predictive import predicted_against_observed, predictive_band
from bnn.plots.training import training_curves
from bnn.plots.weights import weights_against_prior

__all__ = [
    "interval_calibration",
    "predicted_against_observed",
    "predictive_band",
    "reliability",
    "training_curves",
    "weights_against_prior",
]
