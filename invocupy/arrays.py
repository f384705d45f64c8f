"""Array libraries: checks of arguments, conversions, and moves between devices.

The type of the arguments decides where work runs: NumPy arrays stay on the CPU, CuPy arrays on
their GPU. CuPy is looked up in ``sys.modules`` only, so that it is never imported for NumPy arrays.
"""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np

from invocupy.messages import kind_of, one_line

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""A NumPy or CuPy array (CuPy has no type hints)."""
ArrayLike: TypeAlias = Array | np.generic | float
"""An operand of elementwise arithmetic: an array or a number."""

FLOATS = ("float16", "bfloat16", "float32", "float64")
_ANYWHERE = nullcontext()
_NUMPY_FLOATS = "efd"  # the type codes of those that NumPy has


def is_cupy(array: Any) -> bool:
    """Whether ``array`` is a CuPy array, without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def namespace(array: Any) -> Any:
    """The module (``numpy`` or ``cupy``) whose functions work on ``array``."""
    return sys.modules["cupy"] if is_cupy(array) else np


def on_device(array: Any) -> AbstractContextManager[Any]:
    """A context in which new arrays are created on the device of ``array``."""
    return array.device if is_cupy(array) else _ANYWHERE


def check(**arrays: Any) -> None:
    """Raise an error unless all arguments are floating arrays on one device.

    ValueError for CuPy arrays on different devices, TypeError for anything else. The messages use
    the names of the arguments.
    """
    if all(type(a) is np.ndarray and a.dtype.char in _NUMPY_FLOATS for a in arrays.values()):
        return
    first_name, first = next(iter(arrays.items()))
    for name, array in arrays.items():
        check_array(name, array)
        if array.dtype.name not in FLOATS:
            scaled = " / 255 if it holds images" if array.dtype == np.uint8 else ""
            raise TypeError(
                f"{name} has dtype {array.dtype}, but only floating dtypes work "
                f"({', '.join(FLOATS)}): convert it with .astype('float32'){scaled}"
            )
        if array.dtype.name == "bfloat16" and not is_cupy(array):
            raise TypeError(
                f"{name} is a bfloat16 NumPy array, but bfloat16 works on the GPU only: "
                "convert it with .astype('float32')"
            )
        if is_cupy(array) != is_cupy(first):
            raise TypeError(
                f"{first_name} is a {_library(first)} array and {name} a {_library(array)} array: "
                "move one of them with invocupy.to_device"
            )
        if is_cupy(array) and array.device != first.device:
            raise ValueError(
                f"{first_name} is on {first.device} and {name} on {array.device}: "
                "move one of them to the other's device"
            )


def check_array(name: str, value: Any) -> None:
    """Raise :func:`no_array` for what is masked or no array."""
    known = isinstance(value, np.ndarray) or is_cupy(value)
    if not known or isinstance(value, np.ma.MaskedArray):
        raise no_array(name, value)


def no_array(name: str, value: Any) -> TypeError:
    """The error for a ``value`` that is masked or no array; it names the adapter of others."""
    if isinstance(value, np.ma.MaskedArray):
        return TypeError(
            f"{name} is a masked array, and the mask would be ignored: "
            "fill it first, for example with .filled(0)"
        )
    library = type(value).__module__.partition(".")[0].replace("jaxlib", "jax")
    got, use = kind_of(value), "convert it with numpy.asarray or cupy.asarray"
    if library in ("torch", "jax", "dask"):
        got, use = f"{library}'s {got}", f"call invocupy.interop.{library}.involution, or {use}"
    return TypeError(f"{name} must be a NumPy or CuPy array, got {got}: {use}")


def check_out(out: Any, shape: tuple[int, ...], dtype: Any, **inputs: Any) -> None:
    """Raise an error unless ``out`` is writeable, has this shape and dtype, and overlaps no input.

    TypeError for a library other than that of the inputs, or a masked array; else ValueError.
    """
    x = next(iter(inputs.values()))
    if not (is_cupy(out) if is_cupy(x) else isinstance(out, np.ndarray)):
        raise TypeError(f"out must be a {_library(x)} array like x, got {type(out).__name__}")
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError("out is a masked array: give a plain array")
    if is_cupy(out) and out.device != x.device:
        raise ValueError(f"out is on {out.device}, but x is on {x.device}")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"out must have shape {shape} and dtype {dtype}, got {out.shape} and {out.dtype}: "
            f"make it with empty({shape}, {str(dtype)!r})"
        )
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out is read-only: give a writeable array")
    reach = out.itemsize  # of the axes with smaller steps
    for step, size in sorted(zip(map(abs, out.strides), out.shape, strict=True)):
        if size > 1 and step < reach and out.size:
            raise ValueError(
                f"out overlaps itself (shape {out.shape}, strides {out.strides}): "
                "give an array whose elements have memory of their own"
            )
        reach += step * (size - 1)
    # cupy.shares_memory would wait for the device: there the first and the last address decide.
    overlap = np.shares_memory if isinstance(out, np.ndarray) else namespace(x).may_share_memory
    for name, array in inputs.items():
        if overlap(out, array):
            raise ValueError(f"out overlaps {name}: give an array with memory of its own")


