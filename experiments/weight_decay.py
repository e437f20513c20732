"""Weight decay is a prior, and AdamW's is not: a small real regression, shown in numbers.

Four questions, in the order of the file:

(a) Is ``torch.optim.SGD(weight_decay=...)`` MAP under a Gaussian prior? For a network, compared at every step.
(b) Does the L2 penalty of ``torch.optim.Adam(weight_decay=...)`` have the same optimum? For a linear model, whose mode
    is known in closed form.
(c) Where does ``torch.optim.AdamW(weight_decay=...)`` stop, with the same coefficient? Compared with that mode, and
    with what its own update rule says.
(d) What do L2 and L1 penalties of every strength do to the weights, and what are the posteriors under the matching
    Gaussian and Laplace priors?

    python experiments/weight_decay.py             # a few minutes; writes runs/experiments/weight_decay/
    python experiments/weight_decay.py --quick     # seconds, and less precise: for a test

Writes table.md, results.json, adamw.png and path.png.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso, Ridge
from torch import Tensor, nn

import bnn


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from. N = 442 rows, 10 inputs, all of unit variance."""

    # The noise scale of the Gaussian likelihood: least squares leaves R^2 = 0.52, and sqrt(1 - 0.52) = 0.69.
    noise_scale: float = 0.7
    # The coefficient that all optimisers are given. With MSELoss, c = 2 * 0.7^2 = 0.98, so that the prior's scale is
    # sqrt(c / (N * 0.1)) = sqrt(0.98 / 44.2) = 0.15: the least-squares weights reach 0.49, so the penalty is felt.
    weight_decay: float = 0.1

    # (a) 30 epochs of ceil(442 / 64) = 7 steps are 210 steps; the last batch of an epoch is ragged: 442 - 6 * 64 = 58.
    follow_epochs: int = 30
    follow_batch: int = 64
    follow_lr: float = 0.02  # with momentum 0.9 as good as 0.2 without
    momentum: float = 0.9

    # (b, c) The smallest curvature of the MSE is 2 * 0.0086 (the inputs are collinear), that of the penalised loss
    # 0.017 + 0.1 = 0.117: SGD at an effective rate of 0.02 / (1 - 0.9) = 0.2 takes 1 / (0.2 * 0.117) = 43 steps for a
    # factor e. AdamW without a penalty has but the 0.017, and needs most of these steps.
    steps: int = 5000
    sgd_lr: float = 0.02
    adam_lr: float = 0.01  # falls linearly to 0: 5000 steps could move a weight by 25, and it has to move by 0.5
    batch_sizes: tuple[int, ...] = (32, 128)  # 14 and 4 batches an epoch; beside these, all rows at once

    # (d) From no effect to almost all weights at 0: the L1 path is empty from 2 max|X'y| / N = 1.17 on.
    l2_strengths: tuple[float, ...] = tuple(float(s) for s in np.logspace(-3, 1, 9))  # two a decade
    l1_strengths: tuple[float, ...] = tuple(float(s) for s in np.logspace(-3, 0.0, 7))
    map_epochs: int = 2000  # one step an epoch: all rows at once
    mean_field_epochs: int = 2000
    path_lr: float = 0.02  # falls linearly to 0, so that an L1 weight of 0 is met to about 1e-4
    average: float = 0.25  # the last 500 steps, whose gradient noise is averaged out

    out: Path = Path("runs/experiments/weight_decay")

    def quick(self) -> Config:
        """The same questions in seconds: (a) stays as it is; the others are less precise."""
        return replace(
            self,
            steps=500,
            adam_lr=0.02,
            batch_sizes=(32,),
            l2_strengths=(0.1,),
            l1_strengths=(0.1,),
            map_epochs=400,
            mean_field_epochs=400,
        )


DRAWS = 20_000  # a standard deviation from them has a relative error of 1 / sqrt(2 * 20,000) = 0.5 %


@dataclass(frozen=True)
class Data:
    x: Tensor  # (442, 10), mean 0 and variance 1 a column
    y: Tensor  # (442,), likewise
    names: list[str]

    @property
    def n(self) -> int:
        return len(self.y)


def load() -> Data:
    """Ten measurements of 442 patients, and the progression of their diabetes a year later."""
    bunch = load_diabetes()
    x, y = (torch.from_numpy((a - a.mean(0)) / a.std(0)) for a in (bunch.data, bunch.target))
    return Data(x, y, list(bunch.feature_names))


def linear() -> nn.Module:
    """y = x w: the data have mean 0, so that there is no need of a bias. Starts at w = 0."""
    net = nn.Sequential(nn.Linear(10, 1, bias=False), nn.Flatten(0)).double()
    nn.init.zeros_(net[0].weight)
    return net


