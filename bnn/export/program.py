"""A posterior as one function of tensors: inputs in, the numbers of its prediction out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over

from bnn.approximations import Values
from bnn.estimators.units import InUnits
from bnn.export.heads import summary
from bnn.export.linear import LinearisedOverDraws
from bnn.export.rows import rows_first
from bnn.forward import maps_well
from bnn.inputs import Inputs
from bnn.likelihoods import GaussianAverage
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.prediction import Prediction, Spread

#: How the network is run over draws: as one batched call, as a loop inside the graph, or written out draw by draw.
Over = Literal["vmap", "map", "unrolled"]


class Program(nn.Module):
    """What is exported: ``forward(*inputs)`` gives ``{name: (n, ...)}``.

    Args:
        posterior: Its inputs are known exactly.
        draws: As in `bnn.Posterior.predict`.
        seed: Of the draws.
        levels: Of the quantiles.
        units: Targets in their own units.
        over: How the network is run over draws.
        example: Inputs, of two rows or more.
    """

    def __init__(
        self,
        posterior: Posterior,
        draws: int | None,
        seed: int,
        levels: Tensor | None,
        units: InUnits | None,
        over: Over,
        example: Inputs,
    ):
        super().__init__()
        exact = averages(posterior, draws)
        values = posterior.draws(1 if exact else draws, seed)
        self.num = len(next(iter(values.values()))) if values else 1
        latents = posterior.likelihood_latents(values, self.num)
        self.body: nn.Module
        if posterior.linear is None:
            self.body = _OverDraws(posterior, values, self.num, over, example)
        else:
            own = replace(posterior.linear, model=posterior.model.copy())
            self.body = LinearisedOverDraws(own, None if exact else values, example)
        self.latent_names = list(latents)
        for i, value in enumerate(latents.values()):
            self.register_buffer(f"latent_{i}", value.clone())
        dtype = posterior.model.like.dtype if units is None else torch.float64
        self.levels = None if levels is None else nn.Buffer(levels.to(posterior.model.like.device, dtype))
        self.likelihood, self.units = posterior.model.likelihood, units
        if units is not None:
            self.loc, self.scale = nn.Buffer(units.loc), nn.Buffer(units.scale)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        """The numbers of the prediction, rows first."""
        return self.of(kwargs or (args[0] if len(args) == 1 else args))

    def of(self, x: Inputs) -> dict[str, Tensor]:
        """As `forward`, of inputs as a network takes them."""
        # Mapped over rows, so that whatever a likelihood does with the number of rows is said of one.
        outputs, covariance = self.body(x)
        given = (outputs,) if covariance is None else (outputs, covariance)
        return torch.func.vmap(self._row, in_dims=1)(*given)

    def _row(self, outputs: Tensor, covariance: Tensor | None = None) -> dict[str, Tensor]:
        """Of one row: outputs ``(s, ...)``, and where these are Gaussian their covariance ``(s, k, k)``."""
        latents = {name: getattr(self, f"latent_{i}") for i, name in enumerate(self.latent_names)}
        spread = None if covariance is None else Spread(covariance.unsqueeze(1), _no_draws)
        found = Prediction(self.likelihood, outputs.unsqueeze(1), latents, spread)
        if self.units is None:
            return summary(found, self.levels)
        units = copy.copy(self.units)
        units.loc, units.scale = self.loc, self.scale
        return summary(units.prediction(found), self.levels)


def _no_draws(num: int) -> Tensor:
    raise AssertionError(f"a summary takes no draws, and {num} were asked for")


def averages(posterior: Posterior, draws: int | None) -> bool:
    """Whether `bnn.Posterior.predict` averages over all weights in closed form."""
    return draws is None and posterior.linear is not None and isinstance(posterior.model.likelihood, GaussianAverage)


class _OverDraws(nn.Module):
    """The network under every draw: outputs ``(s, n, ...)``, and None."""

    def __init__(self, posterior: Posterior, values: Values, num: int, over: Over, example: Inputs):
        super().__init__()
        self.num, self.over = num, over
        drawn = {name: values[name] for name in posterior.tensor_names if name in values}
        # What all draws have in common (the weights under dropout masks) is kept once.
        common = {name: value[0] for name, value in drawn.items() if num == 1 or value.stride(0) == 0}
        drawn = {name: value for name, value in drawn.items() if name not in common}
        self.model = posterior.model.copy()
        self.net = self.model.net
        put_in(self.model, {**posterior.shared, **common}, drawn)
        self.names = list(drawn)
        for i, value in enumerate(drawn.values()):
            self.register_buffer(f"draw_{i}", value.clone())
        self.one: nn.Module | None = None
        if over == "map" and drawn:
            self.one = _recorded(_One(self.model, self.names), [value[0] for value in drawn.values()], example)

    def forward(self, x: Inputs) -> tuple[Tensor, None]:
        """The outputs under every draw, which have no covariance beside them."""
        return self._outputs(x), None

    def _outputs(self, x: Inputs) -> Tensor:
        draws = [getattr(self, f"draw_{i}") for i in range(len(self.names))]
        if not draws:
            single = self.model.forward({}, x, {})
            return single.expand(self.num, *single.shape)
        if self.over == "vmap":
            many = torch.func.vmap(lambda own: self.model.forward(own, x, {}))
            return many(dict(zip(self.names, draws, strict=True)))
        if self.one is not None:
            one = self.one
            return map_over(lambda own, inputs: one(own, inputs), draws, x)  # type: ignore[arg-type]
        each = zip(*(draw.unbind(0) for draw in draws), strict=True)
        return torch.stack([self.model.forward(dict(zip(self.names, own, strict=True)), x, {}) for own in each])


class _One(nn.Module):
    """The network under one draw."""

    def __init__(self, model: BNN, names: list[str]):
        super().__init__()
        self.model, self.net, self.names = model, model.net, names

    def forward(self, own: list[Tensor], x: Inputs) -> Tensor:
        return self.model.forward(dict(zip(self.names, own, strict=True)), x, {})


def _recorded(module: _One, own: list[Tensor], example: Inputs) -> nn.Module:
    """The network under one draw as plain operations, which a loop inside a graph can hold."""
    shapes = {"own": [None for _ in own], "x": rows_first(example)}
    with warnings.catch_warnings():
        # A recurrent layer keeps its weights in a list besides, which the parameters handed in stand in for; the file
        # is compared with `predict` before it is written.
        warnings.filterwarnings("ignore", message=".*assigned during export")
        program = torch.export.export(module, (own, example), dynamic_shapes=shapes)
    return program.module(check_guards=False)


@torch.no_grad()
def put_in(model: BNN, shared: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> None:
    """Values into a model's network, as constants; what each draw has for itself is left empty there."""
    model.net.requires_grad_(requires_grad=False)
    for name, tensor in [*model.net.named_parameters(), *model.net.named_buffers()]:
        if name in shared:
            tensor.copy_(shared[name])
    second = [name for name, first in model.ties.items() if first in drawn]
    for name in [*drawn, *second]:
        owner, _, attribute = name.rpartition(".")
        module = model.net.get_submodule(owner)
        if attribute in module._parameters:
            module._parameters[attribute] = nn.Parameter(
                drawn[model.ties.get(name, name)].new_empty(0), requires_grad=False
            )
        else:
            module._buffers[attribute] = drawn[model.ties.get(name, name)].new_empty(0)


def ways(posterior: Posterior, *, loops: bool) -> list[Over]:
    """How to run the network over draws, the best way first.

    Args:
        posterior: Which.
        loops: Whether the format has loops.
    """
    if posterior.linear is not None:
        return ["vmap"]
    rest: Over = "map" if loops else "unrolled"
    return ["vmap", rest] if maps_well(posterior.model.net) else [rest]
