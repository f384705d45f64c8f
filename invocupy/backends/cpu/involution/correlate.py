"""The compiled loops of the gradient of the kernel, and of those of features and weights."""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

from invocupy.backends.cpu.access import read
from invocupy.backends.cpu.blocks import block_of, feature_tile, pack, steps_of
from invocupy.backends.cpu.jit import inlined, jit
from invocupy.backends.cpu.plan import KERNEL, SEEN, STEP, TILE, Plan
from invocupy.backends.cpu.vector import call

Correlate = namedtuple("Correlate", "plan grad source out")
SpanGradients = namedtuple("SpanGradients", "plan codes grad source given weight out parts shares")
Codes = namedtuple("Codes", "add product store each_time across")


@inlined
def _pack_grad(plan, grad, to, lanes, rows, size):
    """All channels of a tile, zero outside of its first lanes and rows."""
    p = read(plan, Plan)
    tile, line = p.rows * p.lanes * size, p.kernel_columns * size
    for k in range(p.channels):
        call(p.copy, (
            to + k * tile, grad + k * p.kernel_depth * p.kernel_rows * line, 0, line, p.rows * line,
            0, lanes, 0, rows,
        ))  # fmt: skip


@cache
def correlate(bits: int) -> Any:
    """Gradient of the kernel."""
    size = bits // 8

    @inlined
    def kernel_plane(plan, block, steps, packed, patch, grad, out):
        """The gradient of one plane of positions."""
        p = read(plan, Plan)
        V, R = p.lanes, p.rows
        line, step = p.kernel_columns * size, p.row_step * p.pitch
        channel = p.kernel_depth * p.kernel_rows * line
        for a in range(block.first_row, block.end_row, R):
            row = min(a, block.end_row - R)
            for b in range(block.first_column, block.end_column, V):
                wide, contract = V, p.contract
                if block.end_column - b <= p.half:
                    wide, contract = p.half, p.contract_half
                column = max(min(b, block.end_column - wide), block.first_column)
                lanes = min(wide, block.end_column - block.first_column)
                position = row * line + column * size
                left, plane, pitch = grad + position, channel, line
                if not p.unpacked:
                    _pack_grad(plan, left, patch, lanes, R, size)
                    left, plane, pitch = patch, R * V * size, V * size
                seen = packed + (row - block.first_row) * step
                seen += (column - block.first_column) * size
                for s in range(0, p.step_count, p.together):
                    table = steps + s * STEP
                    call(contract, (
                        p.channels, left, plane, pitch, seen, p.channel, step, table + SEEN,
                        table + KERNEL, STEP, out + position, p.tap_step, line, R * line, lanes,
                    ))  # fmt: skip

    @jit
    def body(task, turn, scratch, words):
        c = read(words, Correlate)
        p = read(c.plan, Plan)
        block = block_of(task, c.plan, size)
        unit, packed, patch = block.unit, scratch + block.skew, scratch + p.packed_size
        fresh, plane = turn == 0 or p.strips > 1, p.kernel_rows * p.kernel_columns * size
        grad = c.grad + block.image * p.channels * p.kernel_depth * plane
        out = c.out + block.image * p.kernel_bytes
        for t in range(unit.results):
            depth = unit.first + t * unit.step
            pack(c.source, block.image, p.channels, block, t, c.plan, packed, size, fresh)
            kernel_plane(
                c.plan, block, steps_of(c.plan, unit, t), packed, patch, grad + depth * plane,
                out + depth * plane,
            )  # fmt: skip

    return body


