"""Likelihoods: from a network's outputs to the Pyro distribution of the targets, one family a file."""

from bnn.likelihoods.base import (
    GaussianAverage,
    Likelihood,
    OutputFisher,
    Positive,
    Support,
    present_root,
    refuse_training_weights,
)
from bnn.likelihoods.censored import Censored, Truncated, right_censored
from bnn.likelihoods.counts import Binomial, NegativeBinomial, Poisson
from bnn.likelihoods.function import Function
from bnn.likelihoods.gaussian import Gaussian, HeteroscedasticGaussian, MultivariateGaussian
from bnn.likelihoods.labels import Bernoulli, Categorical, Ordinal
from bnn.likelihoods.mixture import MixtureDensity
from bnn.likelihoods.positive import Beta, Gamma, LogNormal, Weibull
from bnn.likelihoods.robust import HeteroscedasticStudentT, Laplace, Quantile, StudentT

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Censored",
    "Function",
    "Gamma",
    "Gaussian",
    "GaussianAverage",
    "HeteroscedasticGaussian",
    "HeteroscedasticStudentT",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "MixtureDensity",
    "MultivariateGaussian",
    "NegativeBinomial",
    "Ordinal",
    "OutputFisher",
    "Poisson",
    "Positive",
    "Quantile",
    "StudentT",
    "Support",
    "Truncated",
    "Weibull",
    "present_root",
    "refuse_training_weights",
    "right_censored",
]
