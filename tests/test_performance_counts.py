"""What a step may cost, in counts, which do not depend on the machine: a guard of performance that times nothing."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import bnn
import bnn.capture
import bnn.inference.divergence
from bnn.capture import Captured
from bnn.inference import IVON, MAP, MeanField, optimizers
from bnn.inference import loop as loop_module
from bnn.inference.objective import Objective

ROWS, BATCH = 64, 16
STEPS = ROWS // BATCH

#: Operations in the recorded program of a step. A little room: torch's own decompositions move between releases.
NODES = {"map": 55, "mean_field": 75, "ivon": 92}
#: Operations that the dispatcher sees in a step outside the program, and tensors that a step allocates in all.
OUTSIDE, ALLOCATIONS = 18, 90

METHODS: dict[str, Callable[..., Any]] = {"map": MAP, "mean_field": MeanField, "ivon": IVON}


def model_of(hidden: int = 50, layers: int = 1) -> bnn.BNN:
    parts: list[nn.Module] = [nn.Linear(8, hidden), nn.ReLU()]
    for _ in range(layers - 1):
        parts += [nn.Linear(hidden, hidden), nn.ReLU()]
    net = nn.Sequential(*parts, nn.Linear(hidden, 1))
    return bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))


def fit(method: Any, model: bnn.BNN | None = None, rows: int = ROWS, **keywords: Any) -> bnn.Posterior:
    x = torch.randn(rows, 8)
    given = {"compile": "graph", "progress": False, **keywords}
    return bnn.fit(model or model_of(), (x, x[:, :1].sin()), method, **given)


@contextmanager
def objectives() -> Iterator[list[Objective]]:
    """The objectives that fits prepare meanwhile."""
    found: list[Objective] = []
    prepare = Objective.prepare

    def noting(self: Objective, *args: Any, **keywords: Any) -> None:
        found.append(self)
        prepare(self, *args, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "prepare", noting)
        yield found


def operations(method: Any, model: bnn.BNN | None = None) -> list[int]:
    """Calls of operations in each program that a fit records."""
    with objectives() as found:
        fit(method, model)
    graphs = [g for captured in found[0]._programs.values() for g in captured.graphs]
    return [sum(node.op == "call_function" for node in graph.graph.nodes) for graph in graphs]


# --- operations in the graph


@pytest.mark.parametrize("name", METHODS)
def test_operations_in_the_program_of_a_step(name):
    (count,) = operations(METHODS[name](epochs=1, batch_size=BATCH))
    assert count <= NODES[name]


def test_a_layer_adds_its_own_operations_and_no_prior_terms():
    """Forward, backward and views of one layer; its prior is part of one vector."""
    method = MeanField(epochs=1, batch_size=BATCH)
    (two,), (three,) = (operations(method, model_of(layers=k)) for k in (2, 3))
    assert three - two <= 14


def test_control_without_simplification_there_are_more(patch_line):
    patch_line(bnn.capture, "record", "simplify(module)", "pass")
    (count,) = operations(MeanField(epochs=1, batch_size=BATCH))
    assert count > NODES["mean_field"]


def test_control_prior_terms_a_site_are_seen(patch_line):
    patch_line(
        bnn.inference.divergence,
        "runs",
        "groupby(range(len(fns)), key=kind)",
        "[(kind(i), [i]) for i in range(len(fns))]",
    )
    method = MeanField(epochs=1, batch_size=BATCH)
    (two,), (three,) = (operations(method, model_of(layers=k)) for k in (2, 3))
    assert three - two > 14


# --- Pyro's handlers, and recordings


class Handlers:
    """How often Pyro applied its handlers, and how often a program was recorded."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.calls = self.recordings = 0
        apply, record = pyro.poutine.runtime.apply_stack, bnn.capture.record

        def applying(message: Any) -> Any:
            self.calls += 1
            return apply(message)

        def recording(*args: Any) -> Any:
            self.recordings += 1
            return record(*args)

        for module in (pyro.poutine.runtime, pyro.primitives):
            patch.setattr(module, "apply_stack", applying)
        patch.setattr(bnn.capture, "record", recording)


def handler_calls_a_step(method: Callable[..., Any], **keywords: Any) -> float:
    """From fits of 1 and 4 epochs, so that what happens once drops out."""
    counts = []
    for epochs in (1, 4):
        with pytest.MonkeyPatch.context() as patch:
            handlers = Handlers(patch)
            fit(method(epochs=epochs, batch_size=BATCH), **keywords)
        counts.append(handlers.calls)
    assert counts[0] > 0  # the model did run through Pyro
    return (counts[1] - counts[0]) / (3 * STEPS)


@pytest.mark.parametrize("name", METHODS)
def test_no_handler_of_pyro_is_called_in_a_step(name):
    assert handler_calls_a_step(METHODS[name]) == 0


def test_control_eager_steps_call_handlers():
    assert handler_calls_a_step(MeanField, compile="eager") > 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("rows", "programs"), [(64, 1), (70, 2)], ids=["even", "ragged"])
