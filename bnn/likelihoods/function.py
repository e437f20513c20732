"""A likelihood of one's own, as one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from bnn.distributions import base, function_in_words
from bnn.likelihoods.base import Likelihood, Missing, Positive, Support, check_shape, check_support, shape_of


class Function(Likelihood):
    """``y ~ fn(outputs, **unknowns)``.

    Fields of a prediction (moments, quantiles) are in closed form where the distribution has one, else of 1,000 draws a
    draw of the weights, under a seed of their own; the epistemic variance then holds a thousandth of the aleatoric one.
    Under `bnn.Laplace` the curvature is the Hessian at the observed targets.

    Args:
        fn: From outputs, ``(n,)`` or ``(n, k)``, and the unknowns by name to a Pyro distribution whose first batch
            dimension are the rows. Plain torch, since it is recorded: no branch on values, no ``.item()``.
        missing: See `Likelihood`.
        unknowns: Positive parameters, as in `Likelihood`.
    """

    tails = True

    def __init__(self, fn: Callable[..., Any], *, missing: Missing = None, **unknowns: Positive):
        if not callable(fn):
            raise TypeError(f"fn is a function from outputs to a Pyro distribution, not {fn!r}")
        self.fn = fn
        super().__init__(missing=missing, settings={"fn": function_in_words(fn)}, **unknowns)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """What the function gives, with all its dimensions but the rows in the event."""
        found: Any = self.fn(outputs, **{name: latents[f"likelihood.{name}"] for name in self._unknowns})
        if not isinstance(found, TorchDistributionMixin):
            raise TypeError(f"{self!r}: fn returns a Pyro distribution, not {type(found).__name__}")
        return found.to_event(len(found.batch_shape) - 1)

    def event(self, outputs: Tensor) -> tuple[int, ...]:
        """That of the distribution."""
        return tuple(self._typical(outputs).event_shape)

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Targets have the shape of the distribution, and lie in its support where that is the same for all rows."""
        fn = self._typical(outputs)
        check_shape((*fn.batch_shape, *fn.event_shape), outputs, y)
        support: Any = type(base(fn)).support
        if not constraints.is_dependent(support) and not support.event_dim:
            words = str(support).removesuffix("()")
            check_support(type(self).__name__, Support(f"in its support, {words}", support.check), y, self.absent(y))

    def _typical(self, outputs: Tensor) -> Any:
        """The distribution with all outputs 0 and all unknowns 1: for shapes, which values do not change."""
        values = {
            f"likelihood.{name}": torch.ones(shape_of(what), dtype=outputs.dtype, device=outputs.device)
            for name, what in self._unknowns.items()
        }
        with torch.no_grad():
            return self.distribution(torch.zeros(outputs.shape, dtype=outputs.dtype, device=outputs.device), values)
