"""What our own tests are made of, for yours: drawn sizes and arrays, gradient checks, error bounds.

The only module that needs Hypothesis (``pip install 'invocupy[testing]'``).

Draw sizes and options with :func:`geometries`, arrays in every memory layout with :func:`arrays`;
check a gradient that went through the tape with :func:`gradcheck`, an operator of
:mod:`invocupy.ops` with :func:`check_partials`; ask :func:`tolerance` how far a result may be off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from hypothesis import strategies as st

from invocupy.arrays import FLOATS, is_cupy, namespace, to_device
from invocupy.autograd import Tensor
from invocupy.geometry import Geometry
from invocupy.ops.basic import Result

Shape: TypeAlias = tuple[int, ...]
Values: TypeAlias = Literal["normal", "integers", "decades"]

LAYOUTS = ("C", "Fortran", "negative strides", "zero strides", "sliced")
"""The memory layouts that NumPy and CuPy arrays can have; see :func:`lay_out`."""

NUMPY_LAYOUTS = (*LAYOUTS, "big-endian", "unaligned", "read-only")
"""All memory layouts of :func:`lay_out`."""

_STEP = 1e-4  # differences of order h^4: truncation near 1e-16, rounding near 1e-12 of the value
_NOISE = 1e-9  # what rounding may leave of a difference quotient, relative to the value
_BEND = 1e-5  # a smooth function bends by some h^2 = 1e-8 of its slope; a kink by about the slope
_PRECISION = {  # unit roundoff, smallest positive number
    "float16": (2.0**-11, 2.0**-24),
    "bfloat16": (2.0**-8, 2.0**-133),
    "float32": (2.0**-24, 2.0**-149),
    "float64": (2.0**-53, 2.0**-1074),
}


@st.composite
def geometries(
    draw: st.DrawFn,
    *,
    max_batch: int = 3,
    max_groups: int = 3,
    max_channels_per_group: int = 5,
    max_size: int = 9,
    max_width: int | None = None,
    max_kernel: int = 5,
    max_stride: int = 3,
    max_dilation: int = 3,
    empty: bool = True,
) -> Geometry:
    """Draw the sizes and options of a valid involution.

    Rectangular and even kernels, strides past the kernel, dilations, paddings up to where a window
    sees nothing but zeros, and odd sizes are all among them.

    Parameters
    ----------
    max_batch, max_groups, max_channels_per_group, max_kernel, max_stride, max_dilation : int
        Limits, inclusive.
    max_size : int
        Limit of height and width; exceeded where the drawn kernel would not fit otherwise.
    max_width : int, optional
        Another limit for the width, say 300 for rows of several vector registers and tiles.
    empty : bool
        Whether, one time in eight, batch and sizes of image and result may be 0.

    Returns
    -------
    strategy of Geometry
        Shapes are its properties; :func:`options` gives the arguments.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import given, settings
    >>> import invocupy
    >>> from invocupy.testing import geometries, options
    >>> @settings(max_examples=5, deadline=None, database=None)
    ... @given(geometries(max_size=4))
    ... def test_shape(g):
    ...     out = invocupy.involution(np.ones(g.x_shape), np.ones(g.kernel_shape), **options(g))
    ...     assert out.shape == g.out_shape
    >>> test_shape()
    """
    empty = empty and draw(st.integers(0, 7)) == 7  # now and then: nothing happens in empty ones
    least = 0 if empty else 1

    def axis(most: int) -> tuple[int, int, int, int, int]:
        kernel, stride, dilation = (
            draw(st.integers(1, limit)) for limit in (max_kernel, max_stride, max_dilation)
        )
        reach = dilation * (kernel - 1)
        padding = draw(st.integers(0, reach + 1))
        fits = reach + 1 - 2 * padding - (stride if empty else 0)  # with less, no result at all
        low = max(fits, least)
        return draw(st.integers(low, max(low, most))), kernel, stride, padding, dilation

    groups = draw(st.integers(1, max_groups))
    channels = groups * draw(st.integers(1, max_channels_per_group))
    batch = draw(st.integers(least, max_batch))
    sizes = zip(axis(max_size), axis(max_size if max_width is None else max_width), strict=True)
    image, kernel, stride, padding, dilation = sizes
    out = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(image, kernel, stride, padding, dilation, strict=True)
    )
    return Geometry.of(
        (batch, channels, *image), (batch, groups, *kernel, *out), stride, padding, dilation
    )


def options(geometry: Geometry) -> dict[str, tuple[int, int]]:
    """The keyword arguments ``stride``, ``padding`` and ``dilation`` of a geometry.

    Parameters
    ----------
    geometry : Geometry

    Returns
    -------
    dict

    Examples
    --------
    >>> from invocupy import Geometry
    >>> from invocupy.testing import options
    >>> options(Geometry.of((1, 1, 5, 5), (1, 1, 3, 3, 3, 3), stride=2))
    {'stride': (2, 2), 'padding': (1, 1), 'dilation': (1, 1)}
    """
    g = geometry
    return {
        "stride": (g.stride_h, g.stride_w),
        "padding": (g.pad_h, g.pad_w),
        "dilation": (g.dilation_h, g.dilation_w),
    }


def arrays(
    shape: Shape,
    *,
    dtypes: Sequence[Any] = ("float32", "float64"),
    layouts: Sequence[str] | None = None,
    values: Values = "normal",
    xp: Any = np,
) -> st.SearchStrategy[Any]:
    """Draw an array: its dtype, the seed of its values, and how it lies in memory.

    Parameters
    ----------
    shape : tuple of int
    dtypes : sequence of dtypes
    layouts : sequence of str, optional
        Names for :func:`lay_out`; by default all that the library has.
    values : str
        ``"normal"``: of the standard normal distribution. ``"integers"``: in [-3, 3], so that sums
        of their products are exact in every order. ``"decades"``: of both signs, their size spread
        evenly over the twelve decades around 1.
    xp : module
        ``numpy`` or ``cupy``.

    Returns
    -------
    strategy of array

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from invocupy.testing import arrays
    >>> @settings(max_examples=5, deadline=None, database=None)
    ... @given(arrays((2, 3), dtypes=["float32"]))
    ... def test_array(array):
    ...     assert array.shape == (2, 3) and array.dtype.name == "float32"
    >>> test_array()
    """
    if layouts is None:
        layouts = NUMPY_LAYOUTS if xp is np else LAYOUTS

    def build(dtype: Any, seed: int, layout: str) -> Any:
        drawn = _values(np.random.default_rng(seed), shape, values)
        return lay_out(xp.asarray(drawn.astype(dtype)), layout)

    seeds = st.integers(0, 2**32 - 1)
    return st.builds(build, st.sampled_from(dtypes), seeds, st.sampled_from(layouts))


def _values(rng: np.random.Generator, shape: Shape, values: Values) -> np.ndarray[Any, Any]:
    match values:
        case "normal":
            return rng.standard_normal(shape)
        case "integers":
            return rng.integers(-3, 4, shape).astype(np.float64)
        case "decades":
            return np.asarray(rng.choice([-1.0, 1.0], shape) * 10 ** rng.uniform(-6, 6, shape))


def lay_out(array: Any, layout: str) -> Any:
    """A copy of an array that lies in memory in another way.

    Parameters
    ----------
    array : array of one or more dimensions, floating
    layout : str
        ``"C"``, ``"Fortran"``, ``"negative strides"`` (all axes), ``"zero strides"`` (the last
        axis: its first element stands for all, the one layout that changes values), ``"sliced"``
        (every second element of a larger array that is NaN elsewhere); for NumPy arrays also
        ``"big-endian"``, ``"unaligned"`` and ``"read-only"``.

    Returns
    -------
    array
        Equal to ``array``, but for ``"zero strides"``.

    Raises
    ------
    ValueError
        For another name.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.testing import lay_out
    >>> lay_out(np.ones((2, 3)), "negative strides").strides
    (-24, -8)
    """
    xp = namespace(array)
    match layout:
        case "C":
            return xp.array(array, order="C")
        case "Fortran":
            return xp.array(array, order="F")
        case "negative strides":
            backwards = (slice(None, None, -1),) * array.ndim
            return xp.array(array[backwards], order="C")[backwards]
        case "zero strides":
            return xp.broadcast_to(array[..., :1].copy(), array.shape)
        case "sliced":
            larger = xp.full([2 * n + 1 for n in array.shape], xp.nan, array.dtype)
            view = larger[(slice(1, None, 2),) * array.ndim]
        case "big-endian":
            return array.astype(array.dtype.newbyteorder(">"))
        case "unaligned":
            memory = np.empty(array.nbytes + 1, np.uint8)
            view = memory[1:].view(array.dtype).reshape(array.shape)
        case "read-only":
            view = array.copy()
            view.flags.writeable = False
            return view
        case _:
            raise ValueError(f"layout must be one of {NUMPY_LAYOUTS}, got {layout!r}")
    view[...] = array
    return view


def tolerance(
    function: Callable[..., Any], *arrays: Any, terms: int, dtype: Any = None, **options: Any
) -> np.ndarray[Any, Any]:
    """How far each element of ``function(*arrays)`` may be from the exact one.

    For sums of ``n`` products in any order, with or without fused multiply-add, in a precision of
    unit roundoff ``u``: ``n*u / (1 - n*u) * function(|arrays|)`` (Higham, Accuracy and Stability
    of Numerical Algorithms, 3.1), and ``n`` times the smallest positive number for products that
    underflow. Half types sum in float32 and round once more at the end. No constant is chosen.

    Parameters
    ----------
    function : callable
        A function that is a sum of products of its arguments, such as
        :func:`invocupy.reference.involution`. It is called with NumPy arrays of float64.
    *arrays : array or None
        Arguments as ``function`` takes them, here also CuPy's.
    terms : int
        ``n``: how many roundings one term passes through at most. Kh*Kw for involution and for the
        gradient of ``x``, C/G for that of ``kernel``; it adds up where sums are nested.
    dtype : dtype, optional
        Of the result; by default promoted from the arrays.
    **options
        Passed on to ``function``.

    Returns
    -------
    array of float64, shape of the result

    Examples
    --------
    >>> import numpy as np
    >>> import invocupy
    >>> from invocupy.testing import tolerance
    >>> x = np.full((1, 1, 4, 4), 0.1, np.float32)
    >>> kernel = np.full((1, 1, 3, 3, 4, 4), 0.3, np.float32)
    >>> exact = invocupy.reference.involution(x.astype(np.float64), kernel.astype(np.float64))
    >>> allowed = tolerance(invocupy.reference.involution, x, kernel, terms=9)
    >>> bool((abs(invocupy.involution(x, kernel) - exact) <= allowed).all())
    True
    """
    given = [None if a is None else to_device(a, "cpu") for a in arrays]
    if dtype is None:
        dtype = np.result_type(*(a.dtype for a in given if a is not None))
    name = np.dtype(dtype).name
    size = function(
        *(None if a is None else np.abs(a.astype(np.float64)) for a in given), **options
    )
    half = name in ("float16", "bfloat16")
    roundoff, smallest = _PRECISION["float32" if half else name]
    bound = terms * roundoff / (1 - terms * roundoff) * size + terms * smallest
    if half:
        roundoff, smallest = _PRECISION[name]
        bound = bound + roundoff * (size + bound) + smallest
    return np.asarray(bound)


def gradcheck(
    function: Callable[..., Any], *arrays: Any, seed: int = 0, rtol: float = 1e-6
) -> None:
    """Check the gradient that the tape gives against differences of the function itself.

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
        If the function has a kink at or next to the arrays, where no difference means anything:
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

    def evaluate(moved: list[Any]) -> Any:
        return function(*(Tensor(a) if _is_floating(a) else a for a in moved)).data

    for i, operand in enumerate(operands):
        if isinstance(operand, Tensor):
            gradient = operand.data * 0 if operand.grad is None else operand.grad
            _compare(
                f"gradient of argument {i}", evaluate, doubles, i, gradient, cotangent, rng, rtol
            )


