"""Involution and its fused form as their users call them, on every library and backend."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import host
from hypothesis import given
from hypothesis import strategies as st

import invocupy
from invocupy import Geometry, Tensor, functional, reference
from invocupy.arrays import contiguous
from invocupy.testing import LAYOUTS, NUMPY_LAYOUTS, arrays, geometries, options, tolerance

SEEDS = st.integers(0, 2**32 - 1)
FEATURES = 3
# All kinds of sizes, and rows of several vector registers and tiles.
GEOMETRIES = geometries() | geometries(max_batch=2, max_size=3, max_width=300, max_kernel=4)


@dataclass(frozen=True)
class Form:
    """One of the two operators: its functions, the shapes of its arguments, its counts of terms."""

    name: str
    shapes: Callable[[Geometry], list[tuple[int, ...]]]
    terms: Callable[[Geometry], int]
    grad_terms: Callable[[Geometry], list[int]]

    def options(self, g: Geometry) -> dict[str, Any]:
        extra = {"kernel_size": (g.kernel_h, g.kernel_w)} if self.name.startswith("fused") else {}
        return {**options(g), **extra}

    def forward(self, *operands: Any, module: Any = invocupy, **chosen: Any) -> Any:
        return getattr(module, self.name)(*operands, **chosen)

    def backward(self, *operands: Any, module: Any = invocupy, **chosen: Any) -> list[Any]:
        """The gradients; that of a bias that is not there is left out."""
        grads = getattr(module, f"{self.name}_backward")(*operands, **chosen)
        return [grad for grad in grads if grad is not None]

    def draw(self, g: Geometry, seed: int, dtype: str, xp: Any) -> list[Any]:
        """Integers in [-3, 3] for the arguments, and for the gradient of the result."""
        rng = np.random.default_rng(seed)
        shapes = [*self.shapes(g), g.out_shape]
        return [xp.asarray(rng.integers(-3, 4, shape).astype(dtype)) for shape in shapes]


def taps(g: Geometry) -> int:
    return g.kernel_h * g.kernel_w


def span_shapes(g: Geometry) -> list[tuple[int, ...]]:
    rows = g.groups * taps(g)
    return [g.x_shape, (g.batch, FEATURES, g.out_h, g.out_w), (rows, FEATURES)]


def span_terms(g: Geometry) -> int:
    return FEATURES + 1 + taps(g)


def span_grad_terms(g: Geometry) -> list[int]:
    pixels = g.batch * g.out_h * g.out_w
    per_kernel = g.channels_per_group
    return [span_terms(g), per_kernel + g.groups * taps(g), *[per_kernel + pixels] * 2]


PLAIN = Form(
    "involution",
    lambda g: [g.x_shape, g.kernel_shape],
    taps,
    lambda g: [taps(g), g.channels_per_group],
)
FUSED = Form("fused_involution", span_shapes, span_terms, span_grad_terms)
BIASED = Form(
    "fused_involution",
    lambda g: [*span_shapes(g), (g.groups * taps(g),)],
    span_terms,
    span_grad_terms,
)
forms = pytest.mark.parametrize("form", [PLAIN, FUSED, BIASED], ids=["plain", "fused", "biased"])


def whole(array: Any) -> Any:
    """The integers that a floating array holds."""
    numbers = host(array).astype(np.int64)
    assert (numbers == host(array)).all()
    return numbers


def memory(array: Any) -> bytes:
    """All bytes of the memory that an array looks at."""
    return host(array if array.base is None else array.base).tobytes()


# ---------------------------------------------------------------------------- exact


@forms
@given(g=GEOMETRIES, seed=SEEDS)
def test_integers_are_exact(form: Form, g: Geometry, seed: int, xp: ModuleType) -> None:
    *operands, grad = form.draw(g, seed, "float32", xp)
    wide = [host(a).astype("float64") for a in (grad, *operands)]
    chosen = form.options(g)

    out = form.forward(*operands, **chosen)
    assert (type(out), out.dtype, out.shape) == (xp.ndarray, "float32", g.out_shape)
    assert (whole(out) == form.forward(*wide[1:], module=reference, **chosen)).all()

    grads = form.backward(grad, *operands, **chosen)
    expected = form.backward(*wide, module=reference, **chosen)
    for actual, right, operand in zip(grads, expected, operands, strict=True):
        assert (type(actual), actual.dtype, actual.shape) == (xp.ndarray, "float32", operand.shape)
        assert (whole(actual) == right).all()


@pytest.mark.parametrize("form", [PLAIN, FUSED], ids=["plain", "fused"])
@given(g=GEOMETRIES, seed=SEEDS)
def test_adjoint_identities_are_exact(form: Form, g: Geometry, seed: int, xp: ModuleType) -> None:
    """``<grad, out> = <grad_x, x> = <grad_kernel, kernel>``: linear in each argument."""
    *operands, grad = form.draw(g, seed, "float32", xp)
    out = form.forward(*operands, **form.options(g))
    product = (whole(grad) * whole(out)).sum()
    grads = form.backward(grad, *operands, **form.options(g))
    for gradient, operand in zip(grads, operands, strict=True):
        assert (whole(gradient) * whole(operand)).sum() == product


@forms
@given(g=GEOMETRIES, seed=SEEDS)
def test_step_one_difference_is_exact(form: Form, g: Geometry, seed: int, xp: ModuleType) -> None:
    """``f(a + d) - f(a - d) = 2 <gradient, d>``: affine in each argument, so any step will do."""
    *operands, grad = form.draw(g, seed, "float32", xp)
    *steps, _ = form.draw(g, seed + 1, "float32", xp)
    grads = form.backward(grad, *operands, **form.options(g))
    for i, step in enumerate(steps):
        ahead, behind = (
            form.forward(*operands[:i], moved, *operands[i + 1 :], **form.options(g))
            for moved in (operands[i] + step, operands[i] - step)
        )
        difference = (whole(grad) * (whole(ahead) - whole(behind))).sum()
        assert difference == 2 * (whole(grads[i]) * whole(step)).sum()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@forms
def test_every_width_around_a_power_of_two(
    form: Form, dtype: str, stride: int, xp: ModuleType
) -> None:
    """Rows that end before, at and after the end of a vector, a tile, a chunk."""
    for width in sorted({2**power + more for power in range(12) for more in (-1, 0, 1)} - {0}):
        columns = (width - 1) // stride + 1
        g = Geometry.of((1, 3, 2, width), (1, 1, 3, 3, 2, columns), (1, stride))
        *operands, grad = form.draw(g, width, dtype, xp)
        chosen = form.options(g)
        results = [form.forward(*operands, **chosen), *form.backward(grad, *operands, **chosen)]
        expected = [
            form.forward(*operands, module=reference, **chosen),
            *form.backward(grad, *operands, module=reference, **chosen),
        ]
        for actual, right in zip(results, expected, strict=True):
            assert (actual == right).all(), width


@given(g=geometries(), seed=SEEDS)
def test_a_one_hot_kernel_shifts_the_image(g: Geometry, seed: int, xp: ModuleType) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((g.batch, g.channels, 6, 7)).astype("float32")
    u, v = rng.integers(0, 5, 2)
    kernel = np.zeros((g.batch, g.groups, 5, 5, 6, 7), "float32")
    kernel[:, :, u, v] = 1
    shifted = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))[:, :, u : u + 6, v : v + 7]
    assert (host(invocupy.involution(xp.asarray(x), xp.asarray(kernel))) == shifted).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(g=GEOMETRIES, seed=SEEDS)
def test_subnormals_are_not_flushed(dtype: str, g: Geometry, seed: int, xp: ModuleType) -> None:
    x, kernel, grad = PLAIN.draw(g, seed, dtype, xp)
    unit = xp.asarray(np.finfo(dtype).smallest_subnormal)
    tiny = PLAIN.forward(x * unit, kernel, **options(g))
    assert (host(tiny) == host(PLAIN.forward(x, kernel, **options(g)) * unit)).all()
    grads = PLAIN.backward(grad, x, kernel, **options(g))
    for actual, normal in zip(
        PLAIN.backward(grad * unit, x, kernel, **options(g)), grads, strict=True
    ):
        assert (host(actual) == host(normal * unit)).all()


# ---------------------------------------------------------------------------- rounding


@forms
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(g=GEOMETRIES, data=st.data())
def test_rounding_stays_in_its_bound(
    form: Form, dtype: str, g: Geometry, data: st.DataObject, xp: ModuleType
) -> None:
    """Twelve decades in each argument. The bound holds for the reference too, in float64."""
    operands = [
        data.draw(arrays(shape, dtypes=[dtype], layouts=["C"], values="decades", xp=xp))
        for shape in (g.out_shape, *form.shapes(g))
    ]
    wide = [host(a).astype("float64") for a in operands]
    chosen = form.options(g)

    def check(actual: Any, compute: Callable[..., Any], wide: list[Any], terms: int) -> None:
        exact = compute(*wide)
        allowed = sum(tolerance(compute, *wide, terms=terms, dtype=d) for d in (dtype, "float64"))
        assert (np.abs(host(actual).astype("float64") - exact) <= allowed).all()

    out = form.forward(*operands[1:], **chosen)
    check(
        out,
        lambda *arrays: form.forward(*arrays, module=reference, **chosen),
        wide[1:],
        form.terms(g),
    )
    grads = form.backward(*operands, **chosen)
    for i, (grad, terms) in enumerate(zip(grads, form.grad_terms(g), strict=False)):
        check(
            grad,
            lambda *arrays, i=i: form.backward(*arrays, module=reference, **chosen)[i],
            wide,
            terms,
        )


# ---------------------------------------------------------------------------- layouts, dtypes


@forms
@given(g=geometries(max_width=40), data=st.data())
def test_layouts_do_not_matter(
    form: Form, g: Geometry, data: st.DataObject, xp: ModuleType
) -> None:
    layouts = NUMPY_LAYOUTS if xp is np else LAYOUTS
    grad, *operands = (
        data.draw(arrays(shape, layouts=layouts, xp=xp)) for shape in (g.out_shape, *form.shapes(g))
    )
    plain = [xp.array(a.astype(a.dtype.newbyteorder("=")), order="C") for a in (grad, *operands)]
    before = [memory(a) for a in (grad, *operands)]
    results = [
        form.forward(*operands, **form.options(g)),
        *form.backward(grad, *operands, **form.options(g)),
    ]
    expected = [
        form.forward(*plain[1:], **form.options(g)),
        *form.backward(*plain, **form.options(g)),
    ]
    for actual, right in zip(results, expected, strict=True):
        assert actual.dtype == right.dtype
        assert actual.flags.c_contiguous
        assert actual.tobytes() == right.tobytes()
    assert [memory(a) for a in (grad, *operands)] == before


def test_subclasses_are_stripped() -> None:
    class Named(np.ndarray):
        pass

    x, kernel = (np.ones(s).view(Named) for s in ((1, 1, 3, 3), (1, 1, 3, 3, 3, 3)))
    for result in (invocupy.involution(x, kernel), *invocupy.involution_backward(x, x, kernel)):
        assert type(result) is np.ndarray


FLOATS = ["float16", "float32", "float64"]


@given(
    g=geometries(max_size=5),
    dtypes=st.tuples(*[st.sampled_from(FLOATS)] * 3),
    seed=SEEDS,
)
def test_promotion(g: Geometry, dtypes: tuple[str, str, str], seed: int, xp: ModuleType) -> None:
    """NumPy's promotion; small integers are exact in all of the dtypes."""
    wide = PLAIN.draw(g, seed, "float64", xp)
    x, kernel, grad = (a.astype(dtype) for a, dtype in zip(wide, dtypes, strict=True))
    out = invocupy.involution(x, kernel, **options(g))
    assert out.dtype == np.result_type(x, kernel)
    assert (whole(out) == whole(reference.involution(*wide[:2], **options(g)))).all()
    grads = invocupy.involution_backward(grad, x, kernel, **options(g))
    expected = reference.involution_backward(wide[2], *wide[:2], **options(g))
    for actual, right, operand in zip(grads, expected, (x, kernel), strict=True):
        assert actual.dtype == operand.dtype
        assert (whole(actual) == whole(right)).all()


