"""Planes of an image on the CPU: a layout in which a shift in two dimensions is a shift in one.

All channels of a band of rows are packed alike: rows end to end, with as many zeros between two
rows as the kernel looks beyond the edge, and rows of zeros above and below. So everything is a loop
over *tiles* of VECTORS vectors of positions, those between the rows included, and no tile has a
border.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.contract import BIAS, MR, NEAR, NR, STORE, ZERO, multiply, taps
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import WORDS, clear, copy_rows
from invocupy.backends.cpu.vector import VECTOR_BYTES, call, up
from invocupy.geometry import Geometry

TILE = NR * VECTOR_BYTES
_BUDGET = 512 << 10  # bytes of planes in a band: half of a core's second-level cache
_FEWEST = 8  # rows that are cut further for the sake of tasks
_CHANNELS = 4  # of a group at a time
_NONE = np.zeros(0, np.int64)


class Planes(NamedTuple):
    """How images are cut into bands, the layout of a plane, and what works on it.

    Rows and planes are in bytes. Numbers of channels are filled up to whole blocks of products.
    """

    number: int  # of bands of an image
    height: int
    width: int
    pixels: int
    halo: int  # rows seen above and below
    pad: int  # zeros between two rows
    row: int  # bytes from one row to the next
    lead: int  # bytes before the first row of the halo
    plane: int
    copy_rows: int  # addresses of micro-kernels
    multiply: int
    affine: int
    gather: int
    steps: Array  # by how many bytes each tap looks away from its position
    groups: int
    each: int  # channels of a group
    at_once: int  # of these in one micro-kernel
    taps: int  # of all groups
    kernel_rows: int
    features: int
    feature_rows: int
    units: int = 0  # bands of all images
    gradient_rows: int = 0
    span_rows: int = 0
    sums: int = 0  # bytes of the sums of products
    taps_at_once: int = 0
    dot: int = 0
    back: int = 0
    correlate: int = 0
    back_steps: Array = _NONE
    places: Array = _NONE  # of the planes of the taps
    hidden: int = 0  # a multiple of MR in each group
    input_rows: int = 0  # of a group's results
    rectified: int = 0


def planes_of(
    g: Geometry, size: int, number: int, features: int, feature_rows: int, tasks: int = 1
) -> Planes:
    """Cut into as few bands as leave so many planes in cache; few images towards so many tasks.

    Rows that two bands see are worked on twice: for the sake of tasks at most an eighth of a band.
    """
    (height, width), (halo, pad) = g.size, g.padding
    row, V, each = width + pad, VECTOR_BYTES // size, g.channels_per_group
    reach = halo * row + pad  # how far the kernel looks, forth and back
    # the first pixel of a band is at the start of a vector
    lead = pad + -(pad + halo * row) % V

    def plane(rows: int) -> int:
        bytes_ = (lead + (rows + 2 * halo) * row + reach) * size + 2 * TILE
        return (-(-bytes_ // 64) | 1) * 64  # odd: planes do not fall into the same cache sets

    rows = height
    while rows > 1:
        few = g.batch * -(-height // rows) < tasks and rows >= max(32 * halo, _FEWEST)
        if number * plane(rows) <= _BUDGET and not few:
            break
        rows = -(-rows // 2)
    bands, tap_number = -(-height // rows), g.groups * prod(g.kernel)
    down, across = (
        np.arange(k) * d - p for k, d, p in zip(g.kernel, g.dilation, g.padding, strict=True)
    )
    steps = (down[:, None] * row + across).ravel() * size
    groups = np.arange(g.groups)[:, None] * each * plane(rows)
    at_once = min(each, _CHANNELS)
    return Planes(
        bands, height, width, height * width, halo, pad, row * size, lead * size,
        plane(rows), copy_rows(WORDS, 32), multiply(MR, NR, ZERO, STORE, 1, V, 8 * size),
        multiply(MR, NR, BIAS, STORE, 1, V, 8 * size),
        taps(1, at_once, NR, 0, 0, NEAR, V, 8 * size),
        (groups + steps).ravel(), g.groups, each, at_once, tap_number, up(tap_number, MR),
        features, feature_rows, units=g.batch * bands, back_steps=-steps,
    )  # fmt: skip


class Compiled(NamedTuple):
    """Compiled operations on planes; addresses come in."""

    lay: Any
    involve: Any
    unpack: Any


@cache
def planes(bits: int) -> Compiled:
    """For elements of so many bits."""
    size = bits // 8

    @jit
    def lay(to, source, channels, first, rows, b):
        """Rows first - halo to first + rows + halo of an image, zeros around them."""
        words = size // 4
        top, bottom = max(first - b.halo, 0), min(first + rows + b.halo, b.height)
        inner = b.lead + (top - first + b.halo) * b.row
        for c in range(channels):
            plane = to + c * b.plane
            clear(plane, plane + inner)
            clear(plane + inner + (bottom - top) * b.row, plane + b.plane)
        call(b.copy_rows, (
            to + inner, b.plane, b.row, source + top * b.width * size, b.pixels * size,
            b.width * size, channels, bottom - top, b.width * words, -(-b.pad * words // WORDS),
        ))  # fmt: skip

    @jit
    def involve(code, count, source, steps, taps, tap_step, out, address):
        """A tile of all channels of a group: ``count`` taps that are ``tap_step`` bytes apart."""
        b = read(address, Planes)
        for k in range(0, b.each, b.at_once):
            plane = min(k, b.each - b.at_once) * b.plane
            call(code, (
                source + plane, b.plane, VECTOR_BYTES, steps, 8, count, taps, tap_step, 0,
                out + plane, b.plane, VECTOR_BYTES, VECTOR_BYTES // size,
            ))  # fmt: skip

    @jit
    def unpack(out, source, first, rows, offset, b):
        """The pixels of one channel's band, an offset added."""
        for r in range(rows):
            held = pointer(out + (first + r) * b.width * size, bits)
            seen = pointer(source + b.lead + (b.halo + r) * b.row, bits)
            for i in range(b.width):
                held[i] = seen[i] + offset

    return Compiled(lay, involve, unpack)
