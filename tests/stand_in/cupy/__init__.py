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
- reading an array on the host is counted, since there the host would wait: ``cuda.waits``.

What only a device can show (time, streams, graphs) is not here.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from cupy import cuda

__version__ = "14.2.0+stand-in"

_ALIGNMENT = 512
_KINDS = "biufV"  # of dtypes; V is that of bfloat16


class ndarray:  # noqa: N801
    """Memory of a device: only the functions here may look behind it."""

    __slots__ = ("__weakref__", "_device", "_host", "base")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Any, dtype: Any = float) -> None:
        memory = _memory(shape, np.dtype(dtype))
        memory.reshape(-1).view(np.uint8)[...] = 0xFF
        self._host, self._device, self.base = memory, cuda.Device(), None

    # what NumPy asks

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        function = globals().get(ufunc.__name__)
        if function is None or method != "__call__":
            return NotImplemented
        return function(*inputs, **options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        mine = globals().get(function.__name__)
        return NotImplemented if mine is None else mine(*args, **options)

    # what it is

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    device = property(lambda self: self._device)
    T = property(lambda self: self.transpose())

    @property
    def flags(self) -> Any:
        flags = self._host.flags
        return SimpleNamespace(
            c_contiguous=flags.c_contiguous,
            f_contiguous=flags.f_contiguous,
            owndata=self.base is None,
        )

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._host.ctypes.data, device=self._device)

    def __len__(self) -> int:
        return len(self._host)

    # to the host

    def get(self, stream: Any = None, order: Any = "C", out: Any = None) -> Any:
        cuda.wait()
        if out is None:
            return self._host.copy(order)
        out[...] = self._host
        return out

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self, order: Any = "C") -> bytes:
        data: bytes = self.get().tobytes(order)
        return data

    def set(self, array: Any) -> None:
        self._host[...] = array

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return int(self.get().__index__())

    def __repr__(self) -> str:
        return repr(self.get())

    __str__ = __repr__

    def __format__(self, form: str) -> str:
        return format(self.get(), form)

    # other views and copies

    def view(self, dtype: Any = None) -> Any:
        return _view(self._host if dtype is None else self._host.view(dtype), self)

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        return _of(self._host.reshape(*shape, order=order), self)

    def ravel(self, order: str = "C") -> Any:
        return _of(self._host.ravel(order), self)

    def flatten(self, order: str = "C") -> Any:
        return _new(self._host.flatten(order))

    def transpose(self, *axes: Any) -> Any:
        return _view(self._host.transpose(*axes), self)

    def swapaxes(self, axis1: int, axis2: int) -> Any:
        return _view(self._host.swapaxes(axis1, axis2), self)

    def squeeze(self, axis: Any = None) -> Any:
        return _view(self._host.squeeze(axis), self)

    def astype(
        self,
        dtype: Any,
        order: str = "K",
        casting: Any = None,
        subok: Any = None,
        copy: bool = True,
    ) -> Any:
        if casting is not None or subok is not None:
            raise TypeError("casting and subok are not supported yet")
        host = self._host.astype(_known(dtype), order, copy=False)
        if host is self._host and not copy:
            return self
        _operand(self)
        return _new(host, order)

    def copy(self, order: str = "C") -> Any:
        return _new(self._host.copy(order), order)

    def fill(self, value: Any) -> None:
        _operand(self).fill(_operand(value))

    def __getitem__(self, index: Any) -> Any:
        found = _index(index, self.shape)
        plain = not builtins.any(isinstance(part, np.ndarray) for part in found)
        return _of((self._host if plain else _operand(self))[found], self)

    def __setitem__(self, index: Any, value: Any) -> None:
        _operand(self)[_index(index, self.shape)] = _operand(value)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def take(self, indices: Any, axis: Any = None, out: Any = None) -> Any:
        return _result(np.take(_operand(self), _operand(indices), axis, mode="wrap"), out)

    # reductions

    def sum(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False
    ) -> Any:
        return _result(_operand(self).sum(axis, dtype, keepdims=keepdims), out)

    def mean(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False
    ) -> Any:
        return _result(_operand(self).mean(axis, dtype, keepdims=keepdims), out)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return _result(_operand(self).max(axis, keepdims=keepdims), out)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return _result(_operand(self).min(axis, keepdims=keepdims), out)

    def argmax(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False
    ) -> Any:
        return _result(_operand(self).argmax(axis, keepdims=keepdims), out)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return _result(_operand(self).all(axis, keepdims=keepdims), out)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return _result(_operand(self).any(axis, keepdims=keepdims), out)


# memory


