"""The compiled loops of forward and gradient of x, the kernel given or made from features.

The names are those of :mod:`.cpu_pack`.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import aligning, feature_tile, pack
from invocupy.backends.cpu.plan import PHASE, SEEN, STEP, TILE, Phase, Sizes, Step
from invocupy.backends.cpu.vector import call

# places of the micro-kernels' addresses
GATHER, INTERLEAVE, COPY, COPY_EDGE, COPY_FEATURES, MAKE, CODES = range(7)


Gather = namedtuple("Gather", "sizes code source given weight out")


@cache
def gather(bits: int, made: bool) -> Any:
    """Forward and gradient of x; the kernel given, or ``made`` from features.

    The kernel of several tiles side by side is packed in one go: its lines are then read while
    they are near, and leave the first-level cache to the source until the next row of tiles.
    """
    size = bits // 8
    fill = _made(bits) if made else _given(bits)

    @jit
    def body(task, turn, scratch, words):
        sizes, code, source, given, weight, out = read(words, Gather)
        z, code = read(sizes, Sizes), pointer(code, -64)
        widest = read(z.phases, Phase)
        V, M, R, P, S = z.lanes, z.run, z.rows, z.at_once, z.interleaved
        features = scratch + z.packed_size  # if packed: like the source or, unshifted, a tile
        tile = features + z.features_size
        patch = tile + z.tile_size
        fresh = turn == 0 or z.strips > 1
        task, strip = divmod(task, z.strips)
        image, band = divmod(task, z.bands)
        a0, a1 = widest.rows * band // z.bands, widest.rows * (band + 1) // z.bands
        b0 = widest.columns * strip // z.strips
        b1 = widest.columns * (strip + 1) // z.strips
        top, left = widest.top + a0 * z.row_step, widest.left + b0 * z.column_step
        held = (a1 - a0 - 1) * z.row_step + z.halo_rows + 1
        skew = aligning(left, z, size)
        packed = scratch + skew
        pack(
            source + image * z.channels * z.height * z.width * size, z.channels, top, left,
            held, z, packed, size, fresh,
        )  # fmt: skip
        number, group = divmod(image, z.groups)
        kernel = given + image * z.kernel_plane
        weights = weight
        if made:
            kernel = given + number * z.kernel_plane
            if z.shifted:
                pack(kernel, z.features - 1, top, left, held, z, features + skew, size, fresh)
        lanes = min(V, b1 - b0)
        for phase in range(0, z.phase_count, S):
            row_of = read(z.phases + phase * PHASE, Phase)
            end, origin = min(a1, row_of.rows), row_of.out
            for a in range(a0, end, R):
                row = min(a, end - R)
                for start in range(b0, b1, z.tiles * V):
                    stop = min(start + z.tiles * V, b1)
                    for s in range(S):
                        own = read(z.phases + (phase + s) * PHASE, Phase)
                        first, count = own.first_step, own.steps
                        if made:
                            before = (group * z.step_count + first) * M
                            weights = weight + before * z.features * size
                        step = count * M * R * V * size
                        part = tile
                        for b in range(start, stop, V):
                            column = max(min(b, b1 - V), b0)
                            seen = (row - a0) * z.row_step * z.pitch + (column - b0) * size
                            inside = (
                                row + own.low_row >= 0
                                and row + R - 1 + own.high_row < z.kernel_rows
                                and column + own.low_column >= 0
                                and column + V - 1 + own.high_column < z.kernel_columns
                            )
                            fill(
                                part, kernel, weights, features + (skew if z.shifted else 0),
                                seen, first, count, row, column, lanes, inside, code, z,
                            )  # fmt: skip
                            part += step
                        table = z.steps + first * STEP + SEEN
                        part = tile
                        for b in range(start, stop, V):
                            column = max(min(b, b1 - V), b0)
                            seen = (row - a0) * z.row_step * z.pitch + (column - b0) * size
                            place = origin + row * z.out_row_step + column * z.out_step
                            to = out + (image * z.channels * z.out_plane + place) * size
                            for p in range(0, z.channels, P):
                                c = min(p, z.channels - P)
                                here = packed + c * z.plane + seen
                                if z.direct:
                                    call(code[GATHER], (
                                        here, z.plane, z.row_step * z.pitch, table, STEP,
                                        count, part, M * R * V * size, 0,
                                        to + c * z.out_plane * size, z.out_plane * size,
                                        z.out_row_step * size, lanes,
                                    ))  # fmt: skip
                                elif count > 0:
                                    call(code[GATHER], (
                                        here, z.plane, z.row_step * z.pitch, table, STEP,
                                        count, part, M * R * V * size, 0,
                                        patch + (c * S + s) * R * V * size, S * R * V * size,
                                        V * size, V,
                                    ))  # fmt: skip
                            part += step
                        if count == 0:  # no tap reaches this phase
                            values = pointer(patch + s * R * V * size, bits)
                            for c in range(z.channels):
                                for j in range(R * V):
                                    values[c * S * R * V + j] = 0
                    if not z.direct:
                        call(code[INTERLEAVE], (
                            patch, z.channels, to, z.out_plane * size, z.out_row_step * size,
                            min(S * V, z.out_width - column * z.out_step),
                        ))  # fmt: skip

    return body


@cache
def _given(bits: int) -> Any:
    """Packs the tile's part of the kernel: read once, from as many streams as there are taps."""
    size = bits // 8

    @jit
    def fill(
        tile, kernel, weights, features, seen, first, count, row, column, lanes, inside,
        code, z,
    ):  # fmt: skip
        source = kernel + (row * z.kernel_columns + column) * size
        line = z.kernel_columns * size
        ahead = z.rows * line if row + z.rows < z.kernel_rows else z.kernel_plane - row * line
        for s in range(first, first + count):
            step = read(z.steps + s * STEP, Step)
            y, x = row + step.row, column + step.column
            call(code[COPY if inside else COPY_EDGE], (
                tile + step.tile, source + step.kernel, z.tap_step, line, ahead,
                max(-x, 0), min(lanes, z.kernel_columns - x), -y, z.kernel_rows - y,
            ))  # fmt: skip

    return fill


