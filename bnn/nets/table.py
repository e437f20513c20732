"""Networks of tables with numbers and categories."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnn.nets.checks import whole, widths
from bnn.nets.mlp import MLP, Norm, mlp
from bnn.nets.recipe import recorded


class Tabular(nn.Module):
    """See `tabular`."""

    def __init__(self, embeddings: Sequence[nn.Embedding], body: MLP):
        super().__init__()
        self.embeddings = nn.ModuleList(embeddings)
        self.body = body

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """``(n, numeric)`` and integers ``(n, number of categories)`` to ``(n, outputs)``."""
        embedded = [table(categorical[:, i]) for i, table in enumerate(self.embeddings)]
        result: Tensor = self.body(torch.cat([numeric, *embedded], dim=1))
        return result


@recorded
def tabular(
    numeric: int,
    categories: Sequence[int],
    hidden: Sequence[int] = (50, 50),
    outputs: int = 1,
    *,
    embedding: int | None = None,
    activation: str = "relu",
    dropout: float = 0.0,
    norm: Norm = None,
) -> Tabular:
    """A network of rows of a table: categories as learned vectors beside the numbers, then `mlp`.

    Guo and Berkhahn (2016), arXiv:1604.06737. It takes ``(x_numeric, x_categorical)``, or a dict with the keys
    ``"numeric"`` and ``"categorical"``. Names: ``embeddings.0.weight``, ..., ``body.hidden.0.linear.weight``, ...,
    ``body.out.weight``.

    Args:
        numeric: Columns of numbers; 0: none, and x_numeric is ``(n, 0)``.
        categories: How many values each categorical column has: integers from 0 to one less.
        hidden: As in `mlp`.
        outputs: As in `mlp`.
        embedding: Length of the vector of a category; ``None``: half as many as the column has values, at most 50.
        activation: As in `mlp`.
        dropout: As in `mlp`.
        norm: As in `mlp`.

    Raises:
        ValueError: An argument out of its range; no categories.
    """
    sizes = widths("categories", categories)
    if not sizes:
        raise ValueError("categories is empty: a table of numbers alone is for bnn.nets.mlp")
    if embedding is not None:
        whole("embedding", embedding)
    lengths = [embedding or min(50, (size + 1) // 2) for size in sizes]
    tables = [nn.Embedding(size, length) for size, length in zip(sizes, lengths, strict=True)]
    inputs = whole("numeric", numeric, 0) + sum(lengths)
    return Tabular(tables, mlp(inputs, hidden, outputs, activation=activation, dropout=dropout, norm=norm))
