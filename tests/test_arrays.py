"""Arrays of any library: where they lie, and copies that are contiguous."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from invocupy.arrays import (
    cast_like,
    check,
    contiguous,
    converted,
    device_of,
    is_cupy,
    namespace,
    on_device,
    to_device,
    wide,
)
from invocupy.testing import LAYOUTS, lay_out


def test_contiguous_keeps_an_array_that_is_so() -> None:
    array = np.ones((2, 3), np.float32)
    for dtype in (None, np.dtype(np.float32)):
        assert contiguous(array, dtype) is array
        turned = contiguous(array.T, dtype)
        assert turned.flags.c_contiguous
        assert turned.dtype == np.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_contiguous_copies_have_the_values(xp: ModuleType, layout: str) -> None:
    array = lay_out(xp.arange(24.0).reshape(1, 2, 3, 4), layout)
    plain = contiguous(array, None)
    assert type(plain) is xp.ndarray
    assert plain.flags.c_contiguous
    assert plain.dtype == np.float64
    np.testing.assert_array_equal(to_device(plain, "cpu"), to_device(array, "cpu"))


def test_memory_out_of_line_is_copied() -> None:
    array = np.frombuffer(bytes(33), np.uint8)[1:].view(np.float64)
    assert not array.flags.aligned
    assert contiguous(array, None).flags.aligned


@pytest.mark.parametrize("order", ["<f4", ">f4"])
def test_casting_like_another_array_gives_the_order_of_the_machine(order: str) -> None:
    like, array = np.zeros(1, order), np.ones(3)
    assert cast_like(array, like).dtype == np.dtype(np.float32)
    assert cast_like(array, like).dtype.isnative
    native = np.ones(3, np.float32)
    assert cast_like(native, like) is native


def test_half_types_are_accumulated_in_float32() -> None:
    assert wide(np.dtype(np.float16)) is np.float32
    for dtype in (np.float32, np.float64, np.int16):
        assert wide(np.dtype(dtype)) is None


def test_the_device_of_an_array(xp: ModuleType) -> None:
    array = xp.ones(3)
    assert device_of(array) == ("cpu" if xp is np else f"cuda:{array.device.id}")
    assert is_cupy(array) == (xp is not np)
    assert namespace(array) is xp
    with on_device(array):
        assert device_of(xp.ones(1)) == device_of(array)
    assert to_device(array, device_of(array)) is array
    assert isinstance(to_device(array, "cpu"), np.ndarray)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "CPU", ""])
def test_devices_that_are_none(device: Any) -> None:
    with pytest.raises((ValueError, RuntimeError), match="cpu"):
        to_device(np.ones(1), device)


def test_a_mask_is_not_left_behind() -> None:
    with pytest.raises(TypeError, match=r"array is a masked array, and the mask would be ignored"):
        to_device(np.ma.array([1.0], mask=[True]), "cpu")


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        ([1.0], TypeError, "y must be a NumPy or CuPy array, got list: convert it"),
        (1.0, TypeError, "got float: convert it"),
        (np.ma.masked_array([1.0]), TypeError, "y is a masked array, and the mask would be ignor"),
        (np.ones(1, int), TypeError, r"y has dtype int64, but only floating dtypes work"),
        (np.ones(1, complex), TypeError, r"convert it with .astype\('float32'\)"),
        (np.ones(1, np.longdouble), TypeError, "only floating dtypes work"),
        (np.ones(1, object), TypeError, "y has dtype object"),
    ],
)
def test_what_no_operator_takes(array: Any, error: type[Exception], message: str) -> None:
    check(x=np.ones(1))
    with pytest.raises(error, match=message):
        check(x=np.ones(1), y=array)


def test_libraries_do_not_mix() -> None:
    cupy = pytest.importorskip("cupy")
    with pytest.raises(TypeError, match="x is a NumPy array and y a CuPy array: move one of them"):
        check(x=np.ones(1), y=cupy.ones(1))


@pytest.mark.parametrize(
    ("loaded", "like", "message"),
    [
        (np.ones(2), np.ones(3), r"shape \(2,\), expected \(3,\)"),
        (np.ones(3, int), np.ones(3), "dtype int64, expected a floating dtype"),
        (np.full(3, 0.5), np.ones(3, int), "values that int64 cannot hold"),
        (np.full(3, 300), np.ones(3, np.uint8), "values that uint8 cannot hold"),
        (np.full(3, 1e60), np.ones(3, np.float32), "values that float32 cannot hold"),
        (np.array(["a"] * 3), np.ones(3, int), "expected whole numbers"),
        (np.ma.masked_array(np.ones(3)), np.ones(3), "a masked array, expected a plain one"),
    ],
)
def test_state_that_would_lose_its_values_is_refused(loaded: Any, like: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        converted(loaded, like)


def test_state_is_converted_where_it_keeps_its_values() -> None:
    assert converted(np.array([3.0]), np.array(0)).shape == ()  # a counter
    assert converted(np.array([np.inf, np.nan]), np.zeros(2, np.float16)).dtype == np.float16
    source = np.ones(2)
    assert not np.shares_memory(converted(source, source), source)
    for least, bad in ((0.0, -1.0), (0.0, np.nan), (-np.inf, np.nan)):
        with pytest.raises(ValueError, match="NaN"):
            converted(np.array([bad]), np.zeros(1), least)
