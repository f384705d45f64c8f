"""Involution on the CPU: Numba kernels of explicit vector code over a pool of threads.

Sizes of the micro-kernels are chosen here (see :mod:`invocupy.backends.cpu.vector`), tables of what
each tap sees in :mod:`invocupy.backends.cpu.plan`; the loops are in :mod:`.gather` and
:mod:`.correlate`. Loops are compiled for an element type; what depends on kernel and block sizes is
micro-kernels, and nothing depends on an image size. No result depends on the number of threads:
each position is computed by one task, in a fixed order, and the weight gradients are summed in
parts whose number depends on the sizes alone.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from invocupy.backends.cpu.access import Record
from invocupy.backends.cpu.contract import (
    ELEMENTS,
    NEAR,
    PAST,
    STORE,
    TARGET,
    contract,
    dot,
    multiply,
    taps,
)
from invocupy.backends.cpu.involution import correlate as cpu_correlate
from invocupy.backends.cpu.involution import gather as cpu_gather
from invocupy.backends.cpu.move import copy_tile, interleave, store_part
from invocupy.backends.cpu.plan import Plan, plan
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import ACCUMULATORS, LINE, VECTOR_BYTES, up
from invocupy.backends.far import bounded
from invocupy.geometry import Geometry

_GRAIN = 8  # multiply-adds that take as long as a unit of work of launch
_BUDGET = 192 << 10  # bytes of packed source in a block: a part of a core's second-level cache
_CACHES = 16 << 20  # bytes of operands and result that cores may find in cache another time
_KERNEL = 64 << 10  # bytes of the kernel's tiles that are packed together
_PARTS = 16  # shares of the weight gradients
_TILES = 8  # tiles of a block whose kernel gradient is kept for the weight gradients
# products of taps and features for the weight gradients, in registers
_TAPS_AT_ONCE, _FEATURES_AT_ONCE = (4, 6) if ACCUMULATORS == 24 else (3, 4)


class _Job(NamedTuple):
    """The parts of a call that do not depend on the contents of its arrays."""

    body: Any
    record: Any  # the NamedTuple that the body reads
    plan: Plan
    fixed: tuple[Record, ...]
    tasks: int
    scratch: int
    work: int


@bounded
def forward(x: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """``out = sum over taps of kernel[tap] * (x seen through the tap)``."""
    if _empty(x, out):
        return
    _run(_gather_job(g, out.itemsize, False, 0), x, kernel, None, out)


@bounded
def grad_x(grad: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """The transpose of :func:`forward` in ``x``."""
    if _empty(grad, out):
        return
    _run(_gather_job(g, out.itemsize, True, 0), grad, kernel, None, out)


@bounded
def grad_kernel(grad: Any, x: Any, g: Geometry, out: Any) -> None:
    """``out[tap] = sum over the group's channels of grad * (x seen through the tap)``."""
    if _empty(x, out):
        return
    _run(_correlate_job(g, out.itemsize), grad, x, out)


