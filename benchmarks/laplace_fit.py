"""What a Kronecker-factored Laplace approximation costs: ours and laplace-torch's, of the same trained network.

    python benchmarks/laplace_fit.py [--rounds 9] [--threads 2] [--nets small,mnist] [--json FILE]

A fit is everything from the trained network to a posterior with its marginal likelihood; a prediction is the mean and
the covariance of the linearised outputs at 1,000 rows, of the small net alone: laplace-torch keeps a Jacobian of all
rows, gigabytes for the large one. Rounds are interleaved, and a ratio is the median over rounds of (ours /
laplace-torch's in the same round). laplace-torch runs with its defaults, on batches of the same size.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import torch
from common import parser, ratios, write
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bnn

warnings.simplefilter("ignore")
import laplace  # noqa: E402  its dependencies use deprecated parts of torch

NOISE, PRIOR, BATCH = 0.5, 1.0, 1024


@dataclass(frozen=True)
class Work:
    """One network, with the rows that it is fitted on and those that it predicts."""

    name: str
    sizes: tuple[int, ...]
    classes: int | None
    rows: int
    new: int


WORK = {
    "small": Work("8-50-50-1, 1,000 rows", (8, 50, 50, 1), None, 1000, 1000),
    "mnist": Work("784-400-400-10, 5,000 rows", (784, 400, 400, 10), 10, 5000, 0),
}
CONTENDERS = ("bnn", "laplace-torch")


def problem(work: Work) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A net with a few steps of Adam behind it, its data, and other inputs."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(work.sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    x, new = torch.randn(work.rows, work.sizes[0]), torch.randn(work.new, work.sizes[0])
    y = (
        torch.randint(0, work.classes, (work.rows,))
        if work.classes
        else x[:, :1].sin() + NOISE * torch.randn(work.rows, 1)
    )
    loss_fn = nn.CrossEntropyLoss() if work.classes else nn.MSELoss()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss_fn(net(x[:500]), y[:500]).backward()
        optimizer.step()
    return net, x, y, new


def ours(work: Work, net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], bnn.Posterior]:
    likelihood = bnn.likelihoods.Categorical() if work.classes else bnn.likelihoods.Gaussian(NOISE)
    model = bnn.BNN(net, bnn.priors.Normal(PRIOR), likelihood)
    return lambda: bnn.fit(model, (x, y), bnn.Laplace(of="net", covariance="kron"), progress=False)


def theirs(work: Work, net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    options = {} if work.classes else {"sigma_noise": NOISE}
    task = "classification" if work.classes else "regression"

    def fit() -> Any:
        found = laplace.Laplace(
            net, task, subset_of_weights="all", hessian_structure="kron", prior_precision=PRIOR**-2, **options
        )
        found.fit(DataLoader(TensorDataset(x, y), batch_size=BATCH))
        found.log_marginal_likelihood()
        return found

    return fit


def measure(work: Work, rounds: int) -> list[dict[str, Any]]:
    net, x, y, new = problem(work)
    fits: dict[str, Callable[[], Any]] = dict(
        zip(CONTENDERS, (ours(work, net, x, y), theirs(work, net, x, y)), strict=True)
    )
    predict: dict[str, Callable[[Any], Any]] = {
        "bnn": lambda posterior: posterior.linear.moments(new),
        "laplace-torch": lambda found: found._glm_predictive_distribution(new),
    }
    times: dict[tuple[str, str], list[float]] = {(what, name): [] for what in ("fit", "predict") for name in fits}
    for round_number in range(rounds + 1):
        for name, fit in fits.items():
            started = time.perf_counter()
            fitted = fit()
            middle = time.perf_counter()
            if work.new:
                predict[name](fitted)
            if round_number:  # the first one warms up
                times["fit", name].append(middle - started)
                times["predict", name].append(time.perf_counter() - middle)
    rows = []
    for what in ("fit", "predict") if work.new else ("fit",):
        own, other = times[what, "bnn"], times[what, "laplace-torch"]
        ratio, quartiles = ratios(own, other)
        rows.append(
            {
                "work": work.name,
                "what": what,
                "bnn_ms": statistics.median(own) * 1e3,
                "laplace_torch_ms": statistics.median(other) * 1e3,
                "ratio": ratio,
                "ratio_quartiles": quartiles,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| net | | bnn, ms | laplace-torch, ms | ratio (quartiles) |", "|---|---|---|---|---|"]
    for row in rows:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['work']} | {row['what']} | {row['bnn_ms']:.1f} | {row['laplace_torch_ms']:.1f} "
            f"| {row['ratio']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    options_of = parser(__doc__, 9, "docs/measurements/laplace.json")
    options_of.add_argument("--nets", default=",".join(WORK))
    options = options_of.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for name in options.nets.split(","):
        rows += measure(WORK[name], options.rounds)
        print(table([row for row in rows if row["work"] == WORK[name].name]), flush=True)
    write(options, rows, **{"laplace-torch": version("laplace-torch")})


if __name__ == "__main__":
    main()
