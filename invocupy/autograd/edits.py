"""Detection of arrays that were edited in place between an operator and its backward pass.

Some elements are stored and compared: all of a small array, about 16 of a large one, evenly spaced.
So a change of a whole array is detected, but usually not one of a single element of a large array.
Only NumPy arrays are checked: reading CuPy arrays would wait for the GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias
from weakref import ref

import numpy as np

from invocupy.docstrings import documented
from invocupy.ops.declaration import BILINEAR, READS, VALUE

_SMALL = 256
_KINDS = "efd?bBhHiIlLqQ"
_on = True


# An array that vjps read, the operator, the place among its operands (VALUE for the result), and
# the stored elements.
Noted: TypeAlias = tuple[ref[Any], Callable[..., Any], int, bytes]


@documented
def detect_in_place(on: bool = True) -> None:
    """Switch on or off the check in ``backward`` for arrays that were edited in place.

    It takes less than one percent of a training step, up to 5 of one that is shorter than 1 ms.
    CuPy arrays are not checked; of a NumPy array with more than 256 elements, about 16 are.

    Parameters
    ----------
    on
        True (as it is initially) switches the check on, False off.

    >>> from invocupy import Tensor, detect_in_place
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> y = (x * x).sum()
    >>> x.data[0] = 5.0
    >>> y.backward()
    Traceback (most recent call last):
    RuntimeError: operand a of multiply, an array (2,), was edited in place before backward...
    >>> detect_in_place(False)
    >>> y.backward()
    >>> detect_in_place()
    """
    global _on
    _on = bool(on)


def note(op: Callable[..., Any], operands: list[Any], value: Any, sole: int | None) -> list[Noted]:
    """What backward compares: samples of the arrays that the vjps of ``op`` read.

    ``sole`` is the place of the only operand that requires a gradient, if there is only one.
    """
    noted: list[Noted] = []
    if _on:
        for place in READS.get(op, range(len(operands))):
            if place == sole and op in BILINEAR:
                continue
            array = value if place == VALUE else operands[place]
            if type(array) is np.ndarray and array.dtype.char in _KINDS:
                noted.append((ref(array), op, place, _sample(array)))
    return noted


def check(last: Any) -> None:
    """Raise a RuntimeError if an array that the gradients of a Tensor need has changed.

    All arrays are checked before the gradients: the code of a loop of its own stays in the cache.
    """
    if not _on:
        return
    seen, left = {id(last)}, [last]
    while left:
        tensor = left.pop()
        for array, op, place, before in tensor._noted:
            held = array()
            if held is not None and _sample(held) != before:
                _refuse(op, place, held.shape)
        for parent, _ in tensor._parents:
            if parent._parents and id(parent) not in seen:
                seen.add(id(parent))
                left.append(parent)


def _refuse(op: Callable[..., Any], place: int, shape: tuple[int, ...]) -> NoReturn:
    names = list(inspect.signature(op).parameters)
    what = "the result" if place == VALUE else f"operand {names[place]}"
    raise RuntimeError(
        f"{what} of {op.__name__}, an array {shape}, was edited in place before backward, which "
        "needs its old values: make a new array instead (x.data = x.data + 1, not x.data += 1), or "
        "edit it after backward; invocupy.detect_in_place(False) switches this check off, and the "
        "gradients are then wrong"
    )


def _sample(array: Any) -> bytes:
    size = array.size
    if size > _SMALL:
        array = array.flat[:: size // 16 | 1]  # of any layout, without a copy
    return array.tobytes()  # type: ignore[no-any-return]
