"""Priors of one's own: any Pyro distribution, or a function that samples in Pyro."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import AffineTransform, Distribution, constraints

from bnn.distributions import cast, function_in_words, in_words
from bnn.priors.base import Prior, check_fits
from bnn.priors.scaled import Gain, Scale, Scaled


@dataclass(frozen=True, eq=False, repr=False)
class FromPyro(Scaled):
    """Any Pyro distribution over real numbers, expanded to every parameter.

    Its batch shape broadcasts to the parameter; a distribution of vectors (or arrays) covers the last dimensions.

    Args:
        distribution: From `pyro.distributions`, continuous, over all real numbers.
        scale: See `Scaled`; it multiplies the draws.
        gain: See `Scaled`.
        centred: See `Scaled`.

    Raises:
        TypeError: Not a Pyro distribution.
        ValueError: A discrete one, or one that does not reach all real numbers; (when the model is built) a shape that
            does not broadcast.
    """

    distribution: TorchDistributionMixin
    scale: Scale = 1.0
    gain: Gain = 1.0
    centred: bool = True

    def __post_init__(self) -> None:
        fn: object = self.distribution
        if not isinstance(fn, TorchDistributionMixin) or not isinstance(fn, Distribution):
            raise TypeError(f"distribution is one of pyro.distributions (an instance), not {fn!r}")
        support: Any = fn.support
        while isinstance(support, constraints.independent | constraints.MixtureSameFamilyConstraint):
            support = support.base_constraint
        if support.is_discrete or support not in (constraints.real, constraints.real_vector):
            raise ValueError(
                f"weights may be any real number, but {in_words(fn)} has support {support}: take a distribution over "
                "all real numbers"
            )
        self.check_scale()

    def law(self, name: str, shape: torch.Size, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        """See `Scaled`."""
        fn = cast(self.distribution, scale)
        own = len(fn.event_shape)
        batch = shape[: len(shape) - own]
        check_fits("distribution", torch.empty(fn.batch_shape + fn.event_shape), name, shape)
        if fn.event_shape != shape[len(shape) - own :]:
            raise ValueError(
                f"the prior's distribution is over arrays of shape {tuple(fn.event_shape)}, parameter {name!r} has "
                f"shape {tuple(shape)}"
            )
        fn = fn.expand(batch).to_event(len(batch))
        plain = isinstance(self.scale, int | float) and self.scale == 1
        if plain or not self.centred:  # as it is, so that what is known of its family still holds
            return fn
        # Expanded: torch takes the Jacobian of as many numbers as the scale has.
        return dist.TransformedDistribution(fn, [AffineTransform(loc, scale.expand(shape), event_dim=len(shape))])


@dataclass(frozen=True, eq=False, repr=False)
class Function(Prior):
    """A prior of one's own: a function that samples in Pyro.

    It is called with ``{name: tensor}``, the network's parameters, and returns ``{name: weight}`` of the same names and
    shapes, having sampled each as ``pyro.sample(name, ...)`` (all its dimensions an event: ``.to_event(dim)``) or as
    ``pyro.deterministic(name, ...)`` of others, such as ``NAME.z``. Hyper-sites are named ``prior.SOMETHING``. What it
    does with values is torch, without branches on them: it is recorded.

    Args:
        fn: The function.
        scales: ``"fixed"`` or ``"learned"``: whether a hyper-site is a scale, under which no joint mode of weights and
            scale exists. It has to be said where the function has hyper-sites.

    Raises (when the model is built):
        ValueError: Names or shapes that are not those of the parameters; hyper-sites, and nothing said about scales.
    """

    fn: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    scales: Literal["fixed", "learned"] | None = None

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"fn is a function of {{name: tensor}}, not {self.fn!r}")
        if self.scales not in (None, "fixed", "learned"):
            raise ValueError(f"scales is 'fixed' or 'learned', not {self.scales!r}")

    def __repr__(self) -> str:
        """With the function's name, which is what a saved posterior can compare."""
        return f"Function({function_in_words(self.fn)}, scales={self.scales!r})"

    def learned_scale(self) -> bool:
        """What `scales` says."""
        return self.scales == "learned"

    def __call__(self, params: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
        """Call the function; see `Prior`."""
        with poutine.trace() as recorder:
            weights = self.fn(params)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        expected = {name: tuple(param.shape) for name, param in params.items()}
        if shapes != expected:
            raise ValueError(f"{self!r} returns {shapes}, the parameters are {expected}")
        nodes = recorder.trace.nodes
        latent = [n for n, node in nodes.items() if node["type"] in ("sample", "param")]
        silent = sorted(name for name in params if name not in latent)
        if silent:
            raise ValueError(
                f"{self!r} returns {silent} without a site: pyro.sample(name, ...), or pyro.deterministic(name, ...)"
            )
        hyper = sorted(name for name in latent if name.removesuffix(".z") not in params)
        if hyper and self.scales is None:
            raise ValueError(
                f"{self!r} samples {hyper} beside the weights: say scales='learned' if one of them is a scale of the "
                "weights, so that no joint mode exists, else scales='fixed'"
            )
        return weights