def gaussian(config: Config) -> bnn.likelihoods.Gaussian:
    return bnn.likelihoods.Gaussian(scale=config.noise_scale)


def linear_decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


# ----------------------------------------------------------------------------------------------------------------------
# (a) SGD with weight decay, and MAP under the prior that it amounts to: the same steps


def follow_sgd(config: Config, data: Data) -> dict[str, float]:
    """Two loops over the same batches, for a network of 241 weights; the largest difference after any step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 1), nn.Flatten(0)).double()
    order = torch.randperm(data.n)
    batches = [(data.x[rows], data.y[rows]) for rows in order.split(config.follow_batch)]  # 64 x 6, 58
    prior = bnn.priors.Normal.from_weight_decay(config.weight_decay, data.n, loss="mse", noise_scale=config.noise_scale)
    model = bnn.BNN(net, prior, gaussian(config))

    # MSELoss is c times the mean negative log-likelihood, so that a step on the latter needs c times the learning rate.
    c = 2 * config.noise_scale**2
    method = bnn.MAP(
        epochs=config.follow_epochs,
        lr=c * config.follow_lr,
        optimizer=functools.partial(torch.optim.SGD, momentum=config.momentum),
    )
    ours = method.loss(model, n_data=data.n)  # a module; it has copied the network
    our_optimizer = method.optimizer(ours.parameters(), lr=method.lr)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=config.follow_lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    start = copies(net)
    largest = 0.0
    for _ in range(config.follow_epochs):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()

            our_optimizer.zero_grad()
            ours(x, y).backward()
            our_optimizer.step()
            point = ours.latents.unflatten(ours.get_parameter("theta").detach())  # named weights of the flat vector
            largest = max(largest, difference(net, point))

    # The same through bnn.fit, from the same start and over the same batches.
    end = copies(net)
    net.load_state_dict(start)
    fitted = bnn.fit(model, batches, method, n_data=data.n, progress=False, compile="graph")
    net.load_state_dict(end)
    return {
        "steps": config.follow_epochs * len(batches),
        "moved": float(max((end[name] - start[name]).abs().max() for name in end)),
        "largest_difference": largest,
        "difference_of_fit": difference(net, {name: value[0] for name, value in fitted.draws().items()}),
    }


def copies(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def difference(net: nn.Module, ours: dict[str, Tensor]) -> float:
    """The largest difference of any weight."""
    return max(float((p.detach() - ours[name]).abs().max()) for name, p in net.named_parameters())


# ----------------------------------------------------------------------------------------------------------------------
# (b, c) Where three optimisers stop, given the same coefficient


def mode(data: Data, weight_decay: float | Tensor) -> Tensor:
    """argmin of MSE + (1/2) sum_i weight_decay_i w_i^2, (10,): 2 X'(Xw - y) / N + weight_decay * w = 0."""
    penalty = torch.diag(torch.as_tensor(weight_decay, dtype=data.x.dtype).expand(10))
    return torch.linalg.solve(2 * data.x.T @ data.x / data.n + penalty, 2 * data.x.T @ data.y / data.n)


def adamw_stop(data: Data, weight_decay: float, batch_size: int | None) -> Tensor:
    """Where AdamW's own update rule says that it stops, (10,).

    The update is ``-lr * (m / sqrt(v) + weight_decay * w)``, m and v being running means of the batch gradients g and
    of their squares. It stops where E[g] + weight_decay * sqrt(E[g^2]) * w = 0: weight w_i has the penalty
    ``weight_decay * sqrt(E[g_i^2])``. With all rows in a batch E[g^2] = E[g]^2, and a weight below 1 / weight_decay
    stops only where E[g] = 0: no penalty at all.
    """
    w = mode(data, 0.0)
    if batch_size is None:
        return w
    for _ in range(500):  # a damped fixed-point iteration
        rows = 2 * data.x * (data.x @ w - data.y)[:, None]  # (442, 10): the gradient of each row's squared error
        sampling = (data.n - batch_size) / (data.n - 1) / batch_size  # without replacement
        second_moment = rows.mean(0) ** 2 + sampling * rows.var(0, correction=0)
        w = 0.5 * w + 0.5 * mode(data, weight_decay * second_moment.sqrt())
    return w


@dataclass(frozen=True)
class Stop:
    """Where an optimiser stopped, how it came there, and where its rule says that it stops."""

    name: str
    path: Tensor  # (steps / 10 + 1, 10); the last row is the end
    expected: Tensor  # (10,)

    @property
    def weights(self) -> Tensor:
        return self.path[-1]


