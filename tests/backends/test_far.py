"""Windows that reach far beyond the image: right results, in memory that the image bounds."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from math import prod
from typing import Any

import numpy as np
import pytest
from bounds import roundoff

import invocupy
from invocupy import backends, ops
from invocupy.backends import far
from invocupy.backends.cuda import convolution as convolution_on_gpu
from invocupy.backends.cuda import involution as involution_on_gpu
from invocupy.geometry import Geometry, output_size
from invocupy.ops.block import involution_block

# size of x and kernel, stride, padding (None: half of the reach), dilation
WINDOWS = [
    ((4, 4), (3, 3), (1, 1), None, (10**9, 10**9)),
    ((4, 4), (3, 3), (1, 1), None, (2**31 - 1, 2**31 - 1)),
    ((6, 7), (3, 3), (1, 1), None, (100, 200)),
    ((3, 3), (5, 5), (1, 1), None, (1, 90)),  # one axis only
    ((5, 5), (2, 2), (1, 1), (502, 502), (1000, 1000)),  # no tap sees anything somewhere
    ((4, 4), (2, 2), (1, 1), (5 * 10**8, 5 * 10**8), (10**9, 10**9)),  # nor anywhere
    ((4, 5), (3, 3), (10**9, 10**9), (2 * 10**9, 2 * 10**9), (10**9, 10**9)),
    ((4, 4), (2, 3), (5 * 10**8, 1), (5 * 10**8, 1), (5 * 10**8, 1)),
    ((4, 4), (3, 3), (10**6, 2), (10**6, 1), (1, 1)),  # a stride from padding to padding
    ((40, 30), (3, 3), (1, 1), None, (300, 299)),
]
windows = pytest.mark.parametrize("window", WINDOWS, ids=str)


def geometry(window: Any, channels: int = 4, groups: int = 2) -> Geometry:
    size, kernel, stride, padding, dilation = window
    padding = padding or tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    out = map(output_size, size, kernel, stride, padding, dilation)
    x, taps = (2, channels, *size), (2, groups, *kernel, *out)
    return Geometry.of(x, taps, stride, padding, dilation)


def expected(g: Geometry, x: Any, kernel: Any, grad: Any) -> tuple[Any, Any, Any]:
    """Value and gradients by the formula, of the pairs of output and tap that see a pixel."""
    out, grad_x, grad_kernel = np.zeros(g.out_shape), np.zeros(x.shape), np.zeros(kernel.shape)

    def pairs(out: int, taps: int, stride: int, pad: int, dilation: int, size: int) -> Any:
        seen = [(i, u, i * stride + u * dilation - pad) for i in range(out) for u in range(taps)]
        return [pair for pair in seen if 0 <= pair[2] < size]

    axes = zip(g.out, g.kernel, g.stride, g.padding, g.dilation, g.size, strict=True)
    down, across = (pairs(*axis) for axis in axes)
    group = np.arange(g.channels) // g.channels_per_group
    for (i, u, y), (j, v, z) in itertools.product(down, across):
        factor = kernel[:, group, u, v, i, j]
        out[:, :, i, j] += factor * x[:, :, y, z]
        grad_x[:, :, y, z] += factor * grad[:, :, i, j]
        share = (grad[:, :, i, j] * x[:, :, y, z]).reshape(g.batch, g.groups, -1).sum(axis=2)
        grad_kernel[:, :, u, v, i, j] += share
    return out, grad_x, grad_kernel


def close(result: Any, right: Any) -> None:
    """Equal up to the rounding of sums of fewer than 10,000 products below 10."""
    assert result.shape == right.shape
    np.testing.assert_allclose(result, right, rtol=0, atol=10 * roundoff("float64", 10_000))


def options(g: Geometry) -> dict[str, Any]:
    return {"stride": g.stride, "padding": g.padding, "dilation": g.dilation}


@windows
def test_involution(window: Any) -> None:
    g, rng = geometry(window), np.random.default_rng(1)
    # A padding past 2**31 - 1 comes from "same" only, which asks for an odd kernel.
    given = options(g) if g.padding[0] < 1 << 31 else options(g) | {"padding": "same"}
    x, kernel, grad = map(rng.standard_normal, (g.x_shape, g.kernel_shape, g.out_shape))
    value, (grad_x, grad_kernel) = ops.involution(x, kernel, **given)
    for result, right in zip(
        (value, grad_x(grad), grad_kernel(grad)), expected(g, x, kernel, grad), strict=True
    ):
        close(result, right)


def test_involution_on_a_gpu() -> None:
    """The CUDA source, built by g++: no window reaches farther than its registers do."""
    from cuda_proof import host  # or skip: it needs NVIDIA's compiler

    g, rng = geometry(WINDOWS[2]), np.random.default_rng(6)
    x, kernel, grad = map(rng.standard_normal, (g.x_shape, g.kernel_shape, g.out_shape))
    results = np.empty(grad.shape), np.empty(x.shape), np.empty(kernel.shape)
    with host.installed(host.Machine().compile):
        involution_on_gpu.forward(x, kernel, g, results[0])
        involution_on_gpu.grad_x(grad, kernel, g, results[1])
        involution_on_gpu.grad_kernel(grad, x, g, results[2])
    for result, right in zip(results, expected(g, x, kernel, grad), strict=True):
        close(result, right)


@pytest.mark.parametrize("dims", [1, 3])
def test_involution_in_other_dimensions(dims: int) -> None:
    rng = np.random.default_rng(4)
    image, kernel, dilation = (2, 3, 7)[-dims:], (3, 1, 3)[-dims:], (90, 1, 200)[-dims:]
    shapes = (2, 4, *image), (2, 2, *kernel, *image), (2, 4, *image)
    x, taps, grad = (rng.integers(-3, 4, shape).astype("float32") for shape in shapes)
    features, weight = (
        rng.integers(-3, 4, shape).astype("float32")
        for shape in ((2, 3, *image), (2 * prod(kernel), 3))
    )
    value, partials = ops.involution(x, taps, dilation=dilation)
    chosen = {"kernel_size": kernel, "dilation": dilation}
    fused, others = ops.fused_involution(x, features, weight, **chosen)
    results = [value, fused, *(partial(grad) for partial in (*partials, *others[:3]))]
    with backends.plain():
        right = [
            ops.involution(x, taps, dilation=dilation)[0],
            ops.fused_involution(x, features, weight, **chosen)[0],
            *ops.involution_backward(grad, x, taps, dilation=dilation),
            *ops.fused_involution_backward(grad, x, features, weight, **chosen)[:3],
        ]
    for result, wanted in zip(results, right, strict=True):
        assert (result == wanted).all()


@windows
def test_fused_involution(window: Any) -> None:
    g, rng = geometry(window), np.random.default_rng(2)
    given = options(g) if g.padding[0] < 1 << 31 else options(g) | {"padding": "same"}
    x, features = map(rng.standard_normal, (g.x_shape, (2, 3, *g.out)))
    weight = rng.standard_normal((g.groups * prod(g.kernel), 3))
    bias, grad = map(rng.standard_normal, (len(weight), g.out_shape))
    kernel = np.einsum("kf,nfij->nkij", weight, features) + bias[:, None, None]
    value, partials = ops.fused_involution(x, features, weight, bias, kernel_size=g.kernel, **given)
    right, grad_x, grad_kernel = expected(g, x, kernel.reshape(g.kernel_shape), grad)
    flat = grad_kernel.reshape(2, len(weight), *g.out)
    close(value, right)
    for partial, wanted in zip(
        partials,
        (
            grad_x, np.einsum("kf,nkij->nfij", weight, flat),
            np.einsum("nkij,nfij->kf", flat, features), flat.sum(axis=(0, 2, 3)),
        ),
        strict=True,
    ):  # fmt: skip
        close(partial(grad), wanted)


@windows
@pytest.mark.parametrize("groups", [4, 2, 1])  # depthwise, and products
def test_convolution(window: Any, groups: int) -> None:
    g, rng = geometry(window, 4, groups), np.random.default_rng(3)
    x, grad = map(rng.standard_normal, (g.x_shape, g.out_shape))
    weight = rng.standard_normal((4, 4 // groups, *g.kernel))
    bias = rng.standard_normal(4)
    # Channel o of the output sees each channel of its group by an involution of its own.
    value, grad_x, grad_weight = np.zeros(g.out_shape), np.zeros(x.shape), np.zeros(weight.shape)
    for o, c in itertools.product(range(4), range(4 // groups)):
        channel = slice(
            o * groups // 4 * (4 // groups) + c, o * groups // 4 * (4 // groups) + c + 1
        )
        one = geometry(window, 1, 1)
        taps = np.broadcast_to(weight[o, c, :, :, None, None], one.kernel_shape)
        parts = expected(one, x[:, channel], taps, grad[:, o : o + 1])
        value[:, o] += parts[0][:, 0]
        grad_x[:, channel] += parts[1]
        grad_weight[o, c] = parts[2].sum(axis=(0, 1, 4, 5))
    value += bias[:, None, None]
    given = options(g) if g.padding[0] < 1 << 31 else options(g) | {"padding": "same"}
    result, partials = ops.conv2d(x, weight, bias, groups=groups, **given)
    close(result, value)
    for partial, right in zip(
        partials, (grad_x, grad_weight, grad.sum(axis=(0, 2, 3))), strict=True
    ):
        close(partial(grad), right)
    # what CuPy's arrays get, in NumPy's
    looks, out = tuple(options(g).values()), np.empty(value.shape)
    convolution_on_gpu.forward(x, weight, bias, looks, out)
    close(out, value)
    results = np.empty(weight.shape), np.empty(4)
    convolution_on_gpu.grad_weight(grad, x, looks, *results)
    close(results[0], grad_weight)
    convolution_on_gpu.grad_x(grad, weight, looks, x)
    close(x, grad_x)


@pytest.mark.parametrize("moments", [False, True])
def test_block(moments: bool) -> None:
    """Only the middle row and column of taps sees anything."""
    rng = np.random.default_rng(4)
    hidden, width, taps = 8, 4, 9
    shapes: list[tuple[int, ...]] = [(hidden, 3, 1, 1), (hidden,), (hidden,), (hidden,)]
    shapes += [(width, hidden, 1, 1), (width,), (width,), (width,), (2 * taps, width, 1, 1)]
    shapes += [(2 * taps,), (3, hidden, 1, 1), (3,), (3,), (3,)]
    given = [rng.standard_normal(shape) for shape in shapes]
    norms = tuple((np.zeros(n), np.ones(n)) for n in (hidden, width, 3)) if moments else None
    x, grad = rng.standard_normal((2, 2, 3, 5, 6))

    def run(parameters: list[Any], size: int, dilation: int) -> list[Any]:
        value, partials = involution_block(
            x, *parameters, kernel_size=size, dilation=dilation, moments=norms
        )
        return [value, *(partial(grad) for partial in partials)]

    middle = [4, taps + 4]
    results = run(given, 3, 10**9)
    less = [*given[:8], given[8][middle], given[9][middle], *given[10:]]
    for place, (result, right) in enumerate(zip(results, run(less, 1, 1), strict=True)):
        if place in (10, 11):  # span's weight and bias
            assert not np.delete(result, middle, axis=0).any()
            result = result[middle]
        close(result, right)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "dilation"),
    [
        ((2, 4, 56, 56), (7, 7), 1, 1), ((2, 4, 14, 14), (3, 3), 1, 16),
        ((2, 4, 1, 1), (7, 7), 1, 1), ((2, 4, 224, 224), (7, 7), 2, 1),
        ((2, 4, 224, 224), (16, 16), 16, 1), ((2, 4, 65, 65), (3, 3), 1, 24),
    ],
)  # fmt: skip
def test_ordinary_windows_stay_as_they_are(
    shape: Any, kernel: Any, stride: int, dilation: int
) -> None:
    pad = tuple(dilation * (k - 1) // 2 for k in kernel)
    out = (
        output_size(*sizes)
        for sizes in zip(shape[2:], kernel, [stride] * 2, pad, [dilation] * 2, strict=True)
    )
    g = Geometry.of(shape, (2, 2, *kernel, *out), stride, pad, dilation)
    assert far.near_of(g) is None


@pytest.mark.parametrize("padding", [4, 5 * 10**8])
def test_pooling(padding: int) -> None:
    """Windows larger than the image."""
    rng, size = np.random.default_rng(5), 2 * padding
    x, grad = rng.standard_normal((2, 3, 6, 5)), rng.standard_normal((2, 3, 7, 6))
    for ours, options in ((ops.max_pool2d, {}), (ops.avg_pool2d, {"count_include_pad": False})):
        value, (partial,) = ours(x, size, 1, padding, **options)
        back = np.zeros(x.shape)
        for i, j in itertools.product(range(7), range(6)):
            rows, columns = (slice(max(k - padding, 0), k + padding) for k in (i, j))
            part, share = x[:, :, rows, columns], grad[:, :, i : i + 1, j : j + 1]
            if options:
                right = part.mean((2, 3), keepdims=True)
                back[:, :, rows, columns] += share / part[0, 0].size
            else:
                right = part.max((2, 3), keepdims=True)
                back[:, :, rows, columns] += np.where(part == right, share, 0)
            close(value[:, :, i : i + 1, j : j + 1], right)
        close(partial(grad), back)


CODE = """
import resource, sys
import numpy as np
import invocupy
from invocupy import backends, ops
from invocupy.backends import memory
x, kernel = np.ones((1, 16, 4, 4), "f4"), np.ones((1, 1, 3, 3, 4, 4), "f4")
weight, bias = np.ones((9, 2), "f4"), np.ones(9, "f4")
def everything(dilation):
    value, partials = ops.involution(x, kernel, dilation=dilation)
    value = [value, *(partial(value) for partial in partials)]
    result, partials = ops.fused_involution(
        x, x[:, :2], weight, bias, kernel_size=3, dilation=dilation)
    value += [result, *(partial(result) for partial in partials)]
    for groups in (1, 16):
        taps = np.ones((16, 16 // groups, 3, 3), "f4")
        result, partials = ops.conv2d(x, taps, padding="same", dilation=dilation, groups=groups)
        value += [result, *(partial(result) for partial in partials[:2])]
    return value
everything(1)
resource.setrlimit(resource.RLIMIT_AS, (resident := 4 << 30, resident))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for dilation in (100, 2000, 100_000, 10**9):
    result = everything(dilation)
    assert result[0].sum() == x.sum()
sys.exit(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 100 << 10)
"""


def test_memory_does_not_grow_with_the_dilation() -> None:
    environment = {**os.environ, "INVOCUPY_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", CODE], check=True, env=environment)


def test_half_precision_sums_are_wide() -> None:
    """A pixel that many taps see; on the CPU half types are computed in float32 anyhow."""
    g = geometry(((1, 1), (1, 1), (1, 1), (0, 0), (1, 1)))
    axis = far._Axis(slice(0, 4096), np.zeros(4096, np.int64))
    near = far.Near(g, g, (axis, None))
    out = np.empty((1, 1, 1, 1), np.float16)
    near.unseen(np.ones((1, 1, 4096, 1), np.float16), out)
    assert out == 4096


def test_a_dilation_past_the_largest_is_named() -> None:
    x, kernel = np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3, 4, 4))
    with pytest.raises(ValueError, match=r"dilation must be below 2\*\*31, got 4611686"):
        invocupy.involution(x, kernel, dilation=2**62)


def test_pooling_with_a_stride_beyond_the_image() -> None:
    """A second window starts inside, in ceil mode, and sees the rest of the image."""
    x = np.random.default_rng(7).standard_normal((2, 3, 5, 4))
    half = 5 * 10**8
    value, (partial,) = ops.avg_pool2d(
        x, 2 * half, (half + 2, half + 3), half, ceil_mode=True, count_include_pad=False
    )
    parts = [[x[:, :, a:, b:].mean(axis=(2, 3)) for b in (0, 3)] for a in (0, 2)]
    close(value, np.moveaxis(np.array(parts), (0, 1), (2, 3)))
    back = np.zeros(x.shape)
    for i, a in enumerate((0, 2)):
        for j, b in enumerate((0, 3)):
            back[:, :, a:, b:] += value[:, :, i : i + 1, j : j + 1] / x[0, 0, a:, b:].size
    close(partial(value), back)


ON_A_GPU = """
import numpy as np, cupy as cp
from invocupy import backends, ops
from invocupy.arrays import to_device
rng = np.random.default_rng(0)
x, kernel = rng.standard_normal((1, 4, 5, 6)), rng.standard_normal((1, 2, 3, 3, 5, 6))
features, span, bias = (rng.standard_normal(s) for s in ((1, 3, 5, 6), (18, 3), (18,)))
for dtype, error in (("float64", 1e-12), ("float16", 1e-2)):
    cases = [
        (ops.involution, (x, kernel), {"dilation": 10**9}),
        (ops.involution, (x, kernel), {"dilation": (1, 300)}),
        (ops.fused_involution, (x, features, span, bias), {"dilation": 500, "kernel_size": 3}),
    ] + [
        (ops.conv2d, (x, rng.standard_normal((4, 4 // groups, 3, 3)), bias[:4]),
         {"dilation": 10**9, "padding": "same", "groups": groups})
        for groups in (1, 2, 4)
    ] + [(op, (x, 10**9, 1, 5 * 10**8), {}) for op in (ops.max_pool2d, ops.avg_pool2d)]
    for op, given, options in cases:
        results = []
        for move in (lambda a: a.astype(dtype), lambda a: cp.asarray(a.astype(dtype))):
            arrays = [move(a) if isinstance(a, np.ndarray) else a for a in given]
            value, partials = op(*arrays, **options)
            results.append([value, *(partial(value) for partial in partials)])
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, to_device(other, "cpu"), rtol=error, atol=error)
"""


def test_arrays_of_cupy() -> None:
    """Its stand-in, which refuses what CuPy refuses."""
    from cuda_proof import host  # or skip

    environment = os.environ | {"PYTHONPATH": str(host.HERE.parent / "stand_in")}
    environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    subprocess.run([sys.executable, "-c", ON_A_GPU], check=True, env=environment)
