"""What only a device can show: results from real hardware, streams, graphs, waiting, huge offsets.

The arithmetic of the same source is proved without a device in ``test_source.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import invocupy
from invocupy import backends, reference
from invocupy.arrays import require_cupy
from invocupy.testing import tolerance

pytestmark = pytest.mark.gpu

DTYPES = ("float32", "float64", "float16", "bfloat16")

# (batch, groups, channels per group, size), kernel size, options; more than one tile each.
CASES = {
    "k3": ((2, 4, 16, 32, 32), (3, 3), {}),
    "k7": ((2, 2, 16, 56, 56), (7, 7), {}),
    "k7-14 wide": ((3, 4, 16, 14, 14), (7, 7), {}),
    "k7-7 wide": ((5, 2, 16, 7, 7), (7, 7), {}),
    "odd width": ((2, 1, 20, 31, 37), (5, 5), {}),
    "one channel a group": ((2, 5, 1, 9, 12), (3, 3), {}),
    "three channels per group": ((2, 2, 3, 9, 12), (3, 3), {}),
    "ragged shares": ((1, 1, 17, 9, 12), (3, 3), {}),
    "stride 2": ((2, 2, 16, 28, 56), (7, 7), {"stride": 2}),
    "stride 2, odd": ((2, 2, 16, 27, 55), (3, 3), {"stride": 2}),
    "stride (3, 1)": ((2, 1, 4, 20, 24), (3, 3), {"stride": (3, 1)}),
    "dilation 2": ((2, 1, 16, 24, 24), (3, 3), {"dilation": 2}),
    "even, rectangular": ((2, 2, 8, 20, 24), (4, 2), {"padding": (1, 2)}),
    "all options": ((1, 2, 5, 25, 31), (3, 5), {"stride": (2, 3), "dilation": (3, 2)}),
    "wide kernel": ((1, 1, 4, 6, 40), (1, 11), {}),
    "1d": ((3, 2, 8, 200), (9,), {}),
    "1d, all options": ((2, 1, 5, 77), (4,), {"stride": 2, "dilation": 3, "padding": 2}),
    "3d": ((2, 2, 8, 5, 12, 20), (3, 3, 3), {}),
    "3d, stride 2": ((1, 2, 5, 6, 9, 21), (3, 3, 3), {"stride": 2}),
    "3d, all options": (
        (1, 1, 3, 9, 5, 12),
        (4, 1, 2),
        {"stride": (3, 1, 2), "dilation": (2, 1, 3), "padding": 2},
    ),
}


@pytest.fixture(scope="module")
def cp() -> Any:
    return require_cupy()


@pytest.fixture
def device(cp: Any) -> None:
    """For tests of streams and graphs."""
    if "stand-in" in cp.__version__:
        pytest.skip("needs a device: the stand-in has no streams")


def as_dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def draw(cp: Any, shape: tuple[int, ...], dtype: Any, seed: int) -> tuple[Any, Any]:
    """The same numbers as a CuPy array and, exactly, as a float64 NumPy array."""
    array = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return cp.asarray(array), array.astype(np.float64)


def operands(cp: Any, case: str, dtype: Any) -> tuple[Any, Any, dict[str, Any]]:
    """x, kernel and the result's gradient on the device, the same in float64 here, options."""
    (batch, groups, per_group, *image), size, options = CASES[case]
    x_shape = (batch, groups * per_group, *image)
    full = {"stride": 1, "padding": "same", "dilation": 1} | options
    sizes = _output_sizes(image, size, full)
    shapes = (x_shape, (batch, groups, *size, *sizes), (*x_shape[:2], *sizes))
    device, host = zip(*(draw(cp, shape, dtype, i) for i, shape in enumerate(shapes)), strict=True)
    return device, host, options


