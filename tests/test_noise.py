"""Noise from counters (`bnn.noise`): independent N(0, 1) numbers, the same ones on every backend."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import bnn
from bnn import noise
from bnn.capture import Captured

LIKE = torch.zeros(1)
MANY = noise._MANY  # the fewest that come from counters


def drawn(calls: int, seed: int = 0) -> torch.Tensor:
    """``(calls, 4, n)``, in double precision: four kinds of numbers, one counter a column."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (
            torch.stack([noise.standard_normal((4 * MANY,), LIKE) for _ in range(calls)])
            .double()
            .unflatten(1, (4, MANY))
        )


def check_z(z: torch.Tensor) -> None:
    """Numbers that are N(0, 1) if all is well: none is too far, and neither their mean nor their spread is."""
    z = z.flatten()
    bound = stats.norm.isf(1e-7 / z.numel())
    assert float(z.abs().max()) < bound
    assert abs(float(z.mean())) * math.sqrt(z.numel()) < 5
    if z.numel() > 1:
        assert abs(float(z.square().mean()) - 1) * math.sqrt(z.numel() / 2) < 5


def check_law() -> None:
    """Moments, tails and the whole distribution function, of each of the four kinds."""
    e = drawn(10)
    root = math.sqrt(MANY)
    for power, mean, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        check_z((e**power - mean).mean(-1) * root / math.sqrt(spread))
    beyond = 2 * stats.norm.sf(4)  # 332 of the 5 million are expected there
    assert abs(float((e.abs() > 4).sum()) - beyond * e.numel()) < 5 * math.sqrt(beyond * e.numel())
    for kind in range(4):
        assert stats.kstest(e[:, kind].flatten().numpy(), "norm").pvalue > 1e-6


def check_independence() -> None:
    """No correlation, of numbers or of their sizes, between counters, between kinds, between calls."""
    e = drawn(10)
    for values in (e, (e.square() - 1) / math.sqrt(2)):
        for lag in (1, 2, 3, 4, 16, 256, 4096, 65_536):
            check_z((values[..., lag:] * values[..., :-lag]).sum(-1) / math.sqrt(MANY - lag))
        for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
            check_z((values[:, a] * values[:, b]).sum(-1) / math.sqrt(MANY))
        check_z((values[1:] * values[:-1]).sum(-1) / math.sqrt(MANY))


def check_bits() -> None:
    """The upper bits of each word are fair coins that forget themselves at lags which are powers of two.

    Of the lowest five some do not: see `bnn.noise._words`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        words = torch.stack(noise._words(MANY, LIKE.device))
    coins = (words[:, None] >> torch.arange(7, 32, dtype=torch.int32)[:, None] & 1).float() * 2 - 1
    check_z(coins.sum(-1) / math.sqrt(MANY))
    for lag in [2**k for k in range(17)]:
        check_z((coins[..., lag:] * coins[..., :-lag]).sum(-1) / math.sqrt(MANY - lag))


def test_the_law_is_the_standard_normal():
    check_law()


def test_numbers_are_independent():
    check_independence()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("standard_normal", "* 2.0**-31 +", "* 2.0**-31.02 +"),
        ("standard_normal", ".mul(-2.0)", ".mul(-2.01)"),
        ("standard_normal", "math.pi / 2**31", "math.pi / 2**30.99"),
        ("standard_normal", "radius * turn.sin()", "radius * turn.cos().abs()"),
    ],
)
def test_control_law(name, old, new, patch_line):
    patch_line(noise, name, old, new)
    with pytest.raises(AssertionError):
        check_law()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("standard_normal", "((a, b), (c, d))", "((a, b), (c, b))"),
        (
            "_words",
            "torch.randint(-(2**31), 2**31, (4,), dtype=torch.int32, device=device)",
            "torch.arange(4, dtype=torch.int32)",
        ),
        ("_words", "x = x + y * w", "pass"),
    ],
)
def test_control_independence(name, old, new, patch_line):
    patch_line(noise, name, old, new)
    with pytest.raises(AssertionError):
        check_independence()


def test_the_bits_that_count_are_coins():
    check_bits()


@pytest.mark.parametrize(("old", "new"), [("word ^ ((word >> 16) & 0xFFFF)", "word"), ("x = x + y * w", "pass")])
def test_control_bits(old, new, patch_line):
    patch_line(noise, "_words", old, new)
    with pytest.raises(AssertionError):
        check_bits()


def check_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the key is what the paper makes of its inputs, the words are those of the paper's pcg4d."""
    counters = np.arange(1000, dtype=np.uint32)
    v = [counters, *(np.full(1000, word, np.uint32) for word in (2, 40_000_000, 3_000_000_008))]
    x, y, z, w = (word * np.uint32(1_664_525) + np.uint32(1_013_904_223) for word in v)
    key = np.array([(y * w)[0], y[0], z[0], w[0]], np.uint32)
    assert (key[1:] % 2 == 1).all()
    for shift in (16, 0):
        x += y * w
        y += z * x
        z += x * y
        w += y * z
        if shift:
            x, y, z, w = (word ^ (word >> np.uint32(shift)) for word in (x, y, z, w))
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.from_numpy(key.view(np.int32)))
    got = noise._words(1000, LIKE.device)
    assert all(np.array_equal(a.numpy().view(np.uint32), b) for a, b in zip(got, (x, y, z, w), strict=True))


