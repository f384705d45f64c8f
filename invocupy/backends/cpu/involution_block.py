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

from invocupy.backends.cpu.access import Record, pointer, read
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
from invocupy.backends.cpu.move import Norm, clear, packed, packed_with_norm
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
    tables: tuple[Any, ...]  # bands and sizes, micro-kernels, steps of the taps
    scratch: int  # bytes
    work: int


_Forward = namedtuple("_Forward", "bands sizes steps x expand reduce project span shift relu out")


def forward(
    x: Any, parameters: tuple[Any, ...], moments: tuple[Any, ...], eps: tuple[float, float, float],
    relu: bool, g: Geometry, out: Any,
) -> None:  # fmt: skip
    """One band after another."""
    parameters, g = near_block(parameters, g)
    expand, expand_bias, scale1, shift1, reduce, reduce_bias, scale2, shift2 = parameters[:8]
    span, span_bias, project, project_bias, scale3, shift3 = parameters[8:]
    job = _job(g, x.itemsize, len(expand), len(reduce))
    rows, columns = (
        (axis, len(expand) // g.groups, job.sizes.hidden // g.groups) for axis in (0, 1)
    )
    norms = [
        Norm(scale, shift, *moments[2 * i : 2 * i + 2], np.array([eps[i]], np.float64))
        for i, (scale, shift) in enumerate(((scale1, shift1), (scale2, shift2), (scale3, shift3)))
    ]
    shift = empty((len(project),), x.dtype, x)
    call = _Forward(
        *job.tables, x, packed_with_norm(expand, expand_bias, norms[0], filled=rows),
        packed_with_norm(reduce, reduce_bias, norms[1], filled=columns),
        packed_with_norm(project, project_bias, norms[2], g.groups, columns, shift),
        packed(span, span_bias), shift, int(relu), out,
    )  # fmt: skip
    launch(_forward(8 * x.itemsize), job.tasks, job.work, job.scratch, call)


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
    return _Job(g.batch * bands.number, sizes, tables, tiles + number * bands.plane + 128, work)


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
        c = read(words, _Forward)
        b, z = read(c.bands, Bands), read(c.sizes, _Sizes)
        shifts = pointer(c.shift, bits)
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
        lay(seen, c.x + image, z.inputs, start, rows, b)
        top = max(b.halo - start, 0)
        bottom = min(rows + 2 * b.halo, b.height - start + b.halo)
        for at in range(b.lead + top * b.row, b.lead + bottom * b.row, tile):
            affine(z.rectified, z.inputs, c.expand, z.hidden, seen + at, b.plane, hidden, tile)
            affine(
                z.rectified,
                z.hidden,
                c.reduce,
                z.feature_rows,
                hidden,
                tile,
                features + at,
                b.plane,
            )
            for j in range(z.groups):
                linear(
                    z.multiply, depth, c.project + j * z.input_rows * depth * size, z.input_rows,
                    hidden + j * depth * tile, tile, shares + j * z.inputs * b.plane + at,
                    b.plane,
                )  # fmt: skip
        between(shares, z.groups * z.inputs, top, bottom, b)
        for at in range(inner, inner + rows * b.row, tile):
            affine(z.affine, z.features, c.span, z.kernel_rows, features + at, b.plane, taps, tile)
            for p in range(0, z.inputs, P):
                k = min(p, z.inputs - P)
                call(z.gather, (
                    shares + k * b.plane + at, b.plane, vector, c.steps, 8, z.taps,
                    taps, tile, 0, result + k * b.plane + at, b.plane, vector, V,
                ))  # fmt: skip
        for k in range(z.inputs):
            place, out = k * b.plane + inner, (k * b.pixels + start * b.width) * size
            finish(c.out + image + out, result + place, seen + place, shifts[k], c.relu, rows, b)

    return body
