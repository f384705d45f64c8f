"""A CuPy without a GPU: host memory that NumPy may not touch, kernels built by g++, CuPy's manners.

With the folder of this package on ``PYTHONPATH``, ``import cupy`` finds it, and all that is marked
``gpu`` runs on it: the library's own code for CuPy arrays, from the launcher to the command line.
Two devices are there, whose arrays do not mix. What is here behaves as in CuPy 14, or refuses:

- functions, methods and their parameters are those that CuPy has, as far as anybody needed them;
- NumPy arrays are no operands, and there is no implicit way back to the host;
- reductions give arrays; indices out of bounds wrap around;
- new memory holds NaN (in integers -1), and starts at multiples of 512 bytes;
- arrays of another device than the current one are refused, which CuPy does where the devices
  have no access to each other;
- reading an array on the host is counted, since there the host would wait: ``cuda.waits``;
- what the devices are asked to do can be recorded, with its stream: ``cuda.recording``;
- work of two streams on the same memory, whose order nothing makes, is a ``cuda.StreamError``;
- a stream that captures records, and refuses what CuPy refuses then: ``_graphs.py``.

What only a device can show (time) is not here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cupy import cuda
from cupy._array import _index, _known, _new, _operand, _result, _view, ndarray

__version__ = "14.2.0+stand-in"

# functions of elements


class _Ufunc:
    def __init__(self, name: str) -> None:
        self._numpy, self.__name__ = getattr(np, name), name

    def __call__(self, *operands: Any, out: Any = None, dtype: Any = None) -> Any:
        given = [_operand(operand) for operand in operands]
        with np.errstate(all="ignore"):
            return _result(self._numpy(*given, **({} if dtype is None else {"dtype": dtype})), out)


_ADDED = ("int32", "int64", "float16", "float32", "float64", "uint32", "uint64")


class _Add(_Ufunc):
    def at(self, array: Any, index: Any, value: Any) -> None:
        if array.dtype.name not in _ADDED:
            raise TypeError(f"cupy.add.at only supports {', '.join(_ADDED)} as data type")
        np.add.at(_operand(array), _index(index, array.shape), _operand(value))
        cuda.wrote(array)


add = _Add("add")
_UFUNCS = (
    "absolute", "bitwise_and", "bitwise_or", "bitwise_xor", "divide", "equal", "exp",
    "floor_divide", "greater", "greater_equal", "invert", "isfinite", "isnan", "less", "less_equal",
    "log", "maximum", "minimum", "multiply", "negative", "not_equal", "positive", "power",
    "remainder", "right_shift", "sign", "sqrt", "square", "subtract", "tanh",
)  # fmt: skip
for _name in _UFUNCS:
    globals()[_name] = _Ufunc(_name)
abs = globals()["absolute"]  # noqa: A001


def _operator(name: str, turned: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        known = (ndarray, bool, int, float, np.generic, np.ndarray)
        if not isinstance(other, known):
            return NotImplemented
        return globals()[name](*((other, self) if turned else (self, other)))

    return method


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        host, operand = _operand(self), _operand(other)
        with np.errstate(all="ignore"):
            getattr(np, name)(host, operand, out=host, casting="same_kind")
        cuda.wrote(self, self.nbytes)
        return self

    return method


for _symbol, _name in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power",
    "floordiv": "floor_divide", "mod": "remainder", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "rshift": "right_shift", "matmul": "matmul",
}.items():  # fmt: skip
    setattr(ndarray, f"__{_symbol}__", _operator(_name))
    setattr(ndarray, f"__r{_symbol}__", _operator(_name, turned=True))
    if _symbol != "matmul":
        setattr(ndarray, f"__i{_symbol}__", _in_place(_name))
for _symbol, _name in {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal",
    "ne": "not_equal",
}.items():  # fmt: skip
    setattr(ndarray, f"__{_symbol}__", _operator(_name))
for _symbol, _name in {
    "neg": "negative",
    "pos": "positive",
    "abs": "absolute",
    "invert": "invert",
}.items():
    setattr(ndarray, f"__{_symbol}__", lambda self, _name=_name: globals()[_name](self))


# functions of arrays


def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K") -> Any:
    if isinstance(obj, ndarray):
        host = obj._host if obj._device == cuda.Device() else obj._host.copy()
        host = host.astype(obj.dtype if dtype is None else _known(dtype), order, copy=False)
        return obj if host is obj._host and not copy else _new(host, order)
    host = np.asarray(obj, dtype)
    return _new(host.astype(_known(host.dtype).newbyteorder("="), order, copy=False), order)


def asarray(a: Any, dtype: Any = None, order: Any = None) -> Any:
    return array(a, dtype, copy=False, order=order or "K")


def ascontiguousarray(a: Any, dtype: Any = None) -> Any:
    """Unlike NumPy's, one without axes gets one."""
    if not isinstance(a, ndarray):
        return array(a, dtype, order="C")
    if a.flags.c_contiguous and (dtype is None or np.dtype(dtype) == a.dtype):
        return a if a.ndim else a.ravel()
    host = _operand(a).astype(a.dtype if dtype is None else _known(dtype))
    return _new(host.reshape(a.shape or (1,)), "C")