@forms
@given(g=geometries(max_size=5), seed=SEEDS)
def test_halves_are_computed_in_float32(form: Form, g: Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = (g.out_shape, *form.shapes(g))
    halves = [rng.standard_normal(shape).astype("float16") for shape in shapes]
    wide = [a.astype("float32") for a in halves]
    pairs = [
        (form.forward(*halves[1:], **form.options(g)), form.forward(*wide[1:], **form.options(g))),
        *zip(
            form.backward(*halves, **form.options(g)),
            form.backward(*wide, **form.options(g)),
            strict=True,
        ),
    ]
    for half, full in pairs:
        assert half.dtype == "float16"
        assert half.tobytes() == full.astype("float16").tobytes()


# ---------------------------------------------------------------------------- NaN and infinity


def marked(shape: tuple[int, ...], place: int, xp: Any = np) -> Any:
    """One at one place, zero elsewhere."""
    array = np.zeros(shape)
    array.flat[place] = 1
    return xp.asarray(array)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@given(g=geometries(max_width=40, empty=False), seed=SEEDS)
def test_nan_and_infinity_reach_what_sees_them(
    special: float, g: Geometry, seed: int, xp: ModuleType
) -> None:
    """Exactly the results that have it in one of their products.

    Where a tap looks outside of ``x``, a special value of ``kernel`` or ``grad`` meets a zero that
    is not stored anywhere: a backend may multiply with it or leave it out.
    """
    rng = np.random.default_rng(seed)
    shapes = [g.out_shape, g.x_shape, g.kernel_shape]
    ones = [np.ones(shape) for shape in shapes]

    def backward(operands: list[Any], module: Any = invocupy) -> Any:
        return module.involution_backward(*operands, **options(g))

    def forward(operands: list[Any], module: Any = invocupy) -> Any:
        return (module.involution(*operands[1:], **options(g)),)

    for which, shape in enumerate(shapes):
        mark = marked(shape, int(rng.integers(np.prod(shape))))
        spoiled = [rng.uniform(1, 2, s).astype("float32") for s in shapes]
        spoiled[which][mark == 1] = special
        traced = [*ones[:which], mark, *ones[which + 1 :]]
        # What outputs, and what taps of the kernel, share their place with the mark.
        per_pixel = {0: mark, 1: 0 * ones[0], 2: None}[which]
        if per_pixel is None:
            per_pixel = np.repeat(mark.any(axis=(2, 3)), g.channels_per_group, axis=1)
        per_tap = per_pixel.reshape(g.batch, g.groups, -1, *g.out_shape[2:]).any(axis=2)
        unseen = [per_pixel if which == 2 else 0, 0, per_tap[:, :, None, None] if which == 0 else 0]

        on_xp = [xp.asarray(a) for a in spoiled]
        results = [*forward(on_xp), *backward(on_xp)]
        seeing = [*forward(traced, reference), *backward(traced, reference)]
        # The gradient of an argument does not depend on it, nor the result on the gradient.
        for i, (result, sees, may) in enumerate(zip(results, seeing, unseen, strict=True)):
            must = (sees > 0) & (i != which)
            reached = ~np.isfinite(host(result))
            assert reached[must].all()
            assert not reached[~must & ~np.broadcast_to(np.asarray(may) > 0, must.shape)].any()


# ---------------------------------------------------------------------------- out=, empty, Tensors


@pytest.mark.parametrize("layout", LAYOUTS[:3])
@forms
def test_out_is_filled_and_returned(form: Form, layout: str, xp: ModuleType) -> None:
    g = Geometry.of((2, 4, 6, 5), (2, 2, 3, 3, 6, 5))
    *operands, _ = form.draw(g, 0, "float32", xp)
    expected = form.forward(*operands, **form.options(g))
    for dtype in ("float16", "float32", "float64"):
        operands = [a.astype(dtype) for a in operands]
        out = invocupy.testing.lay_out(xp.full(g.out_shape, xp.nan, dtype), layout)
        for module in (invocupy, reference):
            result = form.forward(*operands, module=module, out=out, **form.options(g))
            assert result is out
            assert (out == expected).all()
            out[...] = xp.nan


def test_out_writes_nothing_else() -> None:
    larger = np.full((1, 2, 3, 5), 7.0)
    x, kernel = np.ones((1, 2, 3, 3)), np.ones((1, 1, 3, 3, 3, 3))
    invocupy.involution(x, kernel, out=larger[..., 1:4])
    assert (larger[..., ::4] == 7).all()
    assert (larger[..., 1:4] == invocupy.involution(x, kernel)).all()


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "padding"),
    [
        ((0, 4, 5, 5), (0, 2, 3, 3, 5, 5), 1),  # no image
        ((2, 4, 0, 5), (2, 2, 3, 3, 0, 5), 1),  # no row
        ((2, 4, 2, 5), (2, 2, 3, 3, 0, 3), 0),  # no result
        ((2, 0, 5, 5), (2, 2, 3, 3, 5, 5), 1),  # no channel
        ((1, 1, 0, 0), (1, 1, 3, 3, 2, 2), 2),  # results that see nothing
        ((1, 1, 1, 1), (1, 1, 7, 7, 1, 1), 3),  # a kernel larger than the image
    ],
)
@forms
def test_empty_and_tiny(
    form: Form, x_shape: Any, kernel_shape: Any, padding: int, xp: ModuleType
) -> None:
    g = Geometry.of(x_shape, kernel_shape, 1, padding)
    *operands, grad = form.draw(g, 0, "float32", xp)
    out = xp.full(g.out_shape, xp.nan, "float32")
    form.forward(*operands, out=out, **form.options(g))
    assert (out == form.forward(*operands, module=reference, **form.options(g))).all()
    grads = form.backward(grad, *operands, **form.options(g))
    expected = form.backward(grad, *operands, module=reference, **form.options(g))
    for actual, right in zip(grads, expected, strict=True):
        assert actual.shape == right.shape
        assert (actual == right).all()


