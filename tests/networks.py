"""One small network of every kind that the toolkit claims to take, with the inputs that it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import bnn
from bnn.inputs import Inputs, input_leaves


class Recurrent(nn.Module):
    """Reads a sequence and answers at its end."""

    def __init__(self, layer: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.lstm = layer(3, 6, batch_first=True, **options)
        self.out = nn.Linear(12 if self.lstm.bidirectional else 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x).mean(1))


class MultiHead(nn.Module):
    """Bare attention, with a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.attention(self.query.expand(len(x), 1, 8), x, x, need_weights=False)
        return self.out(found.squeeze(1))


class Stack(nn.Module):
    """A transformer encoder of two layers, under a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.out(self.encoder(x, mask=mask, is_causal=True)[:, -1])


class Decoder(nn.Module):
    """A transformer decoder layer: two inputs, a sequence and what it attends to."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.out(self.decoder(x, memory).mean(1))


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


class TiedEmbedding(nn.Module):
    """A language model in small: the embedding is the transposed output layer (Press and Wolf 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(self.embedding(x).mean(1)))).mean(1, keepdim=True)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.out = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embedding(x).mean(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.second(torch.relu(self.first(x))))


class TwoInputs(nn.Module):
    """Takes two tensors, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 6), nn.Linear(2, 6)
        self.out = nn.Linear(6, 1)

    def forward(self, numbers: Tensor, others: Tensor) -> Tensor:
        return self.out(torch.tanh(self.left(numbers) + self.right(others)))


class Several(nn.Module):
    """Returns its output among other things."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(8, 6), nn.Linear(6, 1)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.hidden(x))
        return self.pack(hidden, self.out(hidden))


def _pair(hidden: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    return hidden, out


def _named(hidden: Tensor, out: Tensor) -> dict[str, Tensor]:
    return {"features": hidden, "prediction": out}


def _weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 12)), nn.ReLU(), nn.Linear(12, 1))


def _convolution(layer: type[nn.Module], size: int, *between: nn.Module) -> nn.Module:
    return nn.Sequential(layer(1, 3, 3), *between, nn.ReLU(), nn.Flatten(), nn.Linear(size, 1))


#: name -> (constructor, shape of one row): the kinds that several test files go over.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 1)), (8,)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 1)),
        (1, 6, 6),
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(8, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 1)), (8,)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 1)), (8,)),
    "dropout": (lambda: nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 1)), (8,)),
    "lstm": (partial(Recurrent, nn.LSTM), (5, 3)),
    "attention": (Attention, (4, 8)),
    "shared module": (SharedModule, (8,)),
    "shared weight": (SharedWeight, (8,)),
}


def _floats(*shapes: tuple[int, ...]) -> Callable[[int], Inputs]:
    if len(shapes) == 1:
        return lambda rows: torch.randn(rows, *shapes[0])
    return lambda rows: tuple(torch.randn(rows, *shape) for shape in shapes)


def _words(rows: int) -> Tensor:
    return torch.randint(0, 7, (rows, 5))


@dataclass(frozen=True)
class Kind:
    """A kind of network and its inputs."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    #: Which part of what it returns is the output (`bnn.BNN`).
    output: Any = None


#: All kinds: those above, and those that only the contract of networks (test_networks_contract.py) goes over.
KINDS: dict[str, Kind] = {name: Kind(build, _floats(shape)) for name, (build, shape) in NETWORKS.items()} | {
    "residual": Kind(Residual, _floats((8,))),
    "conv1d": Kind(lambda: _convolution(nn.Conv1d, 12), _floats((1, 6))),
    "conv3d": Kind(lambda: _convolution(nn.Conv3d, 24), _floats((1, 4, 4, 4))),
    "transposed conv": Kind(lambda: _convolution(nn.ConvTranspose2d, 75), _floats((1, 3, 3))),
    "conv, batch norm": Kind(lambda: _convolution(nn.Conv2d, 27, nn.BatchNorm2d(3)), _floats((1, 5, 5))),
    "conv, group norm": Kind(lambda: _convolution(nn.Conv2d, 27, nn.GroupNorm(3, 3)), _floats((1, 5, 5))),
    "weight norm": Kind(_weight_norm, _floats((8,))),
    "rnn": Kind(partial(Recurrent, nn.RNN), _floats((3, 3))),
    "gru": Kind(partial(Recurrent, nn.GRU), _floats((3, 3))),
    "lstm, stacked, both ways": Kind(partial(Recurrent, nn.LSTM, num_layers=2, bidirectional=True), _floats((2, 3))),
    "gru, stacked, both ways": Kind(partial(Recurrent, nn.GRU, num_layers=2, bidirectional=True), _floats((2, 3))),
    "multi-head attention": Kind(MultiHead, _floats((4, 8))),
    "transformer encoder": Kind(Stack, _floats((4, 8))),
    "transformer decoder": Kind(Decoder, _floats((4, 8), (3, 8))),
    "embedding": Kind(Embedded, _words),
    "tied embedding": Kind(TiedEmbedding, _words),
    "two inputs": Kind(TwoInputs, _floats((3,), (2,))),
    "named inputs": Kind(TwoInputs, lambda rows: {"others": torch.randn(rows, 2), "numbers": torch.randn(rows, 3)}),
    "returns a tuple": Kind(partial(Several, _pair), _floats((8,)), output=1),
    "returns a dict": Kind(partial(Several, _named), _floats((8,)), output="prediction"),
    "nets.mlp": Kind(
        lambda: bnn.nets.mlp(8, (8, 8), dropout=0.1, norm="layer", residual=True, activation="tanh"), _floats((8,))
    ),
    "nets.lenet": Kind(lambda: bnn.nets.lenet(1, size=28), _floats((1, 28, 28))),
    "nets.resnet": Kind(lambda: bnn.nets.resnet(1, channels=1, width=2, blocks=1), _floats((1, 8, 8))),
    "nets.resnet, group": Kind(
        lambda: bnn.nets.resnet(1, channels=1, width=8, blocks=1, norm="group"), _floats((1, 8, 8))
    ),
    "nets.lstm": Kind(lambda: bnn.nets.lstm(3, 4, bidirectional=True), _floats((2, 3))),
    "nets.tabular": Kind(
        lambda: bnn.nets.tabular(3, [4, 2], (8,)),
        lambda rows: {"numeric": torch.randn(rows, 3), "categorical": torch.randint(0, 2, (rows, 2))},
    ),
}


def make(name: str, rows: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of a kind in `NETWORKS`, and regression data for it."""
    build, shape = NETWORKS[name]
    net, x, y = make_kind(Kind(build, _floats(shape)), rows, seed)
    assert isinstance(x, Tensor)
    return net, x, y


def make_kind(kind: Kind, rows: int, seed: int = 0) -> tuple[nn.Module, Inputs, Tensor]:
    """A network of this kind, and regression data for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = kind.build()
        x = kind.inputs(rows)
        means = [leaf.flatten(1).double().mean(1, keepdim=True) for leaf in input_leaves(x)]
        y = sum(means[1:], means[0]).float() + 0.1 * torch.randn(rows, 1)
    return net, x, y
