"""Priors over the parameters of a network.

A prior is called once by the model, with all the parameters that its name pattern matched, and samples them in Pyro.
Seeing them together, it can share a scale between them.

L2 and L1 penalties are priors. For a loss that is the *mean* negative log-likelihood over N rows,

    mean NLL + (weight_decay / 2) |w|^2    is (1/N) times    -log p(y | w) - log Normal(w; 0, s),    s^2 = 1 / (N weight_decay)
    mean NLL + l1 |w|_1                    is (1/N) times    -log p(y | w) - log Laplace(w; 0, b),   b = 1 / (N l1)

up to constants, where ``weight_decay`` is that of ``torch.optim.SGD`` (it adds ``weight_decay * w`` to the gradient).
See Bishop, Pattern Recognition and Machine Learning (2006), sections 1.2.5 and 3.3.
"""  # noqa: E501

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from bnn.distributions import cast, check_positive, expanded, fits, in_words

LossKind = Literal["mean", "sum", "mse"]


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
        """Whether a scale is itself random; a joint mode over weights and scale does not exist then."""


def fan_in(shape: torch.Size | tuple[int, ...]) -> int:
    """Inputs that feed one unit: the product of all sizes but the first; 1 for biases and other vectors."""
    return math.prod(shape[1:]) if len(shape) > 1 else 1


def loss_factor(loss: LossKind, n_data: int, noise_scale: float | None, num_outputs: int) -> float:
    """How much larger the user's loss is than the mean negative log-likelihood per row (constants aside).

    A row's negative log-likelihood is the sum over its targets. ``"sum"`` over all rows: N. ``"mean"``, over rows *and*
    over the targets of a row, if it has several: 1 / num_outputs. ``"mse"`` (``torch.nn.MSELoss``, the same mean):
    under Gaussian noise the negative log-likelihood of a row is |y - f|^2 / (2 noise_scale^2), so
    2 noise_scale^2 / num_outputs.
    """
    if loss not in ("mean", "sum", "mse"):
        raise ValueError(f"loss is 'mean', 'sum' or 'mse', not {loss!r}")
    for name, count in (("n_data, the number of training rows,", n_data), ("num_outputs", num_outputs)):
        if not count >= 1:
            raise ValueError(f"{name} is at least 1, not {count}")
    if loss == "mse":
        if noise_scale is None or not 0 < noise_scale < math.inf:
            raise ValueError("a squared-error loss needs noise_scale > 0, the noise scale of the Gaussian likelihood")
        return 2 * noise_scale**2 / num_outputs
    if noise_scale is not None:
        raise ValueError(f"noise_scale belongs to loss='mse'; the loss {loss!r} already contains it")
    return 1 / num_outputs if loss == "mean" else float(n_data)


