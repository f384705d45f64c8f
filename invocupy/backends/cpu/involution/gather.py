"""The compiled loops of forward and gradient of x, the kernel given or made from features.

For each row of tiles the part of the kernel that they need is packed, or made, then used for all
channels of the group.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.blocks import block_of, feature_tile, pack, steps_of
from invocupy.backends.cpu.jit import inlined, jit
from invocupy.backends.cpu.plan import PHASE, SEEN, STEP, TILE, Phase, Plan, Step
from invocupy.backends.cpu.vector import call

Gather = namedtuple("Gather", "plan source given weight out")
# of a task: its Plan, and addresses; ``kernel`` is the given one, or the features it is made from
_At = namedtuple(
    "_At",
    "plan steps packed features tile patch kernel depth inside weights first_row end_row "
    "first_column end_column",
)


@cache
def gather(bits: int, made: bool) -> Any:
    """Forward and gradient of x; the kernel given, or ``made`` from features.

    The kernel of adjacent tiles is packed together: its lines are read while they are in cache, and
    then leave the first-level cache to the source until the next row of tiles.
    """
    size = bits // 8
    fill = _made(bits) if made else _given(bits)

    @inlined
    def prepare(at, own, row, start, stop):
        """The kernel of the tiles of a row, for the taps of one phase."""
        p, tile = read(at.plan, Plan), at.tile
        for b in range(start, stop, p.lanes):
            column = max(min(b, at.end_column - p.lanes), at.first_column)
            inside = (
                at.inside
                and row + own.low_row >= 0
                and row + p.rows - 1 + own.high_row < p.kernel_rows
                and column + own.low_column >= 0
                and column + p.lanes - 1 + own.high_column < p.kernel_columns
            )
            fill(at, own, tile, row, column, inside)
            tile += own.steps * p.run * p.rows * p.lanes * size

    @inlined
    def multiply(at, own, phase, row, start, stop, out):
        """All channels of these tiles, into ``out`` or, phase by phase, the patch."""
        p, tile = read(at.plan, Plan), at.tile
        V, vector = p.lanes, p.lanes * size
        table, line = at.steps + own.first_step * STEP + SEEN, p.row_step * p.pitch
        to, plane, pitch = out, p.out_channel * size, p.out_row_step * size
        tap_step, lanes = p.run * p.rows * vector, min(V, at.end_column - at.first_column)
        if not p.direct:
            to, plane = at.patch + phase * p.rows * vector, p.interleaved * p.rows * vector
            pitch, lanes = vector, V
        for b in range(start, stop, V):
            column = max(min(b, at.end_column - V), at.first_column)
            seen = at.packed + (row - at.first_row) * line + (column - at.first_column) * size
            place = to
            if p.direct:
                place += (row * p.out_row_step + column * p.out_step) * size
            for k in range(0, p.channels if own.steps > 0 else 0, p.at_once):
                c = min(k, p.channels - p.at_once)
                call(p.contract, (
                    seen + c * p.channel, p.channel, line, table, STEP, own.steps, tile, tap_step,
                    0, place + c * plane, plane, pitch, lanes,
                ))  # fmt: skip
            tile += own.steps * tap_step
        if own.steps == 0:  # no tap reaches this phase
            for c in range(p.channels):
                values = pointer(to + c * plane, bits)
                for j in range(p.rows * V):
                    values[j] = 0

    @inlined
    def result_plane(at, phases, out):
        """All positions of the block in one plane of the result."""
        p = read(at.plan, Plan)
        for phase in range(0, p.phase_count, p.interleaved):
            own = read(phases + phase * PHASE, Phase)
            end, origin = min(at.end_row, own.rows), out + own.out * size
            for a in range(at.first_row, end, p.rows):
                row = min(a, end - p.rows)
                for start in range(at.first_column, at.end_column, p.tiles * p.lanes):
                    stop = min(start + p.tiles * p.lanes, at.end_column)
                    for s in range(p.interleaved):
                        own = read(phases + (phase + s) * PHASE, Phase)
                        prepare(at, own, row, start, stop)
                        multiply(at, own, s, row, start, stop, origin)
                    if not p.direct:
                        column = max(min(start, at.end_column - p.lanes), at.first_column)
                        call(p.interleave, (
                            at.patch, p.channels,
                            origin + (row * p.out_row_step + column * p.out_step) * size,
                            p.out_channel * size, p.out_row_step * size,
                            min(p.interleaved * p.lanes, p.out_width - column * p.out_step),
                        ))  # fmt: skip

    @jit
    def body(task, turn, scratch, words):
        c = read(words, Gather)
        p = read(c.plan, Plan)
        fresh = turn == 0 or p.strips > 1
        block = block_of(task, c.plan, size)
        unit, packed = block.unit, scratch + block.skew
        out = c.out + block.image * p.channels * p.out_channel * size
        number, group = divmod(block.image, p.groups)
        features = scratch + p.packed_size  # if packed: like the source or, unshifted, a tile
        tile, weights = features + p.features_size, c.weight
        kernel = c.given + block.image * p.kernel_bytes
        if made:
            kernel = c.given + number * p.kernel_bytes
            weights += group * p.step_count * p.run * p.features * size
            features += block.skew if p.shifted else 0
        for t in range(unit.results):
            pack(c.source, block.image, p.channels, block, t, c.plan, packed, size, fresh)
            if made and p.shifted:
                pack(c.given, number, p.features - 1, block, t, c.plan, features, size, fresh)
            result = unit.first + t * unit.step
            depth = unit.seen + t * unit.move * unit.spacing if p.shifted else result
            last = depth + (unit.taps - 1) * unit.spacing if p.shifted else depth
            at = _At(
                c.plan, steps_of(c.plan, unit, t), packed,
                features, tile, tile + p.tile_size,
                kernel + depth * p.kernel_rows * p.kernel_columns * size, depth,
                depth >= 0 and last < p.kernel_depth, weights, block.first_row, block.end_row,
                block.first_column, block.end_column,
            )  # fmt: skip
            result_plane(at, p.phases + unit.phases, out + result * p.out_plane * size)

    return body


@cache
def _given(bits: int) -> Any:
    """Packs the tile's part of the kernel: read once, from as many streams as there are taps."""
    size = bits // 8

    @inlined
    def fill(at, own, tile, row, column, inside):
        p = read(at.plan, Plan)
        line, lanes = p.kernel_columns * size, min(p.lanes, at.end_column - at.first_column)
        source = at.kernel + row * line + column * size
        ahead = p.rows * line  # the next tiles, of this plane or the next, or the next image's
        if row + p.rows >= p.kernel_rows and at.depth + 1 >= p.kernel_depth:
            ahead = p.kernel_bytes - row * line
        for s in range(own.first_step, own.first_step + own.steps):
            step = read(at.steps + s * STEP, Step)
            y, x = row + step.row, column + step.column
            rows = p.kernel_rows if 0 <= at.depth + step.depth < p.kernel_depth else 0
            call(p.copy if inside else p.copy_edge, (
                tile + step.tile, source + step.kernel, p.tap_step, line, ahead,
                max(-x, 0), min(lanes, p.kernel_columns - x), -y, rows - y,
            ))  # fmt: skip

    return fill


