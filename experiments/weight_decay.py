"""Weight decay is a prior, and AdamW's is not: a small real regression, shown in numbers.

Five questions, in the order of the file:

(a) Is ``torch.optim.SGD(weight_decay=...)`` MAP under a Gaussian prior? For a network, compared at every step.
(b) Does the L2 penalty of ``torch.optim.Adam(weight_decay=...)`` have the same optimum? For a linear model, whose mode
    is known in closed form.
(c) Where does ``torch.optim.AdamW(weight_decay=...)`` stop, with the same coefficient? Compared with that mode, and
    with what its own update rule says.
(d) What do L2 and L1 penalties of every strength do to the weights, and what are the posteriors under the matching
    Gaussian and Laplace priors?
(e) What does a network with more weights than rows learn without a penalty, and with each of them?

    python experiments/weight_decay.py             # half an hour at most
    python experiments/weight_decay.py --quick     # seconds, and less precise
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from frame import Study, experiment
from tables import Table
from torch import Tensor, nn
from weight_decay_figures import draw_overfit, draw_paths, draw_stops
from weight_decay_overfit import OVERFIT, overfit, summary
from weight_decay_paths import PATHS, at_strength
from weight_decay_setup import QUICK, Config, Data, linear, linear_decay, load

import bnn

# ----------------------------------------------------------------------------------------------------------------------
# (a) SGD with weight decay, and MAP under the prior that it amounts to: the same steps


def follow_sgd(config: Config, data: Data) -> dict[str, float]:
    """Two loops over the same batches, for a network of 241 weights; the largest difference after any step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 1), nn.Flatten(0)).double()
    order = torch.randperm(data.n)
    batches = [(data.x[rows], data.y[rows]) for rows in order.split(config.follow_batch)]  # 64 x 6, 58
    prior = bnn.priors.Normal.from_weight_decay(config.weight_decay, data.n, loss="mse", noise_scale=config.noise_scale)
    model = bnn.BNN(net, prior, bnn.likelihoods.Gaussian(config.noise_scale))

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


def stop(data: Data, config: Config, name: str, path: Tensor, expected: Tensor) -> dict[str, Any]:
    """Where an optimiser stopped, and its way there, every tenth step: distances, Euclidean over the weights."""
    end, target = path[-1], mode(data, config.weight_decay)
    return {
        "name": name,
        "from_mode": float((end - target).norm()),
        "from_unpenalised": float((end - mode(data, 0.0)).norm()),
        "from_expected": float((end - expected).norm()),
        "mse": float((data.x @ end - data.y).square().mean()),
        "weights": end.tolist(),
        "expected": expected.tolist(),
        "way": (path - target).norm(dim=1).tolist(),
    }


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


def compare_optimisers(config: Config, data: Data) -> list[dict[str, Any]]:
    sgd = functools.partial(torch.optim.SGD, lr=config.sgd_lr, momentum=config.momentum)
    adam = functools.partial(torch.optim.Adam, lr=config.adam_lr)
    adamw = functools.partial(torch.optim.AdamW, lr=config.adam_lr)
    target, ended = mode(data, config.weight_decay), functools.partial(stop, data, config)

    prior = bnn.priors.Normal.from_weight_decay(config.weight_decay, data.n, loss="mse", noise_scale=config.noise_scale)
    method = bnn.MAP(epochs=config.steps, lr=config.adam_lr, batch_size=None, schedule=linear_decay)
    model = bnn.BNN(linear(), prior, bnn.likelihoods.Gaussian(config.noise_scale))
    fitted = bnn.fit(model, (data.x, data.y), method, progress=False, compile="graph")
    stops = [
        ended("SGD, weight_decay", train(sgd, config, data), target),
        ended("Adam, weight_decay (L2)", train(adam, config, data), target),
        ended("bnn.MAP, Gaussian prior", fitted.draws()["0.weight"].reshape(1, 10), target),
        ended("AdamW, all rows", train(adamw, config, data), adamw_stop(data, config.weight_decay, None)),
    ]
    for size in reversed(config.batch_sizes):
        name, expected = f"AdamW, batches of {size}", adamw_stop(data, config.weight_decay, size)
        stops.append(ended(name, train(adamw, config, data, size), expected))
        stops.append(ended(f"{name}, loss x 10", train(adamw, config, data, size, loss_scale=10.0), expected))
    return stops


# ----------------------------------------------------------------------------------------------------------------------
# What is written

FOLLOW = {
    "steps": ("steps", ""),
    "moved": ("largest movement of a weight", ".2f"),
    "largest_difference": ("largest difference after any step", ".1e"),
    "difference_of_fit": ("the same at the end of `bnn.fit`", ".1e"),
}
STOPS = {
    "name": ("optimiser", ""),
    "from_mode": ("from the mode", ".1e"),
    "from_unpenalised": ("from no penalty", ".1e"),
    "from_expected": ("from its own rule", ".1e"),
    "mse": ("MSE", ".4f"),
}


@experiment(Config(), quick=QUICK)
def main(study: Study[Config]) -> None:
    config, data = study.config, load()
    follow = study.unit("follow", functools.partial(follow_sgd, config, data))
    stops = study.unit("stops", functools.partial(compare_optimisers, config, data))
    strengths = {"L2": config.l2_strengths, "L1": config.l1_strengths}
    paths = {
        penalty: [
            study.unit(f"{penalty}-{value:.3g}", functools.partial(at_strength, config, data, penalty, value))
            for value in values
        ]
        for penalty, values in strengths.items()
    }
    halves = [
        study.unit(f"overfit-{seed}", functools.partial(overfit, config, data, seed)) for seed in range(config.halves)
    ]
    ends = {row["name"]: torch.tensor(row["weights"]) for row in stops}
    moved = [float((ends[name] - ends[name.removesuffix(", loss x 10")]).norm()) for name in ends if "x 10" in name]
    # The loss ten times as large, and the same coefficient: a penalty a tenth as strong.
    mode_moves = float((mode(data, config.weight_decay) - mode(data, config.weight_decay / 10)).norm())
    unpenalised, penalised = (mode(data, decay).tolist() for decay in (0.0, config.weight_decay))
    study.figure("adamw", draw_stops(data.names, stops, unpenalised, penalised))
    study.figure("path", draw_paths(data.names, paths))
    study.figure("overfit", draw_overfit(halves, summary(halves)))
    rule = (
        f"Distances of the weights after {config.steps} steps: from the mode under the Gaussian prior, from the fit "
        "without a penalty, and from where the optimiser's own update rule says that it stops. Multiplying the loss by "
        f"10 moves the mode by {mode_moves:.3f}, and the end of AdamW by {max(moved):.0e}."
    )
    tables = [
        Table("SGD and MAP step by step", FOLLOW, [follow], f"Batches of {config.follow_batch}, the last one ragged."),
        Table("where optimisers stop", STOPS, stops, rule),
        Table("L2 penalty and Gaussian prior", PATHS, paths["L2"]),
        Table("L1 penalty and Laplace prior", PATHS, paths["L1"]),
        Table("more weights than rows", OVERFIT, summary(halves), "± one standard error over halves; paired."),
    ]
    results = {"follow": follow, "stops": stops, "mode_moves": mode_moves, "adamw_moves": max(moved), "paths": paths}
    results["overfit"] = {"rows": summary(halves), "halves": halves}
    text = f"Diabetes: 442 rows, 10 inputs, unit variance, float64. Coefficient {config.weight_decay}, `MSELoss`."
    study.finish(results, tables, text)


if __name__ == "__main__":
    main()
