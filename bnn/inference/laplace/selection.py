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


def last_layer(model: BNN, names: list[str], x: Inputs) -> str:
    """The name of the module whose own output is the network's, up to its shape.

    Raises:
        ValueError: The module with weights that runs last does not give the network's output.
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
    if last and last[-1][1].numel() == outputs.numel() and torch.equal(last[-1][1].flatten(), outputs.flatten()):
        return last[-1][0]
    seen = f"the last module with weights that ran is {last[-1][0]!r}, and what it gives is changed" if last else "none"
    raise ValueError(
        f"there is no last layer to be found, whose output is the network's ({seen}): name it, weights=['NAME.*']"
    )
