"""Arguments of networks, checked in words; and the table of activations."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

#: The names that ``activation=`` takes.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def whole(name: str, value: object, least: int = 1) -> int:
    """A whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is a whole number from {least}, not {value!r}")
    return value


def widths(name: str, value: object) -> list[int]:
    """A list of whole numbers from 1."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} is a list of whole numbers, such as (50, 50), not {value!r}")
    return [whole(f"{name}[{i}]", width) for i, width in enumerate(value)]


def share(name: str, value: object) -> float:
    """A number from 0 up to, not with, 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} is a share from 0 and below 1, not {value!r}")
    return float(value)


def one_of(name: str, value: object, known: Collection[object]) -> None:
    """Raise `ValueError` for what is not among `known`."""
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(map(repr, known))}, not {value!r}")


def activation_of(name: str) -> nn.Module:
    """A new activation of this name."""
    one_of("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()
