"""What the proof runs: every function of the CUDA backends, on NumPy arrays, with a checked result.

:func:`involution`, :func:`batch_norm`, :func:`channels` and :func:`pointwise` make a
:class:`Problem` of one call; :func:`run` calls the library's CUDA backend with poisoned results;
:func:`check` compares with the reference in float64 under a derived bound: ``terms`` roundings of
the accumulator for what is summed, in magnitude, and one rounding of the result.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from invocupy.backends.cuda import batch_norm as batch_norm_device
from invocupy.backends.cuda import involution as involution_device
from invocupy.backends.cuda import pointwise as pointwise_device
from invocupy.backends.reference import batch_norm as batch_norm_reference
from invocupy.backends.reference import involution as involution_reference
from invocupy.backends.reference import pointwise as pointwise_reference
from invocupy.geometry import Geometry, output_size, padding_per_axis, per_axis

from . import gemm
from .host import roomy

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# What each function takes before the geometry, and what it fills after it.
INVOLUTION = {
    "forward": (("x", "kernel"), ("out",)),
    "grad_x": (("grad", "kernel"), ("x",)),
    "grad_kernel": (("grad", "x"), ("kernel",)),
    "fused_forward": (("x", "features", "weight", "bias"), ("out",)),
    "fused_grad_x": (("grad", "features", "weight", "bias"), ("x",)),
    "fused_grad_span": (("grad", "x", "features", "weight"), ("features", "weight", "bias")),
}
BATCH_NORM = {
    "moments": (("x",), ("mean", "var")),
    "forward": (("x", "scale", "shift", "residual", "relu"), ("out",)),
    "grad_sums": (("grad", "x", "out", "mean"), ("sum_grad", "sum_grad_x")),
    "grad_x": (("grad", "x", "out", "a", "b", "c"), ("grad_x", "residual")),
}
CHANNELS = {  # of batch norm, on arrays (C,); with the numbers that they take
    "fold": (("mean", "var", "weight", "bias", 1e-3), ("inverse", "scale", "shift")),
    "coefficients": (
        ("scale", "inverse", "mean", "sum_grad", "sum_grad_x", 48),
        ("b", "c", "grad_weight"),
    ),
    "running": (("old_mean", "old_var", "mean", "var", 0.1, 1.25), ("new_mean", "new_var")),
}
POINTWISE = {
    "forward": (("x", "weight", "bias"), ("out",)),
    "grad_x": (("grad", "weight", "base"), ("x",)),
    "grad_weight": (("grad", "x"), ("weight", "bias")),
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What specialisations depend on. ``few``: small arrays count as few, so threads own little."""

    kernel: tuple[int, ...] = (3, 3)
    stride: Any = 1
    padding: Any = "same"
    dilation: Any = 1
    per_group: int = 16
    unit: int = 4  # widths are odd multiples of it
    features: int = 4
    few: bool = False
    offset: int = 0  # elements by which arrays start after a 256-byte boundary


FAMILIES = {
    "k3": Family(),
    "k7": Family((7, 7)),
    "k7-few-even": Family((7, 7), unit=2, few=True),
    "k7-few-odd": Family((7, 7), per_group=12, unit=1, features=5, few=True),
    "k3-odd": Family(unit=1, per_group=4),
    "k3-ragged-even": Family(per_group=18, unit=2, features=6),
    "k3-stride2": Family(stride=2, unit=8),
    "k7-stride2": Family((7, 7), stride=2, unit=8),
    "k7-stride2-odd": Family((7, 7), stride=2, unit=1),
    "k3-dilated-unaligned": Family(dilation=2, offset=1),
    "k2x3-mixed": Family((2, 3), (2, 1), (1, 0), (1, 3), per_group=3, unit=2, features=3),
    "k3-ragged-17": Family(per_group=17, unit=2, features=17),
    "k5x3-ragged-19": Family((5, 3), per_group=19, unit=1, features=33),
    "k1": Family((1, 1), stride=(1, 3), padding=0, per_group=1, unit=4, features=1),
    "k9x11-valid": Family((9, 11), padding="valid", per_group=2, unit=4, features=2),
    "1d-k9": Family((9,)),
    "1d-k4-mixed": Family((4,), stride=2, padding=3, dilation=2, per_group=3, unit=1, features=3),
    "3d-k3": Family((3, 3, 3)),
    "3d-k5": Family((5, 5, 5), per_group=6, few=True),
    "3d-k3-stride2-odd": Family((3, 3, 3), stride=2, unit=1, per_group=10),
    "3d-k4x1x2-mixed": Family(
        (4, 1, 2), (3, 1, 2), (4, 0, 1), (2, 1, 3), per_group=3, unit=2, features=3
    ),
}


