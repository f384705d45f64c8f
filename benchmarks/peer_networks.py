"""RedNet and ResNet in PyTorch, with the weight names of the authors and of torchvision.

invocupy's networks are compared with these. At odd sizes, for which the authors' code fails, the
pool before the generator of a strided involution uses ceil mode, as in invocupy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from peers import unfold_form
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu, unfold


def conv_module(inside: int, outside: int, size: int, stride: int = 1) -> nn.Sequential:
    """mmcv's ConvModule: ``conv``, ``bn``, ReLU."""
    layer = nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=layer, bn=nn.BatchNorm2d(outside), activate=nn.ReLU()))


class Involution(nn.Module):
    """The authors' layer, in the unfold form."""

    def __init__(self, channels: int, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.stride, self.groups = size, stride, channels // 16
        self.conv1 = conv_module(channels, channels // 4, 1)
        span = nn.Conv2d(channels // 4, size**2 * self.groups, 1)
        self.conv2 = nn.Sequential(OrderedDict(conv=span))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride))."""
        seen = x
        if self.stride > 1:
            seen = avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        kernel = self.conv2(self.conv1(seen))
        n, _, h, w = kernel.shape
        kernel = kernel.view(n, self.groups, self.size, self.size, h, w)
        if self.stride == 1:
            return unfold_form(x, kernel, self.size // 2)
        patches = unfold(pad(x, (self.size // 2,) * 4), self.size, stride=self.stride)
        patches = patches.view(n, self.groups, 16, self.size**2, h, w)
        return (
            (kernel.view(n, self.groups, 1, self.size**2, h, w) * patches).sum(3).view(n, -1, h, w)
        )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inside: int, width: int, stride: int, _: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inside, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, width, ...)."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, a spatial layer, 1x1."""

    expansion = 4

    def __init__(self, inside: int, width: int, stride: int, spatial: Callable[..., Any]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = spatial(width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inside, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, H, W) to (N, 4*width, ...)."""
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        return relu(
            self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))
        )


def shortcut(inside: int, outside: int, stride: int) -> nn.Module | None:
    """The layers around the block; None if x itself is added."""
    if stride == 1 and inside == outside:
        return None
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))


def stages(net: nn.Module, block: Any, depths: tuple[int, ...], spatial: Any) -> int:
    """Set layer1 to layer4; returns the channels after them."""
    inside = 64
    for i, depth in enumerate(depths):
        blocks = []
        for j in range(depth):
            blocks.append(block(inside, 64 << i, 2 if i and not j else 1, spatial))
            inside = block.expansion * (64 << i)
        setattr(net, f"layer{i + 1}", nn.Sequential(*blocks))
    return inside


def through(net: nn.Module, x: Tensor) -> Tensor:
    """The four stages, then the mean over the pixels."""
    return net.layer4(net.layer3(net.layer2(net.layer1(x)))).mean((2, 3))


class ResNet(nn.Module):
    """torchvision's ResNet."""

    def __init__(self, block: Any, depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)

        def conv3x3(width: int, stride: int) -> nn.Module:
            return nn.Conv2d(width, width, 3, stride, 1, bias=False)

        self.fc = nn.Linear(stages(self, block, depths, conv3x3), classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits."""
        return self.fc(through(self, self.pool(relu(self.bn1(self.conv1(x))))))


class Backbone(nn.Module):
    """The authors' RedNet up to the mean."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_module(3, 32, 3, 2), Involution(32, 3, 1), nn.BatchNorm2d(32), nn.ReLU(),
            conv_module(32, 64, 3),
        )  # fmt: skip
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages(self, Bottleneck, depths, lambda width, stride: Involution(width, 7, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 2048)."""
        return through(self, self.pool(self.stem(x)))


class RedNet(nn.Module):
    """The authors' classifier: ``backbone`` and ``head.fc``."""

    def __init__(self, depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.backbone = Backbone(depths)
        self.head = nn.Sequential(OrderedDict(fc=nn.Linear(2048, classes)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits."""
        return self.head(self.backbone(x))


PEERS: dict[str, Callable[[int], nn.Module]] = {
    "rednet26": lambda classes: RedNet((1, 2, 4, 1), classes),
    "rednet38": lambda classes: RedNet((2, 3, 5, 2), classes),
    "rednet50": lambda classes: RedNet((3, 4, 6, 3), classes),
    "rednet101": lambda classes: RedNet((3, 4, 23, 3), classes),
    "rednet152": lambda classes: RedNet((3, 8, 36, 3), classes),
    "resnet18": lambda classes: ResNet(BasicBlock, (2, 2, 2, 2), classes),
    "resnet50": lambda classes: ResNet(Bottleneck, (3, 4, 6, 3), classes),
}
