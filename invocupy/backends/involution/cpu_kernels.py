"""The compiled loops around the micro-kernels: blocks, packing, tiles.

A kernel is a serial function that takes tasks from a shared counter until none is left. Everything
it needs beside the arrays fits in scratch memory of its own thread. The factories make one
specialisation for each set of micro-kernel sizes; what depends on the image comes in at run time.

Names: an *image* here is one group of one image of the batch; a *block* is a range of rows and
columns of its positions; a *tile* is R rows times one vector of V positions. Arrays come in by
address, ``size`` is that of an element, and offsets are bytes.
"""
# Numba infers the types below.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"

from __future__ import annotations

from functools import cache
from typing import Any

from invocupy.backends.involution.cpu_plan import (
    COLUMN,
    KERNEL,
    ROW,
    SEEN,
    STEP_FIELDS,
    TILE,
    VECTOR_BYTES,
)
from invocupy.backends.jit import jit, next_task, pointer
from invocupy.backends.simd import (
    contract_block,
    copy_block,
    gather_block,
    pack_row,
    product_block,
    store_lanes,
)

_STEP = 8 * STEP_FIELDS  # bytes from one step to the next
_SEEN, _TILE, _KERNEL = 8 * SEEN, 8 * TILE, 8 * KERNEL
_WORDS = VECTOR_BYTES // 4


@cache
def gather(bits: int, V: int, M: int, R: int, P: int, S: int, shifted: int) -> Any:
    """Forward (``shifted`` 0) and gradient of x (1), P channels at once.

    The kernel is given (``S`` 0), or generated from features, S steps at once.
    """
    size = bits // 8
    fill = (_generated if S else _given)(bits, V, M, R, S, shifted)

    @jit
    def gather(tasks, scratch, counter, z, phases, steps, source, given, weight, out):
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
                source + image * z.channels * z.height * z.width * size, z.channels, top, left, held,
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
                        tile, kernel, weights, features + (skew if shifted else 0), seen, steps, first, count, row, column,
                        lanes, inside, z,
                    )  # fmt: skip
                    place = start + row * z.out_row_step + column * z.out_step
                    for p in range(0, z.channels, P):
                        c = min(p, z.channels - P)
                        to = out + ((image * z.channels + c) * z.out_plane + place) * size
                        if z.out_step == 1:
                            gather_block(
                                packed + c * z.plane + seen, z.plane, z.row_step * z.pitch,
                                steps.ctypes.data + first * _STEP + _SEEN, _STEP, count, tile,
                                to, z.out_plane * size, z.out_row_step * size, lanes,
                                M, P, R, V, bits,
                            )  # fmt: skip
                            continue
                        gather_block(
                            packed + c * z.plane + seen, z.plane, z.row_step * z.pitch,
                            steps.ctypes.data + first * _STEP + _SEEN, _STEP, count, tile,
                            patch, R * V * size, V * size, V, M, P, R, V, bits,
                        )  # fmt: skip
                        values, result = pointer(patch, bits), pointer(to, bits)
                        for q in range(P):
                            for r in range(R):
                                for j in range(lanes):
                                    result[q * z.out_plane + r * z.out_row_step + j * z.out_step] = (
                                        values[(q * R + r) * V + j]
                                    )

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
                    tile + steps[s, TILE], source + steps[s, KERNEL], z.tap_step, line, ahead, 0, 0, 0, 0,
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
    """Makes the tile's part of the kernel from the features, the last of which is one (the bias)."""
    size = bits // 8

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
                    table + s * _STEP + _TILE, _STEP, tile, R * V * size, V * size, V,
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
                    table + s * _STEP + _TILE, _STEP, tile, R * V * size, V * size, V,
                    S, M, R, 1, 0, 0, V, bits,
                )  # fmt: skip

    feature_tile = _feature_tile(bits, V, R)
    return fill


@cache
def _feature_tile(bits: int, V: int, R: int) -> Any:
    """Packs all features of a tile, and ones as the last: zero outside the first lanes and rows."""
    size = bits // 8

    @jit
    def feature_tile(to, source, row, column, lanes, rows, z):
        here = source + (row * z.kernel_columns + column) * size
        line = z.kernel_columns * size
        for f in range(z.features - 1):
            copy_block(
                to + f * R * V * size, here + f * z.kernel_rows * line, 0, line, R * line, 0, lanes, 0, rows,
                1, R, 0, 1, V, bits,
            )  # fmt: skip
        ones = pointer(to + (z.features - 1) * R * V * size, bits)
        for r in range(R):
            for j in range(V):
                ones[r * V + j] = 1 if r < rows and j < lanes else 0

    return feature_tile