def test_the_hash_is_that_of_the_paper(monkeypatch):
    check_hash(monkeypatch)


@pytest.mark.parametrize(
    ("name", "old", "new"), [("_words", "& 0xFFFF", "& -1"), ("_stirred", "y = y + z * x", "y = y + x")]
)
def test_control_hash(name, old, new, patch_line, monkeypatch):
    patch_line(noise, name, old, new)
    with pytest.raises(AssertionError):
        check_hash(monkeypatch)


def test_the_ends_of_a_word_are_numbers(monkeypatch):
    """No logarithm of nothing, no root of less than nothing."""
    ends = torch.tensor([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1], dtype=torch.int32)
    every = torch.cartesian_prod(ends, ends)
    monkeypatch.setattr(
        noise, "_words", lambda count, device: [every[:, i % 2].repeat(1 + count // 36)[:count] for i in range(4)]
    )
    e = noise.standard_normal((MANY,), LIKE)
    assert bool(e.isfinite().all())
    assert 6.6 < float(e.abs().max()) < 6.7  # sqrt(2 * 32 * log 2)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((7, 3), torch.float32),
        ((0,), torch.float32),
        ((), torch.float32),
        ((noise._MANY - 1,), torch.float32),
        ((noise._MOST + 1,), torch.float32),
        ((400, 400), torch.float64),
    ],
    ids=str,
)
def test_few_very_many_or_double_numbers_are_those_of_torch(shape, dtype):
    torch.manual_seed(3)
    got = noise.standard_normal(shape, LIKE.to(dtype))
    torch.manual_seed(3)
    assert torch.equal(got, torch.randn(shape, dtype=dtype))


def test_shapes_and_seeds():
    """Any number of numbers; a seed means the same ones, and the next call others."""
    for shape in ((363, 362), (noise._MANY + 3,), (3, 1, 65_537)):
        torch.manual_seed(5)
        first, second = noise.standard_normal(shape, LIKE), noise.standard_normal(shape, LIKE)
        torch.manual_seed(5)
        assert torch.equal(first, noise.standard_normal(shape, LIKE))
        assert first.shape == shape
        assert not torch.equal(first, second)


def test_the_default_device_does_not_matter():
    with torch.device("meta"):
        assert noise.standard_normal((MANY,), LIKE).device.type == "cpu"


def test_members_have_numbers_of_their_own():
    one = torch.func.vmap(lambda x: x + noise.standard_normal((MANY,), x), randomness="different")
    a, b = one(torch.zeros(2, 1))
    check_z((a.double() * b).sum() / math.sqrt(MANY))


@pytest.mark.parametrize("backend", ["graph", pytest.param("inductor", marks=pytest.mark.slow)])
def test_backends_give_the_same_numbers(backend):
    def noisy(x: torch.Tensor) -> list[torch.Tensor]:
        return [x + noise.standard_normal((MANY,), x)]

    program = Captured(noisy, backend)
    program.prepare(LIKE)
    torch.manual_seed(7)
    (got,) = program(LIKE)
    torch.manual_seed(7)
    torch.testing.assert_close(got, noisy(LIKE)[0], rtol=0, atol=1e-5)
    assert program.backends == [backend]


def test_large_networks_are_trained_by_it():
    """The draw of all weights is no call of torch's generator, which makes them one by one."""
    x, y = torch.randn(20, 8), torch.randn(20, 1)
    used = {}
    for width in (10, 400):
        net = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        loss = bnn.MeanField().loss(
            bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian()), 20, compile="graph"
        )
        loss(x, y)
        (captured,) = loss._programs.values()
        used[width] = {
            str(node.target).split(".")[1] for node in captured.graphs[0].graph.nodes if "." in str(node.target)
        }
    assert ("randn" in used[10], "randint" in used[10]) == (True, False)
    assert ("randn" in used[400], "randint" in used[400]) == (False, True)