def train(
    make: Callable[..., torch.optim.Optimizer],
    config: Config,
    data: Data,
    batch_size: int | None = None,
    loss_scale: float = 1.0,
) -> Tensor:
    """A plain PyTorch loop on ``loss_scale * MSE``; the decay is the optimiser's own. The rate falls linearly to 0."""
    weights = torch.zeros(10, dtype=data.x.dtype, requires_grad=True)
    optimizer = make([weights], weight_decay=config.weight_decay)
    schedule = linear_decay(optimizer, config.steps)
    path = []
    for step, rows in zip(range(config.steps), batches_of(data.n, batch_size), strict=False):
        if step % 10 == 0:
            path.append(weights.detach().clone())
        optimizer.zero_grad()
        (loss_scale * (data.x[rows] @ weights - data.y[rows]).square().mean()).backward()
        optimizer.step()
        schedule.step()
    return torch.stack([*path, weights.detach()])


def batches_of(n: int, batch_size: int | None) -> Iterator[Any]:
    """Endlessly: all rows, or rows drawn anew for each batch."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield slice(None) if batch_size is None else torch.randperm(n, generator=generator)[:batch_size]


def compare_optimisers(config: Config, data: Data) -> list[Stop]:
    sgd = functools.partial(torch.optim.SGD, lr=config.sgd_lr, momentum=config.momentum)
    adam = functools.partial(torch.optim.Adam, lr=config.adam_lr)
    adamw = functools.partial(torch.optim.AdamW, lr=config.adam_lr)
    target = mode(data, config.weight_decay)

    prior = bnn.priors.Normal.from_weight_decay(config.weight_decay, data.n, loss="mse", noise_scale=config.noise_scale)
    model = bnn.BNN(linear(), prior, gaussian(config))
    method = bnn.MAP(epochs=config.steps, lr=config.adam_lr, batch_size=None, schedule=linear_decay)
    fitted = bnn.fit(model, (data.x, data.y), method, progress=False, compile="graph")

    stops = [
        Stop("SGD, weight_decay", train(sgd, config, data), target),
        Stop("Adam, weight_decay (L2)", train(adam, config, data), target),
        Stop("bnn.MAP, Gaussian prior", fitted.draws()["0.weight"].reshape(1, 10), target),
        Stop("AdamW, all rows", train(adamw, config, data), adamw_stop(data, config.weight_decay, None)),
    ]
    for size in reversed(config.batch_sizes):
        name, expected = f"AdamW, batches of {size}", adamw_stop(data, config.weight_decay, size)
        stops.append(Stop(name, train(adamw, config, data, size), expected))
        stops.append(Stop(f"{name}, loss x 10", train(adamw, config, data, size, loss_scale=10.0), expected))
    return stops


def distances(config: Config, data: Data, stop: Stop) -> dict[str, Any]:
    """Of the end from three places; Euclidean, over the ten weights."""
    return {
        "name": stop.name,
        "from_mode": float((stop.weights - mode(data, config.weight_decay)).norm()),
        "from_unpenalised": float((stop.weights - mode(data, 0.0)).norm()),
        "from_expected": float((stop.weights - stop.expected).norm()),
        "mse": float((data.x @ stop.weights - data.y).square().mean()),
    }


# ----------------------------------------------------------------------------------------------------------------------
# (d) Paths: penalties of every strength, and the posteriors under the matching priors


def path(config: Config, data: Data, penalty: str) -> list[dict[str, Any]]:
    """For each strength: the penalised weights, from MAP, and the mean and spread of the mean-field posterior."""
    options = {"n_data": data.n, "loss": "mse", "noise_scale": config.noise_scale}
    settings = {"lr": config.path_lr, "batch_size": None, "schedule": linear_decay}
    found = []
    for strength in config.l2_strengths if penalty == "L2" else config.l1_strengths:
        if penalty == "L2":
            prior = bnn.priors.Normal.from_weight_decay(strength, **options)
            # sklearn: |y - Xw|^2 + alpha |w|^2 is N times MSE + (strength / 2) |w|^2
            reference = Ridge(alpha=data.n * strength / 2, fit_intercept=False)
        else:
            prior = bnn.priors.Laplace.from_l1(strength, **options)
            # sklearn: |y - Xw|^2 / (2N) + alpha |w|_1 is half of MSE + strength |w|_1
            reference = Lasso(alpha=strength / 2, fit_intercept=False, tol=1e-10, max_iter=100_000)
        model = bnn.BNN(linear(), prior, gaussian(config))
        fit = functools.partial(bnn.fit, model, (data.x, data.y), progress=False, compile="graph")
        point = fit(bnn.MAP(epochs=config.map_epochs, **settings))
        method = bnn.MeanField(epochs=config.mean_field_epochs, estimator="local", average=config.average, **settings)
        draws = fit(method).draws(DRAWS)["0.weight"].reshape(DRAWS, 10)
        # The exact Gaussian posterior of the linear model, (10, 10), and what mean-field makes of it: Bishop, 10.1.2.
        precision = data.x.T @ data.x / config.noise_scale**2
        if penalty == "L2":
            precision = precision + torch.eye(10, dtype=precision.dtype) / prior.scale**2
        weights = point.draws()["0.weight"].reshape(10)
        found.append(
            {
                "strength": strength,
                "prior_scale": prior.scale,
                "map": weights.tolist(),
                "reference": reference.fit(data.x.numpy(), data.y.numpy()).coef_.tolist(),
                "mean": draws.mean(0).tolist(),
                "std": draws.std(0).tolist(),
                "exact_mean_field_std": (1 / precision.diagonal().sqrt()).tolist() if penalty == "L2" else None,
                "exact_std": precision.inverse().diagonal().sqrt().tolist() if penalty == "L2" else None,
                "interval": draws.quantile(torch.tensor([0.05, 0.95], dtype=draws.dtype), dim=0).tolist(),
            }
        )
    return found


# ----------------------------------------------------------------------------------------------------------------------
# What is written


def markdown(header: str, rows: list[list[str]]) -> str:
    columns = header.split("; ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(config: Config, results: dict[str, Any]) -> str:
    """All results as Markdown."""
    follow = results["follow"]
    parts = [
        "# Weight decay as a prior",
        f"Diabetes data of scikit-learn: 442 rows, 10 inputs, all scaled to unit variance; float64. Coefficient "
        f"{config.weight_decay} with `MSELoss`; noise scale {config.noise_scale}.",
        "## (a) SGD with weight decay, and MAP under `Normal.from_weight_decay`, step by step",
        f"A network of 241 weights, batches of {config.follow_batch}, the last one ragged, momentum {config.momentum}.",
        markdown(
            "steps; largest movement of a weight; largest difference after any step; the same at the end of `bnn.fit`",
            [
                [
                    str(follow["steps"]),
                    f"{follow['moved']:.2f}",
                    f"{follow['largest_difference']:.1e}",
                    f"{follow['difference_of_fit']:.1e}",
                ]
            ],
        ),
        f"## (b, c) Where the optimisers stop after {config.steps} steps",
        "Distances of the ten weights at the end: from the mode under the Gaussian prior, from the fit without a "
        "penalty, and from where the optimiser's own update rule says that it stops. Multiplying the loss by 10 moves "
        f"the mode by {results['mode_moves']:.3f}, and the end of AdamW by {results['adamw_moves']:.0e}.",
        markdown(
            "optimiser; from the mode; from no penalty; from its own rule; MSE",
            [
                [
                    row["name"],
                    *[f"{row[key]:.1e}" for key in ("from_mode", "from_unpenalised", "from_expected")],
                    f"{row['mse']:.4f}",
                ]
                for row in results["stops"]
            ],
        ),
    ]
    for penalty, prior in (("L2", "Gaussian"), ("L1", "Laplace")):
        parts += [
            f"## (d) {penalty} penalty and {prior} prior",
            markdown(
                "strength; prior scale; MAP, largest difference from scikit-learn; MAP, sum of absolute weights; "
                "MAP, weights below 0.001; mean-field, sum of absolute means; mean-field, standard deviations; "
                "exact, standard deviations; mean-field, 90 % intervals without 0",
                [path_row(row) for row in results["paths"][penalty]],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def path_row(row: dict[str, Any]) -> list[str]:
    point, (low, high) = np.array(row["map"]), np.array(row["interval"])
    return [
        f"{row['strength']:.3g}",
        f"{row['prior_scale']:.3g}",
        f"{np.abs(point - row['reference']).max():.0e}",
        f"{np.abs(point).sum():.3f}",
        str((np.abs(point) < 1e-3).sum()),
        f"{np.abs(row['mean']).sum():.3f}",
        f"{min(row['std']):.3f} to {max(row['std']):.3f}",
        "no closed form" if row["exact_std"] is None else f"{min(row['exact_std']):.3f} to {max(row['exact_std']):.3f}",
        str(((low > 0) | (high < 0)).sum()),
    ]


def draw_stops(config: Config, data: Data, stops: list[Stop]) -> Figure:
    """Left: the way to the mode, or elsewhere. Right: the weights where each stops."""
    target = mode(data, config.weight_decay)
    shown = [stop for stop in stops if "x 10" not in stop.name and len(stop.path) > 1]
    colours = dict(zip((s.name for s in shown), ("#1b7837", "#7fbf7b", "#f4a582", "#d6604d", "#67001f"), strict=False))
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for stop in shown:
        distance = (stop.path - target).norm(dim=1)
        left.semilogy(10 * np.arange(len(distance)), distance, color=colours[stop.name], label=stop.name)
    left.set(xlabel="step", ylabel="distance from the mode under the Gaussian prior", ylim=(1e-8, 2))
    left.legend(frameon=False, fontsize=8)

    places, adamw = np.arange(10), [stop for stop in shown if stop.name.startswith("AdamW")]
    offsets = np.linspace(-0.2, 0.2, len(adamw))
    right.axhline(0, color="0.8", lw=0.8)
    right.plot(places - 0.4, mode(data, 0.0), "_", color="0.4", ms=8, mew=2, label="no penalty")
    for offset, stop in zip(offsets, adamw, strict=True):
        right.plot(places + offset, stop.weights, ".", color=colours[stop.name], label=stop.name)
        right.plot(places + offset, stop.expected, "o", ms=7, mfc="none", mec=colours[stop.name], mew=0.7)
    right.plot([], [], "o", ms=7, mfc="none", mec="0.4", mew=0.7, label="where AdamW's rule says")
    right.plot(places + 0.4, target, "_", color="#1b7837", ms=8, mew=2, label="mode, Gaussian prior")
    right.set(xticks=places, xticklabels=data.names, ylabel="weight at the end")
    right.legend(frameon=False, fontsize=8)
    return figure


def draw_paths(data: Data, paths: dict[str, Any]) -> Figure:
    """Rows: L2 and L1. Columns: penalised weights; posterior means with 90 % intervals."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True)
    colours = matplotlib.colormaps["tab10"].colors
    for row, (penalty, prior) in zip(panels, (("L2", "Gaussian"), ("L1", "Laplace")), strict=True):
        strengths = [entry["strength"] for entry in paths[penalty]]
        points, means = (np.array([entry[key] for entry in paths[penalty]]) for key in ("map", "mean"))
        intervals = np.array([entry["interval"] for entry in paths[penalty]])  # (strengths, 2, 10)
        for i, (name, colour) in enumerate(zip(data.names, colours, strict=True)):
            row[0].semilogx(strengths, points[:, i], color=colour, lw=1.5, label=name)
            row[1].semilogx(strengths, means[:, i], color=colour, lw=1.5)
            row[1].fill_between(strengths, intervals[:, 0, i], intervals[:, 1, i], color=colour, alpha=0.2, lw=0)
        row[0].set(title=f"{penalty} penalty: the mode", ylabel="weight")
        row[1].set(title=f"{prior} prior: mean-field means and 90 % intervals")
        for axes in row:
            axes.axhline(0, color="0.5", lw=0.6)
            axes.set(xlabel=f"strength of the {penalty} penalty")
    panels[0, 0].legend(frameon=False, fontsize=8, ncols=2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds in the place of minutes, and less precise")
    parser.add_argument("--out", type=Path, default=Config.out, help=f"folder of the results ({Config.out})")
    options = parser.parse_args()
    config = replace(Config(), out=options.out)
    config = config.quick() if options.quick else config

    data = load()
    stops = compare_optimisers(config, data)
    ends = {stop.name: stop.weights for stop in stops}
    moved = [ends[name] - ends[name.removesuffix(", loss x 10")] for name in ends if "x 10" in name]
    results = {
        "follow": follow_sgd(config, data),
        "stops": [distances(config, data, stop) for stop in stops],
        # the loss ten times as large, and the same coefficient: a penalty a tenth as strong
        "mode_moves": float((mode(data, config.weight_decay) - mode(data, config.weight_decay / 10)).norm()),
        "adamw_moves": max(float(move.norm()) for move in moved),
        "paths": {penalty: path(config, data, penalty) for penalty in ("L2", "L1")},
    }

    config.out.mkdir(parents=True, exist_ok=True)
    text = report(config, results)
    (config.out / "table.md").write_text(text, encoding="utf-8")
    (config.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        draw_stops(config, data, stops).savefig(config.out / "adamw.png", dpi=130)
        draw_paths(data, results["paths"]).savefig(config.out / "path.png", dpi=130)
    print(text)
    print(f"written to {config.out}: table.md, results.json, adamw.png, path.png")


if __name__ == "__main__":
    main()