def wide(dtype: Any) -> Any:
    """float32 for a half type, whose sums are accumulated in it; None for other dtypes."""
    return np.float32 if dtype.itemsize == 2 and dtype.kind in "fV" else None


def widen(array: Array) -> Array:
    """``array``, half types converted to float32, in which they are accumulated."""
    dtype = wide(array.dtype)
    return array if dtype is None else array.astype(dtype)


def contiguous(array: Any, dtype: Any) -> Any:
    """A plain C-contiguous, aligned array in native byte order; ``array`` itself if it is one.

    ``dtype=None`` keeps the dtype.
    """
    if type(array) is np.ndarray:
        array = array.astype(array.dtype if dtype is None else dtype, order="C", copy=False)
        if array.flags.aligned:
            return array
    if is_cupy(array):
        if array.flags.c_contiguous and (dtype is None or array.dtype == dtype):
            return array
        with array.device:
            return namespace(array).ascontiguousarray(array, dtype)
    return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"]).view(np.ndarray)


def cast_like(array: Array, like: Any) -> Array:
    """``array`` in the dtype of ``like`` and native byte order; itself if possible."""
    if array.dtype == like.dtype and array.dtype.isnative:  # nearly always, and much faster
        return array
    return array.astype(like.dtype.newbyteorder("="), copy=False)


def to_device(array: Any, device: str) -> Any:
    """Move an array to the CPU or to a GPU.

    Parameters
    ----------
    array : NumPy or CuPy array
        Of any shape and dtype.
    device : str
        ``"cpu"``, ``"cuda"`` (the current GPU) or ``"cuda:i"``.

    Returns
    -------
    array
        ``array`` itself if it is there already, else a copy.

    Raises
    ------
    TypeError
        For a masked array.
    ValueError
        For another device name.
    RuntimeError
        If CuPy or a GPU is missing.

    Examples
    --------
    >>> import numpy as np
    >>> import invocupy
    >>> x = np.ones(3)
    >>> invocupy.to_device(x, "cpu") is x
    True
    """
    if isinstance(array, np.ma.MaskedArray):
        raise no_array("array", array)
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind == "cpu" and not number:
        return array.get() if is_cupy(array) else np.asarray(array)
    if kind != "cuda" or (number and not number.isdecimal()):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:i', got {device!r}")
    cupy = require_cupy()
    if is_cupy(array) and (not number or array.device.id == int(number)):
        return array
    with cupy.cuda.Device(int(number)) if number else nullcontext():
        return cupy.asarray(array)


def converted(array: Any, like: Any, least: float | None = None) -> Any:
    """A copy of loaded state in the dtype and on the device of ``like``, without loss of values.

    Floating dtypes are converted into each other, and whole numbers into integers. An array of
    shape (1,) is accepted for a single number. With ``least``, smaller values and NaN are errors. A
    ValueError says what is wrong, and what was expected.
    """
    plain = readable(array)
    if plain.shape == (1,) and like.shape == ():  # what ascontiguousarray makes of a counter
        plain = plain.reshape(())
    if plain.shape != like.shape:
        raise ValueError(f"shape {plain.shape}, expected {like.shape}")
    floating, target = _is_floating(plain), like.dtype
    if _is_floating(like):
        expected, fits = "a floating dtype", floating
    elif target.kind in "iu":
        expected, fits = "whole numbers", floating or plain.dtype.kind in "iu"
    else:
        expected, fits = f"dtype {target}", plain.dtype.kind == target.kind
    if not fits:
        raise ValueError(f"dtype {plain.dtype}, expected {expected}")
    with np.errstate(all="ignore"):
        new = plain.astype(target, order="C")
    if _is_floating(like):
        wrong = plain.dtype != target and bool((np.isinf(new) & ~np.isinf(plain)).any())
    else:
        wrong = bool((new != plain).any())
    if wrong:
        raise ValueError(f"values that {target} cannot hold")
    if least is not None and not (new >= least).all():
        raise ValueError("NaN" if least == -math.inf else f"NaN or values below {least:g}")
    return to_device(new, device_of(like))


def readable(array: Any) -> np.ndarray[Any, Any]:
    """An array of any library as a NumPy array; ValueError if it is masked or cannot be read."""
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError("a masked array, expected a plain one")
    try:
        return np.asarray(to_device(array, "cpu"))
    except MemoryError:
        raise
    except Exception as error:  # each library has its own
        raise ValueError(
            f"a {type(array).__name__} that NumPy cannot read ({one_line(error)})"
        ) from error


def _is_floating(array: Any) -> bool:
    return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def require_cupy() -> Any:
    """Import CuPy; RuntimeError if it, or a GPU, is missing."""
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(
            "CUDA needs CuPy, which is not installed: pip install 'invocupy[cuda13x]' "
            "(or cuda12x, for your driver), or use device='cpu'"
        ) from error
    if not cupy.cuda.is_available():
        raise RuntimeError("CUDA needs a GPU and its driver, and CuPy finds none: use device='cpu'")
    return cupy


def device_of(array: Any) -> str:
    """``"cpu"`` or ``"cuda:i"``."""
    return f"cuda:{array.device.id}" if is_cupy(array) else "cpu"


def _library(array: Any) -> str:
    return "CuPy" if is_cupy(array) else "NumPy"
