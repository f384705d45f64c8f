"""How one involution is split for the CPU: blocks of positions, and tables of the taps' offsets.

Forward and gradient of x are one problem, *gather*: the sum over taps of a kernel vector times a
source vector. For the gradient of x the source is grad, and the positions of x with the same index
modulo the stride are a *phase*: a separate plane with the taps that reach it. Kernel and source are
both read at a tap-dependent shift, and the phases of a row are interleaved when they are stored.
Forward has one phase. All differences are in the tables, so the compiled kernels are independent of
stride and dilation.

A task computes a *block* of one image and group. There are always three dimensions; those that are
missing have size 1::

    block   of result planes, a unit; of their rows, a band; of their columns, a strip
    unit    a range of result planes that see source planes of one spacing
    tile    rows x lanes positions of a block: what a micro-kernel computes at once
    step    what it adds at once: one kernel column v, and a run of M kernel rows that meet
            consecutive source rows (all of them, where stride equals dilation)

The source planes of a block are packed with a zero border. Where the source is read with a column
step, columns of the same remainder (a *column phase*) are packed side by side, so that what a
vector of positions sees is always a vector. A block goes through the planes of a unit in order, and
holds as many packed source planes as there are taps in depth: each new one takes the place of the
oldest. So there is a table of the steps for each such *rotation* of the planes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.move import WORDS, copy_rows, take_even
from invocupy.backends.cpu.vector import LINE, VECTOR_BYTES, up
from invocupy.geometry import Geometry, Shape

_LONGEST_RUN = 13  # kernel rows in a step
_WIDEST_STRIP = 128
_DEEPER = 3  # times the budget, so that a block of many planes is not cut into too flat bands
_TASKS = 64  # towards which the planes of a unit are cut,
_SHARE = 4  # into at least so many results for each source plane that is packed once more


class Step(NamedTuple):
    """One row of the step table; in bytes, but for the shift of the kernel's position."""

    seen: int  # from the first position to what the step sees in the packed source
    kernel: int  # and to its kernel plane
    depth: int
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


class Unit(NamedTuple):
    """One row of the unit table: result planes t = 0, 1, ...

    Tap i in depth sees source plane ``seen + (t * move + i) * spacing``, which is packed as number
    ``(t * move + i) % taps``.
    """

    first: int  # depth of the first result, and from one to the next
    step: int
    results: int
    seen: int
    spacing: int
    move: int
    taps: int  # at least 1
    phases: int  # bytes from the table of phases to the unit's,
    steps: int  # from that of steps to where step 0 would be in the unit's first rotation,
    rotation: int  # and from one rotation to the next


