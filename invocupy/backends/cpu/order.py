"""Weights in the order of their use, by blocks of MR rows; a norm that follows is folded in.

Each thread of a launch packs the weights for itself, before its first task and into its scratch
memory (:func:`packer`). Large ones are packed once for all, in a launch of their own
(:func:`packed`).
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

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
from invocupy.backends.cpu.vector import LINE, up
from invocupy.backends.memory import empty

SMALL = 1 << 16  # bytes of weights that each thread packs for itself
COLUMN, BEHIND = 1, 2  # where the bias goes: one more column, or after all weights

Packing = namedtuple("Packing", "order weight bias out")
# ``scale * (y + bias - mean) / sqrt(var + eps) + shift`` after a convolution: addresses
Norm = namedtuple("Norm", "scale shift mean var eps")
NONE = Norm(0, 0, 0, 0, 0)


class Order(NamedTuple):
    """How weights (R, C) are put in order: (groups, blocks of MR rows, columns, MR)."""

    rows: Array  # channel of each row, -1 for zeros; a last block is filled up with its last row
    columns: Array  # elements from the first weight of a row to that of each column, -1 for zeros
    blocks: int
    width: int
    groups: int
    row_step: int  # elements from one row to the next, and from one group to the next
    group_step: int
    bias_step: int
    bias: int
    plain: bool  # neighbours in a row stay neighbours
    bytes: int


def order_of(
    rows: Array, columns: Array, size: int, groups: int, steps: tuple[int, int, int], bias: int
) -> Record:
    """The :class:`Order` by tables of rows and columns; the last three steps of it."""
    blocks, width = -(-len(rows) // MR), len(columns)
    filled = np.pad(rows, (0, -len(rows) % MR), mode="edge")
    plain = width > 0 and bool((np.diff(columns) == 1).all())
    area = groups * blocks * MR * (width + (bias == COLUMN)) + (bias == BEHIND) * blocks * MR
    sizes = blocks, width, groups, *steps, bias, plain, up(area * size, LINE)
    return Record(Order(filled, columns, *sizes))


@lru_cache(maxsize=512)
def order(
    rows: int, columns: int, size: int, bias: int = 0, groups: int = 1, transposed: bool = False,
    filled: tuple[int, int, int] | None = None,
) -> Record:  # fmt: skip
    """The order of weights (rows, columns) whose elements have ``size`` bytes.

    With ``groups``, each of so many blocks of columns is packed by itself. ``transposed`` packs
    what it takes transposed. ``filled`` is an axis, a number and a larger one: every so many
    channels are filled up to more with zeros.
    """
    tables = [np.arange(rows), np.arange(columns // groups)]
    if filled is not None:
        axis, real, depth = filled
        split = tables[axis].reshape(-1, real)
        tables[axis] = np.pad(split, ((0, 0), (0, depth - real)), constant_values=-1).ravel()
    (down, row_step), (across, step) = list(zip(tables, (columns, 1), strict=True))[
        :: -1 if transposed else 1
    ]
    across = np.where(across < 0, -1, across * step)
    return order_of(down, across, size, groups, (row_step, columns // groups, 0), bias)


def packed(order: Record, weight: Array, bias: Array | None = None) -> Array:
    """Weights in this order, packed by as many threads as pay."""
    o: Order = order.values
    out: Array = empty((o.bytes // weight.itemsize,), weight.dtype, weight)
    call = Packing(order, weight, bias, out)
    launch(_packing(8 * weight.itemsize), o.groups * o.blocks, out.size, 0, call)
    return out


@cache
def _block(bits: int) -> Any:
    @jit
    def folded(bias, norm, channel):
        """What the weights of a channel are multiplied by, and what stands for its bias."""
        given = np.float64(pointer(bias, bits)[channel]) if bias != 0 else 0.0
        if norm.scale == 0:
            return 1.0, given
        deviation = np.sqrt(np.float64(pointer(norm.var, bits)[channel]) + pointer(norm.eps, 64)[0])
        factor = np.float64(pointer(norm.scale, bits)[channel]) / deviation
        center = given - pointer(norm.mean, bits)[channel]
        return factor, factor * center + pointer(norm.shift, bits)[channel]

    @jit
    def block(o, number, weight, bias, norm, out):
        g, first = divmod(number, o.blocks)
        rows, columns = pointer(o.rows + first * MR * 8, -64), pointer(o.columns, -64)
        start, wide = g * o.group_step, o.width + (o.bias == COLUMN)
        source, target = pointer(weight, bits), pointer(out, bits)
        at = number * wide * MR
        behind = o.groups * o.blocks * wide * MR + first * MR
        plain = rows[0] >= 0 and rows[MR - 1] == rows[0] + MR - 1
        plain = plain and o.plain and norm.scale == 0
        if plain:
            begin = start + rows[0] * o.row_step + columns[0]
            for t in range(o.width):  # becomes vectors
                for r in range(MR):
                    target[at + t * MR + r] = source[begin + r * o.row_step + t]
        for r in range(MR):
            factor, constant = folded(bias, norm, g * o.bias_step + max(rows[r], 0))
            place = start + rows[r] * o.row_step
            for t in range(0 if plain else o.width):
                real = rows[r] >= 0 and columns[t] >= 0
                target[at + t * MR + r] = factor * source[place + columns[t]] if real else 0.0
            if o.bias:
                to = at + o.width * MR + r if o.bias == COLUMN else behind + r
                target[to] = constant if rows[r] >= 0 else 0.0

    return block


@cache
def packer(bits: int) -> Any:
    block = _block(bits)

    @jit
    def pack(turn, order, weight, bias, norm, out):
        """Pack at ``out`` before a thread's first task; where the next thing may be."""
        o = read(order, Order)
        for number in range(o.groups * o.blocks if turn == 0 else 0):
            block(o, number, weight, bias, norm, out)
        return out + o.bytes

    return pack


@cache
def _packing(bits: int) -> Any:
    block = _block(bits)

    @jit
    def body(task, turn, scratch, words):
        c = read(words, Packing)
        block(read(c.order, Order), task, c.weight, c.bias, NONE, c.out)

    return body
