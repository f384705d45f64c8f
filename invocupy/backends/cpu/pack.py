"""What the compiled kernels have in common: packing with zeros around the edges.

A kernel is a serial function that takes tasks from a shared counter until none is left. Everything
it needs beside the arrays fits in scratch memory of its own thread. Factories make one
specialisation for each set of micro-kernel sizes; what depends on the image comes in at run time.

Names: an *image* is one group of one image of the batch; a *block* is a range of rows and columns
of its positions; a *tile* is R rows times one vector of V positions. Arrays come in by address,
``size`` is that of an element, ``z`` the :class:`~.cpu_plan.Sizes` of the call; offsets are bytes.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from invocupy.backends.cpu.access import pointer
from invocupy.backends.cpu.blocks import pack_rows
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.vector import VECTOR_BYTES, call

_WORDS = VECTOR_BYTES // 4
_MOST = 1 << 30  # lanes are counted in 32 bits, columns of an image in 64


@jit
def aligning(left, z, size):
    """Where to begin packing so that source columns of whole vectors land on whole cache lines."""
    lead = min(max(-left, 0), z.phase_width)
    return VECTOR_BYTES + (-lead * size) % VECTOR_BYTES


@jit
def clear(start, end):
    """Zeros between two addresses."""
    words = pointer(start, 32)
    for i in range((end - start) // 4):
        words[i] = 0


@jit
def pack(source, channels, top, left, rows, z, out, size, fresh):
    """``out[c, q]`` = row top + q of ``source`` (channels, height, width) from column ``left`` on.

    Zero outside. With a column step the columns left + phase + step * b are packed phase by phase.
    Where ``out`` is not ``fresh`` it has the zeros of an earlier block of the same columns.
    """
    words = size // 4
    if z.column_step == 1:
        lead = min(max(-left, 0), z.phase_width)
        count = max(min(z.width - left, z.phase_width) - lead, 0)
        first = min(max(-top, 0), rows)  # of the rows that have something
        last = min(z.height - top, rows)
        if count == 0 or last <= first:
            first = last = rows
        if fresh or z.bands > 1:
            for c in range(channels):
                plane = out + c * z.plane
                clear(plane, min(plane + first * z.pitch + lead * size, plane + z.plane))
                clear(plane + last * z.pitch + lead * size, plane + z.plane)
        if first < last:
            start = source + ((top + first) * z.width + left + lead) * size
            vectors = -(-count * words // _WORDS)
            pack_rows(
                out + first * z.pitch + lead * size, z.plane, z.pitch, start,
                z.height * z.width * size, z.width * size, channels, last - first, count * words,
                z.pitch // VECTOR_BYTES - vectors if fresh else 0, _WORDS, 32,
            )  # fmt: skip
        return
    for c in range(channels):
        for q in range(rows):
            inside = 0 <= top + q < z.height
            start = source + ((c * z.height + top + q) * z.width + left) * size
            to = out + c * z.plane + q * z.pitch
            if z.column_step == 2 and inside:
                for phase in range(z.column_phases):
                    first = left + phase
                    call(z.take_even, (
                        to + phase * z.phase_width * size, start + phase * size,
                        max(min(-first, _MOST), -_MOST), min(z.width - first, _MOST),
                        -(-z.phase_width * size // VECTOR_BYTES),
                    ))  # fmt: skip
                continue
            for phase in range(z.column_phases):
                for b in range(z.phase_width):
                    x = phase + b * z.column_step
                    seen = inside and 0 <= left + x < z.width
                    place, values = pointer(to, 32), pointer(start, 32)
                    for word in range(words):
                        place[(phase * z.phase_width + b) * words + word] = (
                            values[x * words + word] if seen else 0
                        )


@jit
def feature_tile(to, source, row, column, lanes, rows, copy, z, size):
    """Packs all features of a tile, and ones as the last: zero outside the first lanes and rows.

    ``copy`` is the address of a masked :func:`~.cpu_blocks.copy_block` for one tap.
    """
    tile = z.rows * z.lanes * size
    here = source + (row * z.kernel_columns + column) * size
    line = z.kernel_columns * size
    for f in range(z.features - 1):
        call(copy, (
            to + f * tile, here + f * z.kernel_rows * line, 0, line, z.rows * line,
            0, lanes, 0, rows,
        ))  # fmt: skip
    ones = to + (z.features - 1) * tile
    for r in range(z.rows):
        for j in range(z.lanes):
            value = 1 if r < rows and j < lanes else 0
            if size == 4:
                pointer(ones, 32)[r * z.lanes + j] = value
            else:
                pointer(ones, 64)[r * z.lanes + j] = value
