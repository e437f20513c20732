"""Likelihoods: from a network's outputs to the Pyro distribution of the targets.

Shapes: `n` rows, `k` outputs or classes. A likelihood sees outputs of shape ``(n,)`` or ``(n, k)`` and gives a
distribution with batch shape ``(n,)`` whose event is the target of one row. It never sees draws: a `bnn.Prediction`
stacks them as rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol, runtime_checkable

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from bnn.distributions import cast, check_positive, fits, in_words

# A positive unknown: fixed, a learned point, or a latent with this prior.
Positive = float | Tensor | TorchDistributionMixin | Literal["learned"]


class Likelihood(ABC):
    """The conditional distribution of the targets, given a network's outputs and its own unknowns.

    Args:
        unknowns: ``{name: what}``: the likelihood's own positive parameters, such as a noise scale. Each is a number or
            a tensor (fixed), ``"learned"`` (a point, trained beside the weights; the Pyro parameter
            ``likelihood.NAME``), or a Pyro distribution (a latent site ``likelihood.NAME`` with that prior).
    """

    #: The fields of a `Prediction` that this likelihood has; the others raise and name it.
    fields: ClassVar[frozenset[str]]
    #: Whether targets are integer labels; all others are converted to the network's floating dtype.
    labels: ClassVar[bool] = False

    def __init__(self, **unknowns: Positive):
        for name, what in unknowns.items():
            if isinstance(what, str) and what != "learned":
                raise ValueError(f"{name} is a number, a tensor, a Pyro distribution or 'learned', not {what!r}")
            if not isinstance(what, str):
                check_positive(name, what)
        self._unknowns = unknowns

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={in_words(what)}' for name, what in self._unknowns.items())})"
        )

    def latents(self, like: Tensor) -> dict[str, Tensor]:
        """Sample (or look up) the unknowns in Pyro, once for all rows: ``{"likelihood.NAME": tensor}``.

        Args:
            like: Any tensor of the network; the unknowns take its dtype and device.
        """
        return {
            f"likelihood.{name}": _positive(f"likelihood.{name}", what, like) for name, what in self._unknowns.items()
        }

    @abstractmethod
    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """The distribution of y: batch shape ``(n,)``, event shape that of one target.

        Args:
            outputs: ``(n,)`` or ``(n, k)``, from the network.
            latents: From `latents`, or one value a row of them, shaped so that it broadcasts against the outputs.
        """

    def convert(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets in the dtype that the log-density needs: labels as they are, all others in the network's `dtype`."""
        return y if self.labels else y.to(dtype)

    @abstractmethod
    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Raise `ValueError` or `TypeError`, in words, for targets that these outputs cannot be a prediction of."""


@runtime_checkable
class OutputFisher(Protocol):
    """A likelihood whose curvature in the network's outputs is known in closed form."""

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """S with ``S S'`` the expected Fisher information of the outputs, for each row.

        That is the expectation, over y, of the negative Hessian of log p(y | outputs): what a generalised Gauss-Newton
        matrix needs (Martens, JMLR 21, 2020, section 9).

        Args:
            outputs: ``(n,)`` or ``(n, k)``.
            latents: As in `Likelihood.distribution`.

        Returns:
            ``(n, k, r)``, with k = 1 for outputs ``(n,)``.
        """


@runtime_checkable
class GaussianAverage(Protocol):
    """A likelihood whose average over Gaussian outputs is known in closed form."""

    def averaged(self, outputs: Tensor, latents: Mapping[str, Tensor], covariance: Tensor) -> TorchDistributionMixin:
        """The distribution of y where each row's outputs are Gaussian: batch shape ``(n,)``.

        Args:
            outputs: ``(n,)`` or ``(n, k)``, their means.
            latents: As in `Likelihood.distribution`.
            covariance: ``(n, k, k)``, with k = 1 for outputs ``(n,)``.
        """


class Gaussian(Likelihood):
    """y = f(x) + noise, with Gaussian noise of one scale: ``y ~ Normal(outputs, scale)``, per output independent.

    Args:
        scale: The noise's standard deviation, in units of y: fixed, ``"learned"`` or a prior. The default prior,
            half-Cauchy(1), suits targets whose spread is around 1. A tensor or a prior of shape ``(k,)`` has one scale
            an output.
    """

    fields = frozenset({"mean", "variance", "quantile"})

    def __init__(self, scale: Positive | None = None):
        super().__init__(scale=dist.HalfCauchy(1.0) if scale is None else scale)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Normal(outputs, scale)`` with the output dimension, if there is one, in the event."""
        return dist.Normal(outputs, latents["likelihood.scale"]).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """1 / scale, for each output by itself; see `OutputFisher`."""
        return torch.diag_embed(
            latents["likelihood.scale"].reciprocal().expand(outputs.shape).reshape(len(outputs), -1)
        )

    def averaged(self, outputs: Tensor, latents: Mapping[str, Tensor], covariance: Tensor) -> TorchDistributionMixin:
        """Gaussian, with both variances added; see `GaussianAverage`."""
        noise = latents["likelihood.scale"].square().expand(outputs.shape)
        if outputs.dim() == 1:
            return dist.Normal(outputs, (covariance[:, 0, 0] + noise).sqrt())
        return dist.MultivariateNormal(outputs, covariance + torch.diag_embed(noise))

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Targets are of exactly the outputs' shape, and the scale is one number or one an output."""
        _check_same_shape(outputs, y)
        scale = _shape(self._unknowns["scale"])
        # No dimension of it may fall on the rows, where it would be taken for one scale a row.
        if not fits(scale, outputs.shape[1:]):
            raise ValueError(
                f"the scale of the Gaussian likelihood has shape {scale}, but the network gives "
                f"{tuple(outputs.shape)}: it is one number, or one an output"
            )


