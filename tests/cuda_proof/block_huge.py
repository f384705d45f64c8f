"""The kernels of involution_block on arrays past 2^31 elements: only the last blocks run."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np

from invocupy.backends import cuda
from invocupy.backends.cuda import involution_block as device
from invocupy.backends.cuda import spread
from invocupy.backends.reference import involution_block as reference
from invocupy.backends.signatures import Kept
from invocupy.geometry import Geometry

from . import host
from .block_cases import EPS

HEIGHT, WIDTH, ROWS, LAST = 1 << 25, 32, 64, 8  # an int counts the pixels of an image
STATS = (8,)  # of one channel of everything: mean and variance of x and of three norms
UNITS = [(1, 1, 1, 1), *[(1,)] * 3, (1, 1, 1, 1), *[(1,)] * 3, (1, 1, 1, 1), (1,), (1, 1, 1, 1)]
SHAPES = [*UNITS, *[(1,)] * 3]


def run(
    machine: host.Machine, virtual: Any, functions: tuple[str, ...] = ("forward", "gradients")
) -> None:
    """The functions; gradients after training.

    ``virtual`` makes zeros of any size, ``machine`` runs the last blocks only.
    """

    def like(array: Any, *shape: int) -> np.ndarray:
        return virtual(shape, array.dtype)

    def sums(array: Any, *shape: int) -> np.ndarray:
        return virtual(shape, np.float32)

    with (
        host.installed(machine.compile),
        mock.patch.object(cuda, "stored", like),
        mock.patch.object(cuda, "workspace", sums),
        # so that a block has few of the pixels
        mock.patch.object(spread, "_ROWS", 1 << 16),
        mock.patch.object(device, "_BLOCKS", 1 << 31),
    ):
        if "forward" in functions:
            evaluate(virtual)
        if "gradients" in functions:
            train(virtual)


def parameters() -> list[np.ndarray]:
    return [np.full(shape, 0.5 + 0.1 * i, np.float16) for i, shape in enumerate(SHAPES)]


def images(batch: int, virtual: Any, count: int) -> tuple[list[np.ndarray], Geometry]:
    """Arrays (batch, 1, HEIGHT, WIDTH), drawn in the last rows; a window of one pixel."""
    shape, random = (batch, 1, HEIGHT, WIDTH), np.random.default_rng(0)
    arrays = [virtual(shape, np.float16) for _ in range(count)]
    for array in arrays:
        array[-1, :, -ROWS:] = random.standard_normal((1, ROWS, WIDTH))
    return arrays, Geometry.of(shape, (batch, 1, 1, 1, HEIGHT, WIDTH))


def written(*arrays: np.ndarray) -> None:
    for number, array in enumerate(arrays):
        if np.isnan(array[-1, :, -LAST:]).any():
            raise AssertionError(f"huge involution_block: result {number} is nan in the last rows")


def evaluate(virtual: Any) -> None:
    """Each pixel is by itself, so the result is known."""
    (x, out), g = images(18, virtual, 2)
    out[-1, :, -ROWS:] = np.nan
    moments = [np.full((1,), 0.5 + i / 4, np.float32) for i in range(6)]
    device.forward(x, parameters(), moments, EPS, True, g, out)
    part = x[-1:, :, -LAST:].astype(np.float64)
    want = np.empty(part.shape)
    small = Geometry.of(part.shape, (1, 1, 1, 1, *part.shape[2:]))
    wide = [[a.astype(np.float64) for a in arrays] for arrays in (parameters(), moments)]
    reference.forward(part, *wide, EPS, True, small, want)
    written(out)
    if not np.allclose(out[-1:, :, -LAST:], want, rtol=4e-3, atol=4e-3):
        raise AssertionError("huge involution_block.forward: the last rows are wrong")


def train(virtual: Any) -> None:
    """Moments are of the blocks that run, so it counts that all is written."""
    (x, grad, out, grad_x, *kept), g = images(18, virtual, 7)
    saved = Kept(*kept, np.full(STATS, np.nan, np.float32))
    for array in (out, grad_x, *kept):
        array[-1, :, -ROWS:] = np.nan
    device.train(x, parameters(), EPS, True, g, out, saved)
    written(out, *kept)
    grads = [np.full(shape, np.nan, np.float16) for shape in SHAPES]
    saved.stats[...] = (0, 1) * 4
    for array in kept:  # which were large: of moments that are nearly 0
        array[-1, :, -ROWS:] = x[-1, :, -ROWS:]
    device.gradients(grad, x, parameters(), saved, EPS, True, g, grad_x, grads)
    written(grad_x)
    if np.isnan([a.item() for a in grads[:11]]).any():  # the others are written by the first block
        raise AssertionError(f"huge involution_block: gradients of parameters {grads}")
