"""ResNet, and code shared by all residual networks. Weights have torchvision's names."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Concatenate, Literal, ParamSpec, TypeVar, cast

import numpy as np

from invocupy import functional as F  # noqa: N812
from invocupy import nn
from invocupy.autograd import Tensor
from invocupy.docstrings import documented
from invocupy.geometry import integer

Stem = Literal["imagenet", "cifar"]
Rng = np.random.Generator | int | None

_Options = ParamSpec("_Options")
_Network = TypeVar("_Network", bound="Staged")

STAGES = (64, 128, 256, 512)
"""Inner channels of the four stages; all but the first halve the image."""


class Series(nn.Module):
    """Layers one after another, each with a norm (``bn1``, ``bn2``, ...) and ReLU."""

    names: tuple[str, ...] = ("conv1", "conv2", "conv3")
    bn3: nn.BatchNorm2d

    def __init__(self, *layers: nn.Module) -> None:
        channels = 0
        for number, (name, layer) in enumerate(zip(self.names, layers, strict=True), 1):
            if isinstance(layer, nn.Conv2d):  # involution leaves their number
                channels = len(layer.weight)
            setattr(self, name, layer)
            setattr(self, f"bn{number}", nn.BatchNorm2d(channels))

    def series(self, x: nn.Input, shortcut: nn.Module | None = None) -> Tensor:
        """The result of the last layer; ``shortcut(x)`` is added before its ReLU."""
        y = x
        for number, name in enumerate(self.names, 1):
            y = getattr(self, name)(y)
            last = number == len(self.names)
            residual = shortcut(x) if last and shortcut is not None else None
            y = getattr(self, f"bn{number}")(y, residual=residual, relu=True)
        return cast("Tensor", y)


class Block(Series):
    """A series of layers to ``width * expansion`` channels, to which x is added."""

    expansion = 1

    def __init__(
        self, channels: int, width: int, stride: int, rng: np.random.Generator, *layers: nn.Module
    ) -> None:
        super().__init__(*layers)
        out = width * self.expansion
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            layer = conv(channels, out, 1, stride, rng)
            self.downsample = nn.Sequential(layer, nn.BatchNorm2d(out))

    def forward(self, x: nn.Input) -> Tensor:
        """(N, channels, H, W) to (N, width*expansion, ceil(H/stride), ceil(W/stride))."""
        return self.series(x, self.downsample)


class BasicBlock(Block):
    """Two 3x3 convolutions; x is added (He et al., arXiv 1512.03385, figure 5)."""

    names = ("conv1", "conv2")

    def __init__(self, channels: int, width: int, stride: int, rng: np.random.Generator) -> None:
        layers = conv(channels, width, 3, stride, rng), conv(width, width, 3, 1, rng)
        super().__init__(channels, width, stride, rng, *layers)


class Bottleneck(Block):
    """1x1 convolution, a spatial layer, 1x1 convolution to four times as many channels; x is added.

    The spatial layer has the block's stride: a 3x3 convolution in ResNet (He et al., arXiv
    1512.03385, figure 5), a 7x7 involution in RedNet (Li et al., arXiv 2103.06255).
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
        layers = (
            conv(channels, width, 1, 1, rng),
            conv(width, width, 3, stride, rng) if spatial is None else spatial,
            conv(width, 4 * width, 1, 1, rng),
        )
        super().__init__(channels, width, stride, rng, *layers)


class Staged(nn.Module):
    """The part after the stem: four stages of residual blocks, the mean of each channel, ``fc``."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def add_stages(
        self,
        block: Callable[[int, int, int, np.random.Generator], Block],
        depths: Sequence[int],
        num_classes: int,
        rng: np.random.Generator,
    ) -> None:
        """Create the stages with ``block(channels, width, stride, rng)``."""
        channels = 64
        for stage, (width, depth) in enumerate(zip(STAGES, depths, strict=True), 1):
            blocks = []
            for i in range(depth):
                blocks.append(block(channels, width, 2 if stage > 1 and i == 0 else 1, rng))
                channels = blocks[-1].expansion * width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes, rng=rng)

    def classify(self, x: nn.Input) -> Tensor:
        """The result of the stem to logits (N, num_classes)."""
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
        Of the logits, and of the images.
    stem : "imagenet" or "cifar"
        A 7x7 convolution of stride 2 and a 3x3 max pool of stride 2, or, for small images, a 3x3
        convolution.
    rng : numpy.random.Generator or int, optional
        Draws the initial weights; or its seed.

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
    """Draw from Kaiming's normal distribution (fan-out): variance ``2 / (O * Kh * Kw)``."""
    shape = layer.weight.shape  # (O, C/groups, Kh, Kw)
    std = math.sqrt(2 / (shape[0] * shape[2] * shape[3]))
    layer.weight.data = rng.standard_normal(shape, np.float32) * np.float32(std)


def check_sizes(num_classes: int, in_channels: int, stem: str = "cifar") -> None:
    """ValueError for sizes or a stem that no network has."""
    integer("num_classes", num_classes, 1)
    integer("in_channels", in_channels, 1)
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f"stem must be 'imagenet' or 'cifar', got {stem!r}")


def of_depths(
    network: Callable[Concatenate[Sequence[int], _Options], _Network],
    name: str,
    depths: tuple[int, ...],
    parameters: int,
) -> Callable[_Options, _Network]:
    """A network of these depths, as a function of all other arguments of its class."""
    _, *others = inspect.signature(network).parameters.values()
    kind = "RedNet" if name.startswith("rednet") else "ResNet"

    def make(*args: _Options.args, **options: _Options.kwargs) -> _Network:
        return network(depths, *args, **options)

    make.__signature__ = inspect.Signature(others, return_annotation=kind)  # type: ignore[attr-defined]
    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"""{kind}-{name[6:]}: {parameters:,} parameters for 1000 classes.

    ``model(x)`` returns logits.

    Parameters
    ----------
    num_classes, in_channels, stem, fused, rng, stem_kernel_size
        As in :class:`{kind}`.

    >>> from invocupy.models import {name}
    >>> sum(p.size for p in {name}().parameters())
    {parameters}
    """
    return documented(make)


resnet18 = of_depths(partial(ResNet, BasicBlock), "resnet18", (2, 2, 2, 2), 11_689_512)
resnet50 = of_depths(partial(ResNet, Bottleneck), "resnet50", (3, 4, 6, 3), 25_557_032)
