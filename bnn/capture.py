"""Pyro runs once: a function of tensors that calls Pyro becomes the same function without Pyro.

`torch.fx`'s `make_fx` records every tensor operation of one call, those of the gradient and the random draws among
them. The record is a flat program; it is simplified (`bnn.graph`), checked against the function on other inputs and
another seed, and run ever after: as straight Python (``graph``, `bnn.replay`) or compiled (``inductor``). See
docs/design/capture.md.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import pyro
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from bnn.graph import bind_constants, simplify
from bnn.precision import network_dtype
from bnn.random import isolated
from bnn.replay import replay

Backend = Literal["auto", "eager", "graph", "inductor"]
Program = Callable[..., Sequence[Tensor]]

#: Operations in one eager call above which a recording takes longer than it saves (an LSTM over 200 steps has 14,000).
OPERATION_BUDGET = 10_000

# `auto` pays for inductor where it saves this often what it costs. Seconds a node and a value of the parameters that
# compiling saves per call, and seconds that it takes: docs/design/capture.md has the measurements.
_SAVED_PER_NODE, _SAVED_PER_VALUE, _COMPILE_SECONDS, _PAYS = 1.5e-6, 5e-9, 20.0, 2.0


class CaptureWarning(UserWarning):
    """A function could not be captured, and runs through Pyro at every call."""


class Captured:
    """A function of tensors, with one program for each set of shapes, dtypes, devices and autocast state.

    Args:
        fn: Takes tensors only and returns a sequence of tensors. It must not change its arguments; in-place operations
            on tensors of its own are fine. Whatever it reads besides is burnt in.
        backend: ``"eager"`` calls `fn`; ``"graph"`` the recorded program; ``"inductor"`` its compiled form;
            ``"auto"`` chooses between the last two before the first call, from counts (see `prepare`).
        what: What the function is, for messages.
        check: Called with the same tensors, Pyro's validation on, before a program is made: to tell a bad shape or
            label in words.
    """

    def __init__(
        self,
        fn: Program,
        backend: Backend = "auto",
        what: str = "the model",
        check: Callable[..., Any] | None = None,
    ):
        if backend not in ("auto", "eager", "graph", "inductor"):
            raise ValueError(f"compile is 'auto', 'eager', 'graph' or 'inductor', not {backend!r}")
        self.fn = fn
        self.requested = backend
        self.what = what
        self._check = check
        self._programs: dict[Any, Program] = {}
        #: The backend of each program, in the order in which they were made.
        self.backends: list[str] = []
        #: The fx graph of each captured program.
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """What ``fn(*tensors)`` returns."""
        program = self._programs.get(_key(tensors)) or self.prepare(*tensors)
        return program(*tensors)

    def prepare(self, *tensors: Tensor, calls: int | None = None) -> Program:
        """Make (or find) the program for tensors like these; nothing of theirs, nor the random state, changes.

        Args:
            tensors: Example arguments.
            calls: How often the program will be called, as far as known; ``"auto"`` compiles where that pays.
        """
        key = _key(tensors)
        if key not in self._programs:
            self._programs[key] = self._make(tensors, calls)
        return self._programs[key]

    def _make(self, tensors: Sequence[Tensor], calls: int | None) -> Program:
        # Of the caller's: what runs here gets copies, one set at a time.
        tensors = [t.detach() if self.requested == "eager" else t.detach().contiguous() for t in tensors]
        device = tensors[0].device
        if self._check is not None:
            with isolated(device=device), pyro.validation_enabled(True), torch.no_grad():
                self._check(*[t.clone() for t in tensors])
        eager = self._without_validation
        if self.requested == "eager":
            return self._keep("eager", eager)
        with isolated(device=device), _Count() as count:
            try:
                eager(*[t.clone() for t in tensors])
            except RuntimeError as error:
                if type(error) is not RuntimeError:  # one of ours, in words
                    raise
                raise RuntimeError(
                    f"{self.what} cannot be evaluated: {_first_lines(error)} (torch.func takes its gradient; it knows "
                    "no packed sequences, and no operation that reads a tensor's memory: see docs/networks.md)"
                ) from error
        if count.operations > OPERATION_BUDGET:
            return self._give_up(f"one call makes {count.operations} operations, over {OPERATION_BUDGET}")
        try:
            module = record(eager, tensors)
            program = replay(module)
            agrees = self._agrees(program, tensors)
        except Exception as error:
            return self._give_up(f"{type(error).__name__}: {_first_lines(error)}")
        if not agrees:
            return self._give_up(
                "the recorded program differs from the function on other inputs or another seed; it reads something "
                "besides its tensors (a counter, numpy's random numbers, a Python branch)"
            )
        backend = self.requested
        if backend == "auto":
            backend = _choose(len(module.graph.nodes), max(t.numel() for t in tensors), calls)
        if backend == "inductor":
            program = compiled(module, tensors, self.what)
            if not self._agrees(program, tensors):
                raise RuntimeError(f"inductor's program of {self.what} differs from eager: use compile='graph'")
        self.graphs.append(module)
        return self._keep(backend, _laid_out(_without_autocast(program, device) if _autocast(tensors) else program))

    def _keep(self, backend: str, program: Program) -> Program:
        self.backends.append(backend)
        return program

    def _give_up(self, why: str) -> Program:
        warnings.warn(
            f"{self.what} cannot be captured and runs through Pyro at every step (slower, same results): {why}",
            CaptureWarning,
            stacklevel=2,
        )
        return self._keep("eager", self._without_validation)

    def _without_validation(self, *tensors: Tensor) -> Sequence[Tensor]:
        with pyro.validation_enabled(False):
            return self.fn(*tensors)

    def _agrees(self, program: Program, tensors: Sequence[Tensor]) -> bool:
        """Whether program and function give the same on other numbers under another seed."""
        device = tensors[0].device
        with isolated(seed=20_011, device=device):
            expected = self._without_validation(*[_disturbed(t) for t in tensors])
        with isolated(seed=20_011, device=device), torch.autocast(device.type, enabled=False):
            got = program(*[_disturbed(t) for t in tensors])
        return all(_close(a, b) for a, b in zip(got, expected, strict=True))


def record(fn: Program, tensors: Sequence[Tensor]) -> torch.fx.GraphModule:
    """The flat tensor program that ``fn(*tensors)`` runs, without in-place operations, simplified."""
    clones = [t.detach().clone() for t in tensors]

    def outputs(*args: Tensor) -> tuple[Tensor, ...]:
        return tuple(fn(*args))

    with isolated(device=clones[0].device):
        functional = torch.func.functionalize(outputs, remove="mutations")
        module = make_fx(functional)(*clones)
    simplify(module)
    return module


def compiled(module: torch.fx.GraphModule, tensors: Sequence[Tensor], what: str) -> Program:
    """Inductor's form of a recorded program, for tensors that lie in memory as these.

    Its random numbers are torch's own, so that seeds mean the same.

    Raises:
        RuntimeError: There is no C++ compiler.
    """
    from torch._inductor.compile_fx import compile_fx

    if tensors[0].device.type == "cpu" and not have_compiler():
        raise RuntimeError(f"compile='inductor' needs a C++ compiler, and there is none to compile {what}: use 'graph'")
    bare, constants = bind_constants(module)
    for node in bare.graph.nodes:
        node.meta.clear()  # the fake tensors of the recording: inductor makes its own
    # A wrapper in C++ around the kernels: half the overhead of one in Python, which for small networks is half a step.
    options = {"fallback_random": True, "cpp_wrapper": tensors[0].device.type == "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own imports
        example: list[Any] = [*constants, *tensors]
        program = cast(Program, compile_fx(bare, example, config_patches=options))
    return lambda *args: program(*constants, *args)


def have_compiler() -> bool:
    """Whether inductor would find a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name)


