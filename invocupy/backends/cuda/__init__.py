"""The CUDA launcher: the one module that compiles ``.cu`` files into kernels and launches them.

The module of an op decides in plain Python what to launch (which macros, how many threads), which
works on NumPy arrays too; :func:`launch` launches it. Tests that run the same source on the CPU
replace two functions only: :func:`compile` ``(kernel, macros)``, which returns ``function(grid,
block, args)``, and :func:`address`, which returns the address of an array's first element.

A kernel is named by its file: ``involution/forward`` is the kernel ``forward`` in
``involution/forward.cu``, which includes the headers that it needs; ``batch_norm/channels:fold`` is
the kernel ``fold`` in ``batch_norm/channels.cu``. Each specialisation of a file is one module,
compiled when first used, cached on disk by CuPy and in memory for each device. Macros hold the
element type, what the layer fixes (kernel size, stride, padding, dilation), the width of memory
accesses and the work of one thread. They hold no batch or image size: a new size compiles nothing
unless it changes these widths. The text of all files goes into one string (:func:`source`), because
CuPy's disk cache hashes that string but not what it includes.

Kernels run on CuPy's current stream and on the device of their arrays, and nothing here waits for
them: after the first call of a specialisation a CUDA graph can capture them (:mod:`.graph`). With
``INVOCUPY_CUDA_SYNC=1`` in the environment every launch waits until its kernel has finished, so
that an error is raised at the call that caused it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from invocupy.arrays import Array, is_cupy, namespace, on_device
from invocupy.geometry import Geometry
from invocupy.settings import flag

Macros: TypeAlias = dict[str, str | int]
Function: TypeAlias = Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, ...]], None]

BLOCK = 128
"""Threads per block, of every kernel."""

WARPS = BLOCK // 32
"""Warps per block."""

SHARED = 48 << 10
"""Bytes of shared memory that a block may use."""

OPTIONS = ("-std=c++17", "-lineinfo")
"""Compiler options of every kernel."""

_TYPES = {
    "float16": ("__half", "float", "cuda_fp16.h"),
    "bfloat16": ("__nv_bfloat16", "float", "cuda_bf16.h"),
    "float32": ("float", "float", None),
    "float64": ("double", "double", None),
}
_INCLUDE = re.compile(r'^#include "(.*)"$', re.MULTILINE)


def element(dtype: Any) -> Macros:
    """The macros of an element type: the type of the arrays (SCALAR) and that of sums (ACCUM)."""
    scalar, accum, _ = _TYPES[dtype.name]
    return {"SCALAR": scalar, "ACCUM": accum}


def accumulator(array: Array) -> Any:
    """The dtype of sums of elements of ``array``."""
    return np.float64 if array.itemsize == 8 else np.float32


def workspace(like: Array, *shape: int) -> Array:
    """A new array for sums, not filled, on the device of ``like``."""
    with on_device(like):
        return namespace(like).empty(shape, accumulator(like))  # type: ignore[no-any-return]


def stored(like: Array, *shape: int) -> Array:
    """A new array of the dtype of ``like``, not filled, on its device."""
    with on_device(like):
        return namespace(like).empty(shape, like.dtype)  # type: ignore[no-any-return]


def source(kernel: str, macros: Macros) -> str:
    """The text of one specialisation: its macros, the kernel's headers, the kernel."""
    includes = {include for scalar, _, include in _TYPES.values() if scalar == macros["SCALAR"]}
    lines = [f"#include <{include}>" for include in includes if include]
    lines += [f"#define {name} {value}" for name, value in macros.items()]
    for file, text in _texts(f"{kernel.partition(':')[0]}.cu").items():
        # A path relative to the package: the text, and so the cache key, is the same everywhere.
        lines += [f'#line 1 "invocupy/backends/cuda/{file}"', text]
    return "\n".join(lines)


@cache
def _texts(file: str) -> dict[str, str]:
    """The texts of the files that a file includes, each once, then its own; paths are relative."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    texts: dict[str, str] = {}
    for header in _INCLUDE.findall(text):
        texts |= _texts(header)
    return texts | {file: _INCLUDE.sub("", text)}


def name_of(kernel: str) -> str:
    """The function's name: ``fold`` of ``batch_norm/channels:fold``."""
    return re.split("[/:]", kernel)[-1]


def compile(kernel: str, macros: Macros) -> Function:  # noqa: A001
    """A specialisation of a kernel, compiled at its first launch."""
    function: Function = _compile(kernel, tuple(macros.items()))
    return function


@cache
def _compile(kernel: str, macros: tuple[tuple[str, str | int], ...]) -> Function:
    import cupy

    # Compiled now for the current device, for others at the first launch there.
    module = cupy.RawModule(code=source(kernel, dict(macros)), options=OPTIONS)
    start = module.get_function(name_of(kernel))

    def function(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
        # CuPy passes a struct by value if it is given an array of one element.
        start(grid, block, tuple(np.asarray(a) if isinstance(a, np.void) else a for a in args))

    return function


def address(array: Any) -> int:
    """The address of the first element of ``array`` in device memory."""
    return int(array.data.ptr)


def launch(kernel: str, macros: Macros, threads: int, *args: Any, over: int = 0) -> None:
    """Launch a kernel with ``threads`` threads on the device of its first argument; nothing if 0.

    An int becomes a C ``int``, a float an ACCUM, ``None`` a null pointer, and a Geometry the struct
    of that name; NumPy scalars and arrays are passed as they are. ``over`` is the largest other
    number that an index of the kernel counts to, if it may exceed ``threads``.
    """
    if not threads:
        return
    # 32-bit index arithmetic is several times faster, and nearly always enough.
    small = threads + max(BLOCK, over) <= 2**32
    index = "unsigned int" if small else "unsigned long long"
    real = np.float64 if macros["ACCUM"] == "double" else np.float32
    with on_device(args[0]):
        function = compile(kernel, {**macros, "BLOCK": BLOCK, "INDEX": index})
        function((ceil_div(threads, BLOCK),), (BLOCK,), tuple(_argument(a, real) for a in args))
        if flag("INVOCUPY_CUDA_SYNC") and is_cupy(args[0]):
            import cupy

            cupy.cuda.get_current_stream().synchronize()


def _argument(value: Any, real: Any) -> Any:
    if value is None:
        return np.uint64(0)
    if isinstance(value, int):
        return np.int32(value)
    if isinstance(value, float):
        return real(value)
    return _record(value) if isinstance(value, Geometry) else value


@lru_cache(1024)
def _record(g: Geometry) -> Any:
    """Cached: making the record takes longer than a launch."""
    return g.record()


def ceil_div(value: int, unit: int) -> int:
    """``value / unit``, rounded up."""
    return -(-value // unit)


def vector(row: int, *arrays: Any) -> int:
    """The elements per memory access: 16 bytes, or fewer if row length or addresses require it.

    ``row`` is the number of elements after which each of the arrays starts its next row.
    """
    width: int = 16 // arrays[0].itemsize
    while width > 1 and (
        row % width or any(address(array) % (width * array.itemsize) for array in arrays)
    ):
        width //= 2
    return width


def slices(warps: int, channels: int, vectors: int) -> int:
    """The slices per sum that give ``warps`` warps for ``channels`` sums of ``vectors`` vectors.

    A lane has at least four vectors, unless there is only one slice.
    """
    return max(1, min(ceil_div(warps, channels), vectors // 128))
