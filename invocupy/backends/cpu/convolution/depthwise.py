"""Depthwise convolution on the CPU: an involution whose kernel is the same at all positions.

Planes are packed with zeros around them, and cut, as those of an involution are
(:mod:`invocupy.backends.cpu.plan`); a vector of positions then sees a vector through
each tap, and each row of it that is loaded serves all rows of results that see it.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from invocupy.backends.cpu.access import Record, pointer, read
from invocupy.backends.cpu.convolution.blocks import correlate_taps, spread_taps
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import aligning, pack
from invocupy.backends.cpu.move import interleave as interleave_block
from invocupy.backends.cpu.plan import PHASE, SEEN, STEP, Phase, Plan, Sizes, plan, sizes
from invocupy.backends.cpu.pointwise import PARTS
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import ACCUMULATORS, VECTOR_BYTES, call
from invocupy.backends.far import bounded
from invocupy.geometry import Geometry

_CHANNELS = 8  # in a task at most
_ROWS = 8  # of results in registers
_GRAD_ROWS = 4  # of the gradient
_BUDGET = 192 << 10  # bytes of packed planes in a task: a part of a core's second-level cache


Gather = namedtuple("Gather", "sizes source weight bias out code interleave")
Correlate = namedtuple("Correlate", "sizes grad x sums code code_of_one together parts")


class _Job(NamedTuple):
    """All of a call that does not depend on the arrays' contents."""

    plan: Plan
    sizes: Record
    blocks: int  # of channels and positions of an image
    scratch: int
    work: int


@bounded
def forward(x: Any, weight: Any, bias: Any, window: Any, out: Any) -> None:
    """``out = bias + sum over taps of weight[tap] * (x seen through the tap)``."""
    offset = np.zeros(len(weight), x.dtype) if bias is None else bias
    _gather(x, weight, offset, _geometry(x, weight, window, out), False, out)


@bounded
def grad_x(grad: Any, weight: Any, window: Any, out: Any) -> None:
    """The transpose of :func:`forward` in ``x``."""
    nothing = np.zeros(len(weight), grad.dtype)
    _gather(grad, weight, nothing, _geometry(out, weight, window, grad), True, out)


