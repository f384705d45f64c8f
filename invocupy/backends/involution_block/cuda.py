"""The block on CuPy arrays: array code; blocks on a GPU run layer by layer."""

from __future__ import annotations

from typing import Any

from invocupy.backends.far import near_block
from invocupy.backends.involution_block import reference
from invocupy.geometry import Geometry


def forward(
    x: Any, parameters: tuple[Any, ...], moments: tuple[Any, ...], eps: tuple[float, float, float],
    relu: bool, g: Geometry, out: Any,
) -> None:  # fmt: skip
    """The reference's, of the taps that see anything."""
    parameters, g = near_block(parameters, g)
    reference.forward(x, parameters, moments, eps, relu, g, out)
