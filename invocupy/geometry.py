"""Sizes of one involution: the one place where they are computed and shape errors are raised.

The same rules serve convolution and pooling through :func:`pair`, :func:`padding_pair` and
:func:`output_size`. Options everywhere are read with :func:`number` and :func:`integer`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]
IntOrPair: TypeAlias = int | Pair
Padding: TypeAlias = IntOrPair | Literal["same", "valid"]


def number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """Read a finite number from ``low`` to ``high``, also one of NumPy's, as a Python float.

    NumPy's float64 would promote arrays of float32, Python's does not.
    """
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    real = isinstance(plain, Real) and not isinstance(plain, bool)
    try:
        found = float(plain) if real else math.nan
    except OverflowError:
        found = math.inf
    if not low <= found <= high or math.isinf(found):
        rule = f"in [{low}, {high}]" if high < math.inf else f"a finite number >= {low}"
        raise ValueError(f"{name} must be {rule}, got {value!r}")
    return found


def integer(name: str, value: Any, minimum: int) -> int:
    """Read an option given as an integer, also one of NumPy's."""
    numbers = _integers(value)
    if not numbers or numbers[0] < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")
    return numbers[0]


def _integers(*items: Any) -> tuple[int, ...]:
    """The items as Python integers; nothing if one of them is a truth value or no integer."""
    try:
        if any(isinstance(item, (bool, np.bool_)) for item in items):
            return ()
        return tuple(operator.index(item) for item in items)
    except TypeError:
        return ()


def pair(name: str, value: Any, minimum: int) -> Pair:
    """Read an option given as one integer or as a (vertical, horizontal) pair of them."""
    items = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    numbers = _integers(*items)
    if len(numbers) != 2 or min(numbers) < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum} or a pair of them, got {value!r}")
    if max(numbers) >= 1 << 31:
        raise ValueError(f"{name} must be below 2**31, got {value!r}")
    return numbers[0], numbers[1]


