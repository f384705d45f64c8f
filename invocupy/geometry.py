"""Sizes of one involution, which are computed and checked only here.

Convolution and pooling use the same rules through :func:`per_axis`, :func:`padding_per_axis` and
:func:`output_size`. All options are read with :func:`number` and :func:`integer`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from invocupy.messages import layout_hint, shown

Shape: TypeAlias = tuple[int, ...]
IntOrTuple: TypeAlias = int | Shape
Padding: TypeAlias = IntOrTuple | Literal["same", "valid"]


class Names(NamedTuple):
    """Words for messages: an option with one value for each dimension, and the axes of arrays."""

    option: str
    image: str
    kernel: str
    out: str


NAMES = {
    1: Names("a tuple of one", "W", "Kw", "Wo"),
    2: Names("a pair", "H, W", "Kh, Kw", "Ho, Wo"),
    3: Names("a triple", "D, H, W", "Kd, Kh, Kw", "Do, Ho, Wo"),
}


def number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """Read a finite number from ``low`` to ``high``, of Python or NumPy, as a Python float.

    A NumPy float64 would promote float32 arrays; a Python float does not.
    """
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    real = isinstance(plain, Real) and not isinstance(plain, bool)
    try:
        found = float(plain) if real else math.nan
    except OverflowError:
        found = math.inf
    if not low <= found <= high or math.isinf(found):
        rule = f"in [{low}, {high}]" if high < math.inf else f"a finite number >= {low}"
        raise ValueError(f"{name} must be {rule}, got {shown(value)}")
    return found


def integer(name: str, value: Any, minimum: int) -> int:
    """Read an integer option, of Python or NumPy."""
    numbers = _integers(value)
    if not numbers or numbers[0] < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {shown(value)}")
    return numbers[0]


def _integers(*items: Any) -> tuple[int, ...]:
    """The items as Python integers; () if one is a bool or not an integer."""
    try:
        if any(isinstance(item, (bool, np.bool_)) for item in items):
            return ()
        return tuple(operator.index(item) for item in items)
    except TypeError:
        return ()


def per_axis(name: str, value: Any, minimum: int, dims: int = 2) -> Shape:
    """Read an option that is an integer, or a tuple with one for each spatial axis."""
    items = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims
    numbers = _integers(*items)
    if len(numbers) != dims or min(numbers) < minimum:
        raise ValueError(
            f"{name} must be an integer >= {minimum} or {NAMES[dims].option} of them, "
            f"got {shown(value)}"
        )
    if max(numbers) >= 1 << 31:
        raise ValueError(f"{name} must be below 2**31, got {shown(value)}")
    return numbers


def padding_per_axis(value: Any, kernel_size: Shape, dilation: Shape) -> Shape:
    """Read a padding option: an integer, a tuple, ``"same"`` or ``"valid"``."""
    dims = len(kernel_size)
    if not isinstance(value, str):
        return per_axis("padding", value, 0, dims)
    if value == "valid":
        return (0,) * dims
    option = NAMES[dims].option
    if value != "same":
        raise ValueError(
            f"padding must be 'same', 'valid', an integer or {option}, got {shown(value)}"
        )
    if not all(k % 2 for k in kernel_size):
        raise ValueError(
            f"padding='same' needs an odd kernel size, got {by(kernel_size)}: "
            f"an even kernel has no centre, so give the padding as an integer or {option}"
        )
    return tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel_size, strict=True))


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """``floor((size + 2*padding - dilation*(kernel-1) - 1) / stride) + 1``; < 0 if nothing fits."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def by(sizes: Sequence[int]) -> str:
    """Sizes in a message: 3x3."""
    return "x".join(map(str, sizes))


def check_rank(x: Any, dims: int) -> None:
    """ValueError unless x is (N, C, *S) with ``dims`` spatial dimensions."""
    shape = tuple(getattr(x, "shape", ()))  # operators check for arrays
    if shape and len(shape) != dims + 2:
        hint = layout_hint(shape, None, dims)
        raise ValueError(f"x must be (N, C, {NAMES[dims].image}), got shape {shape}{hint}")


