"""Effective draws per second of samplers: the least bulk ESS over the function's values at 10 fixed inputs.

One net (1-20-1, tanh), 200 rows, N(0, 1) weights, a half-Cauchy noise scale. Each run is a process of its own,
whose seconds are counted whole but for the imports: capture and compilation (no caches), warm-up, draws.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

from benchmarks.frame import Ready
from benchmarks.processes import fresh

ROWS, HIDDEN, NOISE = 200, 20, 0.1


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (200, 1), y (200, 1), and the 10 inputs of the score."""
    rng = np.random.default_rng(0)
    x = np.linspace(-2, 2, ROWS, dtype=np.float32)[:, None]
    y = np.sin(2 * x) + NOISE * rng.standard_normal((ROWS, 1)).astype(np.float32)
    return x, y.astype(np.float32), np.linspace(-1.9, 1.9, 10, dtype=np.float32)[:, None]


def functions(values: dict[str, np.ndarray], chains: int) -> list[Any]:
    """f at 10 inputs, of weights (s, ...): (chains, s / chains, 10) as lists."""
    at = data()[2]
    hidden = np.tanh(at @ values["0.weight"].transpose(0, 2, 1) + values["0.bias"][:, None])
    f = (hidden @ values["2.weight"].transpose(0, 2, 1) + values["2.bias"][:, None])[:, :, 0]
    return np.round(f.astype(float), 6).reshape(chains, -1, f.shape[-1]).tolist()


def _model() -> Any:
    from torch import nn

    import bnn

    net = nn.Sequential(nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    return bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())


def by_bnn(sampler: str, backend: str, **settings: Any) -> dict[str, Any]:
    """Of ours."""
    import torch

    import bnn

    x, y, _ = data()
    model, method = _model(), {"nuts": bnn.NUTS, "chees": bnn.ChEES}[sampler](**settings)
    given = (torch.from_numpy(x), torch.from_numpy(y))
    started = time.perf_counter()
    posterior = bnn.fit(model, given, method, compile=backend, progress=False)
    taken = time.perf_counter() - started
    values = {key: value.numpy() for key, value in posterior.draws().items()}
    return {"f": functions(values, posterior.approximation.shape[0]), "taken": taken}


def by_pyro(num_samples: int, warmup: int, chains: int, max_depth: int) -> dict[str, Any]:
    """Pyro's NUTS, a process a chain."""
    import pyro
    import torch
    from pyro.infer import MCMC, NUTS

    x, y, _ = data()
    pyro.enable_validation(False)
    torch.set_num_threads(1)
    kernel = NUTS(_model(), max_tree_depth=max_depth)
    mcmc = MCMC(kernel, num_samples, warmup, num_chains=chains, mp_context="fork", disable_progbar=True)
    started = time.perf_counter()
    mcmc.run(torch.from_numpy(x), torch.from_numpy(y))
    taken = time.perf_counter() - started
    values = {key: value.detach().numpy() for key, value in mcmc.get_samples().items()}
    return {"f": functions(values, chains), "taken": taken}


def by_numpyro(num_samples: int, warmup: int, chains: int, max_depth: int, together: str) -> dict[str, Any]:
    """NumPyro's NUTS; in an interpreter that has JAX."""
    import jax
    import numpyro
    from numpyro.infer import MCMC, NUTS

    numpyro.set_host_device_count(os.cpu_count())
    x, y, _ = data()
    kernel = NUTS(_numpyro_model, max_tree_depth=max_depth)
    mcmc = MCMC(
        kernel, num_warmup=warmup, num_samples=num_samples, num_chains=chains, chain_method=together, progress_bar=False
    )
    started = time.perf_counter()
    mcmc.run(jax.random.PRNGKey(0), x, y)
    values = {key: np.asarray(value) for key, value in mcmc.get_samples().items()}
    return {"f": functions(values, chains), "taken": time.perf_counter() - started}


def by_blackjax(num_samples: int, warmup: int, chains: int, max_depth: int) -> dict[str, Any]:
    """BlackJAX's NUTS with its window adaptation, chains mapped; the log joint is NumPyro's."""
    import blackjax
    import jax
    from numpyro.infer.util import initialize_model

    x, y, _ = data()
    started = time.perf_counter()
    begin, potential, *_ = initialize_model(jax.random.PRNGKey(0), _numpyro_model, model_args=(x, y))

    def log_density(z: Any) -> Any:
        return -potential(z)

    def one(key: Any) -> Any:
        adapt, draw = jax.random.split(key)
        warm = blackjax.window_adaptation(blackjax.nuts, log_density, max_num_doublings=max_depth)
        (state, found), _ = warm.run(adapt, begin.z, num_steps=warmup)
        kernel = blackjax.nuts(log_density, **found)

        def step(state: Any, key: Any) -> Any:
            state, _ = kernel.step(key, state)
            return state, state.position

        return jax.lax.scan(step, state, jax.random.split(draw, num_samples))[1]

    run = jax.jit(one)  # chains in turn: mapped ones wait for each other's longest trajectory
    drawn = [run(key) for key in jax.random.split(jax.random.PRNGKey(1), chains)]
    values = {name: np.concatenate([np.asarray(d[name]) for d in drawn]) for name in drawn[0]}
    return {"f": functions(values, chains), "taken": time.perf_counter() - started}


def _numpyro_model(x: Any, y: Any) -> None:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def normal(name: str, *shape: int) -> Any:
        return numpyro.sample(name, dist.Normal(0, 1).expand(shape).to_event(len(shape)))

    w1, b1 = normal("0.weight", HIDDEN, 1), normal("0.bias", HIDDEN)
    w2, b2 = normal("2.weight", 1, HIDDEN), normal("2.bias", 1)
    scale = numpyro.sample("likelihood.scale", dist.HalfCauchy(1.0))
    f = jnp.tanh(x @ w1.T + b1) @ w2.T + b2
    numpyro.sample("y", dist.Normal(f, scale).to_event(1), obs=y)


def effective(by: str, python: str = "", limit: float | None = None, **settings: Any) -> Ready:
    """Effective draws a second; R-hat and ESS of the last round stand in the notes."""
    told: dict[str, Any] = {}

    def run() -> float:
        from arviz_stats.base import array_stats

        interpreter = os.environ.get(python, sys.executable) if python else sys.executable
        found = fresh(f"sampling:by_{by}", settings, python=interpreter, limit=limit)
        f = np.array(found["f"])
        each = [f[:, :, i] for i in range(f.shape[2])]
        ess = min(float(array_stats.ess(v, chain_axis=0, draw_axis=1, method="bulk")) for v in each)
        told.update(ess=ess, rhat=max(float(array_stats.rhat(v, chain_axis=0, draw_axis=1)) for v in each))
        told.update(taken_s=found["taken"])
        return ess / float(found["taken"])

    return Ready(run, notes=told)
