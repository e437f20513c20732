"""Distributions over the latents of a model, as inference leaves them: what a `Posterior` draws from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bnn.layout import Layout

Values = dict[str, Tensor]


class Approximation(ABC):
    """A distribution over all latent sites of a model."""

    #: The name under which it is saved.
    kind: ClassVar[str]

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


class Draws(Approximation):
    """A finite set of draws, in chains.

    Args:
        values: ``{site: (chains, draws, *shape)}``.
    """

    kind = "draws"

    def __init__(self, values: Mapping[str, Tensor]):
        self.values = dict(values)
        sizes = {(value.shape[0], value.shape[1]) for value in self.values.values()} or {(1, 1)}
        if len(sizes) > 1:
            raise ValueError(f"sites have different numbers of chains and draws: {sorted(sizes)}")
        (self._shape,) = sizes

    @property
    def shape(self) -> tuple[int, int]:
        """(chains, draws)."""
        return self._shape

    def sample(self, num: int) -> Values:
        """Evenly spaced draws, the first and (if more than one is asked for) the last among them."""
        chains, draws = self._shape
        rows = torch.linspace(0, chains * draws - 1, num).round().long()
        return {name: value.flatten(0, 1)[rows.to(value.device)] for name, value in self.values.items()}

    def tensors(self) -> Values:
        """The draws."""
        return self.values


class Gaussian(Approximation):
    """Independent Gaussians over the unconstrained numbers.

    Args:
        layout: From numbers to sites.
        loc: ``(D,)``.
        log_scale: ``(D,)``, the logarithm of the standard deviations.
    """

    kind = "gaussian"

    def __init__(self, layout: Layout, loc: Tensor, log_scale: Tensor):
        self.layout, self.loc, self.log_scale = layout, loc, log_scale

    @property
    def shape(self) -> None:
        """Continuous."""
        return None

    def sample(self, num: int) -> Values:
        """One vector of noise a draw, so that draw i is the same whatever their number."""
        noise = torch.stack([torch.randn_like(self.loc) for _ in range(num)])
        return torch.func.vmap(self.layout.unflatten)(self.loc + self.log_scale.exp() * noise)

    def tensors(self) -> Values:
        """Both vectors."""
        return {"loc": self.loc, "log_scale": self.log_scale}


class Guide(Approximation):
    """A Pyro guide at its fitted parameters. It is code, so that only its parameters and draws can be saved.

    Args:
        draw: One draw of all latents from torch's present random state: ``{site: value}``.
        params: The guide's parameters.
    """

    kind = "guide"

    def __init__(self, draw: Callable[[], Values], params: Mapping[str, Tensor]):
        self._draw, self.params = draw, dict(params)

    @property
    def shape(self) -> None:
        """Continuous."""
        return None

    def sample(self, num: int) -> Values:
        """The guide, run once a draw."""
        draws = [self._draw() for _ in range(num)]
        return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    def tensors(self) -> Values:
        """The parameters; the caller saves draws beside them."""
        return self.params


def restored(kind: str, tensors: Mapping[str, Tensor], layout: Layout) -> Approximation:
    """An approximation from what `Approximation.tensors` gave.

    Raises:
        ValueError: The tensors do not fit the layout, with the names, shapes and dtypes.
    """
    if kind == Gaussian.kind:
        vector = torch.empty(layout.size, dtype=layout.dtype)
        _check_fit(tensors, {"loc": vector, "log_scale": vector}, leading=0)
        return Gaussian(layout, tensors["loc"], tensors["log_scale"])
    if kind == Draws.kind:
        _check_fit(tensors, {site.name: site.value for site in layout.sites}, leading=2)
        return Draws(tensors)
    raise ValueError(f"unknown kind of posterior {kind!r}: it was saved by a newer version of bnn")


def described(tensor: Tensor, leading: int = 0) -> str:
    """Shape and dtype in words, without some leading dimensions."""
    return f"{tuple(tensor.shape[leading:])} of {tensor.dtype}"


def _check_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], leading: int) -> None:
    if set(tensors) != set(expected):
        raise ValueError(f"saved are {sorted(tensors)}, but this model has {sorted(expected)}")
    for name, like in expected.items():
        got, ours = described(tensors[name], leading), described(like)
        if tensors[name].dim() < leading or got != ours:
            raise ValueError(f"{name!r} was saved with shape {got}, but has shape {ours} in this model")
