"""Involution and its fused form, with and without a bias, for tests that hold for all three."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest

import invocupy
from invocupy import Geometry
from invocupy.testing import geometries, options

FEATURES = 3

# All kinds of sizes, and rows of several vector registers and tiles; by dimensions.
LONG = {"max_batch": 2, "max_size": 3, "max_kernel": 4}
GEOMETRIES = geometries() | geometries(max_width=300, **LONG)
IN = {
    1: geometries(dims=1, max_size=40) | geometries(dims=1, max_width=300, **LONG),
    2: GEOMETRIES,
    3: geometries(dims=3, max_size=6, max_kernel=3, max_groups=2)
    | geometries(dims=3, max_width=70, max_groups=2, **LONG | {"max_kernel": 3}),
}
in_all = pytest.mark.parametrize("dims", IN)


@dataclass(frozen=True)
class Form:
    """One of the two operators: its functions, the shapes of its arguments, its counts of terms."""

    name: str
    shapes: Callable[[Geometry], list[tuple[int, ...]]]
    terms: Callable[[Geometry], int]
    grad_terms: Callable[[Geometry], list[int]]

    def options(self, g: Geometry) -> dict[str, Any]:
        extra = {"kernel_size": g.kernel} if self.name.startswith("fused") else {}
        return {**options(g), **extra}

    def forward(self, *operands: Any, module: Any = invocupy, **chosen: Any) -> Any:
        return getattr(module, self.name)(*operands, **chosen)

    def backward(self, *operands: Any, module: Any = invocupy, **chosen: Any) -> list[Any]:
        """The gradients; that of a bias that is not there is left out."""
        grads = getattr(module, f"{self.name}_backward")(*operands, **chosen)
        return [grad for grad in grads if grad is not None]

    def draw(self, g: Geometry, seed: int, dtype: str, xp: Any) -> list[Any]:
        """Integers in [-3, 3] for the arguments, and for the gradient of the result."""
        rng = np.random.default_rng(seed)
        shapes = [*self.shapes(g), g.out_shape]
        return [xp.asarray(rng.integers(-3, 4, shape).astype(dtype)) for shape in shapes]


def taps(g: Geometry) -> int:
    return prod(g.kernel)


def span_shapes(g: Geometry) -> list[tuple[int, ...]]:
    rows = g.groups * taps(g)
    return [g.x_shape, (g.batch, FEATURES, *g.out), (rows, FEATURES)]


def span_terms(g: Geometry) -> int:
    return FEATURES + 1 + taps(g)


def span_grad_terms(g: Geometry) -> list[int]:
    pixels = g.batch * prod(g.out)
    per_kernel = g.channels_per_group
    return [span_terms(g), per_kernel + g.groups * taps(g), *[per_kernel + pixels] * 2]


PLAIN = Form(
    "involution",
    lambda g: [g.x_shape, g.kernel_shape],
    taps,
    lambda g: [taps(g), g.channels_per_group],
)
FUSED = Form("fused_involution", span_shapes, span_terms, span_grad_terms)
BIASED = Form(
    "fused_involution",
    lambda g: [*span_shapes(g), (g.groups * taps(g),)],
    span_terms,
    span_grad_terms,
)
forms = pytest.mark.parametrize("form", [PLAIN, FUSED, BIASED], ids=["plain", "fused", "biased"])
