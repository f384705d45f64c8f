"""Mistakes in the axes of an involution, which the tests of exact integers must find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from invocupy import Geometry, involution, involution_backward, reference

Function = Callable[..., Any]


def swapped(first: int, second: int) -> Function:
    """The taps of two axes exchanged, as the one public layer in three dimensions has it."""
    return lambda x, kernel: involution(x, kernel.swapaxes(2 + first, 2 + second))


def mirrored(axis: int) -> Function:
    """A convolution, with a flip, along one axis."""
    return lambda x, kernel: involution(x, np.flip(kernel, 2 + axis))


def moved(x: Any, kernel: Any) -> Any:
    """The kernels of positions with two axes exchanged."""
    return involution(x, kernel.swapaxes(-1, -2))


def interleaved(x: Any, kernel: Any) -> Any:
    """Channel c with group c % G in place of c // (C/G)."""
    groups = kernel.shape[1]
    order = np.arange(x.shape[1]).reshape(-1, groups).T.ravel()
    out = np.empty_like(x)
    out[:, order] = involution(np.ascontiguousarray(x[:, order]), kernel)
    return out


MISTAKES = {
    (2, "rows and columns of taps"): swapped(0, 1),
    (3, "depth and rows of taps"): swapped(0, 1),
    (3, "depth and columns of taps"): swapped(0, 2),
    (3, "rows and columns of taps"): swapped(1, 2),
    (1, "mirrored"): mirrored(0),
    (3, "mirrored in depth"): mirrored(0),
    (2, "positions"): moved,
    (3, "positions"): moved,
    (3, "groups"): interleaved,
}


def drawn(dims: int, size: int) -> tuple[Any, Any, Any]:
    """Integers for x, kernel and a gradient of the result: a cube, and a kernel of ``size``."""
    rng, image = np.random.default_rng(0), (4,) * dims
    g = Geometry.of((2, 4, *image), (2, 2, *(size,) * dims, *image))
    shapes = g.x_shape, g.kernel_shape, g.out_shape
    x, kernel, grad = (rng.integers(-3, 4, shape).astype("float32") for shape in shapes)
    return x, kernel, grad


@pytest.mark.parametrize("mistake", MISTAKES)
def test_integers_and_adjoints_show_a_mistake_in_the_axes(mistake: tuple[int, str]) -> None:
    planted = MISTAKES[mistake]
    x, kernel, grad = drawn(mistake[0], 3)
    wrong, right = planted(x, kernel), involution(x, kernel)
    assert (right == reference.involution(x, kernel)).all()
    assert not (wrong == right).all()
    grad_x, grad_kernel = involution_backward(grad, x, kernel)
    product = (grad * wrong).sum()
    assert (grad * right).sum() == (grad_x * x).sum() == (grad_kernel * kernel).sum() != product


def test_with_one_tap_exchanged_axes_of_taps_show_nothing() -> None:
    """So the tests draw kernels of more."""
    x, kernel, _ = drawn(3, 1)
    assert (swapped(0, 2)(x, kernel) == involution(x, kernel)).all()