@cache
def span_gradients(bits: int) -> Any:
    """Gradient of the kernel, consumed tile by tile: gradients of features, weights and bias.

    A task is a range of blocks. For each group it adds its share to the gradient of the features
    (which belong to it alone) and leaves its share of the weights' in a part of its own. In
    registers are S steps, or T features, or products of A taps and B features.
    """
    size = bits // 8

    @inlined
    def kernel_gradient(plan, steps, grad, patch, tile, seen, rows, lanes):
        """That of one tile; zero outside of the given rows and lanes."""
        p = read(plan, Plan)
        vector = p.lanes * size
        _pack_grad(plan, grad, patch, lanes, rows, size)
        for s in range(0, p.step_count, p.together):
            table = steps + s * STEP
            call(p.contract, (
                p.channels, patch, p.rows * vector, vector, seen, p.channel, p.row_step * p.pitch,
                table + SEEN, table + TILE, STEP, tile, p.rows * vector, vector, 0, p.lanes,
            ))  # fmt: skip
        if lanes < p.lanes or rows < p.rows:
            for t in range(p.step_count * p.run):
                place = tile + t * p.rows * vector
                call(p.copy, (place, place, 0, vector, 0, 0, lanes, 0, rows))

    @inlined
    def add_features(plan, codes, out, patch, tile, weight, group, rows, lanes):
        """The gradient of the features of one tile; the first group finds nothing to add to."""
        p, code = read(plan, Plan), read(codes, Codes)
        T, vector, line = p.at_once, p.lanes * size, p.kernel_columns * size
        taps, known = p.step_count * p.run, lanes if group else 0
        channel = p.kernel_depth * p.kernel_rows * line
        for f in range(0, p.features - 1, T):
            for k in range(T):
                call(p.copy, (
                    patch + k * p.rows * vector, out + (f + k) * channel, 0, line, 0, 0, known, 0,
                    rows if f + k < p.features - 1 else 0,
                ))  # fmt: skip
            call(code.add, (
                taps, weight + (group * p.padded + f) * taps * size, T * size, 0, tile,
                p.rows * vector, patch, p.rows * vector, T, p.lanes,
            ))  # fmt: skip
            for k in range(min(T, p.features - 1 - f)):
                for r in range(rows):
                    call(code.store, (
                        out + (f + k) * channel + r * line, patch + (k * p.rows + r) * vector,
                        lanes,
                    ))  # fmt: skip

    @inlined
    def plane(words, block, group, t, packed, own, part):
        """One plane of a block; ``own`` is memory for grad, gradients and features of tiles."""
        c = read(words, SpanGradients)
        p, code = read(c.plan, Plan), read(c.codes, Codes)
        V, R, A, B = p.lanes, p.rows, code.each_time, code.across
        taps, line, vector = p.step_count * p.run, p.kernel_columns * size, R * V * size
        tap_rows, span = -(-taps // A) * A, -(-p.features // B) * B
        tiles, steps = own + p.patch_size, steps_of(c.plan, block.unit, t)
        features = tiles + p.tile_size
        depth = (block.unit.first + t * block.unit.step) * p.kernel_rows * line
        given = block.image // p.groups * p.kernel_bytes + depth
        grad = c.grad + block.image * p.channels * p.kernel_depth * p.kernel_rows * line + depth
        tile = 0
        for a in range(block.first_row, block.end_row, R):
            rows = min(R, block.end_row - a)
            for b in range(block.first_column, block.end_column, V):
                lanes, position = min(V, block.end_column - b), a * line + b * size
                to, held = tiles + tile * tap_rows * vector, features + tile * span * vector
                seen = packed + (a - block.first_row) * p.row_step * p.pitch
                seen += (b - block.first_column) * size
                kernel_gradient(c.plan, steps, grad + position, own, to, seen, rows, lanes)
                feature_tile(held, c.given + given, a, b, lanes, rows, c.plan, size)
                add_features(
                    c.plan, c.codes, c.out + given + position, own, to, c.weight, group, rows, lanes
                )
                tile += 1
        for t in range(0, taps, A):
            call(code.product, (
                tile, tiles + t * vector, vector, tap_rows * vector, features, vector,
                span * vector, part + t * span * size, span * size, span // B,
            ))  # fmt: skip

    @jit
    def body(task, turn, scratch, words):
        c = read(words, SpanGradients)
        p, code = read(c.plan, Plan), read(c.codes, Codes)
        taps = -(-p.step_count * p.run // code.each_time) * code.each_time
        span = -(-p.features // code.across) * code.across
        number = p.unit_count * p.bands * p.strips  # blocks of an image
        blocks = p.images * number
        first, last = blocks * task // c.shares, blocks * (task + 1) // c.shares
        fresh = turn == 0
        for job in range(p.groups * (last - first)):
            group, rest = divmod(job, last - first)
            image, rest = divmod(first + rest, number)
            block = block_of((image * p.groups + group) * number + rest, c.plan, size)
            packed = scratch + block.skew
            part = c.parts + (task * p.groups + group) * taps * span * size
            for t in range(block.unit.results):
                fresh = fresh or p.strips > 1
                pack(c.source, block.image, p.channels, block, t, c.plan, packed, size, fresh)
                plane(words, block, group, t, packed, scratch + p.packed_size, part)
            fresh = False

    return body
