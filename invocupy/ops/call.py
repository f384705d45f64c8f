"""Common code of operators with a backend: dtypes, layouts, results, and empty arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import Array, cast_like, contiguous, is_cupy, on_device
from invocupy.backends.memory import empty
from invocupy.ops.declaration import Vjp

Shape = tuple[int, ...]


class Call:
    """One call of an operator: the start for its value and all of its gradients.

    ``inputs`` are the operands as backends take them: contiguous, in the dtype ``work``, which is
    the ``dtype`` of the result but for float16 on the CPU.
    """

    __slots__ = ("backend", "device", "dtype", "inputs", "like", "work")

    def __init__(self, op: str, x: Array, *others: Array | None) -> None:
        self.like, self.device, self.backend = x, on_device(x), backends.of(op, x)
        self.dtype, self.work = working_dtypes(x, *others)
        self.inputs: list[Any] = [contiguous(x, self.work)]
        for array in others:
            self.inputs.append(None if array is None else contiguous(array, self.work))

    def run(
        self, name: str, inputs: Iterable[Any], options: Iterable[Any], *results: Any, fill: Any = 0
    ) -> list[Any]:
        """Let the backend fill ``results``, new arrays where a shape is given.

        With empty arrays there is nothing to sum: the result is ``fill``, without the backend.
        """
        made = []  # loops, since comprehensions are calls
        with self.device:
            for result in results:
                new = type(result) is tuple
                made.append(empty(result, self.work, self.like) if new else result)
            for array in (*inputs, *made):
                if array is not None and not array.size:
                    break
            else:
                getattr(self.backend, name)(*inputs, *options, *made)
                return made
            for result in made:
                if result is not None and result.dtype == self.work:
                    result[...] = fill
        return made

    def value(
        self, name: str, options: Iterable[Any], shape: Shape, out: Any = None, fill: Any = 0
    ) -> Any:
        """The result of the operator; in ``out`` if that is given."""
        within = out is not None and self.work == self.dtype and contiguous(out, self.work) is out
        (result,) = self.run(name, self.inputs, options, out if within else shape, fill=fill)
        if result.dtype == self.dtype and out is None:
            return result
        with self.device:
            if out is None:
                return result.astype(self.dtype)
            if not within:
                out[...] = result
            return out

    def gradient(
        self, name: str, grad: Array, inputs: Iterable[Any], options: Iterable[Any], like: Array
    ) -> Array:
        """The backend's result for ``grad`` and ``inputs``, with shape and dtype of ``like``."""
        inputs = contiguous(grad, self.work), *inputs
        (made,) = self.run(name, inputs, options, like.shape)
        with self.device:
            return cast_like(made, like)

    def gradients(
        self, name: str, grad: Array, inputs: Iterable[Any], options: Iterable[Any], *like: Any
    ) -> list[Array]:
        """:meth:`gradient` for several results of one call."""
        shapes = [None if array is None else array.shape for array in like]
        made = self.run(name, (contiguous(grad, self.work), *inputs), options, *shapes)
        with self.device:
            for i, array in enumerate(like):
                if array is not None:
                    made[i] = cast_like(made[i], array)
        return made


def vjp_of(like: Any, make: Callable[[Array], Any]) -> Vjp:
    """The vjp that ``make`` computes, on the device of ``like`` and in its shape and dtype."""

    def vjp(grad: Array) -> Array:
        with on_device(like):
            return cast_like(make(grad).reshape(like.shape), like)

    return vjp


def given(**arrays: Array | None) -> dict[str, Array]:
    """The optional arguments that are not None, by name."""
    return {name: array for name, array in arrays.items() if array is not None}


def working_dtypes(*operands: Array | None) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The dtype of the result, by NumPy's promotion, and the dtype that the backend uses."""
    dtypes = [array.dtype for array in operands if array is not None]
    first = dtypes[0]
    if first.char in "fd" and first.isnative and dtypes.count(first) == len(dtypes):
        return first, first  # nearly always, and much faster
    return _promoted(is_cupy(operands[0]), *dtypes)


@cache
def _promoted(on_gpu: bool, *dtypes: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    dtype = np.result_type(*dtypes).newbyteorder("=")
    return dtype, np.dtype(np.float32) if dtype == np.float16 and not on_gpu else dtype
