"""A whole fit: yacht by mean-field, to a held-out log-density, in a fresh interpreter and everything counted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frame import Ready
from benchmarks.processes import fresh

BATCH, LR = 32, 1e-2


def data() -> tuple[str, list[np.ndarray]]:
    """Which rows these are, and x, y to train, x, y held out: float32, scaled to unit variance."""
    folder = os.environ.get("BNN_BENCH_DATA")
    if folder:
        with np.load(Path(folder) / "uci" / "yacht.npz") as file:
            x, y, train, test = file["x"], file["y"], file["train_idx"][0], file["test_idx"][0]
        name = "yacht"
    else:  # as many rows of as many features, of a smooth function
        rng = np.random.default_rng(0)
        x = rng.uniform(-1, 1, (308, 6))
        y = np.exp(2 * x[:, 5]) + 0.3 * x[:, 0] * x[:, 1] + 0.05 * rng.standard_normal(308)
        train, test = np.arange(277), np.arange(277, 308)
        name = "generated rows of yacht's shape: --data-dir is not given"
    x, y = x.reshape(len(y), -1), y.reshape(-1, 1)
    x = (x - x[train].mean(0)) / x[train].std(0).clip(1e-9)
    y = (y - y[train].mean()) / y[train].std()
    return name, [part.astype(np.float32) for part in (x[train], y[train], x[test], y[test])]


def fit(who: str, epochs: int, backend: str = "auto") -> dict[str, Any]:
    """The fit and its held-out log-density a row, of 200 draws."""
    import torch
    from torch import nn

    import bnn

    torch.manual_seed(0)
    name, parts = data()
    x, y, new_x, new_y = (torch.from_numpy(part) for part in parts)
    net = nn.Sequential(nn.Linear(x.shape[1], 50), nn.ReLU(), nn.Linear(50, 1))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    if who == "bnn":
        method = bnn.MeanField(epochs=epochs, batch_size=BATCH, lr=LR)
        posterior = bnn.fit(model, (x, y), method, compile=backend, progress=False)
        found = float(posterior.predict(new_x, draws=200).log_prob(new_y).mean())
        return {"data": name, "log_density": found, "backend": posterior.history.backend}
    return {"data": name, "log_density": _by_pyro(model, x, y, new_x, new_y, epochs), "backend": "Pyro"}


def _by_pyro(model: Any, x: Any, y: Any, new_x: Any, new_y: Any, epochs: int) -> float:
    import pyro
    import torch
    from pyro.infer import SVI, Predictive, Trace_ELBO
    from pyro.infer.autoguide import AutoNormal, init_to_value

    pyro.enable_validation(False)
    # From the net's own weights, as ours: Pyro's own start, zeros, has no gradient to speak of.
    start = {name: value.detach().clone() for name, value in model.net.named_parameters()}
    guide = AutoNormal(model, init_loc_fn=init_to_value(values={**start, "likelihood.scale": torch.tensor(1.0)}))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LR}), Trace_ELBO())
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(BATCH):
            svi.step(x[rows], y[rows], n_data=len(y))
    with torch.no_grad():
        draws = Predictive(model, guide=guide, num_samples=200, return_sites=(*start, "likelihood.scale"))(x, y)
        total = []
        for i in range(200):
            weights = {name: draws[name][i].reshape(value.shape) for name, value in start.items()}
            outputs = torch.func.functional_call(model.net, weights, (new_x,))
            total.append(torch.distributions.Normal(outputs, draws["likelihood.scale"][i]).log_prob(new_y)[:, 0])
        found = torch.stack(total).logsumexp(0) - torch.tensor(200.0).log()
    return float(found.mean())


def whole(who: str, epochs: int, backend: str = "auto") -> Ready:
    """Seconds of a fresh interpreter: imports, capture, compilation, fit, prediction."""
    told: dict[str, Any] = {}

    def run() -> float:
        found = fresh("yacht:fit", {"who": who, "epochs": epochs, "backend": backend})
        told.update({key: found[key] for key in ("data", "log_density", "backend")})
        return float(found["seconds"])

    return Ready(run, notes=told)
