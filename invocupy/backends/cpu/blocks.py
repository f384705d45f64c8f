"""Blocks: what a task computes, and the source that it sees, packed with a zero border."""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple

from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.jit import inlined
from invocupy.backends.cpu.move import WORDS, clear
from invocupy.backends.cpu.plan import UNIT, Plan, Unit
from invocupy.backends.cpu.vector import VECTOR_BYTES, call

_MOST = 1 << 30  # lanes are counted in 32 bits, columns of an image in 64

Block = namedtuple(
    "Block", "image unit first_row end_row first_column end_column top left skew rows"
)


@inlined
def block_of(number, plan, size):
    """The positions of a task, and what of the source they see.

    Packing begins ``skew`` bytes into scratch memory, so that source columns of whole vectors land
    on whole cache lines.
    """
    p = read(plan, Plan)
    number, strip = divmod(number, p.strips)
    number, band = divmod(number, p.bands)
    image, unit = divmod(number, p.unit_count)
    first_row, end_row = p.tall * band // p.bands, p.tall * (band + 1) // p.bands
    first_column, end_column = p.wide * strip // p.strips, p.wide * (strip + 1) // p.strips
    top, left = p.top + first_row * p.row_step, p.left + first_column * p.column_step
    lead = min(max(-left, 0), p.phase_width)
    return Block(
        image, read(p.units + unit * UNIT, Unit), first_row, end_row, first_column, end_column, top,
        left, VECTOR_BYTES + (-lead * size) % VECTOR_BYTES,
        (end_row - first_row - 1) * p.row_step + p.halo_rows + 1,
    )  # fmt: skip


@inlined
def steps_of(plan, unit, t):
    """Where the table of the steps of a unit's result plane t begins, if they began with step 0."""
    return read(plan, Plan).steps + unit.steps + t * unit.move % unit.taps * unit.rotation


@inlined
def pack(source, image, channels, block, t, plan, out, size, fresh):
    """What result plane t sees first of ``source`` (images, channels, depth, height, width).

    ``out[c, n, q]`` = row top + q, from column left on, of the plane that is packed as number n.
    Zero outside. With a column step the columns left + phase + step * b are packed phase by phase.
    Where ``out`` is not ``fresh`` it has the zeros of an earlier block of the same columns.
    """
    p, unit = read(plan, Plan), block.unit
    plane = p.height * p.width * size
    source += image * channels * p.depth * plane
    fresh = fresh or unit.taps > 1
    for i in range(0 if t == 0 else max(unit.taps - unit.move, 0), unit.taps):
        number = t * unit.move + i
        depth, to = unit.seen + number * unit.spacing, out + number % unit.taps * p.plane
        if not 0 <= depth < p.depth:
            for c in range(channels):
                clear(to + c * p.channel, to + c * p.channel + p.plane)
        elif p.column_step > 1:
            _pack_phases(source + depth * plane, channels, block, plan, to, size)
        else:
            _pack_plane(
                source + depth * plane, channels, block, plan, to, size, fresh and t == 0, t
            )


@inlined
def _pack_plane(source, channels, block, plan, out, size, fresh, t):
    p, words, top = read(plan, Plan), size // 4, block.top
    lead = min(max(-block.left, 0), p.phase_width)
    count = max(min(p.width - block.left, p.phase_width) - lead, 0)
    first, last = min(max(-top, 0), block.rows), min(p.height - top, block.rows)  # that have pixels
    if count == 0 or last <= first:
        first = last = block.rows
    if fresh or (p.bands > 1 and t == 0):
        for c in range(channels):
            plane = out + c * p.channel
            clear(plane, min(plane + first * p.pitch + lead * size, plane + p.plane))
            clear(plane + last * p.pitch + lead * size, plane + p.plane)
    if first < last:
        start = source + ((top + first) * p.width + block.left + lead) * size
        vectors = -(-count * words // WORDS)
        call(p.copy_rows, (
            out + first * p.pitch + lead * size, p.channel, p.pitch, start,
            p.depth * p.height * p.width * size, p.width * size, channels, last - first,
            count * words, p.pitch // VECTOR_BYTES - vectors if fresh else 0,
        ))  # fmt: skip


@inlined
def _pack_phases(source, channels, block, plan, out, size):
    """Rows whose columns are sorted by phase; zeros where they are not inside."""
    p, words, left = read(plan, Plan), size // 4, block.left
    for c in range(channels):
        for q in range(block.rows):
            inside = 0 <= block.top + q < p.height
            start = source + ((c * p.depth * p.height + block.top + q) * p.width + left) * size
            values = pointer(start, 32)
            for phase in range(p.column_phases):
                place = out + c * p.channel + q * p.pitch + phase * p.phase_width * size
                if inside and p.column_step == 2:
                    first = left + phase
                    call(p.take_even, (
                        place, start + phase * size, max(min(-first, _MOST), -_MOST),
                        min(p.width - first, _MOST), -(-p.phase_width * size // VECTOR_BYTES),
                    ))  # fmt: skip
                    continue
                row = pointer(place, 32)
                for b in range(p.phase_width):
                    x = phase + b * p.column_step
                    seen = inside and 0 <= left + x < p.width
                    for i in range(words):
                        row[b * words + i] = values[x * words + i] if seen else 0


@inlined
def feature_tile(to, source, row, column, lanes, rows, plan, size):
    """Packs all features of a tile, and ones as the last: zero outside the first lanes and rows."""
    p = read(plan, Plan)
    tile, line = p.rows * p.lanes * size, p.kernel_columns * size
    channel = p.kernel_depth * p.kernel_rows * line
    here = source + row * line + column * size
    for f in range(p.features - 1):
        call(p.copy_features, (
            to + f * tile, here + f * channel, 0, line, p.rows * line,
            0, lanes, 0, rows,
        ))  # fmt: skip
    ones = to + (p.features - 1) * tile
    for r in range(p.rows):
        for j in range(p.lanes):
            value = 1 if r < rows and j < lanes else 0
            if size == 4:
                pointer(ones, 32)[r * p.lanes + j] = value
            else:
                pointer(ones, 64)[r * p.lanes + j] = value
