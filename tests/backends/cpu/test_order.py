"""Weights in the order of their use."""

from __future__ import annotations

import numpy as np
from bounds import DTYPES, SEEDS, draw
from hypothesis import given
from hypothesis import strategies as st

from invocupy.backends.cpu.contract import MR
from invocupy.backends.cpu.order import COLUMN, order, packed


@given(
    DTYPES, st.integers(1, 9), st.integers(1, 9), st.integers(1, 3),
    st.booleans(), st.booleans(), SEEDS,
)  # fmt: skip
def test_packed_weights_come_in_blocks_of_rows(
    dtype: str, rows: int, each: int, groups: int, turned: bool, with_bias: bool, seed: int
) -> None:
    weight, bias = draw(seed, dtype, (rows, groups * each), (rows,))
    with_bias = with_bias and groups == 1 and not turned
    size, given_bias = weight.itemsize, bias if with_bias else None
    how = order(rows, groups * each, size, COLUMN if with_bias else 0, groups, turned)
    o = how.values
    width = o.width + with_bias
    area = groups * o.blocks * width * MR
    result = packed(how, weight, given_bias)[:area].reshape(groups, o.blocks, width, MR)
    for g, blocks in enumerate(result):
        part = weight[:, g * each : (g + 1) * each]
        matrix = part.T if turned else part
        if with_bias:
            matrix = np.column_stack([matrix, bias])
        whole = blocks.swapaxes(1, 2).reshape(-1, matrix.shape[1])
        assert len(whole) == -(-len(matrix) // MR) * MR
        np.testing.assert_array_equal(whole[: len(matrix)], matrix)
        for more in whole[len(matrix) :]:
            np.testing.assert_array_equal(more, matrix[-1])
