"""What chains of draws tell about moments, with error bars over independent chains."""

import math

import torch
from scipy import stats
from torch import Tensor

#: The probability of a false alarm of one check, over all of its comparisons.
LEVEL = 1e-3


def student(degrees: int, comparisons: int) -> float:
    """The two-sided quantile of Student's t, Bonferroni over the comparisons."""
    return float(stats.t.ppf(1 - LEVEL / comparisons / 2, degrees))


def check_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Means and (co)variances of chains ``(chains, draws, D)`` against the exact ones, in units of exact deviations.

    Chains are independent, so that the spread of their own averages is the error of the grand average, whatever the
    autocorrelation within them. An error of 10 % in a deviation has to be out of reach of that error bar.
    """
    chains, _, size = draws.shape
    root = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(root, (draws - mean).reshape(-1, size).T, upper=False).T
    z = z.reshape(chains, -1, size)
    products = torch.einsum("cni,cnj->cij", z, z) / z.shape[1]
    upper = torch.triu_indices(size, size)
    quantities = torch.cat([z.mean(1), products[:, upper[0], upper[1]]], dim=1)
    expected = torch.cat([torch.zeros(size), torch.eye(size)[upper[0], upper[1]]]).to(z)
    got = quantities.mean(0)
    error = student(chains - 1, quantities.shape[1]) * quantities.std(0) / math.sqrt(chains)
    assert ((got - expected).abs() < error).all(), f"moments {got} against {expected} +- {error}"
    assert (error[:size] < 0.12).all(), f"the means are too noisy: {error[:size]}"
    assert (error[size:] < 0.2).all(), f"the variances are too noisy to tell 10 % of a deviation: {error[size:]}"
