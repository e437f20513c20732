"""Where a step's time goes: ``python -m benchmarks.profile [tiny|small|mnist] [--threads 1]``, by torch.profiler."""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import torch
from torch.profiler import ProfilerActivity, profile, record_function

import bnn
from benchmarks.nets import data_of, model_of, net_of
from benchmarks.problems import LR, PROBLEMS
from benchmarks.torch_steps import epoch, training
from bnn.inference.loop import Training
from bnn.inference.optimizers import Steps

EPOCHS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("problem", nargs="?", default="tiny", choices=("tiny", "small", "mnist"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    problem = PROBLEMS[given.problem]
    method = bnn.MeanField(batch_size=problem.batch, epochs=100_000, lr=LR)
    fit = training(method, model_of(problem, net_of(problem)), data_of(problem), "inductor")
    epoch(fit)
    steps = problem.steps * EPOCHS
    started = time.perf_counter()
    for _ in range(EPOCHS):
        epoch(fit)
    whole = (time.perf_counter() - started) / steps * 1e6
    _mark(fit)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(EPOCHS):
            epoch(fit)
    print(f"{problem.title}, {given.threads} threads: {whole:.0f} us a step without the profiler; with it, us a step:")
    rows = sorted(profiled.key_averages(), key=lambda row: -row.self_cpu_time_total)
    for row in rows[:22]:
        own, total = (getattr(row, f"{kind}cpu_time_total") / steps for kind in ("self_", ""))
        print(f"{own:8.1f} {total:8.1f}  {row.count / steps:5.1f} x  {row.key[:90]}")


def _mark(fit: Training) -> None:
    """Name the parts of a step for the profiler."""
    (captured,) = fit.objective._programs.values()
    for key, program in list(captured._programs.items()):

        def marked(*tensors: torch.Tensor, program: object = program) -> object:
            with record_function("the compiled program"):
                return program(*tensors)  # type: ignore[operator]

        captured._programs[key] = marked  # type: ignore[assignment]
    step = fit.steps

    def stepped(closure: object) -> None:
        with record_function("optimiser, with the gradient"):
            Steps.__call__(step, closure)  # type: ignore[arg-type]

    fit.steps = stepped  # type: ignore[assignment]


if __name__ == "__main__":
    main()
