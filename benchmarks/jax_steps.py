"""A training step of mean-field variational inference by NumPyro; in an interpreter that has JAX."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal

from benchmarks.frame import Gap, Ready, timed
from benchmarks.problems import LR, NOISE, PROBLEMS, REPEATS, Problem


def _model(problem: Problem) -> Any:
    if problem.sizes is None:
        raise Gap("perceptrons only")
    sizes = list(pairwise(problem.sizes))

    def model(x: Any, y: Any) -> None:
        for layer, (a, b) in enumerate(sizes):
            weight = numpyro.sample(f"{2 * layer}.weight", dist.Normal(0, 1).expand((b, a)).to_event(2))
            bias = numpyro.sample(f"{2 * layer}.bias", dist.Normal(0, 1).expand((b,)).to_event(1))
            x = x @ weight.T + bias
            x = jax.nn.relu(x) if layer < len(sizes) - 1 else x
        with numpyro.plate("rows", problem.rows, subsample_size=len(y)):
            law = dist.Categorical(logits=x) if problem.classes else dist.Normal(x, NOISE).to_event(1)
            numpyro.sample("y", law, obs=y)

    return model


def svi(problem: str, loop: str = "python", elbo: str = "mean_field") -> Ready:
    """An epoch a round: ``"python"`` calls a compiled update for each batch, ``"scan"`` is one compiled loop."""
    work = PROBLEMS[problem]
    guide = AutoNormal(_model(work), init_loc_fn=numpyro.infer.init_to_value(values=work.start()))
    bound = TraceMeanField_ELBO() if elbo == "mean_field" else Trace_ELBO()
    method = SVI(_model(work), guide, numpyro.optim.Adam(LR), bound)
    x, y = (jnp.asarray(part) for part in work.data())
    state = [method.init(jax.random.PRNGKey(0), x[: work.batch], y[: work.batch])]
    rng = np.random.default_rng(0)

    @jax.jit
    def update(state: Any, rows: Any) -> Any:
        return method.update(state, x[rows], y[rows])

    @jax.jit
    def scanned(state: Any, rows: Any) -> Any:
        return jax.lax.scan(update, state, rows)

    def epoch() -> None:
        rows = rng.permutation(work.rows).reshape(work.steps, work.batch)
        if loop == "scan":
            state[0], found = scanned(state[0], rows)
        else:
            for batch in rows:
                state[0], found = update(state[0], batch)
        jax.block_until_ready((state[0], found))

    value = jax.jit(lambda key, params: bound.loss(key, params, method.model, guide, x[: work.batch], y[: work.batch]))

    def loss(size: float) -> list[float]:
        placed = work.point(size)
        params = {f"{name}_auto_loc": jnp.asarray(value) for name, value in placed["loc"].items()}
        params |= {f"{name}_auto_scale": jnp.asarray(value) for name, value in placed["scale"].items()}
        keys = jax.random.split(jax.random.PRNGKey(1), REPEATS[size])
        return [float(value(key, params)) / work.rows for key in keys]

    epoch()  # compile
    return Ready(lambda: timed(epoch, work.steps), loss)
