"""Gradient checks, of the tape and of single operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from invocupy.arrays import FLOATS, Array, is_cupy, namespace, to_device
from invocupy.autograd import Tensor
from invocupy.ops.declaration import Result, Vjp
from invocupy.testing.layouts import lay_out

_STEP = 1e-4  # differences of order h^4: truncation near 1e-16, rounding near 1e-12 of the value
_NOISE = 1e-9  # what rounding may leave of a difference quotient, relative to the value
_BEND = 1e-5  # a smooth function bends by some h^2 = 1e-8 of its slope; a kink by about the slope


def gradcheck(
    function: Callable[..., Any], *arrays: Any, seed: int = 0, rtol: float = 1e-6
) -> None:
    """Compare the gradient of the tape with finite differences of the function.

    In float64, for each floating array by itself: with a random cotangent ``v`` and two random
    directions ``d``, none of them with a component near zero, ``<gradient, d>`` must be the slope
    of ``t -> <v, function(array + t*d)>``, taken from five points. One direction follows the signs
    of the gradient, so that nothing cancels; a single wrong component among some hundred still
    shows.

    Parameters
    ----------
    function : callable
        Takes a Tensor for each array and returns a Tensor.
    *arrays : array
        Floating arrays become float64 Tensors that require a gradient; others are passed as they
        are. Their values should be of order 1.
    seed : int
        Of cotangent and directions.
    rtol : float
        Allowed error relative to ``sum |gradient * d|``.

    Raises
    ------
    AssertionError
        If a gradient is wrong, with both numbers.
    ValueError
        If the function has a kink at or near the arrays, where finite differences are meaningless:
        draw them away from it.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.testing import gradcheck
    >>> gradcheck(lambda x, y: (x * y).tanh(), np.ones((2, 3)), np.arange(3.0))
    """
    rng = np.random.default_rng(seed)
    doubles = [_double(array) for array in arrays]
    operands = [Tensor(a, requires_grad=True) if _is_floating(a) else a for a in doubles]
    value = function(*operands)
    if not isinstance(value, Tensor):
        raise TypeError(f"function must return a Tensor, got {type(value).__name__}")
    cotangent = namespace(value.data).asarray(_away_from_zero(rng, value.shape))
    value.backward(cotangent)
    slopes = _Slopes(
        lambda moved: function(*(Tensor(a) if _is_floating(a) else a for a in moved)).data,
        doubles, cotangent, rng, rtol,
    )  # fmt: skip
    for i in _floating(doubles):
        found = operands[i].grad
        gradient = operands[i].data * 0 if found is None else found
        slopes.compare(f"gradient of argument {i}", i, gradient)


def check_partials(
    op: Callable[..., Result], *arrays: Any, seed: int = 0, rtol: float = 1e-6, **options: Any
) -> None:
    """Check an operator ``op(*arrays, **options) -> (value, vjps)`` against its contract.

    With the arrays as they are: there is one vjp for each argument; its result has the shape, dtype
    and library of the argument, is repeatable, and shares no memory with the arguments, the value
    or the operator; arguments, value and gradient are not modified.
    Then in float64, and with a gradient of negative strides, the slopes as in :func:`gradcheck`.

    Parameters
    ----------
    op : callable
        An operator of :mod:`invocupy.ops`, or one like them.
    *arrays : array, None or number
        Only floating arrays have their vjp checked.
    seed, rtol
        As in :func:`gradcheck`.
    **options
        Passed on to ``op``.

    Raises
    ------
    AssertionError
        Naming the broken rule.
    ValueError
        At a kink, as :func:`gradcheck`.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import ops
    >>> from invocupy.testing import check_partials
    >>> check_partials(ops.linear, np.ones((2, 3)), np.ones((4, 3)), np.ones(4))
    """
    rng = np.random.default_rng(seed)
    before = [_bytes(array) for array in arrays]
    value, vjps = op(*arrays, **options)
    _require(len(vjps) == len(arrays), f"{len(vjps)} partials for {len(arrays)} arguments")
    drawn = namespace(value).asarray(_away_from_zero(rng, value.shape))
    grad = drawn.astype(value.dtype)
    before += [_bytes(value), _bytes(grad)]
    for i in _floating(arrays):
        first = _contract(i, vjps[i], grad, arrays, value)
        again = (vjps[i](grad) == first).all()
        _require(again, f"partial {i} gives another result when called again")
    after = [_bytes(array) for array in (*arrays, value, grad)]
    names = (*(f"argument {i}" for i in range(len(arrays))), "the value", "the gradient")
    for name, old, new in zip(names, before, after, strict=True):
        _require(old == new, f"{name} was written to")

    wide = [a.astype(np.float64, copy=False) if _is_floating(a) else a for a in arrays]
    _, vjps = op(*wide, **options)  # in the same layout where they are in float64 already
    grad = lay_out(drawn, "negative strides") if drawn.ndim else drawn
    doubles = [_double(array) for array in arrays]
    slopes = _Slopes(lambda moved: op(*moved, **options)[0], doubles, drawn, rng, rtol)
    for i in _floating(arrays):
        first = vjps[i](grad).copy()
        slopes.compare(f"partial {i}", i, first)
        grad[...] = -grad  # a caller may fill its array again
        again = (vjps[i](grad) == -first).all()
        _require(again, f"partial {i} gives the result of what its gradient held before")
        grad[...] = -grad


def _contract(i: int, vjp: Vjp, grad: Array, arrays: Sequence[Any], value: Array) -> Array:
    """What vjp ``i`` gives (a copy), which must be a proper array in memory of its own."""
    array, shared = arrays[i], namespace(value).may_share_memory
    result: Array = vjp(grad)
    _require(type(result) is type(array), f"partial {i} gives a {type(result).__name__}")
    for name, found, wanted in (
        ("shape", result.shape, array.shape),
        ("dtype", result.dtype, array.dtype.newbyteorder("=")),
    ):
        _require(found == wanted, f"partial {i} has {name} {found}, its argument {wanted}")
    for j in _floating(arrays):
        _require(not shared(result, arrays[j]), f"partial {i} gives the memory of argument {j}")
    copy = result.copy()
    if not shared(result, grad):
        _require(not shared(result, value), f"partial {i} gives the memory of the value")
        if is_cupy(result) or result.flags.writeable:
            result[...] = np.nan  # if the operator keeps this array, its next answer shows it
    return copy


class _Slopes(NamedTuple):
    """Gradients against differences of ``<cotangent, evaluate(arrays)>``."""

    evaluate: Callable[[list[Any]], Array]
    arrays: list[Any]
    cotangent: Array
    rng: np.random.Generator
    rtol: float

    def compare(self, what: str, index: int, gradient: Array) -> None:
        """``<gradient, d>`` against the slope along two directions d of one array."""
        array, xp = self.arrays[index], namespace(self.arrays[index])
        noise = _NOISE * float(abs(self.cotangent * self.evaluate(self.arrays)).sum())
        first, second = (xp.asarray(_away_from_zero(self.rng, array.shape)) for _ in range(2))
        signs = xp.sign(gradient)
        for direction in (xp.where(signs == 0, first, abs(first) * signs), second):
            values = []
            for steps in range(-2, 3):
                moved = [*self.arrays]
                moved[index] = array + steps * _STEP * direction
                values.append(float((self.cotangent * self.evaluate(moved)).sum()))
            low2, low, middle, high, high2 = values
            numeric = (8 * (high - low) - (high2 - low2)) / (12 * _STEP)
            analytic = float((gradient * direction).sum())
            scale = float(abs(gradient * direction).sum())
            third = high2 - 2 * high + 2 * low - low2
            fourth = high2 - 4 * high + 6 * middle - 4 * low + low2
            if max(abs(third), abs(fourth)) / _STEP > _BEND * (scale + abs(numeric)) + noise:
                raise ValueError(
                    f"{what}: the function has a kink near the arrays: draw them elsewhere"
                )
            _require(
                abs(numeric - analytic) <= self.rtol * scale + noise,
                f"{what} is wrong: {analytic!r} along a random direction, "
                f"but the function's slope is {numeric!r}",
            )


def _require(holds: object, message: str) -> None:
    """An assertion that ``python -O`` keeps."""
    if not holds:
        raise AssertionError(message)


def _away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.0, shape))


def _is_floating(array: Any) -> bool:
    return hasattr(array, "dtype") and array.dtype.name in FLOATS


def _floating(arrays: Sequence[Any]) -> Iterator[int]:
    return (i for i, array in enumerate(arrays) if _is_floating(array))


def _double(array: Any) -> Any:
    """A contiguous copy in float64; no floating array: as it is."""
    if not _is_floating(array):
        return array
    return namespace(array).array(array, dtype=np.float64, order="C")


def _bytes(array: Any) -> bytes | None:
    """All of an array's memory, also what a view leaves out."""
    if not hasattr(array, "dtype"):
        return None
    owner = array if array.base is None else array.base
    return to_device(owner, "cpu").tobytes()  # type: ignore[no-any-return]
