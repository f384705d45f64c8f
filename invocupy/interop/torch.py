"""Involution for PyTorch: operators that autograd, ``torch.compile`` and autocast know.

Tensors on the CPU are read and written in place through NumPy, tensors on a GPU through CuPy, on
PyTorch's current stream of their device; nothing is copied but what is not contiguous, and all
results are PyTorch's own memory. The functions are custom operators (``torch.ops.invocupy``), so
``torch.compile(fullgraph=True)`` takes them, forward and backward.

Under autocast they follow ``conv2d``: everything but float64 is cast to autocast's dtype. float16
and bfloat16 sum in float32 everywhere; on the CPU they are also computed in float32.

Involution is linear in ``x`` and in ``kernel``, so its gradients are made of the same three
operators and :func:`involution` can be differentiated as often as you like.
:func:`fused_involution` once; asking for more is an error that says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from invocupy import backends
from invocupy.arrays import contiguous, require_cupy
from invocupy.geometry import Geometry, IntOrPair, Padding, fused_geometry, padding_pair, pair

__all__ = ["Involution", "RedNetInvolution", "fused_involution", "involution"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def involution(
    x: Tensor,
    kernel: Tensor,
    *,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
) -> Tensor:
    """:func:`invocupy.involution` of tensors: differentiable, any number of times.

    Parameters
    ----------
    x : Tensor (N, C, H, W), floating
    kernel : Tensor (N, G, Kh, Kw, Ho, Wo), floating
        On the device of ``x``; a mix of dtypes is promoted.
    stride, dilation : int or pair
    padding : int, pair, "same" or "valid"

    Returns
    -------
    Tensor (N, C, Ho, Wo)
        New and contiguous.

    Raises
    ------
    TypeError
        For anything but floating tensors.
    ValueError
        For shapes, options or devices that do not fit together.

    Examples
    --------
    >>> import torch
    >>> from invocupy.interop.torch import involution
    >>> x = torch.ones(1, 2, 4, 4, requires_grad=True)
    >>> kernel = torch.ones(1, 1, 3, 3, 4, 4)
    >>> involution(x, kernel).sum().backward()
    >>> x.grad[0, 0, 0]  # how many windows see each pixel
    tensor([4., 6., 6., 4.])
    """
    x, kernel = _one_dtype(x=x, kernel=kernel)
    if kernel.ndim != 6:
        Geometry.of(x.shape, kernel.shape)  # says what is wrong
    options = _options(kernel.shape[2:4], stride, padding, dilation)
    out: Tensor = _involution(x, kernel, *options)
    return out


def fused_involution(
    x: Tensor,
    features: Tensor,
    span_weight: Tensor,
    span_bias: Tensor | None = None,
    *,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
) -> Tensor:
    """:func:`invocupy.fused_involution` of tensors: the generated kernel is never stored.

    Parameters
    ----------
    x : Tensor (N, C, H, W), floating
    features : Tensor (N, F, Ho, Wo), floating
    span_weight : Tensor (G*Kh*Kw, F), floating
    span_bias : Tensor (G*Kh*Kw,), floating, optional
    kernel_size : int or pair
    stride, padding, dilation
        As in :func:`involution`.

    Returns
    -------
    Tensor (N, C, Ho, Wo)
        New and contiguous. Differentiable once.

    Raises
    ------
    TypeError, ValueError
        As :func:`involution`.

    Examples
    --------
    >>> import torch
    >>> from invocupy.interop.torch import fused_involution
    >>> x, features = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4)
    >>> fused_involution(x, features, torch.ones(9, 3), kernel_size=3)[0, 0, 1, 1]
    tensor(27.)
    """
    given = {"x": x, "features": features, "span_weight": span_weight}
    x, features, span_weight, *bias = _one_dtype(
        **given, **({} if span_bias is None else {"span_bias": span_bias})
    )
    span_bias = bias[0] if bias else x.new_zeros(span_weight.shape[:1])
    size = pair("kernel_size", kernel_size, 1)
    options = _options(size, stride, padding, dilation)
    out: Tensor = _fused(x, features, span_weight, span_bias, size, *options)
    return out


class Involution(nn.Module):
    """The article's layer, to stand where its PyTorch class stands in a model.

    ``kernel = weights1(relu(BN(weights0(x))))``. Parameters have the article's names, also twice
    (``kernel_generator.0`` is ``weights0``), so its state dicts load and this one's load there.
    With a stride the generator sees an average pool of x in ceil mode, so that odd sizes work.

    Parameters
    ----------
    channels : int
        A multiple of ``channels_per_group``.
    kernel_size : int
        Odd; padding keeps the size.
    reduction_ratio, channels_per_group : int
    stride, dilation : int
    fused : bool
        Whether the kernel is made on the fly and never stored: less memory, and on a GPU a slower
        backward pass.

    Raises
    ------
    ValueError
        If the channels do not divide, or the kernel size is even.

    Examples
    --------
    >>> import torch
    >>> from invocupy.interop.torch import Involution
    >>> Involution(32, kernel_size=7)(torch.ones(1, 32, 9, 9)).shape
    torch.Size([1, 32, 9, 9])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        reduction_ratio: int = 4,
        channels_per_group: int = 16,
        stride: int = 1,
        dilation: int = 1,
        fused: bool = False,
    ) -> None:
        super().__init__()
        _check_channels(channels, kernel_size, reduction_ratio, channels_per_group)
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.fused = fused
        width, groups = channels // reduction_ratio, channels // channels_per_group
        self.pool = _pool(stride)
        self.weights0 = nn.Conv2d(channels, width, 1)
        self.BN = nn.BatchNorm2d(width)
        self.weights1 = nn.Conv2d(width, kernel_size**2 * groups, 1)
        self.kernel_generator = nn.Sequential(self.weights0, self.BN, nn.ReLU(), self.weights1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride))."""
        features = self.kernel_generator[:3](self.pool(x))
        return _span(x, features, self.weights1, self)


class RedNetInvolution(nn.Module):
    """The layer of the paper's RedNet code, with its parameter names (``conv1.conv.weight``).

    The same as :class:`Involution`, but its first convolution has no bias. At odd sizes with a
    stride, where the original fails, the pool before the generator is in ceil mode.

    Parameters
    ----------
    channels : int
        A multiple of 16.
    kernel_size : int
        Odd.
    stride : int
    fused : bool
        See :class:`Involution`.

    Raises
    ------
    ValueError
        As :class:`Involution`.

    Examples
    --------
    >>> import torch
    >>> from invocupy.interop.torch import RedNetInvolution
    >>> layer = RedNetInvolution(64, 7, 2)
    >>> layer(torch.ones(1, 64, 14, 14)).shape, next(iter(layer.state_dict()))
    (torch.Size([1, 64, 7, 7]), 'conv1.conv.weight')
    """

    def __init__(
        self, channels: int, kernel_size: int, stride: int = 1, fused: bool = False
    ) -> None:
        super().__init__()
        _check_channels(channels, kernel_size, 4, 16)
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, 1
        self.fused = fused
        width, taps = channels // 4, kernel_size**2 * (channels // 16)
        self.pool = _pool(stride)
        reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.conv1 = nn.Sequential(
            OrderedDict(conv=reduce, bn=nn.BatchNorm2d(width), activate=nn.ReLU())
        )
        self.conv2 = nn.Sequential(OrderedDict(conv=nn.Conv2d(width, taps, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride))."""
        return _span(x, self.conv1(self.pool(x)), self.conv2.conv, self)


