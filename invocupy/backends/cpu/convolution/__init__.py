"""Convolution on the CPU: matrix products whose one side, the patches, is never stored.

Outputs are cut into *tiles* of VECTORS vectors of positions, counted through all images, so that
small images fill vectors as well. What a tile sees through some taps and channels, its *terms*, is
copied into first-level cache, zero outside the image, and multiplied there by micro-kernels
(:mod:`invocupy.backends.cpu.products`). The gradient of x is the same product with the weights
transposed; with a stride, positions of x are taken by what remains when they are divided by it:
each such class meets some of the taps, with stride 1.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from invocupy.backends.cpu.access import Record
from invocupy.backends.cpu.convolution import depthwise as cpu_depthwise
from invocupy.backends.cpu.convolution import tiles as cpu_tiles
from invocupy.backends.cpu.convolution.blocks import correlate, take
from invocupy.backends.cpu.convolution.tiles import COUNT, MARK, START, TERM, TERMS, View
from invocupy.backends.cpu.pointwise import PARTS
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.products import BYTES, COLUMNS, ROWS, VECTORS
from invocupy.backends.windows import Pair

_TASKS = 16  # into which a product is cut at least
_CHUNK = 8  # tiles in a task at most
# of the gradient of the weights
_HEIGHT = 144  # rows in a task
_BLOCK = 72  # terms that are multiplied with them at a time
_TOGETHER = 4  # such blocks of terms in a task
_CACHE = 1 << 18  # bytes of both that are worked on at a time: a part of L2


def forward(x: Any, weight: Any, bias: Any, window: Any, out: Any) -> None:
    """One product for all of ``out``."""
    if weight.shape[1] == 1 and x.shape[1] == len(weight):
        cpu_depthwise.forward(x, weight, bias, window, out)
        return
    channels, size = weight.shape[1], weight.shape[2:]
    taps = size[0] * size[1]
    sizes = x.shape[1] // channels, len(weight) * channels // x.shape[1], channels
    steps = channels * taps, taps
    seen = [(*place, k) for k, place in enumerate(_taps(size, window))]
    _multiply(x, weight, bias, sizes, steps, seen, window[0], out, (0, 0), (1, 1))


def grad_x(grad: Any, weight: Any, window: Any, out: Any) -> None:
    """A product for each class of positions with the taps that reach it."""
    if weight.shape[1] == 1 and out.shape[1] == len(weight):
        cpu_depthwise.grad_x(grad, weight, window, out)
        return
    channels, size = weight.shape[1], weight.shape[2:]
    taps = size[0] * size[1]
    sizes = out.shape[1] // channels, channels, len(weight) * channels // out.shape[1]
    steps, pads, dilations = window
    height, width = out.shape[2:]
    for first in product(range(min(steps[0], height)), range(min(steps[1], width))):
        down, across = (
            [(k, (a + p - k * d) // s) for k in range(n) if (a + p - k * d) % s == 0]
            for a, s, p, d, n in zip(first, steps, pads, dilations, size, strict=True)
        )
        seen = [(i, j, u * size[1] + v) for u, i in down for v, j in across]
        if seen:
            turned = taps, channels * taps
            _multiply(grad, weight, None, sizes, turned, seen, (1, 1), out, first, steps)
        else:
            out[:, :, first[0] :: steps[0], first[1] :: steps[1]] = 0


def grad_weight(grad: Any, x: Any, window: Any, out: Any, grad_bias: Any) -> None:
    """Sums over positions, a chunk of tiles at a time: a part of them for some rows and terms."""
    if out.shape[1] == 1 and x.shape[1] == len(out):
        cpu_depthwise.grad_weight(grad, x, window, out, grad_bias)
        return
    channels, size, positions = out.shape[1], out.shape[2:], grad.shape[2:]
    groups = x.shape[1] // channels
    rows, taps = grad.shape[1] // groups, [(*place, 0) for place in _taps(size, window)]
    blocks, places = _blocks(channels, len(taps), _BLOCK, True, COLUMNS)
    height = _up(_even(rows, _HEIGHT), ROWS)
    width = _up(int(blocks[:, COUNT].max()), COLUMNS)
    tiles = _tiles(len(x), positions, x.itemsize)
    chunk = min(max(_CACHE // ((height + width) * TERM), 1), tiles)
    units = -(-tiles // chunk)
    bands, strips = -(-rows // height), -(-len(blocks) // _TOGETHER)
    parts = min(max(PARTS // (groups * bands * strips), 1), units)
    columns = int(blocks[-1, START]) + _up(int(blocks[-1, COUNT]), COLUMNS)
    sums = np.zeros((parts, groups, bands * height, columns), np.float64)
    V, bits = BYTES // x.itemsize, 8 * x.itemsize
    launch(
        cpu_tiles.grad_weight(bits), groups * bands * strips * parts, grad.size * columns // 16,
        (height + width) * (chunk * TERM + 64) + TERMS * MARK,
        cpu_tiles.GradWeight(
            _view(grad, positions, (1, 1), 1), _columns([(0, 0, 0)], positions[1], (1, 1)),
            _view(x, positions, window[0], len(taps)), _columns(taps, x.shape[3], window[0]),
            blocks, len(blocks), grad, x, sums, correlate(ROWS, COLUMNS, VECTORS, V, bits), groups,
            rows, channels, columns, tiles, chunk, units, parts, bands, height, width, strips,
        ),
    )  # fmt: skip
    total = sums.sum(axis=0)[:, :rows]
    out.reshape(groups, rows, -1)[...] = total[..., places]
    if grad_bias is not None:
        grad_bias[...] = total[..., places[-1] + 1].ravel()


def _multiply(
    x: Any, weight: Any, bias: Any, sizes: tuple[int, int, int], strides: Pair, taps: Any,
    steps: Pair, out: Any, first: Pair, out_steps: Pair,
) -> None:  # fmt: skip
    """Every ``out_steps``-th position of ``out`` from ``first`` on, which sees x by ``steps``.

    ``sizes`` are groups, rows and channels of a product, ``strides`` those of rows and channels in
    ``weight``; a tap is a row, a column and its place in ``weight``.
    """
    groups, rows, channels = sizes
    height, width = out.shape[2:]
    positions = (
        len(range(first[0], height, out_steps[0])),
        len(range(first[1], width, out_steps[1])),
    )
    blocks, _ = _blocks(channels, len(taps), TERMS, bias is not None, 1)
    table = _columns(taps, x.shape[3], steps)
    terms, bits = int(blocks[-1, START] + blocks[-1, COUNT]), 8 * x.itemsize
    matrix = np.empty((groups, -(-rows // ROWS), terms, ROWS), x.dtype)
    launch(
        cpu_tiles.order(bits), groups * matrix.shape[1], matrix.size, 0,
        cpu_tiles.Order(
            table, blocks, len(blocks), weight, bias, matrix, rows, terms, weight.size // groups,
            *strides,
        ),
    )  # fmt: skip
    tiles = _tiles(len(x), positions, x.itemsize)
    chunk = max(min(tiles * groups // _TASKS, _CHUNK), 1)
    chunks = -(-tiles // chunk)
    # few chunks: their rows are shared out as well
    shares = min(matrix.shape[1], -(-_TASKS // (groups * chunks)))
    launch(
        cpu_tiles.forward(bits), groups * chunks * shares,
        len(x) * positions[0] * positions[1] * matrix.size // 16,
        (TERMS + 1 + rows) * TERM + TERMS * MARK,
        cpu_tiles.Forward(
            _view(x, positions, steps, len(taps)), table, blocks, len(blocks), x, matrix, out,
            groups, channels, terms, rows, height * width, first[0] * width + first[1],
            out_steps[0] * width, out_steps[1], tiles, chunk, chunks, shares,
        ),
    )  # fmt: skip


def _taps(size: Pair, window: Any) -> list[Pair]:
    """Rows and columns where the position (0, 0) sees each tap."""
    _, (top, left), (down, across) = window
    return [(u * down - top, v * across - left) for u in range(size[0]) for v in range(size[1])]


def _tiles(images: int, positions: Pair, itemsize: int) -> int:
    return -(-images * positions[0] * positions[1] // (TERM // itemsize))


def _view(x: Any, positions: Pair, steps: Pair, taps: int) -> Record:
    V, bits = BYTES // x.itemsize, 8 * x.itemsize
    code, code_to_keep = (take(steps[1], keep, int(taps == 1), V, bits) for keep in (0, 1))
    images, channels, height, width = x.shape
    return Record(View(images, channels, height, width, *positions, *steps, code, code_to_keep))


def _columns(taps: Any, width: int, steps: Pair) -> Any:
    """The table of taps, given as (row, column, place in the weights)."""
    s = steps[1]
    return np.array([(y, x, k, -(x // s), -((x - width) // s)) for y, x, k in taps], np.int64)


def _blocks(channels: int, taps: int, most: int, ones: bool, step: int) -> tuple[Any, Any]:
    """Terms in blocks of at most ``most``: a table, and where each of (C, taps) stands.

    A block is some channels through some taps, all if they fit, channel by channel; blocks begin at
    multiples of ``step``. With ``ones`` the last one has one more term, that of the bias.
    """
    each = _even(taps, most)
    share = _even(channels, max(most // each, 1))
    rows, places, start = [], np.empty((channels, taps), np.int64), 0
    for c in range(0, channels, share):
        for t in range(0, taps, each):
            part = places[c : c + share, t : t + each]
            part[...] = np.arange(start, start + part.size).reshape(part.shape)
            rows.append((t, t + part.shape[1], c, len(part), start, part.size))
            start = _up(start + part.size, step)
    rows[-1] = *rows[-1][:-1], rows[-1][-1] + ones
    return np.array(rows, np.int64), places.ravel()


def _even(number: int, most: int) -> int:
    """The size of the fewest equal parts of at most ``most``."""
    return -(-number // -(-number // most))


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
