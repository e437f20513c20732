"""Effective draws per second: NUTS and ChEES here, Pyro's NUTS, and NumPyro's where it is installed.

    python benchmarks/mcmc.py [--draws 400] [--warmup 400] [--max-depth 10] [--jax-python PATH] [--only nuts,pyro]

One net (1-20-1, tanh), 200 rows, N(0, 1) weights, a half-Cauchy noise scale, 4 chains of NUTS on the cores there are.
The score is the least bulk ESS over the function's values at 10 fixed inputs, by seconds: of everything (capture,
compilation with inductor's caches off, warm-up), and of the draws alone. Each contender runs in a process of its own,
one after the other. NumPyro clashes with some pins: ``--jax-python`` names an interpreter that has it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import numpy as np

ROWS, HIDDEN, NOISE = 200, 20, 0.1


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (200, 1), y (200, 1), and the 10 inputs of the score."""
    rng = np.random.default_rng(0)
    x = np.linspace(-2, 2, ROWS, dtype=np.float32)[:, None]
    y = np.sin(2 * x) + NOISE * rng.standard_normal((ROWS, 1)).astype(np.float32)
    return x, y.astype(np.float32), np.linspace(-1.9, 1.9, 10, dtype=np.float32)[:, None]


def functions(values: dict[str, np.ndarray], at: np.ndarray) -> np.ndarray:
    """f at 10 inputs: weights (s, ...) -> (s, 10)."""
    hidden = np.tanh(at @ values["0.weight"].transpose(0, 2, 1) + values["0.bias"][:, None])
    return (hidden @ values["2.weight"].transpose(0, 2, 1) + values["2.bias"][:, None])[:, :, 0]


