"""Networks, data and points that all contenders get: the same numbers, by numpy, whatever the framework."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

#: With it, the Gaussian negative log-likelihood per datum is the squared error, up to a constant.
NOISE = 0.5**0.5
LR = 1e-3


@dataclass(frozen=True)
class Problem:
    """A network, the prior Normal(0, 1) on each of its weights, a likelihood, and batches.

    Args:
        title: Of its row.
        inputs: Shape of one row.
        classes: None: regression with known noise.
        batch: Rows of a step.
        steps: Steps of a round.
        sizes: Of a perceptron with ReLU; None: a network that only torch has (`benchmarks.nets`).
    """

    name: str
    title: str
    inputs: tuple[int, ...]
    classes: int | None
    batch: int
    steps: int
    sizes: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """N, of the whole set: the rows of one round."""
        return self.batch * self.steps

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """x (N, ...) and y (N, 1), or labels (N,)."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.rows, *self.inputs), dtype=np.float32)
        if self.classes:
            return x, rng.integers(0, self.classes, self.rows)
        return x, rng.standard_normal((self.rows, 1), dtype=np.float32)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights of a perceptron, by the names that torch's Sequential gives them."""
        assert self.sizes is not None
        found: dict[str, tuple[int, ...]] = {}
        for layer, (a, b) in enumerate(pairwise(self.sizes)):
            found |= {f"{2 * layer}.weight": (b, a), f"{2 * layer}.bias": (b,)}
        return found

    def start(self) -> dict[str, np.ndarray]:
        """Weights that everybody starts from: uniform in 1 / sqrt(fan-in), as torch's layers are."""
        rng = np.random.default_rng(1)
        found, bound = {}, 1.0
        for name, shape in self.shapes().items():
            bound = shape[1] ** -0.5 if len(shape) == 2 else bound  # a bias has its layer's
            found[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        return found

    def point(self, size: float) -> dict[str, dict[str, np.ndarray]]:
        """A Gaussian at which losses are compared: ``loc`` and ``scale``, of 0.5 to 1.5 `size`."""
        rng = np.random.default_rng(2)
        loc = self.start()
        scale = {k: (size * rng.uniform(0.5, 1.5, v.shape)).astype(np.float32) for k, v in loc.items()}
        return {"loc": loc, "scale": scale}


def mlp(name: str, sizes: tuple[int, ...], classes: int | None, batch: int, steps: int) -> Problem:
    """A perceptron."""
    title = f"{'-'.join(map(str, sizes))}, batch {batch}"
    return Problem(name, title, sizes[:1], classes, batch, steps, sizes)


PROBLEMS = {
    problem.name: problem
    for problem in (
        mlp("tiny", (8, 50, 1), None, 32, 50),
        mlp("small", (8, 50, 50, 1), None, 128, 50),
        mlp("mnist", (784, 400, 400, 10), 10, 128, 10),
        mlp("smoke", (3, 4, 1), None, 8, 4),
        Problem("conv", "conv 8-16 on 28x28, batch 64", (1, 28, 28), 10, 64, 20),
        Problem("lenet", "LeNet on 28x28, batch 64", (1, 28, 28), 10, 64, 20),
        Problem("resnet", "ResNet-8 (16-32-64) on 32x32, batch 32", (3, 32, 32), 10, 32, 4),
        Problem("transformer", "Transformer layer, width 64, 16 tokens, batch 32", (16, 64), 10, 32, 20),
    )
}


# --- what the losses of contenders are held against

#: Sizes of the scales at which losses are compared: with the small one the loss is (almost) no longer random, so that
#: both terms are seen exactly; with the large one, its expectation.
STILL, SPREAD = 1e-4, 0.1
#: How often a loss is evaluated at each: some estimate the divergence from a draw, so that no point makes it exact.
REPEATS = {STILL: 40, SPREAD: 100}
_EXPECTED: dict[tuple[str, float], tuple[float, float]] = {}


def forward(problem: Problem, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Outputs of a perceptron, (n, k)."""
    count = len(weights) // 2
    for layer in range(count):
        x = x @ weights[f"{2 * layer}.weight"].T + weights[f"{2 * layer}.bias"]
        x = np.maximum(x, 0) if layer < count - 1 else x
    return x


def nll(problem: Problem, outputs: np.ndarray, y: np.ndarray) -> float:
    """Negative log-likelihood per datum."""
    if problem.classes:
        top = outputs.max(1, keepdims=True)
        logits = outputs - top - np.log(np.exp(outputs - top).sum(1, keepdims=True))
        return float(-logits[np.arange(len(y)), y].mean())
    return float((0.5 * ((outputs - y) / NOISE) ** 2 + 0.5 * np.log(2 * np.pi * NOISE**2)).mean())


def expected(problem: Problem, size: float) -> tuple[float, float]:
    """Negative ELBO per datum of the first batch at `Problem.point`, and its standard error; size 0: the nll alone."""
    key = (problem.name, size)
    if key not in _EXPECTED:
        x, y = (part[: problem.batch] for part in problem.data())
        x = x.astype(np.float64)
        loc, scale = (_double(part) for part in problem.point(size).values())
        if not size:
            _EXPECTED[key] = nll(problem, forward(problem, loc, x), y), 0.0
            return _EXPECTED[key]
        rng = np.random.default_rng(3)
        kl = sum((0.5 * (s**2 + m**2 - 1) - np.log(s)).sum() for m, s in zip(loc.values(), scale.values(), strict=True))
        found = []
        for _ in range(REPEATS[size]):
            draw = {k: m + scale[k] * rng.standard_normal(m.shape) for k, m in loc.items()}
            found.append(nll(problem, forward(problem, draw, x), y))
        error = float(np.std(found) / len(found) ** 0.5)
        _EXPECTED[key] = float(np.mean(found) + kl / problem.rows), error
    return _EXPECTED[key]


def _double(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float64) for name, value in values.items()}


def check(problem: Problem, loss: Any, *, bayesian: bool) -> str:
    """Hold a contender's loss against the expected one; in words, empty where they agree.

    Args:
        problem: The work.
        loss: `Ready.loss`: takes the size of the scales and gives values of the loss per datum on the first batch.
        bayesian: Whether it has the divergence too; else the nll alone, at the means.
    """
    for size in (STILL, SPREAD) if bayesian else (0.0,):
        values = loss(size)
        mean, error = expected(problem, size)
        own = float(np.std(values) / max(1, len(values)) ** 0.5)
        allowed = 4 * (own**2 + error**2) ** 0.5 + 2e-4 * abs(mean)
        if not abs(float(np.mean(values)) - mean) <= allowed:
            return f"loss {np.mean(values):.5g} where {mean:.5g} is expected (scales {size:g}, allowed {allowed:.2g})"
    return ""