@forms
def test_a_tensor_in_gives_a_tensor(form: Form, xp: ModuleType) -> None:
    g = Geometry.of((2, 4, 6, 5), (2, 2, 3, 3, 6, 5))
    *operands, grad = form.draw(g, 0, "float32", xp)
    plain = form.forward(*operands, **form.options(g))
    assert isinstance(plain, xp.ndarray)
    expected = form.backward(grad, *operands, **form.options(g))
    for i, operand in enumerate(operands):
        tensor = Tensor(operand, requires_grad=True)
        out = form.forward(*operands[:i], tensor, *operands[i + 1 :], **form.options(g))
        assert isinstance(out, Tensor)
        assert (out.data == plain).all()
        out.backward(grad)
        assert (tensor.grad == expected[i]).all()
    assert functional.involution is invocupy.involution
    assert functional.fused_involution is invocupy.fused_involution


# ---------------------------------------------------------------------------- refusals


def ones(*shape: int, dtype: Any = "float64") -> Any:
    return np.ones(shape, dtype)


X, KERNEL = ones(1, 4, 5, 5), ones(1, 2, 3, 3, 5, 5)
MASKED = np.ma.masked_array(X, X > 0)
OVERLAP = ones(2, 4, 5, 5)
READ_ONLY = ones(1, 4, 5, 5)
READ_ONLY.flags.writeable = False

REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": X.tolist()}, TypeError, "x must be a NumPy or CuPy array, got list: convert"),
    ({"kernel": 1.0}, TypeError, "kernel must be a NumPy or CuPy array, got float"),
    ({"x": None}, TypeError, "x must be a NumPy or CuPy array, got NoneType"),
    ({"x": X.astype("int64")}, TypeError, r"x has dtype int64, .* \.astype\('float32'\)"),
    ({"kernel": KERNEL > 0}, TypeError, "kernel has dtype bool"),
    ({"x": X.astype("complex128")}, TypeError, "x has dtype complex128"),
    ({"x": X.astype(object)}, TypeError, "x has dtype object"),
    ({"x": X.astype("longdouble")}, TypeError, "x has dtype"),
    ({"x": MASKED}, TypeError, "x is a masked array, and the mask would be ignored: fill"),
    ({"kernel": np.ma.asarray(KERNEL)}, TypeError, "kernel is a masked array"),
    ({"x": X[0]}, ValueError, r"x must have 4 dimensions \(N, C, H, W\), got shape \(4, 5, 5\)"),
    (
        {"kernel": ones(1, 18, 5, 5)},
        ValueError,
        r"kernel must have 6 dimensions .* \(1, 18, 5, 5\): reshape a flat",
    ),
    ({"kernel": ones(2, 2, 3, 3, 5, 5)}, ValueError, "the batch size of x: .* has 2, .* has 1"),
    ({"kernel": ones(1, 3, 3, 3, 5, 5)}, ValueError, "G=3, x .* has C=4"),
    ({"kernel": ones(1, 0, 3, 3, 5, 5)}, ValueError, "number of groups .* G=0"),
    ({"kernel": ones(1, 2, 0, 3, 5, 5)}, ValueError, "at least one tap, got Kh=0, Kw=3"),
    (
        {"kernel": ones(1, 2, 3, 3, 4, 4)},
        ValueError,
        r"kernel has 4x4 positions, but x of 5x5 with kernel size 3x3, stride \(1, 1\), .* 5x5: ",
    ),
    ({"stride": 2}, ValueError, r"kernel has 5x5 positions, .* gives 3x3.* ceil-mode"),
    ({"kernel": ones(1, 2, 2, 3, 5, 5)}, ValueError, "odd kernel size, got 2x3: .* give the pad"),
    ({"dilation": 3, "padding": "valid"}, ValueError, "x of 5x5 is too small for kernel size 3x3"),
    ({"padding": "full"}, ValueError, "padding must be 'same', 'valid', .* got 'full'"),
    ({"stride": 10**19}, ValueError, r"stride must be below 2\*\*31, got 10{19}"),
    ({"padding": 2**62, "dilation": 2**62}, ValueError, r"dilation must be below 2\*\*31"),
    *(
        ({option: value}, ValueError, f"{option} must be an integer >= {least} or a pair of them")
        for option, least, values in [
            ("stride", 1, [0, -1, 1.5, True, (1, 2, 3), (1, 0), None, (1, "2"), ()]),
            ("dilation", 1, [0, (2, -1), 2.0]),
            ("padding", 0, [-1, (1, -1), 0.5, None, False]),
        ]
        for value in values
    ),
]
OUT_REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (X.tolist(), TypeError, "out must be a NumPy array like x, got list"),
    (np.ma.asarray(X.copy()), TypeError, "out is a masked array"),
    (ones(1, 4, 5, 4), ValueError, r"shape \(1, 4, 5, 5\) and dtype float64, got \(1, 4, 5, 4\)"),
    (ones(1, 4, 5, 5, dtype="float32"), ValueError, "dtype float64, got .* float32"),
    (ones(1, 4, 5, 5, dtype=">f8"), ValueError, "dtype float64, got .* >f8"),
    (READ_ONLY, ValueError, "out is read-only"),
    (X, ValueError, "out overlaps x: give an array with memory of its own"),
    (X[:, ::-1], ValueError, "out overlaps x"),
]
both = pytest.mark.parametrize("module", [invocupy, reference], ids=["involution", "reference"])


