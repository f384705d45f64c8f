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
    row_step: int  # elements from one to the next, and from one group to the next
    column_step: int
    group_step: int
    biased: bool
    plain: bool  # vectors of weights as they are


_Packing = namedtuple("_Packing", "order weight bias scale shift mean var eps constants out")


def packed(
    weight: Array, bias: Array | None = None, groups: int = 1, transposed: bool = False,
    filled: tuple[int, int, int] | None = None,
) -> Array:  # fmt: skip
    """Weights (R, C) in the order of their use: (blocks of MR rows, C (+ 1), MR).

    A bias (R,) is one more column. With ``groups``, each of so many blocks of columns is packed by
    itself, with one more axis in front. ``transposed`` packs what it takes transposed. ``filled``
    is an axis, a number and a larger one: every so many channels are filled up to more with zeros.
    A last block is filled up with its last row.
    """
    call = packing(weight, bias, groups, transposed, filled)
    launch(packer(8 * weight.itemsize), groups, 0, 0, call)
    out: Array = call.out
    return out


def packing(
    weight: Array, bias: Array | None = None, groups: int = 1, transposed: bool = False,
    filled: tuple[int, int, int] | None = None,
) -> _Packing:  # fmt: skip
    """What :func:`packer` takes for :func:`packed`: for bodies that pack by themselves."""
    order, shape = _order(*weight.shape[:2], bias is not None, groups, transposed, filled)
    out = empty(shape, weight.dtype, weight)
    return _Packing(order, weight, bias, 0, 0, 0, 0, 0, 0, out)


def packed_with_norm(
    weight: Array, bias: Array, norm: Norm, groups: int = 1,
    filled: tuple[int, int, int] | None = None, constants: Array | None = None,
) -> Array:  # fmt: skip
    """:func:`packed` weights of a 1x1 convolution with the norm after it.

    What then stands for the bias is one more column, or goes to ``constants``.
    """
    order, shape = _order(*weight.shape[:2], constants is None, groups, False, filled)
    out: Array = empty(shape, weight.dtype, weight)
    call = _Packing(order, weight, bias, *norm, constants, out)
    launch(packer(8 * weight.itemsize), groups, 0, 0, call)
    return out


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
        row_step, column_step, columns // groups, biased, plain,
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
    def row(c, o, channel, inside, to, start):
        """One row, ``to`` as it is used; zeros if it is not ``inside``."""
        weight, out = pointer(c.weight, bits), pointer(c.out, bits)
        factor, constant = folded(c, channel)
        for k in range(o.width // o.column_depth):
            for t in range(o.column_depth):
                place = start + (k * o.column_size + t) * o.column_step
                out[to] = factor * weight[place] if inside and t < o.column_size else 0.0
                to += MR
        if o.biased:
            out[to] = constant if inside else 0.0
        elif c.constants != 0:
            pointer(c.constants, bits)[channel] = constant

    @jit
    def body(task, turn, scratch, words):
        c = read(words, _Packing)
        o = read(c.order, _Order)
        weight, out, bias = pointer(c.weight, bits), pointer(c.out, bits), pointer(c.bias, bits)
        block = MR * (o.width + o.biased)
        for first in range(0, o.height, MR):
            at = (task * -(-o.height // MR) * MR + first) * (o.width + o.biased)
            if o.plain and c.scale == 0 and first + MR <= o.height:  # then it becomes vectors
                start = first * o.row_step + task * o.group_step
                for t in range(o.width):
                    for r in range(MR):
                        out[at + t * MR + r] = weight[start + r * o.row_step + t]
                for r in range(MR if o.biased else 0):
                    out[at + block - MR + r] = bias[first + r]
                continue
            for r in range(MR):
                k, d = divmod(min(first + r, o.height - 1), o.row_depth)
                channel = k * o.row_size + min(d, o.row_size - 1)
                start = channel * o.row_step + task * o.group_step
                row(c, o, channel, d < o.row_size, at + r, start)

    return body
