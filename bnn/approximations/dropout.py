"""One point, and dropout masks: each draw is one thinned network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bnn.approximations.base import Approximation, Values, check_fit
from bnn.layout import Layout

_POINT, _RATE = "point/", "rate/"


class Masked(nn.Module):
    """Dropout with a mask that stays: in evaluation mode every row meets the same one, a factor a unit.

    In training mode it is the dropout that it stands for.

    Args:
        dropout: Which.
        mask: What to multiply with, of a shape that broadcasts against the activations; at first all ones.
    """

    mask: Tensor

    def __init__(self, dropout: nn.Module, mask: Tensor):
        super().__init__()
        self.dropout = dropout
        self.register_buffer("mask", mask)
        # In evaluation mode nn.TransformerEncoderLayer calls one fused kernel in the place of its modules, this one
        # among them, unless one of them has a hook.
        self.register_forward_pre_hook(_nothing)

    def forward(self, x: Tensor) -> Tensor:
        """The activations under the mask."""
        result: Tensor = self.dropout(x) if self.training else x * self.mask.to(x.dtype)
        return result


def _nothing(module: nn.Module, args: object) -> None:
    """A hook that changes nothing."""


class Thinned(Approximation):
    """Latents at one point, and independent Bernoulli masks for dropout modules.

    A draw holds ``MODULE.mask``, the factors 0 and 1 / (1 - rate), beside the sites.

    Args:
        values: ``{site: value}``.
        rates: ``{module: tensor}``, of the mask's shape, full of the probability that a unit is dropped.
    """

    kind = "dropout"

    def __init__(self, values: Mapping[str, Tensor], rates: Mapping[str, Tensor]):
        self.values, self.rates = dict(values), dict(rates)

    @property
    def shape(self) -> None:
        """Any number of masks can be drawn."""
        return None

    def sample(self, num: int) -> Values:
        """The point again and again, and one set of masks a draw, so that draw i is the same whatever their number."""
        drawn = [[_mask(rate) for rate in self.rates.values()] for _ in range(num)]
        masks = {
            f"{name}.mask": torch.stack(own) for name, own in zip(self.rates, zip(*drawn, strict=True), strict=True)
        }
        return {name: value.expand(num, *value.shape) for name, value in self.values.items()} | masks

    def tensors(self) -> Values:
        """The point and the rates."""
        return {f"{_POINT}{name}": value for name, value in self.values.items()} | {
            f"{_RATE}{name}": rate for name, rate in self.rates.items()
        }

    def put_in(self, net: nn.Module) -> None:
        """Masks in the place of the dropout modules.

        Raises:
            ValueError: The network has no such modules, or their rates are others.
        """
        for name, rate in self.rates.items():
            owner, _, attribute = name.rpartition(".")
            try:
                dropout = net.get_submodule(name)
            except AttributeError:
                raise ValueError(f"the masks are those of the dropout module {name!r}, which the net lacks") from None
            if isinstance(dropout, Masked):
                continue
            given = getattr(dropout, "p", None)
            if given is None or not torch.allclose(rate, torch.full_like(rate, given)):
                raise ValueError(f"the dropout rate of {name!r} was {rate.flatten()[0]:.4g}, this net has {given}")
            setattr(net.get_submodule(owner), attribute, Masked(dropout, torch.ones_like(rate)))

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> Thinned:
        """See `Approximation.restore`."""
        groups: dict[str, Values] = {_POINT: {}, _RATE: {}}
        for name, value in tensors.items():
            group, slash, own = name.partition("/")
            if group + slash not in groups:
                raise ValueError(f"unexpected tensor {name!r}")
            groups[group + slash][own] = value
        check_fit(groups[_POINT], {site.name: site.value for site in layout.sites})
        wrong = [name for name, rate in groups[_RATE].items() if not bool(((rate > 0) & (rate < 1)).all())]
        if wrong:
            raise ValueError(f"the dropout rates of {wrong} do not lie between 0 and 1")
        return cls(groups[_POINT], groups[_RATE])


def _mask(rate: Tensor) -> Tensor:
    """0 with the probability `rate`, else 1 / (1 - rate), so that its mean is 1."""
    keep = 1 - rate
    return torch.bernoulli(keep) / keep