@both
@pytest.mark.parametrize(("changes", "error", "message"), REFUSALS)
def test_refusals(
    module: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    operands = {"x": X, "kernel": KERNEL, **changes}
    with pytest.raises(error, match=message):
        module.involution(**operands)
    with pytest.raises(error, match=message):
        module.involution_backward(grad_out=X, **operands)


@both
@pytest.mark.parametrize(("out", "error", "message"), OUT_REFUSALS)
def test_refused_out(module: Any, out: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        module.involution(X, KERNEL, out=out)
    features, weight = ones(1, 3, 5, 5), ones(18, 3)
    with pytest.raises(error, match=message):
        module.fused_involution(X, features, weight, kernel_size=3, out=out)


@both
def test_out_that_overlaps_any_argument_is_refused(module: Any) -> None:
    both_in_one = ones(450)
    kernel, out = both_in_one.reshape(KERNEL.shape), both_in_one[:100].reshape(X.shape)
    with pytest.raises(ValueError, match="out overlaps kernel"):
        module.involution(X, kernel, out=out)
    assert (both_in_one == 1).all()


FUSED_REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"features": [1.0]}, TypeError, "features must be a NumPy or CuPy array, got list"),
    ({"span_weight": ones(18, 3, dtype=int)}, TypeError, "span_weight has dtype int64"),
    ({"span_bias": ones(18, dtype=bool)}, TypeError, "span_bias has dtype bool"),
    ({"x": X[0]}, ValueError, "x must have 4 dimensions"),
    ({"features": ones(3, 5, 5)}, ValueError, r"features must have 4 dimensions .*\(3, 5, 5\)"),
    ({"features": ones(1, 0, 5, 5)}, ValueError, "with F >= 1"),
    ({"features": ones(1, 3, 4, 5)}, ValueError, r"features \(1, 3, 4, 5\) .* got 1 and 4x5"),
    ({"features": ones(2, 3, 5, 5)}, ValueError, "got 2 and 5x5: make one feature vector"),
    ({"span_weight": ones(18)}, ValueError, r"\(G\*Kh\*Kw, F\) with Kh\*Kw = 9, got \(18,\)"),
    ({"span_weight": ones(17, 3)}, ValueError, r"Kh\*Kw = 9, got \(17, 3\)"),
    ({"span_weight": ones(0, 3)}, ValueError, r"Kh\*Kw = 9, got \(0, 3\): Kh"),
    ({"span_weight": ones(18, 2)}, ValueError, "as many columns as features has channels"),
    ({"span_weight": ones(27, 3), "span_bias": None}, ValueError, "^span_weight.* G=3, x .* C=4"),
    ({"span_bias": ones(9)}, ValueError, r"span_bias must have shape \(18,\), got \(9,\)"),
    ({"kernel_size": 0}, ValueError, "kernel_size must be an integer >= 1"),
    ({"kernel_size": (3, 2)}, ValueError, "odd kernel size"),
    ({"stride": 2}, ValueError, "got 1 and 5x5: make one feature vector for each output"),
]


