"""Laplace `kron`."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Reach, Work

_TITLES = {
    "small": "8-50-50-1, 1,000 rows",
    "mnist": "784-400-400-10, 2,000 rows",
    "lenet": "LeNet on 28x28, 2,000 rows",
}


def _work(problem: str, what: str) -> Work:
    title = f"{what}, {_TITLES[problem]}"
    contenders = (
        Contender("bnn", f"laplaces:{what}", {"problem": problem, "who": "bnn"}, role="own"),
        Contender("laplace-torch", f"laplaces:{what}", {"problem": problem, "who": "laplace-torch"}, role="peer"),
    )
    goal = (Reach(f"Laplace kron, {title} / laplace-torch", "bnn", ("laplace-torch",), 0.7),)
    return Work(f"{problem}-{what}", title, "ms", contenders, rounds=7, reaches=goal if problem == "lenet" else ())


FAMILY = Family(
    "laplace",
    "Laplace, Kronecker-factored",
    """A fit is everything from the trained network to a posterior with its marginal likelihood; a prediction is
mean and covariance of the linearised outputs, at 1,000 rows (LeNet: 20; laplace-torch keeps several Jacobians
of all rows, and did not fit into 23 GB at 200). laplace-torch runs with its defaults, on batches of 1,024.
The data are random numbers of MNIST's shape: what they are does not matter to the time.""",
    (
        _work("lenet", "fit"),
        _work("lenet", "predict"),
        _work("small", "fit"),
        _work("small", "predict"),
        _work("mnist", "fit"),
    ),
)
