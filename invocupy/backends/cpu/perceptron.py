"""The perceptron on the CPU: a few tiles of pixels go through all layers, forth and back, in cache.

What is packed for a tile is a list of *rows*, one for each channel, of NR vectors of pixels;
every product is one of weights with rows, or of rows with rows summed over pixels (see
:mod:`invocupy.backends.cpu.pointwise`). In sums over pixels a row of ones stands for the bias.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from invocupy.backends.contract import Perceptron
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
from invocupy.backends.cpu.move import packed
from invocupy.backends.cpu.pointwise import PARTS
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import VECTOR_BYTES, call

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
    multiply: int  # addresses of micro-kernels
    add: int
    affine: int
    rectified: int
    dot: int


_Covariance = namedtuple("_Covariance", "x mean parts channels pixels")
_Forward = namedtuple("_Forward", "sizes x first dense grouped out out_grouped")
_Backward = namedtuple(
    "_Backward",
    "sizes grad grad_grouped x first dense grouped back grad_x parts_dense parts_grouped "
    "parts_first units parts",
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
    first, offset, dense, bias, grouped = _whole(weights, groups)
    z = _sizes(*x.shape, len(first), len(dense), len(grouped), groups, x.itemsize)
    rows = z.inputs + z.hidden + z.output_rows + groups * z.each_rows
    launch(
        _forward(8 * x.itemsize), z.batch * -(-z.pixels // _tile(x)), x.size * z.hidden,
        rows * _ROW,
        _Forward(
            Record(z), x, packed(first, offset), packed(dense, bias),
            packed(grouped, groups=groups), out, out_grouped,
        ),
    )  # fmt: skip


def backward(
    grad: Any, grad_grouped: Any, x: Any, weights: Perceptron, groups: int,
    grad_x: Any, grad_weights: Perceptron,
) -> None:  # fmt: skip
    """The hidden layer again, its gradient, and all products with both, a few tiles at a time."""
    first, offset, dense, _, grouped = _whole(weights, groups)
    z = _sizes(*x.shape, len(first), len(dense), len(grouped), groups, x.itemsize)
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
    launch(
        _backward(8 * x.itemsize), parts, 4 * x.size * z.hidden,
        vectors * VECTOR_BYTES + (rows * _TILES + z.back_rows) * _ROW,
        _Backward(
            Record(z), grad, grad_grouped, x, packed(first, offset), packed(dense, turned=True),
            packed(grouped, groups=groups, turned=True), packed(first, turned=True),
            grad_x, sums_dense, sums_grouped, sums_first, units, parts,
        ),
    )  # fmt: skip
    keep = _kept(len(weights.first), z)
    total = sums_dense.sum(axis=0)
    grad_weights.dense[...], grad_weights.bias[...] = total[:, keep], total[:, -1]
    grad_weights.grouped[...] = sums_grouped.sum(axis=0)[:, keep]
    total = sums_first.sum(axis=0)
    grad_weights.first[...], grad_weights.offset[...] = total[keep, :-1], total[keep, -1]


def _whole(weights: Perceptron, groups: int) -> Perceptron:
    """The weights with channels that stay zero, so that each group fills whole blocks."""
    first, offset, dense, bias, grouped = weights
    size = len(first) // groups
    more = -size % MR
    if not more:
        return weights

    def fill(array: Any, axis: int) -> Any:
        array = np.moveaxis(array, axis, 0)
        split = array.reshape(groups, size, *array.shape[1:])
        wide = np.pad(split, [(0, 0), (0, more)] + [(0, 0)] * (array.ndim - 1))
        whole = wide.reshape(groups * (size + more), *array.shape[1:])
        return np.ascontiguousarray(np.moveaxis(whole, 0, axis))

    return Perceptron(fill(first, 0), fill(offset, 0), fill(dense, 1), bias, fill(grouped, 1))


def _kept(hidden: int, z: _Sizes) -> Any:
    """Which of the filled-up hidden channels are real."""
    if hidden == z.hidden:
        return slice(hidden)
    return np.arange(z.hidden).reshape(z.groups, -1)[:, : hidden // z.groups].ravel()


@lru_cache(maxsize=512)
def _sizes(
    batch: int, inputs: int, pixels: int, hidden: int, outputs: int, each: int, groups: int,
    size: int,
) -> _Sizes:  # fmt: skip
    def up(rows: int, step: int) -> int:
        return -(-rows // step) * step

    V = VECTOR_BYTES // size
    ways = (ZERO, STORE), (ZERO, ADD), (BIAS, STORE), (BIAS, RELU)
    code = [multiply(MR, NR, *way, V, 8 * size) for way in ways]
    return _Sizes(
        batch, pixels, inputs, hidden, outputs, each, groups,
        up(inputs + 1, COLUMNS), up(hidden + 1, COLUMNS), up(outputs, MR), up(each, MR),
        up(hidden // groups, COLUMNS), up(inputs, MR),
        *code, dot(MR, COLUMNS, NR, LANES, V, 8 * size),
    )  # fmt: skip


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


class _Rows(NamedTuple):
    """The compiled operations on rows; addresses come in, see the module's docstring."""

    fill: Any
    pack: Any
    unpack: Any
    correlate: Any


