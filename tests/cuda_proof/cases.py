"""What the proof runs: every function of the involution and batch norm backends, on NumPy arrays.

A :class:`Family` fixes what specialisations depend on, so that few are built, a :class:`Case` adds
sizes. :func:`run` calls a function of the library's CUDA backend with poisoned results,
:func:`check` compares with the reference in float64 under an error bound that is derived:
``terms`` roundings of the accumulator for each of the summed products, one rounding of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from invocupy.backends.involution import cuda as device
from invocupy.backends.involution import reference
from invocupy.geometry import Geometry, output_size, padding_pair, pair

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


@dataclass(frozen=True)
class Family:
    """Options of a layer; ``few`` makes small arrays count as few, so that threads own little."""

    kernel: tuple[int, int] = (3, 3)
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
    "k7-few-odd": Family((7, 7), per_group=12, unit=1, features=5, few=True),
    "k3-ragged-even": Family(per_group=18, unit=2, features=6),
    "k3-stride2": Family(stride=2, unit=8),
    "k7-stride2-odd": Family((7, 7), stride=2, unit=1),
    "k3-dilated-unaligned": Family(dilation=2, offset=1),
    "k2x3-mixed": Family((2, 3), (2, 1), (1, 0), (1, 3), per_group=3, unit=2, features=3),
    "k1": Family((1, 1), stride=(1, 3), padding=0, per_group=1, unit=4, features=1),
    "k9x11-valid": Family((9, 11), padding="valid", per_group=2, unit=4, features=2),
}


@dataclass(frozen=True)
class Case:
    """One problem of a family."""

    family: Family
    dtype: np.dtype[Any]
    batch: int = 2
    groups: int = 2
    height: int = 9
    width_units: int = 1
    seed: int = 0
    geometry: Geometry = field(init=False)

    def __post_init__(self) -> None:
        f = self.family
        stride, dilation = pair("stride", f.stride, 1), pair("dilation", f.dilation, 1)
        padding = padding_pair(f.padding, f.kernel, dilation)
        least = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, f.kernel, padding, strict=True)]
        units = self.width_units
        while units * f.unit < least[1]:
            units += 2
        size = (max(self.height, least[0]), units * f.unit)
        out = map(output_size, size, f.kernel, stride, padding, dilation)
        x = (self.batch, self.groups * f.per_group, *size)
        kernel = (self.batch, self.groups, *f.kernel, *out)
        options = {"stride": f.stride, "padding": f.padding, "dilation": f.dilation}
        object.__setattr__(self, "geometry", Geometry.of(x, kernel, **options))

    def shape(self, name: str) -> tuple[int, ...]:
        g, f = self.geometry, self.family
        taps = g.groups * g.kernel_h * g.kernel_w
        return {
            "x": g.x_shape, "kernel": g.kernel_shape, "out": g.out_shape, "grad": g.out_shape,
            "features": (g.batch, f.features, g.out_h, g.out_w), "weight": (taps, f.features),
            "bias": (taps,),
        }[name]  # fmt: skip

    def inputs(self, function: str) -> list[np.ndarray]:
        random = np.random.default_rng(self.seed)
        offset = self.family.offset
        return [
            aligned(random.standard_normal(self.shape(name)).astype(self.dtype), offset)
            for name in INVOLUTION[function][0]
        ]

    def results(self, function: str) -> list[np.ndarray]:
        nan = self.dtype.type(np.nan)
        return [
            aligned(np.full(self.shape(name), nan, self.dtype), self.family.offset)
            for name in INVOLUTION[function][1]
        ]

    def terms(self, function: str) -> int:
        """The longest chain of roundings behind one element of a result."""
        g, f = self.geometry, self.family
        taps, positions = g.kernel_h * g.kernel_w, g.batch * g.out_h * g.out_w
        return 4 + {
            "forward": taps,
            "grad_x": taps,
            "grad_kernel": g.channels_per_group,
            "fused_forward": taps + f.features,
            "fused_grad_x": taps + f.features,
            "fused_grad_span": g.channels_per_group + max(g.groups * taps, positions),
        }[function]


def aligned(array: np.ndarray, offset: int = 0) -> np.ndarray:
    """A copy that starts ``offset`` elements after a 256-byte boundary, as CuPy's arrays start on one."""
    room = np.empty(array.nbytes + 512 + offset * array.itemsize, np.uint8)
    start = -room.ctypes.data % 256 + offset * array.itemsize
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def run(function: str, case: Case, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Call the backend; whoever calls this has installed something to run kernels on."""
    results = case.results(function)
    enough = device._ENOUGH if case.family.few else 1
    before = [array.tobytes() for array in inputs]
    with mock.patch.object(device, "_ENOUGH", enough):
        getattr(device, function)(*inputs, case.geometry, *results)
    assert [array.tobytes() for array in inputs] == before, "an input was written"
    return results


def check(function: str, case: Case, inputs: list[np.ndarray], results: list[np.ndarray]) -> None:
    """Compare with the reference; a NaN left over from the poison fails too."""
    wide = [array.astype(np.float64) for array in inputs]
    want, size = ([np.empty(r.shape) for r in results] for _ in range(2))
    getattr(reference, function)(*wide, case.geometry, *want)
    getattr(reference, function)(*map(np.abs, wide), case.geometry, *size)
    names = INVOLUTION[function][1]
    for name, got, exact, magnitude in zip(names, results, want, size, strict=True):
        compare(f"{function}: {name}", got, exact, magnitude, case.terms(function))


def compare(
    what: str, got: np.ndarray, exact: np.ndarray, magnitude: np.ndarray, terms: int
) -> None:
    """``|got - exact| <= terms * u * magnitude``, and half a unit in the last place of ``got``."""
    info, tiny = ml_dtypes.finfo(got.dtype), float(ml_dtypes.finfo(got.dtype).smallest_subnormal)
    unit = 2.0**-53 if got.dtype == np.float64 else 2.0**-24
    bound = terms * unit * magnitude * 1.01
    bound = bound + float(info.eps) / 2 * (np.abs(exact) + bound) + tiny
    error = np.abs(got.astype(np.float64) - exact)
    if not (good := error <= bound).all():
        at = np.unravel_index(int(np.argmin(good)), good.shape)
        raise AssertionError(
            f"{what}{[int(k) for k in at]} is {got[at]}, should be {exact[at]} +- {bound[at]:.2g}; "
            f"{int((~good).sum())} of {good.size} are wrong"
        )
