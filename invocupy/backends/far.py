"""Problems whose windows reach far beyond the image, replaced by equivalent smaller ones.

Kernels pack, or pad, every row and column from the first to the last that a window sees. With a
large dilation, or a large padding and a large stride, nearly all of them lie outside the image.
Along such an axis, only the taps that meet the image for some output are kept. Their pixels are
copied, output by output, with zeros outside the image. In the copy the windows are adjacent: the
stride is the number of remaining taps, without padding or dilation. So the memory is bounded by
the sizes of the arrays, for any options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from invocupy.arrays import Array, namespace, wide
from invocupy.backends.signatures import Argument, functions
from invocupy.backends.windows import Window
from invocupy.geometry import Geometry, Shape

_MARGIN = 64  # rows or columns that may lie outside in any case
_TOGETHER = 8  # outputs along an axis whose windows a kernel packs at once, at least

Kernel: TypeAlias = Callable[..., None]


class _Axis(NamedTuple):
    """The taps that meet the image, and which pixel each output sees through each, or -1."""

    taps: slice
    places: np.ndarray[Any, np.dtype[np.int64]]


class Near(NamedTuple):
    """The equivalent problem; ``axes`` has None for an axis that stays as it is."""

    far: Geometry
    g: Geometry
    axes: tuple[_Axis | None, ...]

    def seen(self, x: Array) -> Array:
        """x (N, C, *S) as the remaining taps see it."""
        xp = namespace(x)
        for number, axis in enumerate(self.axes, 2):
            if axis is not None:
                x = xp.take(x, xp.asarray(np.maximum(axis.places, 0)), axis=number)
                x.swapaxes(number, -1)[..., xp.asarray(axis.places < 0)] = 0
        return xp.ascontiguousarray(x)  # type: ignore[no-any-return]

    def unseen(self, seen: Array, x: Array) -> None:
        """The transpose of :meth:`seen`: x becomes the sums over all that saw a pixel."""
        xp = namespace(x)
        for number, axis in enumerate(self.axes, 2):
            if axis is None:
                continue
            shape = [*seen.shape]
            shape[number] = x.shape[number]
            total = xp.zeros(shape, wide(x.dtype) or x.dtype)
            step = axis.taps.stop - axis.taps.start
            for tap in range(step):  # through one tap no two outputs see the same pixel
                places = axis.places[tap::step]
                outputs = xp.asarray(np.flatnonzero(places >= 0) * step + tap)
                share = seen.swapaxes(number, -1)[..., outputs]
                total.swapaxes(number, -1)[..., xp.asarray(places[places >= 0])] += share
            seen = total
        x[...] = seen

    def taps(self, role: str, array: Array) -> Array:
        """A view of the remaining taps of (., ., *K, ...), or of (G*prod(K), ...)."""
        if role == "w":
            array = array.reshape(-1, 1, *self.far.kernel, *array.shape[1:])
        taps = (slice(None) if axis is None else axis.taps for axis in self.axes)
        return array[(slice(None), slice(None), *taps)]

    def given(self, role: str, array: Array) -> Array:
        """What the equivalent problem has in place of ``array``."""
        if role in "kw":
            some = namespace(array).ascontiguousarray(self.taps(role, array))
            return some if role == "k" else some.reshape(-1, *array.shape[1:])  # type: ignore[no-any-return]
        return self.seen(array) if role == "x" else array

    def room(self, role: str, array: Array) -> Array:
        """An array for the result of the equivalent problem."""
        if role == "o":
            return array
        shape = (*array.shape[:2], *self.g.size) if role == "x" else self.given(role, array).shape
        return namespace(array).empty(shape, array.dtype)  # type: ignore[no-any-return]

    def fill(self, role: str, array: Array, part: Array) -> None:
        """Fill ``array`` from that result."""
        if role == "x":
            self.unseen(part, array)
        elif role in "kw":
            array[...] = 0  # no output sees anything through the other taps
            some = self.taps(role, array)
            some[...] = part.reshape(some.shape)


def bounded(function: Kernel) -> Kernel:
    """Decorate a wing's function of a windowed op; the table says what its arrays are.

    The function gets a geometry of two dimensions for one of one: the arrays have the same memory.
    """
    op = function.__module__.split(".")[3]
    given, filled = functions()[op][function.__name__]
    same = op == "involution_sum"  # whose windows keep the size of the image
    count, windowed = len(given) - 1, given[-1].name == "window"
    roles = [_role(argument, same) for argument in (*given, *filled)]
    places = {argument.shape[2:]: i for i, argument in enumerate((*given, *filled))}
    if windowed:
        x, weight, out = (places[axes] for axes in (("H", "W"), ("Kh", "Kw"), ("Ho", "Wo")))

    @wraps(function)
    def call(*arguments: Any) -> None:
        if windowed:
            image, taps, result = (arguments[place].shape for place in (x, weight, out))
            near = _near_window(image, taps, result, arguments[count])
        else:
            g = arguments[count]
            never = max(g.stride) == max(g.dilation) == 1
            near = None if never else near_of(g, same)
            if near is None and g.dims == 1:
                arguments = *arguments[:count], g.lifted(2), *arguments[count + 1 :]
        if near is None:
            function(*arguments)
            return
        g = near.g
        window = g.stride, g.padding, g.dilation
        results = list(zip(roles, arguments, strict=True))[count + 1 :]
        rooms = [near.room(*result) for result in results]
        operands = map(near.given, roles[:count], arguments)
        function(*operands, window if windowed else g.lifted(2), *rooms)
        for result, room in zip(results, rooms, strict=True):
            near.fill(*result, room)

    return call


def _role(argument: Argument, same: bool) -> str:
    """``x`` an image, ``k`` with axes of taps, ``w`` with rows of taps; ``o`` stays as it is."""
    shape = argument.shape
    if "Kh" in shape or "*K" in shape:
        return "k"
    if shape[:1] == ("T",):
        return "w"
    return "x" if shape[2:] in (("H", "W"), ("*S",)) and not same else "o"


def _near_window(x: Shape, weight: Shape, out: Shape, window: Window) -> Near | None:
    """:func:`near_of` for the shapes of three arrays and (stride, padding, dilation)."""
    stride, _, dilation = window
    if _is_near(weight[2:], stride, dilation):
        return None
    return _near(Geometry(x[0], x[1], 1, x[2:], weight[2:], out[2:], *window))


def near_block(parameters: Iterable[Array], g: Geometry) -> tuple[tuple[Array, ...], Geometry]:
    """The parameters and the geometry of :mod:`.involution_block`, of the remaining taps only."""
    near, parameters = near_of(g, same=True), tuple(parameters)
    if near is None:
        return parameters, g
    span = (near.given("w", array) for array in parameters[8:10])
    return (*parameters[:8], *span, *parameters[10:]), near.g


def near_of(g: Geometry, same: bool = False) -> Near | None:
    """The equivalent problem if windows reach too far, else None; None is found quickly.

    With ``same`` the window keeps the size as before, for functions that see no image.
    """
    return None if _is_near(g.kernel, g.stride, g.dilation) else _near(g, same)


def _is_near(size: Shape, stride: Shape, dilation: Shape) -> bool:
    """Whether at most the margin can lie outside, for any image."""
    for k, s, d in zip(size, stride, dilation, strict=True):
        if k * d + _TOGETHER * s > _MARGIN:
            return False
    return True


@lru_cache(maxsize=256)
def _near(g: Geometry, same: bool = False) -> Near | None:
    sizes = zip(g.size, g.kernel, g.out, g.stride, g.padding, g.dilation, strict=True)
    axes = tuple(_axis(*axis) for axis in sizes)
    if not any(axes):
        return None
    size, kernel, stride, padding, dilation = (
        list(field) for field in (g.size, g.kernel, g.stride, g.padding, g.dilation)
    )
    for i, axis in enumerate(axes):
        if axis is None:
            continue
        kernel[i] = axis.taps.stop - axis.taps.start
        if same:
            padding[i] = (kernel[i] - 1) // 2 * dilation[i]
        else:
            size[i], stride[i], padding[i], dilation[i] = len(axis.places), kernel[i], 0, 1
    near = g._replace(
        size=tuple(size), kernel=tuple(kernel), stride=tuple(stride), padding=tuple(padding),
        dilation=tuple(dilation),
    )  # fmt: skip
    return Near(g, near, axes)


def _axis(size: int, kernel: int, out: int, stride: int, pad: int, dilation: int) -> _Axis | None:
    reach = (min(out, _TOGETHER) - 1) * stride + (kernel - 1) * dilation + 1
    if reach <= size + kernel * out + _MARGIN or not (size and out):
        return None
    first = max(0, -(((out - 1) * stride - pad) // dilation))
    last = min(kernel, (pad + size - 1) // dilation + 1)
    if first >= last:  # none meets the image: one that sees zeros
        first, last = 0, 1
    taps = np.arange(first, last) * dilation - pad
    places = (np.arange(out)[:, None] * stride + taps).ravel()
    places[(places < 0) | (places >= size)] = -1
    return _Axis(slice(first, last), places)
