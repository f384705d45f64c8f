"""The sum of involutions on the CPU: bands of an image stay in cache from z to the result.

All arrays of a band are packed as planes (:mod:`invocupy.backends.cpu.planes`). grad is zero
between the rows, so nothing that is computed there gets into a gradient.

The kernel of one tile fits in L1: a matrix product generates it, and it is used at once. The
gradient of x needs it at shifted positions, so backward keeps it for a band; its planes are then
overwritten by the gradient of the kernel.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache, lru_cache
from math import prod
from typing import Any

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.access import Record, pointer, read
from invocupy.backends.cpu.contract import (
    COLUMNS,
    LANES,
    MR,
    NEAR,
    NR,
    add_lanes,
    contract,
    dot,
    product,
    taps,
)
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import clear
from invocupy.backends.cpu.order import COLUMN, NONE, order, packer
from invocupy.backends.cpu.planes import TILE, Planes, planes, planes_of
from invocupy.backends.cpu.pointwise import PARTS
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import VECTOR_BYTES, call, up
from invocupy.backends.far import bounded
from invocupy.geometry import Geometry

_LEFT = 6 if COLUMNS == 4 else 4  # rows of the left side of a sum over pixels, in registers
_TAPS = 4  # whose gradient is in registers at a time

_Forward = namedtuple("_Forward", "planes order x z scale shift weight bias offset out")
_Backward = namedtuple(
    "_Backward",
    "planes order transposed grad x z scale shift weight bias grad_x grad_z sums parts",
)


@bounded
def forward(
    x: Array, z: Array, scale: Array, shift: Array, weight: Array, bias: Array, offset: Array,
    g: Geometry, out: Array,
) -> None:  # fmt: skip
    """The kernel tile by tile, each used up at once."""
    b, record = _planes(g, x.itemsize, z.shape[1])
    scratch = (g.channels + b.each + b.feature_rows) * b.plane + b.kernel_rows * TILE + 128
    in_order = order(*weight.shape, x.itemsize, COLUMN)
    call = _Forward(record, in_order, x, z, scale, shift, weight, bias, offset, out)
    scratch += in_order.values.bytes
    launch(_forward(8 * x.itemsize), b.units, _work(b, g), scratch, call)


@bounded
def backward(
    grad: Array, x: Array, z: Array, scale: Array, shift: Array, weight: Array, bias: Array,
    g: Geometry, grad_x: Array, grad_z: Array, grad_weight: Array, grad_bias: Array,
) -> None:  # fmt: skip
    """The kernel again, and its gradient, a band at a time."""
    b, record = _planes(g, x.itemsize, z.shape[1])
    parts = min(PARTS, b.units)
    sums = np.empty((parts, b.taps, b.features + 1), np.float64)
    orders = (
        order(*weight.shape, x.itemsize, COLUMN),
        order(*weight.shape, x.itemsize, transposed=True),
    )
    call = _Backward(
        record, *orders, grad, x, z, scale, shift, weight, bias, grad_x, grad_z, sums, parts
    )  # fmt: skip
    number = 2 * g.channels + b.each + b.feature_rows + b.span_rows
    number += max(b.kernel_rows, b.gradient_rows)
    scratch = sum(o.values.bytes for o in orders) + number * b.plane + b.sums + 128
    launch(_backward(8 * x.itemsize), parts, 3 * _work(b, g), scratch, call)
    total = sums.sum(axis=0)
    grad_weight[...], grad_bias[...] = total[:, :-1], total[:, -1]


@lru_cache(maxsize=512)
def _planes(g: Geometry, size: int, features: int) -> tuple[Planes, Record]:
    tap_number, V, bits = g.groups * prod(g.kernel), VECTOR_BYTES // size, 8 * size
    gradient_rows, feature_rows = up(tap_number, _LEFT), up(features + 1, COLUMNS)
    rows, span_rows = max(up(tap_number, MR), gradient_rows), up(features, MR)
    number = 2 * g.channels + g.channels_per_group + feature_rows + rows + span_rows
    b = planes_of(g, size, number, features, feature_rows)
    at_once = min(tap_number, _TAPS)
    b = b._replace(
        gradient_rows=gradient_rows, span_rows=span_rows,
        sums=gradient_rows * feature_rows * VECTOR_BYTES, taps_at_once=at_once,
        dot=dot(_LEFT, COLUMNS, NR, LANES, V, bits),
        back=taps(1, b.at_once, NR, 0, 1, NEAR, V, bits),
        correlate=contract(at_once, 1, NR, 0, 1, 0, NEAR, V, bits),
        places=np.arange(tap_number) * b.plane,
    )  # fmt: skip
    return b, Record(b)


def _work(b: Planes, g: Geometry) -> int:
    return g.batch * b.pixels * b.taps * (b.features + b.each) // 8


@cache
def _rectify(bits: int) -> Any:
    size = bits // 8
    zero = np.dtype(f"f{size}").type(0)

    @jit
    def rectify(to, scale, shift, b):
        """``max(0, scale * plane + shift)``."""
        scales, shifts = pointer(scale, bits), pointer(shift, bits)
        for f in range(b.features):
            held, c, d = pointer(to + f * b.plane, bits), scales[f], shifts[f]
            for i in range(b.plane // size):
                value = c * held[i] + d
                held[i] = zero if value <= zero else value

    return rectify


@cache
def _forward(bits: int) -> Any:
    lay, involve, unpack = planes(bits)
    rectify, affine, pack, size = _rectify(bits), product(bits, 1), packer(bits), bits // 8

    @jit
    def body(task, turn, scratch, words):
        c = read(words, _Forward)
        b = read(c.planes, Planes)
        channels, image_size = b.groups * b.each, b.pixels * size
        taps = pack(turn, c.order, c.weight, c.bias, NONE, scratch)
        seen = taps + b.kernel_rows * TILE
        features = seen + channels * b.plane
        result = features + b.feature_rows * b.plane
        offsets, inner = pointer(c.offset, bits), b.lead + b.halo * b.row
        n, band = divmod(task, b.number)
        first = b.height * band // b.number
        rows = b.height * (band + 1) // b.number - first
        lay(seen, c.x + n * channels * image_size, channels, first, rows, b)
        lay(features, c.z + n * b.features * image_size, b.features, first, rows, b)
        rectify(features, c.scale, c.shift, b)
        for at in range(inner, inner + rows * b.row, TILE):
            affine(b.affine, b.features, scratch, b.kernel_rows, features + at, b.plane, taps, TILE)
            involve(b.gather, b.taps, seen + at, b.steps, taps, TILE, result + at, c.planes)
        for k in range(b.each):
            out = c.out + (n * b.each + k) * image_size
            unpack(out, result + k * b.plane, first, rows, offsets[k], b)

    return body


@cache
def _backward(bits: int) -> Any:
    lay, involve, unpack = planes(bits)
    rectify, linear, affine = _rectify(bits), product(bits, 0), product(bits, 1)
    lanes_of, pack, size, vector = add_lanes(bits), packer(bits), bits // 8, VECTOR_BYTES
    zero = np.dtype(f"f{size}").type(0)

    @jit
    def prepare(words, b, weight, at, n, first, rows):
        """All arrays of a band as planes, ones for the bias, and the kernel wherever it is seen."""
        c = read(words, _Backward)
        channels, image_size = b.groups * b.each, b.pixels * size
        grads = at + channels * b.plane
        features = grads + b.each * b.plane
        taps = features + b.feature_rows * b.plane
        lay(at, c.x + n * channels * image_size, channels, first, rows, b)
        lay(grads, c.grad + n * b.each * image_size, b.each, first, rows, b)
        lay(features, c.z + n * b.features * image_size, b.features, first, rows, b)
        rectify(features, c.scale, c.shift, b)
        ones = pointer(features + b.features * b.plane, bits)
        for i in range(b.plane // size):
            ones[i] = zero + 1
        clear(features + (b.features + 1) * b.plane, taps)
        for at in range(0, b.plane - TILE + 1, TILE):
            affine(
                b.affine, b.features, weight, b.kernel_rows, features + at, b.plane, taps + at,
                b.plane,
            )  # fmt: skip

    @jit
    def unpack_features(out, source, features, rows, b):
        """Of the rows of a band, where the features are not zero."""
        for f in range(b.features):
            for r in range(rows):
                held = pointer(out + (f * b.pixels + r * b.width) * size, bits)
                given = pointer(source + f * b.plane + r * b.row, bits)
                passed = pointer(features + f * b.plane + r * b.row, bits)
                for i in range(b.width):
                    held[i] = given[i] if passed[i] > zero else zero

    @jit
    def body(part, turn, scratch, words):
        c = read(words, _Backward)
        b = read(c.planes, Planes)
        channels, each_tap, image_size = b.groups * b.each, b.taps // b.groups, b.pixels * size
        transposed = pack(turn, c.order, c.weight, c.bias, NONE, scratch)
        sums = pack(turn, c.transposed, c.weight, 0, NONE, transposed)
        seen = sums + b.sums
        grads = seen + channels * b.plane
        features = grads + b.each * b.plane
        taps = features + b.feature_rows * b.plane  # the kernel, then its gradient
        result = taps + max(b.kernel_rows, b.gradient_rows) * b.plane
        returned = result + channels * b.plane
        inner = b.lead + b.halo * b.row
        clear(sums, sums + b.sums)
        for unit in range(b.units * part // c.parts, b.units * (part + 1) // c.parts):
            n, band = divmod(unit, b.number)
            first = b.height * band // b.number
            rows = b.height * (band + 1) // b.number - first
            end = inner + rows * b.row
            prepare(words, b, scratch, seen, n, first, rows)
            for j in range(b.groups):
                plane, kernel = j * b.each * b.plane, taps + j * each_tap * b.plane
                for at in range(inner, end, TILE):
                    involve(
                        b.back, each_tap, grads + at, b.back_steps, kernel + at, b.plane,
                        result + plane + at, c.planes,
                    )  # fmt: skip
            for k in range(channels):
                out = c.grad_x + (n * channels + k) * image_size
                unpack(out, result + k * b.plane, first, rows, zero, b)
            # the gradient of the kernel, in the place of the kernel
            for at in range(inner, end, TILE):
                for tap in range(0, b.taps, b.taps_at_once):
                    t = 8 * min(tap, b.taps - b.taps_at_once)
                    call(b.correlate, (
                        b.each, grads + at, b.plane, vector, seen + at, b.plane, vector,
                        b.steps + t, b.places + t, 8, taps + at, 0, vector, 0, vector // size,
                    ))  # fmt: skip
                linear(
                    b.multiply, b.taps, transposed, b.span_rows, taps + at, b.plane,
                    returned + at, b.plane,
                )  # fmt: skip
            out = c.grad_z + (n * b.features * b.pixels + first * b.width) * size
            unpack_features(out, returned + inner, features + inner, rows, b)
            tiles = -(-(end - inner) // TILE)
            for t in range(b.taps):  # the next band's
                clear(taps + t * b.plane + end, taps + t * b.plane + inner + tiles * TILE)
            for t in range(0, b.taps, _LEFT):
                call(b.dot, (
                    tiles, taps + t * b.plane + inner, b.plane, TILE, features + inner, b.plane,
                    TILE, sums + t * b.feature_rows * vector, b.feature_rows * vector,
                    b.feature_rows // COLUMNS,
                ))  # fmt: skip
        wide = b.features + 1
        out = c.sums + part * b.taps * wide * 8
        lanes_of(sums, vector // size, b.taps, wide, b.feature_rows, out, wide)

    return body