@cache
def _made(bits: int) -> Any:
    """Makes the tile's part of the kernel: the bias, and the products with the features."""
    size = bits // 8

    @jit
    def fill(
        tile, kernel, weights, features, seen, first, count, row, column, lanes, inside,
        code, z,
    ):  # fmt: skip
        V, M, R, S = z.lanes, z.run, z.rows, z.together
        table = z.steps + first * STEP
        if z.shifted:
            place, plane, pitch = features + seen, z.plane, z.pitch
        elif z.unpacked:
            pitch = z.kernel_columns * size
            place, plane = kernel + row * pitch + column * size, z.kernel_rows * pitch
        else:
            place, plane, pitch = features, R * V * size, V * size
            feature_tile(features, kernel, row, column, lanes, R, code[COPY_FEATURES], z, size)
        for s in range(0, count, S):
            call(code[MAKE], (
                z.features - 1, weights + s * M * z.features * size, S * M * size, 0, place, plane,
                pitch, table + s * STEP + SEEN, table + s * STEP + TILE, STEP, tile,
                R * V * size, V * size, 0, V,
            ))  # fmt: skip
        if z.shifted and not inside:  # outside there is no kernel, not even the bias
            for s in range(first, first + count):
                step = read(z.steps + s * STEP, Step)
                y, x = row + step.row, column + step.column
                call(code[COPY_EDGE], (
                    tile + step.tile, tile + step.tile, R * V * size, V * size, 0,
                    max(-x, 0), min(V, z.kernel_columns - x), -y, z.kernel_rows - y,
                ))  # fmt: skip

    return fill
