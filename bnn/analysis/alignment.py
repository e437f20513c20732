"""Hidden units brought into one order (and sign) over all draws, for those who look at weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from bnn.model import BNN
from bnn.nets.mlp import MLP, Hidden

#: Times that all layers of all draws are brought near to the mean of the aligned ones.
_ROUNDS = 2


@dataclass(frozen=True)
class HiddenLayer:
    """A layer of units that can change places without any change of the function."""

    #: Names of its weight ``(h, inputs)``, of its bias ``(h,)`` if there is one, and of the next layer's weight.
    weight: str
    bias: str | None
    following: str
    #: Whether units can change sign too: the activation is odd.
    signs: bool


#: Activations of single units, and whether they are odd. (A relu could also be rescaled by a positive number; a prior
#: that is not improper tells such weights apart, and nothing is done about it.)
_ODD: dict[type[nn.Module], bool] = {
    nn.Tanh: True,
    nn.Hardtanh: True,
    nn.Softsign: True,
    nn.Tanhshrink: True,
    nn.Softshrink: True,
    nn.Hardshrink: True,
    nn.Identity: True,
    nn.Dropout: True,
    nn.ReLU: False,
    nn.LeakyReLU: False,
    nn.ELU: False,
    nn.SELU: False,
    nn.GELU: False,
    nn.SiLU: False,
    nn.Softplus: False,
    nn.Sigmoid: False,
    nn.Mish: False,
}


def hidden_layers(model: BNN) -> list[HiddenLayer]:
    """The hidden layers of a multi-layer perceptron, in order: a torch.nn.Sequential, or of `bnn.nets.mlp`.

    Raises:
        ValueError: The network is no such thing, with the module that is in the way.
    """
    chain = [(name, module) for name, module in model.net.named_modules() if not list(module.children())]
    linear = [(i, name) for i, (name, module) in enumerate(chain) if isinstance(module, nn.Linear)]
    if len(linear) < 2 or model.ties:
        raise ValueError("units are aligned in a network of two or more linear layers that share nothing")
    for name, module in model.net.named_modules():
        plain = isinstance(module, nn.Sequential | MLP) or (isinstance(module, Hidden) and not module.skip)
        if list(module.children()) and not plain:
            raise ValueError(
                f"units are aligned in a torch.nn.Sequential or a bnn.nets.mlp without residual=True: here {name!r} is "
                f"a {type(module).__name__}, with a structure of its own"
            )
    found = []
    for (start, name), (end, after) in pairwise(linear):
        between = [module for _, module in chain[start + 1 : end]]
        strange = [type(module).__name__ for module in between if type(module) not in _ODD]
        if strange:
            raise ValueError(f"between {name!r} and {after!r} stands {strange[0]}: its units cannot be told apart here")
        module = model.net.get_submodule(name)
        bias = f"{name}.bias" if getattr(module, "bias", None) is not None else None
        odd = all(_ODD[type(module)] for module in between)
        found.append(HiddenLayer(f"{name}.weight", bias, f"{after}.weight", odd))
    return found


def align(model: BNN, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws of the same functions, hidden units ordered (and signed, where the activation is odd) alike in all.

    Layer by layer, the units of each draw are matched to those of a reference by the Hungarian algorithm, which makes
    the sum of squared distances of their weights least: first of the incoming ones to those of one draw, then of all
    (incoming, bias, outgoing) to the mean of what was aligned (Stephens 2000, JRSS B 62; weight matching: Ainsworth,
    Hayase and Srinivasa 2023, arXiv:2209.04836).

    Args:
        model: Its network: see `hidden_layers`.
        values: ``{site: (s, *shape)}``, as `bnn.Posterior.draws` gives them; other sites are handed through. Sites of a
            prior with a scale of each unit are not carried along: their draws would not fit.

    Returns:
        New tensors; the network's function under each draw is the same.

    Raises:
        ValueError: The network is no multi-layer perceptron; a weight among the layers is not in `values`.
    """
    layers = hidden_layers(model)
    aligned = dict(values)
    for layer in layers:
        missing = [name for name in (layer.weight, layer.bias, layer.following) if name and name not in values]
        if missing:
            raise ValueError(f"the draws lack {missing}: only layers that are random as a whole can be aligned")
    for layer in layers:  # outgoing weights lead to units that have no order yet
        units = _units(layer, aligned, outgoing=False)
        _reorder(layer, aligned, units, units[-1])
    for _ in range(_ROUNDS):
        for layer in layers:
            units = _units(layer, aligned, outgoing=True)
            _reorder(layer, aligned, units, units.mean(0))
    return aligned


def _reorder(layer: HiddenLayer, values: dict[str, Tensor], units: Tensor, reference: Tensor) -> None:
    """Bring the units ``(s, h, features)`` of all draws near to a reference ``(h, features)``."""
    matched = [_match(draw, reference, signs=layer.signs) for draw in units]
    weight = values[layer.weight]
    order = torch.stack([pair[0] for pair in matched]).to(weight.device)  # (s, h)
    sign = torch.stack([pair[1] for pair in matched]).to(weight)
    for name in (layer.weight, layer.bias):
        if name is not None:
            rows = values[name]
            shape = (*order.shape, *[1] * (rows.dim() - 2))
            values[name] = rows.gather(1, order.reshape(shape).expand_as(rows)) * sign.reshape(shape)
    columns = values[layer.following]
    values[layer.following] = columns.gather(2, order.unsqueeze(1).expand_as(columns)) * sign.unsqueeze(1)


def _units(layer: HiddenLayer, values: Mapping[str, Tensor], *, outgoing: bool) -> Tensor:
    """What belongs to each hidden unit, ``(s, h, features)``: incoming weights, bias, and perhaps outgoing weights."""
    parts = [values[layer.weight], *([values[layer.following].mT] if outgoing else [])]
    if layer.bias is not None:
        parts.append(values[layer.bias].unsqueeze(2))
    return torch.cat(parts, dim=2).detach().double().cpu()


def _match(draw: Tensor, reference: Tensor, *, signs: bool) -> tuple[Tensor, Tensor]:
    """Which unit of the draw takes each place of the reference, ``(h,)``, and with which sign.

    |u - v|^2 = |u|^2 + |v|^2 - 2 u'v, and the squares add up to the same in every order: the products decide.
    """
    from scipy.optimize import linear_sum_assignment

    products = (reference @ draw.T).numpy()
    _, order = linear_sum_assignment(-(np.abs(products) if signs else products))
    taken = products[np.arange(len(order)), order]
    sign = np.where(taken < 0, -1.0, 1.0) if signs else np.ones(len(order))
    return torch.from_numpy(order), torch.from_numpy(sign)
