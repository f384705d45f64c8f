"""Arrays of any library: where they lie, and copies that are contiguous."""

from __future__ import annotations

import numpy as np

from invocupy.arrays import contiguous


def test_contiguous_keeps_an_array_that_is_so() -> None:
    array = np.ones((2, 3), np.float32)
    for dtype in (None, np.dtype(np.float32)):
        assert contiguous(array, dtype) is array
        turned = contiguous(array.T, dtype)
        assert turned.flags.c_contiguous
        assert turned.dtype == np.float32
