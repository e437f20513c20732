"""Horseshoe priors: a global scale that shrinks everything, and local scales with which a few groups escape."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor

from bnn.priors.base import Prior, check_numbers, fan_in
from bnn.priors.groups import Over, check_over, group_shape


class Shrinking(Prior):
    """What `Horseshoe` and `RegularisedHorseshoe` share: ``w = tau * lambda_g * z``, non-centred.

    Hyper-sites are ``prior.GROUP.scale`` (tau, one for the whole group of parameters) and ``prior.GROUP.local.NAME``
    (lambda, one a group of weights); both are half-Cauchy. Every method works on the logarithm of a positive site, and
    log lambda has the density ``1 / (pi cosh)``: smooth, with exponential tails and one mode. That is why no further
    auxiliary variables are needed (the half-Cauchy as a mixture of two inverse gammas has twice as many unknowns, with
    a ridge between them).

    Attributes:
        over: What a group is: ``"units"``, the incoming weights of one unit; ``"inputs"``, the outgoing weights of one
            input: relevance of features; ``"weights"``, each for itself.
        scale: Scale of the half-Cauchy prior of tau, a positive number; see `global_scale`.
        scaling: ``"fan_in"`` divides the weights by the square root of their fan-in.
    """

    over: Over
    scale: float
    scaling: Literal["none", "fan_in"]

    @abstractmethod
    def spread(self, params: Mapping[str, Tensor], group: str) -> Callable[[Tensor], Tensor]:
        """Sample what else is unknown; returns the map from ``tau * lambda`` to the standard deviation of weights."""

    def check(self) -> None:
        """Raise `ValueError` for settings that are none."""
        check_over(self.over)
        check_numbers(scale=self.scale)
        if self.scaling not in ("none", "fan_in"):
            raise ValueError(f"scaling is 'none' or 'fan_in', not {self.scaling!r}")

    def learned_scale(self) -> bool:
        """It is."""
        return True

    def __call__(self, params: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
        """Sample the global scale, then local scales and standard weights of every parameter; see `Prior`."""
        like = next(iter(params.values()))
        tau = pyro.sample(f"prior.{group}.scale", dist.HalfCauchy(like.new_tensor(self.scale)))
        spread = self.spread(params, group)
        return {name: self._sample(name, param, group, tau, spread) for name, param in params.items()}

    def _sample(self, name: str, param: Tensor, group: str, tau: Tensor, spread: Callable[[Tensor], Tensor]) -> Tensor:
        groups = group_shape(self.over, name, param.shape)
        one, zero = param.new_ones(()), param.new_zeros(())
        local = pyro.sample(f"prior.{group}.local.{name}", dist.HalfCauchy(one.expand(groups)).to_event(len(groups)))
        z = pyro.sample(
            f"{name}.z", dist.Normal(zero.expand(param.shape), one.expand(param.shape)).to_event(param.dim())
        )
        scale = spread(tau.to(param) * local).to(param)
        if self.scaling == "fan_in":
            scale = scale / math.sqrt(fan_in(param.shape))
        return pyro.deterministic(name, scale * z, event_dim=param.dim())


@dataclass(frozen=True, eq=False, repr=False)
class Horseshoe(Shrinking):
    """``w ~ Normal(0, tau lambda_g)`` with ``lambda_g ~ HalfCauchy(1)``, ``tau ~ HalfCauchy(scale)``.

    Next to nothing for most groups, next to no shrinkage for a few. Carvalho, Polson and Scott, Biometrika 97 (2010); for
    units of networks, Ghosh, Yao and Doshi-Velez, JMLR 20 (2019). Weights have no variance under it: where a few large
    ones are not to be taken as they come, and for steadier sampling, take `RegularisedHorseshoe`.

    Args:
        over: See `Shrinking`.
        scale: See `Shrinking`.
        scaling: See `Shrinking`.
    """  # noqa: E501

    over: Over = "units"
    scale: float = 1.0
    scaling: Literal["none", "fan_in"] = "none"

    def __post_init__(self) -> None:
        self.check()

    def spread(self, params: Mapping[str, Tensor], group: str) -> Callable[[Tensor], Tensor]:
        """As it is; see `Shrinking`."""
        return lambda free: free


@dataclass(frozen=True, eq=False, repr=False)
class RegularisedHorseshoe(Shrinking):
    """A horseshoe whose largest weights are those of a Gaussian of standard deviation c (the slab), itself unknown.

    ``w ~ Normal(0, s)`` with ``1 / s^2 = 1 / (tau lambda_g)^2 + 1 / c^2`` and ``c^2 ~ InverseGamma(slab_df / 2,
    slab_df slab_scale^2 / 2)``, a Student-t slab; the site of ``c^2`` is ``prior.GROUP.slab``. Piironen and Vehtari,
    Electronic Journal of Statistics 11 (2017), arXiv:1707.01694.

    Args:
        over: See `Shrinking`.
        scale: See `Shrinking`.
        slab_scale: Size of weights that are not shrunk.
        slab_df: Degrees of freedom of the slab.
        scaling: See `Shrinking`; it divides the slab too.
    """

    over: Over = "units"
    scale: float = 1.0
    slab_scale: float = 2.0
    slab_df: float = 4.0
    scaling: Literal["none", "fan_in"] = "none"

    def __post_init__(self) -> None:
        self.check()
        check_numbers(slab_scale=self.slab_scale, slab_df=self.slab_df)

    def spread(self, params: Mapping[str, Tensor], group: str) -> Callable[[Tensor], Tensor]:
        """Sample the slab; see `Shrinking`."""
        like = next(iter(params.values()))
        half = 0.5 * self.slab_df
        law = dist.InverseGamma(like.new_tensor(half), like.new_tensor(half * self.slab_scale**2))
        slab = pyro.sample(f"prior.{group}.slab", law).sqrt()
        # c a / sqrt(c^2 + a^2) without squares, which overflow where a half-Cauchy reaches.
        return lambda free: slab.to(free) * (free / torch.hypot(slab.to(free), free))


def global_scale(relevant: float, of: int, n_data: int, *, noise_scale: float = 1.0) -> float:
    """The `scale` of a horseshoe for a guess of how many groups are relevant.

    ``relevant / (of - relevant) * noise_scale / sqrt(n_data)``: with it the effective number of unshrunk coefficients
    of a linear model with standardised inputs is about `relevant` before the data. Piironen and Vehtari (2017),
    equation 3.12.

    Args:
        relevant: How many groups are thought to matter, less than `of`.
        of: How many groups there are.
        n_data: Training rows.
        noise_scale: Of the Gaussian noise, in units of y; 2 for a logistic model (their section 3.4, roughly).

    Raises:
        ValueError: Numbers that are none of these.
    """
    check_numbers(relevant=relevant, of=of, n_data=n_data, noise_scale=noise_scale)
    if not relevant < of:
        raise ValueError(f"relevant is less than the number of groups, {of}, not {relevant}")
    return relevant / (of - relevant) * noise_scale / math.sqrt(n_data)
