"""Simplification of recorded tensor programs: what a compiler would do, for the backend that does not compile.

The programs are free of in-place operations (`bnn.capture.record`), so that equal calls may be shared and results
reused. Random operations are never moved, shared or dropped: the same seed has to give the same numbers as the function
itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

#: Results larger than this (in memory, not in elements) are not kept as constants.
_CONSTANT_BYTES = 1 << 16
#: Calls whose result is known from shapes alone.
_FILLS = {
    aten.ones_like.default: 1,
    aten.zeros_like.default: 0,
    aten.new_ones.default: 1,
    aten.new_zeros.default: 0,
}
#: Calls that return their first argument where nothing is there to alter it in place.
_COPIES = {aten.detach.default, aten.alias.default, aten.clone.default, aten.lift_fresh_copy.default}
#: Calls that do nothing with this number on one side, and the sides: (what is kept, where the number stands).
_NEUTRAL = {
    aten.mul.Tensor: 1.0,
    aten.div.Tensor: 1.0,
    aten.add.Tensor: 0.0,
    aten.sub.Tensor: 0.0,
    aten.pow.Tensor_Scalar: 1.0,
}
_NEUTRAL_SIDES = {
    aten.mul.Tensor: ((0, 1), (1, 0)),
    aten.div.Tensor: ((0, 1),),
    aten.add.Tensor: ((0, 1), (1, 0)),
    aten.sub.Tensor: ((0, 1),),
    aten.pow.Tensor_Scalar: ((0, 1),),
}
#: The names of constants that were worked out here; others are the tensors that a function closes over.
_FOLDED = "_constant"
_SAME_IF_SHAPE = {aten.view.default, aten.expand.default, aten.reshape.default, aten._unsafe_view.default}


def simplify(module: GraphModule) -> None:
    """Fold constants, drop copies and views that do nothing, share equal calls, remove what is not used; in place."""
    constants = _fold_constants(module)
    seen: dict[Any, Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node in constants:
            continue
        twin = _equal_to_argument(node, constants)
        if twin is None and _pure(node.target):
            key = _signature(node)
            twin = seen.setdefault(key, node) if key is not None else None
        if twin is not None and twin is not node:
            node.replace_all_uses_with(twin)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    _store(module, constants)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def bind_constants(module: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """The same program with its constants as leading arguments, and the constants.

    Those of one number throughout become fills, which a compiler writes into its kernels; an argument costs at every
    call.
    """
    graph = torch.fx.Graph()
    mapping: dict[Node, Node] = {}
    constants: dict[str, Node] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            value = _attribute(module, name)
            if name.startswith(_FOLDED) and value.numel() and bool((value == value.flatten()[0]).all()):
                options: dict[str, Any] = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
                number = value.flatten()[0].item()
                mapping[node] = graph.call_function(aten.full.default, (list(value.shape), number), options)
                continue
            if name not in constants:
                constants[name] = graph.placeholder(f"constant_{name.replace('.', '_')}")
            mapping[node] = constants[name]
    for node in module.graph.nodes:
        if node not in mapping:
            mapping[node] = graph.node_copy(node, lambda n: mapping[n])
    return GraphModule(torch.nn.Module(), graph), [_attribute(module, name) for name in constants]


def _fold_constants(module: GraphModule) -> dict[Node, Tensor]:
    """The nodes whose value is the same in every call, and small: what follows from Python numbers and shapes alone.

    Tensors that the function closes over are none: their owner may change them between calls.
    """
    known: dict[Node, Tensor] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is aten.lift_fresh_copy.default and node.args[0].op == "get_attr":
            known[node] = _attribute(module, str(node.args[0].target)).clone()
        elif (fill := _fill(node)) is not None and (value := _example(node)) is not None:
            if value.numel() * value.element_size() <= _CONSTANT_BYTES:
                # Laid out as the original is: a view of it may follow.
                empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
                known[node] = empty.fill_(fill)
        elif _foldable(node, known):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: known[n])
            value = node.target(*args, **kwargs)
            if isinstance(value, Tensor) and value.untyped_storage().nbytes() <= _CONSTANT_BYTES:
                known[node] = value
    return known


def _fill(node: Node) -> float | None:
    """The number that a call of known shape is filled with."""
    number = node.args[1] if node.target is aten.full_like.default else _FILLS.get(node.target)  # type: ignore[call-overload]
    return number if isinstance(number, int | float) else None


def _foldable(node: Node, known: dict[Node, Tensor]) -> bool:
    return _pure(node.target) and node.target is not operator.getitem and all(n in known for n in node.all_input_nodes)


def _equal_to_argument(node: Node, constants: dict[Node, Tensor]) -> Node | None:
    """The node of the same value that a copy, an empty view, a double transpose or a neutral operation starts from."""
    given = node.args[0] if node.args else None
    if node.target is aten.cat.default and isinstance(given, list) and len(given) == 1:
        one = _as_node(given[0])
        same = one is not None and _alike(node, one) and _strides(node) == _strides(one)
        return one if same else None
    first = _as_node(given)
    if first is None:
        return None
    if node.target is aten.sum.default and _alike(node, first):  # of one number without a dimension
        return first
    if node.target is aten.t.default and first.target is aten.t.default:
        return _as_node(first.args[0])
    if node.target in _COPIES | _SAME_IF_SHAPE and _alike(node, first) and _strides(node) == _strides(first):
        return first
    if node.target not in _NEUTRAL or node.kwargs:
        return None
    for kept, other in _NEUTRAL_SIDES[node.target]:
        keep = _as_node(node.args[kept])
        if keep is not None and _alike(node, keep) and _is_number(node.args[other], _NEUTRAL[node.target], constants):
            return keep
    return None


def _alike(one: Node, two: Node) -> bool:
    """Whether two nodes give tensors of the same shape and dtype."""
    a, b = _example(one), _example(two)
    return a is not None and b is not None and a.shape == b.shape and a.dtype == b.dtype


def _strides(node: Node) -> tuple[int, ...] | None:
    value = _example(node)
    return None if value is None else value.stride()


def _as_node(value: Any) -> Node | None:
    return value if isinstance(value, Node) else None


def _is_number(value: Any, number: float, constants: dict[Node, Tensor]) -> bool:
    if isinstance(value, Node):
        known = constants.get(value)
        return known is not None and bool((known == number).all())
    return bool(value == number)


def _pure(target: Any) -> bool:
    """Whether a call depends on its arguments alone and changes nothing."""
    if target is operator.getitem:
        return True
    return (
        isinstance(target, torch._ops.OpOverload)
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
    )


def _signature(node: Node) -> Any:
    """What two equal calls have in common; None where an argument cannot be compared."""
    try:
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        hash(key)
    except TypeError:
        return None
    return key


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _hashable(item)) for name, item in sorted(value.items()))
    return (type(value), value)


def _example(node: Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def _store(module: GraphModule, constants: dict[Node, Tensor]) -> None:
    """Replace the constant nodes that are still used by attributes of the module."""
    for index, (node, value) in enumerate(constants.items()):
        if not any(user not in constants for user in node.users):
            continue
        name = f"{_FOLDED}{index}"
        module.register_buffer(name, value, persistent=False)
        with module.graph.inserting_before(node):
            attribute = module.graph.get_attr(name)
        attribute.meta["val"] = value
        node.replace_all_uses_with(attribute)


def _attribute(module: GraphModule, target: str) -> Tensor:
    get: Callable[[Any], Tensor] = operator.attrgetter(target)
    return get(module)
