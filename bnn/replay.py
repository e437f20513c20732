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

#: Operations whose function in `torch` takes the same arguments in the same order, whatever the overload.
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
_METHODS = ("view", "expand")
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
            result = f"{self._global(_quickest(node.target))}({', '.join(args + named)})"
        self.lines.append(f"{self.names[node]} = {result}")
        # As soon as nobody needs a result any more, its memory is free.
        done = [self.names[used] for used in node.all_input_nodes if self.last_user[used] is node]
        done = [name for name in done if name.startswith("v")]
        if done:
            self.lines.append(f"{' = '.join(done)} = None")

    def _with_tensors(self, node: Node) -> list[Any]:
        """The arguments; a number that torch would wrap in a tensor at every call is one already."""
        args: list[Any] = list(node.args)
        if node.target not in _ARITHMETIC or node.kwargs or not isinstance(args[0], Node) or isinstance(args[1], Node):
            return args
        left, value = (node.meta.get("val") for node in (args[0], node))
        if not isinstance(left, Tensor) or not isinstance(value, Tensor) or left.dtype != value.dtype:
            return args
        # On a GPU a tensor in main memory costs a copy; half precision computes with the number in single precision.
        if value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64):
            args[1] = torch.tensor(args[1], dtype=value.dtype)
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


def _quickest(target: Any) -> Callable[..., Any]:
    """What to call: torch's function of that name, or the operation itself without its wrapper in Python."""
    call: Callable[..., Any] = target
    if isinstance(target, torch._ops.OpOverload):
        namespace, name = target._schema.name.split("::")
        call = target._op
        if namespace == "aten" and name in (*_FUNCTIONS, *_METHODS):
            call = getattr(Tensor if name in _METHODS else torch, name)
    return call