def _check_channels(channels: int, kernel_size: int, reduction: int, per_group: int) -> None:
    if channels < 1 or channels % per_group:
        raise ValueError(f"channels must be a multiple of {per_group}, got {channels}")
    if not 1 <= reduction <= channels:
        raise ValueError(f"reduction_ratio must be between 1 and {channels}, got {reduction}")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")


def _pool(stride: int) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    return nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)


def _span(x: Tensor, features: Tensor, span: Any, layer: Any) -> Tensor:
    """Involution by the kernel that the 1x1 convolution ``span`` makes of the features."""
    size, options = layer.kernel_size, {"stride": layer.stride, "dilation": layer.dilation}
    if layer.fused:
        weight = span.weight.flatten(1)
        return fused_involution(x, features, weight, span.bias, kernel_size=size, **options)
    flat = span(features)
    # (N, G*K*K, Ho, Wo) to (N, G, K, K, Ho, Wo)
    return involution(x, flat.unflatten(1, (flat.shape[1] // size**2, size, size)), **options)


def _one_dtype(**tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast or promotion says; refuses what is none of ours."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor, got {type(tensor).__name__}: "
                "arrays go to the functions of invocupy itself"
            )
    device = tensors["x"].device
    lower = None
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        lower = torch.get_autocast_dtype(device.type)
    dtype = None
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}, but only floating dtypes work "
                "(float16, bfloat16, float32, float64): convert it with .float()"
            )
        if tensor.device != device:
            raise ValueError(f"x is on {device} and {name} on {tensor.device}: move one of them")
        own = tensor.dtype if lower is None or tensor.dtype == torch.float64 else lower
        dtype = own if dtype is None else torch.promote_types(dtype, own)
    return tuple(tensor.to(dtype) for tensor in tensors.values())


def _options(
    size: Sequence[int], stride: IntOrPair, padding: Padding, dilation: IntOrPair
) -> tuple[tuple[int, int], ...]:
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    return strides, padding_pair(padding, (size[0], size[1]), dilations), dilations


# ------------------------------------------------------------------ the operators
#
# Each runs a backend function into new tensors; its fake gives the same tensors without the work.
# With B(x, kernel) the involution, its gradients X(grad, kernel) and K(grad, x) are linear in both
# arguments too, so the three are each other's gradients.

_Plan = tuple[Geometry, tuple[Sequence[int], ...]]  # and the shapes of the results
_Options = Sequence[int]


def _operator(name: str, arguments: str, plan: Callable[..., _Plan], results: int = 1) -> Any:
    """Define ``invocupy::<name>``: tensors, then numbers, to new tensors, by a backend function."""
    backward, count = arguments.startswith("Tensor grad"), arguments.count("Tensor")

    def prepare(*args: Any) -> tuple[Geometry, tuple[Tensor, ...]]:
        g, shapes = plan(*args)
        if backward and tuple(args[0].shape) != g.out_shape:
            raise ValueError(f"grad must have shape {g.out_shape}, got {tuple(args[0].shape)}")
        return g, tuple(args[0].new_empty(shape) for shape in shapes)

    def fake(*args: Any) -> Any:
        made = prepare(*args)[1]
        return made if results > 1 else made[0]

    def run(*args: Any) -> Any:
        g, made = prepare(*args)
        _run(name, args[:count], g, made)
        return made if results > 1 else made[0]

    options = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
    returned = "Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})"
    schema = f"({arguments}, {options}) -> {returned}"
    operator = torch.library.custom_op(f"invocupy::{name}", run, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    return operator


def _run(name: str, inputs: Sequence[Tensor], g: Geometry, results: Sequence[Tensor]) -> None:
    """Call the backend function of this name, in float32 for half types on the CPU."""
    if not all(tensor.numel() for tensor in inputs):
        for result in results:
            result.zero_()  # nothing is summed
        return
    device, dtype = results[0].device, results[0].dtype
    work = torch.float32 if device.type == "cpu" and dtype.itemsize == 2 else dtype
    filled = [result.to(work) for result in results]  # the results themselves where work is dtype
    with _arrays(device) as array:
        operands = [array(tensor.detach().to(work).contiguous()) for tensor in inputs]
        function = getattr(backends.of("involution", operands[0]), name)
        function(*operands, g, *map(array, filled))
    if work != dtype:
        for result, wide in zip(results, filled, strict=True):
            result.copy_(wide)


@contextmanager
def _arrays(device: torch.device) -> Iterator[Callable[[Tensor], Any]]:
    """A function that views tensors as arrays, where work on them joins PyTorch's on the device."""
    if device.type == "cpu":
        yield lambda tensor: contiguous(tensor.numpy(), None)
        return
    if device.type != "cuda":
        raise TypeError(f"x is on {device}, but involution works on the CPU and on CUDA devices")
    cupy = require_cupy()

    def view(tensor: Tensor) -> Any:
        if tensor.dtype != torch.bfloat16:
            return cupy.from_dlpack(tensor)
        from ml_dtypes import bfloat16  # CuPy's bfloat16; its DLPack does not know the type

        return cupy.from_dlpack(tensor.view(torch.int16)).view(bfloat16)

    stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))
    with torch.cuda.device(device), cupy.cuda.Device(device.index), stream:
        yield view