def _memory(shape: Any, dtype: np.dtype[Any]) -> Any:
    """An aligned NumPy array that its device counts as long as it lives."""
    if dtype.kind not in _KINDS or not dtype.isnative:
        raise ValueError(f"Unsupported dtype {dtype}")
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = -(-builtins.max(size, 1) // _ALIGNMENT) * _ALIGNMENT
    memory = np.empty(room + _ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % _ALIGNMENT
    cuda.hold(memory, memory.ctypes.data + skip, room)
    return memory[skip : skip + size].view(dtype).reshape(shape)


def _known(dtype: Any) -> np.dtype[Any]:
    dtype = np.dtype(dtype)
    if dtype.kind not in _KINDS:
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def _operand(value: Any) -> Any:
    """What NumPy computes with, for a value that CuPy would take: of this device, or a number."""
    if isinstance(value, ndarray):
        current = cuda.Device()
        if value._device != current:
            raise ValueError(
                f"The device where the array resides ({value._device.id}) is different from the "
                f"current device ({current.id}). Peer access is unavailable between these devices."
            )
        return value._host
    if value is None or isinstance(value, bool | int | float | np.generic):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def _view(host: Any, of: ndarray) -> Any:
    array = ndarray.__new__(ndarray)
    array._host, array._device = host, of._device
    array.base = of if of.base is None else of.base
    return array


def _new(host: Any, order: str = "K") -> Any:
    """A copy of a result in memory of the current device."""
    array = ndarray.__new__(ndarray)
    host = np.asarray(host)
    array._host, array._device = _memory(host.shape, host.dtype), cuda.Device()
    array.base = None
    if order in "KA" and host.flags.f_contiguous and not host.flags.c_contiguous:
        array._host = array._host.reshape(host.shape[::-1]).T
    array._host[...] = host
    return array


def _of(host: Any, source: ndarray) -> Any:
    """A view where NumPy gave one, else new memory."""
    shared = isinstance(host, np.ndarray) and np.may_share_memory(host, source._host)
    return _view(host, source) if shared else _new(host)


def _result(host: Any, out: Any) -> Any:
    if out is None:
        return _new(host)
    _operand(out)[...] = host
    return out


def _index(index: Any, shape: tuple[int, ...]) -> Any:
    """NumPy's index for CuPy's: arrays and lists of numbers wrap around."""
    parts = list(index) if isinstance(index, tuple) else [index]
    arrays = [
        isinstance(part, list | np.ndarray)
        or (isinstance(part, ndarray) and _operand(part) is not None)
        for part in parts
    ]
    axes = sum(part is not None and part is not Ellipsis for part in parts)
    axis = 0
    for place, (part, is_array) in enumerate(zip(parts, arrays, strict=True)):
        if part is Ellipsis:
            axis += len(shape) - axes
        elif part is not None:
            if is_array:
                numbers = part._host if isinstance(part, ndarray) else np.asarray(part)
                if numbers.dtype.kind in "iu" or not numbers.size:
                    parts[place] = numbers.astype(np.int64) % builtins.max(shape[axis], 1)
                else:
                    parts[place] = numbers
                    axis += numbers.ndim - 1
            axis += 1
    return tuple(parts)


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


add = _Add("add")
_UFUNCS = (
    "absolute", "arctan", "bitwise_and", "bitwise_or", "cos", "divide", "equal", "exp",
    "floor_divide", "greater", "greater_equal", "invert", "isfinite", "isinf", "isnan",
    "left_shift", "less", "less_equal", "log", "logical_and", "logical_not", "logical_or",
    "maximum", "minimum", "multiply", "negative", "not_equal", "positive", "power", "remainder",
    "right_shift", "sign", "sin", "sqrt", "square", "subtract", "tanh", "true_divide",
)  # fmt: skip
for _name in _UFUNCS:
    globals()[_name] = _Ufunc(_name)
abs = absolute = globals()["absolute"]  # noqa: A001


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
            host[...] = getattr(np, name)(host, operand).astype(host.dtype)
        return self

    return method


for _symbol, _name in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power",
    "floordiv": "floor_divide", "mod": "remainder", "and": "bitwise_and", "or": "bitwise_or",
    "lshift": "left_shift", "rshift": "right_shift", "matmul": "matmul",
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


def array(data: Any, dtype: Any = None, copy: bool = True, order: str = "K") -> Any:
    if isinstance(data, ndarray):
        host = data._host if data._device == cuda.Device() else data._host.copy()
        host = host.astype(data.dtype if dtype is None else _known(dtype), order, copy=False)
        return data if host is data._host and not copy else _new(host, order)
    if isinstance(data, list | tuple) and any_array(data):
        return stack([array(part, dtype) for part in data])
    host = np.asarray(data, dtype)
    return _new(host.astype(_known(host.dtype).newbyteorder("="), order, copy=False), order)


def any_array(parts: Any) -> bool:
    return builtins.any(isinstance(part, ndarray) for part in parts)


def asarray(data: Any, dtype: Any = None, order: str = "K") -> Any:
    return array(data, dtype, copy=False, order=order)


def ascontiguousarray(data: Any, dtype: Any = None) -> Any:
    """Unlike NumPy's, one without axes gets one."""
    if not isinstance(data, ndarray):
        return array(data, dtype, order="C")
    if data.flags.c_contiguous and (dtype is None or np.dtype(dtype) == data.dtype):
        return data if data.ndim else data.ravel()
    host = _operand(data).astype(data.dtype if dtype is None else _known(dtype))
    return _new(host.reshape(data.shape or (1,)), "C")


def asfortranarray(data: Any, dtype: Any = None) -> Any:
    return _new(np.asfortranarray(_operand(data), dtype))


def asnumpy(data: Any) -> Any:
    return data.get() if isinstance(data, ndarray) else np.asarray(data)


def empty(shape: Any, dtype: Any = float) -> Any:
    return ndarray(shape, dtype)


def full(shape: Any, value: Any, dtype: Any = None) -> Any:
    result = ndarray(shape, np.asarray(value).dtype if dtype is None else dtype)
    result._host[...] = value.get() if isinstance(value, ndarray) else value
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


def zeros_like(like: Any, dtype: Any = None) -> Any:
    return full_like(like, 0, dtype)


def ones_like(like: Any, dtype: Any = None) -> Any:
    return full_like(like, 1, dtype)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Any:
    return _new(np.arange(*((0, start) if stop is None else (start, stop)), step, dtype=dtype))


def linspace(start: Any, stop: Any, num: int = 50) -> Any:
    return _new(np.linspace(start, stop, num))


def where(condition: Any, x: Any, y: Any) -> Any:
    return _new(np.where(*map(_operand, (condition, x, y))))


def broadcast_to(data: Any, shape: Any) -> Any:
    """Unlike NumPy's, it can be written."""
    wide = np.broadcast_to(_operand(data), shape)
    return _view(np.lib.stride_tricks.as_strided(data._host, wide.shape, wide.strides), data)


def concatenate(parts: Any, axis: Any = 0) -> Any:
    return _new(np.concatenate([_operand(part) for part in parts], axis))


def stack(parts: Any, axis: int = 0) -> Any:
    return _new(np.stack([_operand(part) for part in parts], axis))


def take(data: Any, indices: Any, axis: Any = None, out: Any = None) -> Any:
    return data.take(indices, axis, out)


def array_split(data: Any, sections: Any, axis: int = 0) -> list[Any]:
    return [_view(part, data) for part in np.array_split(_operand(data), sections, axis)]


def copyto(to: Any, source: Any, casting: str = "same_kind", where: Any = None) -> None:
    np.copyto(_operand(to), _operand(source), casting, True if where is None else _operand(where))


def pad(data: Any, widths: Any, mode: str = "constant", *, constant_values: float = 0) -> Any:
    assert mode == "constant"
    return _new(np.pad(_operand(data), widths, constant_values=constant_values))


def einsum(formula: str, *operands: Any) -> Any:
    return _new(np.einsum(formula, *map(_operand, operands)))


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    return _result(np.matmul(_operand(a), _operand(b)), out)


def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    return _new(np.tensordot(_operand(a), _operand(b), axes))


def result_type(*given: Any) -> Any:
    return np.result_type(*(g.dtype if isinstance(g, ndarray) else g for g in given))


def may_share_memory(a: Any, b: Any) -> bool:
    return np.may_share_memory(a._host, b._host)


def shares_memory(a: Any, b: Any) -> bool:
    return np.shares_memory(a._host, b._host)


def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> Any:
    return _new(np.allclose(_operand(a), _operand(b), rtol, atol))


nan, inf, newaxis = np.nan, np.inf, None
float16, float32, float64 = np.float16, np.float32, np.float64
int32, int64, uint8 = np.int32, np.int64, np.uint8


class RawModule:
    """Compiled by g++ at the first launch."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
        self._code = code

    def get_function(self, name: str) -> Any:
        return cuda.Function(name, self._code)


def get_default_memory_pool() -> Any:
    return cuda.pool(default=True)


def is_available() -> bool:
    return cuda.is_available()
