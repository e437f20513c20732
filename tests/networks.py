"""One small network of every kind that the toolkit claims to take, each with the shape of one row of input."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, batch_first=True)
        self.out = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x).mean(1))


class SharedModule(nn.Module):
    """One module that stands in the network under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = self.first
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


class SharedWeight(nn.Module):
    """One parameter that stands in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


#: name -> (constructor, shape of one row)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 1)), (8,)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 1)),
        (1, 6, 6),
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(8, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 1)), (8,)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 1)), (8,)),
    "dropout": (lambda: nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 1)), (8,)),
    "lstm": (LSTM, (5, 3)),
    "attention": (Attention, (4, 8)),
    "shared module": (SharedModule, (8,)),
    "shared weight": (SharedWeight, (8,)),
}


def make(name: str, rows: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of this kind, and regression data for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build, shape = NETWORKS[name]
        net = build()
        x = torch.randn(rows, *shape)
        y = x.flatten(1).mean(1, keepdim=True) + 0.1 * torch.randn(rows, 1)
    return net, x, y
