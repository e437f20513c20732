"""From a table as people have it to what a network takes, inside the graph: what `bnn.estimators.encoding` does."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bnn.estimators.encoding import CategoricalColumn, Encoder, NumericColumn
from bnn.export.program import Program
from bnn.inputs import Inputs


class TableProgram(nn.Module):
    """``forward(table)``, with ``(n, d)`` numbers in double precision; NaN is a missing value.

    Rows that the estimator would refuse give NaN.

    Args:
        encode: From the table to what the network takes.
        program: Of the posterior.
        classes: How many, where the targets are classes.
    """

    def __init__(self, encode: TableInputs, program: Program, classes: int | None):
        super().__init__()
        self.encode, self.program, self.classes = encode, program, classes

    def forward(self, *args: Tensor) -> dict[str, Tensor]:
        """The numbers of the prediction, rows first, in the units of the targets."""
        x, refused = self.encode(args[0])
        found = self.program.of(x)
        if self.classes == 2 and found["probabilities"].dim() == 1:
            yes = found["probabilities"]
            found["probabilities"] = torch.stack([1 - yes, yes], dim=1)
        return {
            name: torch.where(refused.reshape(-1, *[1] * (value.dim() - 1)), torch.nan, value)
            for name, value in found.items()
        }


class TableInputs(nn.Module):
    """From ``(n, d)`` numbers to the inputs of the network, and which rows are refused, ``(n,)``.

    A category is the number of its level, counted from 0; any other number is a category that was not there in
    training.

    Args:
        encoder: What was learned of the table.
        like: A tensor of the network.
    """

    median: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: Encoder, like: Tensor):
        super().__init__()
        self.encoder, self.dtype = encoder, like.dtype
        pairs = list(zip(encoder.used, encoder.columns, strict=True))
        numeric = [(i, c) for i, c in pairs if isinstance(c, NumericColumn)]
        for name in ("median", "mean", "scale"):
            values = [getattr(column, name) for _, column in numeric]
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))
        self.numeric = _places(i for i, _ in numeric)
        self.categorical = _places(i for i, column in pairs if isinstance(column, CategoricalColumn))
        self.flagged = _places(i for i, (_, column) in enumerate(numeric) if column.missing)
        self.to(like.device)

    def forward(self, table: Tensor) -> tuple[Inputs, Tensor]:
        """As in `bnn.estimators.encoding.Encoder.transform`."""
        numbers, codes = table[:, self.numeric], table[:, self.categorical]
        gone = numbers.isnan()
        refused = table.isinf().any(1)
        if self.encoder.missing == "error":
            refused = refused | gone.any(1)
        dense = (torch.where(gone, self.median, numbers) - self.mean) / self.scale
        dense = torch.cat([dense, gone[:, self.flagged].to(dense)], dim=1)
        if not len(self.categorical):
            return dense.to(self.dtype), refused
        indices = self._indices(codes)
        if self.encoder.unknown == "error":
            refused = refused | (indices == 0).any(1)
        if self.encoder.encoding == "embedding":
            return {"numeric": dense.to(self.dtype), "categorical": indices}, refused
        levels = [torch.arange(1, column.size + 1, device=table.device) for column in self.encoder.categorical]
        onehot = [indices[:, i : i + 1] == own for i, own in enumerate(levels)]
        return torch.cat([dense, *[part.to(dense) for part in onehot]], dim=1).to(self.dtype), refused

    def _indices(self, codes: Tensor) -> Tensor:
        """0 for what was not there in training, then the levels from 1; that of missing values is the last."""
        found = []
        for i, column in enumerate(self.encoder.categorical):
            code = codes[:, i]
            known = (code >= 0) & (code < len(column.levels)) & (code == code.floor())
            index = torch.where(known, code, -1.0).long() + 1
            found.append(torch.where(code.isnan(), column.size if column.missing else 0, index))
        return torch.stack(found, dim=1)


def _places(places: Iterable[int]) -> nn.Buffer:
    return nn.Buffer(torch.tensor(list(places), dtype=torch.long))
