"""`bnn.nets`: the sizes that were published, names, shapes, and arguments that make no sense told in words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import bnn
from bnn.nets.checks import ACTIVATIONS


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def names(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_parameters()]


@pytest.mark.parametrize(
    ("net", "parameters"),
    [
        # 6(25+1), 16(150+1), 120(400+1), 84(120+1), 10(84+1): LeCun et al. (1998) with all connections, plain pooling.
        pytest.param(lambda: bnn.nets.lenet(), 61_706, id="lenet, 32"),
        pytest.param(lambda: bnn.nets.lenet(size=28), 61_706, id="lenet, 28"),
        # 400(784+1) + 400(400+1) + 10(400+1), the network of Blundell et al. (2015).
        pytest.param(lambda: bnn.nets.mlp(784, (400, 400), 10), 478_410, id="mlp"),
        pytest.param(lambda: bnn.nets.mlp(3, (), 2), 8, id="linear"),
        # 4h(i + h + 2) a layer and direction, with torch's two biases.
        pytest.param(lambda: bnn.nets.lstm(3, 5), 4 * 5 * (3 + 5 + 2) + 6, id="lstm"),
        pytest.param(
            lambda: bnn.nets.lstm(3, 5, layers=2, bidirectional=True),
            2 * 4 * 5 * (3 + 5 + 2) + 2 * 4 * 5 * (10 + 5 + 2) + 11,
            id="lstm, 2 layers, both ways",
        ),
        # Embeddings 3 x 2 and 200 x 50, then 4 + 2 + 50 inputs.
        pytest.param(lambda: bnn.nets.tabular(4, [3, 200], (10,)), 6 + 10_000 + 10 * 57 + 11, id="tabular"),
    ],
)
def test_sizes(net, parameters) -> None:
    assert size(net()) == parameters


@pytest.mark.parametrize(("blocks", "millions"), [(3, "0.27"), (5, "0.46"), (7, "0.66"), (9, "0.85"), (18, "1.7")])
def test_residual_networks_have_the_size_of_table_6(blocks: int, millions: str) -> None:
    """He et al. (2016), table 6: ResNet-20, 32, 44, 56 and 110."""
    digits = len(millions.partition(".")[2])
    assert f"{size(bnn.nets.resnet(blocks=blocks)) / 1e6:.{digits}f}" == millions
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in bnn.nets.resnet(blocks=blocks).modules())
    assert layers == 6 * blocks + 2


def test_names_can_be_read() -> None:
    assert names(bnn.nets.mlp(2, (3,), norm="layer")) == [
        "hidden.0.linear.weight",
        "hidden.0.linear.bias",
        "hidden.0.norm.weight",
        "hidden.0.norm.bias",
        "out.weight",
        "out.bias",
    ]
    assert names(bnn.nets.lenet())[::2] == [f"{n}.weight" for n in ("conv1", "conv2", "linear1", "linear2", "out")]
    assert names(bnn.nets.tabular(1, [2], ()))[0] == "embeddings.0.weight"
    assert "stage3.0.conv2.weight" in names(bnn.nets.resnet(blocks=1))
    assert names(bnn.nets.lstm(2))[0] == "lstm.weight_ih_l0"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_mlp_is_its_formula(activation: str) -> None:
    net = bnn.nets.mlp(4, (4, 3), 2, activation=activation, residual=True, dropout=0.5).eval()
    x, act = torch.randn(5, 4), ACTIVATIONS[activation]()
    first, second = (net.hidden[i].linear for i in range(2))
    hidden = x + act(x @ first.weight.T + first.bias)
    expected = act(hidden @ second.weight.T + second.bias) @ net.out.weight.T + net.out.bias
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("norm", ["batch", "group", None])
def test_a_residual_network_halves_twice_and_ends_in_classes(norm) -> None:
    net = bnn.nets.resnet(7, channels=1, width=8, blocks=2, norm=norm).eval()
    seen = []
    for stage in (net.stage1, net.stage2, net.stage3):
        stage.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    assert net(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert seen == [(2, 8, 32, 32), (2, 16, 16, 16), (2, 32, 8, 8)]
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all((m.bias is None) == (norm is not None) for m in convolutions)


def test_without_normalisation_blocks_start_as_the_identity_and_keep_the_scale() -> None:
    net = bnn.nets.resnet(1, width=8, blocks=9, norm=None).eval()
    x = torch.randn(2, 3, 16, 16)
    start = torch.relu(net.conv(x))
    torch.testing.assert_close(net.stage1(start), start)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    own, kept = bnn.inference.ensemble._reset(model)  # as members of an ensemble are drawn anew
    assert kept == []
    assert not own.net.stage1[0].conv2.weight.any()
    assert not torch.equal(own.net.stage1[0].conv1.weight, net.stage1[0].conv1.weight)


def test_an_lstm_answers_from_the_end_of_each_direction() -> None:
    net = bnn.nets.lstm(2, 3, 1, bidirectional=True)
    x = torch.randn(4, 6, 2)
    out, _ = net.lstm(x)
    ends = torch.cat([out[:, -1, :3], out[:, 0, 3:]], dim=1)
    torch.testing.assert_close(net(x), net.out(ends))


def test_a_table_takes_a_tuple_or_a_dict() -> None:
    net = bnn.nets.tabular(2, [3, 4], (6,), embedding=2)
    numbers, groups = torch.randn(30, 2), torch.stack([torch.randint(0, 3, (30,)), torch.randint(0, 4, (30,))], 1)
    y = torch.tensor([-1.0, 0.0, 1.0])[groups[:, 0]].unsqueeze(1) + 0.5 * numbers[:, :1]
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    method = bnn.MAP(epochs=200, lr=0.03, batch_size=None)
    by_place = bnn.fit(model, ((numbers, groups), y), method, progress=False, compile="graph")
    x = {"categorical": groups, "numeric": numbers}
    by_name = bnn.fit(model, (x, y), method, progress=False, compile="graph")
    first, second = by_place.predict((numbers, groups)).mean, by_name.predict(x).mean
    assert torch.equal(first, second)
    assert float((first - y).pow(2).mean()) < 0.1 * float(y.var())  # nine tenths of it is what the table tells
    alone = bnn.nets.tabular(0, [3], (6,))
    assert alone(torch.zeros(5, 0), torch.zeros(5, 1, dtype=torch.long)).shape == (5, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bnn.nets.mlp(0), "inputs is a whole number from 1, not 0"),
        (lambda: bnn.nets.mlp(3, 50), r"hidden is a list of whole numbers, such as \(50, 50\), not 50"),
        (lambda: bnn.nets.mlp(3, (5, 0)), r"hidden\[1\] is a whole number from 1, not 0"),
        (lambda: bnn.nets.mlp(3, outputs=1.0), "outputs is a whole number from 1, not 1.0"),
        (lambda: bnn.nets.mlp(3, activation="rleu"), "activation is one of 'relu', .*, not 'rleu'"),
        (lambda: bnn.nets.mlp(3, (), activation="rleu"), "activation is one of"),
        (lambda: bnn.nets.mlp(3, dropout=1.0), "dropout is a share from 0 and below 1, not 1.0"),
        (lambda: bnn.nets.mlp(3, norm="group"), "norm is one of None, 'batch', 'layer', not 'group'"),
        (lambda: bnn.nets.mlp(3, (4, 5), residual=True), "none has: inputs=3"),
        (lambda: bnn.nets.lenet(size=30), "size is one of 32, 28, not 30"),
        (lambda: bnn.nets.resnet(norm="layer"), "norm is one of 'batch', 'group', None, not 'layer'"),
        (lambda: bnn.nets.resnet(width=12, norm="group"), "multiple of it, not 12"),
        (lambda: bnn.nets.resnet(blocks=0), "blocks is a whole number from 1, not 0"),
        (lambda: bnn.nets.lstm(3, dropout=0.1), "give layers=2 or more"),
        (lambda: bnn.nets.tabular(3, []), "categories is empty"),
        (lambda: bnn.nets.tabular(3, [4, True]), r"categories\[1\] is a whole number from 1, not True"),
        (lambda: bnn.nets.tabular(-1, [4]), "numeric is a whole number from 0, not -1"),
        (lambda: bnn.nets.tabular(1, [4], embedding=0), "embedding is a whole number from 1, not 0"),
    ],
)
def test_arguments_that_make_no_sense(make, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_they_know_nothing_of_the_rest() -> None:
    """Plain modules: they can be deep-copied, saved by their state, and take any dtype."""
    net = bnn.nets.resnet(2, channels=1, width=8, blocks=1).double()
    other = bnn.nets.resnet(2, channels=1, width=8, blocks=1).double()
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 8, 8).double()
    torch.testing.assert_close(other.eval()(x), net.eval()(x))
    assert math.isfinite(float(net(x).sum().detach()))
