"""A training step of mean-field variational inference, against plain PyTorch and against everybody else."""

from __future__ import annotations

from benchmarks.frame import Contender, Family, Reach, Work
from benchmarks.problems import PROBLEMS

PLAIN, COMPILED, SVI = "plain PyTorch", "plain, compiled, fused Adam", "Pyro SVI(AutoNormal)"
PEERS = ("tyxe", "blitz", "torchbnn", "bayesian-torch", "posteriors", "torch-uncertainty")
NUMPYRO, SCAN = "NumPyro, jitted update", "NumPyro, lax.scan"


def _ours(problem: str) -> tuple[Contender, ...]:
    def one(name: str, role: str = "beside", **settings: str) -> Contender:
        return Contender(name, "torch_steps:ours", {"problem": problem, **settings}, role=role)

    return (
        one("MeanField", "own"),
        one("MeanField, graph", backend="graph"),
        one("MeanField, eager", backend="eager"),
        one("MeanField, local", estimator="local"),
        one("MeanField, flipout", estimator="flipout"),
    )


def _work(problem: str, plain: float | None, *, peers: bool, rounds: int = 11) -> Work:
    own = {"problem": problem}
    contenders = [
        Contender(PLAIN, "torch_steps:plain", own, role="limit"),
        Contender(COMPILED, "torch_steps:plain_compiled", own),
        *_ours(problem),
        Contender(SVI, "torch_steps:pyro_svi", own, role="peer"),
    ]
    if peers:
        for name in PEERS:
            contenders.append(Contender(name, f"torch_peers:{name.replace('-', '_')}", own, role="peer"))
        contenders.append(Contender(NUMPYRO, "jax_steps:svi", own, python="jax", role="peer"))
        contenders.append(Contender(SCAN, "jax_steps:svi", {**own, "loop": "scan"}, python="jax"))
    title = PROBLEMS[problem].title
    reaches = []
    if plain is not None:
        reaches = [
            Reach(f"mean-field step, {title} / plain PyTorch Adam loop", "MeanField", (PLAIN,), plain),
            Reach(f"mean-field step, {title} / NumPyro's jitted update", "MeanField", (NUMPYRO,), 1.0),
            Reach(f"mean-field step, {title} / best PyTorch peer", "MeanField", (SVI, *PEERS), 0.35),
        ]
    return Work(problem, title, "ms a step", tuple(contenders), rounds, problem=problem, reaches=tuple(reaches))


FAMILY = Family(
    "step",
    "A training step of mean-field variational inference",
    """A step is batch selection, gradient and Adam. Every contender has the same network, start, batch, prior
Normal(0, 1), likelihood and float32; that each computes the same loss is checked before the rounds, at two
points: where the Gaussian is narrow, so that both terms are seen exactly, and where it is wide, in
expectation. `MeanField` is the epoch of `bnn.fit(method="mean_field", compile="inductor")`. NumPyro runs in
a process of its own, its rounds between the others'; batches are indexed inside its compiled update.
"plain, compiled, fused Adam" is the deterministic net, captured and compiled in the same way: a part of the
gain is not Bayesian.""",
    (
        _work("tiny", 0.8, peers=True),
        _work("small", 0.8, peers=True),
        _work("mnist", 1.6, peers=True, rounds=7),
        _work("conv", None, peers=False, rounds=7),
        _work("resnet", None, peers=False, rounds=5),
        _work("transformer", None, peers=False, rounds=7),
    ),
)


def _ivon() -> Work:
    def one(name: str, method: str, role: str = "beside") -> Contender:
        return Contender(name, "torch_steps:ours", {"problem": "mnist", "method": method}, role=role)

    return Work(
        "mnist",
        PROBLEMS["mnist"].title,
        "ms a step",
        (
            Contender(PLAIN, "torch_steps:plain", {"problem": "mnist"}, role="limit"),
            one("IVON", "ivon", "own"),
            one("MAP", "map"),
            one("MeanField", "mean_field"),
            Contender("ivon-opt", "torch_peers:ivon_opt", {"problem": "mnist"}, role="peer"),
        ),
        rounds=9,
        problem="mnist",
    )


IVON = Family(
    "ivon",
    "A step of IVON",
    "Against Adam on the same net and batch, and against its authors' optimiser, which has the divergence in its step.",
    (_ivon(),),
)