STEP, PHASE, UNIT = (8 * len(row._fields) for row in (Step, Phase, Unit))  # bytes of a row
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
    depth: int  # of the source
    height: int
    width: int
    kernel_depth: int
    kernel_rows: int
    kernel_columns: int
    kernel_bytes: int  # of one group's kernel, or of one image's features
    out_channel: int
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
    bands: int  # each image is cut into units * bands * strips blocks, of the same positions in
    strips: int  # all phases
    tall: int  # positions
    wide: int
    top: int  # source row and column that the first position sees first
    left: int
    row_step: int  # from one position to the next
    column_step: int
    column_phases: int  # columns are packed by phase
    phase_width: int
    halo_rows: int  # how much further than its first position a block sees
    pitch: int  # bytes of one packed row (all column phases), plane and channel: odd numbers of
    plane: int  # cache lines, so that planes and channels do not fall into the same cache sets
    channel: int
    packed_size: int  # bytes of scratch memory
    take_even: int  # addresses of micro-kernels
    copy_rows: int
    units: Array  # rows of Unit
    unit_count: int
    steps: Array  # rows of Step
    step_count: int  # without those of further rotations
    phases: Array  # rows of Phase
    phase_count: int  # of a unit
    taps: Array  # which one each is in the order of the steps
    most_taps: int  # of a phase
    common_steps: int  # the greatest number that divides the steps of every phase
    features: int = 0  # and one more for the bias
    padded: int = 0
    features_size: int = 0  # bytes of scratch memory
    tile_size: int = 0
    patch_size: int = 0
    tiles: int = 1  # whose parts of the kernel are packed together
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
    most about ``tiles`` tiles in a plane. ``halves``: vectors may be shorter than the machine's if
    they fit the width better.
    """
    g = g.lifted(3)
    axes = list(zip(g.size, g.kernel, g.out, g.stride, g.padding, g.dilation, strict=True))
    one: Shape = (1, 1, 1)
    if backward:
        deep, down, across = (_reached(n, s, p, d, k) for n, k, _, s, p, d in axes)
        in_steps, out_steps, source, result = one, g.stride, g.out, g.size
    else:
        deep, down, across = (
            [_Axis(0, out, -p, [(u, 0, u * d) for u in range(k)])] for _, k, out, _, p, d in axes
        )
        in_steps, out_steps, source, result = g.stride, one, g.size, g.out
    _, row_step, column_step = in_steps

    fewest, most = min(a.number for a in down), max(a.number for a in down)
    narrowest, widest = min(a.number for a in across), max(a.number for a in across)
    rows = min(rows, fewest)
    run = 1
    if g.stride[1] == g.dilation[1]:
        run = max(m for m in range(1, _LONGEST_RUN + 1) if g.kernel[1] % m == 0)
    # The last vector of a row overlaps the one before. Half vectors can fit better, but cost a
    # little each, and too much where results go to as many places as there are taps.
    lengths = [VECTOR_BYTES // size, max(VECTOR_BYTES // (2 * size), 2)]
    cost = 1 if halves else lengths[0]
    lanes = min(lengths, key=lambda lanes: -(-widest // lanes) * (lanes + cost))

    strips = max(1, narrowest // _WIDEST_STRIP)
    width = max(-(-widest // strips), lanes)
    reach = max((seen for a in across for _, _, seen in a.taps), default=0)
    column_phases = min(column_step, reach + 1)
    phase_width = width + reach // column_step
    if column_step == 1:
        # the zeros after a row are those before the next one
        after = max(a.source + a.number for a in across) + reach - source[2]
        border = min(max(0, *(-a.source for a in across), after), phase_width)
        pitch = up(min(phase_width, source[2]) * size, LINE) + up(border * size, LINE)
    else:
        pitch = up(column_phases * phase_width * size, LINE)

    held = max(1, *(len(a.taps) for a in deep))  # planes
    halo_rows = max((seen for a in down for _, _, seen in a.taps), default=0)
    budget *= min(max(held - 1, 1), _DEEPER)
    height = (budget // (pitch * g.channels_per_group * held) - halo_rows) // row_step
    height = min(height, rows * max(1, tiles * lanes * strips // widest))
    height = max(rows + most - fewest, height)  # a whole tile in a block of any phase
    bands = max(1, fewest // height)
    tallest = -(-most // bands) + rows - 1  # a last tile may extend beyond
    # behind the last row there is no next one whose zeros end it, or which is packed over the rest
    # of the last vector of its last phase
    last = max(pitch, (column_phases - 1) * phase_width * size + up(phase_width * size, LINE))
    plane = _odd_lines(((tallest - 1) * row_step + halo_rows) * pitch + last)
    channel = _odd_lines(held * plane)

    positions, plane_out = prod(g.out), prod(g.out[1:])
    tables: list[Array] = []
    phases: list[Phase] = []
    units: list[Unit] = []
    taps: list[int] = []
    most_units = -(-_TASKS // (g.batch * g.groups * bands * strips))
    for z in deep:
        spacing = z.taps[1][2] - z.taps[0][2] if len(z.taps) > 1 else 1
        first_step, first_phase = len(taps) // run, len(phases)
        steps: list[tuple[int, ...]] = []
        for y, x in product(down, across):
            start = len(steps)
            for i, first in product(range(len(z.taps)), range(0, len(y.taps), run)):
                u, shift_y, seen_y = y.taps[first]
                depth = i * spacing if backward else 0
                rest = depth * plane_out + shift_y * g.out[2]
                for v, shift_x, seen_x in x.taps:
                    column = seen_x % column_step * phase_width + seen_x // column_step
                    tap = (z.taps[i][0] * g.kernel[1] + u) * g.kernel[2] + v
                    kernel = tap * positions + rest + shift_x
                    tile = (len(steps) - start) * run * rows * lanes
                    seen = seen_y * pitch + column * size
                    steps.append(
                        (i, *Step(seen, kernel * size, depth, shift_y, shift_x, tile * size))
                    )
                    taps += [tap + (w - u) * g.kernel[2] for w, _, _ in y.taps[first : first + run]]
            shifts_y, shifts_x = [s for _, s, _ in y.taps], [s for _, s, _ in x.taps]
            phases.append(Phase(
                first_step + start, len(steps) - start, y.number, x.number, y.source, x.source,
                y.first * result[2] + x.first,
                min(shifts_y, default=0), max(shifts_y, default=0), min(shifts_x, default=0),
                max(shifts_x, default=0),
            ))  # fmt: skip
        table = np.array(steps, np.int64).reshape(-1, 1 + len(Step._fields))
        offset = (sum(map(len, tables)) - first_step) * STEP
        for rotation in range(max(1, len(z.taps))):
            tables.append(table[:, 1:].copy())
            tables[-1][:, 0] += (table[:, 0] + rotation) % max(1, len(z.taps)) * plane
        units += _units(
            z, spacing, in_steps[0], out_steps[0], most_units,
            (first_phase * PHASE, offset, len(steps) * STEP),
        )  # fmt: skip
    counts = [phase.steps for phase in phases]
    tap_step = g.kernel[2] * positions * size
    return Plan(
        images=g.batch, groups=g.groups, channels=g.channels_per_group, depth=source[0],
        height=source[1], width=source[2], kernel_depth=g.out[0], kernel_rows=g.out[1],
        kernel_columns=g.out[2], kernel_bytes=prod(g.kernel) * positions * size,
        out_channel=prod(result), out_plane=result[1] * result[2], out_width=result[2],
        out_row_step=result[2] * out_steps[1], out_step=out_steps[2],
        tap_step=g.out[2] * size - tap_step if backward else tap_step,
        lanes=lanes, run=run, rows=rows, interleaved=len(across),
        direct=len(across) == 1 and all(counts), bands=bands, strips=strips, tall=phases[0].rows,
        wide=phases[0].columns, top=phases[0].top, left=phases[0].left, row_step=row_step,
        column_step=column_step, column_phases=column_phases, phase_width=phase_width,
        halo_rows=halo_rows, pitch=pitch, plane=plane, channel=channel,
        packed_size=g.channels_per_group * channel + 4 * VECTOR_BYTES,
        take_even=take_even(VECTOR_BYTES // size, 8 * size), copy_rows=copy_rows(WORDS, 32),
        units=np.array(units, np.int64), unit_count=len(units),
        steps=np.concatenate(tables), step_count=len(taps) // run,
        phases=np.array(phases, np.int64), phase_count=len(down) * len(across),
        taps=np.array(taps, np.int64), most_taps=max(counts) * run,
        common_steps=math.gcd(*counts),
    )  # fmt: skip


def _units(
    axis: _Axis, spacing: int, in_step: int, out_step: int, most: int, tables: tuple[int, ...]
) -> list[Unit]:
    """Cut the positions of one phase in depth, towards ``most`` units.

    Positions ``classes`` apart see planes of the same remainder by the spacing.
    """
    classes = spacing // math.gcd(in_step, spacing)
    taps = max(1, len(axis.taps))
    seen = axis.source + (axis.taps[0][2] if axis.taps else 0)
    units = []
    for first in range(min(classes, axis.number)):
        places = range(first, axis.number, classes)
        number = max(1, min(most, len(places) // (_SHARE * (taps - 1) or 1)))
        for unit in range(number):
            start, end = (len(places) * i // number for i in (unit, unit + 1))
            place = places[start]
            units.append(Unit(
                axis.first + place * out_step, classes * out_step, end - start,
                seen + place * in_step, spacing, classes * in_step // spacing, taps, *tables,
            ))  # fmt: skip
    return units


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


def _odd_lines(size: int) -> int:
    return up(size, LINE) | LINE
