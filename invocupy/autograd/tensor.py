"""The tape's :class:`Tensor`, and :func:`apply`, which makes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from numbers import Number
from typing import Any, TypeAlias

import numpy as np

from invocupy import arrays
from invocupy.arrays import Array
from invocupy.autograd import edits
from invocupy.autograd.protocols import Protocols
from invocupy.autograd.recording import is_recording
from invocupy.backends import memory
from invocupy.ops import memo
from invocupy.ops.declaration import Result, Vjp
from invocupy.ops.shapes import getitem, reshape, transpose

Sizes: TypeAlias = int | tuple[int, ...]
_serials = count()
_PLAIN = np.ndarray, np.generic, Number


class Tensor(Protocols):
    """An array with the operators that computed it, so that gradients can flow back.

    Comparisons return plain arrays, since they have no gradient; hashes are those of the identity.
    NumPy functions accept Tensors if no gradient is lost: ``numpy.exp`` and others that are
    operators here return a Tensor, others return arrays, or raise an error if the Tensor requires a
    gradient. ``numpy.asarray`` always returns the values. A copy is a separate Tensor; a Tensor
    that was computed from others can be deep-copied and pickled only after :meth:`detach`.

    Parameters
    ----------
    data : array, Tensor or number(s)
        A NumPy or CuPy array is not copied; anything else is converted by ``numpy.asarray``.
    requires_grad : bool
        Whether :meth:`backward` shall leave the gradient in :attr:`grad`. Floating dtypes only.

    Attributes
    ----------
    data : array
        No operator writes to it.
    grad : array or None
        The sum of the gradients of all :meth:`backward` calls, with the shape and dtype of
        ``data``; set it to ``None`` to start again.
    requires_grad : bool

    Raises
    ------
    TypeError
        For ``requires_grad`` on another dtype than a floating one, for masked arrays, for lists of
        Tensors that require a gradient, at any depth, and for what holds no numbers.

    Examples
    --------
    >>> from invocupy import Tensor
    >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> ((x * x).sum() / 2).backward()
    >>> x.grad
    array([1., 2., 3.])
    """

    __slots__ = ("__weakref__", "_noted", "_parents", "_serial", "data", "grad", "requires_grad")

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            data = data.data
        if type(data) is not np.ndarray and isinstance(data, np.ma.MaskedArray):
            raise TypeError(
                "data is a masked array, and the mask would be ignored: "
                "fill it first, for example with .filled(0)"
            )
        if type(data) in (list, tuple) and _is_recorded(data):
            raise TypeError(
                "data holds Tensors, whose gradients would be lost: "
                "join them with functional.concatenate, or take the .item() or .numpy() of each"
            )
        self.data: Array = data if arrays.is_cupy(data) else np.asarray(data)
        if self.data is not data and self.data.dtype.kind == "O":
            raise TypeError(f"data must hold numbers, got {type(data).__name__}")
        if requires_grad and self.data.dtype.name not in arrays.FLOATS:
            raise TypeError(
                f"requires_grad needs a floating dtype, got {self.data.dtype}: "
                "convert the data with .astype('float32')"
            )
        self.requires_grad = requires_grad
        self.grad: Array | None = None
        self._parents: tuple[tuple[Tensor, Vjp], ...] = ()
        self._noted: Sequence[edits.Noted] = ()
        self._serial = next(_serials)

    def __copy__(self) -> Any:
        """Another node of the tape with the same array."""
        copied = object.__new__(type(self))
        copied.__setstate__(object.__getstate__(self))
        return copied

    def __getstate__(self) -> Any:
        """The state for deepcopy and pickle; TypeError if the tensor was computed from others."""
        if self._parents:
            raise TypeError(
                "a Tensor that was computed from others cannot be deep-copied or pickled, since "
                "its gradient would not reach them: take its .detach()"
            )
        return object.__getstate__(self)

    def __setstate__(self, state: Any) -> None:
        for attributes in state:
            for name, value in (attributes or {}).items():
                setattr(self, name, value)
        self._serial = next(_serials)

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of all axes."""
        return self.data.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the array."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def T(self) -> Tensor:  # noqa: N802
        """The axes reversed."""
        return self.transpose()

    def backward(self, grad: Any = None) -> None:
        """Add the gradient of this tensor to ``.grad`` of every leaf that requires it.

        The intermediate results are kept as long as this tensor: a second call adds the same
        gradients again. In your own loop, ``del loss`` before the next forward pass, or keep only
        ``loss.item()``; otherwise the intermediate results of two steps are in memory at once.

        Parameters
        ----------
        grad : array, Tensor or number(s), optional
            The gradient to start from, of the shape of this tensor; 1 for a single element.

        Raises
        ------
        ValueError
            If ``grad`` is missing for more than one element, or has another shape.
        TypeError
            If ``grad`` is complex or holds no numbers.
        RuntimeError
            If this tensor was computed without recording, or an array that is needed was edited in
            place since (:func:`invocupy.detect_in_place`); no gradient has changed then.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "this tensor has no gradient: it must depend on one with requires_grad=True, such "
                "as a parameter, and not be computed under no_grad()"
            )
        xp = arrays.namespace(self.data)
        if grad is None:
            if self.size != 1:
                raise ValueError(
                    "backward() needs a single number, such as a loss, got a tensor of shape "
                    f"{self.shape}: take its .mean() or .sum(), or give grad of that shape"
                )
            grad = xp.ones_like(self.data)
        grad = Tensor(grad).data  # a matrix would multiply as one
        if grad.dtype.kind in "cOSU":
            raise TypeError(f"grad must hold real numbers, got {grad.dtype}")
        if grad.shape != self.shape:
            raise ValueError(f"grad must have the shape {self.shape}, got {grad.shape}")
        edits.check(self)
        memory.backward_begins()
        # With each gradient, whether it has memory of its own, which a leaf may keep.
        pending: dict[int, tuple[Tensor, Any, bool]] = {self._serial: (self, grad, False)}
        newest_first = [-self._serial] if self._parents else []
        before = memo.current.set(None)
        try:
            while newest_first:
                tensor, grad, own = pending.pop(-heappop(newest_first))
                if grad.dtype is not tensor.data.dtype and arrays.wide(tensor.data.dtype):
                    grad = grad.astype(tensor.data.dtype)  # a sum, see below
                memo.current.set((grad, {}))  # for the vjps of this tensor alone
                for parent, vjp in tensor._parents:
                    serial = parent._serial
                    _, first, own = pending.get(serial, (None, None, False))
                    # An array of our own may be added to in place, where the vjp knows how.
                    if own and hasattr(vjp, "add") and memory.patiently(vjp.add, grad, first):
                        continue
                    share = memory.patiently(vjp, grad)
                    if serial in pending:
                        # Not in place: the two shares may be views of other arrays.
                        first = pending[serial][1]
                        wide = arrays.wide(first.dtype)
                        total = memory.empty(first.shape, wide or first.dtype, first)
                        pending[serial] = parent, xp.add(first, share, out=total, dtype=wide), True
                    else:
                        # By the rules of ops: a new array, or grad itself, or a view.
                        own = share is not grad and share.base is None
                        pending[serial] = parent, share, own
                        if parent._parents:
                            heappush(newest_first, -serial)
        finally:
            memo.current.reset(before)
        while pending:  # the leaves, which need no order
            _, (tensor, grad, own) = pending.popitem()
            tensor._accumulate(grad, own)

    def _accumulate(self, grad: Any, own: bool) -> None:
        """Keep the gradient of a leaf, in memory that no other tensor's gradient shares."""
        data = self.data
        if self.grad is not None:
            self.grad = arrays.namespace(data).asarray(self.grad + grad, dtype=data.dtype)
        elif own and type(grad) is type(data) and grad.dtype == data.dtype:
            self.grad = grad
        else:
            self.grad = arrays.namespace(data).array(grad, dtype=data.dtype)

    def detach(self) -> Tensor:
        """A Tensor with the same array (not a copy), without the operators that computed it."""
        return Tensor(self.data)

    def numpy(self) -> np.ndarray[Any, Any]:
        """The array as NumPy's; copied from the GPU if it is there."""
        return arrays.to_device(self.data, "cpu")  # type: ignore[no-any-return]

    def item(self) -> Any:
        """The single element as a Python number; waits for the GPU if it is there."""
        return self.data.item()

    def __repr__(self) -> str:
        return f"Tensor({self.data!r}{', requires_grad=True' if self.requires_grad else ''})"

    def __getitem__(self, index: Any) -> Tensor:
        return apply(getitem, self, index=_plain_index(index, self.data))  # type: ignore[no-any-return]

    def reshape(self, *shape: Sizes) -> Tensor:
        """The same elements in another shape, given as integers or one tuple."""
        return apply(reshape, self, shape=_flat(shape))  # type: ignore[no-any-return]

    def flatten(self, start: int = 0) -> Tensor:
        """Join all axes from ``start`` on."""
        joined = int(np.prod(self.shape[start:], dtype=np.int64))
        return self.reshape(*self.shape[:start], joined)

    def transpose(self, *axes: Sizes) -> Tensor:
        """The axes in another order (reversed by default), given as integers or one tuple."""
        return apply(transpose, self, axes=_flat(axes) or None)  # type: ignore[no-any-return]


