"""Networks of images: LeNet-5, and the residual networks for small ones."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from bnn.nets.checks import activation_of, one_of, whole
from bnn.nets.recipe import recorded

Norm = Literal["batch", "group"] | None

#: Groups of a group normalisation.
_GROUPS = 8


class LeNet(nn.Module):
    """See `lenet`."""

    def __init__(self, outputs: int, channels: int, size: int, activation: str):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=(32 - size) // 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.linear1 = nn.Linear(16 * 5 * 5, 120)
        self.linear2 = nn.Linear(120, 84)
        self.out = nn.Linear(84, outputs)
        self.activation = activation_of(activation)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, size, size)`` to ``(n, outputs)``."""
        for conv in (self.conv1, self.conv2):
            x = self.pool(self.activation(conv(x)))
        x = x.flatten(1)
        for linear in (self.linear1, self.linear2):
            x = self.activation(linear(x))
        result: Tensor = self.out(x)
        return result


@recorded
def lenet(outputs: int = 10, *, channels: int = 1, size: int = 32, activation: str = "tanh") -> LeNet:
    """LeNet-5 (LeCun et al. 1998, Proceedings of the IEEE 86), 61,706 parameters: ``conv1.weight``, ..., ``out.bias``.

    As it is built today: the second convolution sees all channels of the first, pooling is a plain average, and the
    output layer is linear.

    Args:
        outputs: Outputs or classes.
        channels: Of the images.
        size: Rows and columns of an image: 32, or 28, which is padded to 32.
        activation: A name in `bnn.nets.checks.ACTIVATIONS`.

    Raises:
        ValueError: An argument out of its range.
    """
    one_of("size", size, (32, 28))
    return LeNet(whole("outputs", outputs), whole("channels", channels), size, activation)


class Block(nn.Module):
    """Two 3x3 convolutions, added to their input; with `stride` 2 that has half the size and more channels."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm):
        super().__init__()
        self.conv1 = _conv(inputs, outputs, norm, stride)
        self.norm1 = _norm(outputs, norm)
        self.conv2 = _conv(outputs, outputs, norm)
        self.norm2 = _norm(outputs, norm)
        self.stride, self.more = stride, outputs - inputs
        self.start_as_identity = norm is None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Without normalisation a block starts as the identity: a deep network starts at the scale of a shallow one.

        De and Smith (2020), arXiv:2002.10444.
        """
        if self.start_as_identity:
            nn.init.zeros_(self.conv2.weight)
            if self.conv2.bias is not None:
                nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride > 1 or self.more:
            # The paper's shortcut without parameters (option A): every other pixel, and channels of zeros.
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(x + out)


class ResNet(nn.Module):
    """See `resnet`."""

    def __init__(self, outputs: int, channels: int, width: int, blocks: int, norm: Norm):
        super().__init__()
        self.conv = _conv(channels, width, norm)
        self.norm = _norm(width, norm)
        self.stage1 = _stage(width, width, blocks, norm)
        self.stage2 = _stage(width, 2 * width, blocks, norm)
        self.stage3 = _stage(2 * width, 4 * width, blocks, norm)
        self.out = nn.Linear(4 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w)`` to ``(n, outputs)``; made for h = w = 32."""
        x = F.relu(self.norm(self.conv(x)))
        for stage in (self.stage1, self.stage2, self.stage3):
            x = stage(x)
        result: Tensor = self.out(x.mean((2, 3)))
        return result


@recorded
def resnet(outputs: int = 10, *, channels: int = 3, width: int = 16, blocks: int = 3, norm: Norm = "batch") -> ResNet:
    """The residual network for 32 x 32 images of He et al. (2016), arXiv:1512.03385, with ``6 * blocks + 2`` layers.

    ``blocks=3`` is ResNet-20 with 269,722 parameters. Names: ``conv.weight``, ``stage1.0.conv1.weight``, ...,
    ``out.weight``.

    Args:
        outputs: Outputs or classes.
        channels: Of the images.
        width: Channels of the first stage; the others have two and four times as many.
        blocks: Of two layers, in each of the three stages.
        norm: ``"batch"``, as published; ``"group"``, in 8 groups: each row by itself, so that the likelihood of a row
            does not depend on its batch, as a Bayesian network needs it; ``None``: convolutions with biases, and blocks
            that start as the identity.

    Raises:
        ValueError: An argument out of its range; a width that group normalisation cannot divide.
    """
    one_of("norm", norm, ("batch", "group", None))
    if norm == "group" and whole("width", width) % _GROUPS:
        raise ValueError(f"norm='group' makes {_GROUPS} groups of the channels: width is a multiple of it, not {width}")
    return ResNet(
        whole("outputs", outputs), whole("channels", channels), whole("width", width), whole("blocks", blocks), norm
    )


def _stage(inputs: int, outputs: int, blocks: int, norm: Norm) -> nn.Sequential:
    first = Block(inputs, outputs, 1 if inputs == outputs else 2, norm)
    return nn.Sequential(first, *[Block(outputs, outputs, 1, norm) for _ in range(blocks - 1)])


def _conv(inputs: int, outputs: int, norm: Norm, stride: int = 1) -> nn.Conv2d:
    """A normalisation takes a bias off again."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=norm is None)


def _norm(channels: int, norm: Norm) -> nn.Module:
    if norm is None:
        return nn.Identity()
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(_GROUPS, channels)
