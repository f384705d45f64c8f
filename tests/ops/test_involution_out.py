"""Involution into an array of the caller: filled, returned, and nothing else written."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from forms import (
    Form,
    forms,
)

import invocupy
from invocupy import Geometry, functional, reference
from invocupy.testing import LAYOUTS


@pytest.mark.parametrize("module", [invocupy, functional, reference])
def test_out_does_not_overlap_itself(module: Any) -> None:
    x, kernel = np.ones((2, 2, 4, 4)), np.ones((2, 1, 3, 3, 4, 4))
    base = np.zeros(64)
    item = base.itemsize
    for strides in ((0, 128, 32, 8), (256, 128, 32, 0), (256, 128, 8, 8), (64, 128, 32, 8)):
        out = np.lib.stride_tricks.as_strided(base, x.shape, strides)
        with pytest.raises(ValueError, match=r"out overlaps itself .*memory of their own"):
            module.involution(x, kernel, out=out)
        features, weight = np.ones((2, 1, 4, 4)), np.ones((9, 1))
        with pytest.raises(ValueError, match="out overlaps itself"):
            module.fused_involution(x, features, weight, kernel_size=3, out=out)
    assert (base == 0).all()
    expected = module.involution(x, kernel)
    whole = np.zeros((4, 4, 4, 4))
    for out in (
        np.zeros_like(x).transpose(0, 1, 3, 2),
        whole[::2, ::2],
        whole[:2, :2, ::-1, ::-1],
        np.zeros((2, 4, 4, 2)).transpose(0, 3, 1, 2),
    ):
        assert out.itemsize == item
        assert module.involution(x, kernel, out=out) is out
        np.testing.assert_allclose(out, expected)
    single = np.broadcast_to(np.zeros((1, 2, 4, 4)), (1, 2, 4, 4)).copy()
    module.involution(x[:1], kernel[:1], out=single)


# ---------------------------------------------------------------------------- out=, empty, Tensors


@pytest.mark.parametrize("layout", LAYOUTS[:3])
@forms
def test_out_is_filled_and_returned(form: Form, layout: str, xp: ModuleType) -> None:
    g = Geometry.of((2, 4, 6, 5), (2, 2, 3, 3, 6, 5))
    *operands, _ = form.draw(g, 0, "float32", xp)
    expected = form.forward(*operands, **form.options(g))
    for dtype in ("float16", "float32", "float64"):
        operands = [a.astype(dtype) for a in operands]
        out = invocupy.testing.lay_out(xp.full(g.out_shape, xp.nan, dtype), layout)
        for module in (invocupy, reference):
            result = form.forward(*operands, module=module, out=out, **form.options(g))
            assert result is out
            assert (out == expected).all()
            out[...] = xp.nan


def test_out_writes_nothing_else() -> None:
    larger = np.full((1, 2, 3, 5), 7.0)
    x, kernel = np.ones((1, 2, 3, 3)), np.ones((1, 1, 3, 3, 3, 3))
    invocupy.involution(x, kernel, out=larger[..., 1:4])
    assert (larger[..., ::4] == 7).all()
    assert (larger[..., 1:4] == invocupy.involution(x, kernel)).all()


# ---------------------------------------------------------------------------- refusals


def ones(*shape: int, dtype: Any = "float64") -> Any:
    return np.ones(shape, dtype)


X, KERNEL = ones(1, 4, 5, 5), ones(1, 2, 3, 3, 5, 5)
READ_ONLY = ones(1, 4, 5, 5)
READ_ONLY.flags.writeable = False
OUT_REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (X.tolist(), TypeError, "out must be a NumPy array like x, got list"),
    (np.ma.asarray(X.copy()), TypeError, "out is a masked array"),
    (ones(1, 4, 5, 4), ValueError, r"shape \(1, 4, 5, 5\) and dtype float64, got \(1, 4, 5, 4\)"),
    (ones(1, 4, 5, 5, dtype="float32"), ValueError, "dtype float64, got .* float32"),
    (ones(1, 4, 5, 5, dtype=">f8"), ValueError, "dtype float64, got .* >f8"),
    (READ_ONLY, ValueError, "out is read-only"),
    (X, ValueError, "out overlaps x: give an array with memory of its own"),
    (X[:, ::-1], ValueError, "out overlaps x"),
]
both = pytest.mark.parametrize("module", [invocupy, reference], ids=["involution", "reference"])


@both
@pytest.mark.parametrize(("out", "error", "message"), OUT_REFUSALS)
def test_refused_out(module: Any, out: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        module.involution(X, KERNEL, out=out)
    features, weight = ones(1, 3, 5, 5), ones(18, 3)
    with pytest.raises(error, match=message):
        module.fused_involution(X, features, weight, kernel_size=3, out=out)


@both
def test_out_that_overlaps_any_argument_is_refused(module: Any) -> None:
    both_in_one = ones(450)
    kernel, out = both_in_one.reshape(KERNEL.shape), both_in_one[:100].reshape(X.shape)
    with pytest.raises(ValueError, match="out overlaps kernel"):
        module.involution(X, kernel, out=out)
    assert (both_in_one == 1).all()
