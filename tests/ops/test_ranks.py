"""Sums and moments of several ranks: exact, and in the order of the ranks."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from bounds import draw, roundoff
from hypothesis import example, given
from hypothesis import strategies as st
from ranks import Rank, run_ranks

from invocupy import ops
from invocupy.ops import normalization
from invocupy.ops.ranks import allreduce_sum, merge


def check_merge(function: Any, shares: list[int], seed: int, level: float, pairs: bool) -> None:
    """Moments of numbers around ``level`` against exact ones, with the bound of two passes."""
    (x,) = draw(seed, "float64", (sum(shares), 2))
    x = x + level
    parts = np.split(x, np.cumsum(shares)[:-1])

    def task(comm: Rank) -> Any:
        mine = parts[comm.rank]
        mean = mine.mean(axis=0) if len(mine) else np.zeros(2)
        apart = mine - mean
        products = apart[:, :, None] * apart[:, None] if pairs else apart * apart
        return function(comm, len(mine), mean, products.sum(axis=0) / max(len(mine), 1))

    results = run_ranks(len(shares), task)
    exact = [[Fraction(v) for v in row] for row in x.tolist()]
    n = len(exact)
    means = [sum(row[k] for row in exact) / n for k in range(2)]
    apart = [[row[k] - means[k] for k in range(2)] for row in exact]
    far = float(max(abs(a) for row in apart for a in row))
    u = roundoff("float64", n + len(shares) + 8)
    off = 2 * u * float(max(abs(v) for row in exact for v in row))  # of a rank's mean, and of all
    for count, mean, second in results:
        assert count == n
        assert all(
            abs(Fraction(m) - exact) <= off for m, exact in zip(mean.tolist(), means, strict=True)
        )
        for j, k in ((0, 0), (0, 1), (1, 1)) if pairs else ((0, 0), (1, 1)):
            terms = [row[j] * row[k] for row in apart]
            found = Fraction(float(second[j, k] if pairs else second[j]))
            # products, rounded, of distances that are `off` themselves, twice: in a rank, between
            allowed = u * float(sum(map(abs, terms)) / n) + 4 * off * (far + off)
            assert abs(float(found - sum(terms) / n)) <= allowed


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1e4, 1e8]),
    st.booleans(),
)
@example([1], 0, 0.0, False)
@example([0, 0, 2], 0, 1e8, True)
def test_merged_moments_do_not_cancel(
    shares: list[int], seed: int, level: float, pairs: bool
) -> None:
    check_merge(merge, shares, seed, level, pairs)


def test_squares_minus_a_square_cancel_and_are_found() -> None:
    def wrong(comm: Any, count: int, mean: Any, second: Any) -> Any:
        total, middle, _ = merge(comm, count, mean, second)
        square = comm.allgather((second + mean * mean) * count).sum(axis=0) / total
        return total, middle, square - middle * middle

    check_merge(wrong, [3, 4], 0, 0.0, False)
    with pytest.raises(AssertionError):
        check_merge(wrong, [3, 4], 0, 1e4, False)


def test_sums_are_those_of_all_ranks_in_their_order() -> None:
    a = np.array([1e16, 1.0, -1e16])  # in another order another sum

    def task(comm: Rank) -> Any:
        return allreduce_sum(comm, a[comm.rank : comm.rank + 1], np.full(1, comm.rank, np.float32))

    for result in run_ranks(3, task):
        np.testing.assert_array_equal(result, [[a[0] + a[1] + a[2]], [3]])


def test_what_ranks_need_is_asked_for() -> None:
    x, ones = np.ones((2, 3, 2, 2)), np.ones(3)

    def task(comm: Rank) -> None:
        with pytest.raises(ValueError, match="count is missing"):
            ops.batch_norm(x, ones, ones, mean=ones, var=ones, training=True, comm=comm)
        with pytest.raises(ValueError, match="2 or more dimensions"):
            normalization.merged_moments(ones, comm)

    run_ranks(1, task)