def run_bnn(options: argparse.Namespace, name: str) -> dict[str, Any]:
    import torch
    from torch import nn

    import bnn
    from bnn.inference.mcmc.record import Record

    x, y, at = data()
    net = nn.Sequential(nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    counts = {"num_samples": options.draws, "warmup": options.warmup}
    method = bnn.NUTS(**counts, max_depth=options.max_depth)
    if name == "chees":
        method = bnn.ChEES(num_samples=options.chees_draws, warmup=options.chees_warmup, chains=options.chees_chains)
    marks: list[float] = []  # when the first draw is made, and the first that is kept
    add = Record.add

    def timed(self: Record, *args: Any) -> None:
        if not marks or (len(marks) == 1 and self.done >= self.warmup):
            marks.append(time.perf_counter())
        add(self, *args)

    Record.add = timed
    started = time.perf_counter()
    posterior = bnn.fit(
        model, (torch.from_numpy(x), torch.from_numpy(y)), method, compile=options.compile, progress=False
    )
    end = time.perf_counter()
    values = {key: value.numpy() for key, value in posterior.draws().items()}
    steps = posterior.approximation.statistics["n_steps"]
    return {
        "f": functions(values, at).reshape(*posterior.approximation.shape, -1),
        "seconds": end - started,
        "setup": marks[0] - started,
        "sampling": end - marks[1],
        "steps": float(steps.mean()),
        "accept": float(posterior.approximation.statistics["acceptance_rate"].mean()),
    }


def run_pyro(options: argparse.Namespace, name: str) -> dict[str, Any]:
    import pyro
    import torch
    from pyro.infer import MCMC, NUTS
    from torch import nn

    import bnn

    x, y, at = data()
    net = nn.Sequential(nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.set_num_threads(1)
    marks: list[float] = []

    def hook(kernel: Any, samples: Any, stage: str, i: int) -> None:
        if "sample" in stage.lower() and not marks:
            marks.append(time.perf_counter())

    # One process a chain, as Pyro does it; on fewer cores than chains they share them.
    kernel = NUTS(model, max_tree_depth=options.max_depth)
    mcmc = MCMC(
        kernel, options.draws, options.warmup, num_chains=4, mp_context="fork", disable_progbar=True, hook_fn=None
    )
    started = time.perf_counter()
    mcmc.run(torch.from_numpy(x), torch.from_numpy(y))
    end = time.perf_counter()
    values = {key: value.detach().numpy() for key, value in mcmc.get_samples().items()}
    share = options.draws / (options.draws + options.warmup)
    f = functions(values, at).reshape(4, options.draws, -1)
    # Pyro does not say when the warm-up ended; at equal tree depths its share is that of its draws.
    return {"f": f, "seconds": end - started, "setup": 0.0, "sampling": share * (end - started)}


def run_numpyro(options: argparse.Namespace, name: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    numpyro.set_host_device_count(os.cpu_count())
    x, y, at = data()

    def model(x: Any, y: Any) -> None:
        def normal(name: str, *shape: int) -> Any:
            return numpyro.sample(name, dist.Normal(0, 1).expand(shape).to_event(len(shape)))

        w1, b1 = normal("0.weight", HIDDEN, 1), normal("0.bias", HIDDEN)
        w2, b2 = normal("2.weight", 1, HIDDEN), normal("2.bias", 1)
        scale = numpyro.sample("likelihood.scale", dist.HalfCauchy(1.0))
        f = jnp.tanh(x @ w1.T + b1) @ w2.T + b2
        numpyro.sample("y", dist.Normal(f, scale).to_event(1), obs=y)

    # Vectorised chains wait for each other; in turn, each on what XLA uses of the cores, is the faster of the two here.
    mcmc = MCMC(
        NUTS(model, max_tree_depth=options.max_depth),
        num_warmup=options.warmup,
        num_samples=options.draws,
        num_chains=4,
        chain_method=options.numpyro_chains,
        progress_bar=False,
    )
    started = time.perf_counter()
    mcmc.warmup(jax.random.PRNGKey(0), x, y)
    warm = time.perf_counter()
    mcmc.run(mcmc.post_warmup_state.rng_key, x, y, extra_fields=("num_steps", "accept_prob"))
    values = {key: np.asarray(value) for key, value in mcmc.get_samples().items()}
    end = time.perf_counter()
    fields = mcmc.get_extra_fields()
    return {
        "f": functions(values, at).reshape(4, options.draws, -1),
        "seconds": end - started,
        "setup": 0.0,
        "sampling": end - warm,
        "steps": float(np.mean(fields["num_steps"])),
        "accept": float(np.mean(fields["accept_prob"])),
    }


RUNNERS = {"nuts": run_bnn, "chees": run_bnn, "pyro": run_pyro, "numpyro": run_numpyro}
NAMES = {"nuts": "bnn NUTS", "chees": "bnn ChEES", "pyro": "Pyro NUTS", "numpyro": "NumPyro NUTS"}


def one(options: argparse.Namespace) -> None:
    """Run one contender in this process; its results go to a file for the parent."""
    found = RUNNERS[options.one](options, options.one)
    f = found.pop("f")
    np.savez(options.result, f=f, **found)


def score(path: Path) -> dict[str, float]:
    from arviz_stats.base import array_stats

    with np.load(path) as file:
        found = {key: file[key] for key in file.files}
    f = found.pop("f").astype(np.float64)
    ess = min(float(array_stats.ess(f[:, :, i], chain_axis=0, draw_axis=1, method="bulk")) for i in range(f.shape[2]))
    rhat = max(float(array_stats.rhat(f[:, :, i], chain_axis=0, draw_axis=1)) for i in range(f.shape[2]))
    row = {key: float(value) for key, value in found.items()}
    return {**row, "ess": ess, "rhat": rhat, "ess_s": ess / row["seconds"], "ess_s_draws": ess / row["sampling"]}


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = [
        "| contender | seconds | of it draws | ESS | R-hat | ESS/s, all counted | ESS/s, draws alone | steps a draw |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {NAMES[name]} | {row['seconds']:.1f} | {row['sampling']:.1f} | {row['ess']:.0f} | {row['rhat']:.3f} "
            f"| {row['ess_s']:.2f} | {row['ess_s_draws']:.2f} | {row.get('steps', float('nan')):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--warmup", type=int, default=400)
    parser.add_argument("--max-depth", type=int, default=10)
    parser.add_argument("--chees-draws", type=int, default=200)
    parser.add_argument("--chees-warmup", type=int, default=400)
    parser.add_argument("--chees-chains", type=int, default=64)
    parser.add_argument("--compile", default="inductor")
    parser.add_argument("--numpyro-chains", default="sequential", choices=["sequential", "vectorized", "parallel"])
    parser.add_argument("--jax-python", default=sys.executable)
    parser.add_argument("--only", default=",".join(RUNNERS))
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/mcmc.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    options.json.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, float]] = {}
    for name in options.only.split(","):
        python = options.jax_python if name == "numpyro" else sys.executable
        result = options.json.with_name(f"mcmc-{name}.npz")
        passed = [*sys.argv[1:], "--one", name, "--result", str(result)]
        done = subprocess.run([python, __file__, *passed], check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"{NAMES[name]}: a gap in the table: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
            continue
        rows[name] = score(result)
        result.unlink()
        print(table({name: rows[name]}), flush=True)
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("one", "result", "jax_python")}
    options.json.write_text(json.dumps({"settings": settings, "cores": os.cpu_count(), "rows": rows}, indent=2))
    print(f"\n{table(rows)}\nwritten to {options.json}")


if __name__ == "__main__":
    main()
