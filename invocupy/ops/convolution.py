"""Linear maps and convolution: checks and shapes; the work is in the backends."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from invocupy.arrays import Array, cast_like, check, contiguous, is_cupy, namespace, on_device, wide
from invocupy.backends.memory import empty
from invocupy.backends.windows import Window, pad, unpad, windows
from invocupy.geometry import NAMES, IntOrTuple, Padding, Shape, integer, padding_per_axis, per_axis
from invocupy.messages import layout_hint
from invocupy.ops.call import Call, given, vjp_of
from invocupy.ops.declaration import Result, in_dimensions, op
from invocupy.ops.elementwise import unbroadcast
from invocupy.ops.memo import along, each
from invocupy.ops.reductions import total
from invocupy.ops.windows import out_size, reshaped

_ROWS = 1024  # of a product that is summed in one go


@op(np.matmul, methods="__matmul__ __rmatmul__", reads="a b others")
def matmul(a: Array, b: Array) -> Result:
    """``a @ b`` for 2 or more dimensions, broadcast over the leading ones.

    >>> F.matmul(np.ones((1, 2)), np.ones((2, 1)))
    array([[2.]])
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            "a and b must be (..., n, k) and (..., k, m), "
            f"got shapes {a.shape} and {b.shape}: reshape or transpose one of them"
        )
    return a @ b, (
        lambda grad: unbroadcast(grad @ b.swapaxes(-1, -2), a),
        lambda grad: unbroadcast(a.swapaxes(-1, -2) @ grad, b),
    )


@op(reads="x weight others")
def linear(x: Array, weight: Array, bias: Array | None = None) -> Result:
    """``x @ weight.T + bias``.

    Parameters
    ----------
    x : array or Tensor (N, I), float
        A vector of features for each sample.
    weight : array or Tensor (O, I), float
        A row for each output.
    bias : array or Tensor (O,), optional
        Added to each output.

    Returns
    -------
    array or Tensor (N, O)

    Raises
    ------
    TypeError
        For arguments that are not floating-point arrays.
    ValueError
        If the shapes do not fit.

    >>> F.linear(np.ones((1, 3)), np.ones((2, 3)), np.array([0.0, 1.0]))
    array([[3., 4.]])
    """
    check(x=x, weight=weight, **given(bias=bias))
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        hint = layout_hint(x.shape, weight.shape[-1], 0) if weight.ndim else ""
        raise ValueError(
            "x must be (N, I) and weight (O, I) with the same I, got "
            f"{x.shape} and {weight.shape}{hint}"
        )
    _check_bias(bias, weight)
    call = Call("pointwise", x.T, weight, bias)
    value = _multiplied(call).T

    return contiguous(value, call.dtype), (
        vjp_of(x, lambda grad: _product(grad, weight)),
        vjp_of(weight, lambda grad: _over_rows(grad, x)),
        vjp_of(bias, lambda grad: total(grad, 0)),
    )


def _over_rows(grad: Array, x: Array) -> Any:
    """``grad.T @ x``, in blocks of rows, since rounding errors accumulate in one long sum."""
    result = _product(grad[:_ROWS].T, x[:_ROWS])
    if len(x) > _ROWS:
        result = result.astype(wide(result.dtype) or result.dtype, copy=False)
        for i in range(_ROWS, len(x), _ROWS):
            result += _product(grad[i : i + _ROWS].T, x[i : i + _ROWS])
    return result


def _product(a: Array, b: Array) -> Any:
    return _multiplied(Call("pointwise", b, a, None))


def _multiplied(call: Call) -> Any:
    """``a @ b + bias[:, None]`` of inputs (b, a, bias), in the dtype that it is computed in.

    It is a 1x1 convolution with one image b and weights a. BLAS is not used on the CPU: its threads
    and ours would compete for the cores.
    """
    b, a, bias = call.inputs
    fill = 0 if bias is None else bias[:, None]
    return call.run("forward", (b[None], a, bias), (), (1, len(a), b.shape[1]), fill=fill)[0][0]


def _check_bias(bias: Array | None, weight: Array) -> None:
    """ValueError unless bias fits weight: the backends would read past the end of a shorter one."""
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape {weight.shape[:1]} for weight {weight.shape}, got {bias.shape}"
        )


