"""The store of draws of a chain: in memory, or in a file that is mapped, so that a long run need not fit in memory.

The file is a safetensors file of its full size from the start: numbers that are known beforehand (`state`), a table
of draws that is filled row by row, and how many rows each chain has filled. A run that was killed is read back up to
what it had written (`read_store`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnn.approximations import Chains
from bnn.files import check_model, check_names, model_record, with_inputs_of
from bnn.history import History
from bnn.inference.draw_file import check_goes_on, create, mapped, read
from bnn.inference.objective import Objective
from bnn.layout import Layout
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.writing import flush

_COUNTS, _VECTORS, _STATISTICS, _STATE = "counts", "vectors", "statistics", "state/"


class DrawStore:
    """A table of draws to write into.

    Args:
        chains: How many.
        capacity: Draws a chain.
        size: D, unconstrained numbers a draw.
        dtype: Of the numbers.
        path: The file, which must not exist; its folder is made. None: in memory.
        state: ``{name: value}``, buffers and frozen parameters of the network, for the file.
        record: JSON for the file: what `read_store` needs. Its ``"fit"``, if any, says whose draws these are.
        statistics: Names of the sampler's statistics that are kept beside each draw.
        resume: ``(chains,)``: the file may exist if it is of the same ``"fit"``, and goes on after so many draws.

    Raises:
        FileExistsError: There is something at `path`.
        OSError: The disk has no room for all draws; nothing is left there.
        ValueError: No chains, or no draws; draws to go on from that are not there, truncated, or of another fit.
    """

    def __init__(
        self,
        chains: int,
        capacity: int,
        size: int,
        dtype: torch.dtype,
        path: str | Path | None = None,
        *,
        state: Mapping[str, Tensor] | None = None,
        record: Mapping[str, Any] | None = None,
        statistics: Sequence[str] = (),
        resume: Sequence[int] | None = None,
    ):
        if min(chains, capacity) < 1:
            raise ValueError(f"a store has at least one chain and one draw, not {chains} and {capacity}")
        self.path = None if path is None else Path(path)
        table = (len(statistics), chains, capacity)
        if self.path is None:
            self.counts = torch.zeros(chains, dtype=torch.int64)
            self.vectors = torch.zeros(chains, capacity, size, dtype=dtype)
            self.statistics = torch.zeros(table, dtype=dtype)
            return
        state = state or {}
        wanted = {
            _COUNTS: (torch.int64, (chains,)),
            **({_STATISTICS: (dtype, table)} if statistics else {}),
            _VECTORS: (dtype, (chains, capacity, size)),
            **{_STATE + name: (value.dtype, tuple(value.shape)) for name, value in state.items()},
        }
        record = {**(record or {}), **({"statistics": list(statistics)} if statistics else {})}
        if resume is not None and (self.path.exists() or any(resume)):
            check_goes_on(self.path, wanted, record.get("fit"))
        else:
            create(self.path, wanted, record)
        tensors = mapped(self.path)
        for name, value in state.items():
            tensors[_STATE + name].copy_(value)
        #: ``(chains,)``, how many draws of each chain are there. It is written after them.
        self.counts = tensors[_COUNTS]
        #: ``(chains, capacity, D)``, on the CPU; the first `counts` of each chain mean something.
        self.vectors = tensors[_VECTORS]
        #: ``(names, chains, capacity)``, of the same draws.
        self.statistics = tensors.get(_STATISTICS, torch.zeros(table, dtype=dtype))
        # What was written after the state that is gone on from is written again, as the same bytes.
        self.counts.copy_(torch.tensor(resume or [0] * chains))

    def append(self, draws: Tensor) -> None:
        """One more draw of every chain: ``(chains, D)``, on any device. All chains are equally far."""
        row = int(self.counts[0])
        self.vectors[:, row].copy_(draws.detach())
        self.counts.fill_(row + 1)

    def append_to(self, chain: int, draw: Tensor) -> None:
        """One more draw of one chain: ``(D,)``."""
        row = int(self.counts[chain])
        self.vectors[chain, row].copy_(draw.detach())
        self.counts[chain] = row + 1

    def finished(self, count: int | None = None) -> Tensor:
        """What there is, without a copy: ``(chains, draws, D)``, mapped if the store is.

        Args:
            count: Draws a chain; ``None``: as many as are there. Of chains that are not equally far, the first few and
                their common draws, such that most draws are kept.
        """
        self.flush()
        return self.vectors[:, :count] if count is not None else _rectangle(self.vectors, self.counts)

    def flush(self) -> None:
        """Have what was appended reach the disk."""
        if self.path is not None:
            flush(self.path)

    def digest(self, chain: int, rows: range, before: str = "") -> str:
        """A SHA-256 of these draws of a chain and their statistics, on top of that of the draws before them."""
        for row in rows:
            values = torch.cat([self.vectors[chain, row], self.statistics[:, chain, row]])
            before = hashlib.sha256(before.encode() + values.view(torch.uint8).numpy().tobytes()).hexdigest()
        return before


def open_store(
    objective: Objective,
    path: str | Path | None,
    chains: int,
    capacity: int,
    *,
    layout: Layout | None = None,
    statistics: Sequence[str] = (),
    fit: str | None = None,
    resume: Sequence[int] | None = None,
) -> DrawStore:
    """The store of a run, with all that `read_store` needs.

    Args:
        objective: Whose latents are drawn, with its model, settings, state and input shapes; of one member.
        path: The file; None: in memory.
        chains: How many.
        capacity: Draws a chain.
        layout: Of what is kept of a draw; None: all latents.
        statistics: See `DrawStore`.
        fit: Whose draws these are; None: a run's that nobody goes on with.
        resume: See `DrawStore`.
    """
    record = {
        **model_record(objective.model),
        "settings": {**objective.settings, "n_data": objective.n_data},
        "input_shapes": objective.input_shapes,
        **({} if fit is None else {"fit": fit}),
    }
    layout = layout or objective.latents
    return DrawStore(
        chains,
        capacity,
        layout.size,
        layout.dtype,
        path,
        state=objective.state,
        record=record,
        statistics=statistics,
        resume=resume,
    )


def read_store(path: str | Path, model: BNN) -> Posterior:
    """The posterior in a file that ``fit(..., store=path)`` wrote, or was writing when it was killed.

    The draws stay in the file, and are read when they are asked for.

    Args:
        path: The file.
        model: The model that was fitted, built anew: same network, prior and likelihood.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or none of these, does not fit the model, or has no draw yet.
    """
    path = Path(path)
    record, tensors = read(path)
    check_model(record, model)
    model = with_inputs_of(record, model)
    layout = Layout(model.sites().latents)
    counts, vectors = tensors.get(_COUNTS), tensors.get(_VECTORS)
    if counts is None or vectors is None or vectors.dim() != 3 or not len(vectors):
        raise ValueError(f"{path} is damaged: it has no table of draws")
    if (vectors.shape[2], vectors.dtype) != (layout.size, layout.dtype):
        raise ValueError(
            f"{path} has {vectors.shape[2]} numbers a draw of {vectors.dtype}, this model {layout.size} of "
            f"{layout.dtype}"
        )
    if counts.dtype != torch.int64 or counts.shape != vectors.shape[:1]:
        raise ValueError(f"{path} is damaged: its counts are {tuple(counts.shape)} of {counts.dtype}")
    if bool((counts < 0).any()) or bool((counts > vectors.shape[1]).any()):
        raise ValueError(f"{path} is damaged: its counts {counts.tolist()} are not within 0 and {vectors.shape[1]}")
    if not int(counts[0]):
        raise ValueError(f"{path} has no draw yet: the run ended before the first")
    state = {name.removeprefix(_STATE): value for name, value in tensors.items() if name.startswith(_STATE)}
    check_names("state", state, model.state())
    drawn = _rectangle(vectors, counts)
    statistics = _named_statistics(path, record, tensors, vectors)
    history = History(interrupted=drawn.shape != vectors.shape)
    history.notes.append(f"read from {path}: {drawn.shape[0]} chains of {drawn.shape[1]} draws")
    device = model.like.device
    return Posterior(
        model,
        Chains(layout, drawn, {name: value[: len(drawn), : drawn.shape[1]] for name, value in statistics.items()}),
        points={},
        state={name: value.to(device) for name, value in state.items()},
        history=history,
        settings=record["settings"],
        input_shapes=record["input_shapes"],
    )


def _rectangle(vectors: Tensor, counts: Tensor) -> Tensor:
    """The first k chains and the draws that all of them have, for the k that keeps most: ``(k, draws, D)``."""
    least = counts.cummin(0).values
    chains = int((least * torch.arange(1, len(counts) + 1)).argmax()) + 1
    return vectors[:chains, : int(least[chains - 1])]


def _named_statistics(
    path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor], vectors: Tensor
) -> dict[str, Tensor]:
    """The statistics in a file by name: ``(chains, capacity)`` each."""
    names, table = record.get("statistics", []), tensors.get(_STATISTICS)
    if not names and table is None:
        return {}
    right = isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    if not right or table is None or table.shape != (len(names), *vectors.shape[:2]) or table.dtype != vectors.dtype:
        raise ValueError(f"{path} is damaged: its statistics do not fit its draws")
    return dict(zip(names, table, strict=True))
