"""Normalising flows over the unconstrained numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import constraints

from bnn.approximations.base import Approximation, Values, check_fit
from bnn.layout import Layout, Site
from bnn.random import isolated


class FlowNetwork(nn.Module):
    """Affine autoregressive transforms in a row, every other one in reverse order; they begin as the identity.

    Each takes x_i to ``exp(a_i) x_i + b_i``, a and b from a masked network (Pyro's) of the numbers before: inverse
    autoregressive flow, Kingma et al. (2016), arXiv:1606.04934. The networks have linear connections past their hidden
    layer, so that every Gaussian is among what one transform can give. (Pyro's own `AffineAutoregressive` keeps tensors
    of the last call in the module, which a recording must not, and its inverse is of float32 only.)

    Args:
        size: D, the numbers that are transformed.
        transforms: How many.
        hidden: Units of each network's hidden layer, at least D.
        like: A tensor of the dtype and device that it has.
    """

    def __init__(self, size: int, transforms: int, hidden: int, like: Tensor):
        super().__init__()
        self.size, self.transforms, self.hidden = size, transforms, hidden
        order = cast(torch.LongTensor, torch.arange(size))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # D = 1: there is nothing to be autoregressive about
            self.layers = nn.ModuleList(
                AutoRegressiveNN(
                    size,
                    [hidden],
                    permutation=order if k % 2 == 0 else cast(torch.LongTensor, order.flip(0)),
                    skip_connections=True,
                    nonlinearity=nn.Tanh(),
                )
                for k in range(transforms)
            )
        with torch.no_grad():
            for layer in self.layers:
                for name, tensor in layer.named_parameters():
                    if not name.startswith("layers.0."):  # the output layer, and the connections past the hidden one
                        tensor.zero_()
        self.to(like)
        #: Where each parameter lies in a flat vector of them all.
        self.places = Layout([Site(name, p.detach(), constraints.real) for name, p in self.named_parameters()])

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of noise ``(n, D)`` to vectors ``(n, D)``, and the log-determinants ``(n,)`` of the map there."""
        log_det = noise.new_zeros(len(noise))
        for layer in self.layers:
            shift, log_scale = _bounded(layer(noise))
            noise = log_scale.exp() * noise + shift
            log_det = log_det + log_scale.sum(-1)
        return noise, log_det

    def inverse(self, vector: Tensor) -> Tensor:
        """The noise that `forward` maps to these vectors, ``(n, D)``: D passes a layer.

        One pass settles one more number of each row: x_i follows from y_i and the numbers before.
        """
        for layer in reversed(self.layers):
            noise = torch.zeros_like(vector)
            for _ in range(self.size):
                shift, log_scale = _bounded(layer(noise))
                noise = (vector - shift) * (-log_scale).exp()
            vector = noise
        return vector


def _bounded(outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Shift, and logarithm of the scale within +-4: an exponential of a network's output must not run away."""
    shift, log_scale = outputs
    return shift, 4 * (log_scale / 4).tanh()


class Flow(Approximation):
    """``loc + exp(log_scale) * f(noise)``, f a `FlowNetwork`.

    Args:
        layout: From numbers to sites.
        loc: ``(D,)``.
        log_scale: ``(D,)``.
        weights: All parameters of the network, flat.
        network: Its own parameters are not used.
    """

    kind = "flow"

    def __init__(self, layout: Layout, loc: Tensor, log_scale: Tensor, weights: Tensor, network: FlowNetwork):
        self.layout, self.loc, self.log_scale, self.weights, self.network = layout, loc, log_scale, weights, network

    @property
    def shape(self) -> None:
        """Continuous."""
        return None

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of noise ``(n, D)`` to unconstrained vectors, and the log-determinants ``(n,)``."""
        named = self.network.places.unflatten(self.weights)
        vector, log_det = torch.func.functional_call(self.network, named, (noise,))
        return self.loc + self.log_scale.exp() * vector, log_det + self.log_scale.sum()

    def log_prob(self, vector: Tensor) -> Tensor:
        """The log-density of rows ``(n, D)`` of unconstrained numbers: D passes a transform."""
        named = self.network.places.unflatten(self.weights)
        inner = (vector - self.loc) / self.log_scale.exp()
        inverse = {f"network.{name}": value for name, value in named.items()}
        noise = torch.func.functional_call(_Inverse(self.network), inverse, (inner,))
        _, log_det = self.push(noise)
        squares = (noise * noise).sum(-1)
        return -0.5 * squares - 0.5 * math.log(2 * math.pi) * noise.shape[-1] - log_det

    def sample(self, num: int) -> Values:
        """One vector of noise a draw, pushed by itself, so that draw i is the same whatever their number."""
        pushed = torch.cat([self.push(torch.randn_like(self.loc)[None])[0] for _ in range(num)])
        return torch.func.vmap(self.layout.unflatten)(pushed)

    def tensors(self) -> Values:
        """The parameters, and the network's two numbers."""
        architecture = torch.tensor([self.network.transforms, self.network.hidden])
        return {"loc": self.loc, "log_scale": self.log_scale, "weights": self.weights, "architecture": architecture}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> Flow:
        """See `Approximation.restore`."""
        vector = torch.empty(layout.size, dtype=layout.dtype)
        expected = {"loc": vector, "log_scale": vector, "architecture": torch.zeros(2, dtype=torch.long)}
        check_fit({name: value for name, value in tensors.items() if name != "weights"}, expected)
        transforms, hidden = tensors["architecture"].tolist()
        if transforms < 1 or hidden < layout.size:
            raise ValueError(f"saved is a flow of {transforms} transforms with {hidden} units: this cannot be one")
        with isolated():  # its first weights are random, and not used
            network = FlowNetwork(layout.size, transforms, hidden, tensors["loc"])
        check_fit(tensors, expected | {"weights": torch.empty(network.places.size, dtype=layout.dtype)})
        return cls(layout, tensors["loc"], tensors["log_scale"], tensors["weights"], network)


class _Inverse(nn.Module):
    """A network's `inverse` as a forward pass."""

    def __init__(self, network: FlowNetwork):
        super().__init__()
        self.network = network

    def forward(self, vector: Tensor) -> Tensor:
        """See `FlowNetwork.inverse`."""
        return self.network.inverse(vector)
