"""Options of operators: NumPy's numbers are Python's, and wrong ones are named."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, ops
from invocupy import functional as F  # noqa: N812
from invocupy.ops.normalization import running_moments


def leaf(array: Any) -> Tensor:
    return Tensor(array, requires_grad=True)


# ---------------------------------------------------------------------------- options


def test_numbers_of_numpy_do_not_promote() -> None:
    x, labels = np.zeros((2, 3), "f4"), np.array([0, 1])
    for smoothing in (np.float64(0.1), np.float32(0.1), np.array(0.1), np.int64(0), 0):
        loss = F.cross_entropy(leaf(x), labels, label_smoothing=smoothing)
        assert loss.dtype == np.float32
        loss.backward()
    images = np.random.default_rng(0).standard_normal((2, 3, 2, 2)).astype("f4")
    for eps in (np.float64(1e-5), np.array(1e-5), np.float32(1e-5)):
        assert F.batch_norm(leaf(images), training=True, eps=eps).dtype == np.float32
    moments = [np.zeros(3, "f4"), np.ones(3, "f4")] * 2
    for momentum in (np.float64(0.1), np.float32(0.1)):
        for new in running_moments(*moments, momentum, np.int64(8)):
            assert new.dtype == np.float32
    for one in (Tensor(x) + np.float64(1), np.float64(2) * Tensor(x), Tensor(x) ** np.float64(2)):
        assert one.dtype == np.float32


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan, np.inf, "0.1", None, True, [0.1]])
def test_wrong_numbers_are_named(value: Any) -> None:
    x, images, ones = np.zeros((2, 3)), np.zeros((2, 3, 2, 2)), np.ones(3)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got"):
        F.cross_entropy(x, np.array([0, 1]), label_smoothing=value)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got"):
        running_moments(ones, ones, ones, ones, value, 8)
    if value != 1.5:
        with pytest.raises(ValueError, match="eps must be a finite number >= 0, got"):
            F.batch_norm(images, ones, ones, eps=value)


@pytest.mark.parametrize("value", [True, np.True_, 0, -1, 1.5, "1", None])
def test_wrong_counts_are_named(value: Any) -> None:
    x, weight = np.zeros((1, 2, 4, 4)), np.zeros((2, 2, 1, 1))
    with pytest.raises(ValueError, match="groups must be an integer >= 1, got"):
        F.conv2d(x, weight, groups=value)
    for attend in (
        F.self_attention,
        lambda *a, **k: F.local_self_attention(*a, kernel_size=1, **k),
    ):
        with pytest.raises(ValueError, match="heads must be an integer >= 1, got"):
            attend(x, x, x, heads=value)
    for name in ("stride", "dilation"):
        with pytest.raises(ValueError, match=f"{name} must be an integer >= 1"):
            F.conv2d(x, weight, **{name: value})
    if value is not None:
        with pytest.raises(ValueError, match="kernel_size must be an integer >= 1"):
            F.max_pool2d(x, value)


def test_counts_of_numpy_are_accepted() -> None:
    x, weight = np.ones((1, 2, 4, 4)), np.ones((2, 1, 3, 3))
    value = F.conv2d(x, weight, groups=np.int64(2), stride=np.int32(1), padding=np.uint8(1))
    assert value.shape == (1, 2, 4, 4)
    assert F.self_attention(x, x, x, heads=np.int16(2)).shape == x.shape


def test_no_warning_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.cross_entropy(np.array([[1.0, -np.inf]]), np.array([0]))
    assert ops.softmax(np.array([0.0, -np.inf]))[0].tolist() == [1, 0]
