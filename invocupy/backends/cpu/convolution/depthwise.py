"""Depthwise convolution on the CPU: an involution whose kernel is the same at all positions.

Planes are packed with zeros around them, and cut, as those of an involution are
(:mod:`invocupy.backends.cpu.plan`); a vector of positions then sees a vector through
each tap, and each row of it that is loaded serves all rows of results that see it.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.access import Record, read
from invocupy.backends.cpu.blocks import block_of, pack
from invocupy.backends.cpu.contract import ONCE, add_lanes, dot_taps, taps
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import filling, interleave
from invocupy.backends.cpu.plan import PHASE, SEEN, STEP, Phase, Plan, plan
from invocupy.backends.cpu.pointwise import PARTS
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import ACCUMULATORS, VECTOR_BYTES, call
from invocupy.backends.far import bounded
from invocupy.geometry import Geometry

_CHANNELS = 8  # in a task at most
_ROWS = 8  # of results in registers
_GRAD_ROWS = 4  # of the gradient
_BUDGET = 192 << 10  # bytes of packed planes in a task: a part of a core's second-level cache


Gather = namedtuple("Gather", "plan source weight bias out")
Correlate = namedtuple("Correlate", "plan grad x sums one_row parts")


class _Job(NamedTuple):
    """The parts of a call that do not depend on the contents of its arrays."""

    plan: Plan
    record: Record
    blocks: int  # of channels and positions of an image
    scratch: int
    work: int


@bounded
def forward(x: Any, weight: Any, bias: Any, window: Any, out: Any) -> None:
    """``out = bias + sum over taps of weight[tap] * (x seen through the tap)``."""
    _gather(x, weight, bias, _geometry(x, weight, window, out), False, out)


@bounded
def grad_x(grad: Any, weight: Any, window: Any, out: Any) -> None:
    """The transpose of :func:`forward` in ``x``."""
    _gather(grad, weight, None, _geometry(out, weight, window, grad), True, out)


@bounded
def grad_weight(grad: Any, x: Any, window: Any, out: Any, grad_bias: Any) -> None:
    """Sums over positions in vector lanes: a part of the images, some channels and positions."""
    job = _correlate_job(_geometry(x, out, window, grad), x.itemsize)
    p, taps, bits = job.plan, len(job.plan.taps), 8 * x.itemsize
    parts = max(min(PARTS // job.blocks, len(x)), 1)
    sums = np.empty((parts, p.bands * p.strips, len(out), taps), np.float64)
    one_row = dot_taps(p.together, p.run, 1, p.lanes, bits)
    launch(
        _correlate(bits), job.blocks * parts, job.work, job.scratch,
        Correlate(job.record, grad, x, sums, one_row, parts),
    )  # fmt: skip
    out.reshape(len(out), taps)[:, p.taps] = sums.sum(axis=(0, 1))
    if grad_bias is not None:
        grad_bias[...] = grad.sum(axis=(2, 3)).sum(axis=0)


def _geometry(x: Any, weight: Any, window: Any, out: Any) -> Geometry:
    """An involution whose groups are the channels of a task."""
    channels = x.shape[1]
    groups = channels // max(c for c in range(1, _CHANNELS + 1) if channels % c == 0)
    (stride, padding, dilation), size = window, weight.shape[2:]
    return Geometry(
        x.shape[0], channels, groups, x.shape[2:], size, out.shape[2:], stride, padding, dilation
    )


def _gather(
    source: Array, weight: Array, bias: Array | None, g: Geometry, backward: bool, out: Array
) -> None:  # fmt: skip
    job = _gather_job(g, source.itemsize, backward)
    offset = np.zeros(len(weight), source.dtype) if bias is None else bias
    factors = weight.reshape(len(weight), -1).take(job.plan.taps, axis=1)
    launch(
        _gathering(8 * source.itemsize), job.blocks * g.batch, job.work, job.scratch,
        Gather(job.record, source, factors, offset, out),
    )  # fmt: skip


@lru_cache(maxsize=512)
def _gather_job(g: Geometry, size: int, backward: bool) -> _Job:
    p = plan(g, size, backward=backward, rows=_ROWS, budget=_BUDGET)
    p = p._replace(
        contract=taps(p.run, 1, p.rows, 1, 0, ONCE, p.lanes, 8 * size),
        interleave=interleave(p.interleaved, p.rows, p.lanes, 8 * size),
    )
    return _job(g, p, p.interleaved * p.rows * VECTOR_BYTES)


@lru_cache(maxsize=512)
def _correlate_job(g: Geometry, size: int) -> _Job:
    p = plan(g, size, backward=False, rows=_GRAD_ROWS, budget=_BUDGET, halves=False)
    most = max(ACCUMULATORS // p.run, 1)
    together = max(s for s in range(1, most + 1) if len(p.steps) % s == 0)
    code = dot_taps(together, p.run, p.rows, p.lanes, 8 * size)
    p = p._replace(together=together, contract=code)
    return _job(g, p, g.channels_per_group * len(p.taps) * VECTOR_BYTES)


def _job(g: Geometry, p: Plan, more: int) -> _Job:
    work = g.batch * g.channels * prod(g.out) * prod(g.kernel)
    return _Job(p, Record(p), g.groups * p.bands * p.strips, p.packed_size + more, work // 8)


@cache
def _gathering(bits: int) -> Any:
    """Forward and gradient of x."""
    size, fill = bits // 8, filling(bits)

    @jit
    def interleaved(plan, phase, seen, weight, bias, out, patch):
        """The tiles of the phases that share a row, one after another in ``patch``, then merged."""
        p = read(plan, Plan)
        vector = p.lanes * size
        for s in range(p.interleaved):
            own = read(p.phases + (phase + s) * PHASE, Phase)
            to = patch + s * p.rows * vector
            if own.steps > 0:
                call(p.contract, (
                    seen, 0, p.row_step * p.pitch, p.steps + own.first_step * STEP + SEEN, STEP,
                    own.steps, weight + own.first_step * p.run * size, p.run * size, bias, to, 0,
                    vector, p.lanes,
                ))  # fmt: skip
            else:  # no tap reaches this phase
                fill(to, p.rows * p.lanes, 0)

    @jit
    def body(task, turn, scratch, words):
        c = read(words, Gather)
        p = read(c.plan, Plan)
        V, R, line, pitch = p.lanes, p.rows, p.row_step * p.pitch, p.out_row_step * size
        patch, taps = scratch + p.packed_size, p.step_count * p.run * size
        block = block_of(task, c.plan, size)
        packed = scratch + block.skew
        fresh = turn == 0 or p.strips > 1
        pack(c.source, block.image, p.channels, block, 0, c.plan, packed, size, fresh)
        lanes = min(V, block.end_column - block.first_column)
        for job in range(p.channels * (p.phase_count // p.interleaved)):
            k, phase = divmod(job, p.phase_count // p.interleaved)
            own = read(p.phases + phase * p.interleaved * PHASE, Phase)
            channel, end = block.image % p.groups * p.channels + k, min(block.end_row, own.rows)
            target = c.out + ((block.image * p.channels + k) * p.out_channel + own.out) * size
            weight, bias = c.weight + channel * taps, c.bias + channel * size
            table, given = p.steps + own.first_step * STEP + SEEN, own.first_step * p.run * size
            for a in range(block.first_row, end, R):
                row = min(a, end - R)
                for b in range(block.first_column, block.end_column, V):
                    column = max(min(b, block.end_column - V), block.first_column)
                    seen = packed + k * p.channel + (row - block.first_row) * line
                    seen += (column - block.first_column) * size
                    out = target + (row * p.out_row_step + column * p.out_step) * size
                    if p.direct:
                        call(p.contract, (
                            seen, 0, line, table, STEP, own.steps, weight + given, p.run * size,
                            bias, out, 0, pitch, lanes,
                        ))  # fmt: skip
                    else:
                        first = phase * p.interleaved
                        interleaved(c.plan, first, seen, weight, bias, out, patch)
                        call(p.interleave, (
                            patch, 1, out, 0, pitch,
                            min(p.interleaved * V, p.out_width - column * p.out_step),
                        ))  # fmt: skip

    return body


@cache
def _correlate(bits: int) -> Any:
    """Gradient of the weights."""
    size, fill, lanes_of = bits // 8, filling(bits), add_lanes(bits)

    @jit
    def body(task, turn, scratch, words):
        c = read(words, Correlate)
        p = read(c.plan, Plan)
        V, taps, line = p.lanes, p.step_count * p.run, p.row_step * p.pitch
        held, pitch = scratch + p.packed_size, p.kernel_columns * size
        task, part = divmod(task, c.parts)
        blocks = p.bands * p.strips
        group, number = divmod(task, blocks)
        fill(held, p.channels * taps * V, 0)
        fresh = turn == 0 or p.strips > 1
        for n in range(p.images * part // c.parts, p.images * (part + 1) // c.parts):
            block = block_of((n * p.groups + group) * blocks + number, c.plan, size)
            packed, columns = scratch + block.skew, block.end_column - block.first_column
            pack(c.x, block.image, p.channels, block, 0, c.plan, packed, size, fresh)
            fresh = p.strips > 1
            for k in range(p.channels):
                grad = (block.image * p.channels + k) * p.out_channel + block.first_column
                a = block.first_row
                while a < block.end_row:
                    whole = a + p.rows <= block.end_row
                    seen = packed + k * p.channel + (a - block.first_row) * line
                    for s in range(0, p.step_count, p.together):
                        call(p.contract if whole else c.one_row, (
                            seen, line, p.steps + SEEN + s * STEP, STEP,
                            c.grad + grad * size + a * pitch, pitch, columns,
                            held + (k * taps + s * p.run) * V * size,
                        ))  # fmt: skip
                    a += p.rows if whole else 1
        first = ((part * blocks + number) * p.groups + group) * p.channels * taps
        lanes_of(held, V, p.channels, taps, taps, c.sums + first * 8, taps)

    return body
