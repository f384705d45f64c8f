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
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invocupy.geometry import Geometry, IntOrPair, Padding, padding_pair, pair
from invocupy.interop import torch_operators as operators

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
    out: Tensor = operators.forward(x, kernel, *options)
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
    out: Tensor = operators.fused_forward(x, features, span_weight, span_bias, size, *options)
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
