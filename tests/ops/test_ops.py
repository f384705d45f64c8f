"""Every operator: its contract, its gradients, the tape around it, and its definition."""

from __future__ import annotations

import inspect
import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import host
from hypothesis import given
from hypothesis import strategies as st
from op_table import ROWS, Row

import invocupy
from invocupy import Tensor, backends, functional, ops, testing
from invocupy import functional as F  # noqa: N812
from invocupy.backends.cuda import convolution as blocked
from invocupy.backends.reference import convolution as reference
from invocupy.testing import check_partials, gradcheck, lay_out

SEEDS = st.integers(0, 2**32 - 1)
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name} {row.variant}".strip())


def assert_close(actual: Any, expected: Any, terms: int, summand: float = 0.0) -> None:
    """Equal up to ``terms`` roundings of values as large as the largest one, or a ``summand``."""
    actual, expected = host(actual), host(expected)
    unit = np.finfo(actual.dtype).eps / 2
    largest = np.abs(expected).max(initial=summand)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=terms * unit * largest)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype("float64")


# ---------------------------------------------------------------------------- the table


def test_every_function_and_op_has_a_row() -> None:
    def public(module: ModuleType) -> set[str]:
        return {
            name
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if not name.startswith("_") and function.__module__.startswith(module.__name__)
        }

    no_partials = {"batch_moments", "involution_backward", "fused_involution_backward"}
    named = {row.name for row in ROWS}
    assert (public(functional) | public(ops)) - no_partials == named


@rows
@pytest.mark.parametrize(
    ("dtype", "layout"), [("float64", "C"), ("float32", "sliced"), ("float64", "Fortran")]
)
def test_partials(row: Row, dtype: str, layout: str, xp: ModuleType) -> None:
    for seed in range(2):
        arguments = [
            lay_out(a, layout) if getattr(a, "ndim", 0) and a.dtype == dtype else a
            for a in row.draw(seed, xp, dtype)
        ]
        value, _ = row.run_op(*arguments)
        assert type(value) is xp.ndarray
        assert value.dtype == dtype
        check_partials(row.run_op, *arguments, seed=seed)


@rows
def test_partials_have_the_dtype_of_their_argument(row: Row, xp: ModuleType) -> None:
    """Also where one argument is narrower than the rest."""
    arguments = row.draw(4, xp, "float64")
    for i, argument in enumerate(arguments):
        if getattr(argument, "dtype", None) == "float64":
            mixed = [*arguments[:i], argument.astype("float32"), *arguments[i + 1 :]]
            check_partials(row.run_op, *mixed)


COMPILED = ("conv2d", "linear", "pool2d", "batch_norm", "attention", "involution")


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.name.endswith(COMPILED)],
    ids=lambda row: f"{row.name} {row.variant}".strip(),
)
@pytest.mark.parametrize("dtype", ["int64", "uint32", "bool", "complex64", "longdouble", "object"])
def test_no_other_dtype_is_taken_for_floats(row: Row, dtype: str) -> None:
    arrays = row.draw(0, np, "float32")
    for place, name in enumerate(inspect.signature(getattr(ops, row.name)).parameters):
        if place < len(arrays) and arrays[place] is not None:
            wrong = list(arrays)
            wrong[place] = arrays[place].astype(dtype)
            with pytest.raises(TypeError, match=f"{name} has dtype"):
                row.run_op(*wrong)
            wrong[place] = np.ma.masked_array(arrays[place])
            with pytest.raises(TypeError, match=f"{name} is a masked array"):
                row.run_op(*wrong)


@rows
def test_tape(row: Row, xp: ModuleType) -> None:
    gradcheck(row.run, *row.draw(2, xp, "float64"))


@rows
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tensors_in_tensor_out(row: Row, dtype: str, xp: ModuleType) -> None:
    arguments = row.draw(3, xp, dtype)
    value, _ = row.run_op(*arguments)
    plain = row.run(*arguments)
    assert type(plain) is xp.ndarray
    assert plain.tobytes() == value.tobytes()
    tensors = [
        Tensor(a, requires_grad=True) if hasattr(a, "dtype") and a.dtype == dtype else a
        for a in arguments
    ]
    result = row.run(*tensors)
    assert isinstance(result, Tensor)
    assert result.requires_grad
    assert result.data.tobytes() == value.tobytes()
    result.backward(xp.ones_like(value))
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            assert tensor.grad.shape == tensor.shape
            assert tensor.grad.dtype == dtype


