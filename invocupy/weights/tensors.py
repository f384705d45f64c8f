"""Arrays in pickles of NumPy (Paddle's ``.pdparams``) and of PyTorch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from invocupy.arrays import Array
from invocupy.weights.pickles import Buildable, Placeholder, Table, call, pairs, passed

_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)")
_STORAGES = {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "u2", "Long": "i8", "Int": "i4",
    "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "b1", "ComplexFloat": "c8",
    "ComplexDouble": "c16", "QInt8": "i1", "QUInt8": "u1", "QInt32": "i4",
}  # fmt: skip
_BFLOAT16 = np.dtype("u2")  # PyTorch has no storage of unsigned 16-bit integers
_SAME = (
    "parameter", "parameter_with_state", "device_tensor_from_numpy", "device_tensor_from_cpu_tensor"
)  # fmt: skip
_UNREAD = {
    "qtensor": "quantized integers", "sparse_tensor": "sparse layout",
    "nested_tensor": "nested layout", "meta_tensor_no_storage": "no data (device meta)",
    "wrapper_subclass": "a wrapper class",
}  # fmt: skip


def bfloat16(bits: Array) -> Array:
    """bfloat16, as 16-bit integers or bytes without a meaning (V2), as float32.

    >>> bfloat16(np.array([0x3F80, 0xC020], np.uint16)).tolist()
    [1.0, -2.5]
    """
    numbers = bits.view("u2") if bits.dtype.kind == "V" else bits
    return (numbers.astype("u4") << 16).view("f4")  # whose upper half it is


class _Dtype(Buildable):
    """A dtype of numbers; the state has the byte order."""

    def __init__(self, name: str, bfloat16: bool = False) -> None:
        self.dtype, self.bfloat16 = np.dtype(name), bfloat16

    def build(self, state: Any) -> None:
        """State: (version, byte order, base dtype, names, fields, ...)."""
        if any(part is not None for part in state[2:5]) or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a dtype of numbers with fields or a byte order that does not exist")
        self.dtype = self.dtype.newbyteorder(state[1])


def _dtype(name: Any, *_: Any) -> _Dtype | Placeholder:
    """``numpy.dtype("f4", ...)``."""
    if isinstance(name, Placeholder):
        if name.what in ("ml_dtypes.bfloat16", "ml_dtypes._ml_dtypes_ext.bfloat16"):
            return _Dtype("u2", bfloat16=True)
        return Placeholder(name.what, is_array=True)
    if not isinstance(name, str):
        raise TypeError("a dtype without a name")
    # Text, objects and times are not weights.
    return _Dtype(name) if _NUMBERS.fullmatch(name) else Placeholder(f"dtype {name[:20]}")


class Pending(Placeholder):
    """An array whose shape, dtype and bytes may follow later."""

    def __init__(
        self, array: Array | None = None, encode: Callable[[Any, Any], bytes] | None = None
    ) -> None:
        super().__init__("an array without content", is_array=True)
        self.array, self._encode = array, encode

    def build(self, state: Any) -> None:
        """State: (version, shape, dtype, whether Fortran order, bytes)."""
        _, shape, dtype, fortran, content = state
        if isinstance(content, str) and self._encode:  # Python 2's bytes
            content = self._encode(content, "latin1")
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: Any) -> Pending:
        """Set the bytes, if they are numbers."""
        if isinstance(dtype, Placeholder):
            self.what, self.is_array = f"a NumPy array of {dtype.what}", dtype.is_array
            return self
        if not isinstance(content, (bytes, bytearray)) or not isinstance(dtype, _Dtype):
            raise TypeError("an array of something else")
        shape = _sizes(shape)
        if len(content) != math.prod(shape) * dtype.dtype.itemsize:  # of Python's integers
            raise ValueError("an array with more or less bytes than its shape has")
        array = np.frombuffer(content, dtype.dtype)
        array = array.reshape(shape, order="F" if order == "F" else "C")
        self.array = bfloat16(array) if dtype.bfloat16 else array
        return self


def _dictionary(*items: Any) -> dict[Any, Any]:
    """An empty dictionary or, as Python 2 writes it, one of a list of [key, value] lists."""
    if not items:
        return {}
    (rows,) = items
    if type(rows) is not list or any(type(row) not in (list, tuple) for row in rows):
        raise TypeError("a dictionary made of something")
    found = dict(pairs([row[0] for row in rows], [row[1] for row in rows]))
    rows.clear()  # so that a file that asks for it again and again gets no more than it has
    return found


def _tuple(items: Any) -> tuple[Any, ...]:
    if type(items) is not tuple:
        raise TypeError("a tuple made of something else")
    return items


class _Storage:
    """The elements that tensors are views of."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.view = cache(self._view)

    def _view(self, neg: bool, conj: bool) -> Array:
        """The elements with PyTorch's lazy bits applied."""
        array = np.conj(self.array) if conj else self.array
        return np.negative(array) if neg else array


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *more: Any
) -> Pending | Placeholder:
    """A view inside a storage; ``more`` is (requires_grad, hooks[, metadata])."""
    if isinstance(storage, Placeholder):
        return Placeholder(f"a tensor of {storage.what}", is_array=True)
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    bits = more[2] if len(more) > 2 and more[2] is not None else {}
    if len(more) > 3 or not isinstance(bits, dict) or not bits.keys() <= {"neg", "conj"}:
        return Placeholder("a tensor with metadata that are not known", is_array=True)
    elements = storage.view(bool(bits.get("neg")), bool(bits.get("conj")))
    size, stride, (offset,) = _sizes(size), _sizes(stride), _sizes((offset,))
    if len(size) != len(stride):
        raise ValueError("a tensor with more or less strides than axes")
    count = math.prod(size)
    if count > len(elements):  # no small file asks for a large array
        what = "a tensor with more elements than are stored, as expand() makes them"
        return Placeholder(what, is_array=True)
    if not count:
        return Pending(np.empty(size, elements.dtype))
    if offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) >= len(elements):
        raise ValueError("a tensor beyond its storage")
    steps = tuple(s * elements.itemsize for s in stride)
    return Pending(np.ndarray(size, elements.dtype, elements[offset:], strides=steps))