def asfortranarray(a: Any, dtype: Any = None) -> Any:
    return _new(np.asfortranarray(_operand(a), dtype))


def asnumpy(a: Any) -> Any:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    return ndarray(shape, dtype) if order == "C" else ndarray(shape[::-1], dtype).transpose()


def full(shape: Any, fill_value: Any, dtype: Any = None) -> Any:
    result = ndarray(shape, np.asarray(fill_value).dtype if dtype is None else dtype)
    result._host[...] = fill_value.get() if isinstance(fill_value, ndarray) else fill_value
    cuda.wrote(result, result.nbytes)
    return result


def zeros(shape: Any, dtype: Any = float) -> Any:
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = float) -> Any:
    return full(shape, 1, dtype)


def empty_like(
    prototype: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> Any:
    kind = prototype.dtype if dtype is None else dtype
    return empty(prototype.shape if shape is None else shape, kind)


def full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: Any = None,
    shape: Any = None,
) -> Any:  # fmt: skip
    result = empty_like(a, dtype, shape=shape)
    result.fill(fill_value)
    return result


def zeros_like(a: Any, dtype: Any = None) -> Any:
    return full_like(a, 0, dtype)


def ones_like(a: Any, dtype: Any = None) -> Any:
    return full_like(a, 1, dtype)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Any:
    return _new(np.arange(*((0, start) if stop is None else (start, stop)), step, dtype=dtype))


def linspace(start: Any, stop: Any, num: int = 50) -> Any:
    return _new(np.linspace(start, stop, num))


def where(condition: Any, x: Any, y: Any) -> Any:
    return _new(np.where(*map(_operand, (condition, x, y))))


def broadcast_to(array: Any, shape: Any) -> Any:
    """Unlike NumPy's, it can be written."""
    wide = np.broadcast_to(_operand(array), shape)
    return _view(np.lib.stride_tricks.as_strided(array._host, wide.shape, wide.strides), array)


def concatenate(tup: Any, axis: Any = 0) -> Any:
    return _new(np.concatenate([_operand(part) for part in tup], axis))


def stack(tup: Any, axis: int = 0) -> Any:
    return _new(np.stack([_operand(part) for part in tup], axis))


def take(a: Any, indices: Any, axis: Any = None, out: Any = None) -> Any:
    return a.take(indices, axis, out)


def array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    return [_view(part, ary) for part in np.array_split(_operand(ary), indices_or_sections, axis)]


def copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    np.copyto(_operand(dst), _operand(src), casting, True if where is None else _operand(where))
    cuda.wrote(dst)


def pad(array: Any, pad_width: Any, mode: str = "constant", *, constant_values: float = 0) -> Any:
    assert mode == "constant"
    return _new(np.pad(_operand(array), pad_width, constant_values=constant_values))


def einsum(formula: str, /, *operands: Any) -> Any:
    return _new(np.einsum(formula, *map(_operand, operands)))


def matmul(a: Any, b: Any, /, out: Any = None) -> Any:
    return _result(np.matmul(_operand(a), _operand(b)), out)


def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    return _new(np.tensordot(_operand(a), _operand(b), axes))


def result_type(*given: Any) -> Any:
    return np.result_type(*(g.dtype if isinstance(g, ndarray) else g for g in given))


def may_share_memory(a: Any, b: Any) -> bool:
    return np.may_share_memory(a._host, b._host)


def shares_memory(a: Any, b: Any) -> bool:
    cuda.wait()  # it compares addresses on the device
    return np.shares_memory(a._host, b._host)


nan, inf, newaxis = np.nan, np.inf, None
float16, float32, float64 = np.float16, np.float32, np.float64
int32, int64, uint8 = np.int32, np.int64, np.uint8


class RawModule:
    """Compiled by g++ at the first launch; NVRTC is asked whether it knows the options."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
        cuda.check_options(options)
        self._code, self.options = code, options

    def get_function(self, name: str) -> Any:
        return cuda.Function(name, self._code)


def get_default_memory_pool() -> Any:
    return cuda.pool(default=True)


def is_available() -> bool:
    return cuda.is_available()


cuda._graphs.install(globals(), ndarray, _Ufunc, _Add)