def _output_sizes(
    image: list[int], kernel: tuple[int, ...], options: dict[str, Any]
) -> tuple[int, ...]:
    sizes = []
    for axis in range(len(kernel)):
        stride, dilation, padding = (
            option[axis] if isinstance(option, tuple) else option
            for option in (options["stride"], options["dilation"], options["padding"])
        )
        reach = dilation * (kernel[axis] - 1)
        pad = reach // 2 if padding == "same" else padding
        sizes.append((image[axis] + 2 * pad - reach - 1) // stride + 1)
    return tuple(sizes)


def assert_close(got: Any, function: Callable[..., Any], *arrays: Any, **options: Any) -> None:
    wanted = function(*arrays, **{k: v for k, v in options.items() if k != "terms"})
    allowed = tolerance(function, *arrays, dtype=got.dtype, **options)
    error = np.abs(got.get().astype(np.float64) - wanted)
    assert (error <= allowed).all(), f"{(error > allowed).sum()} of {error.size} elements are wrong"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_involution(cp: Any, case: str, dtype: str) -> None:
    (x, kernel, grad), wide, options = operands(cp, case, as_dtype(dtype))
    taps, per_group = math.prod(CASES[case][1]), CASES[case][0][2]
    out = cp.full(grad.shape, cp.nan, x.dtype)
    assert invocupy.involution(x, kernel, out=out, **options) is out
    assert_close(out, reference.involution, *wide[:2], terms=taps, **options)
    grad_x, grad_kernel = invocupy.involution_backward(grad, x, kernel, **options)

    def one(part: int) -> Callable[..., Any]:
        return lambda *arrays, **kw: reference.involution_backward(*arrays, **kw)[part]

    order = (wide[2], wide[0], wide[1])
    assert_close(grad_x, one(0), *order, terms=taps, **options)
    assert_close(grad_kernel, one(1), *order, terms=per_group, **options)
    again = invocupy.involution_backward(grad, x, kernel, **options)
    for first, second in zip((grad_x, grad_kernel), again, strict=True):
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [16, 21])
@pytest.mark.parametrize("case", [
    "k3", "k7", "k7-14 wide", "odd width", "stride 2", "all options", "1d, all options", "3d",
    "3d, all options",
])  # fmt: skip
def test_fused(cp: Any, case: str, count: int, dtype: str) -> None:
    kind = as_dtype(dtype)
    (x, kernel, grad), wide, options = operands(cp, case, kind)
    batch, groups, *_ = kernel.shape
    size, out_size = CASES[case][1], grad.shape[2:]
    rows = groups * math.prod(size)
    shapes = ((batch, count, *out_size), (rows, count), (rows,))
    device, host = zip(*(draw(cp, s, kind, 7 + i) for i, s in enumerate(shapes)), strict=True)
    options = options | {"kernel_size": size}
    # Roundings that a term passes through: taps, features and bias; for the sums over positions as
    # many as there are positions.
    taps, positions = math.prod(size), batch * math.prod(out_size)
    per_group = x.shape[1] // groups
    out = invocupy.fused_involution(x, *device, **options)
    assert_close(out, reference.fused_involution, wide[0], *host, terms=taps + count + 1, **options)
    gradients = invocupy.fused_involution_backward(grad, x, *device, **options)
    terms = (taps + count + 1, rows + per_group, positions + per_group, positions + per_group)
    for i, (gradient, n) in enumerate(zip(gradients, terms, strict=True)):
        assert_close(
            gradient,
            lambda *arrays, i=i, **kw: reference.fused_involution_backward(*arrays, **kw)[i],
            wide[2], wide[0], *host, terms=n, **options,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 12, 16, 16), (5, 70, 7, 7), (2, 3, 112, 112)])
