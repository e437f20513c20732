"""What the toolkit needs of distributions beyond `torch.distributions`: dtype, structure, closed-form integrals."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution, Transform

T = TypeVar("T", bound=Distribution | Transform)


def cast(fn: T, like: Tensor) -> T:
    """A copy of a distribution (or transform) whose tensors have the dtype and device of `like`.

    ``pyro.distributions.HalfCauchy(1.0)`` is float32 whatever network it is given to; a float64 posterior needs it
    exact.
    """

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(like) if value.is_floating_point() else value.to(like.device)
        if isinstance(value, Distribution | Transform):
            return cast(value, like)
        if isinstance(value, list | tuple) and any(isinstance(item, Distribution | Transform) for item in value):
            return type(value)(convert(item) for item in value)
        return value

    fn = copy.copy(fn)
    vars(fn).update({name: convert(value) for name, value in vars(fn).items()})
    return fn


#: Numbers that no positive quantity takes: a support that holds one of them is not one of scales.
_NEGATIVE = (-1e-6, -1.0, -1e3)


def check_positive(name: str, value: object) -> None:
    """Raise unless a number or tensor is positive and finite, or a distribution is one over positive numbers.

    Raises:
        ValueError: It is none of these, with the name and the value.
    """
    if isinstance(value, Distribution):
        shape = value.batch_shape + value.event_shape
        support: Any = value.support
        if support.is_discrete or any(bool(support.check(torch.full(shape, x)).any()) for x in _NEGATIVE):
            raise ValueError(f"the prior of {name} must be over positive numbers; {value} has support {support}")
        return
    try:
        number = torch.as_tensor(value)
        fine = bool(((number > 0) & number.isfinite()).all())
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be a positive number, a tensor or a Pyro distribution, not {value!r}") from None
    if not fine:
        raise ValueError(f"{name} must be positive and finite, not {value}")


def base(fn: Distribution) -> Distribution:
    """The distribution of a single number, under any `Independent` and `Expanded` wrappers."""
    while isinstance(fn, torch.distributions.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


def fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a tensor of one shape broadcasts to another shape without enlarging it."""
    try:
        return torch.broadcast_shapes(shape, target) == torch.Size(target)
    except RuntimeError:
        return False


#: Attributes of torch's classes that say nothing about a distribution.
_CACHES = ("_batch_shape", "_event_shape", "_cache_size", "_num_component", "_event_ndims", "_validate_args")


def in_words(value: object) -> str:
    """A setting in words with all its numbers (of a distribution, of a tensor) and no device: equal for equal ones."""
    if isinstance(value, Distribution):
        fn = base(value)
        # Mixtures and transformed distributions have no numbers of their own.
        parts = {name: getattr(fn, name) for name in fn.arg_constraints} or _parts(fn)
        return f"{type(fn).__name__}({', '.join(f'{name}={in_words(part)}' for name, part in parts.items())})"
    if isinstance(value, Transform):
        return f"{type(value).__name__}({', '.join(f'{name}={in_words(v)}' for name, v in _parts(value).items())})"
    if isinstance(value, list):
        return f"[{', '.join(in_words(part) for part in value)}]"
    return str(value.tolist()) if isinstance(value, Tensor) else repr(value)


def function_in_words(fn: Any) -> str:
    """A function's name, with what a `functools.partial` was given."""
    if not isinstance(fn, functools.partial):
        return str(getattr(fn, "__qualname__", type(fn).__qualname__))
    given = [in_words(value) for value in fn.args]
    given += [f"{name}={in_words(value)}" for name, value in fn.keywords.items()]
    return f"{function_in_words(fn.func)}({', '.join(['...', *given])})"


def _parts(holder: Distribution | Transform) -> dict[str, object]:
    """What a distribution or transform holds: numbers, distributions and transforms, but no caches."""
    kinds = (Distribution, Transform, Tensor, list, int, float)
    return {name: v for name, v in vars(holder).items() if isinstance(v, kinds) and name not in _CACHES}


def expanded(
    family: Callable[[Tensor, Tensor], TorchDistributionMixin], loc: Tensor, scale: Tensor, shape: torch.Size
) -> TorchDistributionMixin:
    """``family(loc, scale)`` over `shape`, every number its own event dimension, that remembers the small tensors.

    Expanded scalars, never full tensors: those would cost two more copies of the weights.
    """
    fn = family(loc.expand(shape), scale.expand(shape))
    fn.__dict__["unexpanded"] = (loc, scale)
    return fn.to_event(len(shape))


def parameters(fn: Distribution) -> tuple[Tensor, ...]:
    """The tensors of a family in the order of its cross entropy: those given to `expanded`, else those it holds."""
    fn = base(fn)
    own: tuple[Tensor, ...] | None = vars(fn).get("unexpanded")
    return (fn.loc, fn.scale) if own is None else own  # type: ignore[attr-defined]


def loc_and_scale(fn: Distribution) -> tuple[Tensor, Tensor]:
    """The location and scale of a location-scale family: the tensors given to `expanded`, else those it holds."""
    loc, scale = parameters(fn)
    return loc, scale


def mean_square(loc: Tensor, scale: Tensor | None, centre: Tensor) -> Tensor:
    """E (w - centre)^2 under w ~ Normal(loc, scale), elementwise; scale ``None``: a point mass at loc."""
    distance = loc - centre
    squares = distance * distance
    return squares if scale is None else squares + scale * scale


def mean_distance(loc: Tensor, scale: Tensor | None, centre: Tensor) -> Tensor:
    """E |w - centre| under w ~ Normal(loc, scale), elementwise; scale ``None``: a point mass at loc.

    The mean of a folded normal: s sqrt(2/pi) exp(-d^2 / 2s^2) + d erf(d / (s sqrt 2)), d = loc - centre (Leone, Nelson
    and Nottingham, Technometrics 3, 1961).
    """
    distance = loc - centre
    if scale is None:
        return distance.abs()
    standard = distance / (scale * math.sqrt(2))
    return scale * math.sqrt(2 / math.pi) * (-standard * standard).exp() + distance * standard.erf()


def _normal_cross_entropy(loc: Tensor, scale: Tensor | None, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """Sum of -E[log Normal(w; prior)] under w ~ Normal(loc, scale); Bishop (2006), exercise 2.13."""
    squares = ratio(mean_square(loc, scale, prior_loc), prior_scale * prior_scale)
    return 0.5 * squares + total(prior_scale.log(), loc) + 0.5 * math.log(2 * math.pi) * loc.numel()


def _laplace_cross_entropy(loc: Tensor, scale: Tensor | None, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """Sum of -E[log Laplace(w; prior)] under w ~ Normal(loc, scale)."""
    return ratio(mean_distance(loc, scale, prior_loc), prior_scale) + total((2 * prior_scale).log(), loc)


CrossEntropy = Callable[..., Tensor]

#: Prior families whose cross entropy under a Gaussian is known: (loc, scale, *parameters of the family) -> scalar.
#: Scale ``None`` is a point mass at loc: the negative log-density there.
GAUSSIAN_CROSS_ENTROPY: dict[type[Distribution], CrossEntropy] = {
    dist.Normal: _normal_cross_entropy,
    dist.Laplace: _laplace_cross_entropy,
}


def total(value: Tensor, like: Tensor) -> Tensor:
    """The sum over all elements, where a scalar stands for every one of them."""
    return value * like.numel() if value.dim() == 0 else value.sum()


def ratio(value: Tensor, divisor: Tensor) -> Tensor:
    """sum(value / divisor), with one division where the divisor is a scalar."""
    return value.sum() / divisor if divisor.dim() == 0 else (value / divisor).sum()