def padding_pair(value: Any, kernel_size: Pair, dilation: Pair) -> Pair:
    """Read a padding option: an integer, a pair, ``"same"`` or ``"valid"``."""
    if not isinstance(value, str):
        return pair("padding", value, 0)
    if value == "valid":
        return 0, 0
    if value != "same":
        raise ValueError(f"padding must be 'same', 'valid', an integer or a pair, got {value!r}")
    if kernel_size[0] % 2 == 0 or kernel_size[1] % 2 == 0:
        raise ValueError(
            f"padding='same' needs an odd kernel size, got {_by(kernel_size)}: "
            "an even kernel has no centre, so give the padding as an integer or a pair"
        )
    return dilation[0] * (kernel_size[0] - 1) // 2, dilation[1] * (kernel_size[1] - 1) // 2


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """``floor((size + 2*padding - dilation*(kernel-1) - 1) / stride) + 1``; < 0 if nothing fits."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _options(
    kernel: Pair, stride: IntOrPair, padding: Padding, dilation: IntOrPair
) -> tuple[Pair, Pair, Pair]:
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    return strides, padding_pair(padding, kernel, dilations), dilations


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _is_exact(option: Any) -> bool:
    """Whether it can be looked up: True, which is refused, would find what was kept for 1."""
    if type(option) is tuple:
        return all(type(item) is int for item in option)
    return type(option) in (int, str)


@dataclass(frozen=True, slots=True)
class Geometry:
    """All sizes of one involution, checked.

    Build it with :meth:`of`, which raises ``ValueError`` for shapes and options that do not fit
    together. Every field is a plain ``int``; the order of the fields is the order of
    :meth:`record`, the struct that the CUDA source receives by value.

    Examples
    --------
    >>> g = Geometry.of((2, 32, 7, 7), (2, 2, 3, 3, 4, 4), stride=2)
    >>> g.out_shape, g.kernel_shape, g.channels_per_group
    ((2, 32, 4, 4), (2, 2, 3, 3, 4, 4), 16)
    """

    batch: int
    channels: int
    groups: int
    height: int
    width: int
    kernel_h: int
    kernel_w: int
    out_h: int
    out_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int

    @classmethod
    def of(
        cls, x_shape: Shape, kernel_shape: Shape, stride: IntOrPair = 1,
        padding: Padding = "same", dilation: IntOrPair = 1,
    ) -> Geometry:  # fmt: skip
        """Check the shapes of ``x`` (N, C, H, W) and ``kernel`` (N, G, Kh, Kw, Ho, Wo).

        Raises
        ------
        ValueError
            Naming the argument, the rule, the values and the way out.
        """
        exact = _is_exact(stride) and _is_exact(padding) and _is_exact(dilation)
        make = _known if exact else cls._checked
        return make(tuple(x_shape), tuple(kernel_shape), stride, padding, dilation)

    @classmethod
    def _checked(
        cls, x_shape: Shape, kernel_shape: Shape, stride: IntOrPair, padding: Padding,
        dilation: IntOrPair,
    ) -> Geometry:  # fmt: skip
        if len(x_shape) != 4:
            raise ValueError(f"x must have 4 dimensions (N, C, H, W), got shape {x_shape}")
        if len(kernel_shape) != 6:
            raise ValueError(
                f"kernel must have 6 dimensions (N, G, Kh, Kw, Ho, Wo), got shape {kernel_shape}: "
                "reshape a flat (N, G*Kh*Kw, Ho, Wo) array first"
            )
        (batch, channels, *sizes), (kernel_batch, groups) = x_shape, kernel_shape[:2]
        kernel, positions = kernel_shape[2:4], kernel_shape[4:]
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
            raise ValueError(
                f"kernel must have at least one tap, got Kh={kernel[0]}, Kw={kernel[1]} "
                f"in shape {kernel_shape}"
            )
        strides, pads, dilations = options = _options(kernel, stride, padding, dilation)
        out = tuple(map(output_size, sizes, kernel, *options))
        said = f"kernel size {_by(kernel)}, stride {strides}, padding {pads}, dilation {dilations}"
        if min(out) < 0:
            raise ValueError(
                f"x of {_by(sizes)} is too small for {said}: give more padding or a smaller kernel"
            )
        if positions != out:
            raise ValueError(
                f"kernel has {_by(positions)} positions, but x of {_by(sizes)} "
                f"with {said} gives {_by(out)}: make one kernel for each output position "
                "(a stride needs ceil-mode pooling before the kernel generator)"
            )
        window: Shape = (*kernel, *out, *strides, *pads, *dilations)
        return cls(batch, channels, groups, *sizes, *window)

    @property
    def channels_per_group(self) -> int:
        """C / G: how many channels share one kernel."""
        return self.channels // self.groups

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return self.batch, self.channels, self.height, self.width

    @property
    def kernel_shape(self) -> tuple[int, int, int, int, int, int]:
        """(N, G, Kh, Kw, Ho, Wo)."""
        return self.batch, self.groups, self.kernel_h, self.kernel_w, self.out_h, self.out_w

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(N, C, Ho, Wo)."""
        return self.batch, self.channels, self.out_h, self.out_w

    def check_grad(self, grad_out: Any) -> None:
        """Refuse a ``grad_out`` that has not the shape of the result, with a ``ValueError``."""
        if grad_out.shape != self.out_shape:
            raise ValueError(
                f"grad_out must have the shape of the result, {self.out_shape}, "
                f"got {grad_out.shape}"
            )

    def record(self) -> np.void:
        """The fields as one structured scalar of 15 ``int32``, passed by value to the CUDA source.

        Raises
        ------
        ValueError
            If a size, with its padding, does not fit 32 bits (offsets into arrays are 64-bit
            everywhere).
        """
        values = astuple(self)
        padded = self.height + 2 * self.pad_h, self.width + 2 * self.pad_w
        if max(*values, *padded) > np.iinfo(np.int32).max:
            raise ValueError(f"x has a size past 2**31 - 1 in one dimension: {self}")
        return np.array([values], RECORD)[0]  # type: ignore[no-any-return]


# A small operator takes less time than the checks.
_known = lru_cache(maxsize=512)(Geometry._checked)


