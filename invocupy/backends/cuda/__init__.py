"""The CUDA launcher: the one module that turns ``.cu`` files into kernels and starts them.

How a call gets to the GPU. The module of an op decides *what* to start in plain Python (which
macros, how many threads), which works on NumPy arrays as well; :func:`launch` starts it. Two
functions are the seam to the machine, and a test that runs the same source elsewhere replaces just
these:

* :func:`compile` ``(name, files, macros)`` gives ``function(grid, block, args)``;
* :func:`address` gives the address of an array's first element.

Arguments are arrays, then the :class:`~invocupy.geometry.Geometry` record by value (``np.void`` of
15 ``int32``) and NumPy scalars of the exact size that the source declares: nothing checks them.

What is compiled. One module for each specialisation, when first used, cached on disk by CuPy and
in memory for each device. Macros carry the element type, what the layer fixes (kernel size, stride,
padding, dilation), how wide accesses are and how much one thread owns. They never carry a batch or
an image size, so a new size compiles nothing. The text of all files goes into one string
(:func:`source`), because CuPy's disk cache hashes that string but not what it includes.

Kernels start on CuPy's current stream and on the device of their arrays, and nothing here waits for
them. So the first call of a specialisation compiles, and all later ones can be captured in a CUDA
graph. With ``INVOCUPY_CUDA_SYNC=1`` in the environment each launch is waited for: then a fault
shows at the call that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from invocupy.arrays import is_cupy, on_device
from invocupy.settings import flag

Macros: TypeAlias = Mapping[str, str | int]
Function: TypeAlias = Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, ...]], None]

BLOCK = 128
"""Threads in a block, of every kernel."""

OPTIONS = ("-std=c++17", "-lineinfo")
"""Compiler options of every kernel."""

_TYPES = {
    "float16": ("__half", "float", "cuda_fp16.h"),
    "bfloat16": ("__nv_bfloat16", "float", "cuda_bf16.h"),
    "float32": ("float", "float", None),
    "float64": ("double", "double", None),
}


def element(dtype: Any) -> dict[str, str | int]:
    """The macros of an element type: what is stored (SCALAR) and what is summed in (ACCUM)."""
    return dict(_element(dtype))


def source(files: tuple[str, ...], macros: Macros) -> str:
    """The text of one specialisation: its macros, then ``files`` (paths below this folder)."""
    includes = {include for scalar, _, include in _TYPES.values() if scalar == macros["SCALAR"]}
    lines = [f"#include <{include}>" for include in includes if include]
    lines += [f"#define {name} {value}" for name, value in macros.items()]
    for file in files:
        # A name relative to the package: the text, and so the cache, is the same on every machine.
        lines += [f'#line 1 "invocupy/backends/cuda/{file}"', _text(file)]
    return "\n".join(lines)


def compile(name: str, files: tuple[str, ...], macros: Macros) -> Function:  # noqa: A001
    """The ``extern "C"`` kernel ``name`` of a specialisation, compiled at its first launch."""
    function: Function = _compile(name, files, tuple(macros.items()))
    return function


def address(array: Any) -> int:
    """Where the first element of ``array`` lies in device memory."""
    return int(array.data.ptr)


def ceil_div(value: int, unit: int) -> int:
    """``value / unit``, rounded up."""
    return -(-value // unit)


def vector(row: int, *arrays: Any) -> int:
    """How many elements one access may move: 16 bytes, or what row length and addresses allow.

    ``row`` is the number of elements after which each of the arrays starts its next row.
    """
    width: int = 16 // arrays[0].itemsize
    while width > 1 and (
        row % width or any(address(array) % (width * array.itemsize) for array in arrays)
    ):
        width //= 2
    return width


def launch(
    name: str, files: tuple[str, ...], macros: Macros, threads: int, args: tuple[Any, ...],
    most: int = 0,
) -> None:  # fmt: skip
    """Start ``threads`` threads of a kernel on the device of the first argument.

    ``most`` is the largest number to which one of them counts, where that may be more.
    """
    # 32-bit index arithmetic is several times faster, and nearly always enough.
    small = max(threads + BLOCK, most) <= 2**32
    index = "unsigned int" if small else "unsigned long long"
    function = compile(name, files, {**macros, "BLOCK": BLOCK, "INDEX": index})
    with on_device(args[0]):
        function((ceil_div(threads, BLOCK),), (BLOCK,), args)
        if flag("INVOCUPY_CUDA_SYNC") and is_cupy(args[0]):
            import cupy

            cupy.cuda.get_current_stream().synchronize()


@cache
def _element(dtype: Any) -> dict[str, str | int]:
    scalar, accum, _ = _TYPES[dtype.name]
    return {"SCALAR": scalar, "ACCUM": accum}


@cache
def _text(file: str) -> str:
    return (Path(__file__).parent / file).read_text(encoding="utf-8")


@cache
def _compile(
    name: str, files: tuple[str, ...], macros: tuple[tuple[str, str | int], ...]
) -> Function:
    import cupy

    # RawModule compiles when first launched, once for each device.
    kernel = cupy.RawModule(code=source(files, dict(macros)), options=OPTIONS).get_function(name)

    def function(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
        # CuPy passes a structure by value if it comes as an array of one element.
        kernel(grid, block, tuple(np.asarray(a) if isinstance(a, np.void) else a for a in args))

    return function