@pytest.mark.parametrize(
    ("name", "shapes", "options"),
    [
        ("conv2d", [(0, 2, 5, 5), (4, 2, 3, 3), (4,)], {"padding": 1}),
        ("max_pool2d", [(0, 2, 5, 5)], {"kernel_size": 2}),
        ("avg_pool2d", [(0, 2, 5, 5)], {"kernel_size": 2}),
        ("linear", [(0, 2), (3, 2), (3,)], {}),
        ("softmax", [(0, 3)], {}),
        ("log_softmax", [(0, 3)], {}),
        ("relu", [(0, 3)], {}),
        ("sum", [(0, 3)], {}),
        ("mean", [(0, 3)], {"axis": 1}),
        ("matmul", [(0, 3), (3, 2)], {}),
    ],
)
def test_empty_batch(name: str, shapes: Any, options: Any, xp: ModuleType) -> None:
    arrays = [xp.ones(shape) for shape in shapes]
    value, partials = getattr(ops, name)(*arrays, **options)
    for array, partial in zip(arrays, partials, strict=False):
        grad = partial(xp.ones_like(value))
        assert grad.shape == array.shape
        assert not grad.any()


# ---------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@given(seed=SEEDS)
def test_batch_norm_is_its_formula(
    xp: ModuleType, with_residual: bool, relu: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(3, 2, 3, 4), (2,), (2,), (3, 2, 3, 4)]
    arrays = [xp.asarray(rng.standard_normal(shape)) for shape in shapes]
    cotangent = xp.asarray(rng.standard_normal(shapes[0]))

    def fused(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        residual = residual if with_residual else None
        return F.batch_norm(
            x, weight=weight, bias=bias, training=True, eps=1e-3, residual=residual, relu=relu
        )

    def composed(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        weight, bias = weight.reshape(2, 1, 1), bias.reshape(2, 1, 1)
        centred = x - x.mean(axis=(0, 2, 3), keepdims=True)
        var = (centred * centred).mean(axis=(0, 2, 3), keepdims=True)
        y = weight * centred / (var + 1e-3).sqrt() + bias
        y = y + residual if with_residual else y
        return y.relu() if relu else y

    results = []
    for function in (fused, composed):
        tensors = [Tensor(array, requires_grad=True) for array in arrays]
        value = function(*tensors)
        value.backward(cotangent)
        results.append([value, *(t.grad for t in tensors if t.grad is not None)])
    # A chain of two sums over 36 values, and some dozens of operations around them. The sums may
    # cancel: what is rounded is as large as a value of the cotangent.
    summand = float(np.abs(host(cotangent)).max())
    for one, other in zip(*results, strict=True):
        assert_close(one, other, terms=200, summand=summand)


def test_batch_norm_without_weight_and_bias_and_given_moments() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 2, 2))
    plain = F.batch_norm(x, training=True)
    assert (plain == F.batch_norm(x, weight=np.ones(3), bias=np.zeros(3), training=True)).all()
    assert (plain == F.batch_norm(x, training=True, moments=F.batch_moments(x))).all()
    assert (plain == F.batch_norm(x, *F.batch_moments(x))).all()


@given(seed=SEEDS, level=st.sampled_from([0.0, 1e3, 1e6]))
def test_batch_moments_do_not_cancel(seed: int, level: float, xp: ModuleType) -> None:
    x = (np.random.default_rng(seed).standard_normal((2, 3, 4, 5)) + level).astype("float32")
    mean, var = map(host, F.batch_moments(xp.asarray(x)))
    wide = x.astype("float64")
    n, unit = 40, 2.0**-24
    off = (n + 1) * unit * np.abs(wide).mean(axis=(0, 2, 3))
    assert (abs(mean - wide.mean(axis=(0, 2, 3))) <= off).all()
    # mean (x - m - off)^2 = var + off^2, whatever the level; and n + 3 roundings of the terms
    exact = wide.var(axis=(0, 2, 3))
    assert (abs(var - exact) <= off**2 + (n + 4) * unit * (exact + off**2)).all()