def check_partials(
    op: Callable[..., Result], *arrays: Any, seed: int = 0, rtol: float = 1e-6, **options: Any
) -> None:
    """Check an operator ``op(*arrays, **options) -> (value, partials)`` against its contract.

    With the arrays as they are: one partial for each argument; a partial gives the shape, dtype and
    library of its argument, in memory that neither the arguments nor the value nor the operator
    itself use, the same whenever it is called; nothing is written to arguments, value and gradient.
    Then in float64, and with a gradient of negative strides, the slopes as in :func:`gradcheck`.

    Parameters
    ----------
    op : callable
        Of :mod:`invocupy.ops`, or one like them.
    *arrays : array, None or number
        Only floating arrays have their partial checked.
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
    value, partials = op(*arrays, **options)
    xp = namespace(value)
    _require(len(partials) == len(arrays), f"{len(partials)} partials for {len(arrays)} arguments")
    drawn = xp.asarray(_away_from_zero(rng, value.shape))
    grad = drawn.astype(value.dtype)
    before += [_bytes(value), _bytes(grad)]
    for i in _floating(arrays):
        first = _contract(i, partials[i], grad, arrays, value)
        again = partials[i](grad)
        _require(
            bool((again == first).all()), f"partial {i} gives another result when called again"
        )
    after = [_bytes(array) for array in (*arrays, value, grad)]
    names = (*(f"argument {i}" for i in range(len(arrays))), "the value", "the gradient")
    for name, old, new in zip(names, before, after, strict=True):
        _require(old == new, f"{name} was written to")

    doubles = [_double(array) for array in arrays]
    _, partials = op(*map(_widen, arrays), **options)
    grad = lay_out(drawn, "negative strides") if drawn.ndim else drawn

    def evaluate(moved: list[Any]) -> Any:
        return op(*moved, **options)[0]

    for i in _floating(arrays):
        _compare(f"partial {i}", evaluate, doubles, i, partials[i](grad), drawn, rng, rtol)


def _contract(i: int, partial: Any, grad: Any, arrays: Sequence[Any], value: Any) -> Any:
    """What partial ``i`` gives (a copy), which must be a proper array in memory of its own."""
    xp, array = namespace(value), arrays[i]
    result = partial(grad)
    _require(type(result) is type(array), f"partial {i} gives a {type(result).__name__}")
    _require(
        result.shape == array.shape,
        f"partial {i} has shape {result.shape}, its argument {array.shape}",
    )
    _require(
        result.dtype == array.dtype.newbyteorder("="),
        f"partial {i} has dtype {result.dtype}, its argument {array.dtype}",
    )
    for j in _floating(arrays):
        _require(
            not xp.may_share_memory(result, arrays[j]),
            f"partial {i} gives the memory of argument {j}",
        )
    copy = result.copy()
    if not xp.may_share_memory(result, grad):
        _require(
            not xp.may_share_memory(result, value), f"partial {i} gives the memory of the value"
        )
        if is_cupy(result) or result.flags.writeable:
            result[...] = xp.nan  # if the operator keeps this array, its next answer shows it
    return copy


def _compare(
    what: str,
    evaluate: Callable[[list[Any]], Any],
    arrays: list[Any],
    index: int,
    gradient: Any,
    cotangent: Any,
    rng: np.random.Generator,
    rtol: float,
) -> None:
    """``<gradient, d>`` against the slope of ``<cotangent, evaluate>`` along two directions d."""
    array, xp = arrays[index], namespace(arrays[index])
    level = float(abs(cotangent * evaluate(arrays)).sum())
    first, second = (xp.asarray(_away_from_zero(rng, array.shape)) for _ in range(2))
    signs = xp.sign(gradient)
    for direction in (xp.where(signs == 0, first, abs(first) * signs), second):

        def along(steps: int, direction: Any = direction) -> float:
            moved = array + steps * _STEP * direction
            value = evaluate([*arrays[:index], moved, *arrays[index + 1 :]])
            return float((cotangent * value).sum())

        low2, low, middle, high, high2 = (along(steps) for steps in range(-2, 3))
        numeric = (8 * (high - low) - (high2 - low2)) / (12 * _STEP)
        analytic = float((gradient * direction).sum())
        scale = float(abs(gradient * direction).sum())
        third = high2 - 2 * high + 2 * low - low2
        fourth = high2 - 4 * high + 6 * middle - 4 * low + low2
        if max(abs(third), abs(fourth)) / _STEP > _BEND * (scale + abs(numeric)) + _NOISE * level:
            raise ValueError(
                f"{what}: the function has a kink near the arrays: draw them elsewhere"
            )
        _require(
            abs(numeric - analytic) <= rtol * scale + _NOISE * level,
            f"{what} is wrong: {analytic!r} along a random direction, "
            f"but the function's slope is {numeric!r}",
        )


def _require(holds: bool, message: str) -> None:
    """An assertion that ``python -O`` keeps."""
    if not holds:
        raise AssertionError(message)


def _away_from_zero(rng: np.random.Generator, shape: Shape) -> np.ndarray[Any, Any]:
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.0, shape))


def _is_floating(array: Any) -> bool:
    return hasattr(array, "dtype") and array.dtype.name in FLOATS


def _floating(arrays: Sequence[Any]) -> Iterator[int]:
    return (i for i, array in enumerate(arrays) if _is_floating(array))


def _widen(array: Any) -> Any:
    """In float64, in the same layout where it is in float64 already; no array: as it is."""
    return array.astype(np.float64, copy=False) if _is_floating(array) else array


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