@both
@pytest.mark.parametrize(("changes", "error", "message"), FUSED_REFUSALS)
def test_fused_refusals(
    module: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    operands: dict[str, Any] = {
        "x": X,
        "features": ones(1, 3, 5, 5),
        "span_weight": ones(18, 3),
        "span_bias": ones(18),
        "kernel_size": 3,
        **changes,
    }
    with pytest.raises(error, match=message):
        module.fused_involution(**operands)
    with pytest.raises(error, match=message):
        module.fused_involution_backward(grad_out=X, **operands)


@both
def test_refused_gradients(module: Any) -> None:
    span = {"features": ones(1, 3, 5, 5), "span_weight": ones(18, 3), "kernel_size": 3}
    for grad, error, message in [
        (X[..., 1:], ValueError, r"grad_out must have the shape of the result, \(1, 4, 5, 5\)"),
        (X.astype(int), TypeError, "grad_out has dtype int64"),
        (Tensor(X), TypeError, "grad_out must be a NumPy or CuPy array, got Tensor"),
    ]:
        with pytest.raises(error, match=message):
            module.involution_backward(grad, X, KERNEL)
        with pytest.raises(error, match=message):
            module.fused_involution_backward(grad, X, **span)


def test_more_refusals() -> None:
    with pytest.raises(TypeError, match="positional"):
        invocupy.involution(X, KERNEL, 1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="kernel_size"):
        invocupy.fused_involution(X, ones(1, 3, 5, 5), ones(18, 3))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="out works with plain arrays only"):
        invocupy.involution(Tensor(X), KERNEL, out=X.copy())
    with pytest.raises(TypeError, match="x has dtype int64"):
        invocupy.involution(Tensor(X.astype(int)), KERNEL)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(TypeError, match="bfloat16 works on the GPU only"):
        invocupy.involution(X.astype(ml_dtypes.bfloat16), KERNEL)


