"""Arrays as pickles of NumPy (Paddle's ``.pdparams``) and PyTorch's zip files describe them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from invocupy.weights.pickles import Buildable, Table, called, read_pickle

Array = np.ndarray[Any, Any]


class _Dtype(Buildable):
    """``numpy.dtype("f4", ...)``; the state has the byte order."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", name):
            raise TypeError("a dtype that is no number")
        self.dtype = np.dtype(name)

    def build(self, state: Any) -> None:
        """State: (version, byte order, ...)."""
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("a byte order that does not exist")
        self.dtype = self.dtype.newbyteorder(state[1])


class Pending(Buildable):
    """An array whose shape, dtype and bytes follow."""

    array: Array | None = None

    def build(self, state: Any) -> None:
        """State: (version, shape, dtype, whether Fortran order, bytes)."""
        _, shape, dtype, fortran, content = state
        self.array = _array(content, dtype, shape, "F" if fortran else "C")


class _ArrayClass:
    """Stands for ``numpy.ndarray``, which is only ever an argument."""

    def __call__(self, *_: Any) -> Any:
        raise TypeError("an array made directly")


def _reconstruct(kind: Any, *_: Any) -> Pending:
    called(kind, _ArrayClass)
    return Pending()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any) -> Pending:
    pending = Pending()
    pending.array = _array(content, dtype, shape, order)
    return pending


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> Array:
    if not isinstance(content, (bytes, bytearray)) or not isinstance(dtype, _Dtype):
        raise TypeError("an array of something else")
    shape = _sizes(shape)
    # Python's integers: no overflow
    if len(content) != math.prod(shape) * dtype.dtype.itemsize:
        raise ValueError("an array with more or less bytes than its shape has")
    return np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _dictionary(*items: Any) -> dict[Any, Any]:
    if items:
        raise TypeError("a dictionary made of something")
    return {}


def _tuple(items: Any) -> tuple[Any, ...]:
    if type(items) is not tuple:
        raise TypeError("a tuple made of something else")
    return items


_COMMON: Table = {"collections.OrderedDict": _dictionary}


def numpy_table() -> Table:
    """What the names in pickles of NumPy arrays stand for; good for one file."""
    known: dict[str, bytes] = {}

    def encode(text: Any, encoding: Any) -> bytes:
        """Bytes as protocol 2 has them; the same ones however often a file asks."""
        if not isinstance(text, str) or encoding != "latin1":
            raise TypeError("bytes in another encoding")
        if text not in known:
            known[text] = text.encode("latin1")
        return known[text]

    arrays: Table = {
        "multiarray._reconstruct": _reconstruct,
        "numeric._frombuffer": _frombuffer,
    }
    return {
        **_COMMON,
        "_codecs.encode": encode,
        "builtins.tuple": _tuple,
        "__builtin__.tuple": _tuple,
        "numpy.ndarray": _ArrayClass(),
        "numpy.dtype": _Dtype,
        **{f"numpy.core.{name}": function for name, function in arrays.items()},
        **{f"numpy._core.{name}": function for name, function in arrays.items()},
    }


class _StorageKind:
    """Stands for ``torch.FloatStorage`` and its like, which are only ever arguments."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)

    def __call__(self, *_: Any) -> Any:
        raise TypeError("a storage made directly")


_BFLOAT16 = np.dtype("u2")  # which PyTorch has no storage of
_STORAGES = {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "u2", "Long": "i8", "Int": "i4",
    "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "b1",
}  # fmt: skip


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Pending:
    """A view of a storage, which must lie inside it and have no more elements than it."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise TypeError("a tensor without a storage")
    size, stride, (offset,) = _sizes(size), _sizes(stride), _sizes((offset,))
    if len(size) != len(stride) or math.prod(size) > len(storage):
        raise ValueError("a tensor larger than its storage")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if math.prod(size) and last >= len(storage):
        raise ValueError("a tensor beyond its storage")
    pending = Pending()
    start = storage[offset:] if math.prod(size) else storage[:0]
    steps = tuple(s * storage.itemsize for s in stride) if math.prod(size) else None
    pending.array = np.ndarray(size, storage.dtype, start, strides=steps)
    pending.array.flags.writeable = False
    return pending


def _rebuild_parameter(data: Any, *_: Any) -> Pending:
    if not isinstance(data, Pending):
        raise TypeError("a parameter without a tensor")
    return data


_REBUILD = "torch._utils._rebuild_tensor_v2"
TORCH: dict[str, Callable[..., Any]] = {
    **_COMMON,
    _REBUILD: _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    **{f"torch.{kind}Storage": _StorageKind(dtype) for kind, dtype in _STORAGES.items()},
}


def storages(read: Callable[[str], Any], big: bool) -> Callable[[Any], Array]:
    """What PyTorch's persistent ids stand for: arrays, each read once.

    Parameters
    ----------
    read : callable
        From a storage's key to its bytes.
    big : bool
        Whether they are in big-endian order.
    """
    known: dict[str, Array] = {}

    def storage(identity: Any) -> Array:
        key, order, count = _identity(identity)
        if key not in known:
            found = np.frombuffer(read(key), order.newbyteorder(">" if big else "<"))
            # bfloat16 is the upper half of a float32
            known[key] = (found.astype("u4") << 16).view("f4") if order == _BFLOAT16 else found
        if len(known[key]) != count:
            raise ValueError("a storage of another size")
        return known[key]

    return storage


def storage_sizes(content: bytes) -> dict[str, int]:
    """The bytes of each storage that a pickle of PyTorch mentions."""
    found: dict[str, int] = {}

    def note(identity: Any) -> None:
        key, order, count = _identity(identity)
        found[key] = count * order.itemsize

    read_pickle(content, TORCH | {_REBUILD: lambda *_: Pending()}, note)
    return found


def _identity(identity: Any) -> tuple[str, np.dtype[Any], int]:
    """Key, dtype and elements of a storage: ("storage", kind, key, device, elements[, view])."""
    word, kind, key, _, count, *view = identity
    (count,) = _sizes((count,))
    right = word == "storage" and isinstance(key, str) and re.fullmatch(r"\d+", key)
    if not right or view not in ([], [None]):
        raise TypeError("something other than a storage")
    return key, called(kind, _StorageKind).dtype, count


def _sizes(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or len(values) > 32:
        raise TypeError("a shape that is none")
    if not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise ValueError("a shape with impossible sizes")
    return tuple(values)