@bounded
def grad_weight(grad: Any, x: Any, window: Any, out: Any, grad_bias: Any) -> None:
    """Sums over positions in vector lanes: a part of the images, some channels and positions."""
    job = _correlate_job(_geometry(x, out, window, grad), x.itemsize)
    p, taps, bits = job.plan, len(job.plan.taps), 8 * x.itemsize
    parts = max(min(PARTS // job.blocks, len(x)), 1)
    sums = np.empty((parts, p.bands * p.strips, len(out), taps), np.float64)
    most = ACCUMULATORS // p.run
    together = max(s for s in range(1, max(most, 1) + 1) if len(p.steps) % s == 0)
    code = [correlate_taps(together, p.run, rows, p.lanes, bits) for rows in (p.rows, 1)]
    launch(
        _correlate(bits), job.blocks * parts, job.work, job.scratch,
        Correlate(job.sizes, grad, x, sums, *code, together, parts),
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
        x.shape[0], channels, groups, *x.shape[2:], *size, *out.shape[2:], *stride, *padding,
        *dilation,
    )  # fmt: skip


def _gather(source: Any, weight: Any, bias: Any, g: Geometry, backward: bool, out: Any) -> None:
    job, bits = _gather_job(g, source.itemsize, backward), 8 * source.itemsize
    p = job.plan
    launch(
        _gathering(bits), job.blocks * g.batch, job.work, job.scratch,
        Gather(job.sizes, source,
        weight.reshape(len(weight), -1).take(p.taps, axis=1), bias, out,
        spread_taps(p.run, p.rows, p.lanes, bits),
        interleave_block(p.interleaved, p.rows, p.lanes, bits),
        ),
    )  # fmt: skip


@lru_cache(maxsize=512)
def _gather_job(g: Geometry, size: int, backward: bool) -> _Job:
    p = plan(g, size, backward=backward, rows=_ROWS, budget=_BUDGET)
    z = sizes(g, p, size)
    if backward:
        z = z._replace(
            height=g.out_h, width=g.out_w, out_plane=g.height * g.width, out_width=g.width,
            out_row_step=g.stride_h * g.width, out_step=g.stride_w, interleaved=p.interleaved,
            direct=int(p.direct),
        )  # fmt: skip
    blocks = g.groups * p.bands * p.strips
    patch = p.interleaved * p.rows * VECTOR_BYTES
    return _job(g, p, z, blocks, patch)


@lru_cache(maxsize=512)
def _correlate_job(g: Geometry, size: int) -> _Job:
    p = plan(g, size, backward=False, rows=_GRAD_ROWS, budget=_BUDGET, halves=False)
    more = g.channels_per_group * len(p.taps) * VECTOR_BYTES
    return _job(g, p, sizes(g, p, size), g.groups * p.bands * p.strips, more)


def _job(g: Geometry, p: Plan, z: Sizes, blocks: int, more: int) -> _Job:
    work = g.batch * g.channels * g.out_h * g.out_w * g.kernel_h * g.kernel_w
    return _Job(p, Record(z), blocks, z.packed_size + more, work // 8)


@cache
def _gathering(bits: int) -> Any:
    """Forward and gradient of x."""
    size = bits // 8

    @jit
    def body(task, turn, scratch, words):
        sizes, source, weight, bias, out, code, interleave = read(words, Gather)
        z = read(sizes, Sizes)
        widest = read(z.phases, Phase)
        V, M, R, S = z.lanes, z.run, z.rows, z.interleaved
        patch = scratch + z.packed_size
        taps, line = z.step_count * M * size, z.row_step * z.pitch
        fresh = turn == 0 or z.strips > 1
        task, strip = divmod(task, z.strips)
        image, band = divmod(task, z.bands)
        a0, a1 = widest.rows * band // z.bands, widest.rows * (band + 1) // z.bands
        b0 = widest.columns * strip // z.strips
        b1 = widest.columns * (strip + 1) // z.strips
        top, left = widest.top + a0 * z.row_step, widest.left + b0 * z.column_step
        packed = scratch + aligning(left, z, size)
        pack(
            source + image * z.channels * z.height * z.width * size, z.channels, top, left,
            (a1 - a0 - 1) * z.row_step + z.halo_rows + 1, z, packed, size, fresh,
        )  # fmt: skip
        lanes = min(V, b1 - b0)
        for c in range(z.channels):
            channel = image % z.groups * z.channels + c
            for phase in range(0, z.phase_count, S):
                row_of = read(z.phases + phase * PHASE, Phase)
                end = min(a1, row_of.rows)
                target = (image * z.channels + c) * z.out_plane + row_of.out
                for a in range(a0, end, R):
                    row = min(a, end - R)
                    for b in range(b0, b1, V):
                        column = max(min(b, b1 - V), b0)
                        seen = packed + c * z.plane + (row - a0) * line + (column - b0) * size
                        place = target + row * z.out_row_step + column * z.out_step
                        to = out + place * size
                        for s in range(S):
                            own = read(z.phases + (phase + s) * PHASE, Phase)
                            first, count = own.first_step, own.steps
                            table = z.steps + first * STEP + SEEN
                            given = weight + channel * taps + first * M * size
                            if z.direct:
                                call(code, (
                                    seen, line, table, STEP, count, given,
                                    bias + channel * size, to, z.out_row_step * size, lanes,
                                ))  # fmt: skip
                            elif count > 0:
                                call(code, (
                                    seen, line, table, STEP, count, given,
                                    bias + channel * size, patch + s * R * V * size, V * size,
                                    V,
                                ))  # fmt: skip
                            else:  # no tap reaches this phase
                                values = pointer(patch + s * R * V * size, bits)
                                for j in range(R * V):
                                    values[j] = 0
                        if not z.direct:
                            call(interleave, (
                                patch, 1, to, 0, z.out_row_step * size,
                                min(S * V, z.out_width - column * z.out_step),
                            ))  # fmt: skip

    return body


@cache
def _correlate(bits: int) -> Any:
    """Gradient of the weights."""
    size = bits // 8

    @jit
    def body(task, turn, scratch, words):
        sizes, grad, x, sums, code, code_of_one, together, parts = read(words, Correlate)
        z = read(sizes, Sizes)
        V, M, R = z.lanes, z.run, z.rows
        taps, line = z.step_count * M, z.row_step * z.pitch
        held = scratch + z.packed_size
        lanes, out = pointer(held, bits), pointer(sums, 64)
        table = z.steps + SEEN
        fresh = turn == 0 or z.strips > 1
        task, part = divmod(task, parts)
        group, block = divmod(task, z.bands * z.strips)
        band, strip = divmod(block, z.strips)
        a0, a1 = z.kernel_rows * band // z.bands, z.kernel_rows * (band + 1) // z.bands
        b0 = z.kernel_columns * strip // z.strips
        columns = z.kernel_columns * (strip + 1) // z.strips - b0
        top, left = a0 * z.row_step - z.pad_rows, b0 * z.column_step - z.pad_columns
        packed = scratch + aligning(left, z, size)
        for i in range(z.channels * taps * V):
            lanes[i] = 0
        for n in range(z.images * part // parts, z.images * (part + 1) // parts):
            image = n * z.groups + group
            pack(
                x + image * z.channels * z.height * z.width * size, z.channels, top, left,
                (a1 - a0 - 1) * z.row_step + z.halo_rows + 1, z, packed, size, fresh,
            )  # fmt: skip
            fresh = z.strips > 1
            for c in range(z.channels):
                here = grad + ((image * z.channels + c) * z.out_plane + b0) * size
                a = a0
                while a < a1:
                    whole = a + R <= a1
                    for s in range(0, z.step_count, together):
                        call(code if whole else code_of_one, (
                            packed + c * z.plane + (a - a0) * line, line, table + s * STEP,
                            STEP, here + a * z.kernel_columns * size, z.kernel_columns * size,
                            columns, held + (c * taps + s * M) * V * size,
                        ))  # fmt: skip
                    a += R if whole else 1
        for c in range(z.channels):
            for t in range(taps):
                total = 0.0
                for v in range(V):
                    total += lanes[(c * taps + t) * V + v]
                channel = group * z.channels + c
                place = (part * z.bands * z.strips + block) * z.groups * z.channels + channel
                out[place * taps + t] = total

    return body
