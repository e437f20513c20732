"""Part (d) of `weight_decay.py`: a penalty of some strength, and the posterior under the matching prior."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Lasso, Ridge
from weight_decay_setup import Config, Data, linear, linear_decay

import bnn

DRAWS = 20_000  # a standard deviation from them has a relative error of 1 / sqrt(2 * 20,000) = 0.5 %


def at_strength(config: Config, data: Data, penalty: str, strength: float) -> dict[str, Any]:
    """The penalised weights, from MAP, and the mean and spread of the mean-field posterior."""
    options = {"n_data": data.n, "loss": "mse", "noise_scale": config.noise_scale}
    settings = {"lr": config.path_lr, "batch_size": None, "schedule": linear_decay}
    if penalty == "L2":
        prior = bnn.priors.Normal.from_weight_decay(strength, **options)
        # sklearn: |y - Xw|^2 + alpha |w|^2 is N times MSE + (strength / 2) |w|^2
        reference = Ridge(alpha=data.n * strength / 2, fit_intercept=False)
    else:
        prior = bnn.priors.Laplace.from_l1(strength, **options)
        # sklearn: |y - Xw|^2 / (2N) + alpha |w|_1 is half of MSE + strength |w|_1
        reference = Lasso(alpha=strength / 2, fit_intercept=False, tol=1e-10, max_iter=100_000)
    model = bnn.BNN(linear(), prior, bnn.likelihoods.Gaussian(config.noise_scale))
    fit = functools.partial(bnn.fit, model, (data.x, data.y), progress=False, compile="graph")
    point = fit(bnn.MAP(epochs=config.map_epochs, **settings)).draws()["0.weight"].reshape(10)
    method = bnn.MeanField(epochs=config.mean_field_epochs, estimator="local", average=config.average, **settings)
    draws = fit(method).draws(DRAWS)["0.weight"].reshape(DRAWS, 10)
    interval = draws.quantile(torch.tensor([0.05, 0.95], dtype=draws.dtype), dim=0)
    # The exact Gaussian posterior of the linear model, (10, 10), and what mean-field makes of it: Bishop, 10.1.2.
    precision = data.x.T @ data.x / config.noise_scale**2
    if penalty == "L2":
        precision = precision + torch.eye(10, dtype=precision.dtype) / prior.scale**2
    known = reference.fit(data.x.numpy(), data.y.numpy()).coef_
    exact = precision.inverse().diagonal().sqrt().tolist() if penalty == "L2" else None
    return {
        "strength": strength,
        "prior_scale": prior.scale,
        "map": point.tolist(),
        "reference": known.tolist(),
        "mean": draws.mean(0).tolist(),
        "std": draws.std(0).tolist(),
        "exact_mean_field_std": (1 / precision.diagonal().sqrt()).tolist() if penalty == "L2" else None,
        "exact_std": exact,
        "interval": interval.tolist(),
        # for the table
        "from_reference": float(np.abs(point.numpy() - known).max()),
        "map_sum": float(point.abs().sum()),
        "map_zeros": int((point.abs() < 1e-3).sum()),
        "mean_sum": float(draws.mean(0).abs().sum()),
        "std_mean": float(draws.std(0).mean()),
        "exact_std_mean": None if exact is None else float(np.mean(exact)),
        "sure": int(((interval[0] > 0) | (interval[1] < 0)).sum()),
    }


PATHS = {
    "strength": ("strength", ".3g"),
    "prior_scale": ("prior scale", ".3g"),
    "from_reference": ("MAP, largest difference from scikit-learn", ".0e"),
    "map_sum": ("MAP, sum of absolute weights", ".3f"),
    "map_zeros": ("MAP, weights below 0.001", ""),
    "mean_sum": ("mean-field, sum of absolute means", ".3f"),
    "std_mean": ("mean-field, mean standard deviation", ".3f"),
    "exact_std_mean": ("exact, mean standard deviation", ".3f"),
    "sure": ("mean-field, 90 % intervals without 0", ""),
}
