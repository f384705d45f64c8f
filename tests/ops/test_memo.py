"""What several gradients share is computed once, and not kept."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
from bounds import draw

from invocupy import ops
from invocupy.ops.memo import once, sharing


def test_partials_share_sums_but_keep_no_gradient() -> None:
    x, weight, bias, grad = draw(0, "float32", (2, 3, 5, 7), (4, 3, 1, 1), (4,), (2, 4, 5, 7))
    _, (_, grad_weight, grad_bias) = ops.conv2d(x, weight, bias)
    alive = weakref.ref(grad)
    first = grad_weight(grad)
    first[...] = np.nan  # the caller's own array
    assert np.isfinite(grad_weight(grad)).all()
    assert grad_bias(grad).shape == (4,)
    assert not np.array_equal(grad_bias(2 * grad), grad_bias(grad))
    del grad
    gc.collect()
    assert alive() is None


def test_shared_work_is_forgotten_with_its_gradient() -> None:
    made: list[Any] = []

    def make(grad: np.ndarray) -> np.ndarray:
        result = 2 * grad
        made.append(weakref.ref(result))
        return result

    shared, grad = once(make), np.ones(3)
    with sharing(grad):
        assert shared(grad) is shared(grad)
        assert len(made) == 1
        assert shared(2 * grad)[0] == 4  # not the gradient that is passed on
    assert made[0]() is None
    grad[...] = 3  # filled again
    with sharing(grad):
        assert shared(grad)[0] == 6
    assert shared(grad) is not shared(grad)
