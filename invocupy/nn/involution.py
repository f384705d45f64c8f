"""Involution with its kernel generator, in one, two and three dimensions."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from invocupy import arrays
from invocupy import functional as F  # noqa: N812
from invocupy.autograd import Tensor, is_recording
from invocupy.geometry import IntOrTuple, integer, per_axis
from invocupy.nn import layers, pooling
from invocupy.nn.misfit import Takes
from invocupy.nn.module import Input, Module

FusedOption = bool | Literal["auto"]

_LARGE_KERNEL = 2**24  # elements; from there on the stored kernel leaves the caches
_NARROW = {False: 64, True: 32}  # features up to which the CPU fuses, without and with gradients
_Layers: TypeAlias = tuple[type[pooling.AvgPool2d], type[layers.BatchNorm2d], type[layers.Conv2d]]
_LAYERS: dict[int, _Layers] = {
    1: (pooling.AvgPool1d, layers.BatchNorm1d, layers.Conv1d),
    2: (pooling.AvgPool2d, layers.BatchNorm2d, layers.Conv2d),
    3: (pooling.AvgPool3d, layers.BatchNorm3d, layers.Conv3d),
}


class Involution(Module):
    """The article's involution layer: a generator computes the kernel from x, then involution.

    ``kernel = span(relu(norm(reduce(pool(x)))))`` with 1x1 convolutions ``reduce`` (C to
    C/reduction_ratio) and ``span`` (to G*K*K), both with bias, and ``out = involution(x, kernel)``
    (Li et al., arXiv 2103.06255, section 3). "The article" is P. Kandru's on involution, see
    :mod:`invocupy.models`. With a stride s > 1, ``pool`` is an s x s average pool in ceil mode over
    valid pixels, so that odd sizes work; otherwise it does nothing. :class:`Involution1d` and
    :class:`Involution3d` are the same layer in one and three dimensions; ``Involution2d`` is
    another name for this one.

    Parameters
    ----------
    channels, reduction_ratio, channels_per_group : int
        There are G = channels / channels_per_group groups.
    kernel_size, stride, dilation : int or tuple
        The kernel size is odd; padding keeps the size of the image.
    fused : bool or "auto"
        Whether to fuse ``span`` and involution, which never stores the kernel; ``"auto"`` does so
        where it is faster and, on the CPU, where the kernel would be large. True saves memory in
        training on a GPU.
    rng : numpy.random.Generator, optional
        Draws the initial weights.

    Raises
    ------
    ValueError
        If channels_per_group does not divide the channels, the kernel size is even, or an option
        is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> layer = nn.Involution(32, kernel_size=7, stride=2)
    >>> layer(np.ones((1, 32, 9, 9), np.float32)).shape
    (1, 32, 5, 5)
    """

    dims: ClassVar[int] = 2

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
        self.kernel_size = per_axis("kernel_size", kernel_size, 1, self.dims)
        if not all(size % 2 for size in self.kernel_size):
            raise ValueError(
                f"kernel_size must be odd, since an even kernel has no centre, got {kernel_size}"
            )
        self.stride = per_axis("stride", stride, 1, self.dims)
        self.dilation = per_axis("dilation", dilation, 1, self.dims)
        self.groups = channels // channels_per_group
        self.fused = fused
        width = channels // reduction_ratio
        pool, norm, conv = _LAYERS[self.dims]
        self.pool: Module = layers.Identity()
        if max(self.stride) > 1:
            self.pool = pool(self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        self.reduce = conv(channels, width, 1, rng=rng)
        self.norm = norm(width)
        self.span = conv(width, math.prod(self.kernel_size) * self.groups, 1, rng=rng)

    def _takes(self) -> Takes:
        return "channels", self.reduce.weight.shape[1], (self.dims,)

    def features(self, x: Input) -> Tensor:
        """The input of ``span``: (N, C, *S) to (N, C/reduction_ratio, *O)."""
        return self.norm.of(self.reduce, self.pool(x), relu=True)

    def kernel(self, x: Input) -> Tensor:
        """The kernel that the layer generates from x: (N, G, *K, *O)."""
        return self._kernel(self.features(x))

    def _kernel(self, features: Tensor) -> Tensor:
        n, _, *out = features.shape
        return F.reshape(self.span(features), (n, self.groups, *self.kernel_size, *out))

    def forward(self, x: Input) -> Tensor:
        """(N, C, *S) to (N, C, *O), each size of O being ceil(size of S / stride)."""
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
        n, width, *out = features.shape
        large = n * self.groups * math.prod((*self.kernel_size, *out)) >= _LARGE_KERNEL
        # Fused, the kernel is recomputed for the gradients, at a cost that grows with the features.
        if arrays.is_cupy(features.data):
            return large and not is_recording()
        return large or width <= _NARROW[is_recording()]


Involution2d = Involution


class Involution1d(Involution):
    """:class:`Involution` of signals, (N, C, W) to (N, C, ceil(W/stride)).

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> nn.Involution1d(32, kernel_size=9, stride=2)(np.ones((1, 32, 25), np.float32)).shape
    (1, 32, 13)
    """

    dims = 1


class Involution3d(Involution):
    """:class:`Involution` of volumes, (N, C, D, H, W) to the same, each size over its stride.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> layer = nn.Involution3d(32, kernel_size=3, stride=(1, 2, 2))
    >>> layer(np.ones((1, 32, 3, 5, 6), np.float32)).shape
    (1, 32, 3, 3, 3)
    """

    dims = 3