@bounded
def fused_forward(x: Any, features: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> None:
    """:func:`forward` with ``kernel = weight @ features + bias``, a tile at a time."""
    if _empty(x, out):
        return
    job = _gather_job(g, out.itemsize, False, features.shape[1] + 1)
    _run(job, x, features, _by_steps(weight, bias, g, job), out)


@bounded
def fused_grad_x(grad: Any, features: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> None:
    """:func:`grad_x` with ``kernel = weight @ features + bias``, a tile at a time."""
    if _empty(grad, out):
        return
    job = _gather_job(g, out.itemsize, True, features.shape[1] + 1)
    _run(job, grad, features, _by_steps(weight, bias, g, job), out)


@bounded
def fused_grad_span(
    grad: Any, x: Any, features: Any, weight: Any, g: Geometry,
    grad_features: Any, grad_weight: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """:func:`grad_kernel` propagated through the 1x1 convolution that generates the kernel."""
    if _empty(x, grad_weight) or _empty(grad, grad_weight):
        grad_features[...], grad_weight[...], grad_bias[...] = 0, 0, 0
        return
    number_of_taps, number = prod(g.kernel), features.shape[1]
    job = _span_job(g, grad.itemsize, number)
    order = job.plan.taps
    # (G, number_of_taps, F) -> (G, F / wide, number_of_taps, wide)
    blocks = np.zeros((g.groups, number_of_taps, job.plan.padded), weight.dtype)
    blocks[:, :, :number] = weight.reshape(g.groups, number_of_taps, number)[:, order]
    blocks = (
        blocks.reshape(g.groups, number_of_taps, -1, job.plan.at_once).transpose(0, 2, 1, 3).copy()
    )
    shape = up(number_of_taps, _TAPS_AT_ONCE), up(number + 1, _FEATURES_AT_ONCE)
    parts = np.zeros((job.tasks, g.groups, *shape), weight.dtype)
    _run(job, grad, x, features, blocks, grad_features, parts, job.tasks)
    total = parts[:, :, :number_of_taps, : number + 1].sum(axis=0)
    grad_weight.reshape(g.groups, number_of_taps, number)[:, order] = total[..., :-1]
    grad_bias.reshape(g.groups, number_of_taps)[:, order] = total[..., -1]


def _empty(source: Any, out: Any) -> bool:
    """Whether there is nothing to sum; then the result is zero."""
    if out.size and source.size:
        return False
    out[...] = 0
    return True


def _by_steps(weight: Any, bias: Any, g: Geometry, job: _Job) -> Any:
    """(G*taps, F) and (G*taps,) -> (G, steps / S, F + 1, S * M), the order of generation.

    The bias comes last, like the weight of one more feature: the sum starts from it.
    """
    both = np.concatenate([weight, bias[:, None]], axis=1)
    both = both.reshape(g.groups, -1, both.shape[1])[:, job.plan.taps]
    run = job.plan.together * job.plan.run
    return both.reshape(g.groups, -1, run, both.shape[2]).transpose(0, 1, 3, 2).copy()


def _run(job: _Job, *arrays: Any) -> None:
    launch(job.body, job.tasks, job.work, job.scratch, job.record(*job.fixed, *arrays))


@lru_cache(maxsize=512)
def _gather_job(g: Geometry, size: int, backward: bool, features: int) -> _Job:
    """Forward, or the gradient of x; the kernel given, or made from features (bias included)."""
    p = plan(g, size, backward=backward, rows=3, budget=_BUDGET)
    M, R, V, bits = p.run, p.rows, p.lanes, 8 * size
    # channels at once: as many as there are accumulators for, split evenly
    channels = -(-p.channels // -(-p.channels // (ACCUMULATORS // 3)))
    vector = R * V * size
    if features:
        p = p._replace(
            kernel_bytes=(features - 1) * prod(g.out) * size, features=features,
            features_size=features * (p.channel if backward else vector) + 4 * VECTOR_BYTES,
        )  # fmt: skip
    tile = max(p.most_taps, 1) * vector
    tiles = max(1, _KERNEL // tile) if p.direct and not features else 1
    width = (g.size if backward else g.out)[-1]
    tiles = min(tiles, -(-width // (p.strips * V)))  # those of a row of the widest block
    together, past = _together(p), _past(g, p, size, width) if p.direct else NEAR
    p = p._replace(
        tiles=tiles, tile_size=tiles * tile, patch_size=p.channels * p.interleaved * vector,
        at_once=channels, together=together, shifted=backward,
        unpacked=not backward and g.out[-1] // p.strips >= V,
        contract=taps(M, channels, R, 0, 0, past, V, bits),
        interleave=interleave(p.interleaved, R, V, bits),
        copy_edge=copy_tile(M, R, int(backward), 1, V, bits),
    )  # fmt: skip
    if features:
        p = p._replace(
            copy_features=copy_tile(1, R, 0, 1, V, bits),
            multiply=contract(together, M, R, 1, int(backward), 0, NEAR, V, bits),
        )
    else:
        p = p._replace(copy=copy_tile(M, R, int(backward), 0, V, bits))
    tasks = g.batch * g.groups * p.unit_count * p.bands * p.strips
    return _job(g, cpu_gather.gather(bits, bool(features)), cpu_gather.Gather, p, tasks)


@lru_cache(maxsize=512)
def _correlate_job(g: Geometry, size: int) -> _Job:
    """The gradient of the kernel."""
    p = _correlation_plan(g, size, 1 << 30)
    # all steps at once read grad only once, and as it is if no tile is narrower than a vector
    direct = _together(p) == p.step_count and g.out[-1] // p.strips >= p.lanes
    p = p._replace(patch_size=p.channels * p.rows * p.lanes * size, unpacked=direct)
    # 56 columns are three vectors and a half one, not four
    half = p.lanes // 2
    if p.strips == 1 and half > 1 and p.lanes < g.out[-1] and 0 < g.out[-1] % p.lanes <= half:
        p = p._replace(half=half)
    p = _with_contract(p, size, _past(g, p, size, g.out[-1]))
    tasks = g.batch * g.groups * p.unit_count * p.bands * p.strips
    return _job(g, cpu_correlate.correlate(8 * size), cpu_correlate.Correlate, p, tasks)


def _with_contract(p: Plan, size: int, past: int) -> Plan:
    """Micro-kernels shared by the gradients of the kernel and of its generator."""
    together = _together(p)
    whole, half = (
        lanes and contract(together, p.run, p.rows, 0, 1, int(p.unpacked), past, lanes, 8 * size)
        for lanes in (p.lanes, p.half)
    )
    copy = copy_tile(1, p.rows, 0, 1, p.lanes, 8 * size)
    return p._replace(together=together, contract=whole, contract_half=half, copy=copy)


@lru_cache(maxsize=512)
def _span_job(g: Geometry, size: int, features: int) -> _Job:
    """The gradients of features, weights and bias."""
    p = _correlation_plan(g, size, _TILES)
    R, V, bits = p.rows, p.lanes, 8 * size
    wide = min(ACCUMULATORS // R, max(features, 1))
    span = up(features + 1, _FEATURES_AT_ONCE)
    tap_rows = up(prod(g.kernel), _TAPS_AT_ONCE)
    rows, columns = -(-p.tall // p.bands), -(-p.wide // p.strips)  # of the largest block
    tiles = -(-rows // R) * -(-columns // V)
    p = _with_contract(p, size, NEAR)._replace(
        kernel_bytes=features * prod(g.out) * size, features=features + 1,
        padded=up(features, wide), features_size=tiles * span * R * V * size,
        tile_size=tiles * tap_rows * R * V * size,
        patch_size=max(p.channels, wide) * R * V * size, at_once=wide,
        copy_features=copy_tile(1, R, 0, 1, V, bits),
    )  # fmt: skip
    codes = cpu_correlate.Codes(
        multiply(wide, R, TARGET, STORE, 1, V, bits),
        dot(_TAPS_AT_ONCE, _FEATURES_AT_ONCE, R, ELEMENTS, V, bits), store_part(V, bits),
        _TAPS_AT_ONCE, _FEATURES_AT_ONCE,
    )  # fmt: skip
    tasks = min(_PARTS, g.batch * p.unit_count * p.bands * p.strips)
    body = cpu_correlate.span_gradients(bits)
    return _job(g, body, cpu_correlate.SpanGradients, p, tasks, Record(codes))


def _correlation_plan(g: Geometry, size: int, tiles: int) -> Plan:
    """A run of M taps times R rows must fit the accumulators, and only the plan knows M."""
    p = plan(g, size, backward=False, rows=3, budget=_BUDGET, tiles=tiles, halves=False)
    rows = max(1, min(3, (ACCUMULATORS + 3) // p.run))
    return plan(g, size, backward=False, rows=rows, budget=_BUDGET, tiles=tiles, halves=False)


def _together(p: Plan) -> int:
    """How many steps at once: the most that divide all steps and fit the accumulators."""
    most = max(1, (ACCUMULATORS + 3) // (p.run * p.rows))
    return max(s for s in range(1, most + 1) if p.common_steps % s == 0)


def _job(g: Geometry, body: Any, record: Any, p: Plan, tasks: int, *more: Record) -> _Job:
    scratch = p.packed_size + p.features_size + p.tile_size + p.patch_size
    products = g.batch * g.channels * prod(g.out) * prod(g.kernel)
    work = products * (1 + p.features // p.channels)
    return _Job(body, record, p, (Record(p), *more), tasks, scratch, work // _GRAIN)


def _past(g: Geometry, p: Plan, size: int, width: int) -> int:
    """Whether to use non-temporal stores, since results would not stay in the caches anyway.

    Vectors and rows must be whole lines: writing a line in parts is slower this way.
    """
    if p.lanes * size != LINE or width * size % LINE:
        return NEAR
    x = g.batch * g.channels * prod(g.size)
    outside = g.channels + g.groups * prod(g.kernel)
    return PAST if (x + g.batch * outside * prod(g.out)) * size > _CACHES else NEAR
