"""What of a table runs every day: the rest is `slow`, and runs by ``make test-slow``."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], default: Container[Any] | Callable[[Any], bool]) -> list[Any]:
    """Every value for `parametrize`, of which those that are not `default` are marked slow.

    Args:
        values: A tuple is one value a parameter.
        default: What is not slow, or a function that says so.
    """
    quick = default if callable(default) else default.__contains__
    return [pytest.param(*_tuple(value), marks=[] if quick(value) else [pytest.mark.slow]) for value in values]


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
