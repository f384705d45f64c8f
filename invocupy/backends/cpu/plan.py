"""How one involution is cut for the CPU: blocks of positions, and tables of where each tap looks.

Forward and gradient of x are one problem, *gather*: the sum over taps of a kernel vector times a
source vector. For the gradient of x the source is grad, each stride phase of x is a plane of
its own with the taps that reach it, and kernel and source are both read at a tap-dependent shift;
the phases of a row are interleaved when they are stored. All that differs is in the tables made
here, so the compiled kernels know no stride or dilation.

The source planes of a block are packed with a zero border, columns sorted by stride phase, so that
what a vector of positions sees is always a vector. A *step* is one kernel column v with a run of M
kernel rows that meet consecutive source rows (all of them, where stride equals dilation).
"""

from __future__ import annotations

import math
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.move import WORDS, copy_rows, take_even
from invocupy.backends.cpu.vector import VECTOR_BYTES
from invocupy.geometry import Geometry

_LINE = 64
_LONGEST_RUN = 13  # kernel rows in a step
_WIDEST_STRIP = 128


class Step(NamedTuple):
    """One row of the step table; in bytes, but for the shift of the kernel's position."""

    seen: int  # from the first position to what the step sees in the packed source
    kernel: int  # and to its kernel plane
    row: int
    column: int
    tile: int  # to its part of a tile


class Phase(NamedTuple):
    """One row of the phase table: positions whose taps are the same; the first has the most."""

    first_step: int
    steps: int
    rows: int
    columns: int
    top: int  # source row and column seen first by the positions (0, 0) of all phases
    left: int
    out: int  # offset of position (0, 0) in the result plane, in elements
    low_row: int  # range of the shifts of the kernel position
    high_row: int
    low_column: int
    high_column: int


STEP, PHASE = 8 * len(Step._fields), 8 * len(Phase._fields)  # bytes of a row
SEEN, KERNEL, TILE = (8 * Step._fields.index(name) for name in ("seen", "kernel", "tile"))


class _Axis(NamedTuple):
    """The positions of one phase along one axis, and their taps (tap, kernel shift, place seen)."""

    first: int
    number: int
    source: int
    taps: list[tuple[int, int, int]]


class Plan(NamedTuple):
    """How one involution is cut, its tables and micro-kernels; in elements if nothing is said.

    *Positions* are those of the kernel's plane, or backward of the first phase.
    """

    images: int
    groups: int
    channels: int  # of a group
    height: int  # of the source
    width: int
    kernel_rows: int
    kernel_columns: int
    kernel_plane: int  # bytes of one group's kernel, or of one image's features
    out_plane: int
    out_width: int
    out_row_step: int
    out_step: int
    tap_step: int  # bytes from a tap to the next of its run
    lanes: int  # V, M and R of the micro-kernels
    run: int
    rows: int
    interleaved: int  # how many phases, one after another in their table, share a row
    direct: bool  # whether results can be stored as they are
    bands: int  # each image is cut into bands * strips blocks, of the same positions in all phases
    strips: int
    tall: int  # positions
    wide: int
    top: int  # source row and column that the first position sees first
    left: int
    row_step: int  # from one position to the next
    column_step: int
    column_phases: int  # columns are packed by phase
    phase_width: int
    halo_rows: int  # how much further than its first position a block sees
    pitch: int  # bytes of one packed row (all column phases) and one packed channel: odd numbers of
    plane: int  # cache lines, so that rows and channels do not fall into the same cache sets
    packed_size: int  # bytes of scratch memory
    take_even: int  # addresses of micro-kernels
    copy_rows: int
    steps: Array  # rows of Step
    step_count: int
    phases: Array  # rows of Phase
    phase_count: int
    taps: Array  # u * Kw + v of each tap in the order of the steps
    most_taps: int  # of a phase
    common_steps: int  # the greatest number that divides the steps of every phase
    features: int = 0  # and one more for the bias
    padded: int = 0
    features_size: int = 0  # bytes of scratch memory
    tile_size: int = 0
    patch_size: int = 0
    tiles: int = 1  # whose part of the kernel is packed in one go
    at_once: int = 0  # channels, or features, of one micro-kernel
    together: int = 0  # steps of one
    shifted: bool = False  # whether taps of the kernel look at shifted positions
    unpacked: bool = False  # whether grad, or the features, are read where they are
    half: int = 0  # lanes of the last tile of a row where half a vector is enough for it
    contract: int = 0  # addresses of micro-kernels: sums of products of a tile,
    contract_half: int = 0
    multiply: int = 0  # products with the features
    copy: int = 0  # and moves
    copy_edge: int = 0
    copy_features: int = 0
    interleave: int = 0


