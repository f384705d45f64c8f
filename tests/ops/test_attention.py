"""Local and global self-attention: their formulas, and what they share with involution."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import SEEDS, host
from hypothesis import given
from hypothesis import strategies as st

from invocupy import functional as F  # noqa: N812
from invocupy.testing import gradcheck


def softmax(scores: list[float]) -> np.ndarray:
    e = np.exp(np.array(scores) - max(scores))
    return e / e.sum()


def naive(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: int, neighbours: Any, added: Any
) -> np.ndarray:
    """Pixel by pixel; ``neighbours(i, j)`` are (row, column, what ``added`` has for it)."""
    n, channels, h, w = query.shape
    out, depth, wide = np.zeros(value.shape), channels // heads, value.shape[1] // heads
    for b, head, i, j in np.ndindex(n, heads, h, w):
        part = slice(head * depth, (head + 1) * depth)
        places = list(neighbours(i, j))
        weights = softmax([
            query[b, part, i, j] @ (key[b, part, r, s] + added(head, tap)) / np.sqrt(depth)
            for r, s, tap in places
        ])  # fmt: skip
        for weight, (r, s, _) in zip(weights, places, strict=True):
            mine = slice(head * wide, (head + 1) * wide)
            out[b, mine, i, j] += weight * value[b, mine, r, s]
    return out


def bound(value: np.ndarray, terms: int) -> float:
    """A mean of values, with weights from an exponential of sums of ``terms`` products below 40.

    Each rounding of a score changes its weight by at most twice that much, and the weights sum
    to one.
    """
    u = 2.0**-53
    return 4 * (40 * (terms + 4) + 3 * terms + 20) * u * float(np.abs(value).max())


@given(
    heads=st.integers(1, 3), depth=st.integers(1, 4), wide=st.integers(1, 3),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3])),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)), positioned=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_local_attention_is_its_formula(
    heads: int, depth: int, wide: int, size: Any, kernel: Any, dilation: Any, positioned: bool,
    seed: int, xp: ModuleType,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    query, key = rng.uniform(-1, 1, (2, 2, heads * depth, *size))
    value = rng.standard_normal((2, heads * wide, *size))
    positions = rng.uniform(-1, 1, (heads, *kernel, depth)) if positioned else None

    def neighbours(i: int, j: int) -> Any:
        for u, v in np.ndindex(*kernel):
            r = i + (u - kernel[0] // 2) * dilation[0]
            s = j + (v - kernel[1] // 2) * dilation[1]
            if 0 <= r < size[0] and 0 <= s < size[1]:
                yield r, s, (u, v)

    def added(head: int, tap: Any) -> Any:
        return 0 if positions is None else positions[head, *tap]

    expected = naive(query, key, value, heads, neighbours, added)
    arrays = [None if a is None else xp.asarray(a) for a in (query, key, value, positions)]
    found = F.local_self_attention(*arrays, kernel_size=kernel, heads=heads, dilation=dilation)
    terms = max(kernel[0] * kernel[1], depth)
    assert np.abs(host(found) - expected).max() <= bound(value, terms)


@given(
    heads=st.integers(1, 3), depth=st.integers(1, 4), wide=st.integers(1, 3),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=SEEDS,
)  # fmt: skip
def test_attention_is_its_formula(
    heads: int, depth: int, wide: int, size: Any, seed: int, xp: ModuleType
) -> None:
    rng = np.random.default_rng(seed)
    query, key = rng.uniform(-1, 1, (2, 2, heads * depth, *size))
    value = rng.standard_normal((2, heads * wide, *size))
    everywhere = [(r, s, None) for r, s in np.ndindex(*size)]
    expected = naive(query, key, value, heads, lambda i, j: everywhere, lambda head, tap: 0)
    found = F.self_attention(*map(xp.asarray, (query, key, value)), heads=heads)
    assert np.abs(host(found) - expected).max() <= bound(value, max(len(everywhere), depth))


def test_a_window_over_the_whole_image_is_global(xp: ModuleType) -> None:
    rng = np.random.default_rng(0)
    query, key, value = map(xp.asarray, rng.uniform(-1, 1, (3, 2, 6, 4, 5)))
    local = F.local_self_attention(query, key, value, kernel_size=(7, 9), heads=2)
    everywhere = F.self_attention(query, key, value, heads=2)
    assert float(abs(local - everywhere).max()) <= 2 * bound(np.ones(1), 63)


def test_without_keys_it_is_an_involution(xp: ModuleType) -> None:
    """The kernel is then made from the one pixel in its middle: softmax of a 1x1 convolution."""
    rng = np.random.default_rng(0)
    query, x = map(xp.asarray, rng.uniform(-1, 1, (2, 2, 8, 9, 9)))
    positions = xp.asarray(rng.uniform(-1, 1, (2, 3, 3, 4)))
    attention = F.local_self_attention(query, 0 * query, x, positions, kernel_size=3, heads=2)
    weight = positions.reshape(18, 4, 1, 1) / 2  # sqrt of 4 channels a head
    scores = F.conv2d(query, weight, groups=2).reshape(2, 2, 9, 9, 9)
    kernel = F.softmax(scores, axis=2).reshape(2, 2, 3, 3, 9, 9)
    involution = F.involution(x, kernel)
    inner = (..., slice(1, -1), slice(1, -1))  # at the edge the softmax leaves taps out
    assert float(abs(attention - involution)[inner].max()) <= 2 * bound(np.ones(1), 9)
    assert float(abs(attention - involution).max()) > 1e-3


def test_large_scores_do_not_overflow(xp: ModuleType) -> None:
    query = xp.full((1, 1, 3, 3), 1e10, "float32")  # scores of 1e20, whose exponential is infinite
    value = xp.arange(9, dtype="float32").reshape(1, 1, 3, 3)
    expected = F.self_attention(0 * query, 0 * query, value)
    found = F.self_attention(query, query, value)
    assert host(found).tolist() == host(expected).tolist()
    middle = host(F.local_self_attention(query, query, value, kernel_size=3))[0, 0, 1, 1]
    assert abs(middle - 4) <= bound(host(value), 9) * 2.0**29


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)])
def test_empty(shape: Any, xp: ModuleType) -> None:
    x = xp.ones(shape)
    positions = xp.ones((1, 3, 3, 4))
    assert F.local_self_attention(x, x, x, positions, kernel_size=3).shape == shape
    assert F.self_attention(x, x, x).shape == shape


def test_gradients_through_the_tape() -> None:
    rng = np.random.default_rng(0)
    arrays = [*rng.standard_normal((3, 1, 4, 3, 4)), rng.standard_normal((2, 3, 3, 2))]
    gradcheck(lambda *a: F.local_self_attention(*a, kernel_size=3, heads=2), *arrays)
    gradcheck(lambda *a: F.self_attention(*a, heads=2), *arrays[:3])


ONES = np.ones((1, 4, 3, 3))


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ((ONES[0], ONES, ONES), {}, "query must have 4 dimensions"),
        ((ONES, ONES[:, :2], ONES), {}, "key must have the shape of query"),
        ((ONES, ONES, ONES[..., :2]), {}, "value must have the batch and image size"),
        ((ONES, ONES, ONES), {"heads": 3}, "heads must divide the channels"),
        ((ONES, ONES, ONES), {"heads": 0}, "heads must be an integer >= 1"),
        ((ONES, ONES, ONES), {"kernel_size": 2}, "even kernel has no centre"),
        ((ONES, ONES, ONES, np.ones((1, 3, 3, 3))), {}, "positions must be"),
    ],
)  # fmt: skip
def test_refusals(arrays: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.local_self_attention(*arrays, **({"kernel_size": 3} | options))
    if len(arrays) == 3 and "kernel_size" not in options:
        with pytest.raises(ValueError, match=message):
            F.self_attention(*arrays, **options)


def test_lists_are_refused() -> None:
    with pytest.raises(TypeError, match="query"):
        F.self_attention(ONES.tolist(), ONES, ONES)
