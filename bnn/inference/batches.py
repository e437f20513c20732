"""The batches of a fit: epochs, the first batch, and what is captured before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bnn.data import Batch, Source, as_source
from bnn.inference.objective import Objective
from bnn.inputs import row_shapes
from bnn.model import BNN
from bnn.random import isolated


def epoch_batches(objective: Objective, source: Source) -> Iterator[Batch]:
    """One epoch, with rows of its own for every member, if there are members."""
    return source.batches() if objective.members is None else source.member_batches(objective.members)


def take(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The next few batches, such as those of one step."""
    for _, batch in zip(range(count), batches, strict=False):
        yield batch


def held_out(validation: Any, model: BNN) -> Batch | None:
    """The rows of ``fit(validation=...)`` in one batch, if there are any.

    Raises:
        TypeError: They are given by a loader.
    """
    if validation is None:
        return None
    source = as_source(validation, model.likelihood, model.like, None)
    batches = list(source.batches())
    if len(batches) != 1:
        raise TypeError("validation is (x, y): arrays, or a Dataset that fits in memory")
    return batches[0]


def first_batch(objective: Objective, source: Source) -> Batch:
    """One batch as `epoch_batches` gives them, all targets checked; the random state stays as it is.

    Raises:
        ValueError: Inputs or targets that do not fit the model.
    """
    with isolated(device=objective.model.like.device):
        whole = next(epoch_batches(objective, source))
    first = objective.one_member(whole)
    objective.input_shapes = row_shapes(first.x)
    outputs, likelihood = objective.outputs(first.x), objective.model.likelihood
    source.check_targets(lambda y: likelihood.check(outputs[:1].expand(len(y), *outputs.shape[1:]), y))
    return whole


def batch_sizes(objective: Objective, source: Source, whole: Batch) -> dict[int, int]:
    """How often each batch size comes in an epoch; a guess for a loader, from its first batch."""
    if source.sizes is not None:
        return source.sizes
    rows = len(objective.one_member(whole).y)
    return {rows: max(1, int(source.n * whole.share) // max(1, rows))}


def prepare(objective: Objective, whole: Batch, calls: Mapping[int, int]) -> None:
    """Capture for these batch sizes, each of which comes so often: before the first step, from counts alone."""
    dim = 0 if objective.members is None else 1
    for size, times in calls.items():
        if not size:  # a rank without rows in a step captures nothing
            continue
        part = Batch.rebuild(whole.structure, [leaf.narrow(dim, 0, size) for leaf in whole.leaves])
        objective.prepare(part, calls=times)
