"""Weights in the order of their use, by blocks of MR rows; a norm that follows is folded in."""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.access import Record, pointer, read
from invocupy.backends.cpu.contract import MR
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.pool import launch
from invocupy.backends.memory import empty


class Norm(NamedTuple):
    """A norm after a convolution: ``scale * (y + bias - mean) / sqrt(var + eps) + shift``."""

    scale: Array
    shift: Array
    mean: Array
    var: Array
    eps: Array  # of one element


class _Order(NamedTuple):
    """How weights are put in order: of a group, in the order of their use."""

    height: int  # rows and columns, filled up with zeros: so many of so many
    width: int
    row_size: int
    row_depth: int
    column_size: int
    column_depth: int
    column_groups: int
    row_step: int  # elements from one to the next, and from one group to the next
    column_step: int
    group_step: int
    groups: int
    biased: bool
    plain: bool  # vectors of weights as they are


Packing = namedtuple("Packing", "order weight bias scale shift mean var eps constants out")
_BYTES = 8 * len(Packing._fields)
_NO_NORM = (0, 0, 0, 0, 0)


def packing(
    weight: Array, bias: Array | None = None, groups: int = 1, transposed: bool = False,
    filled: tuple[int, int, int] | None = None, norm: Norm | None = None,
    constants: Array | None = None,
) -> Packing:  # fmt: skip
    """Weights (R, C), to be brought in the order of their use: (blocks of MR rows, C (+ 1), MR).

    A bias (R,) is one more column. With ``groups``, each of so many blocks of columns is packed by
    itself, with one more axis in front. ``transposed`` packs what it takes transposed. ``filled``
    is an axis, a number and a larger one: every so many channels are filled up to more with zeros.
    A last block is filled up with its last row. With a ``norm`` the weights are those of the
    convolution and the norm together; what stands for their bias may go to ``constants`` instead.
    """
    biased = bias is not None and constants is None
    order, shape = _order(*weight.shape[:2], biased, groups, transposed, filled)
    out = empty(shape, weight.dtype, weight)
    return Packing(order, weight, bias, *(norm or _NO_NORM), constants, out)


def pack_together(*packings: Packing) -> list[Array]:
    """Pack weights in one launch."""
    call: tuple[Any, ...] = sum(packings, ())
    launch(packer(8 * packings[0].weight.itemsize), len(packings), 0, 0, call)
    return [p.out for p in packings]


def packed(
    weight: Array, bias: Array | None = None, groups: int = 1, transposed: bool = False
) -> Array:
    """What :func:`packing` describes."""
    return pack_together(packing(weight, bias, groups, transposed))[0]


@lru_cache(maxsize=512)
def _order(
    rows: int, columns: int, biased: bool, groups: int, transposed: bool,
    filled: tuple[int, int, int] | None,
) -> tuple[Record, tuple[int, ...]]:  # fmt: skip
    """And the shape of the result."""
    sizes, depths, counts = [rows, columns], [rows, columns], [rows, columns // groups]
    if filled is not None:
        axis, sizes[filled[0]], depths[filled[0]] = filled
        counts[axis] = counts[axis] // filled[1] * filled[2]
    steps, way = [columns, 1], -1 if transposed else 1
    (row_size, column_size), (row_depth, column_depth) = sizes[::way], depths[::way]
    (height, width), (row_step, column_step) = counts[::way], steps[::way]
    plain = depths == sizes and column_step == 1
    order = _Order(
        height, width, row_size, row_depth, min(column_size, width), min(column_depth, width),
        width // min(column_depth, width), row_step, column_step, columns // groups, groups,
        biased, plain,
    )  # fmt: skip
    shape = -(-height // MR), width + biased, MR
    return Record(order), shape if groups == 1 else (groups, *shape)


@cache
def packer(bits: int) -> Any:
    @jit
    def folded(c, channel):
        """What the weights of a channel are multiplied by, and what stands for its bias."""
        bias = np.float64(pointer(c.bias, bits)[channel]) if c.bias != 0 else 0.0
        if c.scale == 0:
            return 1.0, bias
        deviation = np.sqrt(np.float64(pointer(c.var, bits)[channel]) + pointer(c.eps, 64)[0])
        factor = np.float64(pointer(c.scale, bits)[channel]) / deviation
        center = bias - pointer(c.mean, bits)[channel]
        return factor, factor * center + pointer(c.shift, bits)[channel]

    @jit
    def group(c, o, g):
        """One block of columns, or all."""
        weight, out, bias = pointer(c.weight, bits), pointer(c.out, bits), pointer(c.bias, bits)
        constants, wide = pointer(c.constants, bits), o.width + o.biased
        at = g * -(-o.height // MR) * MR * wide
        channel, filled = -1, 0  # the row of the weights; those of its group that are behind
        for first in range(0, o.height, MR):
            start = first * o.row_step + g * o.group_step
            if o.plain and c.scale == 0 and first + MR <= o.height:  # then it becomes vectors
                for t in range(o.width):
                    for r in range(MR):
                        out[at + t * MR + r] = weight[start + r * o.row_step + t]
                for r in range(MR if o.biased else 0):
                    out[at + (wide - 1) * MR + r] = bias[first + r]
                channel, filled, at = channel + MR, filled + MR, at + MR * wide
                continue
            for r in range(MR):
                if first + r < o.height:
                    filled = 1 if filled == o.row_depth else filled + 1
                    channel += filled <= o.row_size
                factor, constant = folded(c, channel)
                inside = filled <= o.row_size
                place, to = channel * o.row_step + g * o.group_step, at + r
                for _ in range(o.column_groups):
                    for t in range(o.column_depth):
                        real = inside and t < o.column_size
                        out[to] = factor * weight[place + t * o.column_step] if real else 0.0
                        to += MR
                    place += o.column_size * o.column_step
                if o.biased:
                    out[to] = constant if inside else 0.0
                elif c.constants != 0:
                    constants[channel] = constant
            at += MR * wide

    @jit
    def body(task, turn, scratch, words):
        c = read(words + task * _BYTES, Packing)
        o = read(c.order, _Order)
        for g in range(o.groups):
            group(c, o, g)

    return body
