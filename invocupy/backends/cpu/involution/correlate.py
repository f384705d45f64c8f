"""The compiled loops of the gradient of the kernel, kept or pushed on into the features' weights.

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
from invocupy.backends.cpu.plan import KERNEL, SEEN, STEP, TILE, Sizes
from invocupy.backends.cpu.vector import call

# places of the micro-kernels' addresses
CONTRACT, COPY, ADD, PRODUCT, STORE, CONTRACT_HALF, CODES = range(7)


Correlate = namedtuple("Correlate", "sizes code grad source out")
SpanGradients = namedtuple("SpanGradients", "sizes code grad source given weight out parts shares")


@cache
def correlate(bits: int) -> Any:
    """Gradient of the kernel."""
    size = bits // 8

    @jit
    def body(task, turn, scratch, words):
        sizes, code, grad, source, out = read(words, Correlate)
        z, code = read(sizes, Sizes), pointer(code, -64)
        V, R, S = z.lanes, z.rows, z.together
        patch = scratch + z.packed_size
        table = z.steps
        line = z.kernel_columns * size
        fresh = turn == 0 or z.strips > 1
        task, strip = divmod(task, z.strips)
        image, band = divmod(task, z.bands)
        a0, a1 = z.kernel_rows * band // z.bands, z.kernel_rows * (band + 1) // z.bands
        b0, b1 = (
            z.kernel_columns * strip // z.strips,
            z.kernel_columns * (strip + 1) // z.strips,
        )
        first = b0 * z.column_step - z.pad_columns
        packed = scratch + aligning(first, z, size)
        pack(
            source + image * z.channels * z.height * z.width * size, z.channels,
            a0 * z.row_step - z.pad_rows, first, (a1 - a0 - 1) * z.row_step + z.halo_rows + 1,
            z, packed, size, fresh,
        )  # fmt: skip
        for a in range(a0, a1, R):
            row = min(a, a1 - R)
            for b in range(b0, b1, V):
                wide, contract = V, code[CONTRACT]
                if b1 - b <= z.half:
                    wide, contract = z.half, code[CONTRACT_HALF]
                column = max(min(b, b1 - wide), b0)
                lanes = min(wide, b1 - b0)
                position = (row * z.kernel_columns + column) * size
                here = grad + image * z.channels * z.kernel_rows * line + position
                left, plane, pitch = here, z.kernel_rows * line, line
                if not z.unpacked:
                    left, plane, pitch = patch, R * V * size, V * size
                    for c in range(z.channels):
                        call(code[COPY], (
                            patch + c * plane, here + c * z.kernel_rows * line, 0, line,
                            R * line, 0, lanes, 0, R,
                        ))  # fmt: skip
                seen = packed + (row - a0) * z.row_step * z.pitch + (column - b0) * size
                for s in range(0, z.step_count, S):
                    call(contract, (
                        z.channels, left, plane, pitch, seen, z.plane, z.row_step * z.pitch,
                        table + s * STEP + SEEN, table + s * STEP + KERNEL, STEP,
                        out + image * z.kernel_plane + position, z.tap_step, line, R * line,
                        lanes,
                    ))  # fmt: skip

    return body


@cache
def span_gradients(bits: int) -> Any:
    """Gradient of the kernel, consumed tile by tile: gradients of features, weights and bias.

    A task is a range of blocks. For each group it adds its share to the gradient of the features
    (which belong to it alone) and leaves its share of the weights' in a part of its own. In
    registers are S steps, or T features, or products of A taps and B features.
    """
    size = bits // 8

    @jit
    def body(task, turn, scratch, words):
        (
            sizes, code, grad, source, given, weight, out, parts, shares,
        ) = read(words, SpanGradients)  # fmt: skip
        z, code = read(sizes, Sizes), pointer(code, -64)
        V, M, R, S, T, A, B = (
            z.lanes, z.run, z.rows, z.together, z.at_once, z.each_time, z.across
        )  # fmt: skip
        patch = scratch + z.packed_size  # grad, then gradient of features
        tile = patch + z.patch_size
        features = tile + z.tile_size
        count = z.step_count
        taps = count * M
        tap_rows, span = -(-taps // A) * A, -(-z.features // B) * B
        tap_tile = tap_rows * R * V * size
        feature_bytes = span * R * V * size
        blocks = z.images * z.bands * z.strips
        line = z.kernel_columns * size
        plane = z.kernel_rows * line
        table = z.steps
        fresh = turn == 0 or z.strips > 1
        for group in range(z.groups):
            part = parts + (task * z.groups + group) * tap_rows * span * size
            for block in range(blocks * task // shares, blocks * (task + 1) // shares):
                rest, strip = divmod(block, z.strips)
                number, band = divmod(rest, z.bands)
                image = number * z.groups + group
                a0, a1 = z.kernel_rows * band // z.bands, z.kernel_rows * (band + 1) // z.bands
                b0 = z.kernel_columns * strip // z.strips
                b1 = z.kernel_columns * (strip + 1) // z.strips
                left = b0 * z.column_step - z.pad_columns
                packed = scratch + aligning(left, z, size)
                pack(
                    source + image * z.channels * z.height * z.width * size, z.channels,
                    a0 * z.row_step - z.pad_rows, left,
                    (a1 - a0 - 1) * z.row_step + z.halo_rows + 1,
                    z, packed, size, fresh,
                )  # fmt: skip
                fresh = z.strips > 1
                tiles = 0
                for a in range(a0, a1, R):
                    rows = min(R, a1 - a)
                    for b in range(b0, b1, V):
                        lanes = min(V, b1 - b)
                        position = (a * z.kernel_columns + b) * size
                        here = grad + image * z.channels * plane + position
                        for c in range(z.channels):
                            call(code[COPY], (
                                patch + c * R * V * size, here + c * plane, 0, line, R * line,
                                0, lanes, 0, rows,
                            ))  # fmt: skip
                        to = tile + tiles * tap_tile
                        seen = packed + (a - a0) * z.row_step * z.pitch + (b - b0) * size
                        for s in range(0, count, S):
                            call(code[CONTRACT], (
                                z.channels, patch, R * V * size, V * size, seen, z.plane,
                                z.row_step * z.pitch, table + s * STEP + SEEN,
                                table + s * STEP + TILE, STEP, to, R * V * size, V * size,
                                0, V,
                            ))  # fmt: skip
                        if lanes < V or rows < R:
                            for t in range(taps):
                                place = to + t * R * V * size
                                call(
                                    code[COPY],
                                    (place, place, 0, V * size, 0, 0, lanes, 0, rows),
                                )
                        feature_tile(
                            features + tiles * feature_bytes, given + number * z.kernel_plane,
                            a, b, lanes, rows, code[COPY], z, size,
                        )  # fmt: skip
                        # the first group finds nothing to add to
                        known = lanes if group else 0
                        mine = out + number * z.kernel_plane + position
                        for f in range(0, z.features - 1, T):
                            for k in range(T):
                                call(code[COPY], (
                                    patch + k * R * V * size, mine + (f + k) * plane, 0, line,
                                    0, 0, known, 0, rows if f + k < z.features - 1 else 0,
                                ))  # fmt: skip
                            call(code[ADD], (
                                taps, weight + (group * z.padded + f) * taps * size, T * size, 0,
                                to, R * V * size, patch, R * V * size, T, V,
                            ))  # fmt: skip
                            for k in range(min(T, z.features - 1 - f)):
                                for r in range(rows):
                                    call(code[STORE], (
                                        mine + (f + k) * plane + r * line,
                                        patch + (k * R + r) * V * size, lanes,
                                    ))  # fmt: skip
                        tiles += 1
                for t in range(0, taps, A):
                    for f in range(0, z.features, B):
                        call(code[PRODUCT], (
                            tiles, tile + t * R * V * size, R * V * size, tap_tile,
                            features + f * R * V * size, R * V * size, feature_bytes,
                            part + (t * span + f) * size, span * size, 1,
                        ))  # fmt: skip

    return body
