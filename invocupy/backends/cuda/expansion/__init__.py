"""A 1x1 convolution from few channels to many, the norm of its result and a ReLU, as one.

Two launches forward, three backward. The wide result is written once; backward reads its gradient
and x once. The grids depend on the sizes of the arrays alone, as in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

from invocupy.arrays import Array
from invocupy.backends import cuda
from invocupy.backends.cuda import BLOCK, SHARED, WARPS, ceil_div, launch
from invocupy.backends.cuda.spread import spread

_BLOCKS = 792  # of `grad_expand`: six on each multiprocessor of a large GPU


class Sizes(NamedTuple):
    """The numbers of channels, and the bytes of a sum."""

    channels: int
    hidden: int
    itemsize: int

    @classmethod
    def of(cls, x: Array, hidden: int) -> Sizes:
        return cls(x.shape[1], hidden, 8 if x.itemsize == 8 else 4)

    def fit(self) -> bool:
        """Whether the kernels support these sizes: covariances are in registers."""
        row = ceil_div(self.channels + 1, 4) * 4 + WARPS * (self.channels + 1)
        most = 8 if self.itemsize == 4 else 6
        return self.channels <= most and self.hidden * row * self.itemsize <= SHARED

    def macros(self, x: Array, *arrays: Array) -> tuple[cuda.Macros, tuple[int, int]]:
        """The macros for arrays (N, channels, P), and the sizes (batch, vectors per plane)."""
        batch, _, plane = x.shape
        vector = min(4, cuda.vector(plane, x, *arrays))
        fixed = {"CHANNELS": self.channels, "HIDDEN": self.hidden, "VECTOR": vector}
        return cuda.element(x.dtype) | fixed, (batch, plane // vector)


def forward(
    x: Array, weight: Array, bias: Array | None, gamma: Array, beta: Array, eps: float, relu: bool,
    out: Array, mean: Array, var: Array, kept: Array,
) -> None:  # fmt: skip
    sizes = Sizes.of(x, len(weight))
    macros, (batch, per_plane) = sizes.macros(x)
    partial, rows = spread(macros, x, batch, per_plane)
    macros, (batch, per_plane) = sizes.macros(x, out)
    launch(
        "expansion/expand", macros | {"RELU": int(relu)}, batch * per_plane,
        x, partial, weight, bias, gamma, beta, out, mean, var, kept, eps, batch, per_plane, rows,
    )  # fmt: skip


def backward(
    grad: Array, x: Array, weight: Array, gamma: Array, kept: Array, eps: float, relu: bool,
    grad_x: Array, grad_weight: Array, grad_bias: Array, grad_gamma: Array, grad_beta: Array,
) -> None:  # fmt: skip
    sizes, product = Sizes.of(x, len(weight)), cuda.stored(x, *x.shape)
    macros, (batch, per_plane) = sizes.macros(x, grad, product)
    vectors = batch * per_plane
    rows = min(_BLOCKS, ceil_div(vectors, BLOCK))
    partial = cuda.workspace(x, rows, sizes.hidden, sizes.channels + 1)
    launch(
        "expansion/grad_expand", macros | {"RELU": int(relu)}, rows * BLOCK,
        grad, x, kept, product, partial, batch, per_plane, over=vectors,
    )  # fmt: skip
    more = cuda.workspace(x, 2, sizes.hidden)
    launch(
        "expansion/merge_expand", macros, sizes.hidden * BLOCK,
        partial, weight, gamma, kept, grad_weight, grad_bias, grad_gamma, grad_beta, more, eps,
        batch, x.shape[2], rows,
    )  # fmt: skip
    macros, (batch, per_plane) = sizes.macros(x, product, grad_x)
    launch(
        "spread/grad_x", macros | {"SLICES": 0}, batch * per_plane,
        product, x, None, weight, kept, more, grad_x, batch, per_plane,
    )  # fmt: skip
