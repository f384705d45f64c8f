"""A small network for 32x32 images, with a choice of three spatial layers."""

from __future__ import annotations

import numpy as np

from invocupy import functional as F  # noqa: N812
from invocupy import nn
from invocupy.autograd import Tensor
from invocupy.geometry import integer
from invocupy.models.rednet import involution, zero
from invocupy.models.resnet import Rng, Series, check_sizes, conv

SPATIAL = ("involution", "convolution", "depthwise")

_SIZES = (7, 5, 3)  # of the kernels in the three stages: 16x16, 8x8 and 4x4 pixels


class SmallBlock(Series):
    """1x1 convolution, spatial layer, 1x1 convolution, each with norm and ReLU; x is added.

    (N, channels, H, W) to (N, width, ceil(H/stride), ceil(W/stride)). If the stride is not 1, the
    shortcut is an average pool, which uses every pixel, and a 1x1 convolution.
    """

    names = ("conv1", "spatial", "conv3")

    def __init__(
        self, channels: int, width: int, stride: int, kernel_size: int, spatial: str,
        fused: nn.FusedOption, rng: np.random.Generator,
    ) -> None:  # fmt: skip
        super().__init__(
            conv(channels, width, 1, 1, rng),
            _spatial(spatial, width, kernel_size, stride, fused, rng),
            conv(width, width, 1, 1, rng),
        )
        zero(self.bn3.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            layer = conv(channels, width, 1, 1, rng)
            norm = nn.BatchNorm2d(width)
            self.shortcut = nn.Sequential(pool if stride > 1 else nn.Identity(), layer, norm)

    def forward(self, x: nn.Input) -> Tensor:
        return self.series(x, self.shortcut)


class SmallNet(Series):
    """A residual network that two CPU cores train within an hour, to compare spatial layers.

    A stem as RedNet's (Li et al., arXiv 2103.06255: 3x3 convolution, 3x3 spatial layer, 3x3
    convolution), which halves the image, and three stages of two :class:`SmallBlock`, of ``width``,
    twice and four times as many channels. The networks differ in the spatial layer only: involution
    (7x7, 5x5 and 3x3 in the three stages, 16 channels per group, reduction 4), depthwise
    convolution of the same sizes, or 3x3 convolution. The last norm of a block starts with scale 0,
    so that the block does nothing at first (Goyal et al., arXiv 1706.02677).

    Parameters
    ----------
    spatial : "involution", "convolution" or "depthwise"
        The kind of the spatial layers.
    width : int
        Channels of the first stage: a multiple of 32 with involutions, since the stem has half as
        many channels and a group has 16.
    num_classes, in_channels, fused, rng
        As :class:`invocupy.models.RedNet`.

    Raises
    ------
    ValueError
        For another spatial layer, a width that does not divide, or sizes below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.models import SmallNet
    >>> model = SmallNet("involution", 32, rng=0)
    >>> model(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    >>> for spatial, width in (("involution", 64), ("convolution", 31), ("depthwise", 69)):
    ...     print(spatial, sum(p.size for p in SmallNet(spatial, width).parameters()))
    involution 454804
    convolution 454945
    depthwise 450560
    """

    def __init__(
        self,
        spatial: str = "involution",
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        fused: nn.FusedOption = "auto",
        rng: Rng = None,
    ) -> None:
        if spatial not in SPATIAL:
            raise ValueError(f"spatial must be one of {', '.join(SPATIAL)}, got {spatial!r}")
        step = 32 if spatial == "involution" else 1
        width = integer("width", width, 2)
        if width % step:
            raise ValueError(
                f"width must be at least 2, and with involution a multiple of 32, got {width}"
            )
        check_sizes(num_classes, in_channels)
        rng = np.random.default_rng(rng)
        super().__init__(
            conv(in_channels, width // 2, 3, 1, rng),
            _spatial(spatial, width // 2, 3, 1, fused, rng),
            conv(width // 2, width, 3, 2, rng),
        )
        channels, blocks = width, []
        for stage, size in enumerate(_SIZES):
            for stride in (2 if stage else 1, 1):
                wide = width << stage
                blocks.append(SmallBlock(channels, wide, stride, size, spatial, fused, rng))
                channels = wide
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes, rng=rng)

    def forward(self, x: nn.Input) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        return self.fc(F.mean(self.blocks(self.series(x)), axis=(2, 3)))


def _spatial(
    spatial: str, channels: int, kernel_size: int, stride: int, fused: nn.FusedOption,
    rng: np.random.Generator,
) -> nn.Module:  # fmt: skip
    """The layer that sees more than one pixel; it keeps the size, divided by its stride."""
    if spatial == "involution":
        return involution(channels, kernel_size, stride, fused, rng)
    if spatial == "convolution":
        return conv(channels, channels, 3, stride, rng)
    layer = conv(channels, channels, kernel_size, stride, rng, groups=channels)
    layer.weight.data *= np.float32(channels**0.5)  # each result comes from one channel only
    return layer
