"""Capture: what may be captured gives the same numbers, what may not falls back with a warning that says why."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import make
from torch import Tensor, nn

import bnn
from bnn.capture import Captured, CaptureWarning, _choose, have_compiler, record
from bnn.graph import bind_constants


def regression(net: nn.Module, rows: int = 20) -> tuple[bnn.BNN, tuple[Tensor, Tensor]]:
    _, x, y = make("mlp", rows)
    return bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5)), (x, y)


class Branching(nn.Module):
    """Branches on a value: what was recorded for one batch is wrong for another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out if bool(x.sum() > 0) else -out


class Counting(Branching):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


class NumpyNoise(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + float(np.random.default_rng().normal())


@pytest.mark.parametrize(
    ("net", "why"),
    [(Branching, "tracing tensor"), (Counting, "besides its tensors"), (NumpyNoise, "besides its tensors")],
)
def test_what_cannot_be_captured_runs_eagerly_and_says_why(net: type[nn.Module], why: str) -> None:
    model, data = regression(net())
    with pytest.warns(CaptureWarning, match=why):
        posterior = bnn.fit(model, data, bnn.MeanField(epochs=2), compile="graph", progress=False)
    assert posterior.history.backend == "eager"
    assert posterior.history.loss.isfinite().all()


def test_a_long_unrolled_network_stays_eager_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnn.capture.OPERATION_BUDGET", 30)
    model, data = regression(nn.Linear(8, 1))
    with pytest.warns(CaptureWarning, match="operations, over 30"):
        posterior = bnn.fit(model, data, bnn.MeanField(epochs=2), compile="graph", progress=False)
    assert posterior.history.backend == "eager"


def test_capture_moves_neither_the_random_state_nor_its_arguments() -> None:
    def fn(a: Tensor) -> list[Tensor]:
        b = a.clone()
        b.add_(torch.randn(3))
        return [b]

    a, before = torch.ones(3), torch.get_rng_state()
    captured = Captured(fn, "graph")
    captured.prepare(a)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, torch.ones(3))
    torch.manual_seed(3)
    expected = fn(a)[0]
    torch.manual_seed(3)
    assert torch.equal(captured(a)[0], expected)
    assert captured.backends == ["graph"]


def test_programs_are_kept_by_shape_dtype_and_autocast() -> None:
    captured = Captured(lambda a, b: [a @ b], "graph")
    one, two = torch.randn(2, 3), torch.randn(3, 2)
    assert captured(one, two)[0].dtype == torch.float32
    captured(torch.randn(4, 3), two)
    captured(one.double(), two.double())
    captured(one, two)
    assert len(captured.backends) == 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = captured(one, two)[0]
        torch.testing.assert_close(inside, one @ two)
    assert inside.dtype == torch.bfloat16
    assert captured(one, two)[0].dtype == torch.float32
    assert len(captured.backends) == 4


