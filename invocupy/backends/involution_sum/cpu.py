"""The sum of involutions on the CPU: bands of an image stay in cache from z to the result.

All arrays of a band are packed as *planes* of one layout: rows end to end, with as many zeros
between two rows as the kernel looks beyond the edge, and rows of zeros above and below. There a
shift in two dimensions is a shift in one, so everything is a loop over *tiles* of VECTORS vectors
of positions, those between the rows included, and no tile has a border. grad is zero between the
rows, so nothing that is computed there gets into a gradient.

The kernel of one tile fits in L1: a matrix product makes it, and it is used up at once. For the
gradient of x it is needed at shifted positions, so backward keeps it for a band; its planes then
take the gradient of the kernel.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from invocupy.backends.involution.cpu_blocks import contract_block, gather_block, pack_rows
from invocupy.backends.involution.cpu_pack import clear
from invocupy.backends.jit import jit, next_task, pointer
from invocupy.backends.launch import Fixed, launch
from invocupy.backends.pointwise.cpu import PARTS
from invocupy.backends.products import (
    BYTES,
    COLUMNS,
    ROWS,
    VECTORS,
    add_lanes,
    correlate_block,
    multiply_block,
    packed,
)
from invocupy.backends.simd import call
from invocupy.geometry import Geometry

_BUDGET = 512 << 10  # bytes of planes in a band: half of a core's second-level cache
_TILE = VECTORS * BYTES
_LEFT = 6 if COLUMNS == 4 else 4  # rows of the left side of a sum over pixels, in registers
_TAPS = 4  # whose gradient is in registers at a time
_CHANNELS = 4  # of a group at a time


class _Sizes(NamedTuple):
    """Channels, and the layout of a plane in elements; rows and planes in bytes."""

    images: int
    bands: int
    height: int
    width: int
    pixels: int
    groups: int
    each: int  # channels of a group
    features: int
    taps: int  # of all groups
    kernel_rows: int  # filled up to whole blocks of products
    gradient_rows: int
    feature_rows: int
    span_rows: int
    halo: int  # rows seen above and below
    pad: int  # zeros between two rows
    row: int  # bytes from one row to the next
    lead: int  # bytes before the first row of the halo
    plane: int
    units: int  # bands of all images
    sums: int  # bytes of the sums of products
    at_once: int  # channels of a group in one micro-kernel
    taps_at_once: int  # in the gradient of the kernel


class _Job(NamedTuple):
    """All of a call that does not depend on the arrays' contents."""

    sizes: _Sizes
    tables: Fixed
    forward: int  # bytes of scratch
    backward: int
    work: int


def forward(
    x: Any, z: Any, scale: Any, shift: Any, weight: Any, bias: Any, offset: Any, g: Geometry,
    out: Any,
) -> None:  # fmt: skip
    """The kernel tile by tile, each used up at once."""
    job = _job(g, x.itemsize, z.shape[1])
    launch(
        _forward(8 * x.itemsize), job.sizes.units, job.work, job.forward,
        job.tables, x, z, scale, shift, packed(weight, bias), offset, out,
    )  # fmt: skip


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
        job.tables, grad, x, z, scale, shift, packed(weight, bias),
        packed(weight, turned=True), grad_x, grad_z, sums,
    )  # fmt: skip
    total = sums.sum(axis=0)
    grad_weight[...], grad_bias[...] = total[:, :-1], total[:, -1]


