"""The compiled loops of forward and gradient of x, the kernel given or made from features.

The names are those of :mod:`.cpu_pack`.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from invocupy.backends.involution.cpu_pack import aligning, feature_tiles, pack, pack_inside, unpack
from invocupy.backends.involution.cpu_plan import COLUMN, KERNEL, ROW, SEEN, STEP_FIELDS, TILE
from invocupy.backends.jit import jit, next_task, pointer
from invocupy.backends.simd import contract_block, copy_block, gather_block

_STEP = 8 * STEP_FIELDS  # bytes from one step to the next in the table
_SEEN, _TILE = 8 * SEEN, 8 * TILE


@cache
def gather(bits: int, V: int, M: int, R: int, P: int, S: int, shifted: int) -> Any:
    """Forward (``shifted`` 0) and gradient of x (1), P channels at once.

    The kernel is given (``S`` 0), or generated from features, S steps at once.
    """
    size = bits // 8
    fill = (_generated if S else _given)(bits, V, M, R, S, shifted)

    @jit
    def gather(tasks, scratch, counter, tables, source, given, weight, out):
        numbers, phases, steps = tables
        z = unpack(numbers)
        features = scratch + z.packed_size  # packed like the source or, unshifted, a tile
        tile = features + z.features_size
        patch = tile + z.tile_size
        while True:
            task = next_task(counter)
            if task >= tasks:
                return
            task, strip = divmod(task, z.strips)
            task, band = divmod(task, z.bands)
            image, phase = divmod(task, phases.shape[0])
            (
                first, count, rows, columns, top, left, start, low_row, high_row, low_column,
                high_column,
            ) = phases[phase]  # fmt: skip
            a0, a1 = rows * band // z.bands, rows * (band + 1) // z.bands
            b0, b1 = columns * strip // z.strips, columns * (strip + 1) // z.strips
            top, left = top + a0 * z.row_step, left + b0 * z.column_step
            held = (a1 - a0 - 1) * z.row_step + z.halo_rows + 1
            skew = aligning(left, z, size)
            packed = scratch + skew
            pack(
                source + image * z.channels * z.height * z.width * size, z.channels, top, left,
                held,
                z, packed, size,
            )  # fmt: skip
            number, group = divmod(image, z.groups)
            kernel = given + image * z.kernel_plane
            if S:
                kernel = given + number * z.kernel_plane
                if shifted:
                    pack(kernel, z.features - 1, top, left, held, z, features + skew, size)
                    last = features + skew + (z.features - 1) * z.plane
                    pack_inside(top, left, held, z, last, size)
            weights = weight + (group * steps.shape[0] + first) * M * z.features * size
            for a in range(a0, a1, R):
                row = min(a, a1 - R)
                for b in range(b0, b1, V):
                    column = max(min(b, b1 - V), b0)
                    lanes = min(V, b1 - b0)
                    inside = (
                        row + low_row >= 0
                        and row + R - 1 + high_row < z.kernel_rows
                        and column + low_column >= 0
                        and column + V - 1 + high_column < z.kernel_columns
                    )
                    seen = (row - a0) * z.row_step * z.pitch + (column - b0) * size
                    fill(
                        tile, kernel, weights, features + (skew if shifted else 0), seen, steps,
                        first, count, row, column, lanes, inside, z,
                    )  # fmt: skip
                    place = start + row * z.out_row_step + column * z.out_step
                    for p in range(0, z.channels, P):
                        c = min(p, z.channels - P)
                        to = out + ((image * z.channels + c) * z.out_plane + place) * size
                        if z.out_step == 1:
                            gather_block(
                                packed + c * z.plane + seen, z.plane, z.row_step * z.pitch,
                                steps.ctypes.data + first * _STEP + _SEEN, _STEP, count, tile,
                                M * R * V * size, to, z.out_plane * size, z.out_row_step * size,
                                lanes, M, P, R, 0, V, bits,
                            )  # fmt: skip
                            continue
                        gather_block(
                            packed + c * z.plane + seen, z.plane, z.row_step * z.pitch,
                            steps.ctypes.data + first * _STEP + _SEEN, _STEP, count, tile,
                            M * R * V * size, patch, R * V * size, V * size, V, M, P, R, 0, V, bits,
                        )  # fmt: skip
                        values, result = pointer(patch, bits), pointer(to, bits)
                        for q in range(P):
                            for r in range(R):
                                for j in range(lanes):
                                    result[
                                        q * z.out_plane + r * z.out_row_step + j * z.out_step
                                    ] = values[(q * R + r) * V + j]

    return gather


@cache
def _given(bits: int, V: int, M: int, R: int, S: int, shifted: int) -> Any:
    """Packs the tile's part of the kernel: read once, from as many streams as there are taps."""
    size = bits // 8

    @jit
    def fill(
        tile, kernel, weights, features, seen, steps, first, count, row, column, lanes, inside, z
    ):
        source = kernel + (row * z.kernel_columns + column) * size
        line = z.kernel_columns * size
        ahead = R * line if row + R < z.kernel_rows else z.kernel_plane - row * line
        for s in range(first, first + count):
            if inside:
                copy_block(
                    tile + steps[s, TILE], source + steps[s, KERNEL], z.tap_step, line, ahead,
                    0, 0, 0, 0,
                    M, R, shifted, 0, V, bits,
                )  # fmt: skip
            else:
                y, x = row + steps[s, ROW], column + steps[s, COLUMN]
                copy_block(
                    tile + steps[s, TILE], source + steps[s, KERNEL], z.tap_step, line, ahead,
                    -x, min(lanes, z.kernel_columns - x), -y, z.kernel_rows - y,
                    M, R, shifted, 1, V, bits,
                )  # fmt: skip

    return fill


@cache
def _generated(bits: int, V: int, M: int, R: int, S: int, shifted: int) -> Any:
    """Makes the tile's part of the kernel from the features, the last of which is one (bias)."""
    size = bits // 8
    feature_tile = feature_tiles(bits, V, R)

    @jit
    def fill(
        tile, kernel, weights, features, seen, steps, first, count, row, column, lanes, inside, z
    ):
        table = steps.ctypes.data + first * _STEP
        if shifted:
            for s in range(0, count, S):
                contract_block(
                    z.features, weights + s * M * z.features * size, S * M * size,
                    features + seen, z.plane, z.pitch, table + s * _STEP + _SEEN,
                    table + s * _STEP + _TILE, _STEP, tile, R * V * size, V * size, 0, V,
                    S, M, R, 1, 1, 0, V, bits,
                )  # fmt: skip
            if inside:
                return
            for s in range(first, first + count):  # outside there is no kernel, not even the bias
                y, x = row + steps[s, ROW], column + steps[s, COLUMN]
                copy_block(
                    tile + steps[s, TILE], tile + steps[s, TILE], R * V * size, V * size, 0,
                    -x, z.kernel_columns - x, -y, z.kernel_rows - y, M, R, shifted, 1, V, bits,
                )  # fmt: skip
        else:
            feature_tile(features, kernel, row, column, lanes, R, z)
            for s in range(0, count, S):
                contract_block(
                    z.features, weights + s * M * z.features * size, S * M * size,
                    features, R * V * size, V * size, table + s * _STEP + _SEEN,
                    table + s * _STEP + _TILE, _STEP, tile, R * V * size, V * size, 0, V,
                    S, M, R, 1, 0, 0, V, bits,
                )  # fmt: skip

    return fill
