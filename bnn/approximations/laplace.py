"""A Gaussian with a block covariance around a point, for nets that are run as they are or linearised there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from bnn.approximations.base import Approximation, Values, check_fit
from bnn.approximations.blocks import Block, block_from
from bnn.layout import Layout

#: Draws made at a time.
_GROUP = 16


class LocalGaussian(Approximation):
    """Some of the unconstrained numbers are Gaussian around a centre, block by block; the others stay there.

    Args:
        layout: From numbers to sites.
        centre: ``(D,)``, the mode.
        where: ``(d,)``, integer indices of the numbers that are random, in the order of the blocks.
        blocks: Of the covariance.
        linear: Whether predictions are those of the network linearised at the centre, ``f(c) + J (w - c)``, for which
            this posterior was made, or of the network itself.
    """

    kind = "local_gaussian"

    def __init__(self, layout: Layout, centre: Tensor, where: Tensor, blocks: Sequence[Block], *, linear: bool):
        if sum(block.size for block in blocks) != len(where):
            raise ValueError(f"the blocks hold {sum(b.size for b in blocks)} numbers, but {len(where)} are random")
        self.layout, self.centre, self.where, self.linear = layout, centre, where, linear
        self.blocks = [block.to(centre) for block in blocks]
        self._sizes = [block.size for block in self.blocks]

    @property
    def shape(self) -> None:
        """Continuous."""
        return None

    @property
    def mode(self) -> Values:
        """``{site: value}`` at the centre."""
        return self.layout.unflatten(self.centre)

    @property
    def random_sites(self) -> list[str]:
        """The sites of which some number is random, in the order of the layout."""
        hit = torch.zeros_like(self.centre, dtype=torch.bool)
        hit[self.where] = True
        pieces = zip(self.layout.names, hit.split(self.layout.sizes), strict=True)
        return [name for name, piece in pieces if bool(piece.any())]

    def sample(self, num: int) -> Values:
        """One vector of noise a draw, so that draw i is the same whatever their number."""
        like = self.centre[self.where]
        noise = [torch.randn_like(like) for _ in range(num)]
        # A product's rounding depends on its size: groups of one size, the last one filled up.
        noise += [torch.zeros_like(like)] * (-num % _GROUP)
        groups = [self._spread(torch.stack(noise[i : i + _GROUP])) for i in range(0, num, _GROUP)]
        moves = torch.cat(groups)[:num]
        vectors = self.centre.repeat(num, 1).index_add(1, self.where, moves)
        return torch.func.vmap(self.layout.unflatten)(vectors)

    def _spread(self, noise: Tensor) -> Tensor:
        pieces = zip(self.blocks, noise.split(self._sizes, dim=1), strict=True)
        return torch.cat([block.spread(piece) for block, piece in pieces], dim=1)

    def output_covariance(self, jacobian: Tensor) -> Tensor:
        """``J S J'`` of each row: ``(n, k, k)``.

        Args:
            jacobian: ``(n, k, numbers of random_sites)``, their sites flattened and joined.
        """
        root = self._projected(jacobian)
        return root @ root.mT

    def _projected(self, jacobian: Tensor) -> Tensor:
        rows = jacobian.index_select(-1, self.columns)
        parts = [block.project(j) for block, j in zip(self.blocks, rows.split(self._sizes, dim=-1), strict=True)]
        return torch.cat(parts, dim=-1)

    @cached_property
    def columns(self) -> Tensor:
        """Where the numbers of the blocks stand among those of `random_sites`."""
        sites = dict(zip(self.layout.names, torch.arange(self.layout.size).split(self.layout.sizes), strict=True))
        column = torch.zeros(self.layout.size, dtype=torch.long)
        held = torch.cat([sites[name] for name in self.random_sites])
        column[held] = torch.arange(len(held))
        return column[self.where.cpu()].to(self.centre.device)

    def log_det(self) -> Tensor:
        """The logarithm of the covariance's determinant, over the numbers that are random."""
        return torch.stack([block.log_det() for block in self.blocks]).sum()

    def tensors(self) -> Values:
        """Centre, indices, whether it is linear, and ``block.NUMBER.KIND.NAME`` of every block."""
        saved = {"centre": self.centre, "where": self.where, "linear": torch.tensor(self.linear)}
        for i, block in enumerate(self.blocks):
            saved |= {f"block.{i}.{block.kind}.{name}": value for name, value in block.tensors().items()}
        return saved

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> LocalGaussian:
        """See `Approximation.restore`."""
        own = {name: value for name, value in tensors.items() if not name.startswith("block.")}
        number = torch.empty((), dtype=torch.bool)
        where = own.get("where", number)
        indices = torch.empty(len(where) if where.dim() == 1 else 0, dtype=torch.long)
        check_fit(own, {"centre": torch.empty(layout.size, dtype=layout.dtype), "where": indices, "linear": number})
        if bool(((where < 0) | (where >= layout.size)).any()):
            raise ValueError(f"the saved indices do not lie in 0..{layout.size - 1}")
        grouped: dict[tuple[int, str], Values] = {}
        for name in tensors.keys() - own.keys():
            _, number_of, kind, part = name.split(".")
            grouped.setdefault((int(number_of), kind), {})[part] = tensors[name]
        blocks = [block_from(kind, grouped[i, kind]) for i, kind in sorted(grouped)]
        return cls(layout, own["centre"], where, blocks, linear=bool(own["linear"]))