@cache
def correlate(bits: int, V: int, M: int, R: int, S: int) -> Any:
    """Gradient of the kernel, S steps at once."""
    size = bits // 8

    @jit
    def correlate(tasks, scratch, counter, z, steps, grad, source, out):
        patch = scratch + z.packed_size
        table = steps.ctypes.data
        line = z.kernel_columns * size
        while True:
            task = next_task(counter)
            if task >= tasks:
                return
            task, strip = divmod(task, z.strips)
            image, band = divmod(task, z.bands)
            a0, a1 = z.kernel_rows * band // z.bands, z.kernel_rows * (band + 1) // z.bands
            b0, b1 = z.kernel_columns * strip // z.strips, z.kernel_columns * (strip + 1) // z.strips
            left = b0 * z.column_step - z.pad_columns
            packed = scratch + aligning(left, z, size)
            pack(
                source + image * z.channels * z.height * z.width * size, z.channels,
                a0 * z.row_step - z.pad_rows, left, (a1 - a0 - 1) * z.row_step + z.halo_rows + 1,
                z, packed, size,
            )  # fmt: skip
            for a in range(a0, a1, R):
                row = min(a, a1 - R)
                for b in range(b0, b1, V):
                    column = max(min(b, b1 - V), b0)
                    lanes = min(V, b1 - b0)
                    position = (row * z.kernel_columns + column) * size
                    here = grad + image * z.channels * z.kernel_rows * line + position
                    for c in range(z.channels):
                        copy_block(
                            patch + c * R * V * size, here + c * z.kernel_rows * line, 0, line,
                            R * line, 0, lanes, 0, R, 1, R, 0, 1, V, bits,
                        )  # fmt: skip
                    seen = packed + (row - a0) * z.row_step * z.pitch + (column - b0) * size
                    for s in range(0, steps.shape[0], S):
                        contract_block(
                            z.channels, patch, R * V * size, seen, z.plane, z.row_step * z.pitch,
                            table + s * _STEP + _SEEN, table + s * _STEP + _KERNEL, _STEP,
                            out + image * z.kernel_plane + position, z.tap_step, line, lanes,
                            S, M, R, 0, 1, 0, V, bits,
                        )  # fmt: skip

    return correlate


