"""Involution with the generator that makes its kernel."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from invocupy import arrays
from invocupy import functional as F  # noqa: N812
from invocupy.autograd import Tensor, is_recording
from invocupy.geometry import IntOrTuple, integer, per_axis
from invocupy.nn.layers import AvgPool2d, BatchNorm2d, Conv2d, Identity
from invocupy.nn.module import Input, Module

FusedOption = bool | Literal["auto"]

_LARGE_KERNEL = 2**24  # elements; from there on the stored kernel leaves the caches
_NARROW = {False: 64, True: 32}  # features up to which the CPU fuses, without and with gradients


class Involution(Module):
    """The article's involution layer: a generator makes the kernel from x, then involution.

    ``kernel = span(relu(norm(reduce(pool(x)))))`` with 1x1 convolutions ``reduce`` (C to
    C/reduction_ratio) and ``span`` (to G*K*K), both with bias, and ``out = involution(x, kernel)``
    (Li et al., arXiv 2103.06255, section 3; the layout of the article and of the authors' code).
    With a stride s > 1, ``pool`` is an s x s average pool in ceil mode over valid pixels, so that
    odd sizes work; else nothing.

    Parameters
    ----------
    channels, reduction_ratio, channels_per_group : int
        The groups are G = channels / channels_per_group.
    kernel_size, stride, dilation : int or pair
        The kernel size is odd; padding keeps the size of the image.
    fused : bool or "auto"
        Whether ``span`` and involution run as one, which never stores the kernel; ``"auto"``
        takes it where it is faster or the kernel would be large.
    rng : numpy.random.Generator, optional

    Raises
    ------
    ValueError
        If the channels do not divide, the kernel size is even, or an option is none of its values.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> layer = nn.Involution(32, kernel_size=7, stride=2)
    >>> layer(np.ones((1, 32, 9, 9), np.float32)).shape
    (1, 32, 5, 5)
    """

    def __init__(
        self,
        channels: int,
        kernel_size: IntOrTuple = 3,
        reduction_ratio: int = 4,
        channels_per_group: int = 16,
        stride: IntOrTuple = 1,
        dilation: IntOrTuple = 1,
        fused: FusedOption = "auto",
        rng: np.random.Generator | None = None,
    ) -> None:
        channels = integer("channels", channels, 1)
        channels_per_group = integer("channels_per_group", channels_per_group, 1)
        reduction_ratio = integer("reduction_ratio", reduction_ratio, 1)
        if channels % channels_per_group:
            raise ValueError(
                f"channels must be a multiple of channels_per_group, got channels={channels}, "
                f"channels_per_group={channels_per_group}"
            )
        if reduction_ratio > channels:
            raise ValueError(
                f"reduction_ratio must be between 1 and channels={channels}, got {reduction_ratio}"
            )
        if not (isinstance(fused, bool) or fused == "auto"):
            raise ValueError(f"fused must be True, False or 'auto', got {fused!r}")
        self.kernel_size = per_axis("kernel_size", kernel_size, 1)
        if not all(size % 2 for size in self.kernel_size):
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.stride = per_axis("stride", stride, 1)
        self.dilation = per_axis("dilation", dilation, 1)
        self.groups = channels // channels_per_group
        self.fused = fused
        width = channels // reduction_ratio
        self.pool: Module = Identity()
        if self.stride != (1, 1):
            self.pool = AvgPool2d(self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        self.reduce = Conv2d(channels, width, 1, rng=rng)
        self.norm = BatchNorm2d(width)
        self.span = Conv2d(width, math.prod(self.kernel_size) * self.groups, 1, rng=rng)

    def features(self, x: Input) -> Tensor:
        """What the kernel is made from: (N, C, H, W) to (N, C/reduction_ratio, Ho, Wo)."""
        return self.norm(self.reduce(self.pool(x)), relu=True)

    def kernel(self, x: Input) -> Tensor:
        """The kernel that the layer makes from x: (N, G, Kh, Kw, Ho, Wo)."""
        return self._kernel(self.features(x))

    def _kernel(self, features: Tensor) -> Tensor:
        n, _, h, w = features.shape
        return F.reshape(self.span(features), (n, self.groups, *self.kernel_size, h, w))

    def forward(self, x: Input) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride))."""
        options: dict[str, Any] = {"stride": self.stride, "dilation": self.dilation}
        features = self.features(x)
        out: Tensor
        if self._fuses(features):
            weight = F.reshape(self.span.weight, self.span.weight.shape[:2])
            options["kernel_size"] = self.kernel_size
            out = F.fused_involution(x, features, weight, self.span.bias, **options)
        else:
            out = F.involution(x, self._kernel(features), **options)
        return out

    def _fuses(self, features: Tensor) -> bool:
        if self.fused != "auto":
            return self.fused
        n, width, h, w = features.shape
        # Fused, the kernel is made again for the gradients: the more features, the dearer.
        narrow = 0 if arrays.is_cupy(features.data) else _NARROW[is_recording()]
        large = n * h * w * self.groups * math.prod(self.kernel_size) >= _LARGE_KERNEL
        return large or width <= narrow
