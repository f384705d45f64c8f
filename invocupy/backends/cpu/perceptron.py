"""The perceptron on the CPU: a few tiles of pixels pass all layers, forward and back, in cache.

What is packed for a tile is a list of *rows*, one for each channel, of NR vectors of pixels;
every product is one of weights with rows, or of rows with rows summed over pixels (see
:mod:`invocupy.backends.cpu.pointwise`). In sums over pixels a row of ones stands for the bias.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from invocupy.backends.cpu.access import Record, plus, pointer, read
from invocupy.backends.cpu.contract import (
    ADD,
    BIAS,
    COLUMNS,
    LANES,
    MR,
    NR,
    RELU,
    STORE,
    ZERO,
    add_lanes,
    dot,
    multiply,
    product,
)
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import copying, filling
from invocupy.backends.cpu.order import COLUMN, NONE, order, packer
from invocupy.backends.cpu.pointwise import PARTS
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import VECTOR_BYTES, call, up
from invocupy.backends.signatures import Perceptron

_TILES = 4  # that are in work at a time
_ROW = NR * VECTOR_BYTES


class _Sizes(NamedTuple):
    """Channels; and their rows in a tile, filled up to whole blocks of products."""

    batch: int
    pixels: int
    inputs: int
    hidden: int  # a multiple of MR in each group
    outputs: int
    each: int  # results of a group
    groups: int
    input_rows: int  # with the row of ones
    hidden_rows: int  # with the row of ones
    output_rows: int
    each_rows: int
    group_rows: int  # of the hidden channels of a group
    back_rows: int
    first: Record  # the order of weights
    dense: Record
    grouped: Record
    dense_back: Record  # transposed
    grouped_back: Record
    first_back: Record
    multiply: int  # addresses of micro-kernels
    add: int
    affine: int
    rectified: int
    dot: int


_Covariance = namedtuple("_Covariance", "x mean parts channels pixels")
_Forward = namedtuple("_Forward", "sizes x first offset dense bias grouped out out_grouped")
_Backward = namedtuple(
    "_Backward",
    "sizes grad grad_grouped x first offset dense grouped grad_x sums_dense sums_grouped "
    "sums_first units parts",
)


def covariance(x: Any, mean: Any, out: Any) -> None:
    """Sums in float64, image by image."""
    batch, channels, pixels = x.shape
    parts = np.empty((batch, channels, channels), np.float64)
    center = np.asarray(mean, np.float64)
    work = x.size * channels
    launch(
        _covariance(8 * x.itemsize), batch, work, 0, _Covariance(x, center, parts, channels, pixels)
    )
    out[...] = parts.sum(axis=0) / (batch * pixels)


def forward(x: Any, weights: Perceptron, groups: int, out: Any, out_grouped: Any) -> None:
    """One tile after another."""
    sizes = _sizes(x, weights, groups)
    z: _Sizes = sizes.values
    rows = z.inputs + z.hidden + z.output_rows + groups * z.each_rows
    launch(
        _forward(8 * x.itemsize), z.batch * -(-z.pixels // _tile(x)), x.size * z.hidden,
        rows * _ROW + _bytes(z.first, z.dense, z.grouped),
        _Forward(sizes, x, *weights, out, out_grouped),
    )  # fmt: skip


def backward(
    grad: Any, grad_grouped: Any, x: Any, weights: Perceptron, groups: int,
    grad_x: Any, grad_weights: Perceptron,
) -> None:  # fmt: skip
    """The hidden layer again, its gradient, and all products with both, a few tiles at a time."""
    sizes = _sizes(x, weights, groups)
    z: _Sizes = sizes.values
    units = z.batch * -(-z.pixels // (_TILES * _tile(x)))
    parts = min(PARTS, units)
    sums_dense = np.empty((parts, z.outputs, z.hidden + 1), np.float64)
    sums_grouped = np.empty((parts, z.each, z.hidden), np.float64)
    sums_first = np.empty((parts, z.hidden, z.inputs + 1), np.float64)
    rows = z.input_rows + 2 * z.hidden_rows + z.output_rows + groups * z.each_rows
    vectors = (
        z.output_rows * z.hidden_rows + groups * z.each_rows * z.group_rows
        + z.hidden * z.input_rows
    )  # fmt: skip
    in_order = _bytes(z.first, z.dense_back, z.grouped_back, z.first_back)
    launch(
        _backward(8 * x.itemsize), parts, 4 * x.size * z.hidden,
        in_order + vectors * VECTOR_BYTES + (rows * _TILES + z.back_rows) * _ROW,
        _Backward(
            sizes, grad, grad_grouped, x, *weights[:3], weights.grouped, grad_x, sums_dense,
            sums_grouped, sums_first, units, parts,
        ),
    )  # fmt: skip
    keep = _kept(len(weights.first), z)
    total = sums_dense.sum(axis=0)
    grad_weights.dense[...], grad_weights.bias[...] = total[:, keep], total[:, -1]
    grad_weights.grouped[...] = sums_grouped.sum(axis=0)[:, keep]
    total = sums_first.sum(axis=0)
    grad_weights.first[...], grad_weights.offset[...] = total[keep, :-1], total[keep, -1]


def _kept(hidden: int, z: _Sizes) -> Any:
    """Which of the filled-up hidden channels are real."""
    if hidden == z.hidden:
        return slice(hidden)
    return np.arange(z.hidden).reshape(z.groups, -1)[:, : hidden // z.groups].ravel()


def _sizes(x: Any, weights: Perceptron, groups: int) -> Record:
    return _sizes_of(*x.shape, *weights.dense.shape, len(weights.grouped), groups, x.itemsize)


@lru_cache(maxsize=512)
def _sizes_of(
    batch: int, inputs: int, pixels: int, outputs: int, real: int, each: int, groups: int,
    size: int,
) -> Record:  # fmt: skip
    V, depth = VECTOR_BYTES // size, up(real // groups, MR)
    hidden = groups * depth
    rows, columns = ((axis, real // groups, depth) for axis in (0, 1))
    ways = (ZERO, STORE), (ZERO, ADD), (BIAS, STORE), (BIAS, RELU)
    return Record(_Sizes(
        batch, pixels, inputs, hidden, outputs, each, groups,
        up(inputs + 1, COLUMNS), up(hidden + 1, COLUMNS), up(outputs, MR), up(each, MR),
        up(real // groups, COLUMNS), up(inputs, MR),
        order(real, inputs, size, COLUMN, filled=rows),
        order(outputs, real, size, COLUMN, filled=columns),
        order(each, real, size, groups=groups, filled=columns),
        order(outputs, real, size, transposed=True, filled=columns),
        order(each, real, size, groups=groups, transposed=True, filled=columns),
        order(real, inputs, size, transposed=True, filled=rows),
        *(multiply(MR, NR, *way, 1, V, 8 * size) for way in ways),
        dot(MR, COLUMNS, NR, LANES, V, 8 * size),
    ))  # fmt: skip


def _bytes(*orders: Record) -> int:
    """Of weights in these orders."""
    return sum(in_order.values.bytes for in_order in orders)


def _tile(x: Any) -> int:
    return _ROW // int(x.itemsize)


@cache
def _covariance(bits: int) -> Any:
    @jit
    def body(task, turn, scratch, words):
        x, mean, parts, channels, pixels = read(words, _Covariance)
        mean, parts = pointer(mean, 64), pointer(parts, 64)
        size = bits // 8
        n = task
        for c in range(channels):
            left = pointer(x + (n * channels + c) * pixels * size, bits)
            for d in range(c + 1):
                right = pointer(x + (n * channels + d) * pixels * size, bits)
                total = 0.0
                for i in range(pixels):
                    product = (np.float64(left[i]) - mean[c]) * (np.float64(right[i]) - mean[d])
                    total = plus(total, product)
                parts[(n * channels + c) * channels + d] = total
                parts[(n * channels + d) * channels + c] = total

    return body


@cache
def _forward(bits: int) -> Any:
    copy, linear, affine = copying(bits), product(bits, 0), product(bits, 1)
    pack, size, row = packer(bits), bits // 8, _ROW
    tile = _ROW // size

    @jit
    def body(task, turn, scratch, words):
        c = read(words, _Forward)
        z = read(c.sizes, _Sizes)
        first = scratch
        dense = pack(turn, z.first, c.first, c.offset, NONE, first)
        grouped = pack(turn, z.dense, c.dense, c.bias, NONE, dense)
        inputs = pack(turn, z.grouped, c.grouped, 0, NONE, grouped)
        hidden = inputs + z.inputs * row
        outputs = hidden + z.hidden * row
        split = outputs + z.output_rows * row
        tiles, depth, plane = -(-z.pixels // tile), z.hidden // z.groups, z.pixels * size
        n, start = task // tiles, task % tiles * tile
        count, pixel = min(tile, z.pixels - start), start * size
        copy(inputs, row, c.x + n * z.inputs * plane + pixel, plane, z.inputs, count, tile)
        affine(z.rectified, z.inputs, first, z.hidden, inputs, row, hidden, row)
        affine(z.affine, z.hidden, dense, z.output_rows, hidden, row, outputs, row)
        copy(c.out + n * z.outputs * plane + pixel, plane, outputs, row, z.outputs, count, count)
        out = c.out_grouped + n * z.groups * z.each * plane + pixel
        for g in range(z.groups):
            weights = grouped + g * z.each_rows * depth * size
            linear(
                z.multiply, depth, weights, z.each_rows, hidden + g * depth * row, row, split, row
            )
            copy(out + g * z.each * plane, plane, split, row, z.each, count, count)

    return body


@cache
def _backward(bits: int) -> Any:
    copy, linear, affine = copying(bits), product(bits, 0), product(bits, 1)
    lanes_of, size, row, vector = add_lanes(bits), bits // 8, _ROW, VECTOR_BYTES
    pack, fill = packer(bits), filling(bits)
    V, tile, zero = vector // size, _ROW // size, np.dtype(f"f{size}").type(0)

    @jit
    def layout(z, at):
        """Of a tile: where the hidden layer, both results, its gradient, and the next tile are."""
        hidden = at + z.input_rows * row
        outputs = hidden + z.hidden_rows * row
        split = outputs + z.output_rows * row
        grads = split + z.groups * z.each_rows * row
        return hidden, outputs, split, grads, grads + z.hidden_rows * row

    @jit
    def correlate(code, tiles, step, left, rows, right, columns, sums):
        """``sums[r, c] += left[r] * right[c]``, lane by lane, over tiles ``step`` bytes apart."""
        for r in range(0, rows, MR):
            call(code, (
                tiles, left + r * row, row, step, right, row, step, sums + r * columns * vector,
                columns * vector, columns // COLUMNS,
            ))  # fmt: skip

    @jit
    def through(words, z, weights, at, place, count, returned):
        """All layers of one tile, forward and back; ``place`` is its image and first pixel."""
        first, dense, grouped, back = weights
        c = read(words, _Backward)
        n, pixel = place
        depth, plane, pixel = z.hidden // z.groups, z.pixels * size, pixel * size
        hidden, outputs, split, grads, _ = layout(z, at)
        copy(at, row, c.x + n * z.inputs * plane + pixel, plane, z.inputs, count, tile)
        grad = c.grad + n * z.outputs * plane + pixel
        copy(outputs, row, grad, plane, z.outputs, count, tile)
        affine(z.rectified, z.inputs, first, z.hidden, at, row, hidden, row)
        linear(z.multiply, z.outputs, dense, z.hidden, outputs, row, grads, row)
        for g in range(z.groups):
            part = split + g * z.each_rows * row
            grad = c.grad_grouped + (n * z.groups + g) * z.each * plane + pixel
            copy(part, row, grad, plane, z.each, count, tile)
            factors = grouped + g * z.each * depth * size
            linear(z.add, z.each, factors, depth, part, row, grads + g * depth * row, row)
        seen, grad_hidden = pointer(hidden, bits), pointer(grads, bits)
        for k in range(z.hidden * tile):
            grad_hidden[k] = grad_hidden[k] if seen[k] > zero else zero
        linear(z.multiply, z.hidden, back, z.back_rows, grads, row, returned, row)
        out = c.grad_x + n * z.inputs * plane + pixel
        copy(out, plane, returned, row, z.inputs, count, count)

    @jit
    def body(part, turn, scratch, words):
        c = read(words, _Backward)
        z = read(c.sizes, _Sizes)
        depth, group_size = z.hidden // z.groups, z.each_rows * z.group_rows * vector
        first = scratch
        dense = pack(turn, z.first, c.first, c.offset, NONE, first)
        grouped = pack(turn, z.dense_back, c.dense, 0, NONE, dense)
        back = pack(turn, z.grouped_back, c.grouped, 0, NONE, grouped)
        sums_dense = pack(turn, z.first_back, c.first, 0, NONE, back)
        weights = first, dense, grouped, back
        sums_grouped = sums_dense + z.output_rows * z.hidden_rows * vector
        sums_first = sums_grouped + z.groups * group_size
        returned = sums_first + z.hidden * z.input_rows * vector
        inputs = returned + z.back_rows * row
        hidden, outputs, split, grads, end = layout(z, inputs)
        step = end - inputs
        for i in range(_TILES if turn == 0 else 0):
            fill(inputs + i * step + z.inputs * row, tile, zero + 1)
            fill(hidden + i * step + z.hidden * row, tile, zero + 1)
        fill(sums_dense, (returned - sums_dense) // size, zero)
        chunks = -(-z.pixels // (_TILES * tile))
        for unit in range(c.units * part // c.parts, c.units * (part + 1) // c.parts):
            n, start = unit // chunks, unit % chunks * (_TILES * tile)
            tiles = min(_TILES, -(-(z.pixels - start) // tile))
            for i in range(tiles):
                pixel = start + i * tile
                count = min(tile, z.pixels - pixel)
                through(words, z, weights, inputs + i * step, (n, pixel), count, returned)
            correlate(z.dot, tiles, step, outputs, z.output_rows, hidden, z.hidden_rows, sums_dense)
            for g in range(z.groups):
                correlate(
                    z.dot, tiles, step, split + g * z.each_rows * row, z.each_rows,
                    hidden + g * depth * row, z.group_rows, sums_grouped + g * group_size,
                )  # fmt: skip
            correlate(z.dot, tiles, step, grads, z.hidden, inputs, z.input_rows, sums_first)
        wide = z.hidden + 1
        out = c.sums_dense + part * z.outputs * wide * 8
        lanes_of(sums_dense, V, z.outputs, wide, z.hidden_rows, out, wide)
        for g in range(z.groups):
            out = c.sums_grouped + (part * z.each * z.hidden + g * depth) * 8
            sums = sums_grouped + g * group_size
            lanes_of(sums, V, z.each, depth, z.group_rows, out, z.hidden)
        wide = z.inputs + 1
        out = c.sums_first + part * z.hidden * wide * 8
        lanes_of(sums_first, V, z.hidden, wide, z.input_rows, out, wide)

    return body
