"""Calls of the CUDA backend of involution_block: problems as in ``cases.py``.

A block has three norms, behind ReLUs: no bound follows from a chain of roundings alone. An error is
judged relative to the largest value of its result; ``ROUNDINGS`` says how many, and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from invocupy.arrays import namespace
from invocupy.backends.cuda import involution_block as device
from invocupy.backends.reference import involution_block as reference
from invocupy.backends.signatures import Kept
from invocupy.geometry import Geometry

from .cases import DTYPES, Problem, aligned, poisoned

EPS = (1e-5, 1e-3, 1e-4)
FUNCTIONS = ("train", "gradients", "forward")
# Of the accumulator, in units of the largest value of a result. A value passes some 100 roundings
# of its own terms (channels, hidden channels of a group, features, taps), whose errors have no
# common sign, and three divisions by a standard deviation that is not far below 1. The largest
# errors that the families show are 21 roundings forward and 38 backward.
ROUNDINGS = {"train": 64, "gradients": 128, "forward": 64}
# Of a half type: what a kernel hands to the next is rounded to it (shares, reduced, projected;
# backward the gradients of the first two, and the slices of that of x), each by half a unit of the
# largest. They show up to 2.7 of these; a wrong pixel is hundreds. Evaluation rounds only y.
HALF_ROUNDINGS = {"train": 4, "gradients": 6, "forward": 1}


@dataclass(frozen=True)
class Family:
    """What specialisations of the kernels depend on."""

    channels: int = 3
    hidden: int = 64
    features: int = 16
    groups: int = 4
    kernel: tuple[int, int] = (3, 3)
    dilation: tuple[int, int] = (1, 1)
    width: int = 36  # of images: two tiles of each shape, the last ragged
    relu: bool = True
    offsets: tuple[int, ...] = (0,)  # elements by which arrays start after a 256-byte boundary


# Lanes of grad_perceive have two hidden channels where features are at most 16, one otherwise.
FAMILIES = {
    "article": Family(),
    "odd": Family(hidden=20, features=4, groups=2, width=33, relu=False),
    "slices": Family(2, 150, 6, 3, width=14, offsets=(0, 1, 2, 3)),
    "k5": Family(4, 40, 17, 1, (5, 5), width=20),
    "k7": Family(1, 12, 5, 2, (7, 7), width=38, relu=False),
    "dilated": Family(3, 66, 33, 2, dilation=(2, 2), width=35),
    "mixed": Family(5, 7, 1, 1, (3, 5), (3, 1), width=9),
    "wide": Family(3, 96, 32, 3, width=16, offsets=(1, 0, 2, 5, 3)),
}


def fits(function: str, family: str, dtype: str) -> bool:
    """Whether the kernels take a block of these sizes: fewer fit into shared memory in float64."""
    f = FAMILIES[family]
    itemsize = 8 if dtype == "float64" else 4
    sizes = device.Sizes(f.channels, f.hidden, f.features, f.groups, f.kernel, f.dilation, itemsize)
    return device.evaluation(sizes, 1, 1)[0] > 0 if function == "forward" else sizes.fit()


def block(
    function: str, family: str, dtype: str = "float32", *, batch: int = 2, height: int = 9,
    width: int = 0, seed: int = 0,
) -> Problem:  # fmt: skip
    """A call of ``train``, ``gradients`` or ``forward``."""
    f, kind, wide = FAMILIES[family], DTYPES[dtype], np.dtype(np.float64)
    sums = wide if kind == wide else np.dtype(np.float32)
    c, d, h, k = f.channels, f.hidden, f.features, f.groups
    size, taps = (height, width or f.width), k * f.kernel[0] * f.kernel[1]
    x_shape, shares = (batch, c, *size), (batch, k * c, *size)
    g = Geometry.of(shares, (batch, k, *f.kernel, *size), padding="same", dilation=f.dilation)
    vectors = [(d,)] * 3, [(h,)] * 3, [(taps,)], [(c,)] * 3
    weights = (d, c, 1, 1), (h, d, 1, 1), (taps, h, 1, 1), (c, d, 1, 1)
    shapes = [s for weight, rest in zip(weights, vectors, strict=True) for s in (weight, *rest)]
    norms = [(n,) for n in (d, d, h, h, c, c)]
    stats = (Kept.statistics(c, d, h)[-1].stop,)
    kept = [((batch, h, *size), kind), (shares, kind), (x_shape, kind), (stats, sums)]
    random = np.random.default_rng(seed)

    def drawn(shape: tuple[int, ...]) -> Any:
        values = random.standard_normal(shape)
        return values if len(shape) < 4 else values / np.prod(shape[1:2]) ** 0.5

    x = (random.standard_normal(x_shape) + 2).astype(kind)  # a stream has a mean
    parameters = [drawn(shape).astype(kind) for shape in shapes]
    x64, parameters64 = x.astype(wide), [p.astype(wide) for p in parameters]
    eps, relu = EPS, f.relu
    if function == "train":
        inputs = [x, *parameters]
        fills = [(x_shape, kind), *kept]
    elif function == "forward":
        moments = [np.abs(random.standard_normal(n)) + 0.5 for n in norms]
        inputs = [x, *parameters, *(m.astype(sums) for m in moments)]
        fills = [(x_shape, kind)]
    else:
        exact = Kept(*(np.empty(shape) for shape, _ in kept))
        reference.train(x64, parameters64, eps, relu, g, np.empty(x_shape), exact)
        saved = [a.astype(t) for a, (_, t) in zip(exact, kept, strict=True)]
        inputs = [random.standard_normal(x_shape).astype(kind), x, *parameters, *saved]
        fills = [(x_shape, kind), *((shape, kind) for shape in shapes)]

    def call(module: Any, inputs: list[Any], results: list[Any]) -> None:
        if function == "train":
            module.train(inputs[0], inputs[1:], eps, relu, g, results[0], Kept(*results[1:]))
        elif function == "forward":
            module.forward(inputs[0], inputs[1:15], inputs[15:], eps, relu, g, *results)
        else:
            grad, x, *rest = inputs
            saved = Kept(*rest[14:])
            module.gradients(grad, x, rest[:14], saved, eps, relu, g, results[0], results[1:])

    def judge(inputs: list[Any], results: list[Any]) -> None:
        """The first norm's moments follow from those of x: rounded, they are no measure where a
        weight of expand is small beside its bias."""
        if function == "gradients":
            *rest, stats = inputs
            center, covariance = (stats[part] for part in Kept.statistics(c, d, h)[:2])
            weight = inputs[2].reshape(d, c)
            exact = weight @ center + inputs[3], (weight @ covariance.reshape(c, c) * weight).sum(1)
            inputs = [*rest, stats.copy()]
            for part, values in zip(Kept.statistics(c, d, h)[2:4], exact, strict=True):
                inputs[-1][part] = values
        call(reference, inputs, results)

    def largest(inputs: list[Any]) -> list[Any]:
        exact = [np.empty(shape) for shape, _ in fills]
        judge(inputs, exact)
        half = 2.0**13 if dtype == "float16" else 2.0**16 if dtype == "bfloat16" else 0
        terms = ROUNDINGS[function] + half * HALF_ROUNDINGS[function]
        sizes = [np.abs(a).max() for a in exact]
        if function == "gradients":  # of expand: a difference, which for one channel is nearly 0
            _, _, expand, _, gamma, *_, stats = inputs
            _, covariance, _, var, *_ = (stats[part] for part in Kept.statistics(c, d, h))
            norm = expand.reshape(d, c) @ covariance.reshape(c, c)
            factor = gamma * exact[3] / (var + eps[0])
            sizes[1] = max(sizes[1], np.abs(factor[:, None] * norm).max())
        return [np.full(a.shape, terms * n) for a, n in zip(exact, sizes, strict=True)]

    def offset(number: int) -> int:
        return f.offsets[number % len(f.offsets)]

    assert fits(function, family, dtype), "the reference would run"
    return Problem(
        name=f"involution_block.{function} {family} {dtype} {x_shape}",
        device=lambda i, r: call(device, i, r),
        reference=judge,
        inputs=[aligned(a, offset(i)) for i, a in enumerate(inputs)],
        results=lambda: [poisoned(*fill, offset(i + 1)) for i, fill in enumerate(fills)],
        magnitudes=largest,
        terms=1,
    )


def running(dtype: str, hidden: int = 300, features: int = 7, channels: int = 3) -> Problem:
    """New running statistics; the counts of batches are compared as numbers of ``dtype``."""
    kind, momenta, unbiased = DTYPES[dtype], (0.1, 0.5, 1.0), 1.25
    random = np.random.default_rng(0)
    sizes = hidden, features, channels
    stats = random.standard_normal(Kept.statistics(channels, hidden, features)[-1].stop)
    olds = [random.standard_normal(n) for n in sizes for _ in (0, 1)]
    shapes = [shape for n in sizes for shape in ((n,), (n,), ())]

    def triples(arrays: list[Any]) -> list[Any]:
        return [arrays[i : i + 3] for i in (0, 3, 6)]

    def call(module: Any, inputs: list[Any], results: list[Any]) -> None:
        stats, *olds = inputs
        news = list(results)
        for i in (2, 5, 8):
            news[i] = namespace(stats).full((), -1, olds[i].dtype)
        module.running(stats, triples(olds), momenta, unbiased, triples(news))
        for i in (2, 5, 8):
            results[i][...] = news[i]

    def magnitudes(inputs: list[Any]) -> list[Any]:
        sizes = [np.empty(shape) for shape in shapes]
        call(reference, list(map(np.abs, inputs)), sizes)
        return sizes

    counts = [np.array(n) for n in (0, 41, 1000)]
    arrays = [stats, *(a for i in (0, 1, 2) for a in (*olds[2 * i : 2 * i + 2], counts[i]))]
    return Problem(
        name=f"involution_block.running {dtype} {sizes}",
        device=lambda i, r: call(device, i, r),
        reference=lambda i, r: call(reference, i, r),
        inputs=[aligned(a.astype(kind) if a.dtype.kind == "f" else a) for a in arrays],
        results=lambda: [poisoned(shape, kind, 0) for shape in shapes],
        magnitudes=magnitudes,
        terms=5,  # 1 - momentum and its product, two products, the sum
    )
