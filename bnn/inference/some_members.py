"""Rows for the members of an ensemble that one rank has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bnn.data import Batch, Place, Source
from bnn.forward import depends_on_mode
from bnn.inference.objective import Objective
from bnn.random import other_seed, seed_generators

if TYPE_CHECKING:
    from bnn.inference.ensemble import Ensemble


def some_members(method: Ensemble, source: Source, objective: Objective, own: range, seed: int) -> Source:
    """Rows for a rank's members of an ensemble.

    Where the order of the rows is all that is random, each member has the one that it would have among all. Else the
    members of each rank have noise of their own.
    """
    from bnn.inference.map import MAP
    from bnn.inference.swag import SWAG

    model = objective.model
    order_alone = type(method.of) in (MAP, SWAG) and not depends_on_mode(model.net) and model.readings is None
    if own.start and not order_alone:
        seed_generators(other_seed(seed, f"member {own.start}"), model.like.device)
    return _SomeMembers(source, own, method.members)


class _SomeMembers(Source):
    """Rows for some members of an ensemble, such that each has the order that it would have among all.

    Args:
        source: For all members.
        own: Which they are.
        total: How many there are in all.
    """

    def __init__(self, source: Source, own: range, total: int):
        self._source, self._own, self._total, self.n = source, own, total, source.n

    @property
    def sizes(self) -> dict[int, int] | None:
        """Those of the source."""
        return self._source.sizes

    def identity(self) -> dict[str, Any]:
        """That of the source."""
        return self._source.identity()

    def place(self, members: int | None) -> Place:
        """As the source."""
        return self._source.place(members)

    def check_targets(self, check: Callable[[Tensor], None]) -> None:
        """As the source."""
        self._source.check_targets(check)

    def batches(self) -> Iterator[Batch]:
        """As the source."""
        return self._source.batches()

    def member_batches(self, members: int) -> Iterator[Batch]:
        """Of these members."""
        for batch in self._source.member_batches(self._total):
            leaves = [leaf[self._own.start : self._own.stop] for leaf in batch.leaves]
            yield Batch.rebuild(batch.structure, leaves)