def apply(op: Callable[..., Result], *operands: Any, **options: Any) -> Any:
    """Run an operator of :mod:`invocupy.ops` on Tensors, or on plain arrays.

    Without a Tensor among ``operands`` it returns the plain value; with one, a Tensor that keeps
    the vjps of the operands that require a gradient.
    """
    return run(op, operands, options)


def run(op: Callable[..., Result], operands: Any, options: dict[str, Any]) -> Any:
    """:func:`apply` with operands and options as two arguments."""
    plain: list[Any] = []
    on_tape = False
    for operand in operands:
        if isinstance(operand, Tensor):
            on_tape = True
            operand = operand.data
        elif type(operand) is not np.ndarray:  # which nearly all are
            operand = _plain(op, operands, len(plain))
        plain.append(operand)
    if on_tape and options.get("out") is not None:
        raise TypeError("out works with plain arrays only: the tape may still need its old content")
    try:
        value, vjps = memory.patiently(op, *plain, **options)
    except AttributeError:  # a number, or None, has no shape
        for place, operand in enumerate(plain):
            missing = operand is None and _parameter(op, place).default is not None
            if missing or isinstance(operand, Number):
                raise arrays.no_array(_parameter(op, place).name, operand) from None
        raise
    if not on_tape:
        return value
    result = Tensor(value)
    if is_recording():
        parents, place = [], -1
        for i, (operand, vjp) in enumerate(zip(operands, vjps, strict=True)):
            if isinstance(operand, Tensor) and operand.requires_grad:
                parents.append((operand, vjp))
                place = i
        if parents:
            sole = place if len(parents) == 1 else None
            result._parents = tuple(parents)
            result._noted = edits.note(op, plain, value, sole)
            result.requires_grad = True
            if value.dtype.kind not in "fV":
                raise TypeError(
                    f"gradients are of real numbers, but the result would be {value.dtype}: "
                    "take the .detach() of what requires a gradient"
                )
    return result


