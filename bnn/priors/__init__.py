"""Priors over the parameters of a network.

A prior is called once by the model, with all the parameters that its name pattern matched, and samples them in Pyro.
Seeing them together, it can share a scale between them. ``prior.penalty(params)`` is the penalty that it equals.
"""

from bnn.priors import measures
from bnn.priors.base import Prior, fan_in
from bnn.priors.calibrate import Calibrated, Measured, calibrate
from bnn.priors.elastic_net import ElasticNet
from bnn.priors.filters import CorrelatedFilters
from bnn.priors.grouped import GroupLasso
from bnn.priors.hierarchical import Hierarchical
from bnn.priors.horseshoe import Horseshoe, RegularisedHorseshoe, global_scale
from bnn.priors.location_scale import Laplace, LocationScale, LossKind, Normal, StudentT, loss_factor
from bnn.priors.mixtures import ScaleMixture, SpikeAndSlab
from bnn.priors.own import FromPyro, Function
from bnn.priors.pretrained import Pretrained
from bnn.priors.scaled import Scaled

__all__ = [
    "Calibrated",
    "CorrelatedFilters",
    "ElasticNet",
    "FromPyro",
    "Function",
    "GroupLasso",
    "Hierarchical",
    "Horseshoe",
    "Laplace",
    "LocationScale",
    "LossKind",
    "Measured",
    "Normal",
    "Pretrained",
    "Prior",
    "RegularisedHorseshoe",
    "ScaleMixture",
    "Scaled",
    "SpikeAndSlab",
    "StudentT",
    "calibrate",
    "fan_in",
    "global_scale",
    "loss_factor",
    "measures",
]
