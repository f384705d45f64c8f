"""Agreement with a float64 reference within bounds that follow from the number of terms.

The bounds are those of a sum of n products in any order, n*u/(1-n*u) times the sum of their sizes
(Higham, Accuracy and Stability of Numerical Algorithms, 3.1), evaluated with the references on
absolute values; no constant is chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from invocupy import Tensor, to_device

DTYPES = st.sampled_from(["float32", "float64"])
SEEDS = st.integers(0, 2**32 - 1)
# one pixel, less than a vector, odd, several tiles and a rest, more than a chunk
PIXELS = st.one_of(st.integers(1, 40), st.sampled_from([49, 63, 64, 65, 130, 1024, 1027]))


def roundoff(dtype: Any, terms: int) -> float:
    """n*u / (1 - n*u)."""
    u = float(np.finfo(dtype).eps) / 2
    return terms * u / (1 - terms * u)


def draw(seed: int, dtype: str, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def host(value: Any) -> Any:
    """A Tensor, or an array of any library, as NumPy's array."""
    return to_device(value.data if isinstance(value, Tensor) else value, "cpu")


def wide(*arrays: Any) -> list[Any]:
    return [None if a is None else a.astype(np.float64) for a in arrays]


def sizes_of(*arrays: Any) -> list[Any]:
    return [None if a is None else abs(a) for a in wide(*arrays)]


def filled(function: Any, arguments: list[Any], *shapes: tuple[int, ...], dtype: Any) -> list[Any]:
    """What ``function(*arguments, *results)`` leaves in results that were NaN before."""
    results = [np.full(shape, np.nan, dtype) for shape in shapes]
    function(*arguments, *results)
    return results


def agree(results: list[Any], exact: list[Any], allowed: list[Any]) -> None:
    for result, value, bound in zip(results, exact, allowed, strict=True):
        assert (abs(result - value) <= bound).all()


def assert_close(actual: Any, expected: Any, terms: int, summand: float = 0.0) -> None:
    """Equal up to ``terms`` roundings of values as large as the largest one, or a ``summand``."""
    actual, expected = host(actual), host(expected)
    unit = np.finfo(actual.dtype).eps / 2
    largest = np.abs(expected).max(initial=summand)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=terms * unit * largest)
