"""Which weights are random: all, those of the last layer, or those with given names."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from bnn.inference.laplace.unknowns import Unknowns
from bnn.inputs import Inputs
from bnn.model import BNN


def random_weights(model: BNN, weights: str | tuple[str, ...] | list[str], unknowns: Unknowns, x: Inputs) -> list[str]:
    """The names of the weights that are random.

    Raises:
        ValueError: A pattern that matches no weight with a prior; no last layer to be found.
    """
    names = unknowns.weights.names
    if not names:
        raise ValueError("no parameter has a prior: there is nothing to approximate but points, which MAP fits")
    if weights == "all":
        return names
    if weights == "last_layer":
        layer = last_layer(model, names, x)
        return [name for name in names if name.rpartition(".")[0] == layer]
    for pattern in weights:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"pattern {pattern!r} in weights= matches no parameter with a prior: they are {names}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in weights)]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and torch.equal(one.flatten().to(other.dtype), other.flatten())


def last_layer(model: BNN, names: list[str], x: Inputs) -> str:
    """The name of the module whose own output is the network's, up to its shape.

    Raises:
        ValueError: The module with weights that runs last does not give the network's output; it has others within it;
            its weight is shared with another.
    """
    owners = {name.rpartition(".")[0] for name in names}
    last: list[tuple[str, Tensor]] = []

    def keep(owner: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                last.append((owner, output))

        return hook

    handles = [model.net.get_submodule(owner).register_forward_hook(keep(owner)) for owner in sorted(owners)]
    try:
        with torch.no_grad():
            outputs = model.forward({}, x, model.state())
    finally:
        for handle in handles:
            handle.remove()
    # Modules end in the order from within: the network itself, if it has weights beside those of its modules, is last.
    while len(last) > 1 and _same(last[-1][1], outputs) and _same(last[-2][1], outputs):
        last.pop()
    found = last[-1][0] if last else ""
    inside = sorted(owner for owner in owners if owner != found and owner.startswith(f"{found}." if found else ""))
    shared = {name: first for name, first in model.ties.items() if name.rpartition(".")[0] not in owners}
    if last and _same(last[-1][1], outputs) and not inside:
        return found
    seen = f"the last module with weights that ran is {found!r}, and what it gives is changed" if last else "none"
    if last and inside:
        seen = f"the last module with weights of its own that ran is {found!r}, which has others within it: {inside}"
    if shared:
        seen += f"; shared weights count where they stand first: {shared}"
    raise ValueError(
        f"there is no last layer to be found, whose output is the network's ({seen}): name it, weights=['NAME.*']"
    )
