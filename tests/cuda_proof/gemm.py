"""cublasGemmStridedBatchedEx by NVIDIA's documentation of it, in NumPy, on addresses.

It reads and writes columns first, as cuBLAS does, and nothing beyond the memory that is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from invocupy.backends import cuda

KINDS = {"CUDA_R_32F": 0, "CUDA_R_64F": 1, "CUDA_R_16F": 2, "CUDA_R_16BF": 14}
_DTYPES = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float64),
    2: np.dtype(np.float16),
    14: np.dtype(ml_dtypes.bfloat16),
}
_COMPUTE_32F, _COMPUTE_64F, _DEFAULT = 68, 70, -1


def cublas(room: Callable[[int], int], own: Callable[[], int]) -> Any:
    """What is used of ``cupy.cuda.cublas``.

    Parameters
    ----------
    room
        How many bytes there are from an address on.
    own
        The handle that a call must bring along.
    """

    def matrices(
        at: int, kind: int, apart: int, step: int, rows: int, columns: int, batch: int
    ) -> Any:
        assert apart >= max(rows, 1), "leading dimension"
        dtype = _DTYPES[kind]
        size = ((batch - 1) * step + (columns - 1) * apart + rows) * dtype.itemsize
        assert size <= room(at), "out of bounds"
        flat = np.frombuffer((ctypes.c_char * size).from_address(at), dtype)
        strides = [n * dtype.itemsize for n in (step, 1, apart)]
        return np.lib.stride_tricks.as_strided(flat, (batch, rows, columns), strides)

    def number(at: int, kind: int) -> float:
        _use_freed_memory()
        return (ctypes.c_double if kind == 1 else ctypes.c_float).from_address(at).value

    def gemm(
        handle: int, turn_a: int, turn_b: int, m: int, n: int, k: int, alpha: int,
        a: int, kind_a: int, lda: int, step_a: int, b: int, kind_b: int, ldb: int, step_b: int,
        beta: int, c: int, kind_c: int, ldc: int, step_c: int, batch: int, compute: int, how: int,
    ) -> None:  # fmt: skip
        assert (handle, how, kind_a) == (own(), _DEFAULT, kind_b)
        assert compute == (_COMPUTE_64F if kind_a == 1 else _COMPUTE_32F), "sums, never in TF32"
        assert kind_c in (kind_a, 0)
        factors = number(alpha, kind_a), number(beta, kind_a)
        assert factors in ((1, 0), (1, 1)), f"alpha and beta are {factors}"
        left = matrices(a, kind_a, lda, step_a, *((k, m) if turn_a else (m, k)), batch)
        right = matrices(b, kind_b, ldb, step_b, *((n, k) if turn_b else (k, n)), batch)
        left = left.swapaxes(1, 2) if turn_a else left
        right = right.swapaxes(1, 2) if turn_b else right
        result = matrices(c, kind_c, ldc, step_c, m, n, batch)
        with np.errstate(all="ignore"):  # cuBLAS warns of nothing, whatever was in memory
            product = left.astype(np.float64) @ right.astype(np.float64)
            result[...] = product + (result if factors[1] else 0)  # with 0 it is not read

    return SimpleNamespace(
        gemmStridedBatchedEx=gemm, CUBLAS_COMPUTE_32F=_COMPUTE_32F,
        CUBLAS_COMPUTE_64F=_COMPUTE_64F, CUBLAS_GEMM_DEFAULT=_DEFAULT,
    )  # fmt: skip


def _use_freed_memory() -> None:
    """Fill what was small and freed just now, so that it cannot seem to be alive."""
    for size in (4, 8, 12, 16):
        _ = [np.full(size, 0xFF, np.uint8) for _ in range(16)]


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """A CuPy that has nothing but a cuBLAS, within arrays whose addresses were asked for."""
    sizes: dict[int, int] = {}  # in bytes, by address

    def address(array: Any) -> int:
        sizes[array.ctypes.data] = array.nbytes
        return array.ctypes.data

    cupy, device = ModuleType("cupy"), ModuleType("cupy.cuda")
    cupy.ndarray = type("ndarray", (), {})
    cupy.cuda = device
    device.runtime = SimpleNamespace(**KINDS)
    device.cublas = cublas(sizes.__getitem__, lambda: 7)
    device.get_cublas_handle = lambda: 7
    with (
        mock.patch.dict(sys.modules, {"cupy": cupy, "cupy.cuda": device}),
        mock.patch.object(cuda, "address", address),
    ):
        yield
