"""What a training step costs: a plain PyTorch loop, Pyro's own SVI, and mean-field VI in each backend.

    python benchmarks/step.py [--rounds 15] [--threads 2] [--json runs/benchmarks/step.json] [--nets tiny,small]

A step is batch selection, gradient and optimiser, for every contender. Rounds are interleaved: each times every
contender in turn, and a ratio is the median over rounds of (contender / plain loop in the same round). Compile times
are taken with inductor's caches off.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import pyro
import torch
from common import epoch, parser, ratios, write
from pyro import distributions as dist
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import bnn
from bnn.capture import compiled, record
from bnn.data import as_source
from bnn.inference.base import Run
from bnn.inference.loop import Training

NOISE = 0.5**0.5  # with it, the Gaussian negative log-likelihood per datum is the squared error, up to a constant


@dataclass(frozen=True)
class Work:
    """One network and batch size, and how many steps a timed round has."""

    name: str
    net: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    classes: int | None
    batch: int
    steps: int


def mlp(*sizes: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return make


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 25, 10),
    )  # fmt: skip


WORK = {
    "tiny": Work("8-50-1, batch 32", mlp(8, 50, 1), (8,), None, 32, 200),
    "small": Work("8-50-50-1, batch 128", mlp(8, 50, 50, 1), (8,), None, 128, 200),
    "mnist": Work("784-400-400-10, batch 128", mlp(784, 400, 400, 10), (784,), 10, 128, 20),
    "conv": Work("conv 8-16 on 28x28, batch 64", conv, (1, 28, 28), 10, 64, 40),
}

Contender = Callable[[], None]  # runs `work.steps` steps


def data(work: Work) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    rows = work.batch * work.steps
    x = torch.randn(rows, *work.inputs)
    return x, (torch.randint(0, work.classes, (rows,)) if work.classes else torch.randn(rows, 1))


def model_of(work: Work, net: nn.Module) -> bnn.BNN:
    likelihood = bnn.likelihoods.Categorical() if work.classes else bnn.likelihoods.Gaussian(NOISE)
    return bnn.BNN(net, bnn.priors.Normal(1.0), likelihood)


def plain(work: Work, x: Tensor, y: Tensor) -> Contender:
    """The loop that everybody writes."""
    net = work.net()
    loss_fn = nn.CrossEntropyLoss() if work.classes else nn.MSELoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def run() -> None:
        for rows in torch.randperm(len(y)).split(work.batch):
            xb, yb = x.index_select(0, rows), y.index_select(0, rows)
            optimizer.zero_grad()
            loss_fn(net(xb), yb).backward()
            optimizer.step()

    return run


def plain_compiled(work: Work, x: Tensor, y: Tensor) -> Contender:
    """The deterministic net, captured, compiled and with fused Adam: what the loop could be."""
    net = work.net()
    names = [name for name, _ in net.named_parameters()]
    params = [p.detach().clone() for p in net.parameters()]
    loss_fn = nn.CrossEntropyLoss() if work.classes else nn.MSELoss()

    def loss(values: list[Tensor], xb: Tensor, yb: Tensor) -> Tensor:
        return loss_fn(torch.func.functional_call(net, dict(zip(names, values, strict=True)), (xb,)), yb)

    def gradient(*tensors: Tensor) -> list[Tensor]:
        return [*torch.func.grad(loss)(list(tensors[:-2]), *tensors[-2:])]

    example = [*params, x[: work.batch], y[: work.batch]]
    program = compiled(record(gradient, example), example, "the plain net")
    optimizer = torch.optim.Adam(params, lr=1e-3, fused=True)

    def run() -> None:
        for rows in torch.randperm(len(y)).split(work.batch):
            gradients = program(*params, x.index_select(0, rows), y.index_select(0, rows))
            for param, value in zip(params, gradients, strict=True):
                param.grad = value
            optimizer.step()

    return run


def pyro_svi(work: Work, x: Tensor, y: Tensor) -> Contender:
    """Pyro's SVI with AutoNormal and its own Adam, on the same Pyro model."""
    pyro.clear_param_store()  # it joins what bears the same name in another network
    model = model_of(work, work.net())
    guide = AutoNormal(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())

    def run() -> None:
        for rows in torch.randperm(len(y)).split(work.batch):
            svi.step(x.index_select(0, rows), y.index_select(0, rows), n_data=len(y))

    return run


def mean_field(backend: str) -> Callable[[Work, Tensor, Tensor], Contender]:
    """Epochs of the loop behind ``bnn.fit(method="mean_field")``."""

    def make(work: Work, x: Tensor, y: Tensor) -> Contender:
        model = model_of(work, work.net())
        method = bnn.MeanField(lr=1e-3, batch_size=work.batch)
        source = as_source((x, y), model.likelihood, model.like, work.batch)
        objective = method.objective(model, source.n, backend)  # type: ignore[arg-type]
        fit = Training(method, objective, source, None, Run(seed=0, progress=False), time.perf_counter())

        def run() -> None:
            epoch(fit)
            if objective.backends != [backend]:
                raise RuntimeError(f"asked for {backend}, ran {objective.backends}")

        return run

    return make


CONTENDERS: dict[str, Callable[[Work, Tensor, Tensor], Contender]] = {
    "plain PyTorch": plain,
    "plain, compiled, fused Adam": plain_compiled,
    "Pyro SVI(AutoNormal)": pyro_svi,
    "MeanField eager": mean_field("eager"),
    "MeanField graph": mean_field("graph"),
    "MeanField inductor": mean_field("inductor"),
}


def measure(work: Work, rounds: int) -> list[dict[str, Any]]:
    x, y = data(work)
    runs, setup = {}, {}
    for name, make in CONTENDERS.items():
        started = time.perf_counter()
        runs[name] = make(work, x, y)
        setup[name] = time.perf_counter() - started
        runs[name]()  # warm
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / work.steps * 1e3)
    base, svi = times["plain PyTorch"], times["Pyro SVI(AutoNormal)"]
    rows = []
    for name, own in times.items():
        ratio, quartiles = ratios(own, base)
        rows.append(
            {
                "work": work.name,
                "contender": name,
                "step_ms": statistics.median(own),
                "to_plain": ratio,
                "to_plain_quartiles": quartiles,
                "faster_than_pyro": statistics.median(b / a for a, b in zip(own, svi, strict=True)),
                "setup_s": setup[name],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| net, batch | contender | step, ms | to the plain loop (quartiles) | faster than Pyro's SVI | set-up, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["to_plain_quartiles"]
        lines.append(
            f"| {row['work']} | {row['contender']} | {row['step_ms']:.3f} "
            f"| {row['to_plain']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {row['faster_than_pyro']:.1f} | {row['setup_s']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    options_of = parser(__doc__, 15, "runs/benchmarks/step.json")
    options_of.add_argument("--nets", default=",".join(WORK))
    options = options_of.parse_args()
    torch.set_num_threads(options.threads)
    dist.enable_validation(False)  # Pyro at its fastest
    pyro.enable_validation(False)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for name in options.nets.split(","):
        rows += measure(WORK[name], options.rounds)
        print(table(rows[-len(CONTENDERS) :]), flush=True)
    write(options, rows, pyro=pyro.__version__)


if __name__ == "__main__":
    main()
