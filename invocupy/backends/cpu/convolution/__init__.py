"""Convolution on the CPU: matrix products with the patches, which are never stored.

Outputs are split into *tiles* of NR vectors of positions, counted across all images, so that small
images fill vectors as well. The inputs of a tile under some taps and channels, its *terms*, are
copied into first-level cache, zero outside the image, and multiplied there by micro-kernels
(:mod:`invocupy.backends.cpu.contract`). The gradient of x is the same product with the weights
transposed; with a stride, positions of x are grouped by index modulo the stride: each group uses
some of the taps, with stride 1.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.access import Record
from invocupy.backends.cpu.contract import ADD, COLUMNS, DOUBLES, MR, NR, STORE, ZERO, dot, multiply
from invocupy.backends.cpu.convolution import depthwise, tiles
from invocupy.backends.cpu.convolution.tiles import MARK, TERM, TERMS, Block, take
from invocupy.backends.cpu.order import order_of, packed
from invocupy.backends.cpu.pointwise import PARTS
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import VECTOR_BYTES, up
from invocupy.backends.windows import Window
from invocupy.geometry import Shape

Tap = tuple[int, int, int]  # row and column where the position (0, 0) sees it, place in the weights

_TASKS = 16  # into which a product is cut at least
_CHUNK = 8  # tiles in a task at most
# of the gradient of the weights
_HEIGHT = 144  # rows in a task
_BLOCK = 72  # terms that are multiplied with them at a time
_TOGETHER = 4  # such blocks of terms in a task
_CACHE = 1 << 18  # bytes of both that are worked on at a time: a part of L2


def forward(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> None:
    """One product for all of ``out``."""
    if _is_depthwise(x, weight):
        depthwise.forward(x, weight, bias, window, out)
        return
    taps = _taps(weight.shape[2:], window)
    _multiply(x, weight, bias, False, taps, window[0], out, (0, 0), (1, 1))


def grad_x(grad: Array, weight: Array, window: Window, out: Array) -> None:
    """A product for each group of positions, with the taps that reach it."""
    if _is_depthwise(out, weight):
        depthwise.grad_x(grad, weight, window, out)
        return
    size, (steps, pads, dilations) = weight.shape[2:], window
    height, width = out.shape[2:]
    for first in product(range(min(steps[0], height)), range(min(steps[1], width))):
        down, across = (
            [(k, (a + p - k * d) // s) for k in range(n) if (a + p - k * d) % s == 0]
            for a, s, p, d, n in zip(first, steps, pads, dilations, size, strict=True)
        )
        taps = [(i, j, u * size[1] + v) for u, i in down for v, j in across]
        if taps:
            _multiply(grad, weight, None, True, taps, (1, 1), out, first, steps)
        else:
            out[:, :, first[0] :: steps[0], first[1] :: steps[1]] = 0


def grad_weight(
    grad: Array, x: Array, window: Window, out: Array, grad_bias: Array | None
) -> None:  # fmt: skip
    """Sums over positions, a chunk of tiles at a time: a part of them for some rows and terms."""
    if _is_depthwise(x, out):
        depthwise.grad_weight(grad, x, window, out, grad_bias)
        return
    channels, positions, taps = out.shape[1], grad.shape[2:], _taps(out.shape[2:], window)
    groups = x.shape[1] // channels
    rows = len(out) // groups
    blocks, places, widest, columns = _blocks(channels, len(taps), _BLOCK, True, COLUMNS)
    height, width = up(_even(rows, _HEIGHT), MR), up(widest, COLUMNS)
    columns = up(columns, COLUMNS)
    number = _tiles(len(x), positions, x.itemsize)
    chunk = min(max(_CACHE // ((height + width) * TERM), 1), number)
    bands, strips = -(-rows // height), -(-len(blocks) // _TOGETHER)
    parts = min(max(PARTS // (groups * bands * strips), 1), -(-number // chunk))
    sums = np.zeros((parts, groups, bands * height, columns), np.float64)
    V, bits = VECTOR_BYTES // x.itemsize, 8 * x.itemsize
    launch(
        tiles.grad_weight(bits), groups * bands * strips * parts, grad.size * columns // 16,
        (height + width) * (chunk * TERM + 64) + TERMS * MARK,
        tiles.GradWeight(
            _view(grad, [(0, 0, 0)], positions, (1, 1)), _view(x, taps, positions, window[0]),
            blocks, len(blocks), sums, dot(MR, COLUMNS, NR, DOUBLES, V, bits), groups, columns,
            number, chunk, parts, height, width, strips,
        ),
    )  # fmt: skip
    total = sums.sum(axis=0)[:, :rows]
    out.reshape(groups, rows, -1)[...] = total[..., places]
    if grad_bias is not None:
        grad_bias[...] = total[..., places[-1] + 1].ravel()


def _is_depthwise(x: Array, weight: Array) -> bool:
    return bool(weight.shape[1] == 1 and x.shape[1] == len(weight))


def _multiply(
    x: Array, weight: Array, bias: Array | None, transposed: bool, taps: list[Tap], steps: Shape,
    out: Array, first: Shape, out_steps: Shape,
) -> None:  # fmt: skip
    """Every ``out_steps``-th position of ``out`` from ``first`` on, which sees x by ``steps``."""
    channels, area = weight.shape[1], weight.shape[2] * weight.shape[3]
    groups = (out if transposed else x).shape[1] // channels
    sides = (len(weight) // groups, channels * area), (channels, area)
    (rows, row_step), (channels, step) = sides[::-1] if transposed else sides
    height, width = out.shape[2:]
    positions = (
        len(range(first[0], height, out_steps[0])),
        len(range(first[1], width, out_steps[1])),
    )
    numbers = tuple(k for _, _, k in taps)
    group = row_step, weight.size // groups, rows
    blocks, in_order = _order(
        channels, step, numbers, rows, x.itemsize, groups, group, bias is not None
    )
    matrix, order = packed(in_order, weight, bias), in_order.values
    V, bits = VECTOR_BYTES // x.itemsize, 8 * x.itemsize
    number = _tiles(len(x), positions, x.itemsize)
    chunk = max(min(number * groups // _TASKS, _CHUNK), 1)
    chunks = -(-number // chunk)
    # few chunks: their rows are shared out as well
    shares = min(order.blocks, -(-_TASKS // (groups * chunks)))
    launch(
        tiles.forward(bits), groups * chunks * shares,
        len(x) * positions[0] * positions[1] * matrix.size // 16,
        (TERMS + 1 + rows) * TERM + TERMS * MARK,
        tiles.Forward(
            _view(x, taps, positions, steps), blocks, len(blocks), matrix, out,
            multiply(MR, NR, ZERO, STORE, 0, V, bits),
            multiply(MR, NR, ZERO, ADD, 0, V, bits), groups,
            rows, order.width + order.bias, height * width, first[0] * width + first[1],
            out_steps[0] * width, out_steps[1], number, chunk, shares,
        ),
    )  # fmt: skip


@lru_cache(maxsize=512)
def _order(
    channels: int, step: int, taps: tuple[int, ...], rows: int, size: int, groups: int,
    steps: tuple[int, int, int], biased: bool,
) -> tuple[Array, Record]:  # fmt: skip
    """Blocks of terms, and the order of the weights: ``step`` elements from channel to channel."""
    blocks, places, *_ = _blocks(channels, len(taps), TERMS, biased, 1)
    columns = np.empty(len(places), np.int64)
    columns[places] = np.add.outer(np.arange(channels) * step, taps).ravel()
    return blocks, order_of(np.arange(rows), columns, size, groups, steps, int(biased))


def _taps(size: tuple[int, ...], window: Window) -> list[Tap]:
    _, (top, left), (down, across) = window
    numbered = enumerate(product(range(size[0]), range(size[1])))
    return [(u * down - top, v * across - left, k) for k, (u, v) in numbered]


def _tiles(images: int, positions: tuple[int, ...], itemsize: int) -> int:
    return -(-images * positions[0] * positions[1] // (TERM // itemsize))


def _view(x: Array, taps: list[Tap], positions: tuple[int, ...], steps: Shape) -> Record:
    """What :class:`.tiles.View` says of x, whose rows end where the table of taps does."""
    (V, bits), s, one = (VECTOR_BYTES // x.itemsize, 8 * x.itemsize), steps[1], int(len(taps) == 1)
    table = [
        (row, column, -(column // s), -((column - x.shape[3]) // s)) for row, column, _ in taps
    ]
    code = (take(s, keep, one, V, bits) for keep in (0, 1))
    sizes = *x.shape, *positions, *steps, *code
    return Record(tiles.View(x, np.array(table, np.int64), *sizes))


@lru_cache(maxsize=512)
def _blocks(
    channels: int, taps: int, most: int, ones: bool, step: int
) -> tuple[Array, Array, int, int]:
    """Terms in blocks of at most ``most``, where each of (C, taps) stands, the most, and all.

    A block is some channels through some taps, all if they fit, channel by channel; blocks begin at
    multiples of ``step``. With ``ones`` the last one has one more term, that of the bias.
    """
    each = _even(taps, most)
    share = _even(channels, max(most // each, 1))
    blocks, places, start = [], np.empty((channels, taps), np.int64), 0
    for c in range(0, channels, share):
        for t in range(0, taps, each):
            part = places[c : c + share, t : t + each]
            part[...] = np.arange(start, start + part.size).reshape(part.shape)
            blocks.append(Block(t, part.shape[1], c, len(part), start, part.size))
            start = up(start + part.size, step)
    blocks[-1] = blocks[-1]._replace(terms=blocks[-1].terms + ones)
    most = max(b.terms for b in blocks)
    return np.array(blocks, np.int64), places.ravel(), most, blocks[-1].start + blocks[-1].terms


def _even(number: int, most: int) -> int:
    """The size of the fewest equal parts of at most ``most``."""
    return -(-number // -(-number // most))