def test_numpy_integers_are_options() -> None:
    chosen: dict[str, Any] = {"stride": np.int64(1), "padding": [np.int8(1), 1], "dilation": (1, 1)}
    assert (invocupy.involution(X, KERNEL, **chosen) == invocupy.involution(X, KERNEL)).all()


@pytest.mark.gpu
def test_mixed_libraries_are_refused() -> None:
    cupy = invocupy.arrays.require_cupy()
    on_gpu = cupy.asarray(KERNEL)
    with pytest.raises(TypeError, match="x is a NumPy array and kernel a CuPy array: move one"):
        invocupy.involution(X, on_gpu)
    with pytest.raises(TypeError, match="out must be a NumPy array like x, got ndarray"):
        invocupy.involution(X, KERNEL, out=cupy.asarray(X))
    with pytest.raises(TypeError, match="out must be a CuPy array like x, got ndarray"):
        invocupy.involution(cupy.asarray(X), on_gpu, out=X.copy())


# ---------------------------------------------------------------------------- many at once


@forms
def test_the_same_call_gives_the_same_bits(form: Form, xp: ModuleType) -> None:
    g = Geometry.of((3, 8, 33, 35), (3, 2, 3, 3, 33, 35))
    rng = np.random.default_rng(0)
    grad, *operands = (
        xp.asarray(rng.standard_normal(shape).astype("float32"))
        for shape in (g.out_shape, *form.shapes(g))
    )
    results = {
        b"".join(
            a.tobytes()
            for a in (
                form.forward(*operands, **form.options(g)),
                *form.backward(grad, *operands, **form.options(g)),
            )
        )
        for _ in range(20)
    }
    assert len(results) == 1


