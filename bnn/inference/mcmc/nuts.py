"""The No-U-Turn sampler, iteratively: a trajectory doubles until it turns back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnn.inference.mcmc.adaptation import State, chosen
from bnn.inference.mcmc.machine import Leaf, Trajectory


@dataclass(frozen=True)
class Doubling(Trajectory):
    """Multinomial NUTS (Hoffman and Gelman 2014; Betancourt 2017, arXiv:1701.02434, appendix A).

    The tree is built leaf by leaf. For the turning criterion of all its subtrees it suffices to keep one checkpoint a
    level (Phan, Pradhan and Jankowiak 2019, arXiv:1912.11554, algorithm 2): leaf n is compared with the checkpoints of
    all subtrees that it completes.

    Args:
        max_depth: Doublings at most; 2^max_depth - 1 leapfrog steps.
    """

    max_depth: int

    names = ("tree_depth",)

    @property
    def usual_steps(self) -> int:
        """A quarter of the longest tree."""
        return max(1, 2**self.max_depth // 4)

    def begin(self, point: State, step: Tensor, uniform: Tensor) -> State:
        """A tree of one leaf, and an empty subtree beside it."""
        q, p, g, u = (point[name] for name in ("q", "p", "g", "u"))
        ends = {f"{side}.{name}": point[name] for side in ("left", "right") for name in ("q", "p", "g")}
        zero = torch.zeros_like(u)
        levels = torch.zeros((self.max_depth, *q.shape), dtype=q.dtype, device=q.device)
        return {
            **ends,
            "draw.q": q,
            "draw.g": g,
            "draw.u": u,
            "weight": zero,
            "p_sum": p,
            "depth": torch.zeros_like(u, dtype=torch.long),
            "checkpoint.p": levels,
            "checkpoint.p_sum": levels,
            **_subtree(q, g, u, uniform),
        }

    def extend(self, kept: State, leaf: Leaf, inverse_mass: Tensor, uniform: Tensor) -> tuple[State, State, Tensor]:
        """See `Trajectory`."""
        kept, turning = self._add(kept, leaf, inverse_mass, uniform[0])
        invalid = turning | leaf.divergent
        full = kept["sub.leaves"] == torch.ones_like(kept["depth"]) << kept["depth"]
        merged, turned = self._merge(kept, leaf, inverse_mass, uniform[1])
        valid = full & ~invalid
        kept = {**kept, **chosen(valid, merged, kept)}
        complete = invalid | (full & (turned | (kept["depth"] >= self.max_depth)))
        # The next subtree goes on from an end of the tree; an unfinished one from its last leaf.
        next_one = _subtree(kept["draw.q"], kept["draw.g"], kept["draw.u"], uniform[2:])
        kept = {**kept, **chosen(full, next_one, kept)}
        rightwards = kept["sign"] > 0
        end = {name: torch.where(rightwards, kept[f"right.{name}"], kept[f"left.{name}"]) for name in ("q", "p", "g")}
        towards = chosen(full, end, {name: leaf.at[name] for name in ("q", "p", "g")})
        return kept, towards, complete

    def _add(self, kept: State, leaf: Leaf, inverse_mass: Tensor, uniform: Tensor) -> tuple[State, Tensor]:
        """The leaf as part of the subtree, and whether a subtree that it completes turns back."""
        p, n = leaf.at["p"], kept["sub.leaves"]
        weight = torch.logaddexp(kept["sub.weight"], -leaf.error)
        # Within a subtree every point is drawn in proportion to its weight.
        taken = uniform.log() < -leaf.error - weight
        p_sum = kept["sub.p_sum"] + p
        levels = torch.arange(self.max_depth, device=p.device)
        bits = (n >> levels) & 1
        level = bits[1:].sum()
        completed = (((n ^ (n + 1)) >> levels) & 1).sum() - 1  # trailing ones of n: the subtrees that it completes
        checkpoints, sums = kept["checkpoint.p"], kept["checkpoint.p_sum"]
        inner = (levels <= level) & (levels > level - completed)
        turning = (_turns(checkpoints, p, p_sum - sums + checkpoints, inverse_mass) & inner).any()
        here = ((levels == level) & (bits[0] == 0))[:, None]
        point = {"sub.draw.q": leaf.at["q"], "sub.draw.g": leaf.at["g"], "sub.draw.u": leaf.at["u"]}
        return {
            **kept,
            **chosen(taken, point, kept),
            "sub.weight": weight,
            "sub.p_sum": p_sum,
            "sub.leaves": n + 1,
            "checkpoint.p": torch.where(here, p, checkpoints),
            "checkpoint.p_sum": torch.where(here, p_sum, sums),
        }, turning

    def _merge(self, kept: State, leaf: Leaf, inverse_mass: Tensor, uniform: Tensor) -> tuple[State, Tensor]:
        """The tree with its subtree, and whether the whole turns back."""
        rightwards = kept["sign"] > 0
        ends = {}
        for name in ("q", "p", "g"):
            ends[f"left.{name}"] = torch.where(rightwards, kept[f"left.{name}"], leaf.at[name])
            ends[f"right.{name}"] = torch.where(rightwards, leaf.at[name], kept[f"right.{name}"])
        # Between the halves the younger one is favoured, which moves further (Betancourt 2017, appendix A.3.2).
        taken = uniform.log() < kept["sub.weight"] - kept["weight"]
        points = {f"draw.{name}": torch.where(taken, kept[f"sub.draw.{name}"], kept[f"draw.{name}"]) for name in "qgu"}
        p_sum = kept["p_sum"] + kept["sub.p_sum"]
        turned = _turns(ends["left.p"], ends["right.p"], p_sum, inverse_mass)
        weight = torch.logaddexp(kept["weight"], kept["sub.weight"])
        return {**ends, **points, "weight": weight, "p_sum": p_sum, "depth": kept["depth"] + 1}, turned

    def draw(self, kept: State) -> State:
        """See `Trajectory`."""
        return {name: kept[f"draw.{name}"] for name in "qgu"}

    def acceptance(self, kept: State, mean: Tensor) -> Tensor:
        """The mean over all points."""
        return mean

    def statistics(self, kept: State) -> State:
        """The number of doublings."""
        return {"tree_depth": kept["depth"]}


def _subtree(q: Tensor, g: Tensor, u: Tensor, uniform: Tensor) -> State:
    """An empty subtree in a random direction; its draw is any point, since its weight is zero."""
    sign = torch.where(uniform[0] < 0.5, torch.ones_like(u), -torch.ones_like(u))
    return {
        "sub.draw.q": q,
        "sub.draw.g": g,
        "sub.draw.u": u,
        "sub.weight": torch.full_like(u, -torch.inf),
        "sub.p_sum": torch.zeros_like(q),
        "sub.leaves": torch.zeros_like(u, dtype=torch.long),
        "sign": sign,
    }


def _turns(left: Tensor, right: Tensor, p_sum: Tensor, inverse_mass: Tensor) -> Tensor:
    """Whether the ends move towards each other (Betancourt 2017, appendix A.4.2), the sum taken between their middles.

    Args:
        left: ``(..., D)``, momenta at one end.
        right: ``(D,)`` or ``(..., D)``, at the other.
        p_sum: ``(..., D)``, of all momenta, both ends among them.
        inverse_mass: ``(D,)``.
    """
    span = inverse_mass * (p_sum - (left + right) / 2)
    return ((left * span).sum(-1) <= 0) | ((right * span).sum(-1) <= 0)
