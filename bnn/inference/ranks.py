"""One fit on several ranks: what each of them does, and how that becomes the answer of all.

A method that minimises a loss shares the rows of every step; members of an ensemble and chains are shared out whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from bnn.approximations import Draws
from bnn.data import Data
from bnn.distributed import World, alone
from bnn.inference.base import GradientMethod, Method, Run
from bnn.inference.gathered import gathered
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import other_seed

if TYPE_CHECKING:
    from bnn.inference.ensemble import Ensemble


def same_model(ranks: World, method: Method, model: BNN) -> BNN:
    """The model with rank 0's parameters and buffers, on all ranks.

    Raises:
        ValueError: The ranks were not given the same method, or the same network.
    """
    if ranks.size == 1:
        return model
    shapes = {name: (tuple(t.shape), str(t.dtype)) for name, t in model.net.state_dict().items()}
    for what, value in (("methods", method.settings()), ("networks", shapes)):
        for rank, other in enumerate(ranks.gather(value)):
            if other != value:
                raise ValueError(f"the ranks fit different {what}: rank {ranks.rank} has {value}, rank {rank} {other}")
    model = model.copy()
    ranks.broadcast_([*model.net.parameters(), *model.net.buffers()])
    return model


def fit_on(ranks: World, method: Method, model: BNN, data: Data, run: Run) -> Posterior:
    """`Method.fit`, by all ranks together; the same posterior on all.

    Raises:
        ValueError: What has no meaning on several ranks, in words.
    """
    from bnn.inference.ensemble import Ensemble

    if ranks.size == 1:
        return method.fit(model, data, run)
    if isinstance(data, DataLoader) and not isinstance(method, GradientMethod | Ensemble):
        with_own = isinstance(data.dataset, IterableDataset) or isinstance(data.sampler, DistributedSampler)
        if with_own:
            raise ValueError(
                f"{type(method).__name__} reads all rows on every rank, and this loader gives each rank its own: give "
                "arrays, a Dataset or a stream"
            )
    if isinstance(method, Ensemble):
        return _members(ranks, method, model, data, run)
    if method.makes_chains:
        return _chains(ranks, method, model, data, run)
    return method.fit(model, data, run)


def _chains(ranks: World, method: Any, model: BNN, data: Data, run: Run) -> Posterior:
    """Chains shared out over the ranks, and gathered on all.

    Rank 0's have the numbers of a run of that many chains alone; other ranks have a seed of their own.
    """
    if run.store is not None:
        raise ValueError("store= is one file, and chains on several ranks write several: leave it out")
    own = _shared_out(ranks, method.chains, "chains")
    seed = run.seed if not ranks.rank else other_seed(run.seed, f"rank {ranks.rank}")
    mine = replace(method, chains=len(own), init=_their_starts(method.init, own, method.chains))
    with ranks.together("the chains of all ranks"), alone():
        posterior = mine.fit(model, data, replace(run, seed=seed, checkpoint=_own_place(ranks, run)))
    joined = gathered(ranks, posterior)
    joined.settings |= {**method.settings(), "seed": run.seed}
    return joined


def _members(ranks: World, method: Ensemble, model: BNN, data: Data, run: Run) -> Posterior:
    """Members shared out over the ranks, and gathered on all."""
    own = _shared_out(ranks, method.members, "members")
    with ranks.together("the members of all ranks"), alone():
        posterior = method.fit_some(own, model, data, replace(run, checkpoint=_own_place(ranks, run)))
    joined = gathered(ranks, posterior)
    joined.settings |= method.settings()
    return joined


def _shared_out(ranks: World, count: int, what: str) -> range:
    own = ranks.share(range(count))
    assert isinstance(own, range)
    if count < ranks.size:
        raise ValueError(f"{count} {what} cannot be shared out over {ranks.size} ranks: take as many, or fewer ranks")
    return own


def _own_place(ranks: World, run: Run) -> Any:
    """A rank's own folder of states: chains and members of different ranks are not equally far."""
    if run.checkpoint is None:
        return None
    return run.checkpoint.part(f"rank-{ranks.rank}", {"ranks": ranks.size, "rank": ranks.rank})


def _their_starts(init: Any, own: range, chains: int) -> Any:
    """Of a finite posterior, the draws that these chains would start from among all."""
    if not isinstance(init, Posterior) or init.num_draws is None:
        return init
    values = init.draws(min(chains, init.num_draws))
    rows = [k % len(next(iter(values.values()))) for k in own]
    sites = {site.name for site in init.model.sites().latents}
    drawn = {name: value[rows].unsqueeze(0) for name, value in values.items() if name in sites}
    return Posterior(init.model, Draws(drawn), points=init.points, state=init.state)
