"""The block on the CPU: a band of an image passes all of its layers in cache.

Each thread folds the norms into the weights and orders them. x is packed as planes
(:mod:`invocupy.backends.cpu.planes`), and tile by tile the results of the perceptron are written as
planes, too. The involution must see zeros between the rows, so these are cleared; then it computes
tile by tile, each with the kernel that is generated for it.

Training runs step by step here (:mod:`invocupy.ops.block`), with the whole forms of the reference.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache, lru_cache
from typing import Any

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.access import Record, pointer, read
from invocupy.backends.cpu.contract import BIAS, MR, NR, RELU, multiply, product
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import clear
from invocupy.backends.cpu.order import BEHIND, COLUMN, NONE, Norm, order, packer
from invocupy.backends.cpu.planes import TILE, Planes, planes, planes_of
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import VECTOR_BYTES, up
from invocupy.backends.far import near_block
from invocupy.backends.reference.involution_block import gradients, running, train  # noqa: F401
from invocupy.geometry import Geometry

_TASKS = 8  # into which a few images are cut

_Forward = namedtuple(
    "_Forward",
    "planes expand reduce project span x relu out expand_weight expand_bias scale1 shift1 "
    "reduce_weight reduce_bias scale2 shift2 span_weight span_bias project_weight project_bias "
    "scale3 shift3 mean1 var1 mean2 var2 mean3 var3 eps",
)


def forward(
    x: Array, parameters: tuple[Array, ...], moments: tuple[Array, ...],
    eps: tuple[float, float, float], relu: bool, g: Geometry, out: Array,
) -> None:  # fmt: skip
    """One band after another."""
    parameters, g = near_block(parameters, g)
    b, record, orders = _planes(g, x.itemsize, len(parameters[0]), len(parameters[4]))
    epsilons = np.array(eps, np.float64)
    call = _Forward(record, *orders, x, int(relu), out, *parameters, *moments, epsilons)
    products = b.hidden * (b.each + b.features) + b.taps * (b.features + b.each)
    number = b.each + b.feature_rows + g.channels + b.input_rows
    scratch = (b.hidden + b.kernel_rows) * TILE + number * b.plane + 128
    scratch += sum(o.values.bytes for o in orders)
    work = g.batch * b.pixels * products // 8
    launch(_forward(8 * x.itemsize), b.units, work, scratch, call)


@lru_cache(maxsize=512)
def _planes(
    g: Geometry, size: int, hidden: int, features: int
) -> tuple[Planes, Record, list[Record]]:  # fmt: skip
    """And the orders of the weights."""
    each = g.channels_per_group
    rows, columns = ((axis, hidden // g.groups, up(hidden // g.groups, MR)) for axis in (0, 1))
    # x, features, shares, results; a last block of a group's shares runs into the next group
    number = 2 * each + up(features, MR) + g.channels + up(each, MR) - each
    b = planes_of(g, size, number, features, up(features, MR), _TASKS)._replace(
        hidden=g.groups * up(hidden // g.groups, MR), input_rows=up(each, MR),
        rectified=multiply(MR, NR, BIAS, RELU, 1, VECTOR_BYTES // size, 8 * size),
    )  # fmt: skip
    return b, Record(b), [
        order(hidden, each, size, COLUMN, filled=rows),
        order(features, hidden, size, COLUMN, filled=columns),
        order(each, hidden, size, BEHIND, g.groups, filled=columns),
        order(b.taps, features, size, COLUMN),
    ]  # fmt: skip


@cache
def _forward(bits: int) -> Any:
    lay, involve, _ = planes(bits)
    size, linear, affine = bits // 8, product(bits, 0), product(bits, 1)
    zero, pack = np.dtype(f"f{size}").type(0), packer(bits)

    @jit
    def between(place, channels, first, last, b):
        """Zeros in planes but for the rows from ``first`` to ``last``, counted with the halo."""
        for c in range(channels):
            plane = place + c * b.plane
            clear(plane, plane + b.lead + first * b.row)
            for r in range(first, last):
                gap = pointer(plane + b.lead + r * b.row + b.width * size, bits)
                for i in range(b.pad):
                    gap[i] = zero
            clear(plane + b.lead + last * b.row, plane + b.plane)

    @jit
    def finish(out, result, seen, shift, relu, rows, b):
        for r in range(rows):
            held = pointer(out + r * b.width * size, bits)
            total, passed = pointer(result + r * b.row, bits), pointer(seen + r * b.row, bits)
            for i in range(b.width):
                value = total[i] + shift
                held[i] = passed[i] + (zero if relu and value <= zero else value)

    @jit
    def body(task, turn, scratch, words):
        c = read(words, _Forward)
        b = read(c.planes, Planes)
        depth, inner = b.hidden // b.groups, b.lead + b.halo * b.row
        norms = (
            Norm(c.scale1, c.shift1, c.mean1, c.var1, c.eps),
            Norm(c.scale2, c.shift2, c.mean2, c.var2, c.eps + 8),
            Norm(c.scale3, c.shift3, c.mean3, c.var3, c.eps + 16),
        )
        expand = scratch
        reduce = pack(turn, c.expand, c.expand_weight, c.expand_bias, norms[0], expand)
        project = pack(turn, c.reduce, c.reduce_weight, c.reduce_bias, norms[1], reduce)
        span = pack(turn, c.project, c.project_weight, c.project_bias, norms[2], project)
        hidden = pack(turn, c.span, c.span_weight, c.span_bias, NONE, span)
        shifts = pointer(project + b.hidden * b.input_rows * size, bits)
        taps = hidden + b.hidden * TILE
        seen = taps + b.kernel_rows * TILE
        features = seen + b.each * b.plane
        result = features + b.feature_rows * b.plane
        shares = result + b.each * b.plane
        n, band = divmod(task, b.number)
        start = b.height * band // b.number
        rows = b.height * (band + 1) // b.number - start
        image = n * b.each * b.pixels * size
        lay(seen, c.x + image, b.each, start, rows, b)
        top = max(b.halo - start, 0)
        bottom = min(rows + 2 * b.halo, b.height - start + b.halo)
        for at in range(b.lead + top * b.row, b.lead + bottom * b.row, TILE):
            affine(b.rectified, b.each, expand, b.hidden, seen + at, b.plane, hidden, TILE)
            affine(
                b.rectified, b.hidden, reduce, b.feature_rows, hidden, TILE, features + at,
                b.plane,
            )  # fmt: skip
            for j in range(b.groups):
                weights, place = project + j * b.input_rows * depth * size, j * b.each * b.plane
                linear(
                    b.multiply, depth, weights, b.input_rows, hidden + j * depth * TILE, TILE,
                    shares + place + at, b.plane,
                )  # fmt: skip
        between(shares, b.groups * b.each, top, bottom, b)
        for at in range(inner, inner + rows * b.row, TILE):
            affine(b.affine, b.features, span, b.kernel_rows, features + at, b.plane, taps, TILE)
            involve(b.gather, b.taps, shares + at, b.steps, taps, TILE, result + at, c.planes)
        for k in range(b.each):
            place, out = k * b.plane + inner, (k * b.pixels + start * b.width) * size
            finish(c.out + image + out, result + place, seen + place, shifts[k], c.relu, rows, b)

    return body
