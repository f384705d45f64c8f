"""Weights in the order of their use."""

from __future__ import annotations

import numpy as np
from bounds import DTYPES, SEEDS, draw
from hypothesis import given
from hypothesis import strategies as st

from invocupy.backends.cpu.contract import MR
from invocupy.backends.cpu.order import packed


@given(
    DTYPES, st.integers(1, 9), st.integers(1, 9), st.integers(1, 3),
    st.booleans(), st.booleans(), SEEDS,
)  # fmt: skip
def test_packed_weights_come_in_blocks_of_rows(
    dtype: str, rows: int, each: int, groups: int, turned: bool, with_bias: bool, seed: int
) -> None:
    weight, bias = draw(seed, dtype, (rows, groups * each), (rows,))
    with_bias = with_bias and groups == 1 and not turned
    order = packed(weight, bias if with_bias else None, groups, turned)
    for g, blocks in enumerate(order.reshape(groups, *order.shape[-3:])):
        part = weight[:, g * each : (g + 1) * each]
        matrix = part.T if turned else part
        if with_bias:
            matrix = np.column_stack([matrix, bias])
        whole = blocks.swapaxes(1, 2).reshape(-1, matrix.shape[1])
        assert len(whole) == -(-len(matrix) // MR) * MR
        np.testing.assert_array_equal(whole[: len(matrix)], matrix)
        for more in whole[len(matrix) :]:
            np.testing.assert_array_equal(more, matrix[-1])
