"""The block on the CPU: a band of an image goes through it whole, in cache.

All weights are folded and put in order in one place. x is packed as planes
(:mod:`invocupy.backends.cpu.planes`), and tile by tile of these the perceptron's results become
planes, too. Between the rows they are anything but what the involution must see there, so these
places are cleared; then the involution takes tile by tile, each with the kernel that is made for it
and used up at once.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from invocupy.backends.cpu.access import Record, address, pointer, read
from invocupy.backends.cpu.contract import (
    BIAS,
    MR,
    NEAR,
    NR,
    RELU,
    STORE,
    ZERO,
    multiply,
    product,
    taps,
)
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import clear
from invocupy.backends.cpu.planes import TILE, Bands, bands_of, planes, steps_of, up
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import VECTOR_BYTES, call
from invocupy.backends.far import near_block
from invocupy.backends.memory import empty
from invocupy.geometry import Geometry

_CHANNELS = 4  # of a group at a time
_TASKS = 8  # into which a few images are cut


class _Sizes(NamedTuple):
    """Channels; and their rows, filled up to whole blocks of products."""

    inputs: int
    hidden: int  # a multiple of MR in each group
    features: int
    groups: int
    taps: int  # of all groups
    input_rows: int  # of a group's results
    feature_rows: int
    kernel_rows: int
    at_once: int  # channels of a group in one micro-kernel
    multiply: int  # addresses of micro-kernels
    affine: int
    rectified: int
    gather: int


class _Job(NamedTuple):
    """All of a call that does not depend on the arrays' contents."""

    tasks: int
    sizes: _Sizes
    weights: int  # numbers, folded
    tables: tuple[Any, ...]  # bands and sizes, micro-kernels, steps of the taps
    scratch: int  # bytes
    work: int


_Forward = namedtuple("_Forward", "bands sizes steps x weights relu out")


def forward(
    x: Any, parameters: tuple[Any, ...], moments: tuple[Any, ...], eps: tuple[float, float, float],
    relu: bool, g: Geometry, out: Any,
) -> None:  # fmt: skip
    """One band after another."""
    bits = 8 * x.itemsize
    parameters, g = near_block(parameters, g)
    job = _job(g, x.itemsize, len(parameters[0]), len(parameters[4]))
    weights = empty((job.weights,), x.dtype, x)
    _fold(bits)(
        len(parameters[0]), *job.sizes[:9], address(weights), *map(address, parameters),
        *map(address, moments), *map(float, eps),
    )  # fmt: skip
    call = _Forward(*job.tables, x, weights, int(relu), out)
    launch(_forward(bits), job.tasks, job.work, job.scratch, call)


