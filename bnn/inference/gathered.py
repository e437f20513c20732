"""Posteriors of several ranks as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bnn.approximations import Approximation, Chains, Draws, Mixture
from bnn.distributed import World
from bnn.history import History
from bnn.posterior import Posterior


def gathered(ranks: World, posterior: Posterior) -> Posterior:
    """The posteriors of all ranks as one, on all of them."""
    approximation, device = posterior.approximation, posterior.model.like.device
    tensors = {name: value.cpu() for name, value in approximation.tensors().items()}
    told = ranks.gather((tensors, posterior.history))
    parts = [
        approximation if rank == ranks.rank else _rebuilt(approximation, {n: v.to(device) for n, v in table.items()})
        for rank, (table, _) in enumerate(told)
    ]
    return Posterior(
        posterior.model,
        _together(parts),
        points=posterior.points,
        state=posterior.state,
        history=_history([history for _, history in told]),
        settings=posterior.settings,
        input_shapes=posterior.input_shapes,
    )


def _rebuilt(like: Approximation, tensors: dict[str, Tensor]) -> Approximation:
    """Another rank's, of the same kind."""
    if isinstance(like, Draws):
        return Draws(tensors)
    if isinstance(like, Chains):
        return Chains.restore(tensors, like.layout)
    assert isinstance(like, Mixture)
    return like.another(tensors)


def _together(parts: Sequence[Approximation]) -> Approximation:
    chains = [part for part in parts if isinstance(part, Chains)]
    if chains:
        draws = min(part.shape[1] for part in chains)  # fewer where Ctrl-C came first
        vectors = torch.cat([part.vectors[:, :draws] for part in chains])
        names = chains[0].statistics
        return Chains(
            chains[0].layout, vectors, {n: torch.cat([p.statistics[n][:, :draws] for p in chains]) for n in names}
        )
    if all(isinstance(part, Draws) for part in parts):
        tables = [part.tensors() for part in parts]
        return Draws({name: torch.cat([table[name] for table in tables], dim=1) for name in tables[0]})
    mixtures = [part for part in parts if isinstance(part, Mixture)]
    own = {name: torch.cat([part.own[name] for part in mixtures]) for name in mixtures[0].own}
    return Mixture([part for mixture in mixtures for part in mixture.parts], own)


def _history(histories: Sequence[History]) -> History:
    """Rank 0's, the longest time, and what there is to know of any."""
    notes = list(dict.fromkeys(note for history in histories for note in history.notes))
    return replace(
        histories[0],
        seconds=max(history.seconds for history in histories),
        notes=[*notes, f"fitted on {len(histories)} ranks; the losses are those of rank 0's part"],
        interrupted=any(history.interrupted for history in histories),
    )
