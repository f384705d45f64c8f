"""The sum of involutions on the CPU: bands of an image stay in cache from z to the result.

All arrays of a band are packed as planes (:mod:`invocupy.backends.cpu.planes`). grad is zero
between the rows, so nothing that is computed there gets into a gradient.

The kernel of one tile fits in L1: a matrix product makes it, and it is used up at once. For the
gradient of x it is needed at shifted positions, so backward keeps it for a band; its planes then
take the gradient of the kernel.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from invocupy.backends.cpu.access import Record, pointer, read
from invocupy.backends.cpu.contract import (
    BIAS,
    COLUMNS,
    LANES,
    MR,
    NEAR,
    NR,
    STORE,
    ZERO,
    add_lanes,
    contract,
    dot,
    multiply,
    product,
    taps,
)
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import clear, packed
from invocupy.backends.cpu.planes import Bands, bands_of, planes, steps_of, up
from invocupy.backends.cpu.pointwise import PARTS
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import VECTOR_BYTES, call
from invocupy.backends.far import bounded
from invocupy.geometry import Geometry

_TILE = NR * VECTOR_BYTES
_LEFT = 6 if COLUMNS == 4 else 4  # rows of the left side of a sum over pixels, in registers
_TAPS = 4  # whose gradient is in registers at a time
_CHANNELS = 4  # of a group at a time


class _Sizes(NamedTuple):
    """Channels, and the rows of planes that they take."""

    groups: int
    each: int  # channels of a group
    features: int
    taps: int  # of all groups
    kernel_rows: int  # filled up to whole blocks of products
    gradient_rows: int
    feature_rows: int
    span_rows: int
    units: int  # bands of all images
    sums: int  # bytes of the sums of products
    at_once: int  # channels of a group in one micro-kernel
    taps_at_once: int  # in the gradient of the kernel
    multiply: int  # addresses of micro-kernels
    affine: int
    dot: int
    forth: int
    back: int
    correlate: int


class _Job(NamedTuple):
    """All of a call that does not depend on the arrays' contents."""

    sizes: _Sizes
    tables: tuple[
        Any, ...
    ]  # bands and sizes, micro-kernels, steps of the taps forth and back, their planes
    forward: int  # bytes of scratch
    backward: int
    work: int


_Forward = namedtuple(
    "_Forward", "bands sizes shifts back places x z scale shift weight offset out"
)
_Backward = namedtuple(
    "_Backward",
    "bands sizes shifts back places grad x z scale shift weight turned grad_x grad_z sums parts",
)


@bounded
def forward(
    x: Any, z: Any, scale: Any, shift: Any, weight: Any, bias: Any, offset: Any, g: Geometry,
    out: Any,
) -> None:  # fmt: skip
    """The kernel tile by tile, each used up at once."""
    job = _job(g, x.itemsize, z.shape[1])
    launch(
        _forward(8 * x.itemsize), job.sizes.units, job.work, job.forward,
        _Forward(*job.tables, x, z, scale, shift, packed(weight, bias), offset, out),
    )  # fmt: skip