def _plan(x: Tensor, kernel: Tensor, *options: _Options) -> _Plan:
    g = Geometry.of(x.shape, kernel.shape, *options)  # type: ignore[arg-type]
    return g, (g.out_shape,)


def _plan_grad_x(grad: Tensor, kernel: Tensor, size: _Options, *options: _Options) -> _Plan:
    g = Geometry.of((*grad.shape[:2], *size), kernel.shape, *options)  # type: ignore[arg-type]
    return g, (g.x_shape,)


def _plan_grad_kernel(grad: Tensor, x: Tensor, sizes: _Options, *options: _Options) -> _Plan:
    kernel_shape = (x.shape[0], *sizes, *grad.shape[2:])
    g = Geometry.of(x.shape, kernel_shape, *options)  # type: ignore[arg-type]
    return g, (g.kernel_shape,)


def _plan_fused(
    x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, size: _Options, *options: _Options
) -> _Plan:
    shapes = x.shape, features.shape, weight.shape, bias.shape
    g = fused_geometry(*shapes, size, *options)  # type: ignore[arg-type]
    return g, (g.out_shape,)


def _plan_fused_grad_x(
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    image: _Options,
    size: _Options,
    *options: _Options,
) -> _Plan:
    shapes = (*grad.shape[:2], *image), features.shape, weight.shape, bias.shape
    g = fused_geometry(*shapes, size, *options)  # type: ignore[arg-type]
    return g, (g.x_shape,)


