"""Dropout: what is kept, how often, and what the keys decide."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import host

from invocupy import Tensor
from invocupy import functional as F  # noqa: N812

KEYS = np.array([1, 2], np.uint32)


def kept(keys: Any, shape: Any = (1 << 14,), p: float = 0.3) -> Any:
    return F.dropout(np.ones(shape), p, rng=np.array(keys, np.uint32)) != 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0, 2), (3, 4, 2)])
def test_what_is_kept_is_scaled(dtype: str, shape: Any, xp: ModuleType) -> None:
    x = Tensor(xp.asarray(np.random.default_rng(0).normal(size=shape).astype(dtype)), True)
    mask = host(F.dropout(np.ones(shape), 0.3, rng=KEYS)) != 0  # the same on each device
    y = F.dropout(x, 0.3, rng=KEYS)
    assert y.dtype == dtype
    np.testing.assert_array_equal(host(y), (host(x) * mask * (1 / 0.7)).astype(dtype))
    grad = np.random.default_rng(1).normal(size=shape).astype(dtype)
    y.backward(xp.asarray(grad))
    np.testing.assert_array_equal(host(x.grad), (grad * mask * (1 / 0.7)).astype(dtype))


def test_the_ends(xp: ModuleType) -> None:
    x = xp.asarray([np.inf, np.nan, 1.0])
    assert host(F.dropout(x, 1.0)).tolist() == [0, 0, 0]
    assert F.dropout(x, 0.0) is x
    assert F.dropout(x, 0.5, False) is x
    assert not np.isnan(host(F.dropout(xp.full(100, np.inf), 0.5))).any()


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
def test_each_element_is_dropped_by_chance(p: float) -> None:
    """In bounds that an honest mask would leave once in a million; the keys are fixed."""
    n = 1 << 14
    for first in range(5):
        count = n - int(kept([first, 7], p=p).sum())
        assert abs(count - n * p) < 4.9 * np.sqrt(n * p * (1 - p))
    runs = kept([9, 7], p=p).reshape(-1, 4) @ [1, 2, 4, 8]
    shares = [p ** (4 - bin(i).count("1")) * (1 - p) ** bin(i).count("1") for i in range(16)]
    seen, wanted = np.bincount(runs, minlength=16), np.array(shares) * n / 4
    often = wanted > 5
    assert (((seen - wanted) ** 2) / wanted)[often].sum() < 58  # chi square of 15 degrees


def test_masks_of_other_keys_have_nothing_in_common() -> None:
    """How often two masks agree; also those of neighbouring steps and of ranks."""
    first = kept([0, 0])
    share = 0.3**2 + 0.7**2
    for keys in ([1, 0], [0, 1], [0x9E3779B9] * 2, [0x85EBCA6B] * 2, [1 << 31, 1 << 31]):
        agreed = (first == kept(keys)).mean()
        assert abs(agreed - share) < 4.9 * np.sqrt(share * (1 - share) / first.size)


def test_a_generator_draws_the_keys() -> None:
    x = np.ones(64)
    one, two = (np.random.default_rng(3) for _ in range(2))
    masks = [F.dropout(x, rng=rng) for rng in (one, two, one)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    assert (F.dropout(x) != F.dropout(x)).any()


def test_refusals() -> None:
    for p in (-0.1, 1.5, np.nan, "0.5", None):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
            F.dropout(np.ones(2), p)  # type: ignore[arg-type]
    for rng in (0, np.array([1, 2]), np.ones(3, np.uint32), np.random):
        with pytest.raises(TypeError, match=r"rng must be a numpy\.random\.Generator or a uint32"):
            F.dropout(np.ones(2), rng=rng)  # type: ignore[arg-type]