class Categorical(Likelihood):
    """One of k classes: outputs ``(n, k)`` are unnormalised log-probabilities, targets ``(n,)`` integers in 0..k-1."""

    fields = frozenset({"probs", "entropy"})
    labels = True

    def __init__(self) -> None:
        super().__init__()

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Categorical(logits=outputs)``: softmax over the last dimension."""
        return dist.Categorical(logits=outputs)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``diag(sqrt p) - p sqrt(p)'``, whose square is ``diag(p) - p p'``; see `OutputFisher`."""
        probs = outputs.softmax(-1)
        roots = probs.sqrt()
        return torch.diag_embed(roots) - probs.unsqueeze(-1) * roots.unsqueeze(-2)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Targets are integers below the number of outputs, one a row."""
        if outputs.dim() != 2:
            raise ValueError(
                f"a Categorical likelihood needs outputs of shape (n, k), one a class; the network gives "
                f"{tuple(outputs.shape)}"
            )
        if y.is_floating_point() or y.is_complex():
            raise TypeError(f"class labels are integers from 0; y has dtype {y.dtype}: y.long()")
        if y.shape != outputs.shape[:-1]:
            raise ValueError(
                f"class labels have shape (n,); y has shape {tuple(y.shape)}, the network gives {tuple(outputs.shape)}"
                + (": y.squeeze(-1)" if y.shape == (outputs.shape[0], 1) else "")
            )
        k = outputs.shape[-1]
        outside = ((y < 0) | (y >= k)).nonzero()
        if len(outside):
            row = int(outside[0])
            raise ValueError(
                f"class labels must lie in 0..{k - 1}, since the network has {k} outputs; "
                f"{len(outside)} rows do not, the first is row {row} with label {y[row].item()}"
            )


class Bernoulli(Likelihood):
    """Yes or no: outputs are log-odds, targets 0 or 1 of the same shape ``(n,)`` or ``(n, k)`` (k labels a row)."""

    fields = frozenset({"mean", "variance", "probs", "entropy"})

    def __init__(self) -> None:
        super().__init__()

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Bernoulli(logits=outputs)``, per output independent."""
        return dist.Bernoulli(logits=outputs).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``sqrt(p (1 - p))``, for each output by itself; see `OutputFisher`."""
        probs = outputs.sigmoid()
        return torch.diag_embed((probs * (1 - probs)).sqrt().reshape(len(outputs), -1))

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Targets are 0 or 1, of the outputs' shape."""
        _check_same_shape(outputs, y)
        wrong = ((y != 0) & (y != 1)).nonzero()
        if len(wrong):
            where = tuple(wrong[0].tolist())
            raise ValueError(
                f"targets of a Bernoulli likelihood are 0 or 1; {len(wrong)} are not, the first at row {where[0]}: "
                f"{y[where].item()}"
            )


def _positive(name: str, what: Positive, like: Tensor) -> Tensor:
    """The Pyro side of a positive unknown; see `Likelihood`."""
    if isinstance(what, str):
        return pyro.param(name, lambda: like.new_ones(()), constraint=constraints.positive)
    if isinstance(what, TorchDistributionMixin):
        prior = cast(what, like)
        value: Tensor = pyro.sample(name, prior.to_event(len(prior.batch_shape)))
        return value
    return torch.as_tensor(what, dtype=like.dtype, device=like.device)


def _shape(what: Positive) -> tuple[int, ...]:
    """The shape of a positive unknown."""
    if isinstance(what, TorchDistributionMixin):
        return (*what.batch_shape, *what.event_shape)
    return tuple(what.size()) if isinstance(what, Tensor) else ()


def _check_same_shape(outputs: Tensor, y: Tensor) -> None:
    if y.shape == outputs.shape:
        return
    hint = ""
    if (*y.shape, 1) == tuple(outputs.shape):
        hint = "; they would broadcast to a square: give y.unsqueeze(-1), or let the network end in torch.nn.Flatten(0)"
    elif y.shape == (*outputs.shape, 1):
        hint = "; they would broadcast to a square: give y.squeeze(-1)"
    raise ValueError(f"y has shape {tuple(y.shape)} but the network gives {tuple(outputs.shape)}{hint}")
