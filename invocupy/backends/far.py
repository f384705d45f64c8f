"""Problems whose windows reach far beyond the image, replaced by equivalent smaller ones.

Kernels pack, or pad, every row and column from the first to the last that a window sees. With a
large dilation, or a large padding and a large stride, nearly all of them lie outside the image.
Along such an axis, only the taps that meet the image for some output are kept. The pixels that
they see are copied, output after output, with zeros outside the image. In the copy the windows lie
side by side: the stride is the number of remaining taps, without padding or dilation. So the sizes
of the arrays bound the memory, whatever the options are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import numpy as np

from invocupy.arrays import namespace
from invocupy.geometry import Geometry

_MARGIN = 64  # rows or columns that may lie outside in any case
_TOGETHER = 8  # outputs along an axis whose windows a kernel packs at once, at least


class _Axis(NamedTuple):
    """The taps that meet the image, and which pixel each output sees through each, or -1."""

    taps: slice
    places: np.ndarray


class Near(NamedTuple):
    """The equivalent problem; ``axes`` has None for an axis that stays as it is."""

    far: Geometry
    g: Geometry
    axes: tuple[_Axis | None, _Axis | None]

    def seen(self, x: Any) -> Any:
        """x (N, C, H, W) as the remaining taps see it."""
        xp = namespace(x)
        for number, axis in enumerate(self.axes):
            if axis is not None:
                x = xp.take(x, xp.asarray(np.maximum(axis.places, 0)), axis=2 + number)
                x.swapaxes(2 + number, 3)[..., xp.asarray(axis.places < 0)] = 0
        return xp.ascontiguousarray(x)

    def unseen(self, seen: Any, x: Any) -> None:
        """The transpose of :meth:`seen`: x becomes the sums over all that saw a pixel."""
        xp = namespace(x)
        for number, axis in enumerate(self.axes):
            if axis is None:
                continue
            shape = [*seen.shape]
            shape[2 + number] = x.shape[2 + number]
            total = xp.zeros(shape, np.float32 if x.itemsize == 2 else x.dtype)
            step = axis.taps.stop - axis.taps.start
            for tap in range(step):  # through one tap no two outputs see the same pixel
                places = axis.places[tap::step]
                outputs = xp.asarray(np.flatnonzero(places >= 0) * step + tap)
                share = seen.swapaxes(2 + number, 3)[..., outputs]
                total.swapaxes(2 + number, 3)[..., xp.asarray(places[places >= 0])] += share
            seen = total
        x[...] = seen

    def taps(self, array: Any) -> Any:
        """The remaining taps of an array (., ., Kh, Kw, ...), as a view."""
        u, v = (slice(None) if axis is None else axis.taps for axis in self.axes)
        return array[:, :, u, v]

    def rows(self, array: Any) -> Any:
        """The remaining taps of an array (G*Kh*Kw, ...)."""
        some = self.taps(self.split(array))
        return namespace(array).ascontiguousarray(some.reshape(-1, *array.shape[1:]))

    def split(self, array: Any) -> Any:
        """A view of (G*Kh*Kw, ...) as (G, 1, Kh, Kw, ...)."""
        size = self.far.kernel_h, self.far.kernel_w
        return array.reshape(-1, 1, *size, *array.shape[1:])


def bounded(inputs: str, results: str, same: bool = False) -> Callable[[Any], Any]:
    """Decorate a backend's function of ``inputs``, a Geometry and ``results``.

    A letter for each array says what it is: ``x`` an image (N, C, H, W), ``k`` one with taps in
    axes 2 and 3, ``w`` one with the taps of all groups in axis 0; any other letter, that it stays
    as it is. With ``same``, for functions without an ``x``, the window keeps the size as before.
    """
    count = len(inputs)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def call(*arguments: Any) -> None:
            g = arguments[count]
            if g.stride_h == g.stride_w == g.dilation_h == g.dilation_w == 1:  # never far
                function(*arguments)
                return
            near = near_of(g, same)
            if near is None:
                function(*arguments)
                return
            given, wanted = arguments[:count], arguments[count + 1 :]
            _run(near, function, given, near.g, wanted, inputs, results)

        return call

    return decorate


def bounded_windows(inputs: str, results: str) -> Callable[[Any], Any]:
    """:func:`bounded` for functions that get (stride, padding, dilation) in place of a Geometry.

    The first ``x``, ``k`` and ``o`` are the image, the weights and the output, or their gradients.
    """
    count, roles = len(inputs), inputs + results
    x, weight, out = (i + (i >= count) for i in map(roles.index, "xko"))

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def call(*arguments: Any) -> None:
            stride, padding, dilation = arguments[count]
            size = arguments[weight].shape[2:]
            if _is_near(*size, *stride, *dilation):
                function(*arguments)
                return
            shape, seen = arguments[x].shape, arguments[out].shape[2:]
            sizes = *shape[:2], 1, *shape[2:], *size, *seen, *stride, *padding, *dilation
            near = _near(Geometry(*sizes), False)
            if near is None:
                function(*arguments)
                return
            g = near.g
            window = (g.stride_h, g.stride_w), (g.pad_h, g.pad_w), (g.dilation_h, g.dilation_w)
            given, wanted = arguments[:count], arguments[count + 1 :]
            _run(near, function, given, window, wanted, inputs, results)

        return call

    return decorate


def _run(
    near: Near, function: Callable[..., None], given: Any, window: Any, wanted: Any,
    inputs: str, results: str,
) -> None:  # fmt: skip
    """Call ``function`` for the equivalent problem, with ``window`` in place of the options."""
    xp = namespace(given[0])
    change: dict[str, Callable[[Any], Any]] = {
        "x": near.seen, "k": lambda a: xp.ascontiguousarray(near.taps(a)), "w": near.rows,
    }  # fmt: skip
    make: dict[str, Callable[[Any], Any]] = {
        "x": lambda a: xp.empty((*a.shape[:2], near.g.height, near.g.width), a.dtype),
        "k": lambda a: xp.empty(near.taps(a).shape, a.dtype),
        "w": lambda a: xp.empty(near.rows(a).shape, a.dtype),
    }

    def each(how: dict[str, Callable[[Any], Any]], roles: str, arrays: Any) -> list[Any]:
        pairs = zip(roles, arrays, strict=True)
        return [how[role](array) if role in how else array for role, array in pairs]

    made = each(make, results, wanted)
    function(*each(change, inputs, given), window, *made)
    for role, part, array in zip(results, made, wanted, strict=True):
        if role == "x":
            near.unseen(part, array)
        elif role in make:  # no output sees anything through the other taps
            array[...] = 0
            some = near.taps(array if role == "k" else near.split(array))
            some[...] = part.reshape(some.shape)


def near_block(parameters: tuple[Any, ...], g: Geometry) -> tuple[tuple[Any, ...], Geometry]:
    """The parameters and the geometry of :mod:`.involution_block`, of the remaining taps only."""
    near = near_of(g, same=True)
    if near is None:
        return parameters, g
    span = map(near.rows, parameters[8:10])
    return (*parameters[:8], *span, *parameters[10:]), near.g


def near_of(g: Geometry, same: bool = False) -> Near | None:
    """The equivalent problem if windows reach too far, else None; None is found quickly."""
    if _is_near(g.kernel_h, g.kernel_w, g.stride_h, g.stride_w, g.dilation_h, g.dilation_w):
        return None
    return _near(g, same)


def _is_near(
    kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, dilation_h: int, dilation_w: int
) -> bool:
    """Whether no more than the margin can lie outside, whatever the image."""
    return (
        kernel_h * dilation_h + _TOGETHER * stride_h <= _MARGIN
        and kernel_w * dilation_w + _TOGETHER * stride_w <= _MARGIN
    )


@lru_cache(maxsize=256)
def _near(g: Geometry, same: bool) -> Near | None:
    down = _axis(g.height, g.kernel_h, g.out_h, g.stride_h, g.pad_h, g.dilation_h)
    across = _axis(g.width, g.kernel_w, g.out_w, g.stride_w, g.pad_w, g.dilation_w)
    if down is None and across is None:
        return None
    near = g
    for name, other, axis in (("h", "height", down), ("w", "width", across)):
        if axis is None:
            continue
        taps = axis.taps.stop - axis.taps.start
        sizes = {f"kernel_{name}": taps}
        if same:
            sizes[f"pad_{name}"] = (taps - 1) // 2 * getattr(g, f"dilation_{name}")
        else:
            sizes |= {other: len(axis.places), f"stride_{name}": taps}
            sizes |= {f"pad_{name}": 0, f"dilation_{name}": 1}
        near = replace(near, **sizes)
    return Near(g, near, (down, across))


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
