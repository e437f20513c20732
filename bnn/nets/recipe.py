"""How a network was built: the name of its function and the arguments, as plain JSON, so that it can be built again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from torch import nn

P = ParamSpec("P")
N = TypeVar("N", bound=nn.Module)

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
#: Arguments by which layers are counted: a number, or a list of one entry a layer.
_LAYERS = ("hidden", "blocks", "layers", "categories")


def recorded(build: Callable[P, N]) -> Callable[P, N]:
    """Let a function that builds a network leave on it how: ``net.recipe = {"net": NAME, "arguments": {...}}``."""

    @functools.wraps(build)
    def built(*args: P.args, **kwargs: P.kwargs) -> N:
        net = build(*args, **kwargs)
        given = inspect.signature(build).bind(*args, **kwargs)
        given.apply_defaults()
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in given.arguments.items()}
        net.recipe = {"net": build.__name__, "arguments": plain}  # type: ignore[assignment]
        return net

    _BUILDERS[build.__name__] = built
    return built


def rebuilt(recipe: object, layers: int | None = None) -> nn.Module:
    """A new network after a recipe.

    Args:
        recipe: JSON of any origin.
        layers: How many there may be; None: any number.

    Raises:
        ValueError: No network of that name, or arguments that do not fit.
    """
    match recipe:
        case {"net": str(name), "arguments": dict(given)} if name in _BUILDERS:
            _check_layers(given, layers)
        case _:
            raise ValueError(f"{str(recipe)[:100]} is no recipe of a network of bnn.nets")
    try:
        return _BUILDERS[name](**given)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        words = (str(error).splitlines() or [""])[0][:300]  # torch adds its stack
        raise ValueError(f"bnn.nets.{name} cannot be built: {type(error).__name__}: {words}") from error


def _check_layers(given: Mapping[str, Any], layers: int | None) -> None:
    for name in _LAYERS:
        value = given.get(name)
        # The width of an LSTM's hidden layer is one number: nothing is counted by it.
        count = len(value) if isinstance(value, list) else value if name in ("blocks", "layers") else 0
        if layers is not None and isinstance(count, int) and count > layers:
            raise ValueError(f"a network with {name}={count} has more layers than the file has tensors")
