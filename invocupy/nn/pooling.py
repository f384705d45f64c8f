"""Pooling layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from invocupy import functional as F  # noqa: N812
from invocupy.geometry import IntOrTuple, check_rank
from invocupy.nn.module import Input, Module
from invocupy.ops.pooling import pool_options


@dataclass(eq=False, repr=False)
class MaxPool2d(Module):
    """:func:`invocupy.functional.max_pool2d`.

    Parameters
    ----------
    kernel_size, stride, padding
        As there.
    """

    dims: ClassVar[int] = 2
    kernel_size: IntOrTuple
    stride: IntOrTuple | None = None
    padding: IntOrTuple = 0

    def __post_init__(self) -> None:
        pool_options(self.dims, self.kernel_size, self.stride, self.padding)

    def forward(self, x: Input) -> Any:
        """(N, C, *S) to (N, C, *O)."""
        pool = getattr(F, f"max_pool{self.dims}d")
        return pool(x, self.kernel_size, self.stride, self.padding)


class MaxPool1d(MaxPool2d):
    """:func:`invocupy.functional.max_pool1d`."""

    dims = 1


class MaxPool3d(MaxPool2d):
    """:func:`invocupy.functional.max_pool3d`."""

    dims = 3


@dataclass(eq=False, repr=False)
class AvgPool2d(Module):
    """:func:`invocupy.functional.avg_pool2d`.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad
        As there.
    """

    dims: ClassVar[int] = 2
    kernel_size: IntOrTuple
    stride: IntOrTuple | None = None
    padding: IntOrTuple = 0
    ceil_mode: bool = False
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        pool_options(self.dims, self.kernel_size, self.stride, self.padding)

    def forward(self, x: Input) -> Any:
        """(N, C, *S) to (N, C, *O)."""
        options = {"ceil_mode": self.ceil_mode, "count_include_pad": self.count_include_pad}
        pool = getattr(F, f"avg_pool{self.dims}d")
        return pool(x, self.kernel_size, self.stride, self.padding, **options)


class AvgPool1d(AvgPool2d):
    """:func:`invocupy.functional.avg_pool1d`."""

    dims = 1


class AvgPool3d(AvgPool2d):
    """:func:`invocupy.functional.avg_pool3d`."""

    dims = 3


class GlobalAvgPool2d(Module):
    """The mean of each channel over the image."""

    def forward(self, x: Input) -> Any:
        """(N, C, H, W) to (N, C)."""
        check_rank(x, 2)
        return F.mean(x, axis=(2, 3))
