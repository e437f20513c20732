"""Where the ranks of one start find each other, and nothing that an earlier start has left."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

#: Seconds between two looks.
_PAUSE = 0.02


def fresh(store: Store, rank: int, size: int, timeout: float) -> Store:
    """A part of the store that only these processes know.

    torchrun keeps one store over restarts. Addresses of processes that are gone stand there under the names of those
    that have taken their places, and who reads them too early calls where nobody answers. Nor do all machines count
    restarts alike. So each rank says a word of its own, and rank 0 names the place together with the words that it has
    heard: who finds the own word there knows that the place is of this start. Rank 0 goes on when all have said so.

    Args:
        store: As torch's rendezvous gives it.
        rank: This one.
        size: Of all.
        timeout: Seconds for all to come.

    Raises:
        RuntimeError: Not all have come in time.
    """
    from torch.distributed.distributed_c10d import PrefixStore  # not in every build of torch

    ends, word, place = time.monotonic() + timeout, uuid.uuid4().hex, uuid.uuid4().hex
    hellos, named = [f"bnn/hello/{other}" for other in range(size)], "bnn/place"
    store.set(hellos[rank], word)
    if rank:
        place = _heard(store, named, word, rank, ends)
        store.set(f"bnn/{place}/{rank}", "here")
        return PrefixStore(f"bnn/{place}", store)
    told: list[str] = []
    seen = [f"bnn/{place}/{other}" for other in range(1, size)]
    while not store.check(seen):
        words = [store.get(name).decode() for name in hellos] if store.check(hellos) else told
        if words != told:
            told = words
            store.set(named, json.dumps({"place": place, "words": told}))
        _pause(ends, "all ranks")
    return PrefixStore(f"bnn/{place}", store)


def _heard(store: Store, named: str, word: str, rank: int, ends: float) -> str:
    """The place that rank 0 names, once it has heard this rank's word."""
    while True:
        if store.check([named]):
            told = json.loads(store.get(named))
            if len(told["words"]) > rank and told["words"][rank] == word:
                return str(told["place"])
        _pause(ends, "rank 0")


def _pause(ends: float, whom: str) -> None:
    if time.monotonic() > ends:
        raise RuntimeError(f"{whom} did not come in time")
    time.sleep(_PAUSE)