def test_autocast_reaches_an_eager_program_too() -> None:
    captured = Captured(lambda a, b: [a @ b], "eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert captured(torch.randn(2, 3), torch.randn(3, 2))[0].dtype == torch.bfloat16


def test_closed_over_tensors_are_read_at_every_call() -> None:
    scale = torch.tensor(2.0)
    captured = Captured(lambda a: [a * scale * torch.tensor(3.0)], "graph")
    assert float(captured(torch.ones(2))[0][0]) == 6
    scale.fill_(5.0)
    assert float(captured(torch.ones(2))[0][0]) == 15


def test_simplification_shares_folds_and_keeps_random_draws_apart() -> None:
    def fn(a: Tensor) -> list[Tensor]:
        one = torch.ones_like(a) * 1.0
        return [(a.exp() + a.exp()) * one + torch.randn(2) - torch.randn(2), a.t().t() + 0.0]

    module = record(fn, [torch.ones(2, 2)])
    names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    assert names.count("aten.exp.default") == 1
    assert names.count("aten.randn.default") == 2
    assert not {"aten.ones_like.default", "aten.t.default", "aten.mul.Tensor"} & set(names)


def test_constants_can_be_bound_as_arguments() -> None:
    module = record(lambda a: [a * torch.tensor([1.0, 2.0])], [torch.ones(2)])
    bare, constants = bind_constants(module)
    assert [c.tolist() for c in constants] == [[1.0, 2.0]]
    assert torch.equal(bare(*constants, torch.full((2,), 3.0))[0], torch.tensor([3.0, 6.0]))


def test_auto_decides_from_counts() -> None:
    assert _choose(nodes=100, values=500, calls=1000) == "graph"
    assert _choose(nodes=100, values=500, calls=None) == "graph"
    expected = "inductor" if have_compiler() else "graph"
    assert _choose(nodes=100, values=500_000, calls=100_000) == expected


def test_inductor_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnn.capture.have_compiler", lambda: False)
    model, data = regression(nn.Linear(8, 1))
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler"):
        bnn.fit(model, data, bnn.MAP(epochs=1), compile="inductor", progress=False)
    assert _choose(nodes=100, values=500_000, calls=100_000) == "graph"


COMPILED = pytest.param("inductor", marks=pytest.mark.skipif(not have_compiler(), reason="no C++ compiler"))


@pytest.mark.parametrize("strided_first", [True, False])
@pytest.mark.parametrize("backend", ["graph", COMPILED])
def test_a_program_takes_any_layout_in_memory(backend: Any, strided_first: bool) -> None:
    """An ensemble's last batch is a part of each member's: prepared as a view, given as a copy."""
    view = torch.randn(3, 8, 4)[:, :5]
    examples = [view, view.clone()]
    first, second = examples if strided_first else examples[::-1]
    program = Captured(lambda a: [2 * a.flatten() + 1], backend)
    program.prepare(first)
    for given in (first, second):
        torch.testing.assert_close(program(given)[0], 2 * given.flatten() + 1)


def test_control_layout(patch_line: Any) -> None:
    patch_line(bnn.capture, "_laid_out", "if t.is_contiguous()", "if True")
    with pytest.raises(RuntimeError, match="view size"):
        test_a_program_takes_any_layout_in_memory("graph", strided_first=False)


class Reordered(nn.Module):
    """A dense block's first layer: what came before, which is one thing, in a row; then a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cat([x.view(-1, 2, 4).transpose(1, 2)], 1).flatten(1))


@pytest.mark.parametrize("wrong", [False, True])
def test_what_is_left_out_keeps_its_place_in_memory(wrong: bool, patch_line: Any) -> None:
    """A concatenation of one tensor is that tensor only if it lies in memory as the result would."""
    if wrong:
        patch_line(bnn.graph, "_equal_to_argument", "and _strides(node) == _strides(one)", "")
    model, data = regression(Reordered())
    method = bnn.MAP(epochs=2)
    if wrong:
        with pytest.warns(CaptureWarning, match="view size"):
            bnn.fit(model, data, method, compile="graph", progress=False)
        return
    eager, graph = (bnn.fit(model, data, method, compile=c, progress=False).history for c in ("eager", "graph"))
    assert graph.backend == "graph"
    torch.testing.assert_close(graph.loss, eager.loss)


@pytest.mark.parametrize(
    ("call", "left_out"),
    [
        (lambda x: torch.cat([x.exp()]) * 2, "cat"),
        (lambda x: x.select(0, 0).select(0, 0).exp().sum() * 2, "sum"),
        (lambda x: x.exp() + torch.full_like(x, 2.0).log(), "full_like"),
    ],
)
def test_calls_that_do_nothing_are_left_out(call: Callable[[Tensor], Tensor], left_out: str) -> None:
    x = torch.rand(3, 4)
    module = record(lambda x: [call(x)], [x])
    assert left_out not in module.code
    torch.testing.assert_close(module(x)[0], call(x))


@pytest.mark.parametrize("call", [torch.zeros_like, torch.ones_like, lambda x: torch.full_like(x, 2.0)])
def test_a_constant_lies_in_memory_as_it_would(call: Callable[[Tensor], Tensor]) -> None:
    def flat(x: Tensor) -> list[Tensor]:
        return [call(x.t()).t().view(-1) * x.view(-1)]

    x = torch.rand(3, 4)
    assert torch.equal(record(flat, [x])(x)[0], flat(x)[0])


def test_an_argument_may_lie_otherwise_the_next_time() -> None:
    captured = Captured(lambda x: [torch.cat([x]).view(-1) * 2], "graph")
    for x in (torch.rand(4, 4), torch.rand(4, 4).t()):
        assert torch.equal(captured(x)[0], x.flatten() * 2)