def fused_geometry(
    x_shape: Shape, features_shape: Shape, weight_shape: Shape, bias_shape: Shape | None,
    kernel_size: IntOrPair, stride: IntOrPair = 1, padding: Padding = "same",
    dilation: IntOrPair = 1,
) -> Geometry:  # fmt: skip
    """The geometry of the involution whose kernel the span makes.

    Raises
    ------
    ValueError
        Naming the argument whose shape does not fit the others.
    """
    kernel = pair("kernel_size", kernel_size, 1)
    if len(features_shape) != 4 or features_shape[1] < 1:
        raise ValueError(
            f"features must have 4 dimensions (N, F, Ho, Wo) with F >= 1, got {features_shape}"
        )
    batch, width, *positions = features_shape
    taps = math.prod(kernel)
    if len(weight_shape) != 2 or weight_shape[0] % taps or not weight_shape[0]:
        raise ValueError(
            f"span_weight must have shape (G*Kh*Kw, F) with Kh*Kw = {taps}, "
            f"got {weight_shape}: Kh*Kw rows for each group"
        )
    groups = weight_shape[0] // taps
    if weight_shape[1] != width:
        raise ValueError(
            f"span_weight must have as many columns as features has channels, "
            f"got span_weight {weight_shape} and features {features_shape}"
        )
    if bias_shape is not None and bias_shape != weight_shape[:1]:
        raise ValueError(f"span_bias must have shape {weight_shape[:1]}, got {bias_shape}")
    if len(x_shape) == 4:
        # Say "features", not "kernel", where it is the features that do not fit.
        options = _options(kernel, stride, padding, dilation)
        if x_shape[1] % groups:
            raise ValueError(
                f"span_weight must have G*Kh*Kw rows with a G that divides the channels of x: "
                f"span_weight {weight_shape} with Kh*Kw = {taps} has G={groups}, "
                f"x {x_shape} has C={x_shape[1]}"
            )
        out = list(map(output_size, x_shape[2:], kernel, *options))
        if min(out) >= 0 and (x_shape[0], out) != (batch, positions):
            raise ValueError(
                f"features {features_shape} must have the batch size and the output size of the "
                f"involution, {x_shape[0]} and {_by(out)} for x {x_shape}, got {batch} "
                f"and {_by(positions)}: make one feature vector for each output position"
            )
    kernel_shape = (batch, groups, *kernel, *positions)
    return Geometry.of(x_shape, kernel_shape, stride, padding, dilation)


RECORD = np.dtype([(field.name, np.int32) for field in fields(Geometry)])


@lru_cache(maxsize=512)
def block_groups(
    shape: Shape, names: tuple[str, ...], given: tuple[Shape, ...],
    moments: tuple[Shape, ...] | None, size: tuple[int, int],
) -> int:  # fmt: skip
    """The groups of a block of the article's network, if the shapes of all its arrays fit.

    ``given`` are those of its 14 parameters ``names``: weight (out, in, 1, 1) and bias (out,) of
    expand, its norm, reduce, a norm, span, project and a last norm; ``moments`` of three pairs
    (mean, variance) or None; ``shape`` that of x (N, C, H, W), ``size`` the kernel's.

    Raises
    ------
    ValueError
        Naming the first that does not fit.
    """
    channels, hidden, width, taps = shape[1], given[0][0], given[4][0], size[0] * size[1]
    groups = given[8][0] // taps
    wanted: list[Shape] = [(hidden, channels, 1, 1)]
    wanted += [(hidden,)] * 3 + [(width, hidden, 1, 1)] + [(width,)] * 3
    wanted += [(groups * taps, width, 1, 1), (groups * taps,)]
    wanted += [(channels, hidden, 1, 1)] + [(channels,)] * 3
    for name, actual, expected in zip(names, given, wanted, strict=True):
        if actual != expected:
            raise ValueError(f"{name} must have shape {expected}, got {actual}")
    pairs = tuple((number,) for number in (hidden, width, channels) for _ in range(2))
    if moments not in (None, pairs):
        raise ValueError(f"moments must be three pairs of arrays of shapes {pairs}, got {moments}")
    if groups < 1 or hidden % groups:
        raise ValueError(
            f"expand_weight makes {hidden} channels, which the {groups} groups of span_weight "
            "do not divide: make them a multiple"
        )
    return groups
