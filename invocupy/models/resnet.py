"""ResNet, and what RedNet shares with it. Names of the weights are torchvision's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from invocupy import functional as F  # noqa: N812
from invocupy import nn
from invocupy.autograd import Tensor
from invocupy.geometry import integer

Stem = Literal["imagenet", "cifar"]
Rng = np.random.Generator | int | None

STAGES = (64, 128, 256, 512)
"""Inner channels of the four stages; all but the first halve the image."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; x is added (He et al., arXiv 1512.03385, figure 5).

    (N, channels, H, W) to (N, width, ceil(H/stride), ceil(W/stride)).
    """

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, rng: np.random.Generator) -> None:
        self.conv1 = conv(channels, width, 3, stride, rng)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, 1, rng)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride, rng)

    def forward(self, x: nn.Input) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(y), residual=self.downsample(x), relu=True)


class Bottleneck(nn.Module):
    """1x1 convolution, a spatial layer, 1x1 convolution to four times as many channels; x is added.

    (N, channels, H, W) to (N, 4*width, ceil(H/stride), ceil(W/stride)). The spatial layer has the
    block's stride: a 3x3 convolution in ResNet (He et al., arXiv 1512.03385, figure 5), a 7x7
    involution in RedNet (Li et al., arXiv 2103.06255).
    """

    expansion = 4

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        rng: np.random.Generator,
        spatial: nn.Module | None = None,
    ) -> None:
        self.conv1 = conv(channels, width, 1, 1, rng)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, rng) if spatial is None else spatial
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width, 1, 1, rng)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(channels, 4 * width, stride, rng)

    def forward(self, x: nn.Input) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        y = self.bn2(self.conv2(y), relu=True)
        return self.bn3(self.conv3(y), residual=self.downsample(x), relu=True)


class Staged(nn.Module):
    """The part after the stem: four stages of residual blocks, the mean of each channel, ``fc``."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def add_stages(
        self,
        block: Callable[[int, int, int, np.random.Generator], BasicBlock | Bottleneck],
        depths: Sequence[int],
        num_classes: int,
        rng: np.random.Generator,
    ) -> None:
        """Make the stages from ``block(channels, width, stride, rng)``."""
        channels = 64
        for stage, (width, depth) in enumerate(zip(STAGES, depths, strict=True), 1):
            blocks = []
            for i in range(depth):
                blocks.append(block(channels, width, 2 if stage > 1 and i == 0 else 1, rng))
                channels = blocks[-1].expansion * width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes, rng=rng)

    def classify(self, x: nn.Input) -> Tensor:
        """What the stem gives to logits (N, num_classes)."""
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(F.mean(x, axis=(2, 3)))


class ResNet(Staged):
    """The convolution network: a stem, four stages of residual blocks, mean, linear map.

    torchvision's architecture (the stride in the 3x3 convolution), names and initial weights: for
    convolutions normal of variance ``2 / (out_channels * K * K)``, for norms 1 and 0.

    Parameters
    ----------
    block, depths : class, sequence of int
        BasicBlock or Bottleneck, and how many of them each stage has.
    num_classes, in_channels : int
    stem : "imagenet" or "cifar"
        A 7x7 convolution of stride 2 and a 3x3 max pool of stride 2, or, for small images, a 3x3
        convolution.
    rng : numpy.random.Generator or int, optional
        Where the initial weights are drawn from, or its seed.

    Raises
    ------
    ValueError
        For another stem, or sizes below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.models.resnet import BasicBlock, ResNet
    >>> model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, stem="cifar", rng=0)
    >>> model(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = "imagenet",
        rng: Rng = None,
    ) -> None:
        check_sizes(num_classes, in_channels, stem)
        rng = np.random.default_rng(rng)
        large = stem == "imagenet"
        self.conv1 = conv(in_channels, 64, 7 if large else 3, 2 if large else 1, rng)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.add_stages(block, depths, num_classes, rng)

    def forward(self, x: nn.Input) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        return self.classify(self.maxpool(self.bn1(self.conv1(x), relu=True)))


def resnet18(
    num_classes: int = 1000, in_channels: int = 3, stem: Stem = "imagenet", rng: Rng = None
) -> ResNet:
    """ResNet-18: 11,689,512 parameters for 1000 classes.

    Parameters
    ----------
    num_classes, in_channels, stem, rng
        As :class:`ResNet`.

    Returns
    -------
    ResNet
        ``model(x)`` gives logits.

    Examples
    --------
    >>> from invocupy.models import resnet18
    >>> sum(p.size for p in resnet18().parameters())
    11689512
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, stem, rng)


def resnet50(
    num_classes: int = 1000, in_channels: int = 3, stem: Stem = "imagenet", rng: Rng = None
) -> ResNet:
    """ResNet-50, which the paper replaces the 3x3 convolutions of: 25,557,032 parameters.

    Parameters
    ----------
    num_classes, in_channels, stem, rng
        As :class:`ResNet`.

    Returns
    -------
    ResNet
        ``model(x)`` gives logits.

    Examples
    --------
    >>> from invocupy.models import resnet50
    >>> sum(p.size for p in resnet50(num_classes=10, stem="cifar").parameters())
    23520842
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, stem, rng)


def conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, rng: np.random.Generator,
    groups: int = 1,
) -> nn.Conv2d:  # fmt: skip
    """A convolution without bias that keeps the size, divided by its stride."""
    layer = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    draw_weight(layer, rng)
    return layer


def draw_weight(layer: nn.Conv2d, rng: np.random.Generator) -> None:
    """Kaiming's normal distribution for what a layer gives: variance ``2 / (O * Kh * Kw)``."""
    shape = layer.weight.shape  # (O, C/groups, Kh, Kw)
    std = math.sqrt(2 / (shape[0] * shape[2] * shape[3]))
    layer.weight.data = rng.standard_normal(shape, np.float32) * np.float32(std)


def check_sizes(num_classes: int, in_channels: int, stem: str = "cifar") -> None:
    """Refuse what no network can be built from."""
    integer("num_classes", num_classes, 1)
    integer("in_channels", in_channels, 1)
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f"stem must be 'imagenet' or 'cifar', got {stem!r}")


def _shortcut(channels: int, out_channels: int, stride: int, rng: np.random.Generator) -> nn.Module:
    """Beside the block: x itself, or a 1x1 convolution and a norm where the shape changes."""
    if stride == 1 and channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv(channels, out_channels, 1, stride, rng), nn.BatchNorm2d(out_channels))
