"""A whole block on the CPU: against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import DTYPES, SEEDS, agree, draw, filled, roundoff, sizes_of, wide
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy.backends.cpu import involution_block as whole
from invocupy.backends.reference import involution_block as whole_reference
from invocupy.geometry import Geometry

BlockSizes = tuple[int, int, int, int, int, tuple[int, int], tuple[int, int], tuple[int, int], bool]


def check_whole_block(backend: Any, dtype: str, sizes: BlockSizes, seed: int) -> None:
    """``backend`` against the reference in float64."""
    batch, inputs, depth, groups, features, (kernel_h, kernel_w), dilation, shape, relu = sizes
    hidden, taps = depth * groups, groups * kernel_h * kernel_w
    kernel_shape = (batch, groups, kernel_h, kernel_w, *shape)
    g = Geometry.of((batch, groups * inputs, *shape), kernel_shape, 1, "same", dilation)
    x, parameters, moments = whole_operands(
        seed, dtype, batch, inputs, hidden, features, taps, shape
    )

    def forward(mode: Any) -> Any:
        return lambda *a: mode.forward(a[0], a[1:15], a[15:21], (1e-5, 1e-3, 1e-1), relu, g, a[21])

    (result,) = filled(forward(backend), [x, *parameters, *moments], x.shape, dtype=dtype)
    # The ReLUs move no value further than their arguments are off. Of a mean the size is a bound
    # where it is added, not taken away.
    upward = [-abs(a) if i in (0, 2, 4) else a for i, a in enumerate(wide(*moments))]
    exact, bound = (
        filled(forward(whole_reference), operands, x.shape, dtype=np.float64)[0]
        for operands in (wide(x, *parameters, *moments), [*sizes_of(x, *parameters), *upward])
    )
    terms = 2 * (inputs + 3) + 2 * (hidden + 3) + features + 1 + taps + 4
    agree([result], [exact], [2 * roundoff(dtype, terms) * bound])


def whole_operands(
    seed: int, dtype: str, batch: int, inputs: int, hidden: int, features: int, taps: int,
    shape: tuple[int, int],
) -> tuple[Any, list[Any], list[Any]]:  # fmt: skip
    """x, the parameters, and the moments."""
    channels = (hidden, features, inputs)
    x, *parameters = draw(
        seed, dtype, (batch, inputs, *shape), (hidden, inputs, 1, 1), *[(hidden,)] * 3,
        (features, hidden, 1, 1), *[(features,)] * 3, (taps, features, 1, 1), (taps,),
        (inputs, hidden, 1, 1), *[(inputs,)] * 3,
    )  # fmt: skip
    moments = draw(seed + 1, dtype, *[(number,) for number in channels for _ in range(2)])
    return x, parameters, [abs(a) if i % 2 else a for i, a in enumerate(moments)]


@given(
    DTYPES,
    st.tuples(
        st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 4),
        st.integers(1, 9), st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 7])),
        st.tuples(st.integers(1, 3), st.integers(1, 2)),
        st.tuples(st.integers(1, 12), st.integers(1, 40)), st.booleans(),
    ),
    SEEDS,
)  # fmt: skip
@example("float32", (9, 3, 16, 4, 16, (3, 3), (1, 1), (32, 32), True), 0)
@example("float32", (1, 3, 16, 4, 16, (3, 3), (1, 1), (32, 32), True), 0)  # cut for two threads
@example("float64", (1, 3, 8, 4, 16, (7, 7), (1, 1), (61, 50), False), 0)  # several bands
@example("float32", (2, 1, 1, 5, 1, (1, 1), (1, 1), (20, 3), True), 0)  # cut, without a halo
def test_whole_block_is_the_reference(dtype: str, sizes: BlockSizes, seed: int) -> None:
    check_whole_block(whole, dtype, sizes, seed)


@pytest.mark.parametrize("argument", range(21))
def test_anything_shifted_in_a_whole_block_is_found(argument: int) -> None:
    class Wrong:
        @staticmethod
        def forward(x: Any, parameters: Any, moments: Any, *others: Any) -> None:
            given = [x, *parameters, *moments]
            axis = {0: 2, 11: 1}.get(argument, 0)  # a row; a channel of the next group
            given[argument] = np.roll(given[argument], 1, axis)
            whole.forward(given[0], given[1:15], given[15:], *others)

    sizes = (2, 2, 4, 2, 3, (3, 3), (1, 1), (7, 20), True)
    with pytest.raises(AssertionError):
        check_whole_block(Wrong, "float32", sizes, 0)


def test_a_whole_block_keeps_what_is_not_a_number_to_where_it_is_seen() -> None:
    """Nothing beyond the kernel's reach; and a ReLU does not hide it."""
    g = Geometry.of((1, 8, 40, 33), (1, 4, 3, 3, 40, 33))
    x, *weights = whole_operands(0, "float32", 1, 2, 16, 4, 36, (40, 33))
    options = (1e-5, 1e-5, 1e-5), True, g
    clean, spoiled = np.empty_like(x), np.empty_like(x)
    whole.forward(x, *weights, *options, clean)
    x[0, 1, 20, 32] = np.nan
    whole.forward(x, *weights, *options, spoiled)
    bad = np.isnan(spoiled[0])
    assert bad[:, 20, 32].all()
    bad_rows, bad_columns = np.nonzero(bad.any(axis=0))
    assert set(bad_rows) == {19, 20, 21}
    assert set(bad_columns) == {31, 32}
    np.testing.assert_array_equal(spoiled[0][~bad], clean[0][~bad])


def test_threads_do_not_change_bits(same_bits: Any) -> None:
    g = Geometry.of((9, 6, 40, 33), (9, 2, 3, 5, 40, 33))
    x, weights, moments = whole_operands(1, "float32", 9, 3, 8, 5, 30, (40, 33))
    eps = 1e-5, 1e-5, 1e-5
    same_bits(
        lambda: filled(
            lambda out: whole.forward(x, weights, moments, eps, True, g, out),
            [],
            x.shape,
            dtype="float32",
        )
    )
