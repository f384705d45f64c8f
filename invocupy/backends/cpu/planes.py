"""Planes of an image on the CPU: a layout in which a shift in two dimensions is a shift in one.

All channels of a band of rows are packed alike: rows end to end, with as many zeros between two
rows as the kernel looks beyond the edge, and rows of zeros above and below. So everything is a loop
over *tiles* of VECTORS vectors of positions, those between the rows included, and no tile has a
border.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from invocupy.backends.cpu.access import pointer
from invocupy.backends.cpu.contract import NR
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import WORDS, clear, copy_rows
from invocupy.backends.cpu.vector import VECTOR_BYTES, call
from invocupy.geometry import Geometry

TILE = NR * VECTOR_BYTES
_BUDGET = 512 << 10  # bytes of planes in a band: half of a core's second-level cache
_FEWEST = 8  # rows that are cut further for the sake of tasks


class Bands(NamedTuple):
    """How an image is cut, and the layout of a plane; rows and planes in bytes."""

    number: int  # of an image
    height: int
    width: int
    pixels: int
    halo: int  # rows seen above and below
    pad: int  # zeros between two rows
    row: int  # bytes from one row to the next
    lead: int  # bytes before the first row of the halo
    plane: int
    copy_rows: int  # address of the micro-kernel


def bands_of(g: Geometry, size: int, planes: int, tasks: int = 1) -> Bands:
    """As few as leave so many planes in cache; of few images more, towards so many tasks.

    Rows that two bands see are worked on twice: for the sake of tasks at most an eighth of a band.
    """
    row = g.width + g.pad_w
    reach = g.pad_h * row + g.pad_w  # how far the kernel looks, forth and back
    # the first pixel of a band is at the start of a vector
    lead = g.pad_w + -(g.pad_w + g.pad_h * row) % (VECTOR_BYTES // size)

    def plane(rows: int) -> int:
        bytes_ = (lead + (rows + 2 * g.pad_h) * row + reach) * size + 2 * TILE
        return (-(-bytes_ // 64) | 1) * 64  # odd: planes do not fall into the same cache sets

    rows = g.height
    while rows > 1:
        few = g.batch * -(-g.height // rows) < tasks and rows >= max(32 * g.pad_h, _FEWEST)
        if planes * plane(rows) <= _BUDGET and not few:
            break
        rows = -(-rows // 2)
    return Bands(
        -(-g.height // rows), g.height, g.width, g.height * g.width, g.pad_h, g.pad_w, row * size,
        lead * size, plane(rows), copy_rows(WORDS, 32),
    )  # fmt: skip


def steps_of(g: Geometry, size: int, b: Bands) -> Any:
    """By how many bytes each tap looks away from its position."""
    return np.array(
        [
            (u * g.dilation_h - g.pad_h) * b.row + (v * g.dilation_w - g.pad_w) * size
            for u in range(g.kernel_h)
            for v in range(g.kernel_w)
        ],
        np.int64,
    )


def up(number: int, step: int) -> int:
    """The next multiple."""
    return -(-number // step) * step


class Planes(NamedTuple):
    """Compiled operations on planes; addresses come in."""

    lay: Any
    unpack: Any


@cache
def planes(bits: int) -> Planes:
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
    def unpack(out, source, channel, first, rows, offset, b):
        """The pixels of one channel's band, an offset added."""
        start = source + b.lead + b.halo * b.row
        for r in range(rows):
            held = pointer(out + (channel * b.pixels + (first + r) * b.width) * size, bits)
            seen = pointer(start + r * b.row, bits)
            for i in range(b.width):
                held[i] = seen[i] + offset

    return Planes(lay, unpack)
