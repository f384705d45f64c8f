"""An involution block of the article's network: its hidden layer stays in registers.

Forward takes five launches in training and one in evaluation, backward six. The grids depend on the
sizes of the arrays alone, so a step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, product
from math import prod
from typing import NamedTuple

from invocupy.arrays import Array
from invocupy.backends import cuda
from invocupy.backends.cuda import BLOCK, SHARED, WARPS, ceil_div, launch
from invocupy.backends.cuda.spread import spread
from invocupy.backends.reference import involution_block as reference
from invocupy.backends.signatures import Kept
from invocupy.geometry import Geometry

Eps = tuple[float, float, float]

_BLOCKS = 396  # of `grad_perceive`: three on each multiprocessor of a large GPU
_TILES = (4, 32), (8, 16), (16, 8)  # one pixel per thread


class Sizes(NamedTuple):
    """The numbers of channels and the window of an involution block."""

    channels: int
    hidden: int
    reduced: int
    groups: int
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    itemsize: int  # of the sums

    @classmethod
    def of(cls, x: Array, parameters: Sequence[Array], g: Geometry) -> Sizes:
        hidden, reduced = len(parameters[0]), len(parameters[4])
        itemsize = 8 if x.itemsize == 8 else 4
        return cls(x.shape[1], hidden, reduced, g.groups, g.kernel, g.dilation, itemsize)

    @property
    def each(self) -> int:
        """Hidden channels per lane in `grad_perceive`."""
        most = 2 if self.reduced <= 16 and self.itemsize == 4 else 1
        return min(ceil_div(self.hidden, 32), most)

    @property
    def widest(self) -> int:
        """The most pixels per thread if it has all their reduced channels in registers."""
        return 4 if self.reduced <= 16 else 2 if self.reduced <= 32 else 1

    @property
    def reach(self) -> list[int]:
        """How many pixels away the window reads, along each axis."""
        return [k // 2 * d for k, d in zip(self.kernel, self.dilation, strict=True)]

    @property
    def weights(self) -> int:
        """Numbers per hidden channel that forward has in shared memory."""
        return ceil_div(2 * self.channels + 1 + self.reduced, 4) * 4

    def tile(self) -> tuple[int, int]:
        """The tile of `grad_involve`: the first that fits into shared memory, (0, 0) if none."""
        c, f, kernel_w = self.channels, self.reduced, self.kernel[1]
        reach = self.reach
        for high, wide in _TILES:
            span = (high + 2 * reach[0]) * (wide + 2 * reach[1])
            plane = ceil_div(span - 2, 8) * 8 + 2
            taps = high * (wide + 2 * reach[1]) + high * wide + WARPS * (ceil_div(f, 4) * 4 + 1)
            numbers = f * plane + c * span + kernel_w * taps + (2 + 2 * WARPS) * f + 4 * c
            if numbers * self.itemsize <= SHARED:
                return high, wide
        return 0, 0

    def pixels(self) -> int:
        """The pixels that a warp of `grad_perceive` fetches at a time, 0 if 16 do not fit."""
        c, f, width = self.channels, self.reduced, 32 * self.each
        for pixels in (32, 16):
            size = (f + self.groups * c + c) | 1
            numbers = WARPS * (pixels * size + 16 * (width + 1)) + width * (f + 3 * c + 1) + 3 * f
            if numbers * self.itemsize <= SHARED:
                return pixels
        return 0

    def fit(self) -> bool:
        """Whether training has kernels for these sizes; otherwise the reference computes it."""
        return _fit(self)

    def macros(self, x: Array, *arrays: Array, row: int, widest: int = 4) -> dict[str, str | int]:
        """The macros; rows of the arrays have ``row`` elements."""
        fixed = cuda.element(x.dtype) | {
            "CHANNELS": self.channels, "HIDDEN": self.hidden, "REDUCED": self.reduced,
            "GROUPS": self.groups, "VECTOR": min(widest, cuda.vector(row, x, *arrays)),
        }  # fmt: skip
        for axis, kernel, dilation in zip("HW", self.kernel, self.dilation, strict=True):
            fixed |= {f"KERNEL_{axis}": kernel, f"DILATION_{axis}": dilation}
        return fixed


@lru_cache(256)  # called several times for each block in each step
def _fit(sizes: Sizes) -> bool:
    weights = sizes.hidden * sizes.weights + WARPS * sizes.reduced
    return (
        sizes.channels <= 8
        and sizes.reduced <= 64
        and weights * sizes.itemsize <= SHARED
        and sizes.tile()[0] > 0
        and sizes.pixels() > 0
    )


@lru_cache(256)
def evaluation(sizes: Sizes, height: int, width: int) -> tuple[int, int, int]:
    """The tile of `evaluate` and how many pixels a thread has at a time; zeros if it cannot run.

    Of the tiles that fit into shared memory: the one with the least work, counted in multiply-adds,
    where each time a thread reads the weights costs as much as half a pixel.
    """
    c, f, d, taps = sizes.channels, sizes.reduced, sizes.hidden, sizes.groups * prod(sizes.kernel)
    found = []
    for each, wide in product((4, 2, 1), (32, 16, 8)):
        high = each * BLOCK // wide
        pixels = ceil_div((high + 2 * sizes.reach[0]) * (wide + 2 * sizes.reach[1]), BLOCK)
        turns = ceil_div(pixels, max(2, 16 // c))
        step = ceil_div(pixels, turns)
        plane = turns * step * BLOCK
        memory = (d * sizes.weights + 2 * c * plane + 2 * (f + c)) * sizes.itemsize + plane
        if each <= max(1, sizes.widest * 4 // sizes.itemsize) and memory <= SHARED:
            work = (2 * each + 1) * (d + taps) * (c + f) + turns * (2 * step + 1) * d * 2 * c
            found.append((work * ceil_div(height, high) * ceil_div(width, wide), high, wide, step))
    return min(found)[1:] if found and c <= 8 and f <= 64 else (0, 0, 0)


def forward(
    x: Array, parameters: Sequence[Array], moments: Sequence[Array], eps: Eps, relu: bool,
    g: Geometry, out: Array,
) -> None:  # fmt: skip
    """Evaluation: the moments of all norms are given."""
    sizes = Sizes.of(x, parameters, g)
    high, wide, step = evaluation(sizes, *g.size)
    if not high:
        reference.forward(x, parameters, moments, eps, relu, g, out)
        return
    macros = sizes.macros(x, row=1) | {
        "TILE_H": high, "TILE_W": wide, "STEP": step, "RELU": int(relu),
        "VECTOR_F": min(4, cuda.vector(sizes.reduced, parameters[8])),
    }  # fmt: skip
    tiles = len(x) * ceil_div(g.size[0], high) * ceil_div(g.size[1], wide)
    launch("involution_block/evaluate", macros, tiles * BLOCK, x, *parameters, *moments, out, *eps,
           *g.size)  # fmt: skip


def train(
    x: Array, parameters: Sequence[Array], eps: Eps, relu: bool, g: Geometry, out: Array, kept: Kept
) -> None:  # fmt: skip
    """Forward with the moments of the batch, which are written to ``kept.stats``."""
    sizes, (batch, plane) = Sizes.of(x, parameters, g), (len(x), prod(g.size))
    c, f = sizes.channels, sizes.reduced
    if not sizes.fit():
        reference.train(x, parameters, eps, relu, g, out, kept)
        return
    macros = sizes.macros(x, row=plane)
    partial, rows = spread(macros, x, batch, plane // int(macros["VECTOR"]))
    between = kept.reduced, kept.shares
    macros = sizes.macros(x, *between, row=plane, widest=sizes.widest)
    per_plane = plane // int(macros["VECTOR"])
    blocks = ceil_div(batch * per_plane, BLOCK)
    moments, full = cuda.workspace(x, 2 * f, blocks), BLOCK * int(macros["VECTOR"])
    launch(
        "involution_block/perceive", macros, batch * per_plane,
        x, partial, *parameters[:6], parameters[10], *between, kept.stats, moments, eps[0], batch,
        per_plane, rows,
    )  # fmt: skip
    launch(
        "involution_block/merge", macros, f * 32, moments, kept.stats, blocks, full, batch, plane
    )
    mean, var = (kept.stats[part] for part in Kept.statistics(c, sizes.hidden, f)[4:6])
    macros = sizes.macros(x, *between, kept.projected, row=g.size[1], widest=sizes.widest)
    macros["VECTOR_F"] = min(4, cuda.vector(f, parameters[8]))
    strips = batch * plane // int(macros["VECTOR"])
    blocks = ceil_div(strips, BLOCK)
    moments, full = cuda.workspace(x, 2 * c, blocks), BLOCK * int(macros["VECTOR"])
    launch(
        "involution_block/involve", macros, strips,
        kept.shares, kept.reduced, *parameters[6:8], mean, var, *parameters[8:10], parameters[11],
        kept.projected, moments, eps[1], batch, *g.size,
    )  # fmt: skip
    macros = sizes.macros(x, kept.projected, out, row=plane) | {"RELU": int(relu)}
    per_plane = plane // int(macros["VECTOR"])
    launch(
        "involution_block/finish", macros, batch * per_plane,
        x, kept.projected, moments, *parameters[12:], out, kept.stats, eps[2], batch, per_plane,
        blocks, full,
    )  # fmt: skip


def gradients(
    grad: Array, x: Array, parameters: Sequence[Array], kept: Kept, eps: Eps, relu: bool,
    g: Geometry, grad_x: Array, grads: Sequence[Array],
) -> None:  # fmt: skip
    """Backward of :func:`train`: ``grads`` are those of the parameters, in their order."""
    sizes, (batch, (height, width)) = Sizes.of(x, parameters, g), (len(x), g.size)
    if not sizes.fit():
        reference.gradients(grad, x, parameters, kept, eps, relu, g, grad_x, grads)
        return
    plane, taps = height * width, sizes.groups * prod(sizes.kernel)
    c, f, d, stats = sizes.channels, sizes.reduced, sizes.hidden, kept.stats
    expand, expand_bias, gamma_1, beta_1, reduce, _, gamma, beta, span, span_bias, project = (
        parameters[:11]
    )
    acted = {"RELU": int(relu)}
    macros = sizes.macros(x, grad, kept.projected, row=plane) | acted
    per_plane = plane // int(macros["VECTOR"])
    rows = ceil_div(batch * per_plane, BLOCK)
    sums = cuda.workspace(x, 2 * c, rows)
    launch(
        "involution_block/grad_sums", macros, batch * per_plane,
        grad, kept.projected, *parameters[12:], stats, sums, eps[2], batch, per_plane,
    )  # fmt: skip

    tile, pixels = sizes.tile(), sizes.pixels()
    macros = sizes.macros(x, row=1) | acted | {
        "TILE_H": tile[0], "TILE_W": tile[1], "VECTOR_F": min(4, cuda.vector(f, span)),
    }  # fmt: skip
    tiles = batch * ceil_div(height, tile[0]) * ceil_div(width, tile[1])
    partial = cuda.workspace(x, tiles, taps * (f + 1) + 2 * f)
    grad_shares, grad_normed = (cuda.stored(x, *a.shape) for a in (kept.shares, kept.reduced))
    launch(
        "involution_block/grad_involve", macros, tiles * BLOCK,
        grad, kept.projected, kept.shares, kept.reduced, span, span_bias, gamma, beta,
        *parameters[12:], stats, sums, grad_shares, grad_normed, *grads[12:], grads[11], partial,
        eps[1], eps[2], batch, height, width, rows,
    )  # fmt: skip
    sums = cuda.workspace(x, 2 * f)
    macros = sizes.macros(x, row=1)
    launch(
        "involution_block/merge_span", macros, ceil_div(taps * (f + 1) + 2 * f, 32) * BLOCK,
        partial, stats, *grads[8:10], *grads[6:8], grads[5], sums, eps[1], tiles,
    )  # fmt: skip

    each = sizes.each
    slices = ceil_div(d, 32 * each)
    blocks = min(max(1, _BLOCKS // slices), ceil_div(batch * plane, WARPS * pixels))
    parts = cuda.stored(x, slices, *x.shape)
    partial = cuda.workspace(x, blocks, d, f + 2 * c + 1)
    launch(
        "involution_block/grad_perceive", macros | {"EACH": each, "PIXELS": pixels},
        slices * blocks * BLOCK,
        x, kept.reduced, grad_normed, grad_shares, expand, expand_bias, gamma_1, beta_1, reduce,
        project, gamma, stats, sums, parts, partial, eps[0], eps[1], batch, plane, blocks,
    )  # fmt: skip
    more = cuda.workspace(x, 2, d)
    launch(
        "involution_block/merge_hidden", macros, d * BLOCK,
        partial, expand, gamma_1, stats, *grads[:5], grads[10], more, eps[0], batch,
        plane, blocks,
    )  # fmt: skip
    macros = sizes.macros(x, grad, parts, grad_x, row=plane) | {"SLICES": slices}
    per_plane = plane // int(macros["VECTOR"])
    launch(
        "spread/grad_x", macros, batch * per_plane,
        grad, x, parts, expand, stats, more, grad_x, batch, per_plane,
    )  # fmt: skip


def running(
    stats: Array, old: Sequence[Sequence[Array]], momenta: Sequence[float], unbiased: float,
    new: Sequence[Sequence[Array]],
) -> None:  # fmt: skip
    """One launch for all three norms."""
    hidden, reduced, channels = (len(arrays[0]) for arrays in old)
    macros = cuda.element(stats.dtype) | {
        "CHANNELS": channels, "HIDDEN": hidden, "REDUCED": reduced, "GROUPS": 1, "VECTOR": 1,
        "KERNEL_H": 1, "KERNEL_W": 1, "DILATION_H": 1, "DILATION_W": 1,
    }  # fmt: skip
    arrays = *chain(*old), *chain(*new)
    launch("involution_block/running", macros, max(hidden, reduced, channels), stats, *arrays,
           *map(float, momenta), float(unbiased))  # fmt: skip