def test_batch_norm(cp: Any, shape: tuple[int, ...], dtype: str) -> None:
    kind = as_dtype(dtype)
    sums = np.dtype("float64" if dtype == "float64" else "float32")
    norm, plain = (backends.of("batch_norm", a) for a in (cp.zeros(1), np.zeros(1)))
    (x, x64), (grad, grad64), (residual, residual64) = (draw(cp, shape, kind, i) for i in range(3))
    channel = [draw(cp, shape[1:2], sums, i) for i in range(3)]
    roundoff = np.finfo(sums).eps / 2
    size = x64.size // shape[1]

    mean, var = cp.empty(shape[1], sums), cp.empty(shape[1], sums)
    norm.moments(x + kind.type(100), mean, var)
    shifted = (x + kind.type(100)).get().astype(np.float64)
    exact = shifted.var(axis=(0, 2, 3))
    # E[x^2] - E[x]^2 would be wrong by 1e4 roundoffs of the variance here.
    assert (np.abs(var.get() - exact) <= 200 * roundoff * exact).all()
    assert np.allclose(mean.get(), shifted.mean(axis=(0, 2, 3)), rtol=4 * roundoff, atol=0)

    half = np.finfo(np.float16).eps if dtype == "float16" else 2.0**-8
    loose = half if kind.itemsize == 2 else 16 * roundoff
    out, out64 = cp.full(shape, cp.nan, kind), np.empty(shape)
    norm.forward(x, channel[0][0], channel[1][0], residual, True, out)
    plain.forward(x64, channel[0][1], channel[1][1], residual64, True, out64)
    assert np.allclose(out.get().astype(np.float64), out64, rtol=loose, atol=loose)

    got = [cp.empty(shape[1], sums) for _ in range(2)]
    wanted = [np.empty(shape[1]) for _ in range(2)]
    mask64 = out.get().astype(np.float64)
    norm.grad_sums(grad, x, out, channel[2][0], *got)
    plain.grad_sums(grad64, x64, mask64, channel[2][1], *wanted)
    for a, b in zip(got, wanted, strict=True):
        assert np.allclose(a.get(), b, rtol=0, atol=size * roundoff * 10)

    to, to_residual = cp.full(shape, cp.nan, kind), cp.full(shape, cp.nan, kind)
    to64, to_residual64 = np.empty(shape), np.empty(shape)
    norm.grad_x(grad, x, out, *(a for a, _ in channel), to, to_residual)
    plain.grad_x(grad64, x64, mask64, *(a for _, a in channel), to64, to_residual64)
    assert np.allclose(to.get().astype(np.float64), to64, rtol=loose, atol=4 * loose)
    assert (to_residual.get().astype(np.float64) == to_residual64).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_pointwise(cp: Any, dtype: str) -> None:
    """cuBLAS gets every transposition and step right, and sums in float32, not in TF32."""
    kind = as_dtype(dtype)
    sums = 2.0**-53 if dtype == "float64" else 2.0**-24
    roundoff = 2.0**-8 if dtype == "bfloat16" else float(np.finfo(kind).eps) / 2
    batch, inside, outside, pixels = 5, 12, 20, 63
    one, plain = (backends.of("pointwise", a) for a in (cp.zeros(1), np.zeros(1)))
    shapes = ((batch, inside, pixels), (outside, inside), (batch, outside, pixels))
    (x, x64), (weight, weight64), (grad, grad64) = (
        draw(cp, shape, kind, i) for i, shape in enumerate(shapes)
    )
    results = (shapes[2:], shapes[:1], (shapes[1], (outside,)))
    calls = (
        ("forward", (x, weight, None), (x64, weight64, None), inside),
        ("grad_x", (grad, weight, x), (grad64, weight64, x64), outside + 1),
        ("grad_weight", (grad, x), (grad64, x64), batch * pixels),
    )
    for (name, device, host, terms), shapes in zip(calls, results, strict=True):
        got = [cp.full(shape, cp.nan, kind) for shape in shapes]
        wanted, sizes = ([np.empty(shape) for shape in shapes] for _ in range(2))
        getattr(one, name)(*device, *got)
        getattr(plain, name)(*host, *wanted)
        getattr(plain, name)(*(None if a is None else np.abs(a) for a in host), *sizes)
        for a, b, size in zip(got, wanted, sizes, strict=True):
            error = np.abs(a.get().astype(np.float64) - b)
            assert (error <= (terms + 4) * sums * size + 1.1 * roundoff * size).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(cp: Any, nesterov: bool, dtype: str) -> None:
    """More arrays than go into one launch, with and without velocities."""
    kind = as_dtype(dtype)
    sgd, plain = (backends.of("sgd", a) for a in (cp.zeros(1), np.zeros(1)))
    shapes = ((64, 64, 1, 1), (64,), (), (1000,)) * 5
    lists = [[draw(cp, s, kind, 9 * i + j) for j, s in enumerate(shapes)] for i in range(3)]
    device, host = ([[pair[k] for pair in pairs] for pairs in lists] for k in (0, 1))
    for velocities in (device[2], host[2]):
        velocities[1] = None
    decays = [0.0, 0.01] * 10
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
    loose = {"float64": 1e-14, "float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    for got, wanted in zip(
        sgd.update(*device, decays, **options), plain.update(*host, decays, **options), strict=True
    ):
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == kind
            assert np.allclose(a.get().astype(np.float64), b, rtol=loose, atol=4 * loose)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_unaligned_views(cp: Any, dtype: str) -> None:
    """Contiguous views that start at any element give the same bits by narrower accesses."""
    (x, kernel, grad), _, _ = operands(cp, "k3", as_dtype(dtype))

    def moved(array: Any, by: int) -> Any:
        memory = cp.full(array.size + 16, cp.nan, array.dtype)
        view = memory[by : by + array.size].reshape(array.shape)
        view[...] = array
        return view

    aligned = (invocupy.involution(x, kernel), *invocupy.involution_backward(grad, x, kernel))
    for by in (1, 2):
        a, b, c = moved(x, by), moved(kernel, by + 1), moved(grad, by)
        for got, wanted in zip(
            (invocupy.involution(a, b, out=moved(grad, 3)), *invocupy.involution_backward(c, a, b)),
            aligned,
            strict=True,
        ):
            assert (got == wanted).all()


def test_views_of_any_strides(cp: Any) -> None:
    (x, kernel, _), wide, _ = operands(cp, "odd width", np.dtype("float32"))
    out = invocupy.involution(cp.asfortranarray(x)[..., ::-1], kernel[:, :, ::-1])
    flipped = (wide[0][..., ::-1], wide[1][:, :, ::-1])
    assert_close(out, reference.involution, *flipped, terms=25)


def all_results(x: Any, kernel: Any, grad: Any) -> tuple[Any, ...]:
    return invocupy.involution(x, kernel), *invocupy.involution_backward(grad, x, kernel)


