"""Half types: sums and losses are computed in float32."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from bounds import host

from invocupy import Tensor, nn, optim
from invocupy import functional as F  # noqa: N812

HALF = np.float16
COUNT = 4096  # float16 has no number between 2048 and 2050: adding ones stops there


def leaf(array: Any) -> Tensor:
    return Tensor(array, requires_grad=True)


# ---------------------------------------------------------------------------- half types


def assert_half(value: Any, expected: Any) -> None:
    """Right up to a rounding to float16 at the end, and few in between."""
    value = host(value)
    assert value.dtype == HALF
    np.testing.assert_allclose(value.astype(float), expected, rtol=2 * np.finfo(HALF).eps)


def test_sums_of_half_types_are_accumulated_in_float32(xp: ModuleType) -> None:
    ones = xp.ones((COUNT, 3), HALF)
    assert_half(F.sum(ones), min(3 * COUNT, np.inf))
    for axis, expected in ((0, COUNT), ((0,), COUNT), (1, 3), (-1, 3), ((0, 1), 3 * COUNT)):
        assert_half(F.sum(ones, axis=axis), expected)
        assert_half(F.mean(ones * 100, axis=axis), 100)
        assert_half(F.sum(ones.T, axis=-1, keepdims=True), COUNT)
    assert_half(F.mean(xp.full((200, 200), 60, HALF)), 60)  # the sum is past the largest number
    assert_half(F.matmul(ones.T, ones), COUNT)
    assert_half(F.matmul(xp.ones((1, COUNT), HALF), ones), COUNT)
    x = leaf(ones)
    F.max(x, axis=0).sum().backward()
    assert_half(x.grad, 1 / COUNT)
    x = leaf(xp.ones(100_000, HALF))  # more than the largest number of equal ones
    F.max(x).backward()
    assert_half(x.grad, 1e-5)


def test_gradients_of_what_is_broadcast_are_accumulated_in_float32(xp: ModuleType) -> None:
    ones = xp.ones((COUNT, 3), HALF)
    for op in (F.add, F.subtract, F.multiply, F.divide, F.maximum, F.power):
        other = leaf(xp.full(3, 1.0 if op is not F.maximum else 2.0, HALF))
        op(ones, other).sum().backward()
        slope = {F.subtract: -1, F.divide: -1, F.power: 0}.get(op, 1)
        assert_half(other.grad, slope * COUNT)
    bias = leaf(xp.zeros((1, 3, 1, 1), HALF))
    (Tensor(xp.zeros((COUNT, 3, 1, 2), HALF)) + bias).sum().backward()
    assert_half(bias.grad, 2 * COUNT)


def test_gradients_of_many_uses_are_accumulated_in_float32(xp: ModuleType) -> None:
    x = leaf(xp.ones(3, HALF))
    inner = x * 1  # no leaf
    total: Any = 0
    for _ in range(COUNT):
        total = inner * 1 + total
    total.sum().backward()
    assert_half(x.grad, COUNT)
    x = leaf(xp.ones((2, 3), HALF))
    x[xp.zeros(COUNT, int)].sum().backward()
    assert_half(x.grad, [[COUNT] * 3, [0] * 3])
    x.grad = None
    (x * 1).backward(np.ones((2, 3), HALF) if xp is np else xp.ones((2, 3), HALF))
    assert x.grad.dtype == HALF


def test_layers_accumulate_half_types_in_float32(xp: ModuleType) -> None:
    x, weight, bias = (xp.ones(shape, HALF) for shape in ((COUNT, 2), (3, 2), (3,)))
    tensors = [leaf(a) for a in (x, weight, bias)]
    F.linear(*tensors).sum().backward()
    for tensor, expected in zip(tensors, (3, COUNT, COUNT), strict=True):
        assert_half(tensor.grad, expected)
    assert_half(F.linear(xp.ones((1, COUNT), HALF), xp.ones((2, COUNT), HALF)), COUNT)
    images = xp.ones((64, 4, 8, 8), HALF)
    for shape, options in (((3, 4, 1, 1), {}), ((3, 4, 3, 3), {"padding": 1})):
        weight, bias = leaf(xp.zeros(shape, HALF)), leaf(xp.zeros(3, HALF))
        F.conv2d(images, weight, bias, **options).sum().backward()
        assert_half(bias.grad, COUNT)
        assert_half(weight.grad[:, :, shape[2] // 2, shape[3] // 2], COUNT)
    weight, bias = leaf(xp.zeros((4, 1, 3, 3), HALF)), leaf(xp.zeros(4, HALF))
    F.conv2d(images, weight, bias, padding=1, groups=4).sum().backward()
    assert_half(bias.grad, COUNT)
    assert_half(weight.grad[:, :, 1, 1], COUNT)
    image = xp.ones((1, 1, 64, 64), HALF)
    assert_half(F.conv2d(image, xp.ones((1, 1, 64, 64), HALF)), COUNT)
    assert_half(F.avg_pool2d(image, 64), 1)
    assert_half(nn.GlobalAvgPool2d()(image), 1)
    wide = leaf(xp.ones((1, 1, 127, 127), HALF))
    F.avg_pool2d(wide, 64, 1).sum().backward()  # the pixel in the middle is seen by all windows
    assert_half(wide.grad[0, 0, 63, 63], 1)
    peak = xp.zeros((1, 1, 127, 127), HALF)
    peak[0, 0, 63, 63] = 1
    peak = leaf(peak)
    F.max_pool2d(peak, 64, 1).sum().backward()
    assert_half(peak.grad[0, 0, 63, 63], COUNT)


def test_losses_of_half_types_are_computed_in_float32(xp: ModuleType) -> None:
    labels = xp.zeros(40_000, int)
    logits = leaf(xp.zeros((40_000, 10), HALF))
    loss = F.cross_entropy(logits, labels)
    assert_half(loss, np.log(10))
    loss.backward(xp.asarray(1000, HALF))
    assert_half(logits.grad[:, 1], 1000 * 0.1 / 40_000)
    rounding = 2.0**-8 + 2.0**-11  # half a step of float16 at log(1 / COUNT) = -8.3, and of its exp
    for function in (F.softmax, lambda x, axis: F.exp(F.log_softmax(x, axis))):
        p = host(function(xp.zeros((COUNT, 2), HALF), axis=0)).astype(float)
        np.testing.assert_allclose(p.sum(axis=0), 1, rtol=rounding)
    x = leaf(xp.zeros((COUNT, 2), HALF))
    seed = xp.ones((COUNT, 2), HALF)
    F.log_softmax(x, axis=0).backward(seed)
    np.testing.assert_allclose(host(x.grad).astype(float), 0, atol=rounding)
    query, key, value = (xp.zeros((1, 1, 64, 64), HALF) + a for a in (0, 0, 1))
    assert_half(F.self_attention(query, key, value), 1)


def test_updates_of_half_types_are_computed_in_float32(xp: ModuleType) -> None:
    weight = nn.Parameter(xp.ones(3, HALF))
    sgd = optim.SGD([weight], lr=1e5, weight_decay=1e-6)  # neither is a float16
    for expected in (0.9, 0.81):
        weight.grad = xp.zeros(3, HALF)
        sgd.step()
        assert_half(weight.data, expected)
