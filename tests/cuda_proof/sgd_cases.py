"""What the proof runs of SGD and averages, as ``cases`` has the rest."""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy.backends.cpu import sgd as reference
from invocupy.backends.cuda import sgd as device

from . import cases


def sgd(
    dtype: str, sizes: tuple[tuple[int, ...], ...], *, momentum: float = 0.9,
    nesterov: bool = False, seed: int = 0,
) -> cases.Problem:  # fmt: skip
    """A step on parameters of these shapes; each third has no velocity yet, each second decays."""
    kind, count = cases.DTYPES[dtype], len(sizes)
    random = np.random.default_rng(seed)
    decays = [0.01 * (i % 2) for i in range(count)]
    options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov}
    inputs = [cases.aligned(random.standard_normal(s).astype(kind)) for s in sizes * 3]
    for i in range(2 * count, 3 * count):
        if i % 3 == 0 or not momentum:
            inputs[i] = None

    def call(function: Any, inputs: list[Any], results: list[Any], **options: Any) -> None:
        given = (inputs[:count], inputs[count : 2 * count], inputs[2 * count :])
        made = function(*given, decays, **options)
        for result, array in zip(results, (*made[0], *made[1]), strict=True):
            assert (result is None) == (array is None)
            if result is not None:
                result[...] = array

    def magnitudes(inputs: list[Any]) -> list[Any]:
        sizes = [None if r is None else np.empty(r.shape) for r in results()]
        sized = [None if a is None else np.abs(a) for a in inputs]
        call(reference.update, sized, sizes, **options | {"lr": -0.1})
        return sizes

    def results() -> list[Any]:
        arrays = [cases.poisoned(shape, kind, 0) for shape in sizes * 2]
        return arrays if momentum else arrays[:count] + [None] * count

    return cases.Problem(
        name=f"sgd {dtype} {count} arrays, momentum {momentum}, nesterov={nesterov}",
        device=lambda i, r: call(device.update, i, r, **options),
        reference=lambda i, r: call(reference.update, i, r, **options),
        inputs=inputs,
        results=results,
        magnitudes=magnitudes,
        terms=10,
    )


def average(dtype: str, sizes: tuple[tuple[int, ...], ...], seed: int = 0) -> cases.Problem:
    """Moving averages of arrays of these shapes."""
    kind, count, random = cases.DTYPES[dtype], len(sizes), np.random.default_rng(seed)
    inputs = [cases.aligned(random.standard_normal(size).astype(kind)) for size in sizes]
    wide = np.float64 if dtype == "float64" else np.float32
    inputs += [cases.aligned(random.standard_normal(size).astype(wide)) for size in sizes]

    def call(backend: Any, inputs: list[Any], results: list[Any], share: float = 0.25) -> None:
        averages = [array.copy() for array in inputs[count:]]
        backend.average(averages, inputs[:count], share)
        for result, array in zip(results, averages, strict=True):
            result[...] = array

    def magnitudes(inputs: list[Any]) -> list[Any]:
        return [np.abs(a) + np.abs(b) for a, b in zip(inputs[:count], inputs[count:], strict=True)]

    return cases.Problem(
        name=f"average {dtype} {count} arrays",
        device=lambda i, r: call(device, i, r),
        reference=lambda i, r: call(reference, i, r),
        inputs=inputs,
        results=lambda: [cases.poisoned(size, wide, 0) for size in sizes],
        magnitudes=magnitudes,
        terms=4,
    )