def test_graph(cp: Any, device: None) -> None:
    """After a call to warm up, a CUDA graph holds the launches and nothing else runs."""
    x, kernel, grad = operands(cp, "k7", np.dtype("float32"))[0]
    wanted = all_results(x, kernel, grad)  # compiles, outside of the graph
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        results = all_results(x, kernel, grad)
        graph = stream.end_capture()
        for result in results:
            result.fill(cp.nan)
        graph.launch()
    stream.synchronize()
    assert all((a == b).all() for a, b in zip(results, wanted, strict=True))
    kernel *= 2
    graph.launch(stream)
    stream.synchronize()
    assert (results[0] == 2 * wanted[0]).all(), "the graph reads its inputs anew"


SPIN = r"""
extern "C" __global__ void spin(long long cycles) {
    const long long start = clock64();
    while (clock64() - start < cycles) {}
}
"""


def test_current_stream_and_no_waiting(
    cp: Any, device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls return while the stream is busy, and run on it in order; the switch makes them wait."""
    x, kernel, grad = operands(cp, "k3", np.dtype("float32"))[0]
    wanted = all_results(x, kernel, grad)
    spin = cp.RawKernel(SPIN, "spin")
    spin((1,), (1,), (np.int64(1),))
    stream, busy = cp.cuda.Stream(non_blocking=True), cp.cuda.Event()
    with stream:
        # Now, not below: compiling takes longer than the spinning, and the stream's memory pool
        # gets blocks from CUDA, which may wait.
        other = cp.ones_like(x)
        other *= x
        results = all_results(other, kernel, grad)
        other.fill(1)
        stream.synchronize()
        del results
        spin((1,), (1,), (np.int64(1_000_000_000),))  # some 0.5 s
        busy.record(stream)
        assert not busy.done, "the stream should be busy for the test to mean anything"
        other *= x  # on the same stream, after the spinning
        results = all_results(other, kernel, grad)
        assert not busy.done, "a call waited for its stream"
        stream.synchronize()
        assert all((a == b).all() for a, b in zip(results, wanted, strict=True))

        monkeypatch.setenv("INVOCUPY_CUDA_SYNC", "1")
        spin((1,), (1,), (np.int64(100_000_000),))
        busy.record(stream)
        invocupy.involution(x, kernel)
        assert busy.done, "INVOCUPY_CUDA_SYNC=1 did not wait"


def test_tape(cp: Any) -> None:
    (x, kernel, grad), _, _ = operands(cp, "k3", np.dtype("float32"))
    leaves = [invocupy.Tensor(a, requires_grad=True) for a in (x, kernel)]
    invocupy.involution(*leaves).backward(grad)
    for leaf, wanted in zip(leaves, invocupy.involution_backward(grad, x, kernel), strict=True):
        assert (leaf.grad == wanted).all()


def test_each_device(cp: Any) -> None:
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two CUDA devices")
    for current, own in ((0, 1), (1, 0)):
        with cp.cuda.Device(own):
            x, kernel, _ = operands(cp, "k3", np.dtype("float32"))[0]
        with cp.cuda.Device(current):
            out = invocupy.involution(x, kernel)
            turned = invocupy.involution(x[..., ::-1], kernel)
        assert (out.device.id, turned.device.id) == (own, own)  # copies are made there too
    with cp.cuda.Device(current):
        elsewhere = cp.zeros(kernel.shape, kernel.dtype)
    with pytest.raises(ValueError, match="x is on <CUDA Device 0> and kernel on <CUDA Device 1>"):
        invocupy.involution(x, elsewhere)


def test_offsets_past_32_bits(cp: Any) -> None:
    """The last image of a batch of 2**31 elements and more comes out as it does by itself."""
    batch, shape, kernel_shape = 516, (64, 256, 256), (1, 3, 3, 256, 256)
    if cp.cuda.runtime.memGetInfo()[0] < 24 * 2**30:
        pytest.skip("needs 24 GB of free device memory")
    half = np.dtype("float16")
    x, kernel, grad = (cp.zeros((batch, *s), half) for s in (shape, kernel_shape, shape))
    assert x.size > 2**31
    for i, array in enumerate((x, kernel, grad)):
        array[-1] = draw(cp, array.shape[1:], half, i)[0]
    last = [array[-1:] for array in (x, kernel, grad)]
    for function in (
        lambda x, kernel, grad: (invocupy.involution(x, kernel),),
        lambda x, kernel, grad: invocupy.involution_backward(grad, x, kernel),
    ):
        for whole, alone in zip(function(x, kernel, grad), function(*last), strict=True):
            assert (whole[-1:] == alone).all()
            assert not whole[0].any()
        cp.get_default_memory_pool().free_all_blocks()