@lru_cache(maxsize=512)
def _job(g: Geometry, size: int, hidden: int, features: int) -> _Job:
    inputs, tap_number = g.channels_per_group, g.groups * g.kernel_h * g.kernel_w
    hidden = g.groups * up(hidden // g.groups, MR)
    V = VECTOR_BYTES // size
    sizes = _Sizes(
        inputs, hidden, features, g.groups, tap_number, up(inputs, MR), up(features, MR),
        up(tap_number, MR), min(inputs, _CHANNELS),
        *(
            multiply(MR, NR, *way, V, 8 * size)
            for way in ((ZERO, STORE), (BIAS, STORE), (BIAS, RELU))
        ),
        taps(1, min(inputs, _CHANNELS), NR, 0, 0, NEAR, V, 8 * size),
    )  # fmt: skip
    # x, features, shares, results; a last block of a group's shares runs into the next group
    number = 2 * inputs + sizes.feature_rows + g.channels + sizes.input_rows - inputs
    bands = bands_of(g, size, number, _TASKS)
    groups = np.arange(g.groups)[:, None] * inputs * bands.plane
    tables = (
        Record(bands),
        Record(sizes),
        (groups + steps_of(g, size, bands)).ravel(),
    )
    tiles = (hidden + sizes.kernel_rows) * TILE
    work = (
        g.batch
        * bands.pixels
        * (hidden * (inputs + features) + tap_number * (features + inputs))
        // 8
    )
    weights = (
        hidden * (inputs + 1) + sizes.feature_rows * (hidden + 1) + sizes.input_rows * hidden
        + sizes.kernel_rows * (features + 1) + inputs
    )  # fmt: skip
    return _Job(
        g.batch * bands.number, sizes, weights, tables, tiles + number * bands.plane + 128, work
    )


@cache
def _fold(bits: int) -> Any:
    M = MR

    @jit
    def norm(c, bias, scale, shift, mean, var, eps):
        """What a weight of channel c is multiplied by, and what stands for its bias."""
        deviation = np.sqrt(np.float64(pointer(var, bits)[c]) + eps)
        factor = np.float64(pointer(scale, bits)[c]) / deviation
        center = np.float64(pointer(bias, bits)[c]) - pointer(mean, bits)[c]
        return factor, factor * center + pointer(shift, bits)[c]

    @jit
    def fold(
        real, inputs, hidden, features, groups, taps, input_rows, feature_rows, kernel_rows,
        at_once, out, expand, expand_bias, expand_scale, expand_shift, reduce, reduce_bias,
        reduce_scale, reduce_shift, span, span_bias, project, project_bias, project_scale,
        project_shift, mean1, var1, mean2, var2, mean3, var3, eps1, eps2, eps3,
    ):  # fmt: skip
        """All weights with their norms, ordered as by :func:`~..products.packed`; then the shift.

        Hidden channels that fill up a group have weights of zero, rows that fill up a block those
        of the last row."""
        held, size, depth = pointer(out, bits), real // groups, hidden // groups

        weight = pointer(expand, bits)
        for h in range(hidden):
            j, d = divmod(h, depth)
            c = j * size + min(d, size - 1)
            factor, constant = norm(c, expand_bias, expand_scale, expand_shift, mean1, var1, eps1)
            place = h // M * M * (inputs + 1) + h % M
            for t in range(inputs):
                held[place + t * M] = factor * weight[c * inputs + t] if d < size else 0.0
            held[place + inputs * M] = constant if d < size else 0.0
        start = hidden * (inputs + 1)

        weight = pointer(reduce, bits)
        for f in range(feature_rows):
            c = min(f, features - 1)
            factor, constant = norm(c, reduce_bias, reduce_scale, reduce_shift, mean2, var2, eps2)
            place = start + f // M * M * (hidden + 1) + f % M
            for h in range(hidden):
                j, d = divmod(h, depth)
                seen = factor * weight[c * real + j * size + d] if d < size else 0.0
                held[place + h * M] = seen
            held[place + hidden * M] = constant
        start += feature_rows * (hidden + 1)

        weight = pointer(project, bits)
        shift = start + input_rows * hidden + kernel_rows * (features + 1)
        for o in range(input_rows):
            c = min(o, inputs - 1)
            factor, constant = norm(
                c, project_bias, project_scale, project_shift, mean3, var3, eps3
            )
            for h in range(hidden):
                j, d = divmod(h, depth)
                seen = factor * weight[c * real + j * size + d] if d < size else 0.0
                held[start + (j * input_rows + o // M * M) * depth + o % M + d * M] = seen
            held[shift + c] = constant
        start += input_rows * hidden

        weight, bias = pointer(span, bits), pointer(span_bias, bits)
        for t in range(kernel_rows):
            c = min(t, taps - 1)
            place = start + t // M * M * (features + 1) + t % M
            for f in range(features):
                held[place + f * M] = weight[c * features + f]
            held[place + features * M] = bias[c]

    return fold


@cache
def _forward(bits: int) -> Any:
    lay, size = planes(bits).lay, bits // 8
    linear, affine = product(bits, 0), product(bits, 1)
    zero = np.dtype(f"f{size}").type(0)
    V, tile, vector = VECTOR_BYTES // size, TILE, VECTOR_BYTES

    @jit
    def between(place, channels, first, last, b):
        """Zeros in planes but for the rows from ``first`` to ``last``, counted with the halo."""
        for c in range(channels):
            plane = place + c * b.plane
            clear(plane, plane + b.lead + first * b.row)
            for r in range(first, last):
                gap = pointer(plane + b.lead + r * b.row + b.width * size, bits)
                for i in range(b.pad):
                    gap[i] = zero
            clear(plane + b.lead + last * b.row, plane + b.plane)

    @jit
    def finish(out, result, seen, shift, relu, rows, b):
        for r in range(rows):
            held = pointer(out + r * b.width * size, bits)
            total, passed = pointer(result + r * b.row, bits), pointer(seen + r * b.row, bits)
            if relu:
                for i in range(b.width):
                    value = total[i] + shift
                    held[i] = passed[i] + (zero if value <= zero else value)
            else:
                for i in range(b.width):
                    held[i] = passed[i] + (total[i] + shift)

    @jit
    def body(task, turn, scratch, words):
        bands, sizes, steps, x, weights, relu, out = read(words, _Forward)
        b, z = read(bands, Bands), read(sizes, _Sizes)
        reduce = weights + z.hidden * (z.inputs + 1) * size
        project = reduce + z.feature_rows * (z.hidden + 1) * size
        span = project + z.input_rows * z.hidden * size
        shifts = pointer(span + z.kernel_rows * (z.features + 1) * size, bits)
        depth, P = z.hidden // z.groups, z.at_once
        hidden = scratch
        taps = hidden + z.hidden * tile
        seen = taps + z.kernel_rows * tile
        features = seen + z.inputs * b.plane
        result = features + z.feature_rows * b.plane
        shares = result + z.inputs * b.plane
        inner = b.lead + b.halo * b.row
        n, band = divmod(task, b.number)
        start = b.height * band // b.number
        rows = b.height * (band + 1) // b.number - start
        image = n * z.inputs * b.pixels * size
        lay(seen, x + image, z.inputs, start, rows, b)
        top = max(b.halo - start, 0)
        bottom = min(rows + 2 * b.halo, b.height - start + b.halo)
        for at in range(b.lead + top * b.row, b.lead + bottom * b.row, tile):
            affine(z.rectified, z.inputs, weights, z.hidden, seen + at, b.plane, hidden, tile)
            affine(
                z.rectified, z.hidden, reduce, z.feature_rows, hidden, tile, features + at, b.plane
            )
            for j in range(z.groups):
                linear(
                    z.multiply, depth, project + j * z.input_rows * depth * size, z.input_rows,
                    hidden + j * depth * tile, tile, shares + j * z.inputs * b.plane + at,
                    b.plane,
                )  # fmt: skip
        between(shares, z.groups * z.inputs, top, bottom, b)
        for at in range(inner, inner + rows * b.row, tile):
            affine(z.affine, z.features, span, z.kernel_rows, features + at, b.plane, taps, tile)
            for p in range(0, z.inputs, P):
                c = min(p, z.inputs - P)
                call(z.gather, (
                    shares + c * b.plane + at, b.plane, vector, steps, 8, z.taps,
                    taps, tile, 0, result + c * b.plane + at, b.plane, vector, V,
                ))  # fmt: skip
        for c in range(z.inputs):
            place = c * b.plane + inner
            finish(
                out + image + (c * b.pixels + start * b.width) * size, result + place,
                seen + place, shifts[c], relu, rows, b,
            )  # fmt: skip

    return body
