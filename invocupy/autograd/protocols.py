"""Protocols of Python and NumPy for Tensor: conversions, comparisons, NumPy functions.

No gradient is lost silently: an operation that would lose one raises a ``TypeError``.
``numpy.exp(tensor)`` and other functions with an operator of ours run that. Other NumPy functions
run on the values, if no gradient is required, or if the result is not a floating array (a shape, a
truth value, the index of the largest element).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from invocupy import arrays
from invocupy.arrays import Array
from invocupy.autograd.methods import Methods
from invocupy.autograd.recording import is_recording

FUNCTIONS: dict[Any, Callable[..., Any]] = {}
"""The public functions of operators, by the equivalent NumPy function."""
_CONSTANT = {np.zeros_like, np.ones_like, np.empty_like}
_WRITING = {np.copyto, np.put, np.place, np.putmask, np.put_along_axis}
# What options are called here, by their names in NumPy.
_OPTIONS = {name: name for name in ("axis", "keepdims", "shape", "axes", "min", "max")}
_OPTIONS |= {"a_min": "min", "a_max": "max"}


class _Ufuncs:
    """``__array_ufunc__``, which NumPy looks up in the class and CuPy in the instance.

    CuPy finds None there, so ``array * tensor`` is computed by ``Tensor.__rmul__``.
    """

    def __get__(self, tensor: Any, owner: type) -> Any:
        return _call_ufunc if tensor is None else None


def _both(ufunc: Any) -> tuple[Any, Any]:
    """The method and the reflected method of an operator without a gradient."""
    return lambda self, other: ufunc(self, other), lambda self, other: ufunc(other, self)


def _compared(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The comparison of the arrays, which has no gradient."""
    return lambda self, other: compare(*_arrays(self, other))


class Protocols(Methods):
    """The base of Tensor, which has the attributes below."""

    __slots__ = ()
    __array_ufunc__ = _Ufuncs()
    __hash__ = object.__hash__  # by identity, whatever == compares

    data: Array
    requires_grad: bool
    item: Callable[[], Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(arrays.to_device(self.data, "cpu"), dtype=dtype, copy=copy)

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        known = 1 <= len(inputs) <= (3 if function is np.clip else 2)
        if function is np.where:
            known, inputs = len(inputs) == 3, (_condition(inputs[0]), *inputs[1:])
        if function in FUNCTIONS and known and options.keys() <= _OPTIONS.keys():
            options = {_OPTIONS[name]: value for name, value in options.items()}
            return FUNCTIONS[function](*inputs, **options)
        return _on_values(function, function in _WRITING, function, inputs, options)

    __eq__, __ne__ = _compared(operator.eq), _compared(operator.ne)
    __lt__, __le__ = _compared(operator.lt), _compared(operator.le)
    __gt__, __ge__ = _compared(operator.gt), _compared(operator.ge)
    __floordiv__, __rfloordiv__ = _both(np.floor_divide)
    __mod__, __rmod__ = _both(np.remainder)
    __divmod__, __rdivmod__ = _both(np.divmod)
    __and__, __rand__ = _both(np.bitwise_and)
    __or__, __ror__ = _both(np.bitwise_or)
    __xor__, __rxor__ = _both(np.bitwise_xor)
    __lshift__, __rlshift__ = _both(np.left_shift)
    __rshift__, __rrshift__ = _both(np.right_shift)

    def __invert__(self) -> Any:
        return np.invert(self)

    def __pos__(self) -> Any:
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "elements of a Tensor cannot be assigned, since backward may still need them: make a "
            "new one with functional.concatenate, or change .data before the first operator"
        )

    def __len__(self) -> int:
        if not self.data.ndim:
            raise TypeError("a Tensor without axes has no length: .item() is its number")
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        if not self.data.ndim:
            raise TypeError("a Tensor without axes cannot be iterated: .item() is its number")
        return (self[i] for i in range(len(self.data)))  # type: ignore[index]

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise ValueError(
                f"the truth value of a Tensor of shape {self.data.shape} is ambiguous: "
                "use .numpy().any(), .numpy().all() or .size"
            )
        return bool(self.data)

    def __float__(self) -> float:
        return float(self._number("float"))

    def __int__(self) -> int:
        return int(self._number("int"))

    __trunc__ = __int__

    def __complex__(self) -> complex:
        return complex(self._number("complex"))

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._number("round"), digits)

    def __index__(self) -> int:
        if self.data.dtype.kind not in "iu":
            raise TypeError(
                f"an index must be an integer, got a Tensor of {self.data.dtype}: use int(tensor)"
            )
        return operator.index(self._number("an index"))

    def __format__(self, spec: str) -> str:
        return format(self._number("a format"), spec) if spec else str(self)

    def _number(self, what: str) -> Any:
        if self.data.size != 1:
            raise TypeError(
                f"{what} takes one number, got a Tensor of shape {self.data.shape}: "
                "take an element and its .item(), or use .numpy()"
            )
        return self.item()


def _condition(given: Any) -> Any:
    """The condition of numpy.where as an array of truth values."""
    if isinstance(given, Protocols) or arrays.is_cupy(given):
        return given
    return np.asarray(given).astype(bool)


def _arrays(*operands: Any) -> tuple[Any, ...]:
    return tuple(item.data if isinstance(item, Protocols) else item for item in operands)


def _call_ufunc(tensor: Protocols, ufunc: Any, method: str, *operands: Any, **options: Any) -> Any:
    if method == "__call__" and ufunc in FUNCTIONS and not options:
        return FUNCTIONS[ufunc](*operands)
    writes = method == "at" or options.get("out") is not None
    return _on_values(ufunc, writes, getattr(ufunc, method), operands, options)


def _on_values(
    function: Any, writes: bool, call: Callable[..., Any], inputs: Any, options: Any
) -> Any:
    """Run ``call`` on the arrays of the Tensors; TypeError if a gradient would be lost."""
    tensors: list[Protocols] = []
    inputs, options = _values(inputs, tensors), _values(options, tensors)
    differentiable = is_recording() and any(tensor.requires_grad for tensor in tensors)
    if not differentiable or function in _CONSTANT:
        return call(*inputs, **options)
    if not writes:
        result = call(*inputs, **options)
        if not _is_floating(result):
            return result
    raise TypeError(
        f"numpy.{function.__name__} would lose the gradient of a Tensor: use the Tensor's "
        "operators and methods or invocupy.functional, or .numpy() for the values alone"
    )


def _values(value: Any, tensors: list[Protocols]) -> Any:
    """``value`` with read-only arrays in place of Tensors, which are added to ``tensors``."""
    if isinstance(value, Protocols):
        tensors.append(value)
        array = value.data
        if isinstance(array, np.ndarray):
            array = array.view()
            array.flags.writeable = False
        return array
    if type(value) in (list, tuple):
        return type(value)(_values(item, tensors) for item in value)
    if type(value) is dict:
        return {key: _values(item, tensors) for key, item in value.items()}
    return value


def _is_floating(result: Any) -> bool:
    if isinstance(result, (tuple, list)):
        return any(_is_floating(item) for item in result)
    dtype = np.dtype(float) if isinstance(result, float) else getattr(result, "dtype", None)
    return getattr(dtype, "kind", "") in tuple("fcVO")
