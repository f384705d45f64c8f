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

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from invocupy.backends.cpu.move import WORDS, copy_rows, take_even
from invocupy.backends.cpu.vector import VECTOR_BYTES
from invocupy.geometry import Geometry

_LINE = 64
_LONGEST_RUN = 13  # kernel rows in a step
_WIDEST_STRIP = 128
ZERO = np.zeros(1, np.int64)


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


@dataclass(frozen=True, eq=False)
class Plan:
    """Sizes and tables; in elements where not said otherwise.

    Attributes
    ----------
    lanes, run, rows : int
        V, M and R of the micro-kernels in :mod:`~invocupy.backends.cpu.contract`.
    steps : array (steps, 5) of int64
        See :class:`Step`.
    phases : array (phases, 11) of int64
        See :class:`Phase`.
    taps : array (steps * run,) of int64
        ``u * Kw + v`` of each tap in the order of the steps.
    interleaved : int
        How many phases, one after another in their table, share a row.
    bands, strips : int
        Each image is cut into bands * strips blocks, of the same positions in all phases.
    row_step, column_step, column_phases, phase_width : int
        Source rows and columns from one position to the next; columns are packed by phase.
    halo_rows, halo_columns : int
        How much further than its first position a block sees.
    pitch, plane : int
        Bytes of one packed row (all column phases) and one packed channel. Both are odd numbers of
        cache lines, so that rows and channels do not fall into the same cache sets.
    """

    lanes: int
    run: int
    rows: int
    steps: np.ndarray
    phases: np.ndarray
    taps: np.ndarray
    interleaved: int
    bands: int
    strips: int
    row_step: int
    column_step: int
    column_phases: int
    phase_width: int
    halo_rows: int
    pitch: int
    plane: int

    @property
    def most_taps(self) -> int:
        """The largest number of taps in one phase."""
        return int(self.phases[:, 1].max()) * self.run

    @property
    def direct(self) -> bool:
        """Whether each phase has rows of its own, and taps."""
        return self.interleaved == 1 and bool(self.phases[:, 1].all())

    @property
    def common_steps(self) -> int:
        """The greatest number that divides the steps of every phase."""
        return int(np.gcd.reduce(self.phases[:, 1]))


class Sizes(NamedTuple):
    """What the kernels know about one call; see :class:`Plan` for most of it."""

    images: int
    groups: int
    channels: int  # of a group
    height: int  # of the source
    width: int
    kernel_rows: int
    kernel_columns: int
    kernel_plane: int  # bytes of one group's kernel, or of one image's features
    out_plane: int  # elements
    out_width: int
    out_row_step: int
    out_step: int
    tap_step: int  # bytes from a tap to the next of its run
    bands: int
    strips: int
    row_step: int
    column_step: int
    column_phases: int
    phase_width: int
    halo_rows: int
    pitch: int
    plane: int
    pad_rows: int
    pad_columns: int
    features: int  # and one more for the bias
    padded: int
    packed_size: int  # bytes of scratch memory
    features_size: int
    tile_size: int
    patch_size: int
    take_even: int  # addresses of micro-kernels
    copy_rows: int
    lanes: int  # V, M and R of the micro-kernels
    run: int
    rows: int
    interleaved: int = 1
    direct: int = 1  # whether results can be stored as they are
    tiles: int = 1  # whose part of the kernel is packed in one go
    at_once: int = 0  # channels, or features, of one micro-kernel
    together: int = 0  # steps of one
    shifted: int = 0  # whether taps of the kernel look at shifted positions
    unpacked: int = 0  # whether grad, or the features, are read where they are
    half: int = 0  # lanes of the last tile of a row where half a vector is enough for it
    each_time: int = 0  # taps and features in a product
    across: int = 0
    steps: Any = 0  # tables, and the number of their rows
    step_count: int = 0
    phases: Any = 0
    phase_count: int = 0


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
        down = _reached(g.height, g.stride_h, g.pad_h, g.dilation_h, g.kernel_h)
        across = _reached(g.width, g.stride_w, g.pad_w, g.dilation_w, g.kernel_w)
        row_step = column_step = 1
        result_width = g.width
    else:
        down = [_Axis(0, g.out_h, -g.pad_h, [(u, 0, u * g.dilation_h) for u in range(g.kernel_h)])]
        across = [
            _Axis(0, g.out_w, -g.pad_w, [(v, 0, v * g.dilation_w) for v in range(g.kernel_w)])
        ]
        row_step, column_step = g.stride_h, g.stride_w
        result_width = g.out_w

    fewest, most = min(a.number for a in down), max(a.number for a in down)
    narrowest, widest = min(a.number for a in across), max(a.number for a in across)
    rows = min(rows, fewest)
    run = 1
    if g.stride_h == g.dilation_h:
        run = max(m for m in range(1, _LONGEST_RUN + 1) if g.kernel_h % m == 0)
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
        there = g.out_w if backward else g.width
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
                    kernel = (u * g.kernel_w + v) * g.out_h * g.out_w + shift_y * g.out_w + shift_x
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
                    taps += [w * g.kernel_w + v for w, _, _ in y.taps[first : first + run]]
            shifts_y, shifts_x = [s for _, s, _ in y.taps], [s for _, s, _ in x.taps]
            phases.append(Phase(
                start, len(steps) - start, y.number, x.number, y.source, x.source,
                y.first * result_width + x.first,
                min(shifts_y, default=0), max(shifts_y, default=0), min(shifts_x, default=0),
                max(shifts_x, default=0),
            ))  # fmt: skip
    return Plan(
        lanes, run, rows, np.array(steps, np.int64).reshape(-1, len(Step._fields)),
        np.array(phases, np.int64), np.array(taps, np.int64), len(across), bands, strips, row_step,
        column_step, column_phases, phase_width, halo_rows, pitch, plane,
    )  # fmt: skip


def sizes(g: Geometry, p: Plan, size: int) -> Sizes:
    """The sizes of a plan for elements of ``size`` bytes, with scratch for the source only."""
    plane = g.out_h * g.out_w
    return Sizes(
        images=g.batch, groups=g.groups, channels=g.channels_per_group, height=g.height,
        width=g.width, kernel_rows=g.out_h, kernel_columns=g.out_w,
        kernel_plane=g.kernel_h * g.kernel_w * plane * size, out_plane=plane, out_width=g.out_w,
        out_row_step=g.out_w, out_step=1, tap_step=g.kernel_w * plane * size, bands=p.bands,
        strips=p.strips, row_step=p.row_step, column_step=p.column_step,
        column_phases=p.column_phases, phase_width=p.phase_width, halo_rows=p.halo_rows,
        pitch=p.pitch, plane=p.plane, pad_rows=g.pad_h, pad_columns=g.pad_w, features=0, padded=0,
        packed_size=g.channels_per_group * p.plane + 4 * VECTOR_BYTES, features_size=0, tile_size=0,
        patch_size=0, take_even=take_even(VECTOR_BYTES // size, 8 * size),
        copy_rows=copy_rows(WORDS, 32), lanes=p.lanes, run=p.run, rows=p.rows, steps=p.steps,
        step_count=len(p.steps), phases=p.phases, phase_count=len(p.phases),
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