@lru_cache(maxsize=512)
def plan(
    g: Geometry,
    size: int,
    *,
    backward: bool,
    rows: int,
    budget: int,
    tiles: int = 1 << 30,
    halves: bool = True,
) -> Plan:
    """Cut ``g`` for elements of ``size`` bytes: forward, or backward for the gradient of x.

    A tile has at most ``rows`` rows; a block has about ``budget`` bytes of packed source and at
    most about ``tiles`` tiles. ``halves``: vectors may be shorter than the machine's if they fit
    the width better.
    """
    if backward:
        axes = zip(g.size, g.stride, g.padding, g.dilation, g.kernel, strict=True)
        down, across = (_reached(*axis) for axis in axes)
        row_step = column_step = 1
        result_width = g.size[1]
    else:
        down, across = (
            [_Axis(0, n, -pad, [(u, 0, u * dilation) for u in range(kernel)])]
            for n, pad, dilation, kernel in zip(g.out, g.padding, g.dilation, g.kernel, strict=True)
        )
        row_step, column_step = g.stride
        result_width = g.out[1]

    fewest, most = min(a.number for a in down), max(a.number for a in down)
    narrowest, widest = min(a.number for a in across), max(a.number for a in across)
    rows = min(rows, fewest)
    run = 1
    if g.stride[0] == g.dilation[0]:
        run = max(m for m in range(1, _LONGEST_RUN + 1) if g.kernel[0] % m == 0)
    # The last vector of a row overlaps the one before. Half vectors can fit better, but cost a
    # little each, and too much where results go to as many places as there are taps.
    sizes = [VECTOR_BYTES // size, max(VECTOR_BYTES // (2 * size), 2)]
    cost = 1 if halves else sizes[0]
    lanes = min(sizes, key=lambda lanes: -(-widest // lanes) * (lanes + cost))

    strips = max(1, narrowest // _WIDEST_STRIP)
    width = max(-(-widest // strips), lanes)
    reach = max((seen for a in across for _, _, seen in a.taps), default=0)
    column_phases = min(column_step, reach + 1)
    phase_width = width + reach // column_step
    if column_step == 1:
        # the zeros after a row are those before the next one
        there = g.out[1] if backward else g.size[1]
        after = max(a.source + a.number for a in across) + reach - there
        border = min(max(0, *(-a.source for a in across), after), phase_width)
        held = min(phase_width, there)
        pitch = _lines(held * size) + _lines(border * size)
    else:
        pitch = _lines(column_phases * phase_width * size)

    halo_rows = max((seen for a in down for _, _, seen in a.taps), default=0)
    height = (budget // (pitch * g.channels_per_group) - halo_rows) // row_step
    height = min(height, rows * max(1, tiles * lanes * strips // widest))
    height = max(rows + most - fewest, height)  # a whole tile in a block of any phase
    bands = max(1, fewest // height)
    tallest = -(-most // bands) + rows - 1  # a last tile may hang over
    # behind the last row there is no next one whose zeros end it
    last = max(pitch, phase_width * size)
    plane = _odd_lines(((tallest - 1) * row_step + halo_rows) * pitch + last)

    steps: list[tuple[int, ...]] = []
    phases: list[Phase] = []
    taps: list[int] = []
    for y in down:
        for x in across:
            start = len(steps)
            for first in range(0, len(y.taps), run):
                u, shift_y, seen_y = y.taps[first]
                for v, shift_x, seen_x in x.taps:
                    column = seen_x % column_step * phase_width + seen_x // column_step
                    kernel = (u * g.kernel[1] + v) * prod(g.out) + shift_y * g.out[1] + shift_x
                    tile = (len(steps) - start) * run * rows * lanes
                    steps.append(
                        Step(
                            seen_y * pitch + column * size,
                            kernel * size,
                            shift_y,
                            shift_x,
                            tile * size,
                        )
                    )
                    taps += [w * g.kernel[1] + v for w, _, _ in y.taps[first : first + run]]
            shifts_y, shifts_x = [s for _, s, _ in y.taps], [s for _, s, _ in x.taps]
            phases.append(Phase(
                start, len(steps) - start, y.number, x.number, y.source, x.source,
                y.first * result_width + x.first,
                min(shifts_y, default=0), max(shifts_y, default=0), min(shifts_x, default=0),
                max(shifts_x, default=0),
            ))  # fmt: skip
    counts = [phase.steps for phase in phases]
    plane_out = prod(g.out)
    tap_step = g.kernel[1] * plane_out * size
    step_table = np.array(steps, np.int64).reshape(-1, len(Step._fields))
    return Plan(
        images=g.batch, groups=g.groups, channels=g.channels_per_group,
        height=g.out[0] if backward else g.size[0], width=g.out[1] if backward else g.size[1],
        kernel_rows=g.out[0], kernel_columns=g.out[1],
        kernel_plane=prod(g.kernel) * plane_out * size,
        out_plane=prod(g.size) if backward else plane_out, out_width=result_width,
        out_row_step=result_width * (g.stride[0] if backward else 1),
        out_step=g.stride[1] if backward else 1,
        tap_step=g.out[1] * size - tap_step if backward else tap_step,
        lanes=lanes, run=run, rows=rows, interleaved=len(across),
        direct=len(across) == 1 and all(counts), bands=bands, strips=strips, tall=phases[0].rows,
        wide=phases[0].columns, top=phases[0].top, left=phases[0].left, row_step=row_step,
        column_step=column_step, column_phases=column_phases, phase_width=phase_width,
        halo_rows=halo_rows, pitch=pitch, plane=plane,
        packed_size=g.channels_per_group * plane + 4 * VECTOR_BYTES,
        take_even=take_even(VECTOR_BYTES // size, 8 * size), copy_rows=copy_rows(WORDS, 32),
        steps=step_table, step_count=len(steps), phases=np.array(phases, np.int64),
        phase_count=len(phases), taps=np.array(taps, np.int64), most_taps=max(counts) * run,
        common_steps=math.gcd(*counts),
    )  # fmt: skip


def _reached(size: int, stride: int, pad: int, dilation: int, kernel: int) -> list[_Axis]:
    """Along one axis of x: for each stride phase the taps that reach it, by where they come from.

    Position p + a * stride is seen through tap u by the result at a + shift, where
    (p + pad - u * dilation) = shift * stride.
    """
    shifts = []
    for first in range(min(stride, size)):
        ways = [(u, first + pad - u * dilation) for u in reversed(range(kernel))]
        shifts.append([(u, way // stride) for u, way in ways if way % stride == 0])
    low = min((shift for phase in shifts for _, shift in phase), default=0)
    return [
        _Axis(first, len(range(first, size, stride)), low, [(u, s, s - low) for u, s in phase])
        for first, phase in enumerate(shifts)
    ]


def _lines(size: int) -> int:
    return -(-size // _LINE) * _LINE


def _odd_lines(size: int) -> int:
    return _lines(size) | _LINE
