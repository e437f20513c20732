"""What a prior is: samples parameters in Pyro, and equals a penalty."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, Independent, biject_to, constraints

from bnn.distributions import fits, in_words


class Prior(ABC):
    """The prior of a group of parameters."""

    @abstractmethod
    def __call__(self, params: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
        """Sample every parameter of the group in Pyro.

        Args:
            params: ``{name: tensor}``: the network's own parameters, for their shapes, dtypes and devices.
            group: The group's name; hyper-parameters are sampled as ``prior.GROUP.scale``.

        Returns:
            ``{name: weight}`` with the same names and shapes.

        Raises:
            ValueError: A scale or location does not fit the shape of a parameter.
        """

    @abstractmethod
    def learned_scale(self) -> bool:
        """Whether a scale is itself unknown; a joint mode over weights and scale does not exist then."""

    def __repr__(self) -> str:
        shown = []
        me: Any = self  # one's own prior need not be a dataclass
        for f in fields(me) if is_dataclass(me) else ():
            words = in_words(getattr(self, f.name))
            if f.default is MISSING or words != in_words(f.default):
                shown.append(f"{f.name}={words}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def penalty(self, params: Mapping[str, Tensor], group: str = "all") -> Tensor:
        """The penalty that this prior equals: -log p less a constant, differentiable in `params`.

        The constant is such that the penalty is 0 where all weights are at the mode of their distribution (at 0, if
        Pyro knows no mode of it) and every hyper-site is at the number that an unconstrained 0 stands for: 1 for a
        scale. So `Normal` gives the sum of ``w^2 / (2 scale^2)``, `Laplace` that of ``|w| / scale``.

        Args:
            params: Values of this prior's own sites by name: the parameters (``NAME.z`` of non-centred ones) and the
                hyper-sites, ``prior.GROUP.scale`` and its like.
            group: The group's name in the names of the hyper-sites.

        Returns:
            A scalar, summed over all sites. Add it, divided by N, to a mean negative log-likelihood.

        Raises:
            ValueError: Sites are missing, or values have the wrong shape.
        """
        weights = {name.removesuffix(".z"): value for name, value in params.items() if not name.startswith("prior.")}
        if not weights:
            raise ValueError(f"penalty: there are no parameters among {sorted(params)}")
        with pyro.get_param_store().scope():
            here = _sites(self, weights, group, params)
            if set(here) != set(params):
                missing, unknown = sorted(set(here) - set(params)), sorted(set(params) - set(here))
                raise ValueError(f"penalty: missing sites {missing}, unknown names {unknown}")
            there = _sites(self, weights, group, {name: _reference(name, node) for name, node in here.items()})
        terms = [_elementwise(there[name]) - _elementwise(node) for name, node in here.items() if _random(node)]
        return torch.stack([term.sum() for term in terms]).sum()


class _Points(Messenger):
    """Gives learned points their values; `poutine.substitute` would warn of the names that are no points."""

    def __init__(self, values: Mapping[str, Tensor]):
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def _sites(
    prior: Prior, weights: Mapping[str, Tensor], group: str, values: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """The Pyro nodes of a prior's unknowns at these values, learned points among them."""
    with _Points(values):
        trace = poutine.trace(poutine.condition(prior, data=dict(values))).get_trace(weights, group)
    nodes: dict[str, Any] = dict(trace.nodes)
    return {
        name: node
        for name, node in nodes.items()
        if node["type"] in ("sample", "param") and not node["infer"].get("_deterministic")
    }


def _random(node: Mapping[str, Any]) -> bool:
    return bool(node["type"] == "sample")


def _reference(name: str, node: Mapping[str, Any]) -> Tensor:
    """Where the penalty is 0, by convention: the mode of a weight, what an unconstrained 0 stands for elsewhere."""
    value: Tensor = node["value"]
    if not name.startswith("prior."):
        try:
            mode: Tensor = node["fn"].mode
        except NotImplementedError:
            return torch.zeros_like(value)
        return mode.expand(value.shape)
    support = node["fn"].support if _random(node) else node["kwargs"].get("constraint", constraints.real)
    transform = biject_to(support)
    reference: Tensor = transform(value.new_zeros(transform.inverse_shape(value.shape)))
    return reference


def _elementwise(node: Mapping[str, Any]) -> Tensor:
    """Log-densities before they are summed, so that a difference of them keeps its digits."""
    fn: Distribution = node["fn"]
    while isinstance(fn, Independent):
        fn = fn.base_dist
    log_probs: Tensor = fn.log_prob(node["value"])
    return log_probs


def fan_in(shape: torch.Size | tuple[int, ...]) -> int:
    """Inputs that feed one unit: the product of all sizes but the first; 1 for biases and other vectors."""
    return math.prod(shape[1:]) if len(shape) > 1 else 1


def check_fits(what: str, value: Tensor, name: str, shape: torch.Size) -> None:
    """Raise `ValueError` unless a setting broadcasts to the shape of a parameter."""
    if not fits(value.shape, shape):
        raise ValueError(
            f"the prior's {what} has shape {tuple(value.shape)}, which does not broadcast to parameter "
            f"{name!r} of shape {tuple(shape)}"
        )


def check_numbers(**values: object) -> None:
    """Raise `ValueError` unless each is a positive, finite number (not a tensor)."""
    for name, value in values.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is a positive number, not {value!r}")
