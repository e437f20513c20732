"""Distributions over the latents of a model, as inference leaves them: what a `Posterior` draws from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

from bnn.layout import Layout

Values = dict[str, Tensor]


class Approximation(ABC):
    """A distribution over all latent sites of a model."""

    #: The name under which it is saved.
    kind: ClassVar[str]
    #: What a sampler tells of each draw, ``{name: (chains, draws)}``, under ArviZ's names.
    statistics: Mapping[str, Tensor] = MappingProxyType({})

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int] | None:
        """Chains and draws a chain of a finite set of draws; None for a continuous distribution."""

    @abstractmethod
    def sample(self, num: int) -> Values:
        """``{site: (num, *shape)}`` from torch's present random state; the first m of n draws do not depend on n.

        A finite set gives `num` of its draws, evenly spaced over all chains; `num` is at most their number.
        """

    @abstractmethod
    def tensors(self) -> Values:
        """What has to be saved."""

    def put_in(self, net: nn.Module) -> None:  # noqa: B027 - most have nothing to do
        """Make a copy of the fitted network one that the draws fit, where they hold more than it has (masks)."""

    @classmethod
    @abstractmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> Approximation:
        """The approximation of which `tensors` were saved.

        Args:
            tensors: From a file, of any names, shapes and dtypes.
            layout: Of the model's latents; for draws, of the other tensors that each draw holds too.

        Raises:
            ValueError: They do not fit the layout, with the names, shapes and dtypes (`check_fit`).
        """


def described(tensor: Tensor, leading: int = 0) -> str:
    """Shape and dtype in words, without some leading dimensions."""
    return f"{tuple(tensor.shape[leading:])} of {tensor.dtype}"


def check_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], leading: int = 0) -> None:
    """Raise `ValueError` for names, shapes (without some leading dimensions) and dtypes other than expected."""
    if set(tensors) != set(expected):
        raise ValueError(f"saved are {sorted(tensors)}, but this model has {sorted(expected)}")
    for name, like in expected.items():
        got, ours = described(tensors[name], leading), described(like)
        if tensors[name].dim() < leading or got != ours:
            raise ValueError(f"{name!r} was saved with shape {got}, but has shape {ours} in this model")
