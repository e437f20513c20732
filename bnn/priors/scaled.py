"""Priors of the form ``w = loc + scale * v``: how the scale follows from fan-in or a hyper-prior, centred or not."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from bnn.distributions import cast, check_positive
from bnn.priors.base import Prior, check_fits, fan_in

Scale = float | Tensor | TorchDistributionMixin | Literal["fan_in"]
Gain = float | TorchDistributionMixin


class Scaled(Prior):
    """What priors of a scale have in common. A subclass is a dataclass with the settings below, and writes `law`.

    Attributes:
        scale: A positive number; a tensor that broadcasts against each parameter; ``"fan_in"``, for
            ``gain / sqrt(fan_in)``; or a Pyro distribution over positive numbers, for a scale learned by the group.
        gain: With ``scale="fan_in"``: a number, or a Pyro distribution for a learned one (its site is
            ``prior.GROUP.scale`` too).
        centred: ``False`` samples ``NAME.z`` from the standard form and registers ``NAME = loc + scale * z`` as
            deterministic: the same prior, with an easier geometry under a learned scale.
    """

    scale: Scale
    gain: Gain
    centred: bool

    @abstractmethod
    def law(self, name: str, shape: torch.Size, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        """The distribution of ``loc + scale * v``, one event of the parameter's shape.

        Args:
            name: Of the parameter, for messages.
            shape: Of the parameter.
            loc: Broadcasts to the parameter.
            scale: Broadcasts to the parameter; 1 for the standard form.
        """

    def check_scale(self) -> None:
        """Raise `ValueError` for a scale or gain that is none."""
        if isinstance(self.scale, str) and self.scale != "fan_in":
            raise ValueError(f"scale is a number, a tensor, a Pyro distribution or 'fan_in', not {self.scale!r}")
        if isinstance(self.gain, Tensor | str):
            raise ValueError(f"gain is a number or a Pyro distribution, not {self.gain!r}")
        if not isinstance(self.scale, str) and (isinstance(self.gain, Distribution) or self.gain != 1.0):
            raise ValueError("gain belongs to scale='fan_in'")
        check_positive("gain" if isinstance(self.scale, str) else "scale", self._base_scale)

    def learned_scale(self) -> bool:
        """Whether the scale (or the gain of a fan-in scale) has a hyper-prior."""
        return isinstance(self._base_scale, TorchDistributionMixin)

    @property
    def _base_scale(self) -> float | Tensor | TorchDistributionMixin:
        return self.gain if isinstance(self.scale, str) else self.scale

    def __call__(self, params: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
        """Sample the group's scale if it is learned, then every parameter; see `Prior`."""
        like = next(iter(params.values()))
        base = self._base_scale
        if isinstance(base, TorchDistributionMixin):
            # One event, however many numbers: Pyro takes other dimensions for undeclared plates.
            base = pyro.sample(f"prior.{group}.scale", cast(base.to_event(len(base.batch_shape)), like))
        # One tensor for the whole group, so that its log-density is computed in one piece (bnn.inference.divergence).
        scale = torch.as_tensor(base, dtype=like.dtype, device=like.device)
        centres = self.centres(params)
        return {name: self._sample(name, param, centres[name], scale) for name, param in params.items()}

    def centres(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``{name: loc}``, each in the dtype of its parameter: 0, the same tensor for the whole group."""
        zero = next(iter(params.values())).new_zeros(())
        return {name: zero.to(param) for name, param in params.items()}

    def _sample(self, name: str, param: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        scale = self.own_scale(scale, param)
        for what, value in (("scale", scale), ("loc", loc)):
            check_fits(what, value, name, param.shape)
        if self.centred:
            weight: Tensor = pyro.sample(name, self.law(name, param.shape, loc, scale))
            return weight
        z = pyro.sample(f"{name}.z", self.law(name, param.shape, torch.zeros_like(loc), torch.ones_like(scale)))
        return pyro.deterministic(name, loc + scale * z, event_dim=param.dim())

    def own_scale(self, scale: Tensor, param: Tensor) -> Tensor:
        """What the group's scale (or gain) makes of a parameter of this shape."""
        scale = scale.to(param)  # where the parameters of a group differ in dtype or device
        inputs = fan_in(param.shape)
        return scale / math.sqrt(inputs) if isinstance(self.scale, str) and inputs > 1 else scale