def test_batch_norm_refuses_missing_statistics() -> None:
    with pytest.raises(ValueError, match="running_mean and running_var are needed"):
        F.batch_norm(np.ones((1, 1, 2, 2)))
    with pytest.raises(ValueError, match=r"x must be \(N, C, H, W\)"):
        F.batch_norm(np.ones((2, 2)), training=True)
    with pytest.raises(ValueError, match="at least one value a channel"):
        F.batch_norm(np.ones((0, 2, 2, 2)), training=True)


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias", "residual"])
def test_batch_norm_refuses_arrays_that_would_be_read_past_their_end(name: str) -> None:
    x = np.ones((2, 3, 4, 4))
    given: dict[str, Any] = dict.fromkeys(
        ("running_mean", "running_var", "weight", "bias"), np.ones(3)
    )
    assert F.batch_norm(x, **given, residual=x).shape == x.shape
    for wrong in (np.ones(1), np.ones((1, 1, 1, 1)), np.ones((2, 3, 1, 1))):
        with pytest.raises(ValueError, match=name.removeprefix("running_") + " must have .*shape"):
            F.batch_norm(x, **{**given, name: wrong})
    with pytest.raises(ValueError, match=r"x must have 4 dimensions .*\(3, 4, 4\)"):
        F.batch_norm(x[0], **given)


# ---------------------------------------------------------------------------- softmax, loss


@given(seed=SEEDS, smoothing=st.sampled_from([0.0, 0.1, 1.0]))
def test_cross_entropy_is_its_formula(seed: int, smoothing: float, xp: ModuleType) -> None:
    rng = np.random.default_rng(seed)
    data, labels = rng.standard_normal((6, 5)) * 3, rng.integers(0, 5, 6)
    target = xp.asarray((1 - smoothing) * np.eye(5)[labels] + smoothing / 5)

    def composed(logits: Any) -> Any:
        log_p = logits - logits.exp().sum(axis=1, keepdims=True).log()
        return -(log_p * target).sum() / 6

    fused, plain = (Tensor(xp.asarray(data), requires_grad=True) for _ in range(2))
    loss = F.cross_entropy(fused, xp.asarray(labels), label_smoothing=smoothing)
    expected = composed(plain)
    loss.backward()
    expected.backward()
    assert loss.shape == ()
    assert_close(loss, expected, terms=60)
    assert_close(fused.grad, plain.grad, terms=60)