@dataclass(frozen=True)
class Problem:
    """One call of a backend function, ``device(inputs, results)``, and how to judge it."""

    name: str
    device: Callable[[list[Any], list[Any]], None]
    reference: Callable[[list[Any], list[Any]], None]
    inputs: list[Any]  # arrays; where the function takes them, booleans and None
    results: Callable[[], list[Any]]  # poisoned with NaN; None where nothing is wanted
    magnitudes: Callable[[list[Any]], list[Any]]  # of what is summed, from inputs in float64
    terms: int  # the longest chain of roundings behind one element of a result


def run(problem: Problem) -> list[Any]:
    """Call the backend; whoever calls this has installed something to run kernels on."""
    results = problem.results()
    before = [array.tobytes() for array in problem.inputs if isinstance(array, np.ndarray)]
    problem.device(problem.inputs, results)
    after = [array.tobytes() for array in problem.inputs if isinstance(array, np.ndarray)]
    assert after == before, f"{problem.name}: an input was written"
    return results


def check(problem: Problem, results: list[Any]) -> None:
    """Compare with the reference; a NaN left over from the poison fails too."""
    wide = [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in problem.inputs]
    want = [None if r is None else np.empty(r.shape) for r in results]
    problem.reference(wide, want)
    sizes = problem.magnitudes(wide)
    for number, (got, exact, size) in enumerate(zip(results, want, sizes, strict=True)):
        if got is None:
            continue
        info = ml_dtypes.finfo(got.dtype)
        bound = problem.terms * (2.0**-53 if got.itemsize == 8 else 2.0**-24) * size * 1.01
        bound += float(info.eps) / 2 * (np.abs(exact) + bound) + float(info.smallest_subnormal)
        good = np.abs(got.astype(np.float64) - exact) <= bound
        if not good.all():
            at = np.unravel_index(int(np.argmin(good)), good.shape)
            raise AssertionError(
                f"{problem.name}: result {number} at {[int(k) for k in at]} is {got[at]}, should "
                f"be {exact[at]} +- {bound[at]:.2g}; {(~good).sum()} of {good.size} are wrong"
            )


