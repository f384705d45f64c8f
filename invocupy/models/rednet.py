"""RedNet, the paper's networks: ResNet with involutions in place of its spatial convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from invocupy import nn
from invocupy.autograd import Tensor
from invocupy.geometry import integer
from invocupy.models.resnet import (
    Bottleneck,
    Rng,
    Series,
    Staged,
    Stem,
    check_sizes,
    conv,
    draw_weight,
    of_depths,
)


class RedNetStem(Series):
    """3x3 convolution, involution, 3x3 convolution, each with norm and ReLU.

    (N, in_channels, H, W) to (N, 64, Ho, Wo): a quarter of the size with the stem "imagenet" (a
    stride of 2 and a 3x3 max pool of stride 2), the full size with "cifar".
    """

    def __init__(
        self, in_channels: int, stem: Stem, fused: nn.FusedOption, rng: np.random.Generator,
        kernel_size: int,
    ) -> None:  # fmt: skip
        large = stem == "imagenet"
        super().__init__(
            conv(in_channels, 32, 3, 2 if large else 1, rng),
            involution(32, kernel_size, 1, fused, rng),
            conv(32, 64, 3, 1, rng),
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()

    def forward(self, x: nn.Input) -> Tensor:
        pooled: Tensor = self.maxpool(self.series(x))
        return pooled


class RedNet(Staged):
    """The involution network: a stem, four stages of bottlenecks, mean, linear map.

    As the authors' code has it (Li et al., arXiv 2103.06255): 7x7 involutions with 16
    channels per group and reduction 4 between 1x1 convolutions. With a stride their generator sees
    the 2x2 average of x; in ceil mode, so that odd sizes work, where the authors' code fails.
    Initial weights are theirs too: for convolutions normal of variance
    ``2 / (out_channels * K * K)``, biases 0, norms 1 and 0 but the last one of a block 0 and 0,
    ``fc`` normal of deviation 0.01.

    Parameters
    ----------
    depths, num_classes, in_channels, rng
        As :class:`invocupy.models.ResNet`.
    stem : "imagenet" or "cifar"
        The authors' stem, which reduces the size to a quarter, or, for small images, the same
        without stride and pool. Both have the same arrays: weights do not tell them apart.
    fused : bool or "auto"
        See :class:`invocupy.nn.Involution`.
    stem_kernel_size : int
        Of the involution in the stem: 3 in the authors' classifiers, 7 in their backbones for
        detection and segmentation.

    Raises
    ------
    ValueError
        For another stem, sizes below 1, or an even ``stem_kernel_size``.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.models import RedNet
    >>> model = RedNet((1, 1, 1, 1), num_classes=10, stem="cifar", rng=0)
    >>> model(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = "imagenet",
        fused: nn.FusedOption = "auto",
        rng: Rng = None,
        stem_kernel_size: int = 3,
    ) -> None:
        check_sizes(num_classes, in_channels, stem)
        if integer("stem_kernel_size", stem_kernel_size, 1) % 2 == 0:
            raise ValueError(f"stem_kernel_size must be odd, got {stem_kernel_size}")
        rng = np.random.default_rng(rng)
        self.stem = RedNetStem(in_channels, stem, fused, rng, stem_kernel_size)

        def block(channels: int, width: int, stride: int, rng: np.random.Generator) -> Bottleneck:
            spatial = involution(width, 7, stride, fused, rng)
            made = Bottleneck(channels, width, stride, rng, spatial)
            zero(made.bn3.weight)
            return made

        self.add_stages(block, depths, num_classes, rng)
        self.fc.weight.data = rng.normal(0, 0.01, self.fc.weight.shape).astype(np.float32)
        zero(self.fc.bias)

    def forward(self, x: nn.Input) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        return self.classify(self.stem(x))


def involution(
    channels: int, kernel_size: int, stride: int, fused: nn.FusedOption, rng: np.random.Generator
) -> nn.Involution:
    """The authors' layer: no bias before the generator's norm, and their initial weights."""
    layer = nn.Involution(channels, kernel_size, stride=stride, fused=fused, rng=rng)
    del layer.reduce.bias
    layer.reduce.bias = None
    draw_weight(layer.reduce, rng)
    draw_weight(layer.span, rng)
    zero(layer.span.bias)
    return layer


def zero(parameter: nn.Parameter | None) -> None:
    if parameter is not None:
        parameter.data = np.zeros_like(parameter.data)


rednet26 = of_depths(RedNet, "rednet26", (1, 2, 4, 1), 9_233_166)
rednet38 = of_depths(RedNet, "rednet38", (2, 3, 5, 2), 12_386_986)
rednet50 = of_depths(RedNet, "rednet50", (3, 4, 6, 3), 15_540_806)
rednet101 = of_depths(RedNet, "rednet101", (3, 4, 23, 3), 25_652_950)
rednet152 = of_depths(RedNet, "rednet152", (3, 8, 36, 3), 33_984_582)
