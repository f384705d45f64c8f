"""Arrays of the stand-in: memory of a device, behind which only this package looks."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

from cupy import cuda

_ALIGNMENT = 512
_KINDS = "biufV"  # of dtypes; V is that of bfloat16


class ndarray:  # noqa: N801
    """Memory of a device: only the functions here may look behind it."""

    __slots__ = ("__weakref__", "_block", "_device", "_host", "base")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Any, dtype: Any = float) -> None:
        memory, self._block = _memory(shape, np.dtype(dtype))
        memory.reshape(-1).view(np.uint8)[...] = 0xFF
        self._host, self._device, self.base = memory, cuda.Device(), None

    # what NumPy asks

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        function = getattr(sys.modules["cupy"], ufunc.__name__, None)
        if function is None or method != "__call__":
            return NotImplemented
        return function(*inputs, **options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        mine = getattr(sys.modules["cupy"], function.__name__, None)
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
        cuda.on_host(self, stream)
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

    def set(self, arr: Any, stream: Any = None) -> None:
        cuda._graphs.refuse("H2D")
        self._host[...] = arr
        cuda.wrote(self, self.nbytes)

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
        cuda.read(self)
        return _new(self._host.copy(order), order)

    def fill(self, value: Any) -> None:
        _operand(self).fill(_operand(value))
        cuda.wrote(self)

    def __getitem__(self, index: Any) -> Any:
        found = _index(index, self.shape)
        plain = not any(isinstance(part, np.ndarray) for part in found)
        return _of((self._host if plain else _operand(self))[found], self)

    def __setitem__(self, index: Any, value: Any) -> None:
        _operand(self)[_index(index, self.shape)] = _operand(value)
        cuda.wrote(self)

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
        self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False
    ) -> Any:
        return _result(_operand(self).argmax(axis, keepdims=keepdims), out)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return _result(_operand(self).all(axis, keepdims=keepdims), out)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return _result(_operand(self).any(axis, keepdims=keepdims), out)


# memory


def _memory(shape: Any, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """An aligned NumPy array that its device counts as long as it lives, and its block."""
    if dtype.kind not in _KINDS or not dtype.isnative:
        raise ValueError(f"Unsupported dtype {dtype}")
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
    if cuda.pool().own:
        memory, block = cuda._graphs.lease(cuda.pool(), room)
        return memory[:size].view(dtype).reshape(shape), block
    memory = np.empty(room + _ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % _ALIGNMENT
    block = cuda.hold(memory, memory.ctypes.data + skip, room)
    return memory[skip : skip + size].view(dtype).reshape(shape), block


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
        cuda.read(value)
        return value._host
    if value is None or isinstance(value, bool | int | float | np.generic):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def _view(host: Any, of: ndarray) -> Any:
    array = ndarray.__new__(ndarray)
    array._host, array._device, array._block = host, of._device, of._block
    array.base = of if of.base is None else of.base
    return array


def _new(host: Any, order: str = "K") -> Any:
    """A copy of a result in memory of the current device."""
    array = ndarray.__new__(ndarray)
    host = np.asarray(host)
    array._host, array._block = _memory(host.shape, host.dtype)
    array._device, array.base = cuda.Device(), None
    if order in "KA" and host.flags.f_contiguous and not host.flags.c_contiguous:
        array._host = array._host.reshape(host.shape[::-1]).T
    array._host[...] = host
    cuda.wrote(array, array.nbytes)
    return array


def _of(host: Any, source: ndarray) -> Any:
    """A view where NumPy gave one, else new memory."""
    shared = isinstance(host, np.ndarray) and np.may_share_memory(host, source._host)
    return _view(host, source) if shared else _new(host)


def _result(host: Any, out: Any) -> Any:
    if out is None:
        return _new(host)
    _operand(out)[...] = host
    cuda.wrote(out)
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
                if isinstance(part, ndarray) and numbers.dtype == bool:
                    cuda.on_host(part)  # to know how many are chosen
                if numbers.dtype.kind in "iu" or not numbers.size:
                    parts[place] = numbers.astype(np.int64) % max(shape[axis], 1)
                else:
                    parts[place] = numbers
                    axis += numbers.ndim - 1
            axis += 1
    return tuple(parts)
