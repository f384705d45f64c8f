"""Sums in the storage type, 0 times infinity, gradients by content: values that must come out."""

from __future__ import annotations

import warnings
from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import host
from op_table import ROWS, Row

import invocupy
from invocupy import Tensor, backends, functional, nn, ops, optim, reference
from invocupy import functional as F  # noqa: N812
from invocupy.autograd import apply
from invocupy.ops.block import involution_block
from invocupy.ops.normalization import running_moments

HALF = np.float16
COUNT = 4096  # float16 has no number between 2048 and 2050: adding ones stops there
MANY = 200_000

rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name} {row.variant}".strip())


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


# ---------------------------------------------------------------------------- long sums of rows


def test_sums_over_many_rows_are_as_exact_as_those_of_a_convolution() -> None:
    """The error of sums of at most 1024 terms, not of one sum of 200,000."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (MANY, 3)).astype("f4")
    grad = rng.uniform(0, 1, (MANY, 2)).astype("f4")
    weight, bias = leaf(np.ones((2, 3), "f4")), leaf(np.zeros(2, "f4"))
    F.linear(x, weight, bias).backward(grad)
    stretched = leaf(np.zeros(2, "f4"))
    (Tensor(grad * 0) + stretched).backward(grad)
    image = np.ascontiguousarray(x.reshape(1, 100, -1, 3).transpose(0, 3, 1, 2))
    share = np.ascontiguousarray(grad.reshape(1, 100, -1, 2).transpose(0, 3, 1, 2))
    taps, offset = leaf(np.ones((2, 3, 1, 1), "f4")), leaf(np.zeros(2, "f4"))
    F.conv2d(image, taps, offset).backward(share)
    exact, exact_bias = grad.astype(float).T @ x.astype(float), grad.sum(axis=0, dtype=float)
    # sums of 1024 positive terms, then of 196 sums
    bound = (1024 + MANY / 1024) * np.finfo("f4").eps / 2
    for value, wanted in (
        (weight.grad, exact),
        (taps.grad[:, :, 0, 0], exact),
        (bias.grad, exact_bias),
        (offset.grad, exact_bias),
        (stretched.grad, exact_bias),
        (F.sum(grad, axis=0), exact_bias),
        (F.sum(grad[:, None], axis=(0, 1)), exact_bias),
        (F.sum(grad.reshape(1, MANY, 2), axis=-2)[0], exact_bias),
        (F.mean(grad, axis=0) * MANY, exact_bias),
    ):
        assert value.dtype == np.float32
        error = abs(value - wanted).max() / wanted.max()
        assert error < bound / 10  # roundings are of both signs


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (1,), (2, 0), (0, 1, 2), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_long_sums_have_the_shape_of_short_ones(axis: Any, keepdims: bool) -> None:
    x = np.random.default_rng(0).integers(0, 9, (3, 2500, 4)).astype("f8")
    for array in (x, x.transpose(1, 0, 2), np.asfortranarray(x), x[:, ::-2]):
        for ours, theirs in ((F.sum, np.sum), (F.mean, np.mean)):
            value = ours(array, axis=axis, keepdims=keepdims)
            np.testing.assert_allclose(
                value, theirs(array, axis=axis, keepdims=keepdims), rtol=1e-13, strict=True
            )
    with pytest.raises(np.exceptions.AxisError, match="axis 3 is out of bounds"):
        F.sum(x, axis=3)


# ---------------------------------------------------------------------------- 0 times infinity


FAR = {"float16": 6e4, "float32": 3e38, "float64": 1.7e308}


@pytest.mark.parametrize("dtype", FAR)
@pytest.mark.parametrize("low", ["masked", "far"])
def test_a_class_of_probability_zero_is_left_out(dtype: str, low: str, xp: ModuleType) -> None:
    least = -np.inf if low == "masked" else -FAR[dtype]
    best = FAR[dtype] if low == "far" else 2.0
    logits = leaf(xp.asarray([[best, least, best], [0.0, best, least]], dtype))
    labels = xp.asarray([0, 1])
    loss = F.cross_entropy(logits, labels)
    first, second = np.log(2), np.log1p(np.exp(-best))
    rtol = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(host(loss).astype(float), (first + second) / 2, rtol=rtol)
    loss.backward()
    p = 1 - 1 / (1 + np.exp(-best))
    expected = np.array([[-0.25, 0, 0.25], [p / 2, -p / 2, 0]])
    np.testing.assert_allclose(host(logits.grad).astype(float), expected, rtol=rtol, atol=rtol)
    for function in (F.softmax, F.log_softmax):
        x = leaf(logits.data)
        value = function(x)
        p = host(value) if function is F.softmax else np.exp(host(value))
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=rtol)
        assert p[0, 1] == p[1, 2] == 0
        value[:, 0].sum().backward()
        assert np.isfinite(host(x.grad)).all()


def test_smoothing_gives_each_class_a_share(xp: ModuleType) -> None:
    logits, labels = xp.asarray([[1.0, -np.inf], [0.0, 1.0]]), xp.asarray([0, 1])
    assert np.isinf(host(F.cross_entropy(logits, labels, label_smoothing=0.1)))  # the sum's value
    finite = xp.asarray([[1.0, 0.0], [0.0, 1.0]])
    whole = F.cross_entropy(finite, labels, label_smoothing=1.0)  # nothing is left of the label
    np.testing.assert_allclose(host(whole), np.log1p(np.exp(1)) - 0.5)
    assert np.isfinite(host(F.cross_entropy(finite, labels, label_smoothing=1)))
    # of a label without probability the loss is infinite, and the gradient finite
    x = leaf(logits)
    loss = F.cross_entropy(x, xp.asarray([1, 1]))
    loss.backward()
    assert np.isposinf(host(loss))
    np.testing.assert_allclose(host(x.grad)[0], [0.5, -0.5])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_without_any_class_there_is_no_distribution() -> None:
    x = np.array([[-np.inf, -np.inf], [0.0, 0.0]])
    for function in (F.softmax, F.log_softmax):
        value = function(x)
        assert np.isnan(value[0]).all()
        assert np.isfinite(value[1]).all()
        with pytest.raises(ValueError, match=r"a value along axis -1, got .*\(2, 0\)"):
            function(np.zeros((2, 0)))
    assert F.softmax(np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_gradient_of_zero_leaves_infinite_slopes_out(dtype: str, xp: ModuleType) -> None:
    largest = float(np.finfo(dtype).max)
    cases: list[tuple[Any, Any, float]] = [
        (F.sqrt, [0.0, 4.0], 0.25),
        (F.log, [0.0, 4.0], 0.25),
        (lambda x: x**0.5, [0.0, 4.0], 0.25),
        (lambda x: x**-1.0, [0.0, 2.0], -0.25),
        (lambda x: x ** xp.asarray([0.5, 0.5], dtype), [0.0, 4.0], 0.25),
        (lambda x: xp.asarray([0.0, 1.0], dtype) ** x, [-1.0, 2.0], 0.0),
        (lambda x: 1.0 / x, [0.0, 2.0], -0.25),
        (lambda x: x / xp.asarray([0.0, 2.0], dtype), [1.0, 2.0], 0.5),
        (F.exp, [largest, 0.0], 1.0),
    ]
    for function, values, slope in cases:
        x = leaf(xp.asarray(values, dtype))
        with np.errstate(all="ignore"):
            y = function(x)
        y.backward(xp.asarray([0.0, 1.0], dtype))  # without a warning
        np.testing.assert_allclose(host(x.grad).astype(float), [0, slope])


def test_what_does_not_win_gets_no_part_of_an_infinite_gradient(xp: ModuleType) -> None:
    seed = xp.asarray([np.inf, 1.0])
    for function in (F.relu, lambda x: F.maximum(x, 0.0), lambda x: F.maximum(0.0, x)):
        x = leaf(xp.asarray([-1.0, 2.0]))
        function(x).backward(seed)
        assert host(x.grad).tolist() == [0, 1]
    x = leaf(xp.asarray([[1.0, 3.0], [2.0, 0.0]]))
    F.max(x, axis=0).backward(seed)
    assert host(x.grad).tolist() == [[0, 1], [np.inf, 0]]


# ---------------------------------------------------------------------------- gradients by content


def _leaves(row: Row, dtype: str) -> tuple[list[Any], list[Tensor]]:
    drawn = row.draw(0, np, dtype)
    operands = [leaf(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in drawn]
    return operands, [a for a in operands if isinstance(a, Tensor)]


def _gradients(y: Any, seed: Any, leaves: list[Tensor]) -> list[Any]:
    for tensor in leaves:
        tensor.grad = None
    y.backward(seed)
    return [tensor.grad for tensor in leaves]


@rows
def test_a_gradient_buffer_may_be_filled_again(row: Row) -> None:
    operands, leaves = _leaves(row, "float64")
    y, rng = row.run(*operands), np.random.default_rng(0)
    buffer = np.empty(y.shape)
    _, partials = row.run_op(*row.draw(0, np, "float64"))
    wanted = [p for p, a in zip(partials, operands, strict=True) if isinstance(a, Tensor)]
    for _ in range(3):
        fresh = rng.standard_normal(y.shape)
        buffer[...] = fresh
        again = _gradients(y, buffer, leaves)
        once = _gradients(y, fresh, leaves)
        direct = [partial(buffer) for partial in wanted]
        for first, second, third in zip(again, once, direct, strict=True):
            np.testing.assert_array_equal(first, second)
            np.testing.assert_array_equal(third, second)


def test_a_block_takes_a_gradient_buffer_again() -> None:
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 4, 5), (8, 3, 1, 1), *[(8,)] * 3, (2, 8, 1, 1), *[(2,)] * 3]
    shapes += [(18, 2, 1, 1), (18,), (3, 8, 1, 1), *[(3,)] * 3]
    leaves = [leaf(rng.standard_normal(shape)) for shape in shapes]
    y = apply(involution_block, *leaves, kernel_size=3)
    buffer = np.ones(y.shape)
    _gradients(y, buffer, leaves)
    buffer[...] = rng.standard_normal(y.shape)
    again = _gradients(y, buffer, leaves)
    for first, second in zip(again, _gradients(y, buffer.copy(), leaves), strict=True):
        np.testing.assert_array_equal(first, second)


ONCE = {
    "conv2d": {"grad_x": 1, "grad_weight": 1},
    "conv2d 1x1": {"grad_x": 1, "grad_weight": 1},
    "batch_norm": {"grad_sums": 1, "coefficients": 1, "grad_x": 1},
    "batch_norm residual and relu": {"grad_sums": 1, "coefficients": 1, "grad_x": 1},
    "fused_involution": {"fused_grad_x": 1, "fused_grad_span": 1},
    "involution": {"grad_x": 1, "grad_kernel": 1},
    # the scores' gradient, and from it those of query, key; value
    "local_self_attention": {"grad_kernel": 1, "forward": 1, "grad_x": 2},
}


@pytest.mark.parametrize("name", ONCE)
def test_the_tape_does_common_work_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = (row for row in ROWS if f"{row.name} {row.variant}".strip() == name)
    calls: Counter[str] = Counter()
    of = backends.of

    class Counting:
        def __init__(self, backend: Any) -> None:
            self.backend = backend

        def __getattr__(self, function: str) -> Any:
            def call(*arguments: Any) -> Any:
                calls[function] += 1
                return getattr(self.backend, function)(*arguments)

            return call

    monkeypatch.setattr(backends, "of", lambda op, x: Counting(of(op, x)))
    operands, leaves = _leaves(row, "float64")
    y = row.run(*operands)
    for _ in range(2):
        calls.clear()
        y.backward(np.ones(y.shape))
        assert calls == ONCE[name]
    assert len(leaves) > 1


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


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 3]), r"labels must be in \[0, 3\), got 0 to 3"),
        (np.array([-1, 0]), r"labels must be in \[0, 3\), got -1 to 0"),
        (np.array([0.0, 1.0]), "integers.*float64"),
        (np.array([True, False]), "integers.*bool"),
        (np.eye(3, dtype=int)[:2], r"argmax\(axis=1\)"),
    ],
)
def test_wrong_labels_are_named(labels: Any, message: str) -> None:
    for given in (labels, Tensor(labels)):
        with pytest.raises(ValueError, match=message):
            F.cross_entropy(np.zeros((2, 3)), given)


def test_one_value_has_no_variance() -> None:
    ones = np.ones(3)
    for count in (0, 1):
        with pytest.raises(ValueError, match=rf"variance of {count} value.*call eval\(\)"):
            running_moments(ones, ones, ones, ones, 0.1, count)


@pytest.mark.parametrize("module", [invocupy, functional, reference])
def test_out_does_not_overlap_itself(module: Any) -> None:
    x, kernel = np.ones((2, 2, 4, 4)), np.ones((2, 1, 3, 3, 4, 4))
    base = np.zeros(64)
    item = base.itemsize
    for strides in ((0, 128, 32, 8), (256, 128, 32, 0), (256, 128, 8, 8), (64, 128, 32, 8)):
        out = np.lib.stride_tricks.as_strided(base, x.shape, strides)
        with pytest.raises(ValueError, match=r"out overlaps itself .*memory of their own"):
            module.involution(x, kernel, out=out)
        features, weight = np.ones((2, 1, 4, 4)), np.ones((9, 1))
        with pytest.raises(ValueError, match="out overlaps itself"):
            module.fused_involution(x, features, weight, kernel_size=3, out=out)
    assert (base == 0).all()
    expected = module.involution(x, kernel)
    whole = np.zeros((4, 4, 4, 4))
    for out in (
        np.zeros_like(x).transpose(0, 1, 3, 2),
        whole[::2, ::2],
        whole[:2, :2, ::-1, ::-1],
        np.zeros((2, 4, 4, 2)).transpose(0, 3, 1, 2),
    ):
        assert out.itemsize == item
        assert module.involution(x, kernel, out=out) is out
        np.testing.assert_allclose(out, expected)
    single = np.broadcast_to(np.zeros((1, 2, 4, 4)), (1, 2, 4, 4)).copy()
    module.involution(x[:1], kernel[:1], out=single)


def test_no_warning_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.cross_entropy(np.array([[1.0, -np.inf]]), np.array([0]))
    assert ops.softmax(np.array([0.0, -np.inf]))[0].tolist() == [1, 0]