@cache
def span_gradients(bits: int, V: int, M: int, R: int, S: int, T: int, A: int, B: int) -> Any:
    """Gradient of the kernel, consumed tile by tile: gradients of features, weights and bias.

    S steps at once, T features at once for their gradient, A taps and B features for the weights'.
    A task is a range of blocks. For each group it adds its share to the gradient of the features
    (which belong to it alone) and leaves its share of the weights' in a part of its own.
    """
    size = bits // 8
    feature_tile = _feature_tile(bits, V, R)

    @jit
    def span_gradients(
        tasks, scratch, counter, z, steps, grad, source, given, weight, out, parts
    ):
        patch = scratch + z.packed_size  # grad, then gradient of features
        tile = patch + z.patch_size
        features = tile + z.tile_size
        sums = features + z.features_size
        count = steps.shape[0]
        taps = count * M
        tap_tile = -(-taps // A) * A * R * V * size
        span = -(-z.features // B) * B
        feature_bytes = span * R * V * size
        blocks = z.images * z.bands * z.strips
        line = z.kernel_columns * size
        plane = z.kernel_rows * line
        table = steps.ctypes.data
        total = pointer(sums, bits)
        while True:
            task = next_task(counter)
            if task >= tasks:
                return
            for group in range(z.groups):
                for k in range(-(-taps // A) * A * span * V):
                    total[k] = 0
                for block in range(blocks * task // tasks, blocks * (task + 1) // tasks):
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
                        a0 * z.row_step - z.pad_rows, left, (a1 - a0 - 1) * z.row_step + z.halo_rows + 1,
                        z, packed, size,
                    )  # fmt: skip
                    tiles = 0
                    for a in range(a0, a1, R):
                        rows = min(R, a1 - a)
                        for b in range(b0, b1, V):
                            lanes = min(V, b1 - b)
                            position = (a * z.kernel_columns + b) * size
                            here = grad + image * z.channels * plane + position
                            for c in range(z.channels):
                                copy_block(
                                    patch + c * R * V * size, here + c * plane, 0, line, R * line, 0, lanes,
                                    0, rows, 1, R, 0, 1, V, bits,
                                )  # fmt: skip
                            to = tile + tiles * tap_tile
                            seen = packed + (a - a0) * z.row_step * z.pitch + (b - b0) * size
                            for s in range(0, count, S):
                                contract_block(
                                    z.channels, patch, R * V * size, seen, z.plane,
                                    z.row_step * z.pitch, table + s * _STEP + _SEEN,
                                    table + s * _STEP + _TILE, _STEP, to, R * V * size, V * size,
                                    V, S, M, R, 0, 1, 0, V, bits,
                                )  # fmt: skip
                            if lanes < V or rows < R:
                                for t in range(taps):
                                    place = to + t * R * V * size
                                    copy_block(
                                        place, place, 0, V * size, 0, 0, lanes, 0, rows,
                                        1, R, 0, 1, V, bits,
                                    )  # fmt: skip
                            feature_tile(
                                features + tiles * feature_bytes, given + number * z.kernel_plane,
                                a, b, lanes, rows, z,
                            )  # fmt: skip
                            # the first group finds nothing to add to
                            known = lanes if group else 0
                            mine = out + number * z.kernel_plane + position
                            for f in range(0, z.features - 1, T):
                                for k in range(T):
                                    copy_block(
                                        patch + k * R * V * size, mine + (f + k) * plane, 0, line, 0,
                                        0, known, 0, rows if f + k < z.features - 1 else 0,
                                        1, R, 0, 1, V, bits,
                                    )  # fmt: skip
                                contract_block(
                                    taps, weight + (group * z.padded + f) * taps * size, T * size,
                                    to, R * V * size, V * size, table, z.zero, 0, patch,
                                    R * V * size, V * size, V, 1, T, R, 1, 0, 1, V, bits,
                                )  # fmt: skip
                                for k in range(min(T, z.features - 1 - f)):
                                    for r in range(rows):
                                        store_lanes(
                                            mine + (f + k) * plane + r * line,
                                            patch + (k * R + r) * V * size, lanes, V, bits,
                                        )  # fmt: skip
                            tiles += 1
                    for t in range(0, taps, A):
                        for f in range(0, z.features, B):
                            product_block(
                                tiles, tile + t * R * V * size, tap_tile,
                                features + f * R * V * size, feature_bytes,
                                sums + (t * span + f) * V * size, span * V * size,
                                A, B, R, V, bits,
                            )  # fmt: skip
                part = pointer(parts + (task * z.groups + group) * taps * z.features * size, bits)
                for t in range(taps):
                    for f in range(z.features):
                        first = (t * span + f) * V
                        value = total[first]
                        for j in range(1, V):
                            value += total[first + j]
                        part[t * z.features + f] = value

    return span_gradients


@jit
def aligning(left, z, size):
    """Where to begin packing so that source columns of whole vectors land on whole cache lines."""
    lead = min(max(-left, 0), z.phase_width)
    return VECTOR_BYTES + (-lead * size) % VECTOR_BYTES


@jit
def pack(source, channels, top, left, rows, z, out, size):
    """``out[c, q]`` = row top + q of ``source`` (channels, height, width) from column ``left`` on.

    Zero outside. With a column step the columns left + phase + step * b are packed phase by phase.
    """
    words = size // 4
    lead = min(max(-left, 0), z.phase_width)
    count = max(min(z.width - left, z.phase_width) - lead, 0)
    for c in range(channels):
        for q in range(rows):
            inside = 0 <= top + q < z.height
            start = source + ((c * z.height + top + q) * z.width + left) * size
            to = out + c * z.plane + q * z.pitch
            if z.column_step == 1:
                here = count if inside else 0
                pack_row(
                    to + lead * size, start + lead * size, lead * words, here * words,
                    (z.phase_width - lead - here) * words, _WORDS, 32,
                )  # fmt: skip
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
def pack_inside(top, left, rows, z, out, size):
    """Like :func:`pack` of one channel of ones: where the source has something."""
    for q in range(rows):
        for b in range(z.phase_width):
            seen = 0 <= top + q < z.height and 0 <= left + b < z.width
            if size == 4:
                pointer(out + q * z.pitch, 32)[b] = 1 if seen else 0
            else:
                pointer(out + q * z.pitch, 64)[b] = 1 if seen else 0
