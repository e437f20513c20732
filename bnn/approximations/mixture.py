"""Equal mixtures of continuous distributions: the members of an ensemble, each with what belongs to it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from bnn.approximations.base import Approximation, Values, check_fit
from bnn.layout import Layout, Site
from bnn.random import isolated

#: Before the names of the tensors that belong to a member, in a file.
OWN = "own/"


class Mixture(Approximation):
    """The equal mixture of K distributions of one kind. Draw i comes from member i modulo K.

    Args:
        parts: The members' distributions, continuous.
        own: ``{name: (K, *shape)}``: the learned points and buffers of each member, which its draws hold too.
    """

    kind = "mixture"

    def __init__(self, parts: Sequence[Approximation], own: Mapping[str, Tensor]):
        if any(part.shape is not None for part in parts):
            raise ValueError("a mixture is made of continuous distributions; finite sets of draws are joined into one")
        self.parts, self.own = list(parts), dict(own)

    @property
    def shape(self) -> None:
        """Continuous."""
        return None

    def sample(self, num: int) -> Values:
        """Each member draws under a seed of its own, so that draw i is the same whatever their number."""
        count = len(self.parts)
        seeds = torch.randint(2**62, (count,)).tolist()
        used = list(zip(self.parts, seeds, strict=True))[:num]
        rounds = -(-num // count)
        drawn = []
        for part, seed in used:
            with isolated(seed, _device(part.tensors())):
                drawn.append(part.sample(rounds))
        values = {name: torch.stack([table[name] for table in drawn], dim=1).flatten(0, 1)[:num] for name in drawn[0]}
        member = torch.arange(num) % count
        return values | {name: value[member.to(value.device)] for name, value in self.own.items()}

    def tensors(self) -> Values:
        """The parts' tensors, stacked, after ``KIND/``; those of the members after ``own/``."""
        tables = [part.tensors() for part in self.parts]
        stacked = {f"{self.parts[0].kind}/{name}": torch.stack([table[name] for table in tables]) for name in tables[0]}
        return stacked | {f"{OWN}{name}": value for name, value in self.own.items()}

    def put_in(self, net: nn.Module) -> None:
        """As for one part."""
        self.parts[0].put_in(net)

    def another(self, tensors: Mapping[str, Tensor]) -> Mixture:
        """A mixture of parts of the same kind, from what its `tensors` gave, over the same layout."""
        own = {name: Site(name, value[0], constraints.real) for name, value in self.own.items()}
        layout: Layout = self.parts[0].layout  # type: ignore[attr-defined]
        return Mixture.restore(tensors, Layout([*(s for s in layout.sites if s.name not in own), *own.values()]))

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], layout: Layout) -> Mixture:
        """See `Approximation.restore`."""
        from bnn.approximations import restored

        own = {name.removeprefix(OWN): value for name, value in tensors.items() if name.startswith(OWN)}
        rest = {name: value for name, value in tensors.items() if not name.startswith(OWN)}
        kinds, sizes = {name.partition("/")[0] for name in rest}, {len(value) for value in tensors.values()}
        if len(kinds) != 1 or len(sizes) != 1 or 0 in sizes:
            raise ValueError(f"a mixture has parts of one kind and one number; these are {kinds} in numbers {sizes}")
        (kind,), (count,) = kinds, sizes
        check_fit(own, {site.name: site.value for site in layout.sites if site.name in own}, leading=1)
        inner = Layout([site for site in layout.sites if site.name not in own])
        tables = [{name.partition("/")[2]: value[k] for name, value in rest.items()} for k in range(count)]
        return cls([restored(kind, table, inner) for table in tables], own)


def _device(tensors: Mapping[str, Tensor]) -> torch.device:
    return next((value.device for value in tensors.values()), torch.device("cpu"))