def _laid_out(program: Program) -> Program:
    """A program takes one layout in memory: that of a batch is another where it is a part of a larger one."""
    return lambda *args: program(*[t if t.is_contiguous() else t.contiguous() for t in args])


def _without_autocast(program: Program, device: torch.device) -> Program:
    """A program recorded under autocast: its casts are in it, and must not be made twice."""

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        with torch.autocast(device.type, enabled=False):
            return program(*tensors)

    return run


def _choose(nodes: int, values: int, calls: int | None) -> Literal["graph", "inductor"]:
    """Compile where the calls to come save clearly more than it costs: from counts, never from a clock."""
    saved = (calls or 0) * (nodes * _SAVED_PER_NODE + values * _SAVED_PER_VALUE)
    return "inductor" if saved > _PAYS * _COMPILE_SECONDS and have_compiler() else "graph"


def _key(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    return (*[(t.shape, t.dtype, t.device) for t in tensors], _autocast(tensors), network_dtype())


def _autocast(tensors: Sequence[Tensor]) -> torch.dtype | None:
    kind = tensors[0].device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _disturbed(tensor: Tensor) -> Tensor:
    """Other values of the same kind, in memory of their own: rows in reverse, 1 % more where a number can be any."""
    tensor = tensor.flip(0) if tensor.dim() else tensor
    return tensor * 1.01 if tensor.is_floating_point() else tensor.clone()


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding, relative to the largest entry."""
    if not a.is_floating_point() or a.numel() == 0:
        return torch.equal(a, b)
    tolerance = 1e4 * torch.finfo(a.dtype).eps
    finite = b[b.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(size, 1e-30), equal_nan=True)


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class _Count(TorchDispatchMode):
    """Counts the operations that reach the dispatcher."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))