def _rebuild_of_dtype(*arguments: Any) -> Placeholder:
    """A tensor of float8 or a similar dtype, which has no storage type of its own."""
    kind = arguments[6].what if isinstance(arguments[6], Placeholder) else "no dtype"
    return Placeholder(f"a tensor of {kind}", is_array=True)


def _same(data: Any, *_: Any) -> Placeholder:
    """A parameter, or a tensor from another device."""
    if not isinstance(data, Placeholder):  # arrays are, too
        raise TypeError("a parameter without a tensor")
    return data


def _unread(what: str) -> Callable[..., Placeholder]:
    return lambda *_: Placeholder(f"a tensor of {what}", is_array=True)


def table() -> Table:
    """The table of names for pickles of NumPy's and PyTorch's arrays; for one file only."""
    known: dict[str, bytes] = {}

    def encode(text: Any, encoding: Any) -> bytes:
        """Bytes as in protocol 2; repeated requests of a file share them."""
        if not isinstance(text, str) or encoding != "latin1":
            raise TypeError("bytes in another encoding")
        if text not in known:
            known[text] = text.encode("latin1")
        return known[text]

    def reconstruct(kind: Any, *_: Any) -> Pending | Placeholder:
        if isinstance(kind, Placeholder):  # a subclass of NumPy's
            return Placeholder(f"an array of class {kind.what}", is_array=True)
        passed(kind)
        return Pending(encode=encode)

    utils = {
        "tensor": _rebuild_tensor,
        "tensor_v2": _rebuild_tensor,
        "tensor_v3": _rebuild_of_dtype,
        **dict.fromkeys(_SAME, _same),
        **{name: _unread(what) for name, what in _UNREAD.items()},
    }
    arrays = {
        "multiarray._reconstruct": reconstruct,
        "numeric._frombuffer": lambda *arguments: Pending().fill(*arguments),
    }
    return {
        "collections.OrderedDict": _dictionary,
        "collections.defaultdict": lambda *_: {},
        "_codecs.encode": encode,
        "builtins.tuple": _tuple,
        "__builtin__.tuple": _tuple,
        "numpy.ndarray": np.dtype("V"),
        "numpy.dtype": _dtype,
        # a tensor with attributes, or of a class of its own, as the one that it was made from
        "torch._tensor._rebuild_from_type_v2": lambda rebuild, _, given, *__: call(rebuild, given),
        "torch.storage.UntypedStorage": np.dtype("u1"),
        **{f"numpy.{core}.{name}": arrays[name] for core in ("core", "_core") for name in arrays},
        **{f"torch._utils._rebuild_{name}": function for name, function in utils.items()},
        **{f"torch.{kind}Storage": np.dtype(dtype) for kind, dtype in _STORAGES.items()},
    }


def storages(
    read: Callable[[str, int], Any], big: bool = False
) -> Callable[[Any], _Storage | Placeholder]:
    """The function for PyTorch's persistent ids: storages, each read once, of either byte order.

    ``read(key, size)`` returns the bytes, or None if they are not needed. An id is ("storage",
    kind, key, device, elements[, view]). Old files store the source of a model's class in the same
    way: ("module", class, file, text).
    """
    known: dict[str, _Storage] = {}

    def storage(identity: Any) -> _Storage | Placeholder:
        word, kind, key, *_ = identity
        if word == "module" and isinstance(kind, Placeholder):
            return kind
        _, _, count, *view = identity[2:]
        (count,) = _sizes((count,))
        right = word == "storage" and isinstance(key, str) and re.fullmatch(r"\d+", key)
        if not right or view not in ([], [None]):
            raise TypeError("something other than a storage")
        if isinstance(kind, Placeholder):
            return kind
        dtype = passed(kind)
        if key not in known:
            content = read(key, count * dtype.itemsize)
            if content is None:
                return Placeholder("a storage")
            found = np.frombuffer(content, dtype.newbyteorder(">" if big else "<"))
            known[key] = _Storage(bfloat16(found) if dtype == _BFLOAT16 else found)
        if len(known[key].array) != count:
            raise ValueError("a storage of another size")
        return known[key]

    return storage


def _sizes(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or len(values) > 32:
        raise TypeError("a shape that is none")
    if not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise ValueError("a shape with impossible sizes")
    return tuple(values)
