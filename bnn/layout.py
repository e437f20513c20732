"""Flat vectors of unconstrained numbers, and the named, constrained tensors that they stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform, identity_transform


@dataclass(frozen=True)
class Site:
    """One named tensor: its value, which gives shape and dtype, and where that value may lie."""

    name: str
    value: Tensor
    support: constraints.Constraint

    @property
    def transform(self) -> Transform:
        """The map from unconstrained numbers to the support."""
        support = self.base_support
        return identity_transform if support is constraints.real else biject_to(support)

    @property
    def base_support(self) -> constraints.Constraint:
        """Where a single number (or vector) of it may lie."""
        support = self.support
        while isinstance(support, constraints.independent | constraints.MixtureSameFamilyConstraint):
            support = support.base_constraint
        return support


class Layout:
    """Where each site lies in a flat vector of ``size`` unconstrained numbers.

    The sites keep the order in which they are given. A constrained site takes as many numbers as its transform's
    domain has (a point on the simplex over k classes takes k - 1).
    """

    def __init__(self, sites: Sequence[Site]):
        self.sites = list(sites)
        self.names = [site.name for site in self.sites]
        self.transforms = [site.transform for site in self.sites]
        self.free_shapes = [
            torch.Size(transform.inverse_shape(site.value.shape))
            for site, transform in zip(self.sites, self.transforms, strict=True)
        ]
        self.sizes = [math.prod(shape) for shape in self.free_shapes]
        self.size = sum(self.sizes)
        dtypes = [site.value.dtype for site in self.sites]
        self.dtype = torch.get_default_dtype() if not dtypes else dtypes[0]
        for dtype in dtypes[1:]:
            self.dtype = torch.promote_types(self.dtype, dtype)

    @property
    def plain(self) -> bool:
        """Whether every site is unconstrained, so that the flat vector holds the values themselves."""
        return all(transform is identity_transform for transform in self.transforms)

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Named values, shaped as the sites, to one vector of unconstrained numbers, shape ``(size,)``."""
        if not self.sites:
            return torch.zeros(0, dtype=self.dtype)
        parts = [
            transform.inv(values[name]).reshape(-1).to(self.dtype)
            for name, transform in zip(self.names, self.transforms, strict=True)
        ]
        return torch.cat(parts)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """One vector of shape ``(size,)`` to the named values, in their own shapes, dtypes and supports."""
        values: dict[str, Tensor] = {}
        for site, transform, free in zip(self.sites, self.transforms, self.free(vector), strict=True):
            values[site.name] = transform(free).to(site.value.dtype)
        return values

    def free(self, vector: Tensor) -> list[Tensor]:
        """The slices of the vector, one a site, shaped but not yet constrained (views where they can be).

        `split` and not indexing: its gradient is a single concatenation.
        """
        pieces = vector.split(self.sizes) if self.sites else ()
        return [piece.view(shape) for piece, shape in zip(pieces, self.free_shapes, strict=True)]

    def log_abs_det(self, vector: Tensor) -> Tensor:
        """log |d values / d vector|, summed over all sites: a scalar (zero for real sites)."""
        total = vector.new_zeros(())
        for transform, free in zip(self.transforms, self.free(vector), strict=True):
            if transform is not identity_transform:
                total = total + transform.log_abs_det_jacobian(free, transform(free)).sum()
        return total