def _options(
    kernel: Shape, stride: IntOrTuple, padding: Padding, dilation: IntOrTuple
) -> tuple[Shape, Shape, Shape]:
    dims = len(kernel)
    strides = per_axis("stride", stride, 1, dims)
    dilations = per_axis("dilation", dilation, 1, dims)
    return strides, padding_per_axis(padding, kernel, dilations), dilations


def _is_exact(option: Any) -> bool:
    """Whether the option may be a cache key: True equals 1, but is an error."""
    if type(option) is tuple:
        return all(type(item) is int for item in option)
    return type(option) in (int, str)


def _dimensions(x_shape: Shape, name: str, other: int, rank: int) -> int:
    """The number of spatial dimensions of x, next to an array of ``rank`` with ``other`` of them.

    If they differ, the message assumes two dimensions if one of them has two, else those of x.
    """
    dims = len(x_shape) - 2
    wanted = other if other == 2 or dims not in NAMES else dims
    if wanted == dims and dims in NAMES:
        return dims
    fits = "3, 4 or 5 dimensions, (N, C, W), (N, C, H, W) or (N, C, D, H, W)"
    if wanted in NAMES:
        fits = f"{wanted + 2} dimensions (N, C, {NAMES[wanted].image})"
    why = f": that fits {name} of {rank} dimensions" if dims in NAMES else ""
    why += layout_hint(x_shape, None, wanted) if wanted in NAMES else ""
    raise ValueError(f"x must have {fits}, got shape {x_shape}{why}")


def _explained(
    error: ValueError, check: Callable[..., Geometry], x_shape: Shape, *others: Any
) -> ValueError:
    """``error`` of ``check(x_shape, *others)``; or one about x with channels last, if that fits."""
    moved, dims = (*x_shape[:1], *x_shape[-1:], *x_shape[1:-1]), len(x_shape) - 2
    hint = layout_hint(x_shape, moved[1], dims) if dims in NAMES else ""
    with suppress(ValueError):
        if hint and check(moved, *others):
            return ValueError(f"x must be (N, C, {NAMES[dims].image}), got shape {x_shape}{hint}")
    return error