@bounded
def backward(
    grad: Any, x: Any, z: Any, scale: Any, shift: Any, weight: Any, bias: Any, g: Geometry,
    grad_x: Any, grad_z: Any, grad_weight: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """The kernel again, and its gradient, a band at a time."""
    job = _job(g, x.itemsize, z.shape[1])
    s = job.sizes
    parts = min(PARTS, s.units)
    sums = np.empty((parts, s.taps, s.features + 1), np.float64)
    launch(
        _backward(8 * x.itemsize), parts, 3 * job.work, job.backward,
        _Backward(
            *job.tables, grad, x, z, scale, shift, packed(weight, bias),
            packed(weight, turned=True), grad_x, grad_z, sums, parts,
        ),
    )  # fmt: skip
    total = sums.sum(axis=0)
    grad_weight[...], grad_bias[...] = total[:, :-1], total[:, -1]


@lru_cache(maxsize=512)
def _job(g: Geometry, size: int, features: int) -> _Job:
    tap_number, each = g.groups * g.kernel_h * g.kernel_w, g.channels_per_group
    kernel_rows, gradient_rows = up(tap_number, MR), up(tap_number, _LEFT)
    feature_rows, span_rows = up(features + 1, COLUMNS), up(features, MR)
    planes = 2 * g.channels + each + feature_rows + max(kernel_rows, gradient_rows)
    planes += span_rows
    bands = bands_of(g, size, planes)
    sums = gradient_rows * feature_rows * VECTOR_BYTES
    V, bits = VECTOR_BYTES // size, 8 * size
    sizes = _Sizes(
        g.groups, each, features, tap_number, kernel_rows, gradient_rows, feature_rows, span_rows,
        g.batch * bands.number, sums, min(each, _CHANNELS), min(tap_number, _TAPS),
        multiply(MR, NR, ZERO, STORE, V, bits), multiply(MR, NR, BIAS, STORE, V, bits),
        dot(_LEFT, COLUMNS, NR, LANES, V, bits),
        *(taps(1, min(each, _CHANNELS), NR, 0, back, NEAR, V, bits) for back in (0, 1)),
        contract(min(tap_number, _TAPS), 1, NR, 0, 1, 0, NEAR, V, bits),
    )  # fmt: skip
    shifts, groups = steps_of(g, size, bands), np.arange(g.groups)[:, None] * each * bands.plane
    tables = (
        Record(bands), Record(sizes),
        (groups + shifts).ravel(), -shifts, np.arange(tap_number) * bands.plane,
    )  # fmt: skip
    ahead = (g.channels + each + feature_rows) * bands.plane + kernel_rows * _TILE
    work = g.batch * g.height * g.width * tap_number * (features + each) // 8
    return _Job(sizes, tables, ahead + 128, planes * bands.plane + sums + 128, work)


@cache
def _rectify(bits: int) -> Any:
    size = bits // 8
    zero = np.dtype(f"f{size}").type(0)

    @jit
    def rectify(to, scale, shift, features, b):
        """``max(0, scale * plane + shift)``."""
        scales, shifts = pointer(scale, bits), pointer(shift, bits)
        for f in range(features):
            held, c, d = pointer(to + f * b.plane, bits), scales[f], shifts[f]
            for i in range(b.plane // size):
                value = c * held[i] + d
                held[i] = zero if value <= zero else value

    return rectify


@cache
def _forward(bits: int) -> Any:
    lay, unpack = planes(bits)
    rectify, affine = _rectify(bits), product(bits, 1)
    size = bits // 8
    V = VECTOR_BYTES // size
    tile, vector = _TILE, VECTOR_BYTES

    @jit
    def body(task, turn, scratch, words):
        (
            bands, sizes, shifts, _, _, x, z_, scale, shift, weight, offset, out,
        ) = read(words, _Forward)  # fmt: skip
        b, z = read(bands, Bands), read(sizes, _Sizes)
        P = z.at_once
        taps = scratch
        seen = taps + z.kernel_rows * tile
        features = seen + z.groups * z.each * b.plane
        result = features + z.feature_rows * b.plane
        offsets = pointer(offset, bits)
        inner = b.lead + b.halo * b.row
        n, band = divmod(task, b.number)
        first = b.height * band // b.number
        rows = b.height * (band + 1) // b.number - first
        channels = z.groups * z.each
        lay(seen, x + n * channels * b.pixels * size, channels, first, rows, b)
        lay(features, z_ + n * z.features * b.pixels * size, z.features, first, rows, b)
        rectify(features, scale, shift, z.features, b)
        for at in range(inner, inner + rows * b.row, tile):
            affine(z.affine, z.features, weight, z.kernel_rows, features + at, b.plane, taps, tile)
            for p in range(0, z.each, P):
                c = min(p, z.each - P)
                call(z.forth, (
                    seen + c * b.plane + at, b.plane, vector, shifts, 8, z.taps,
                    taps, tile, 0, result + c * b.plane + at, b.plane, vector, V,
                ))  # fmt: skip
        for o in range(z.each):
            unpack(
                out + n * z.each * b.pixels * size, result + o * b.plane, o, first, rows,
                offsets[o], b,
            )  # fmt: skip

    return body


@cache
def _backward(bits: int) -> Any:
    lay, unpack = planes(bits)
    rectify = _rectify(bits)
    linear, affine, size = product(bits, 0), product(bits, 1), bits // 8
    zero = np.dtype(f"f{size}").type(0)
    lanes_of = add_lanes(bits)
    V = VECTOR_BYTES // size
    tile, vector = _TILE, VECTOR_BYTES

    @jit
    def body(task, turn, scratch, words):
        (
            bands, sizes, shifts, back, places, grad, x, z_, scale, shift, weight, turned,
            grad_x, grad_z, sums_of, parts,
        ) = read(words, _Backward)  # fmt: skip
        b, z = read(bands, Bands), read(sizes, _Sizes)
        P, S = z.at_once, z.taps_at_once
        channels, each_tap = z.groups * z.each, z.taps // z.groups
        sums = scratch
        seen = sums + z.sums
        grads = seen + channels * b.plane
        features = grads + z.each * b.plane
        taps = features + z.feature_rows * b.plane  # the kernel, then its gradient
        result = taps + max(z.kernel_rows, z.gradient_rows) * b.plane
        returned = result + channels * b.plane
        inner = b.lead + b.halo * b.row
        part = task
        clear(sums, sums + z.sums)
        for unit in range(z.units * part // parts, z.units * (part + 1) // parts):
            n, band = divmod(unit, b.number)
            first = b.height * band // b.number
            rows = b.height * (band + 1) // b.number - first
            image = n * b.pixels * size
            end = inner + rows * b.row
            lay(seen, x + image * channels, channels, first, rows, b)
            lay(grads, grad + image * z.each, z.each, first, rows, b)
            lay(features, z_ + image * z.features, z.features, first, rows, b)
            rectify(features, scale, shift, z.features, b)
            ones = pointer(features + z.features * b.plane, bits)
            for i in range(b.plane // size):
                ones[i] = zero + 1
            clear(features + (z.features + 1) * b.plane, taps)
            # the kernel, also where only shifted positions look
            for at in range(0, b.plane - tile + 1, tile):
                affine(
                    z.affine, z.features, weight, z.kernel_rows, features + at, b.plane, taps + at,
                    b.plane,
                )  # fmt: skip
            for j in range(z.groups):
                for at in range(inner, end, tile):
                    for p in range(0, z.each, P):
                        c = min(p, z.each - P)
                        call(z.back, (
                            grads + c * b.plane + at, b.plane, vector, back, 8,
                            each_tap, taps + j * each_tap * b.plane + at, b.plane, 0,
                            result + (j * z.each + c) * b.plane + at, b.plane, vector, V,
                        ))  # fmt: skip
            for c in range(channels):
                unpack(grad_x + image * channels, result + c * b.plane, c, first, rows, zero, b)
            # the gradient of the kernel, in the place of the kernel
            for at in range(inner, end, tile):
                for tap in range(0, z.taps, S):
                    t = min(tap, z.taps - S)
                    call(z.correlate, (
                        z.each, grads + at, b.plane, vector, seen + at, b.plane, vector,
                        shifts + 8 * t, places + 8 * t, 8, taps + at,
                        0, vector, 0, V,
                    ))  # fmt: skip
                linear(
                    z.multiply, z.taps, turned, z.span_rows, taps + at, b.plane, returned + at,
                    b.plane,
                )  # fmt: skip
            for f in range(z.features):
                start = b.lead + b.halo * b.row + f * b.plane
                for r in range(rows):
                    place = (f * b.pixels + (first + r) * b.width) * size
                    held = pointer(grad_z + image * z.features + place, bits)
                    given = pointer(returned + start + r * b.row, bits)
                    passed = pointer(features + start + r * b.row, bits)
                    for i in range(b.width):
                        held[i] = given[i] if passed[i] > zero else zero
            tiles = -(-(end - inner) // tile)
            for t in range(z.taps):  # the next band's
                clear(taps + t * b.plane + end, taps + t * b.plane + inner + tiles * tile)
            for t in range(0, z.taps, _LEFT):
                call(z.dot, (
                    tiles, taps + t * b.plane + inner, b.plane, tile, features + inner, b.plane,
                    tile, sums + t * z.feature_rows * vector, z.feature_rows * vector,
                    z.feature_rows // COLUMNS,
                ))  # fmt: skip
        wide = z.features + 1
        lanes_of(sums, z.taps, wide, z.feature_rows, sums_of + part * z.taps * wide * 8, wide)

    return body