@dataclass(frozen=True, eq=False, repr=False)
class LocationScale(Prior):
    """What `Normal` and `Laplace` share: a location, a scale, and how the scale follows from fan-in or a hyper-prior.

    Args:
        scale: A positive number; a tensor that broadcasts against each parameter; ``"fan_in"``, for
            ``gain / sqrt(fan_in)``; or a Pyro distribution over positive numbers, for a scale learned by the group.
        gain: With ``scale="fan_in"``: a number, or a Pyro distribution for a learned one (its site is
            ``prior.GROUP.scale`` too).
        loc: The centre: a number or a tensor that broadcasts.
        centred: ``False`` samples ``NAME.z`` from the standard form and registers ``NAME = loc + scale * z`` as
            deterministic: the same prior, with an easier geometry under a learned scale.
    """

    scale: float | Tensor | TorchDistributionMixin | Literal["fan_in"] = 1.0
    gain: float | TorchDistributionMixin = 1.0
    loc: float | Tensor = 0.0
    centred: bool = True

    @property
    @abstractmethod
    def family(self) -> Callable[[Tensor, Tensor], TorchDistributionMixin]:
        """The distribution, called with a location and a scale."""

    def __post_init__(self) -> None:
        if isinstance(self.scale, str) and self.scale != "fan_in":
            raise ValueError(f"scale is a number, a tensor, a Pyro distribution or 'fan_in', not {self.scale!r}")
        if isinstance(self.gain, Tensor | str):
            raise ValueError(f"gain is a number or a Pyro distribution, not {self.gain!r}")
        if not isinstance(self.scale, str) and (isinstance(self.gain, Distribution) or self.gain != 1.0):
            raise ValueError("gain belongs to scale='fan_in'")
        check_positive("scale" if self._base_scale is self.scale else "gain", self._base_scale)
        if not bool(torch.as_tensor(self.loc).isfinite().all()):
            raise ValueError(f"loc must be finite, not {self.loc}")

    def __repr__(self) -> str:
        changed = [f for f in fields(self) if getattr(self, f.name) is not f.default]
        return f"{type(self).__name__}({', '.join(f'{f.name}={in_words(getattr(self, f.name))}' for f in changed)})"

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
        loc = torch.as_tensor(self.loc, dtype=like.dtype, device=like.device)
        return {name: self._sample(name, param, loc, scale) for name, param in params.items()}

    def _sample(self, name: str, param: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        loc, scale = loc.to(param), scale.to(param)  # where the parameters of a group differ in dtype or device
        if isinstance(self.scale, str) and (inputs := fan_in(param.shape)) > 1:
            scale = scale / math.sqrt(inputs)
        for what, value in (("scale", scale), ("loc", loc)):
            _check_fits(what, value, name, param)
        if self.centred:
            return pyro.sample(name, expanded(self.family, loc, scale, param.shape))
        standard = expanded(self.family, torch.zeros_like(loc), torch.ones_like(scale), param.shape)
        z = pyro.sample(f"{name}.z", standard)
        return pyro.deterministic(name, loc + scale * z, event_dim=param.dim())

    def _fixed_scale(self, conversion: str) -> float:
        if not isinstance(self.scale, int | float) or not isinstance(self.loc, int | float) or self.loc != 0:
            raise ValueError(f"{conversion} needs one fixed scale and loc=0; this prior has scale={self.scale!r}")
        return float(self.scale)


class Normal(LocationScale):
    """Independent Gaussian weights; -log p is an L2 penalty.

    ``scale="fan_in"`` is LeCun's initialisation with ``gain=1`` and Kaiming's (He et al. 2015, for ReLU) with
    ``gain=2**0.5``: the variance of a unit's input stays that of its inputs. PyTorch's own default for ``Linear``
    (uniform on +-1/sqrt(fan_in)) has the standard deviation of ``gain=3**-0.5``. Vectors (biases) get scale ``gain``.
    """

    family = dist.Normal

    @classmethod
    def from_weight_decay(
        cls,
        weight_decay: float,
        n_data: int,
        *,
        loss: LossKind = "mean",
        noise_scale: float | None = None,
        num_outputs: int = 1,
    ) -> Normal:
        """The Gaussian prior that ``torch.optim.SGD(weight_decay=...)`` amounts to.

        The penalised loss is ``c * (mean NLL) + (weight_decay / 2) |w|^2``, where c depends on the loss (see
        `loss_factor`); dividing by c and multiplying by N gives ``scale^2 = c / (N * weight_decay)``. On that loss SGD
        takes steps c times those on the mean NLL: multiply the learning rate by c to follow it with `bnn.MAP`.

        Args:
            weight_decay: As in PyTorch: ``weight_decay * w`` is added to the gradient. Positive.
            n_data: Number of training rows N.
            loss: ``"mean"`` of the NLL (``CrossEntropyLoss``, ``BCEWithLogitsLoss`` by default), its ``"sum"`` over all
                rows, or ``"mse"`` (``MSELoss``).
            noise_scale: For ``"mse"``: the noise scale that the Gaussian likelihood is given, in units of y.
            num_outputs: Targets a row, over which ``MSELoss`` and ``BCEWithLogitsLoss`` also average: k for targets of
                shape ``(n, k)``; 1 for class labels, however many classes.

        Raises:
            ValueError: A penalty that is not positive, or arguments that contradict each other.
        """
        _check_penalty("weight_decay", weight_decay)
        factor = loss_factor(loss, n_data, noise_scale, num_outputs)
        return cls(math.sqrt(factor / (n_data * weight_decay)))

    def weight_decay(
        self, n_data: int, *, loss: LossKind = "mean", noise_scale: float | None = None, num_outputs: int = 1
    ) -> float:
        """The ``weight_decay`` of SGD that this prior amounts to; the inverse of `from_weight_decay`."""
        scale = self._fixed_scale("weight_decay")
        return loss_factor(loss, n_data, noise_scale, num_outputs) / (n_data * scale**2)


class Laplace(LocationScale):
    """Independent Laplace (double-exponential) weights; -log p is an L1 penalty. The standard deviation is sqrt(2) scale."""  # noqa: E501

    family = dist.Laplace

    @classmethod
    def from_l1(
        cls,
        l1: float,
        n_data: int,
        *,
        loss: LossKind = "mean",
        noise_scale: float | None = None,
        num_outputs: int = 1,
    ) -> Laplace:
        """The Laplace prior that a penalty ``l1 * |w|_1`` beside the loss amounts to: ``scale = c / (N * l1)``.

        Arguments and errors as in `Normal.from_weight_decay`.
        """
        _check_penalty("l1", l1)
        return cls(loss_factor(loss, n_data, noise_scale, num_outputs) / (n_data * l1))

    def l1(
        self, n_data: int, *, loss: LossKind = "mean", noise_scale: float | None = None, num_outputs: int = 1
    ) -> float:
        """The weight of the L1 penalty that this prior amounts to; the inverse of `from_l1`."""
        return loss_factor(loss, n_data, noise_scale, num_outputs) / (n_data * self._fixed_scale("l1"))


def _check_penalty(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive, not {value}: no penalty would be an improper, flat prior")


def _check_fits(what: str, value: Tensor, name: str, param: Tensor) -> None:
    if not fits(value.shape, param.shape):
        raise ValueError(
            f"the prior's {what} has shape {tuple(value.shape)}, which does not broadcast to parameter "
            f"{name!r} of shape {tuple(param.shape)}"
        )
