"""Independent weights of one location-scale family: Gaussian, Laplace and Student's t; penalties as priors, and back.

L2 and L1 penalties are priors. For a loss that is the *mean* negative log-likelihood over N rows,

    mean NLL + (weight_decay / 2) |w|^2    is (1/N) times    -log p(y | w) - log Normal(w; 0, s),    s^2 = 1 / (N weight_decay)
    mean NLL + l1 |w|_1                    is (1/N) times    -log p(y | w) - log Laplace(w; 0, b),   b = 1 / (N l1)

up to constants, where ``weight_decay`` is that of ``torch.optim.SGD`` (it adds ``weight_decay * w`` to the gradient).
See Bishop, Pattern Recognition and Machine Learning (2006), sections 1.2.5 and 3.3.
"""  # noqa: E501

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bnn.distributions import expanded
from bnn.priors.base import check_numbers
from bnn.priors.scaled import Gain, Scale, Scaled

LossKind = Literal["mean", "sum", "mse"]


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
class LocationScale(Scaled):
    """What `Normal`, `Laplace` and `StudentT` share.

    Args:
        scale: See `Scaled`.
        gain: See `Scaled`.
        loc: The centre: a number or a tensor that broadcasts.
        centred: See `Scaled`.
    """

    scale: Scale = 1.0
    gain: Gain = 1.0
    loc: float | Tensor = 0.0
    centred: bool = True

    @property
    @abstractmethod
    def family(self) -> Callable[[Tensor, Tensor], TorchDistributionMixin]:
        """The distribution, called with a location and a scale."""

    def __post_init__(self) -> None:
        self.check_scale()
        if not bool(torch.as_tensor(self.loc).isfinite().all()):
            raise ValueError(f"loc must be finite, not {self.loc}")

    def law(self, name: str, shape: torch.Size, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        """The family at this location and scale; see `Scaled`."""
        return expanded(self.family, loc, scale, shape)

    def centres(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The location; see `Scaled`."""
        like = next(iter(params.values()))
        loc = torch.as_tensor(self.loc, dtype=like.dtype, device=like.device)
        return {name: loc.to(param) for name, param in params.items()}

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


@dataclass(frozen=True, eq=False, repr=False)
class StudentT(LocationScale):
    """Independent Student-t weights: heavy tails, which let single weights be large.

    -log p is the log-penalty ``(df + 1) / 2 * log(1 + w^2 / (df scale^2))``. The standard deviation is
    ``scale * sqrt(df / (df - 2))``, and does not exist up to ``df=2``; ``df=1`` is the Cauchy distribution.

    Args:
        df: Degrees of freedom, a positive number; by keyword.
        scale: See `Scaled`.
        gain: See `Scaled`.
        loc: See `LocationScale`.
        centred: See `Scaled`.
    """

    df: float = field(kw_only=True)

    def __post_init__(self) -> None:
        check_numbers(df=self.df)
        LocationScale.__post_init__(self)

    @property
    def family(self) -> Callable[[Tensor, Tensor], TorchDistributionMixin]:
        """Student's t with these degrees of freedom."""
        return functools.partial(dist.StudentT, float(self.df))


def _check_penalty(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive, not {value}: no penalty would be an improper, flat prior")
