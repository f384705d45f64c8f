"""Sizes, options and arrays for tests, drawn by Hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from invocupy.arrays import Array
from invocupy.geometry import NAMES, Geometry
from invocupy.testing.layouts import LAYOUTS, NUMPY_LAYOUTS, lay_out

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "invocupy.testing needs Hypothesis, which is not installed: "
        "pip install 'invocupy[testing]'",
        name="hypothesis",
    ) from error

Shape: TypeAlias = tuple[int, ...]
Values: TypeAlias = Literal["normal", "integers", "decades"]


@st.composite
def geometries(
    draw: st.DrawFn,
    *,
    dims: int | Sequence[int] = 2,
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

    They include rectangular and even kernels, strides larger than the kernel, dilations, paddings
    so large that windows contain only zeros, and odd sizes.

    Parameters
    ----------
    dims : int or sequence of int
        How many spatial dimensions, 1 to 3; of several, one is drawn.
    max_batch, max_groups, max_channels_per_group, max_kernel, max_stride, max_dilation : int
        Limits, inclusive.
    max_size : int
        Limit of each spatial axis; exceeded where the drawn kernel would not fit otherwise.
    max_width : int, optional
        The limit of the last axis, such as 300 for rows of several vector registers and tiles.
    empty : bool
        Whether, one time in eight, batch and sizes of image and result may be 0.

    Returns
    -------
    strategy of Geometry
        Its properties are the shapes; :func:`options` returns the arguments.

    Raises
    ------
    ValueError
        When it draws, for other ``dims``.

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
    counts = [dims] if isinstance(dims, int) else list(dims)
    if not counts or not set(counts) <= NAMES.keys():
        raise ValueError(f"dims must be 1, 2 or 3, or several of them, got {dims!r}")
    count = draw(st.sampled_from(counts))
    limits = [max_size] * (count - 1) + [max_size if max_width is None else max_width]
    image, kernel, stride, padding, dilation = zip(*map(axis, limits), strict=True)
    out = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(image, kernel, stride, padding, dilation, strict=True)
    )
    return Geometry.of(
        (batch, channels, *image), (batch, groups, *kernel, *out), stride, padding, dilation
    )


def options(geometry: Geometry) -> dict[str, Shape]:
    """The keyword arguments ``stride``, ``padding`` and ``dilation`` of a geometry.

    Parameters
    ----------
    geometry : Geometry
        From :func:`geometries`.

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
    return {"stride": g.stride, "padding": g.padding, "dilation": g.dilation}


def arrays(
    shape: Shape,
    *,
    dtypes: Sequence[Any] = ("float32", "float64"),
    layouts: Sequence[str] | None = None,
    values: Values = "normal",
    xp: Any = np,
) -> st.SearchStrategy[Array]:
    """Draw an array: its dtype, the seed of its values, and its memory layout.

    Parameters
    ----------
    shape : tuple of int
        The sizes.
    dtypes : sequence of dtypes
        One is drawn.
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

    def build(dtype: Any, seed: int, layout: str) -> Array:
        drawn = _values(np.random.default_rng(seed), shape, values)
        return lay_out(xp.asarray(drawn.astype(dtype)), layout)

    seeds = st.integers(0, 2**32 - 1)
    return st.builds(build, st.sampled_from(dtypes), seeds, st.sampled_from(layouts))


def _values(rng: np.random.Generator, shape: Shape, values: Values) -> Array:
    match values:
        case "normal":
            return rng.standard_normal(shape)
        case "integers":
            return rng.integers(-3, 4, shape).astype(np.float64)
        case "decades":
            return np.asarray(rng.choice([-1.0, 1.0], shape) * 10 ** rng.uniform(-6, 6, shape))
