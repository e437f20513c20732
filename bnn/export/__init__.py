"""Into production: a posterior as a single file that takes inputs and gives predictions, without Pyro and without bnn.

``posterior.export(path)``, ``estimator.export(path)``, and `distil`: many draws as one pass.
"""

from __future__ import annotations

from bnn.export.distillation import Distilled, Student, distil
from bnn.export.files import QUANTILES, export_estimator, export_posterior
from bnn.export.record import METADATA

__all__ = ["METADATA", "QUANTILES", "Distilled", "Student", "distil", "export_estimator", "export_posterior"]
