"""A training step in plain torch, by Pyro, and here."""

from __future__ import annotations

import time
import warnings
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

import bnn
from benchmarks.frame import Gap, Ready, timed
from benchmarks.nets import constant, criterion, data_of, looped, losses, model_of, net_of, nll
from benchmarks.problems import LR, PROBLEMS
from bnn.capture import compiled, record
from bnn.data import as_source
from bnn.inference.base import GradientMethod, Run
from bnn.inference.loop import Training
from bnn.inference.states import Position


def plain(problem: str) -> Ready:
    """The loop that everybody writes."""
    work = PROBLEMS[problem]
    net, loss_fn = net_of(work), criterion(work)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss_fn(net(x), y).backward()
        optimizer.step()

    return looped(work, data_of(work), step, loss=nll(work, net) if work.sizes else None, terms="nll")


def plain_compiled(problem: str) -> Ready:
    """The deterministic net, captured, compiled and with fused Adam: what the loop could be."""
    work = PROBLEMS[problem]
    net, loss_fn = net_of(work), criterion(work)
    names = [name for name, _ in net.named_parameters()]
    params = [p.detach().clone() for p in net.parameters()]

    def value(values: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_fn(torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,)), y)

    def gradient(*tensors: Tensor) -> list[Tensor]:
        gradients, found = torch.func.grad_and_value(value)(list(tensors[:-2]), *tensors[-2:])
        return [*gradients, found]

    x, y = data_of(work)
    example = [*params, x[: work.batch], y[: work.batch]]
    program = compiled(record(gradient, example), example, "the plain net")
    optimizer = torch.optim.Adam(params, lr=LR, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        gradients = program(*params, x, y)
        for param, one in zip(params, gradients, strict=False):
            param.grad = one
        optimizer.step()

    def loss(size: float) -> list[float]:
        for name, param in zip(names, params, strict=True):
            param.copy_(torch.from_numpy(work.start()[name]))
        return [float(program(*params, x[: work.batch], y[: work.batch])[-1]) + constant(work)]

    return looped(work, (x, y), step, loss=loss if work.sizes else None, terms="nll")


def pyro_svi(problem: str) -> Ready:
    """Pyro's SVI with AutoNormal and its own Adam, on the same Pyro model."""
    work = PROBLEMS[problem]
    pyro.enable_validation(False)  # Pyro at its fastest
    store = pyro.get_param_store()
    own: dict[str, Any] = {"params": {}, "constraints": {}}  # other contenders have the same names
    model = model_of(work, net_of(work))
    guide = pyro.infer.autoguide.AutoNormal(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": LR}), pyro.infer.Trace_ELBO())

    def in_store(fn: Any, *args: Any, **kwargs: Any) -> Any:
        with store.scope(own) as kept:
            found = fn(*args, **kwargs)
        own.update(kept)
        return found

    def place(loc: dict[str, Tensor], scale: dict[str, Tensor]) -> None:
        for name in loc:
            store[f"AutoNormal.locs.{name}"], store[f"AutoNormal.scales.{name}"] = (
                loc[name].clone(),
                scale[name].clone(),
            )

    def value(x: Tensor, y: Tensor) -> float:
        return svi.evaluate_loss(x, y, n_data=work.rows) / work.rows - constant(work)

    ready = in_store(looped, work, data_of(work), partial(svi.step, n_data=work.rows))
    loss = losses(work, place, value)
    return Ready(partial(in_store, ready.round), None if loss is None else partial(in_store, loss))


METHODS = {"mean_field": bnn.MeanField, "ivon": bnn.IVON, "map": bnn.MAP}


def ours(problem: str, backend: str = "inductor", method: str = "mean_field", **settings: Any) -> Ready:
    """Epochs of the loop behind ``bnn.fit``."""
    work = PROBLEMS[problem]
    if method != "ivon":
        settings["lr"] = LR
    made = METHODS[method](batch_size=work.batch, epochs=100_000, **settings)
    started = time.perf_counter()
    fit = training(made, model_of(work, net_of(work)), data_of(work), backend)
    setup = time.perf_counter() - started
    objective = fit.objective

    def place(loc: dict[str, Tensor], scale: dict[str, Tensor]) -> None:
        with torch.no_grad():
            objective.get_parameter("loc").copy_(objective.latents.flatten(loc))
            flat = objective.latents.flatten(scale)
            if method == "ivon":
                objective.get_parameter("precision").copy_(flat**-2)
            else:
                objective.get_parameter("log_scale").copy_(flat.log())

    def run() -> None:
        epoch(fit)
        if objective.backends != [backend]:
            raise Gap(f"asked for {backend}, ran {objective.backends}")

    run()  # warm
    loss = losses(work, place, lambda x, y: objective(x, y).detach() - constant(work)) if method != "map" else None
    return Ready(lambda: timed(run, work.steps), loss, notes={"setup_s": setup})


def training(method: GradientMethod, model: bnn.BNN, data: Any, backend: str, build: Any = None) -> Training:
    """A fit that is ready for its first step; `build` makes the objective where that is not the method's own."""
    source = as_source(data, model.likelihood, model.like, method.batch_size)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what an estimator does not reach
        objective = (build or method.objective)(model, source.n, backend)
        return Training(method, objective, source, None, Run(seed=0, progress=False), started)


def epoch(fit: Training) -> None:
    """One epoch of a fit, and the place of the next."""
    fit._epoch()
    fit.at = Position(fit.at.epoch + 1)
