"""What a likelihood is: from a network's outputs to the Pyro distribution of the targets.

Shapes: `n` rows, `k` outputs or classes. A likelihood sees outputs of shape ``(n,)`` or ``(n, k)``, or with further
dimensions, and gives a distribution with batch shape ``(n,)`` whose event is the target of one row. It never sees
draws: a `bnn.Prediction` stacks them as rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from bnn.distributions import cast, check_positive, fits, in_words
from bnn.inputs import check_finite
from bnn.likelihoods.laws import MaskedLaw

# A positive unknown: fixed, a learned point, or a latent with this prior.
Positive = float | Tensor | TorchDistributionMixin | Literal["learned"]

Missing = Literal["mask"] | None

#: The label of a missing target, as torch's ``ignore_index``.
MISSING_LABEL = -100


class Support(NamedTuple):
    """Where the targets of a likelihood may lie."""

    #: As in "targets of a Poisson likelihood are ...".
    words: str
    #: From targets to whether each of them lies there.
    holds: Callable[[Tensor], Tensor]


class Likelihood(ABC):
    """The conditional distribution of the targets, given a network's outputs and its own unknowns.

    A new one needs one method, `distribution`; see `bnn.likelihoods.Function` for one without a class.

    Args:
        missing: ``"mask"``: targets that are NaN (labels: -100) are missing, and count nothing. Without it NaN is an
            error.
        settings: What tells two likelihoods of this class apart, beside the unknowns; empty ones are not shown.
        unknowns: ``{name: what}``: the likelihood's own positive parameters, such as a noise scale. Each is a number or
            a tensor (fixed), ``"learned"`` (a point, trained beside the weights; the Pyro parameter
            ``likelihood.NAME``), or a Pyro distribution (a latent site ``likelihood.NAME`` with that prior).
    """

    #: The fields of a `Prediction` that this likelihood has; the others raise and name it.
    fields: frozenset[str] = frozenset({"mean", "variance", "quantile"})
    #: Whether targets are integer labels; all others are converted to the network's floating dtype.
    labels: ClassVar[bool] = False
    #: Whether its distribution function is known to `Censored` and `Truncated`, and differentiable.
    tails: ClassVar[bool] = False
    #: Whether a target is an interval, ``(lower, upper)``, and not the quantity that is predicted.
    intervals: ClassVar[bool] = False
    #: Where targets may lie; None: anywhere.
    support: Support | None = None
    #: The setting that makes training weights of rows, which are no density (see `training_weights`); empty: none.
    weighs: str = ""
    #: A number inside the support, which stands for a missing target in a term that does not count.
    filler: float = 0.5

    def __init__(self, *, missing: Missing = None, settings: Mapping[str, object] | None = None, **unknowns: Positive):
        for name, what in unknowns.items():
            if isinstance(what, str) and what != "learned":
                raise ValueError(f"{name} is a number, a tensor, a Pyro distribution or 'learned', not {what!r}")
            if not isinstance(what, str):
                check_positive(name, what)
        if missing not in (None, "mask"):
            raise ValueError(f"missing is None (NaN is an error) or 'mask', not {missing!r}")
        self.missing = missing
        self._unknowns = unknowns
        self._settings = {**(settings or {}), "missing": missing}

    def __repr__(self) -> str:
        shown = [f"{name}={in_words(what)}" for name, what in self._unknowns.items()]
        shown += [f"{name}={value!r}" for name, value in self._settings.items() if value]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def family(self) -> str:
        """Its kind and settings, without the unknowns: equal for two whose outputs and unknowns mean the same."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._settings.items())})"

    def latents(self, like: Tensor) -> dict[str, Tensor]:
        """Sample (or look up) the unknowns in Pyro, once for all rows: ``{"likelihood.NAME": tensor}``.

        Args:
            like: Any tensor of the network; the unknowns take its dtype and device.
        """
        return {
            f"likelihood.{name}": _unknown(f"likelihood.{name}", what, like) for name, what in self._unknowns.items()
        }

    @abstractmethod
    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """The distribution of y: batch shape ``(n,)``, event shape that of one target.

        Args:
            outputs: ``(n,)`` or ``(n, k)``, from the network.
            latents: From `latents`, or one value a row of them, shaped so that it broadcasts against the outputs.
        """

    def observation(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """The distribution of what is recorded of y, the targets: `distribution`, but for missing ones and intervals.

        Its log-density is the likelihood; predictions are those of `distribution`.
        """
        fn = self.distribution(outputs, latents)
        return fn if self.missing is None else self.masked(fn)

    def masked(self, fn: Any) -> TorchDistributionMixin:
        """A distribution of y whose log-density leaves missing targets out."""
        return MaskedLaw(fn, self.absent, 0.0 if self.labels else self.filler)

    def absent(self, y: Tensor) -> Tensor:
        """Which targets are missing, in the shape of y."""
        if self.missing is None:
            return torch.zeros_like(y, dtype=torch.bool)
        return y == MISSING_LABEL if self.labels else y.isnan()

    def event(self, outputs: Tensor) -> tuple[int, ...]:
        """The shape of one row's target under these outputs: that of one row of them, if not said otherwise.

        Raises:
            ValueError: Outputs of a shape that the likelihood cannot use.
        """
        return tuple(outputs.shape[1:])

    def left_out(self, root: Tensor, there: Tensor) -> Tensor:
        """What is left of a `fisher_root`, ``(n, k, r)``, where only these outputs, ``(n, k)``, have targets."""
        return root * there.unsqueeze(-1)

    def training_weights(self, outputs: Tensor, latents: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """``(n,)``: what the training loss of each row is multiplied by; used where `weighs` says so.

        They are no part of any density: the model's Pyro program has them as a scale of its data site.
        """
        return outputs.new_ones(len(outputs))

    def convert(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets in the dtype that the log-density needs: labels as they are, all others in the network's `dtype`."""
        return y if self.labels else y.to(dtype)

    def check_numbers(self, y: Tensor) -> None:
        """Raise `ValueError`, with the rows, for NaN or infinite targets that do not stand for something."""
        check_finite(y.masked_fill(self.absent(y), 0), "y")

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Raise `ValueError` or `TypeError`, in words, for targets that these outputs cannot be a prediction of."""
        event = self.event(outputs)
        check_shape((len(outputs), *event), outputs, y)
        kind = type(self).__name__
        for name, what in self._unknowns.items():
            # No dimension of it may fall on the rows, where it would be taken for one number a row.
            if not fits(shape_of(what), event):
                raise ValueError(
                    f"the {name} of the {kind} likelihood has shape {shape_of(what)}, but the network gives "
                    f"{tuple(outputs.shape)}: it is one number, or one an output"
                )
        if self.support is not None:
            check_support(kind, self.support, y, self.absent(y))


@runtime_checkable
class OutputFisher(Protocol):
    """A likelihood whose curvature in the network's outputs is known in closed form."""

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """S with ``S S'`` the expected Fisher information of the outputs, for each row.

        That is the covariance, over y, of the gradient of log p(y | outputs), and where there are second derivatives
        the expectation of its negative Hessian: what a generalised Gauss-Newton matrix needs (Martens, JMLR 21, 2020,
        section 9).

        Args:
            outputs: ``(n,)`` or ``(n, k)``.
            latents: As in `Likelihood.distribution`.

        Returns:
            ``(n, k, r)``, with k the numbers of one row's outputs: 1 for outputs ``(n,)``.
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


def diagonal_root(outputs: Tensor, root: Tensor) -> Tensor:
    """``(n, k, k)`` from the square root of each output's own information, which broadcasts against the outputs."""
    return torch.diag_embed(root.expand(outputs.shape).reshape(len(outputs), -1))


def present_root(likelihood: Likelihood, root: Tensor, outputs: Tensor, y: Tensor) -> Tensor:
    """A `fisher_root` without the outputs on which no target that is there depends: their rows are 0."""
    if likelihood.missing is None:
        return root
    there = ~likelihood.absent(y)
    if there.shape != outputs.shape:
        if there.dim() == outputs.dim():  # several outputs a target, one after the other: means, then scales
            there = there.repeat(1, outputs.shape[1] // there.shape[1])
        else:
            there = there.unsqueeze(1).expand_as(outputs)
    return likelihood.left_out(root, there.reshape(len(outputs), -1))


def refuse_training_weights(likelihood: Likelihood, what: str) -> None:
    """Raise `ValueError` where a likelihood's training weights have no place."""
    if likelihood.weighs:
        raise ValueError(
            f"{what} needs a density, and {likelihood.weighs} of {type(likelihood).__name__} makes training weights of "
            "rows: leave it out"
        )


def _unknown(name: str, what: Positive, like: Tensor) -> Tensor:
    """The Pyro side of an unknown; see `Likelihood`."""
    if isinstance(what, str):
        return pyro.param(name, lambda: like.new_ones(()), constraint=constraints.positive)
    if isinstance(what, TorchDistributionMixin):
        prior = cast(what, like)
        value: Tensor = pyro.sample(name, prior.to_event(len(prior.batch_shape)))
        return value
    return torch.as_tensor(what, dtype=like.dtype, device=like.device)


def shape_of(what: Positive) -> tuple[int, ...]:
    """The shape of an unknown."""
    if isinstance(what, TorchDistributionMixin):
        return (*what.batch_shape, *what.event_shape)
    return tuple(what.size()) if isinstance(what, Tensor) else ()


def check_shape(shape: tuple[int, ...], outputs: Tensor, y: Tensor) -> None:
    """Raise `ValueError` for targets of another shape than this one."""
    if y.shape == shape:
        return
    hint = "" if shape == outputs.shape else f", which asks for y of shape {tuple(shape)}"
    if (*y.shape, 1) == shape:
        hint += (
            "; they would broadcast to a square: give y.unsqueeze(-1), or let the network end in torch.nn.Flatten(0)"
        )
    elif y.shape == (*shape, 1):
        hint += "; they would broadcast to a square: give y.squeeze(-1)"
    raise ValueError(f"y has shape {tuple(y.shape)} but the network gives {tuple(outputs.shape)}{hint}")


def check_support(kind: str, support: Support, y: Tensor, absent: Tensor) -> None:
    """Raise `ValueError` for targets outside the support, with the first of them."""
    wrong = (~support.holds(y) & ~absent).nonzero()
    if len(wrong):
        where = tuple(wrong[0].tolist())
        raise ValueError(
            f"targets of a {kind} likelihood are {support.words}; {len(wrong)} are not, the first at row {where[0]}: "
            f"{y[where].item()}"
        )