def _plan_fused_grad_span(
    grad: Tensor, x: Tensor, features: Tensor, weight: Tensor, size: _Options, *options: _Options
) -> _Plan:
    shapes = x.shape, features.shape, weight.shape, None
    g = fused_geometry(*shapes, size, *options)  # type: ignore[arg-type]
    return g, (features.shape, weight.shape, weight.shape[:1])


_involution = _operator("forward", "Tensor x, Tensor kernel", _plan)
_grad_x = _operator("grad_x", "Tensor grad, Tensor kernel, SymInt[] size", _plan_grad_x)
_grad_kernel = _operator("grad_kernel", "Tensor grad, Tensor x, SymInt[] sizes", _plan_grad_kernel)
_fused = _operator(
    "fused_forward",
    "Tensor x, Tensor features, Tensor weight, Tensor bias, SymInt[] kernel_size",
    _plan_fused,
)
_fused_grad_x = _operator(
    "fused_grad_x",
    "Tensor grad, Tensor features, Tensor weight, Tensor bias, SymInt[] size, SymInt[] kernel_size",
    _plan_fused_grad_x,
)
_fused_grad_span = _operator(
    "fused_grad_span",
    "Tensor grad, Tensor x, Tensor features, Tensor weight, SymInt[] kernel_size",
    _plan_fused_grad_span,
    results=3,
)


def _save(count: int) -> Callable[..., None]:
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.options = inputs[count:]

    return setup_context


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, kernel = ctx.saved_tensors
    want_x, want_kernel = ctx.needs_input_grad[:2]
    return (
        _grad_x(grad, kernel, x.shape[2:], *ctx.options) if want_x else None,
        _grad_kernel(grad, x, kernel.shape[1:4], *ctx.options) if want_kernel else None,
        *(None for _ in ctx.options),
    )


def _backward_of_grad_x(ctx: Any, u: Tensor) -> tuple[Any, ...]:
    (grad, kernel), options = ctx.saved_tensors, ctx.options[1:]
    want_grad, want_kernel = ctx.needs_input_grad[:2]
    return (
        _involution(u, kernel, *options) if want_grad else None,
        _grad_kernel(grad, u, kernel.shape[1:4], *options) if want_kernel else None,
        *(None for _ in ctx.options),
    )


def _backward_of_grad_kernel(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    (grad, x), options = ctx.saved_tensors, ctx.options[1:]
    want_grad, want_x = ctx.needs_input_grad[:2]
    return (
        _involution(x, v, *options) if want_grad else None,
        _grad_x(grad, v, x.shape[2:], *options) if want_x else None,
        *(None for _ in ctx.options),
    )


def _fused_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, features, weight, bias = ctx.saved_tensors
    want_x, *want_span = ctx.needs_input_grad[:4]
    of_x = of_span = None
    if want_x:
        of_x = _fused_grad_x(grad, features, weight, bias, x.shape[2:], *ctx.options)
    if any(want_span):
        of_span = _fused_grad_span(grad, x, features, weight, *ctx.options)
    return of_x, *(of_span or (None, None, None)), *(None for _ in ctx.options)


def _no_second(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "fused_involution can be differentiated once only: use involution, with the kernel made "
        "by a 1x1 convolution, for gradients of gradients"
    )


_involution.register_autograd(_backward, setup_context=_save(2))
_grad_x.register_autograd(_backward_of_grad_x, setup_context=_save(2))
_grad_kernel.register_autograd(_backward_of_grad_kernel, setup_context=_save(2))
_fused.register_autograd(_fused_backward, setup_context=_save(4))
_fused_grad_x.register_autograd(_no_second)
_fused_grad_span.register_autograd(_no_second)