def _conv(dims: int) -> Callable[..., Result]:
    def conv(
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: IntOrTuple = 1,
        padding: Padding = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
    ) -> Result:
        return _convolution(dims, x, weight, bias, stride, padding, dilation, groups)

    first = [float(n * 2 ** (dims - 1)) for n in (4, 6, 4)]
    return in_dimensions(conv, dims, _DOC + f"{first}\n    ", reads="x weight others")


_DOC = """<dims>-D convolution (a correlation, as in every network library).

    ``out[n,o,i] = bias[o] + sum_{c,u} weight[o,c,u] * x[n, c, i*stride + u*dilation - padding]``,
    c over the channels of the group of o. A position i and a tap u have an index for each axis.
    In three dimensions a kernel larger than 1x1x1 copies the planes that each output sees, Kd times
    the size of ``x``.

    Parameters
    ----------
    x : array or Tensor (N, C, <image>), float
        Zero outside, up to the padding.
    weight : array or Tensor (O, C/groups, <kernel>), float
        One kernel for each output channel.
    bias : array or Tensor (O,), optional
        Added to each output channel.
    stride, dilation : int or tuple
        Steps between outputs, and between the taps of a kernel; a tuple has one for each axis.
    padding : int, tuple, "same" or "valid"
        Zeros on each side; "same" is ``dilation*(K-1)//2``, for odd K, and "valid" is 0.
    groups : int
        The number of separate parts of the channels: a divisor of C and O.

    Returns
    -------
    array or Tensor (N, O, <out>)

    Raises
    ------
    TypeError
        For arguments that are not floating-point arrays.
    ValueError
        For shapes or options that do not fit together.

    >>> x, weight = np.ones((1, 2) + (3,) * <dims>), np.ones((1, 2) + (3,) * <dims>)
    >>> F.conv<dims>d(x, weight, padding=1).ravel()[:3].tolist()
    """
conv1d, conv2d, conv3d = map(_conv, (1, 2, 3))


def _convolution(
    dims: int, x: Array, weight: Array, bias: Array | None, stride: IntOrTuple, padding: Padding,
    dilation: IntOrTuple, groups: int,
) -> Result:  # fmt: skip
    """Checks and sizes in any number of dimensions."""
    check(x=x, weight=weight, **given(bias=bias))
    if not x.ndim == weight.ndim == dims + 2:
        names = NAMES[dims]
        raise ValueError(
            f"x must be (N, C, {names.image}) and weight (O, C/groups, {names.kernel}), "
            f"got {x.shape} and {weight.shape}{layout_hint(x.shape, None, dims)}"
        )
    c, (o, c_group), taps = x.shape[1], weight.shape[:2], weight.shape[2:]
    groups = integer("groups", groups, 1)
    if c != (takes := c_group * groups):
        raise ValueError(
            f"x must be (N, {takes}, {NAMES[dims].image}) for weight {weight.shape} and "
            f"groups={groups}, got {x.shape}{layout_hint(x.shape, takes, dims)}"
        )
    if o % groups:
        raise ValueError(f"weight {weight.shape} must have an O that groups={groups} divides")
    if min(taps) < 1:
        raise ValueError(f"weight must have at least one tap, got shape {weight.shape}")
    _check_bias(bias, weight)
    strides = per_axis("stride", stride, 1, dims)
    dilations = per_axis("dilation", dilation, 1, dims)
    pads = padding_per_axis(padding, taps, dilations)
    out = out_size(x.shape[2:], taps, strides, pads, dilations)
    if (
        max(*taps, groups) == 1
        and not any(pads)
        and (
            max(strides) == 1 or is_cupy(x)  # there, the pixels that are kept are copied
        )
    ):
        return _pointwise(x, weight, bias, strides)
    window = strides, pads, dilations
    if dims == 3:
        return _by_planes(x, weight, bias, window, out)
    if dims == 2:
        return _planar(x, weight, bias, window, out)
    window = (1, *strides), (0, *pads), (1, *dilations)
    flat = _planar(x[:, :, None], weight[:, :, None], bias, window, (1, *out))
    return reshaped(flat, (len(x), o, *out), x, weight, bias)


def _planar(x: Array, weight: Array, bias: Array | None, window: Window, out: Shape) -> Result:
    """In two dimensions, by the backends."""
    call = Call("convolution", x, weight, bias)
    image, kernel, offset = call.inputs
    fill = 0 if offset is None else offset[:, None, None]
    value = call.value("forward", (window,), (len(x), len(weight), *out), fill=fill)

    @each
    def parameters(grad: Array) -> list[Any]:
        return call.gradients("grad_weight", grad, (image,), (window,), weight, bias)

    return value, (
        lambda grad: call.gradient("grad_x", grad, (kernel,), (window,), x),
        lambda grad: parameters(grad, 0),
        lambda grad: parameters(grad, 1),
    )


