"""A mistake of one tap must exceed the tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from invocupy import reference
from invocupy.testing import tolerance


def one_tap_left_out(x: Any, kernel: Any) -> Any:
    return reference.involution(x, kernel * (np.arange(9).reshape(3, 3, 1, 1) != 8))


def one_tap_moved(x: Any, kernel: Any) -> Any:
    return reference.involution(x, kernel[:, :, ::-1])


def halves_inside(x: Any, kernel: Any) -> Any:
    return reference.involution(x.astype("float16"), kernel).astype(x.dtype)


@pytest.mark.parametrize("wrong", [one_tap_left_out, one_tap_moved, halves_inside])
def test_wrong_involution_exceeds_tolerance(wrong: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 6, 6)).astype("float32")
    kernel = rng.standard_normal((2, 2, 3, 3, 6, 6)).astype("float32")
    exact = reference.involution(x.astype("float64"), kernel.astype("float64"))
    allowed = tolerance(reference.involution, x, kernel, terms=9)
    assert (abs(reference.involution(x, kernel) - exact) <= allowed).all()
    assert (abs(wrong(x, kernel) - exact) > allowed).any()


def test_tolerance_is_the_formula() -> None:
    x, kernel = np.full((1, 1, 1, 1), -2.0), np.full((1, 1, 1, 1, 1, 1), 3.0)
    for dtype, unit in (("float32", 2.0**-24), ("float64", 2.0**-53)):
        bound = tolerance(reference.involution, x, kernel, terms=5, dtype=dtype)
        assert bound.item() == pytest.approx(6 * 5 * unit, rel=1e-5)
    half = tolerance(reference.involution, x, kernel, terms=5, dtype="float16")
    assert half.item() == pytest.approx(6 * (2.0**-11 + 5 * 2.0**-24) + 2.0**-24, rel=1e-3)
