"""A recorded program as straight Python, by the calls that cost the interpreter least.

A small network's step is all dispatch: `torch.fx`'s own code calls `torch.ops.aten.mul.Tensor`, whose arguments are
matched to a schema at every call (2 to 4 us), and wraps a Python number in a tensor each time (5 us). The same
operations by torch's Python functions, constants as globals and numbers as tensors made once take half the time, and
give the same bytes. See docs/design/performance.md.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

#: Operations whose function in `torch` takes the same arguments in the same order; exceptions: `_quickest`.
# fmt: off
_FUNCTIONS = [
    "abs", "add", "addcmul", "addmm", "amax", "amin", "argmax", "atan", "baddbmm", "bitwise_and", "bitwise_not",
    "bitwise_or", "bmm", "cat", "clamp", "clamp_min", "cos", "cumsum", "div", "eq", "erf", "exp", "expm1", "eye",
    "flip", "full", "gather", "ge", "gt", "index_select", "isnan", "le", "lgamma", "log", "log1p", "logaddexp",
    "logical_and", "logical_not", "lt", "masked_fill", "max", "maximum", "mean", "min", "minimum", "mm", "mul", "ne",
    "neg", "permute", "pow", "rand", "randn", "reciprocal", "rsqrt", "scalar_tensor", "select", "sgn", "sigmoid",
    "sign", "sin", "split_with_sizes", "sqrt", "squeeze", "stack", "sub", "sum", "t", "tanh", "transpose",
    "unsqueeze", "where",
]
# fmt: on
#: Of these torch's function follows a default device, the operation does not: only where the device is said.
_FACTORIES = ("eye", "full", "rand", "randn", "scalar_tensor")
_METHODS = ("view", "expand")
#: Whole numbers up to here are the same in double precision, through which a tensor of them is made.
_EXACT = 2**53
#: Operations in which a Python number on the right may as well be a tensor.
_ARITHMETIC = {
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
}


def replay(module: GraphModule) -> Callable[..., Sequence[Tensor]]:
    """A function that does what the module's `forward` does: the same operations on the same numbers, in its order."""
    return _Writer(module).function()


class _Writer:
    """Writes the function: a line a node, and what the lines refer to as globals."""

    def __init__(self, module: GraphModule):
        self.module = module
        self.globals: dict[str, Any] = {}
        self.names: dict[Node, str] = {}
        self.lines: list[str] = []
        self.last_user = {used: node for node in module.graph.nodes for used in node.all_input_nodes}

    def function(self) -> Callable[..., Sequence[Tensor]]:
        arguments = []
        for node in self.module.graph.nodes:
            self.names[node] = f"v{len(self.names)}"
            if node.op == "placeholder":
                arguments.append(self.names[node])
            elif node.op == "get_attr":
                self.names[node] = self._global(operator.attrgetter(str(node.target))(self.module))
            elif node.op == "output":
                self.lines.append(f"return {self._text(node.args[0])}")
            else:
                self._call(node)
        source = f"def program({', '.join(arguments)}):\n    " + "\n    ".join(self.lines)
        exec(compile(source, "<a recorded program>", "exec"), self.globals)
        program: Callable[..., Sequence[Tensor]] = self.globals["program"]
        return program

    def _call(self, node: Node) -> None:
        args = [self._text(arg) for arg in self._with_tensors(node)]
        if node.target is operator.getitem:
            result = f"{args[0]}[{args[1]}]"
        else:
            named = [f"{name}={self._text(value)}" for name, value in node.kwargs.items()]
            result = f"{self._global(_quickest(node))}({', '.join(args + named)})"
        self.lines.append(f"{self.names[node]} = {result}")
        # As soon as nobody needs a result any more, its memory is free.
        done = [
            self.names[used] for used in node.all_input_nodes if self.last_user[used] is node and used.op != "get_attr"
        ]
        done += [] if node.users else [self.names[node]]  # random numbers that nobody uses are drawn all the same
        if done:
            self.lines.append(f"{' = '.join(done)} = None")

    def _with_tensors(self, node: Node) -> list[Any]:
        """The arguments; a number that torch would wrap in a tensor at every call is one already."""
        args: list[Any] = list(node.args)
        if node.target not in _ARITHMETIC or node.kwargs or len(args) != 2 or not isinstance(args[0], Node):
            return args
        if not isinstance(args[1], float) and not (isinstance(args[1], int) and abs(args[1]) <= _EXACT):
            return args
        left, value = args[0].meta.get("val"), node.meta.get("val")
        if not isinstance(left, Tensor) or not isinstance(value, Tensor) or left.dtype != value.dtype:
            return args
        # On a GPU a tensor in main memory costs a copy; half precision computes with the number in single precision.
        if value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64):
            with torch.inference_mode(False):  # a constant made there could not be differentiated through
                args[1] = torch.tensor(args[1], dtype=value.dtype, device="cpu")
        return args

    def _text(self, value: Any) -> str:
        if isinstance(value, Node):
            return self.names[value]
        if isinstance(value, list | tuple):
            return f"[{', '.join(self._text(item) for item in value)}]"
        if value is None or isinstance(value, bool | int | str):
            return repr(value)
        return self._global(value)  # numbers too: infinity has no literal

    def _global(self, value: Any) -> str:
        name = f"g{len(self.globals)}"
        self.globals[name] = value
        return name


def _quickest(node: Node) -> Any:
    """What to call: torch's function of that name, or the operation itself without its wrapper in Python."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return target
    namespace, name = target._schema.name.split("::")
    if namespace != "aten" or (name in _FACTORIES and "device" not in node.kwargs):
        return target._op
    if target in (aten.add.Scalar, aten.sub.Scalar) and len(node.args) > 2:  # torch's takes a third for something else
        return target._op
    if name in _METHODS:
        return getattr(Tensor, name)
    return getattr(torch, name) if name in _FUNCTIONS else target._op