def involution(
    function: str, family: str, dtype: str = "float32", *, batch: int = 2, groups: int = 2,
    depth: int = 3, height: int = 9, units: int = 1, seed: int = 0,
) -> Problem:  # fmt: skip
    """A call of an involution function, ``units`` (odd) wide; sizes grow to fit the kernel."""
    f, kind = FAMILIES[family], DTYPES[dtype]
    dims = len(f.kernel)
    stride, dilation = (per_axis("", value, 1, dims) for value in (f.stride, f.dilation))
    padding = padding_per_axis(f.padding, f.kernel, dilation)
    *least, width = (
        d * (k - 1) + 1 - 2 * p for k, p, d in zip(f.kernel, padding, dilation, strict=True)
    )
    while units * f.unit < width:
        units += 2
    size = (*map(max, (depth, height)[3 - dims :], least), units * f.unit)
    out = tuple(map(output_size, size, f.kernel, stride, padding, dilation))
    g = Geometry.of(
        (batch, groups * f.per_group, *size), (batch, groups, *f.kernel, *out),
        stride=f.stride, padding=f.padding, dilation=f.dilation,
    )  # fmt: skip
    taps = math.prod(f.kernel)
    shapes = {
        "x": g.x_shape, "kernel": g.kernel_shape, "out": g.out_shape, "grad": g.out_shape,
        "features": (batch, f.features, *out), "weight": (groups * taps, f.features),
        "bias": (groups * taps,),
    }  # fmt: skip
    takes, fills = INVOLUTION[function]
    random = np.random.default_rng(seed)
    judge = getattr(involution_reference, function)

    def device(inputs: list[Any], results: list[Any]) -> None:
        enough = involution_device.ENOUGH if f.few else 1
        with mock.patch.object(involution_device, "ENOUGH", enough):
            getattr(involution_device, function)(*inputs, g, *results)

    def magnitudes(inputs: list[Any]) -> list[Any]:
        sizes = [np.empty(shapes[name]) for name in fills]
        judge(*map(np.abs, inputs), g, *sizes)  # sums of products of magnitudes
        return sizes

    return Problem(
        name=f"{function} {family} {dtype}",
        device=device,
        reference=lambda inputs, results: judge(*inputs, g, *results),
        inputs=[aligned(random.standard_normal(shapes[n]).astype(kind), f.offset) for n in takes],
        results=lambda: [poisoned(shapes[name], kind, f.offset) for name in fills],
        magnitudes=magnitudes,
        terms=4 + (0 if function in ("forward", "grad_x", "grad_kernel") else f.features)
        + {"kernel": f.per_group, "features": f.per_group + groups * taps + batch * math.prod(out)}
        .get(fills[0], taps),
    )  # fmt: skip


def batch_norm(
    function: str, dtype: str, shape: tuple[int, int, int, int], *, relu: bool = True,
    residual: bool = True, seed: int = 0, offset: int = 0,
) -> Problem:  # fmt: skip
    """A call of a batch norm function; a third of ``out`` is 0, as after ReLU."""
    kind = DTYPES[dtype]
    accum = np.float64 if kind.itemsize == 8 else np.float32
    takes, fills = BATCH_NORM[function]
    random = np.random.default_rng(seed)
    wanted = {"residual": residual, "out": relu or function == "forward"}
    whole = ("x", "grad", "out", "residual", "grad_x")

    def array(name: str) -> Any:
        if name == "relu" or not wanted.get(name, True):
            return relu if name == "relu" else None
        values = random.standard_normal(shape if name in whole else shape[1])
        values = np.maximum(values, 0) if name == "out" else values + (name == "x") * 3
        return aligned(values.astype(kind if name in whole else accum), offset)

    def results() -> list[Any]:
        forms = [(shape, kind) if name in whole else ((shape[1],), accum) for name in fills]
        return [
            poisoned(*form, offset) if wanted.get(name, True) else None
            for name, form in zip(fills, forms, strict=True)
        ]

    def magnitudes(inputs: list[Any]) -> list[Any]:
        sizes = [None if r is None else np.empty(r.shape) for r in results()]
        judge = getattr(batch_norm_reference, function)
        if function == "moments":
            mean, var = sizes
            judge(inputs[0], mean, var)
            # Chan, Golub and LeVeque: the condition of a variance is sqrt(1 + mean^2 / var).
            return [np.abs(inputs[0]).mean((0, 2, 3)), np.sqrt(var * (var + mean**2))]
        sized = [np.abs(a) if isinstance(a, np.ndarray) else a for a in inputs]
        if function == "grad_sums":
            sized[3] = -sized[3]  # h * (x - mean), in magnitude
        judge(*sized, *sizes)
        return sizes

    return Problem(
        name=f"batch_norm.{function} {dtype} {shape} relu={relu} residual={residual}",
        device=lambda i, r: getattr(batch_norm_device, function)(*i, *r),
        reference=lambda i, r: getattr(batch_norm_reference, function)(*i, *r),
        inputs=list(map(array, takes)),
        results=results,
        magnitudes=magnitudes,
        terms=8 + (shape[0] * shape[2] * shape[3] if function in ("moments", "grad_sums") else 0),
    )