@cache
def _rows(bits: int) -> _Rows:
    size = bits // 8
    vector, row, tile = VECTOR_BYTES, _ROW, _ROW // size

    @jit
    def fill(target, count, value):
        held = pointer(target, bits)
        for i in range(count):
            held[i] = value

    @jit
    def pack(target, source, count):
        """The first ``count`` pixels of a row, then zeros."""
        held, seen = pointer(target, bits), pointer(source, bits)
        for i in range(count):
            held[i] = seen[i]
        for i in range(count, tile):
            held[i] = 0

    @jit
    def unpack(target, source, count):
        held, seen = pointer(target, bits), pointer(source, bits)
        for i in range(count):
            held[i] = seen[i]

    @jit
    def correlate(code, tiles, step, left, rows, right, columns, sums):
        """``sums[r, c] += left[r] * right[c]``, lane by lane, over tiles ``step`` bytes apart."""
        for r in range(0, rows, MR):
            call(code, (
                tiles, left + r * row, row, step, right, row, step, sums + r * columns * vector,
                columns * vector, columns // COLUMNS,
            ))  # fmt: skip

    return _Rows(fill, pack, unpack, correlate)


@cache
def _forward(bits: int) -> Any:
    _, pack, unpack, _ = _rows(bits)
    linear, affine = product(bits, 0), product(bits, 1)
    size, row = bits // 8, _ROW
    tile = _ROW // size

    @jit
    def body(task, turn, scratch, words):
        sizes, x, first, dense, grouped, out, out_grouped = read(words, _Forward)
        z = read(sizes, _Sizes)
        inputs = scratch
        hidden = inputs + z.inputs * row
        outputs = hidden + z.hidden * row
        split = outputs + z.output_rows * row
        tiles, depth = -(-z.pixels // tile), z.hidden // z.groups
        n, start = task // tiles, task % tiles * tile
        count = min(tile, z.pixels - start)
        for c in range(z.inputs):
            pack(inputs + c * row, x + ((n * z.inputs + c) * z.pixels + start) * size, count)
        affine(z.rectified, z.inputs, first, z.hidden, inputs, row, hidden, row)
        affine(z.affine, z.hidden, dense, z.output_rows, hidden, row, outputs, row)
        for g in range(z.groups):
            linear(
                z.multiply, depth, grouped + g * z.each_rows * depth * size, z.each_rows,
                hidden + g * depth * row, row, split + g * z.each_rows * row, row,
            )  # fmt: skip
        for f in range(z.outputs):
            place = out + ((n * z.outputs + f) * z.pixels + start) * size
            unpack(place, outputs + f * row, count)
        for o in range(z.groups * z.each):
            g, f = divmod(o, z.each)
            place = out_grouped + ((n * z.groups * z.each + o) * z.pixels + start) * size
            unpack(place, split + (g * z.each_rows + f) * row, count)

    return body


@cache
def _backward(bits: int) -> Any:
    fill, pack, unpack, correlate = _rows(bits)
    linear, affine = product(bits, 0), product(bits, 1)
    lanes_of = add_lanes(bits)
    size, row, vector = bits // 8, _ROW, VECTOR_BYTES
    tile = _ROW // size
    zero = np.dtype(f"f{size}").type(0)

    @jit
    def body(task, turn, scratch, words):
        (
            sizes, grad, grad_grouped, x, first, dense, grouped, back, grad_x, parts_dense,
            parts_grouped, parts_first, units, parts,
        ) = read(words, _Backward)  # fmt: skip
        z = read(sizes, _Sizes)
        sums_dense = scratch
        sums_grouped = sums_dense + z.output_rows * z.hidden_rows * vector
        sums_first = sums_grouped + z.groups * z.each_rows * z.group_rows * vector
        returned = sums_first + z.hidden * z.input_rows * vector
        inputs = returned + z.back_rows * row
        hidden = inputs + z.input_rows * row
        outputs = hidden + z.hidden_rows * row
        split = outputs + z.output_rows * row
        grads = split + z.groups * z.each_rows * row
        step = (grads - inputs) + z.hidden_rows * row
        for i in range(_TILES if turn == 0 else 0):
            fill(inputs + i * step + z.inputs * row, tile, zero + 1)
            fill(hidden + i * step + z.hidden * row, tile, zero + 1)
        chunks, depth = -(-z.pixels // (_TILES * tile)), z.hidden // z.groups
        part = task
        fill(sums_dense, (returned - sums_dense) // size, zero)
        for unit in range(units * part // parts, units * (part + 1) // parts):
            n, start = unit // chunks, unit % chunks * (_TILES * tile)
            tiles = min(_TILES, -(-(z.pixels - start) // tile))
            for i in range(tiles):
                at, count = i * step, min(tile, z.pixels - start - i * tile)
                pixel = start + i * tile
                for c in range(z.inputs):
                    place = x + ((n * z.inputs + c) * z.pixels + pixel) * size
                    pack(inputs + at + c * row, place, count)
                for f in range(z.outputs):
                    place = grad + ((n * z.outputs + f) * z.pixels + pixel) * size
                    pack(outputs + at + f * row, place, count)
                for o in range(z.groups * z.each):
                    g, f = divmod(o, z.each)
                    place = (n * z.groups * z.each + o) * z.pixels + pixel
                    pack(
                        split + at + (g * z.each_rows + f) * row,
                        grad_grouped + place * size, count,
                    )  # fmt: skip
                affine(z.rectified, z.inputs, first, z.hidden, inputs + at, row, hidden + at, row)
                linear(z.multiply, z.outputs, dense, z.hidden, outputs + at, row, grads + at, row)
                for g in range(z.groups):
                    linear(
                z.add, z.each, grouped + g * z.each * depth * size, depth,
                        split + at + g * z.each_rows * row, row,
                        grads + at + g * depth * row, row,
                    )  # fmt: skip
                h, grad_h = pointer(hidden + at, bits), pointer(grads + at, bits)
                for k in range(z.hidden * tile):
                    grad_h[k] = grad_h[k] if h[k] > zero else zero
                linear(z.multiply, z.hidden, back, z.back_rows, grads + at, row, returned, row)
                for c in range(z.inputs):
                    place = grad_x + ((n * z.inputs + c) * z.pixels + pixel) * size
                    unpack(place, returned + c * row, count)
            correlate(z.dot, tiles, step, outputs, z.output_rows, hidden, z.hidden_rows, sums_dense)
            for g in range(z.groups):
                correlate(
                    z.dot, tiles, step, split + g * z.each_rows * row, z.each_rows,
                    hidden + g * depth * row, z.group_rows,
                    sums_grouped + g * z.each_rows * z.group_rows * vector,
                )  # fmt: skip
            correlate(z.dot, tiles, step, grads, z.hidden, inputs, z.input_rows, sums_first)
        wide = z.hidden + 1
        lanes_of(
            sums_dense, z.outputs, wide, z.hidden_rows,
            parts_dense + part * z.outputs * wide * 8, wide,
        )  # fmt: skip
        for g in range(z.groups):
            lanes_of(
                sums_grouped + g * z.each_rows * z.group_rows * vector, z.each, depth,
                z.group_rows, parts_grouped + (part * z.each * z.hidden + g * depth) * 8,
                z.hidden,
            )  # fmt: skip
        lanes_of(
            sums_first, z.hidden, z.inputs + 1, z.input_rows,
            parts_first + part * z.hidden * (z.inputs + 1) * 8, z.inputs + 1,
        )  # fmt: skip

    return body