@lru_cache(maxsize=512)
def _job(g: Geometry, size: int, features: int) -> _Job:
    taps, each = g.groups * g.kernel_h * g.kernel_w, g.channels_per_group
    row = g.width + g.pad_w
    reach = g.pad_h * row + g.pad_w  # how far the kernel looks, forth and back
    # the first pixel of a band is at the start of a vector
    lead = g.pad_w + -(g.pad_w + g.pad_h * row) % (BYTES // size)
    kernel_rows, gradient_rows = _up(taps, ROWS), _up(taps, _LEFT)
    feature_rows, span_rows = _up(features + 1, COLUMNS), _up(features, ROWS)
    planes = 2 * g.channels + each + feature_rows + max(kernel_rows, gradient_rows)
    planes += span_rows

    def plane(rows: int) -> int:
        bytes_ = (lead + (rows + 2 * g.pad_h) * row + reach) * size + 2 * _TILE
        return (-(-bytes_ // 64) | 1) * 64  # odd: planes do not fall into the same cache sets

    rows = g.height
    while rows > 1 and planes * plane(rows) > _BUDGET:
        rows = -(-rows // 2)
    bands = -(-g.height // rows)
    sums = gradient_rows * feature_rows * BYTES
    sizes = _Sizes(
        g.batch, bands, g.height, g.width, g.height * g.width, g.groups, each, features, taps,
        kernel_rows, gradient_rows, feature_rows, span_rows, g.pad_h, g.pad_w, row * size,
        lead * size, plane(rows), g.batch * bands, sums, min(each, _CHANNELS), min(taps, _TAPS),
    )  # fmt: skip
    shifts = np.array(
        [
            ((u * g.dilation_h - g.pad_h) * row + v * g.dilation_w - g.pad_w) * size
            for u in range(g.kernel_h)
            for v in range(g.kernel_w)
        ],
        np.int64,
    )
    groups = np.arange(g.groups)[:, None] * each * sizes.plane
    V, bits = BYTES // size, 8 * size
    code = (
        gather_block(1, sizes.at_once, VECTORS, 0, V, bits),
        gather_block(1, sizes.at_once, VECTORS, 1, V, bits),
        contract_block(sizes.taps_at_once, 1, VECTORS, 0, 1, 0, 0, V, bits),
    )
    tables = Fixed(
        np.array(sizes, np.int64), np.array(code, np.int64), (groups + shifts).ravel(), -shifts,
        np.arange(taps) * sizes.plane,
    )  # fmt: skip
    ahead = (g.channels + each + feature_rows) * sizes.plane + kernel_rows * _TILE
    work = g.batch * g.height * g.width * taps * (features + each) // 8
    return _Job(sizes, tables, ahead + 128, planes * sizes.plane + sums + 128, work)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


class _Planes(NamedTuple):
    """Compiled operations on planes; addresses come in."""

    lay: Any
    rectify: Any
    unpack: Any
    make: Any


_SIZES = len(_Sizes._fields)
_WORDS = BYTES // 4


@jit
def _unpack_sizes(numbers):
    return _Sizes(*to_fixed_tuple(numbers, _SIZES))


@cache
def _planes(bits: int) -> _Planes:
    size = bits // 8
    zero = np.dtype(f"f{size}").type(0)
    V, R, M = BYTES // size, VECTORS, ROWS

    @jit
    def lay(to, source, channels, first, rows, z):
        """Rows first - halo to first + rows + halo of an image, zeros around them."""
        words = size // 4
        top, bottom = max(first - z.halo, 0), min(first + rows + z.halo, z.height)
        inner = z.lead + (top - first + z.halo) * z.row
        for c in range(channels):
            plane = to + c * z.plane
            clear(plane, plane + inner)
            clear(plane + inner + (bottom - top) * z.row, plane + z.plane)
        pack_rows(
            to + inner, z.plane, z.row, source + top * z.width * size, z.pixels * size,
            z.width * size, channels, bottom - top, z.width * words, -(-z.pad * words // _WORDS),
            _WORDS, 32,
        )  # fmt: skip

    @jit
    def rectify(to, scale, shift, z):
        """``max(0, scale * plane + shift)``, then a plane of ones, then planes of zeros."""
        scales, shifts = pointer(scale, bits), pointer(shift, bits)
        for f in range(z.features):
            held, a, b = pointer(to + f * z.plane, bits), scales[f], shifts[f]
            for i in range(z.plane // size):
                value = a * held[i] + b
                held[i] = zero if value <= zero else value
        ones = pointer(to + z.features * z.plane, bits)
        for i in range(z.plane // size):
            ones[i] = zero + 1
        clear(to + (z.features + 1) * z.plane, to + z.feature_rows * z.plane)

    @jit
    def unpack(out, source, channel, first, rows, offset, z):
        """The pixels of one channel's band, an offset added."""
        start = source + z.lead + z.halo * z.row
        for r in range(rows):
            held = pointer(out + (channel * z.pixels + (first + r) * z.width) * size, bits)
            seen = pointer(start + r * z.row, bits)
            for i in range(z.width):
                held[i] = seen[i] + offset

    @jit
    def make(terms, weight, rows, source, target, pitch, z):
        """``target[r] = weight[r] @ source`` in one tile, ``rows`` in whole blocks."""
        for r in range(0, rows, M):
            multiply_block(
                terms, weight + r * terms * size, M * size, source, z.plane, target + r * pitch,
                pitch, M - 1, V, M, R, 0, V, bits,
            )  # fmt: skip

    return _Planes(lay, rectify, unpack, make)


@cache
def _forward(bits: int) -> Any:
    lay, rectify, unpack, make = _planes(bits)
    size = bits // 8
    V = BYTES // size
    tile, vector = _TILE, BYTES

    @jit
    def kernel(tasks, scratch, counter, tables, x, z_, scale, shift, weight, offset, out):
        numbers, code, shifts, _, _ = tables
        z = _unpack_sizes(numbers)
        P = z.at_once
        taps = scratch
        seen = taps + z.kernel_rows * tile
        features = seen + z.groups * z.each * z.plane
        result = features + z.feature_rows * z.plane
        offsets = pointer(offset, bits)
        inner = z.lead + z.halo * z.row
        while True:
            task = next_task(counter)
            if task >= tasks:
                return
            n, band = divmod(task, z.bands)
            first = z.height * band // z.bands
            rows = z.height * (band + 1) // z.bands - first
            channels = z.groups * z.each
            lay(seen, x + n * channels * z.pixels * size, channels, first, rows, z)
            lay(features, z_ + n * z.features * z.pixels * size, z.features, first, rows, z)
            rectify(features, scale, shift, z)
            for at in range(inner, inner + rows * z.row, tile):
                make(z.features + 1, weight, z.kernel_rows, features + at, taps, tile, z)
                for p in range(0, z.each, P):
                    c = min(p, z.each - P)
                    call(code[0], (
                        seen + c * z.plane + at, z.plane, vector, shifts.ctypes.data, 8, z.taps,
                        taps, tile, result + c * z.plane + at, z.plane, vector, V,
                    ))  # fmt: skip
            for o in range(z.each):
                unpack(
                    out + n * z.each * z.pixels * size, result + o * z.plane, o, first, rows,
                    offsets[o], z,
                )  # fmt: skip

    return kernel


@cache
def _backward(bits: int) -> Any:
    lay, rectify, unpack, make = _planes(bits)
    size = bits // 8
    zero = np.dtype(f"f{size}").type(0)
    lanes_of = add_lanes(bits)
    V, R, A, B = BYTES // size, VECTORS, _LEFT, COLUMNS
    tile, vector = _TILE, BYTES

    @jit
    def kernel(
        tasks, scratch, counter, tables, grad, x, z_, scale, shift, weight, turned, grad_x, grad_z,
        parts,
    ):  # fmt: skip
        numbers, code, shifts, back, places = tables
        z = _unpack_sizes(numbers)
        P, S = z.at_once, z.taps_at_once
        channels, each_tap = z.groups * z.each, z.taps // z.groups
        sums = scratch
        seen = sums + z.sums
        grads = seen + channels * z.plane
        features = grads + z.each * z.plane
        taps = features + z.feature_rows * z.plane  # the kernel, then its gradient
        result = taps + max(z.kernel_rows, z.gradient_rows) * z.plane
        returned = result + channels * z.plane
        inner = z.lead + z.halo * z.row
        while True:
            part = next_task(counter)
            if part >= tasks:
                return
            clear(sums, sums + z.sums)
            for unit in range(z.units * part // tasks, z.units * (part + 1) // tasks):
                n, band = divmod(unit, z.bands)
                first = z.height * band // z.bands
                rows = z.height * (band + 1) // z.bands - first
                image = n * z.pixels * size
                end = inner + rows * z.row
                lay(seen, x + image * channels, channels, first, rows, z)
                lay(grads, grad + image * z.each, z.each, first, rows, z)
                lay(features, z_ + image * z.features, z.features, first, rows, z)
                rectify(features, scale, shift, z)
                # the kernel, also where only shifted positions look
                for at in range(0, z.plane - tile + 1, tile):
                    make(
                        z.features + 1, weight, z.kernel_rows, features + at, taps + at, z.plane, z
                    )
                for j in range(z.groups):
                    for at in range(inner, end, tile):
                        for p in range(0, z.each, P):
                            c = min(p, z.each - P)
                            call(code[1], (
                                grads + c * z.plane + at, z.plane, vector, back.ctypes.data, 8,
                                each_tap, taps + j * each_tap * z.plane + at, z.plane,
                                result + (j * z.each + c) * z.plane + at, z.plane, vector, V,
                            ))  # fmt: skip
                for c in range(channels):
                    unpack(grad_x + image * channels, result + c * z.plane, c, first, rows, zero, z)
                # the gradient of the kernel, in the place of the kernel
                for at in range(inner, end, tile):
                    for tap in range(0, z.taps, S):
                        t = min(tap, z.taps - S)
                        call(code[2], (
                            z.each, grads + at, z.plane, vector, seen + at, z.plane, vector,
                            shifts.ctypes.data + 8 * t, places.ctypes.data + 8 * t, 8, taps + at,
                            0, vector, 0, V,
                        ))  # fmt: skip
                    make(z.taps, turned, z.span_rows, taps + at, returned + at, z.plane, z)
                for f in range(z.features):
                    start = z.lead + z.halo * z.row + f * z.plane
                    for r in range(rows):
                        place = (f * z.pixels + (first + r) * z.width) * size
                        held = pointer(grad_z + image * z.features + place, bits)
                        given = pointer(returned + start + r * z.row, bits)
                        passed = pointer(features + start + r * z.row, bits)
                        for i in range(z.width):
                            held[i] = given[i] if passed[i] > zero else zero
                tiles = -(-(end - inner) // tile)
                for t in range(z.taps):  # the next band's
                    clear(taps + t * z.plane + end, taps + t * z.plane + inner + tiles * tile)
                for t in range(0, z.taps, A):
                    for f in range(0, z.feature_rows, B):
                        correlate_block(
                            tiles, tile, taps + t * z.plane + inner,
                            features + f * z.plane + inner, z.plane,
                            sums + (t * z.feature_rows + f) * vector, z.feature_rows * vector,
                            A, B, R, V, bits,
                        )  # fmt: skip
            wide = z.features + 1
            lanes_of(sums, z.taps, wide, z.feature_rows, parts + part * z.taps * wide * 8, wide)

    return kernel