@given(seed=SEEDS)
def test_softmax_is_its_formula(seed: int, xp: ModuleType) -> None:
    x = xp.asarray(np.random.default_rng(seed).standard_normal((3, 7)))
    powers = xp.exp(x)
    expected = powers / powers.sum(axis=1, keepdims=True)
    assert_close(F.softmax(x), expected, terms=30)
    assert_close(F.log_softmax(x), xp.log(expected), terms=60)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_neither_overflows_nor_underflows(dtype: str, xp: ModuleType) -> None:
    x = xp.asarray([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]], dtype)
    assert host(F.softmax(x)).tolist() == [[0.5, 0.5, 0.0], [1 / np.array(3, dtype)] * 3]
    assert_close(
        F.log_softmax(x)[0], np.array([-np.log(2)] * 2 + [-2e4 - np.log(2)], dtype), terms=2
    )
    assert host(F.cross_entropy(x, xp.asarray([2, 0]))) > 1e4


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        (np.ones((2, 3)), np.array([0, 3]), {}, r"labels must be in \[0, 3\), got 0 to 3"),
        (np.ones((2, 3)), np.array([-1, 0]), {}, r"labels must be in \[0, 3\), got -1 to 0"),
        (np.ones((2, 3)), np.array([0.0, 1.0]), {}, r"labels \(N,\) integers.*float64"),
        (np.ones((2, 3)), np.array([0, 1, 2]), {}, r"got \(2, 3\) and \(3,\)"),
        (np.ones(3), np.array([0]), {}, r"logits must be \(N, K\)"),
        (np.ones((1, 3)), np.array([0]), {"label_smoothing": 1.5}, r"must be in \[0, 1\], got 1.5"),
    ],
)
def test_cross_entropy_refuses(logits: Any, labels: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.cross_entropy(logits, labels, **options)


def test_cross_entropy_takes_labels_as_an_array() -> None:
    for labels in ([0, 1], None):
        with pytest.raises(TypeError, match="labels must be a NumPy"):
            F.cross_entropy(np.ones((2, 3)), labels)


# ---------------------------------------------------------------------------- convolution


def naive_conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> np.ndarray:
    """The formula, output by output."""
    (n, _, h, w), (o, c_group, kernel_h, kernel_w) = x.shape, weight.shape
    out_h = (h + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (w + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    out = np.zeros((n, o, out_h, out_w)) + bias[:, None, None]
    for b, q, i, j in np.ndindex(out.shape):
        first = q // (o // groups) * c_group
        for u, v in itertools.product(range(kernel_h), range(kernel_w)):
            row = i * stride[0] + u * dilation[0] - padding[0]
            column = j * stride[1] + v * dilation[1] - padding[1]
            if 0 <= row < h and 0 <= column < w:
                seen = x[b, first : first + c_group, row, column]
                out[b, q, i, j] += weight[q, :, u, v] @ seen
    return out


@given(
    g=testing.geometries(max_batch=2, max_size=5, max_kernel=3, empty=False),
    per_group=st.integers(1, 3),
    seed=SEEDS,
)
def test_conv2d_is_its_formula(
    g: invocupy.Geometry, per_group: int, seed: int, xp: ModuleType
) -> None:
    rng = np.random.default_rng(seed)
    x = integers(rng, *g.x_shape)
    o = g.groups * per_group
    weight = integers(rng, o, g.channels_per_group, g.kernel_h, g.kernel_w)
    bias = integers(rng, o)
    on_xp = [xp.asarray(a.astype("float32")) for a in (x, weight, bias)]
    value, partials = ops.conv2d(*on_xp, **testing.options(g), groups=g.groups)
    expected = naive_conv2d(x, weight, bias, groups=g.groups, **testing.options(g))
    assert host(value).tolist() == expected.tolist()

    # <grad, linear part> = <grad_x, x> = <grad_weight, weight>, exactly.
    grad = integers(rng, *expected.shape)
    grads = [host(partial(xp.asarray(grad.astype("float32")))) for partial in partials]
    linear = (grad * (expected - bias[:, None, None])).sum()
    assert (grads[0] * x).sum() == linear
    assert (grads[1] * weight).sum() == linear
    assert (grads[2] == grad.sum(axis=(0, 2, 3))).all()


@pytest.mark.parametrize(
    ("x", "weight", "options", "message"),
    [
        ((1, 2, 4), (2, 2, 3, 3), {}, r"x must be \(N, C, H, W\)"),
        ((1, 2, 4, 4), (2, 3, 3, 3), {}, r"weight \(2, 3, 3, 3\) does not fit x"),
        ((1, 4, 4, 4), (3, 2, 3, 3), {"groups": 2}, "O a multiple of groups"),
        ((1, 2, 2, 2), (2, 2, 3, 3), {}, "too small for kernel size"),
        ((1, 2, 4, 4), (2, 2, 2, 2), {"padding": "same"}, "even kernel has no centre"),
        ((1, 2, 4, 4), (2, 2, 3, 3), {"stride": 0}, "stride must be an integer >= 1"),
        ((1, 2, 4, 4), (2, 2, 0, 3), {}, "weight must have at least one tap"),
    ],
)
def test_conv2d_refuses(x: Any, weight: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.conv2d(np.ones(x), np.ones(weight), **options)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5,), (4, 1)])
def test_a_bias_that_would_be_read_past_its_end_is_refused(shape: tuple[int, ...]) -> None:
    x, bias = np.ones((2, 4, 5, 5)), np.ones(shape)
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
        F.linear(x[0, :, 0], np.ones((4, 5)), bias)
    for size, groups in [(1, 1), (3, 1), (3, 4)]:
        with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
            F.conv2d(x, np.ones((4, 4 // groups, size, size)), bias, groups=groups)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name == "conv2d"], ids=lambda r: r.variant
)
def test_conv2d_does_not_depend_on_its_blocks(
    row: Row, monkeypatch: pytest.MonkeyPatch, xp: ModuleType
) -> None:
    """The plain form, and blocks: a row of one image, one whole image, everything: to roundings."""
    arguments = row.draw(0, xp, "float64")
    of, results = backends.of, []
    for form, size in (reference, 0), (blocked, 1), (blocked, 4000), (blocked, 1 << 30):
        monkeypatch.setattr(
            backends, "of", lambda op, x, form=form: form if op == "convolution" else of(op, x)
        )
        for name in "_BLOCK", "_BLOCK_ON_GPU":
            monkeypatch.setattr(blocked, name, size)
        value, partials = row.run_op(*arguments)
        grad = xp.asarray(np.random.default_rng(1).standard_normal(value.shape))
        wanted = [p for p, a in zip(partials, arguments, strict=True) if a is not None]
        results.append([value, *(partial(grad) for partial in wanted)])
    for some in results[1:]:
        for one, other in zip(results[0], some, strict=True):
            assert_close(one, other, 100)  # sums of less than 100 terms


@given(g=testing.geometries(empty=False), seed=SEEDS)
def test_involution_with_a_constant_kernel_is_a_depthwise_convolution(
    g: invocupy.Geometry, seed: int, xp: ModuleType
) -> None:
    rng = np.random.default_rng(seed)
    x = xp.asarray(integers(rng, *g.x_shape).astype("float32"))
    weight = integers(rng, g.groups, g.kernel_h, g.kernel_w).astype("float32")
    kernel = np.broadcast_to(weight[None, ..., None, None], g.kernel_shape)
    value = invocupy.involution(x, xp.asarray(kernel), **testing.options(g))
    depthwise = np.repeat(weight, g.channels_per_group, axis=0)[:, None]
    expected = F.conv2d(x, xp.asarray(depthwise), **testing.options(g), groups=g.channels)
    assert host(value).tolist() == host(expected).tolist()


# ---------------------------------------------------------------------------- pooling


def windows(
    size: tuple[int, int], kernel: Any, stride: Any, padding: Any, ceil_mode: bool
) -> list[list[range]]:
    """The rows, and the columns, that each window covers, clipped to the padded image."""
    result = []
    for n, k, s, p in zip(size, kernel, stride, padding, strict=True):
        starts = [-p]
        while starts[-1] + s + k <= n + p or (ceil_mode and starts[-1] + k < n + p):
            if starts[-1] + s >= n + p or (ceil_mode and starts[-1] + s >= n):
                break  # a partial window must begin inside the image
            starts.append(starts[-1] + s)
        result.append([range(start, min(start + k, n + p)) for start in starts])
    return result


pools = st.tuples(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    st.tuples(st.integers(3, 8), st.integers(3, 8)),
    SEEDS,
)


@given(pool=pools, ceil_mode=st.booleans(), include=st.booleans())
def test_avg_pool2d_is_its_formula(
    pool: Any, ceil_mode: bool, include: bool, xp: ModuleType
) -> None:
    kernel, stride, padding, (h, w), seed = pool
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    x = integers(np.random.default_rng(seed), 2, 1, h, w)
    value = F.avg_pool2d(
        xp.asarray(x), kernel, stride, padding, ceil_mode=ceil_mode, count_include_pad=include
    )
    rows, columns = windows((h, w), kernel, stride, padding, ceil_mode)
    assert value.shape == (2, 1, len(rows), len(columns))
    for i, j in itertools.product(range(len(rows)), range(len(columns))):
        inside = [(r, c) for r in rows[i] for c in columns[j] if 0 <= r < h and 0 <= c < w]
        count = len(rows[i]) * len(columns[j]) if include else len(inside)
        expected = sum(x[:, 0, r, c] for r, c in inside) / count
        assert_close(value[:, 0, i, j], expected, terms=4)


@given(pool=pools)
def test_max_pool2d_is_its_formula(pool: Any, xp: ModuleType) -> None:
    kernel, stride, padding, (h, w), seed = pool
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    x = integers(np.random.default_rng(seed), 2, 1, h, w)  # with many ties
    value, (partial,) = ops.max_pool2d(xp.asarray(x), kernel, stride, padding)
    rows, columns = windows((h, w), kernel, stride, padding, ceil_mode=False)
    assert value.shape == (2, 1, len(rows), len(columns))
    grad = integers(np.random.default_rng(seed + 1), *value.shape)
    expected = np.zeros_like(x)
    for n, i, j in np.ndindex(2, len(rows), len(columns)):
        inside = [(r, c) for r in rows[i] for c in columns[j] if 0 <= r < h and 0 <= c < w]
        first = max(inside, key=lambda place: x[n, 0, *place])
        assert value[n, 0, i, j] == x[n, 0, *first]
        expected[n, 0, *first] += grad[n, 0, i, j]
    assert host(partial(xp.asarray(grad))).tolist() == expected.tolist()


def test_max_pool2d_keeps_nan_and_infinities(xp: ModuleType) -> None:
    x = np.zeros((1, 1, 4, 4))
    x[0, 0, 1, 0], x[0, 0, 0, 3], x[0, 0, 2:, :2], x[0, 0, 2, 3] = np.nan, np.inf, -np.inf, np.nan
    value, (partial,) = ops.max_pool2d(xp.asarray(x), 2)
    np.testing.assert_equal(host(value)[0, 0], [[np.nan, np.inf], [-np.inf, np.nan]])
    grad = host(partial(xp.asarray(np.arange(1.0, 5.0).reshape(1, 1, 2, 2))))
    assert {tuple(place): grad[0, 0, *place] for place in np.argwhere(grad[0, 0])} == {
        (1, 0): 1.0,
        (0, 3): 2.0,
        (2, 0): 3.0,
        (2, 3): 4.0,
    }


def test_max_pool2d_padding_never_wins(xp: ModuleType) -> None:
    x = xp.full((1, 1, 2, 2), -np.inf)
    value, (partial,) = ops.max_pool2d(x, 2, 2, 1)
    assert (value == -np.inf).all()
    assert host(partial(xp.ones_like(value))).tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]


def test_power_has_a_gradient_at_zero(xp: ModuleType) -> None:
    for exponent, slope in ((0, 0.0), (1, 1.0), (2, 0.0)):
        x = Tensor(xp.zeros(2), requires_grad=True)
        (x**exponent).sum().backward()
        assert host(x.grad).tolist() == [slope, slope]


def test_relu_and_maximum_keep_nan(xp: ModuleType) -> None:
    x = xp.asarray([np.nan, -1.0, np.inf])
    np.testing.assert_equal(host(F.relu(x)), [np.nan, 0.0, np.inf])
    np.testing.assert_equal(host(F.maximum(x, 0.0)), [np.nan, 0.0, np.inf])


def test_ties_share_the_gradient(xp: ModuleType) -> None:
    x = Tensor(xp.asarray([1.0, 3.0, 3.0]), requires_grad=True)
    x.max().backward()
    assert host(x.grad).tolist() == [0.0, 0.5, 0.5]
    a, b = (Tensor(xp.asarray([1.0, 2.0]), requires_grad=True) for _ in range(2))
    F.maximum(a, b * xp.asarray([1.0, 2.0])).sum().backward()
    assert host(a.grad).tolist() == [0.5, 0.0]
    assert host(b.grad).tolist() == [0.5, 2.0]


@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
def test_pools_refuse(pool: Any) -> None:
    with pytest.raises(ValueError, match="x must have 4 dimensions"):
        pool(np.ones((2, 4, 4)), 2)
    with pytest.raises(ValueError, match="padding must be at most half of kernel_size"):
        pool(np.ones((1, 1, 4, 4)), 2, padding=2)
    with pytest.raises(ValueError, match=r"x of 1x4 is too small for kernel size 2x2.*: give"):
        pool(np.ones((1, 1, 1, 4)), 2)
    with pytest.raises(ValueError, match="kernel_size must be an integer >= 1"):
        pool(np.ones((1, 1, 4, 4)), 0)