def _is_recorded(item: Any) -> bool:
    if isinstance(item, (list, tuple)):
        return any(map(_is_recorded, item))
    return isinstance(item, Tensor) and item.requires_grad and is_recording()


def _plain(op: Callable[..., Result], operands: tuple[Any, ...], place: int) -> Any:
    operand = operands[place]
    # NumPy would accept some of them in some operators, and Python would concatenate two by "+".
    known = operand is None or arrays.is_cupy(operand) or isinstance(operand, _PLAIN)
    if not known or isinstance(operand, np.ma.MaskedArray):
        raise arrays.no_array(_parameter(op, place).name, operand)
    if not isinstance(operand, np.generic):  # a matrix would multiply as one
        return Tensor(operand).data if isinstance(operand, np.matrix) else operand
    # NumPy's own scalars would promote an array of float32 to float64; Python's do not.
    beside = any(hasattr(item, "dtype") and not isinstance(item, np.generic) for item in operands)
    return operand.item() if beside else np.asarray(operand)


def _parameter(op: Callable[..., Result], place: int) -> inspect.Parameter:
    first, *others = inspect.signature(op).parameters.values()
    return first if first.kind is first.VAR_POSITIONAL else (first, *others)[place]


def _plain_index(index: Any, x: Any) -> Any:
    """``index`` with arrays, of the library of ``x``, in place of Tensors and lists."""
    if isinstance(index, tuple):
        return tuple(_plain_index(item, x) for item in index)
    if isinstance(index, list):
        return arrays.namespace(x).asarray(index, None if index else np.intp)
    index = index.data if isinstance(index, Tensor) else index
    return index.copy() if isinstance(index, np.ndarray) else index  # backward reads it again


def _flat(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