class Geometry(NamedTuple):
    """All sizes of one involution in 1, 2 or 3 spatial dimensions, checked.

    Build it with :meth:`of`, which raises ``ValueError`` for shapes and options that do not fit
    together. The fields ``size`` to ``dilation`` have an ``int`` for each spatial axis.

    Examples
    --------
    >>> g = Geometry.of((2, 32, 7, 7), (2, 2, 3, 3, 4, 4), stride=2)
    >>> g.out_shape, g.kernel_shape, g.channels_per_group
    ((2, 32, 4, 4), (2, 2, 3, 3, 4, 4), 16)
    >>> g.size, g.kernel, g.out, g.stride, g.padding, g.dilation
    ((7, 7), (3, 3), (4, 4), (2, 2), (1, 1), (1, 1))
    """

    batch: int
    channels: int
    groups: int
    size: Shape
    kernel: Shape
    out: Shape
    stride: Shape
    padding: Shape
    dilation: Shape

    @classmethod
    def of(
        cls, x_shape: Shape, kernel_shape: Shape, stride: IntOrTuple = 1,
        padding: Padding = "same", dilation: IntOrTuple = 1,
    ) -> Geometry:  # fmt: skip
        """Check the shapes of ``x`` (N, C, *S) and ``kernel`` (N, G, *K, *O).

        Raises
        ------
        ValueError
            Naming the argument, the rule, the values and the way out.
        """
        exact = _is_exact(stride) and _is_exact(padding) and _is_exact(dilation)
        make = _known if exact else cls._checked
        others = tuple(kernel_shape), stride, padding, dilation
        try:
            return make(tuple(x_shape), *others)
        except ValueError as error:
            raise _explained(error, make, tuple(x_shape), *others) from None

    @classmethod
    def _checked(
        cls, x_shape: Shape, kernel_shape: Shape, stride: IntOrTuple, padding: Padding,
        dilation: IntOrTuple,
    ) -> Geometry:  # fmt: skip
        rank = len(kernel_shape)
        dims = _dimensions(x_shape, "a kernel", 0 if rank % 2 else rank // 2 - 1, rank)
        names = NAMES[dims]
        if rank != 2 * dims + 2:
            flat = f"G*{names.kernel.replace(', ', '*')}"
            raise ValueError(
                f"kernel must have {2 * dims + 2} dimensions (N, G, {names.kernel}, {names.out}), "
                f"got shape {kernel_shape}: reshape a flat (N, {flat}, {names.out}) array first"
            )
        (batch, channels, *sizes), (kernel_batch, groups) = x_shape, kernel_shape[:2]
        kernel, positions = kernel_shape[2 : 2 + dims], kernel_shape[2 + dims :]
        if kernel_batch != batch:
            raise ValueError(
                f"kernel must have the batch size of x: kernel {kernel_shape} has {kernel_batch}, "
                f"x {x_shape} has {batch}"
            )
        if groups < 1 or channels % groups:
            raise ValueError(
                f"kernel must have a number of groups that divides the channels of x: "
                f"kernel {kernel_shape} has G={groups}, x {x_shape} has C={channels}"
            )
        if min(kernel) < 1:
            taps = ", ".join(map("{}={}".format, names.kernel.split(", "), kernel))
            raise ValueError(
                f"kernel must have at least one tap, got {taps} in shape {kernel_shape}"
            )
        strides, pads, dilations = options = _options(kernel, stride, padding, dilation)
        out = tuple(map(output_size, sizes, kernel, *options))
        said = f"kernel size {by(kernel)}, stride {strides}, padding {pads}, dilation {dilations}"
        if min(out) < 0:
            raise ValueError(
                f"x of {by(sizes)} is too small for {said}: give more padding or a smaller kernel"
            )
        if positions != out:
            pool = " (a stride needs ceil-mode pooling before the kernel generator)"
            raise ValueError(
                f"kernel has {by(positions)} positions, but x of {by(sizes)} "
                f"with {said} gives {by(out)}: make one kernel for each output position"
                f"{pool if max(strides) > 1 else ''}"
            )
        return cls(batch, channels, groups, tuple(sizes), kernel, out, strides, pads, dilations)

    @property
    def dims(self) -> int:
        """The number of spatial dimensions: 1, 2 or 3."""
        return len(self.size)

    @property
    def channels_per_group(self) -> int:
        """C / G, the number of channels that share a kernel."""
        return self.channels // self.groups

    @property
    def x_shape(self) -> Shape:
        """(N, C, *S)."""
        return self.batch, self.channels, *self.size

    @property
    def kernel_shape(self) -> Shape:
        """(N, G, *K, *O)."""
        return self.batch, self.groups, *self.kernel, *self.out

    @property
    def out_shape(self) -> Shape:
        """(N, C, *O)."""
        return self.batch, self.channels, *self.out

    def lifted(self, dims: int) -> Geometry:
        """The same involution in ``dims`` or more dimensions; the new, leading axes have size 1."""
        return self if dims <= len(self.size) else _lifted(self, dims)

    def check_grad(self, grad_out: Any) -> None:
        """ValueError unless ``grad_out`` has the shape of the result."""
        if grad_out.shape != self.out_shape:
            raise ValueError(
                f"grad_out must have the shape of the result, {self.out_shape}, "
                f"got {grad_out.shape}"
            )

    def record(self) -> np.void:
        """All fields, in two or three dimensions, as consecutive ``int32``, for CUDA source.

        Raises
        ------
        ValueError
            If a size, with its padding, does not fit 32 bits (offsets into arrays are 64-bit
            everywhere).
        """
        g = self.lifted(2)
        options = *g.size, *g.kernel, *g.out, *g.stride, *g.padding, *g.dilation
        padded = (n + 2 * p for n, p in zip(g.size, g.padding, strict=True))
        if max(g.batch, g.channels, *options, *padded) > np.iinfo(np.int32).max:
            raise ValueError(f"x has a size past 2**31 - 1 in one dimension: {self}")
        return np.array([(g.batch, g.channels, g.groups, *options)], _RECORDS[g.dims])[0]  # type: ignore[no-any-return]


_RECORDS = {dims: np.dtype([("", np.int32)] * (3 + 6 * dims)) for dims in (2, 3)}


@lru_cache(maxsize=512)
def _lifted(g: Geometry, dims: int) -> Geometry:
    one, zero = ((number,) * (dims - g.dims) for number in (1, 0))
    return g._replace(
        size=one + g.size, kernel=one + g.kernel, out=one + g.out, stride=one + g.stride,
        padding=zero + g.padding, dilation=one + g.dilation,
    )  # fmt: skip


# For small arrays the checks would take longer than the operator.
_known = lru_cache(maxsize=512)(Geometry._checked)


def fused_geometry(x_shape: Shape, *others: Any) -> Geometry:
    """The geometry of the involution whose kernel the span generates.

    ``others`` are the shapes of features, span_weight and span_bias (or None) and the options
    kernel_size, stride, padding and dilation.

    Raises
    ------
    ValueError
        Naming the argument whose shape does not fit the others.
    """
    try:
        return _fused_geometry(tuple(x_shape), *others)
    except ValueError as error:
        raise _explained(error, _fused_geometry, tuple(x_shape), *others) from None


def _fused_geometry(
    x_shape: Shape, features_shape: Shape, weight_shape: Shape, bias_shape: Shape | None,
    kernel_size: IntOrTuple, stride: IntOrTuple = 1, padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> Geometry:  # fmt: skip
    features_shape, weight_shape = tuple(features_shape), tuple(weight_shape)
    rank = len(features_shape)
    dims = _dimensions(x_shape, "features", rank - 2, rank)
    names, kernel = NAMES[dims], per_axis("kernel_size", kernel_size, 1, dims)
    if len(features_shape) != dims + 2 or features_shape[1] < 1:
        raise ValueError(
            f"features must have {dims + 2} dimensions (N, F, {names.out}) with F >= 1, "
            f"got {features_shape}"
        )
    batch, width, *positions = features_shape
    taps, rows = math.prod(kernel), names.kernel.replace(", ", "*")
    if len(weight_shape) != 2 or weight_shape[0] % taps or not weight_shape[0]:
        raise ValueError(
            f"span_weight must have shape (G*{rows}, F) with {rows} = {taps}, "
            f"got {weight_shape}: {rows} rows for each group"
        )
    groups = weight_shape[0] // taps
    if weight_shape[1] != width:
        raise ValueError(
            f"span_weight must have as many columns as features has channels, "
            f"got span_weight {weight_shape} and features {features_shape}"
        )
    if bias_shape is not None and bias_shape != weight_shape[:1]:
        raise ValueError(f"span_bias must have shape {weight_shape[:1]}, got {bias_shape}")
    # Say "features", not "kernel", where it is the features that do not fit.
    options = _options(kernel, stride, padding, dilation)
    if x_shape[1] % groups:
        raise ValueError(
            f"span_weight must have G*{rows} rows with a G that divides the channels of x: "
            f"span_weight {weight_shape} with {rows} = {taps} has G={groups}, "
            f"x {x_shape} has C={x_shape[1]}"
        )
    out = list(map(output_size, x_shape[2:], kernel, *options))
    if min(out) >= 0 and (x_shape[0], out) != (batch, positions):
        raise ValueError(
            f"features {features_shape} must have the batch size and the output size of the "
            f"involution, {x_shape[0]} and {by(out)} for x {x_shape}, got {batch} "
            f"and {by(positions)}: make one feature vector for each output position"
        )
    kernel_shape = (batch, groups, *kernel, *positions)
    return Geometry.of(x_shape, kernel_shape, stride, padding, dilation)
