"""What involution and its fused form refuse, and in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import invocupy
from invocupy import Tensor, reference


def ones(*shape: int, dtype: Any = "float64") -> Any:
    return np.ones(shape, dtype)


X, KERNEL = ones(1, 4, 5, 5), ones(1, 2, 3, 3, 5, 5)
MASKED = np.ma.masked_array(X, X > 0)

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
    ({"x": ones(1, 4, 5, 5, 5)}, ValueError, "5, 5, 5.: that fits a kernel of 6 dimensions$"),
    ({"x": ones(1, 4, 5, 5, 5, 5)}, ValueError, r"x must have 4 dimensions \(N, C, H, W\), got"),
    (
        {"x": ones(1, 4, 5, 5, 5, 5), "kernel": ones(1, 2, *[3] * 3, *[5] * 3)},
        ValueError,
        r"^x must have 5 dimensions \(N, C, D, H, W\), got shape \(1, 4, 5, 5, 5, 5\)$",
    ),
    (
        {"x": ones(1, 4, 5, 5, 5, 5), "kernel": ones(1, 2, *[3] * 4, *[5] * 4)},
        ValueError,
        r"^x must have 3, 4 or 5 dimensions, \(N, C, W\), \(N, C, H, W\) or \(N, C, D, H, W\), got",
    ),
    (
        {"kernel": ones(1, 2, *[3] * 3, *[5] * 3)},
        ValueError,
        r"^kernel must have 6 dimensions \(N, G, Kh, Kw, Ho, Wo\), got shape \(1, 2, 3, 3, 3, ",
    ),
    (
        {"x": ones(1, 4, 5), "kernel": ones(1, 2, 3, 5), "stride": (1, 1)},
        ValueError,
        "^stride must be an integer >= 1 or a tuple of one of them, got",
    ),
    (
        {"x": ones(1, 4, 5), "kernel": ones(1, 2, 2, 5)},
        ValueError,
        "^padding='same' needs an odd kernel size, got 2: .* give the padding as an integer or",
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


FUSED_REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"features": [1.0]}, TypeError, "features must be a NumPy or CuPy array, got list"),
    ({"span_weight": ones(18, 3, dtype=int)}, TypeError, "span_weight has dtype int64"),
    ({"span_bias": ones(18, dtype=bool)}, TypeError, "span_bias has dtype bool"),
    (
        {"x": X[0]},
        ValueError,
        "x must have 4 dimensions .* that fits features of 4 dim.*batch axis",
    ),
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