@cache
def _made(bits: int) -> Any:
    """Makes the tile's part of the kernel: the bias, and the products with the features."""
    size = bits // 8

    @inlined
    def fill(at, own, tile, row, column, inside):
        p = read(at.plan, Plan)
        vector = p.lanes * size
        tap, place, plane, pitch = p.rows * vector, at.features, p.rows * vector, vector
        if p.shifted:
            plane, pitch = p.channel, p.pitch
            place += (row - at.first_row) * p.row_step * pitch + (column - at.first_column) * size
        elif p.unpacked:
            pitch = p.kernel_columns * size
            place = at.kernel + row * pitch + column * size
            plane = p.kernel_depth * p.kernel_rows * pitch
        else:
            lanes = min(p.lanes, at.end_column - at.first_column)
            feature_tile(place, at.kernel, row, column, lanes, p.rows, at.plan, size)
        for s in range(own.first_step, own.first_step + own.steps, p.together):
            table = at.steps + s * STEP
            call(p.multiply, (
                p.features - 1, at.weights + s * p.run * p.features * size,
                p.together * p.run * size, 0, place, plane, pitch, table + SEEN, table + TILE, STEP,
                tile, tap, vector, 0, p.lanes,
            ))  # fmt: skip
        if p.shifted and not inside:  # outside there is no kernel, not even the bias
            for s in range(own.first_step, own.first_step + own.steps):
                step = read(at.steps + s * STEP, Step)
                y, x, part = row + step.row, column + step.column, tile + step.tile
                rows = p.kernel_rows if 0 <= at.depth + step.depth < p.kernel_depth else 0
                call(p.copy_edge, (
                    part, part, tap, vector, 0, max(-x, 0), min(p.lanes, p.kernel_columns - x), -y,
                    rows - y,
                ))  # fmt: skip

    return fill
