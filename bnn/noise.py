"""Standard normal noise for the steps of training, at the speed of the arithmetic around it.

torch's generator makes numbers on a CPU one after the other, on one thread: for a network of half a million weights two
fifths of a step that is compiled for two. A generator that counts is a function of each number's place alone, so that
the compiler fuses it into the step, for all threads and lanes of vectors. What it starts from, torch's generator draws:
seeds, states and `bnn.random.isolated` mean what they always do. See docs/design/performance.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: From so many numbers on counting pays: four words of 32,768 each, which torch's operations share out between threads
#: where nothing is compiled. And up to so many: there the words and what is made of them take memory of their own, 113
#: MB at the peak of four million numbers (17 MB), 249 of ten million, in blocks that the allocator keeps for long.
_MANY, _MOST = 131_072, 2**22

# Of the linear congruential step that the hash begins with.
_MULTIPLIER, _INCREMENT = 1_664_525, 1_013_904_223


def standard_normal(shape: Sequence[int], like: Tensor) -> Tensor:
    """Independent N(0, 1) numbers, in the dtype and on the device of `like`.

    Many in single precision on a CPU come from counters (`_words`) by Box and Muller's transformation (1958), with
    2^-32 as the smallest uniform number: none is beyond 6.7. All others come from `torch.randn`.
    """
    size = math.prod(shape)
    if not _MANY <= size <= _MOST or like.device.type != "cpu" or like.dtype != torch.float32:
        return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)
    a, b, c, d = _words(-(-size // 4), like.device)
    pieces = []
    for length, angle in ((a, b), (c, d)):
        # |a| 2^-31 is uniform, and finest where it is smallest, which is where the normal numbers are largest.
        radius = (length.to(like.dtype).abs() * 2.0**-31 + 2.0**-32).log().mul(-2.0).sqrt()
        turn = angle.to(like.dtype) * (math.pi / 2**31)
        pieces += [radius * turn.cos(), radius * turn.sin()]
    return torch.cat(pieces)[:size].reshape(tuple(shape))


def _words(count: int, device: torch.device) -> list[Tensor]:
    """Four words of 32 random bits for each of `count` counters: the hash pcg4d (Jarzynski and Olano 2020).

    "Hash functions for GPU rendering", Journal of Computer Graphics Techniques 9(3); additions and products wrap. Its
    other three inputs are a key, new at each call: they are random where the paper scrambles them first, and odd, so
    that no product forgets bits of a counter. What the paper adds to the first word before it is shifted, the product
    of two of them, is a fourth random number.

    The lowest bits, five or so for the sizes of networks, repeat sooner than they should: single precision rounds them
    away, but for the one word in 128 that is small, of which they are the last digits.
    """
    start, *key = torch.randint(-(2**31), 2**31, (4,), dtype=torch.int32, device=device).unbind(0)
    x = torch.arange(count, dtype=torch.int32, device=device) * _MULTIPLIER + _INCREMENT + start
    y, z, w = _stirred(x, *[word | 1 for word in key])
    # The shift is one of words without a sign.
    x, y, z, w = (word ^ ((word >> 16) & 0xFFFF) for word in (x, y, z, w))
    x = x + y * w
    return [x, *_stirred(x, y, z, w)]


def _stirred(x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = y + z * x
    z = z + x * y
    return y, z, w + y * z