def _by_planes(x: Array, weight: Array, bias: Array | None, window: Window, out: Shape) -> Result:
    """In three dimensions: the planes under the taps in depth become channels."""
    (n, c), (o, _, depth), (stride, pads, dilation) = x.shape[:2], weight.shape[:3], window
    looks = [view for _, (_, view) in windows((depth,), out[:1], stride[:1], dilation[:1])]
    edge = pads[0], 0, 0
    with on_device(x):
        padded = pad(x, edge, 0)
        planes = empty((n, out[0], c, depth, *x.shape[3:]), padded.dtype, x)
        for tap, look in enumerate(looks):
            planes[:, :, :, tap] = padded[:, :, look].swapaxes(1, 2)
    seen, whole = planes.reshape(n * out[0], c * depth, *x.shape[3:]), padded.shape
    taps = weight.reshape(o, -1, *weight.shape[3:])
    value, vjps = _planar(seen, taps, bias, (stride[1:], pads[1:], dilation[1:]), out[1:])
    shape = n, out[0], *value.shape[1:]

    @along
    def in_planes(grad: Array) -> Any:
        with on_device(x):
            return contiguous(grad.swapaxes(1, 2), grad.dtype).reshape(value.shape)

    @in_planes
    def grad_x(grad: Array) -> Array:
        shares = vjps[0](grad).reshape(planes.shape)
        with on_device(x):
            total = namespace(x).zeros(whole, wide(shares.dtype) or shares.dtype)
            for tap, look in enumerate(looks):
                total[:, :, look] += shares[:, :, :, tap].swapaxes(1, 2)
            return cast_like(unpad(total, edge, x), x)

    with on_device(x):
        result = contiguous(value.reshape(shape).swapaxes(1, 2), value.dtype)
    return result, (
        grad_x,
        in_planes(lambda grad: vjps[1](grad).reshape(weight.shape)),
        in_planes(vjps[2]),
    )


def _pointwise(x: Array, weight: Array, bias: Array | None, strides: Shape) -> Result:
    """The 1x1 convolution: a matrix product over channels at every pixel that the stride keeps."""
    kept: Any = (..., *(slice(None, None, s) for s in strides))
    seen = x[kept]
    call = Call("pointwise", seen, weight.reshape(weight.shape[:2]), bias)
    n, c, *out = seen.shape
    image, matrix, offset = call.inputs
    call.inputs[0] = image = image.reshape(n, c, prod(out))
    shape = n, len(weight), image.shape[2]
    value = call.value("forward", (), shape, fill=0 if offset is None else offset[:, None])

    def flat(grad: Array) -> Any:
        return contiguous(grad, call.work).reshape(shape)

    def grad_x(grad: Array) -> Array:
        made = empty(seen.shape, call.work, x)
        call.run("grad_x", (flat(grad), matrix, None), (), made.reshape(image.shape))
        with on_device(x):
            result = cast_like(made, x)
            if result.shape == x.shape:
                return result
            whole: Array = namespace(x).zeros(x.shape, result.dtype)
            whole[kept] = result
            return whole

    def add(grad: Array, total: Array) -> bool:
        """Add the gradient of x to ``total`` in place, if the wing does that in one pass."""
        dtypes = {x.dtype, total.dtype, call.work}
        if not is_cupy(x) or seen.shape != x.shape or len(dtypes) > 1 or wide(x.dtype):
            return False
        if not (total.flags.c_contiguous and total.size and grad.size):
            return False
        place = total.reshape(image.shape)
        call.run("grad_x", (flat(grad), matrix, place), (), place)
        return True

    grad_x.add = add  # type: ignore[attr-defined]

    @each
    def parameters(grad: Array) -> list[Any]:
        made = empty(weight.shape, call.work, x)  # a view of another would not be the leaf's own
        shape = None if bias is None else bias.shape
        views = made.reshape(matrix.shape), shape
        _, grad_bias = call.run("grad_weight", (flat(grad), image), (), *views)
        with on_device(x):
            return [cast_like(made, weight), None if bias is None else cast_like(grad_bias, bias)]

    return value.reshape(n, len(weight), *out), (
        grad_x,
        lambda grad: parameters(grad, 0),
        lambda grad: parameters(grad, 1),
    )