def channels(function: str, dtype: str, count: int, *, seed: int = 0, offset: int = 0) -> Problem:
    """A call of a batch norm function on arrays (C,), float32 or float64."""
    kind = DTYPES[dtype]
    takes, fills = CHANNELS[function]
    random = np.random.default_rng(seed)

    def array(name: Any) -> Any:
        if not isinstance(name, str):
            return name
        values = random.standard_normal(count)
        return aligned((np.abs(values) if "var" in name else values).astype(kind), offset)

    def magnitudes(inputs: list[Any]) -> list[Any]:
        sizes = [np.empty(count) for _ in fills]
        # Differences become sums if one of their sides changes its sign.
        turned = {"fold": "bias", "coefficients": "mean"}.get(function)
        signs = [-1 if name == turned else 1 for name in takes]
        judge(*(sign * np.abs(a) for sign, a in zip(signs, inputs, strict=True)), *sizes)
        return list(map(np.abs, sizes))

    judge = getattr(batch_norm_reference, function)
    return Problem(
        name=f"batch_norm.{function} {dtype} ({count},)",
        device=lambda i, r: getattr(batch_norm_device, function)(*i, *r),
        reference=lambda i, r: judge(*i, *r),
        inputs=list(map(array, takes)),
        results=lambda: [poisoned((count,), kind, offset) for _ in fills],
        magnitudes=magnitudes,
        terms=8,
    )


def pointwise(
    function: str, dtype: str, batch: int, inside: int, outside: int, pixels: int, *,
    bias: bool = True, seed: int = 0, offset: int = 0,
) -> Problem:  # fmt: skip
    """A call of a 1x1 convolution's function, with cuBLAS played by NumPy."""
    kind = DTYPES[dtype]
    takes, fills = POINTWISE[function]
    shapes = {
        "x": (batch, inside, pixels), "out": (batch, outside, pixels),
        "grad": (batch, outside, pixels), "weight": (outside, inside), "bias": (outside,),
        "base": (batch, inside, pixels),
    }  # fmt: skip
    random = np.random.default_rng(seed)

    def array(name: str) -> Any:
        if name in ("bias", "base") and not bias:
            return None
        return aligned(random.standard_normal(shapes[name]).astype(kind), offset)

    def results() -> list[Any]:
        return [poisoned(shapes[n], kind, offset) if bias or n != "bias" else None for n in fills]

    def magnitudes(inputs: list[Any]) -> list[Any]:
        sizes = [None if r is None else np.empty(r.shape) for r in results()]
        judge(*(None if a is None else np.abs(a) for a in inputs), *sizes)
        return sizes

    def device(inputs: list[Any], results: list[Any]) -> None:
        on_host = isinstance(inputs[0], np.ndarray)
        with gemm.installed() if on_host else contextlib.nullcontext():
            getattr(pointwise_device, function)(*inputs, *results)

    judge = getattr(pointwise_reference, function)
    return Problem(
        name=f"pointwise.{function} {dtype} {(batch, inside, outside, pixels)}",
        device=device,
        reference=lambda i, r: judge(*i, *r),
        inputs=list(map(array, takes)),
        results=results,
        magnitudes=magnitudes,
        terms=4 + {"forward": inside, "grad_x": outside}.get(function, batch * pixels),
    )


def poisoned(shape: tuple[int, ...], dtype: Any, offset: int) -> np.ndarray:
    return aligned(np.full(shape, np.nan).astype(dtype), offset)


def aligned(array: np.ndarray, offset: int = 0) -> np.ndarray:
    """A copy ``offset`` elements after a 256-byte boundary, where CuPy's arrays start."""
    copy = roomy(array.shape, array.dtype, offset)
    copy[...] = array
    return copy