def test_a_fit_records_a_program_for_each_batch_size(monkeypatch, name, rows, programs):
    """IVON's update is a program too, of every size the same."""
    handlers = Handlers(monkeypatch)
    fit(METHODS[name](epochs=3, batch_size=BATCH), rows=rows)
    assert handlers.recordings == programs + (name == "ivon")


@pytest.mark.slow
def test_control_programs_that_are_not_kept_are_recorded_again(monkeypatch, patch_line):
    patch_line(Captured, "prepare", "if key not in self._programs:", "if True:")
    patch_line(Captured, "__call__", "self._programs.get(_key(tensors)) or ", "")
    handlers = Handlers(monkeypatch)
    fit(MeanField(epochs=2, batch_size=BATCH))
    assert handlers.recordings > 2


# --- what a step does outside its program, and what it allocates


class Seen(TorchDispatchMode):
    """Operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def steps_seen(method: Any) -> tuple[float, float]:
    """Operations outside the program, and allocations in all, a step: of the last epoch of a fit."""
    found: dict[str, float] = {}
    epoch = loop_module.Training._epoch

    def watched(self: Any) -> None:
        if self.at.epoch == 2:
            with Seen() as seen:
                epoch(self)
            program = next(iter(self.objective._programs.values()))
            inside = sum(
                node.op == "call_function" and "getitem" not in str(node.target)
                for node in program.graphs[0].graph.nodes
            )
            found["outside"] = sum(seen.names.values()) / STEPS - inside
        elif self.at.epoch == 3:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                epoch(self)
            events = profiled.profiler.kineto_results.events()
            found["allocations"] = sum(e.name() == "[memory]" and e.nbytes() > 0 for e in events) / STEPS
        else:
            epoch(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module.Training, "_epoch", watched)
        fit(method)
    return found["outside"], found["allocations"]


def test_operations_and_allocations_of_a_step():
    outside, allocations = steps_seen(MeanField(epochs=3, batch_size=BATCH))
    assert 0 < outside <= OUTSIDE
    assert 0 < allocations <= ALLOCATIONS


def test_control_an_optimiser_that_is_not_fused_is_seen(patch_line):
    patch_line(optimizers, "make", 'options["fused"] = True', 'options["foreach"] = False')
    outside, _ = steps_seen(MeanField(epochs=3, batch_size=BATCH))
    assert outside > OUTSIDE


def test_control_a_copy_of_the_parameters_a_step_is_seen(patch_line):
    patch_line(
        Objective, "_vectors", "[p.detach() for p in self._parameters.values() if p is not None]",
        "[p.detach().clone() for p in self.parameters() for _ in range(60)][::60]",
    )  # fmt: skip
    _, allocations = steps_seen(MeanField(epochs=3, batch_size=BATCH))
    assert allocations > ALLOCATIONS


@pytest.mark.parametrize("layers", [1, 4])
def test_the_optimiser_has_two_vectors_whatever_the_depth(layers):
    objective = MeanField().loss(model_of(layers=layers), 10, compile="eager")
    assert [name for name, _ in objective.named_parameters()] == ["loc", "log_scale"]


# --- the optimiser's step without what stands around its kernel


OPTIMISERS = {
    "adam": torch.optim.Adam,
    "amsgrad": functools.partial(torch.optim.Adam, amsgrad=True, weight_decay=0.1),
    "adamw": functools.partial(torch.optim.AdamW, weight_decay=0.3, betas=(0.8, 0.99)),
}


def ended(optimizer: Any) -> torch.Tensor:
    torch.manual_seed(0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR
    method = MAP(epochs=3, batch_size=BATCH, lr=0.01, optimizer=optimizer, schedule=schedule)
    draws = fit(method, model_of()).draws()
    return torch.cat([value.flatten() for value in draws.values()])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_short_step_is_the_optimisers_step(name, patch_line):
    short = ended(OPTIMISERS[name])
    patch_line(optimizers.Steps, "__init__", "_is_fused_adam(optimizer)", "False")
    assert torch.equal(short, ended(OPTIMISERS[name]))


def test_control_another_kernel_is_seen(patch_line):
    expected = ended(OPTIMISERS["adamw"])
    patch_line(optimizers.Steps, "_group", 'if group["decoupled_weight_decay"]', "if False")
    assert not torch.equal(expected, ended(OPTIMISERS["adamw"]))


def test_a_step_calls_the_optimiser_once_and_its_kernel_ever_after(monkeypatch):
    calls: list[int] = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *args: (calls.append(1), step(self, *args))[1])
    fit(MAP(epochs=2, batch_size=BATCH))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.Adam, foreach=True),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), fused=True),
        functools.partial(torch.optim.SGD, lr=0.1, fused=True),
    ],
    ids=["foreach", "lr is a tensor", "sgd"],
)
def test_other_optimisers_step_themselves(make):
    assert not optimizers._is_fused_adam(make([nn.Parameter(torch.zeros(2))]))


def test_an_optimiser_with_hooks_steps_itself():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))], fused=True)
    assert optimizers._is_fused_adam(optimizer)
    optimizer.register_step_post_hook(lambda *_: None)
    assert not optimizers._is_fused_adam(optimizer)