def test_sixteen_threads_at_once() -> None:
    """Mixed sizes and operators, equal to one call after the other."""

    def everything(seed: int) -> list[bytes]:
        results = []
        for form in (PLAIN, BIASED):
            size = 3 + seed % 5 * 15
            g = Geometry.of((2, 4, size, size), (2, 2, 3, 3, size, size))
            *operands, grad = form.draw(g, seed, "float32", np)
            results += [
                form.forward(*operands, **form.options(g)),
                *form.backward(grad, *operands, **form.options(g)),
            ]
        return [result.tobytes() for result in results]

    serial = [everything(seed) for seed in range(16)]
    results: list[Any] = [None] * 16
    start = threading.Barrier(16)

    def work(seed: int) -> None:
        start.wait()
        for _ in range(10):
            results[seed] = everything(seed)
            if results[seed] != serial[seed]:
                return

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == serial


FIRST_CALL_AND_FORK = """
    import os, signal, threading
    import numpy as np
    import invocupy

    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 16, 40, 40)).astype("float32")
    kernel = rng.standard_normal((4, 1, 3, 3, 40, 40)).astype("float32")
    expected = invocupy.reference.involution(x, kernel)

    results = []
    start = threading.Barrier(16)

    def first_call():
        start.wait()
        results.append(invocupy.involution(x, kernel))

    threads = [threading.Thread(target=first_call) for _ in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(results) == 16 and all((r == results[0]).all() for r in results)
    assert abs(results[0] - expected).max() < 1e-4

    def answers_in_a_child():
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a child that waits for ever is killed
            same = (invocupy.involution(x, kernel) == results[0]).all()
            os._exit(0 if same else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert answers_in_a_child()
    busy = threading.Thread(target=lambda: [invocupy.involution(x, kernel) for _ in range(50)])
    busy.start()
    assert all(answers_in_a_child() for _ in range(3)), "while another thread computes"
    busy.join()
    assert (invocupy.involution(x, kernel) == results[0]).all()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_first_call_in_sixteen_threads_and_forked_children() -> None:
    script = textwrap.dedent(FIRST_CALL_AND_FORK)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def test_neither_patches_nor_the_generated_kernel_are_stored() -> None:
    g = Geometry.of((1, 32, 48, 48), (1, 16, 7, 7, 48, 48))

    def peak(form: Form, module: Any) -> int:
        *operands, grad = form.draw(g, 0, "float32", np)
        form.forward(*operands, module=module, **form.options(g))  # compiling takes memory, too
        if form is BIASED:
            form.backward(grad, *operands, module=module, **form.options(g))
        tracemalloc.start()
        form.forward(*operands, module=module, **form.options(g))
        forward = tracemalloc.get_traced_memory()[1]
        if form is BIASED:
            form.backward(grad, *operands, module=module, **form.options(g))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return max(forward, highest)

    kernel_bytes = 4 * int(np.prod(g.kernel_shape))
    patches_bytes = 4 * taps(g) * int(np.prod(g.x_shape))
    assert peak(PLAIN, invocupy) < patches_bytes / 4
    assert peak(BIASED, invocupy) < kernel_bytes / 4
    assert peak(BIASED, reference) > kernel_bytes  # what the limit would catch


def test_contiguous_keeps_an_array_that_is_so() -> None:
    array = np.ones((2, 3), np.float32)
    for dtype in (None, np.dtype(np.float32)):
        assert contiguous(array, dtype) is array
        turned = contiguous(array.T, dtype)
        assert turned.flags.c_contiguous
        assert turned.dtype == np.float32
