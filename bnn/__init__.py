"""bnn: Bayesian neural networks from any ``torch.nn.Module``, as one Pyro model under every inference method.

Names are imported when they are first used, so that ``import bnn`` stays light.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The library prints nothing; what it tells is heard by those who ask `logging` for it.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# Public name -> the module that defines it. The single table behind both `bnn.NAME` and `dir(bnn)`.
_HOME = {
    "Auto": "bnn.inference",
    "BNN": "bnn.model",
    "BayesianClassifier": "bnn.estimators",
    "BayesianModuleClassifier": "bnn.estimators",
    "BayesianModuleRegressor": "bnn.estimators",
    "BayesianRegressor": "bnn.estimators",
    "Checkpoint": "bnn.checkpoint",
    "ChEES": "bnn.inference",
    "Ensemble": "bnn.inference",
    "Flow": "bnn.inference",
    "FullRank": "bnn.inference",
    "HMC": "bnn.inference",
    "History": "bnn.history",
    "IVON": "bnn.inference",
    "Laplace": "bnn.inference",
    "LastLayer": "bnn.inference",
    "LowRank": "bnn.inference",
    "MAP": "bnn.inference",
    "MCDropout": "bnn.inference",
    "MeanField": "bnn.inference",
    "METHODS": "bnn.inference",
    "NUTS": "bnn.inference",
    "NonFiniteLossError": "bnn.inference",
    "Posterior": "bnn.posterior",
    "Prediction": "bnn.prediction",
    "SWAG": "bnn.inference",
    "VBLL": "bnn.inference",
    "Variational": "bnn.inference",
    "SGLD": "bnn.inference",
    "SGHMC": "bnn.inference",
    "SVGD": "bnn.inference",
    "compare": "bnn.analysis",
    "distil": "bnn.export",
    "fit": "bnn.inference",
    "load": "bnn.files",
    "report": "bnn.reporting",
    "stack": "bnn.analysis",
}
_SUBMODULES = ("analysis", "distributed", "inference", "likelihoods", "loggers", "nets", "plots", "priors", "streams")

__all__ = [
    "BNN",
    "HMC",
    "IVON",
    "MAP",
    "METHODS",
    "NUTS",
    "SGHMC",
    "SGLD",
    "SVGD",
    "SWAG",
    "VBLL",
    "Auto",
    "BayesianClassifier",
    "BayesianModuleClassifier",
    "BayesianModuleRegressor",
    "BayesianRegressor",
    "ChEES",
    "Checkpoint",
    "Ensemble",
    "Flow",
    "FullRank",
    "History",
    "Laplace",
    "LastLayer",
    "LowRank",
    "MCDropout",
    "MeanField",
    "NonFiniteLossError",
    "Posterior",
    "Prediction",
    "Variational",
    "analysis",
    "compare",
    "distil",
    "distributed",
    "fit",
    "inference",
    "likelihoods",
    "load",
    "loggers",
    "nets",
    "plots",
    "priors",
    "report",
    "stack",
    "streams",
]

if TYPE_CHECKING:
    from bnn import analysis, distributed, inference, likelihoods, loggers, nets, plots, priors, streams
    from bnn.analysis import compare, stack
    from bnn.checkpoint import Checkpoint
    from bnn.estimators import (
        BayesianClassifier,
        BayesianModuleClassifier,
        BayesianModuleRegressor,
        BayesianRegressor,
    )
    from bnn.export import distil
    from bnn.files import load
    from bnn.history import History
    from bnn.inference import (
        HMC,
        IVON,
        MAP,
        METHODS,
        NUTS,
        SGHMC,
        SGLD,
        SVGD,
        SWAG,
        VBLL,
        Auto,
        ChEES,
        Ensemble,
        Flow,
        FullRank,
        Laplace,
        LastLayer,
        LowRank,
        MCDropout,
        MeanField,
        NonFiniteLossError,
        Variational,
        fit,
    )
    from bnn.model import BNN
    from bnn.posterior import Posterior
    from bnn.prediction import Prediction
    from bnn.reporting import report


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _SUBMODULES:
        value = import_module(f"bnn.{name}")
    else:
        raise AttributeError(f"module 'bnn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
