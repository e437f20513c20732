"""The Laplace approximation, by what it needs: the mode, the curvature there, and the evidence for hyper-parameters."""

from __future__ import annotations

from bnn.inference.laplace.evidence import log_marginal_likelihood
from bnn.inference.laplace.method import Laplace

__all__ = ["Laplace", "log_marginal_likelihood"]
