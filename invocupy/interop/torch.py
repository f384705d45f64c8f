"""Involution for PyTorch, with autograd, ``torch.compile`` and autocast.

Tensors on the CPU are accessed in place through NumPy, tensors on a GPU through CuPy, on PyTorch's
current stream of the device; only non-contiguous tensors are copied, and results are allocated by
PyTorch. The functions are custom operators (``torch.ops.invocupy``), so they work with
``torch.compile(fullgraph=True)``, forward and backward.

Under autocast they behave like ``conv2d``: all dtypes but float64 are cast to that of autocast.
float16 and bfloat16 are accumulated in float32; on the CPU they are also computed in float32.

Both functions can be differentiated any number of times, in reverse and in forward mode, under
autograd, ``torch.func`` and ``torch.vmap``, eager and compiled. :func:`fused_involution` stores the
kernel for all but its value and its first gradient in reverse mode.
"""

# ruff: noqa: E402 (the library is asked for before it is imported)
from __future__ import annotations

from collections import OrderedDict
from itertools import product
from math import prod
from typing import Any

from invocupy.extras import require

require("torch", "PyTorch", "torch", "2.10")

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from invocupy.geometry import (
    Geometry,
    IntOrTuple,
    Padding,
    Shape,
    check_rank,
    padding_per_axis,
    per_axis,
)
from invocupy.interop import torch_operators as operators

__all__ = [
    "Involution", "Involution1d", "Involution2d", "Involution3d", "RedNetInvolution",
    "decompositions", "fused_involution", "involution",
]  # fmt: skip

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def involution(
    x: Tensor,
    kernel: Tensor,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> Tensor:
    """:func:`invocupy.involution` of tensors: differentiable, any number of times.

    Shapes, options and errors are those for arrays. The tensors are floating, dense and on one
    device; a mix of dtypes is promoted. The result is new and contiguous.

    Parameters
    ----------
    x, kernel, stride, padding, dilation
        As in :func:`invocupy.involution`, tensors in place of arrays.

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
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    if has_torch_function((x, kernel)):
        return handle_torch_function(involution, (x, kernel), x, kernel, **options)
    x, kernel = _one_dtype(x=x, kernel=kernel)
    run = _forward if torch.onnx.is_in_onnx_export() else operators.forward
    out: Tensor = run(x, kernel, *_options(x, **options))
    return out


def fused_involution(
    x: Tensor,
    features: Tensor,
    span_weight: Tensor,
    span_bias: Tensor | None = None,
    *,
    kernel_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> Tensor:
    """:func:`invocupy.fused_involution` of tensors: the generated kernel is never stored.

    As :func:`involution`, shapes and errors are those for arrays.

    Parameters
    ----------
    x, features, span_weight, span_bias, kernel_size, stride, padding, dilation
        As in :func:`invocupy.fused_involution`, tensors in place of arrays.

    Examples
    --------
    >>> import torch
    >>> from invocupy.interop.torch import fused_involution
    >>> x, features = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4)
    >>> fused_involution(x, features, torch.ones(9, 3), kernel_size=3)[0, 0, 1, 1]
    tensor(27.)
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    given = {"x": x, "features": features, "span_weight": span_weight, "span_bias": span_bias}
    if span_bias is None:
        del given["span_bias"]
    if has_torch_function(tuple(given.values())):
        own = {**given, "kernel_size": kernel_size, **options}
        return handle_torch_function(fused_involution, tuple(given.values()), **own)
    x, features, span_weight, *bias = _one_dtype(**given)
    span_bias = bias[0] if bias else x.new_zeros(span_weight.shape[:1])
    size = per_axis("kernel_size", kernel_size, 1, _dims(x))
    run = _fused_forward if torch.onnx.is_in_onnx_export() else operators.fused_forward
    out: Tensor = run(x, features, span_weight, span_bias, size, *_options(x, **options))
    return out


class _Layer(nn.Module):
    """Common parts of the layers: sizes, the pool before the generator, and the involution."""

    dims = 2

    def _generator(
        self, channels: int, kernel_size: IntOrTuple, reduction_ratio: int, channels_per_group: int,
        stride: IntOrTuple, dilation: IntOrTuple, fused: bool, bias: bool = True,
    ) -> tuple[nn.Module, nn.Module, nn.Module]:  # fmt: skip
        """Keep the options; what makes the kernel: 1x1 convolution, norm, 1x1 convolution."""
        if channels < 1 or channels % channels_per_group:
            raise ValueError(f"channels must be a multiple of {channels_per_group}, got {channels}")
        if not 1 <= reduction_ratio <= channels:
            raise ValueError(
                f"reduction_ratio must be between 1 and {channels}, got {reduction_ratio}"
            )
        self.size = per_axis("kernel_size", kernel_size, 1, self.dims)
        if not all(k % 2 for k in self.size):
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        per_axis("dilation", dilation, 1, self.dims)
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.fused = fused
        conv, norm, pool = (
            getattr(nn, f"{kind}{self.dims}d") for kind in ("Conv", "BatchNorm", "AvgPool")
        )
        self.pool: nn.Module = nn.Identity()
        if max(per_axis("stride", stride, 1, self.dims)) > 1:
            self.pool = pool(stride, ceil_mode=True, count_include_pad=False)
        width, rows = channels // reduction_ratio, prod(self.size) * channels // channels_per_group
        return conv(channels, width, 1, bias=bias), norm(width), conv(width, rows, 1)

    def _pooled(self, x: Tensor) -> Any:
        """What the generator sees of x."""
        if isinstance(x, Tensor):  # and no placeholder of a tracer
            check_rank(x, self.dims)
        return self.pool(x)

    def _involve(self, x: Tensor, features: Tensor, span: Any) -> Tensor:
        """Involution by the kernel that the 1x1 convolution ``span`` makes of the features."""
        size, options = self.size, {"stride": self.stride, "dilation": self.dilation}
        if self.fused:
            weight = span.weight.flatten(1)
            return fused_involution(x, features, weight, span.bias, kernel_size=size, **options)
        # (N, G*prod(K), *O) to (N, G, *K, *O)
        kernel = span(features).unflatten(1, (span.out_channels // prod(size), *size))
        return involution(x, kernel, **options)


class Involution(_Layer):
    """The article's layer, as a replacement for its PyTorch class.

    ``kernel = weights1(relu(BN(weights0(x))))``. State dicts have the article's names, with each
    tensor under two names (``kernel_generator.0.weight`` is ``weights0.weight``), so they are
    compatible in both directions; one of the names is enough. Initial weights are those of
    PyTorch's ``Conv2d``, as in the article. With a stride, the input of the generator is an average
    pool of x in ceil mode, so that odd sizes work.

    The kernel size is odd, and padding keeps the size of the image.
    :class:`Involution1d` and :class:`Involution3d` are the same layer for signals (N, C, W) and
    volumes (N, C, D, H, W); sizes are an integer or a tuple of one for each dimension.

    Parameters
    ----------
    channels, kernel_size, reduction_ratio, channels_per_group, stride, dilation
        As in :class:`invocupy.nn.Involution`.
    fused : bool
        Never store the generated kernel: less memory, and on a GPU a slower backward pass.

    Raises
    ------
    ValueError
        If the channels do not divide, or the kernel size is even.

    Examples
    --------
    >>> import torch
    >>> from invocupy.interop.torch import Involution, Involution3d
    >>> Involution(32, kernel_size=7)(torch.ones(1, 32, 9, 9)).shape
    torch.Size([1, 32, 9, 9])
    >>> Involution3d(16, kernel_size=(1, 3, 3), stride=2)(torch.ones(2, 16, 4, 7, 9)).shape
    torch.Size([2, 16, 2, 4, 5])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: IntOrTuple = 3,
        reduction_ratio: int = 4,
        channels_per_group: int = 16,
        stride: IntOrTuple = 1,
        dilation: IntOrTuple = 1,
        fused: bool = False,
    ) -> None:
        super().__init__()
        sizes = channels, kernel_size, reduction_ratio, channels_per_group
        generator = self._generator(*sizes, stride, dilation, fused)
        self.weights0, self.BN, self.weights1 = generator
        self.register_state_dict_post_hook(_write_both_names)
        self.register_load_state_dict_pre_hook(_read_either_name)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) to (N, C, *O), each size of O being ceil(size of S / stride)."""
        features = torch.relu(self.BN(self.weights0(self._pooled(x))))
        return self._involve(x, features, self.weights1)


class Involution1d(Involution):
    """:class:`Involution` of signals (N, C, W)."""

    dims = 1


Involution2d = Involution


class Involution3d(Involution):
    """:class:`Involution` of volumes (N, C, D, H, W)."""

    dims = 3


class RedNetInvolution(_Layer):
    """The layer of the paper's RedNet code, with its parameter names (``conv1.conv.weight``).

    :class:`Involution` with 16 channels per group and reduction 4, but its first convolution has no
    bias, and its initial weights are the RedNet code's: normal, with variance 2 / fan-out, and
    biases of 0. At odd sizes with a stride, where the original fails, the pool before the generator
    is in ceil mode.

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
        sizes = channels, kernel_size, 4, 16
        reduce, norm, span = self._generator(*sizes, stride, 1, fused, bias=False)
        self.conv1 = nn.Sequential(OrderedDict(conv=reduce, bn=norm, activate=nn.ReLU()))
        self.conv2 = nn.Sequential(OrderedDict(conv=span))
        for convolution in (reduce, span):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(span.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride))."""
        return self._involve(x, self.conv1(self._pooled(x)), self.conv2.conv)


_NAMES = {"weights0.": "kernel_generator.0.", "BN.": "kernel_generator.1.",
          "weights1.": "kernel_generator.3."}  # fmt: skip


def _write_both_names(layer: nn.Module, state: Any, prefix: str, _: Any) -> None:
    """Add each tensor under the article's second name, as a copy: files cannot share memory."""
    for first, second in _NAMES.items():
        for name in [name for name in state if name.startswith(prefix + first)]:
            tensor = state[name]
            copy = tensor if isinstance(tensor, nn.Parameter) else tensor.clone()
            state[prefix + second + name.removeprefix(prefix + first)] = copy


def _read_either_name(layer: Any, state: Any, prefix: str, *rest: Any) -> None:
    for first, second in _NAMES.items():
        for name in [name for name in state if name.startswith(prefix + second)]:
            tensor = state.pop(name)
            other = prefix + first + name.removeprefix(prefix + second)
            if not _same(state.setdefault(other, tensor), tensor):
                rest[-1].append(f"{name} and {other} are one parameter, but their values differ")


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other or one.is_meta or other.is_meta:
        return True
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return bool(one.isclose(other.to(one.device), rtol=0, atol=0, equal_nan=True).all())


def _one_dtype(**tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype of autocast or promotion; an error for tensors we do not support."""
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
        if tensor.layout != torch.strided:
            raise TypeError(
                f"{name} has layout {tensor.layout}, but only dense tensors work: "
                "convert it with .to_dense()"
            )
        if tensor.device != device:
            raise ValueError(f"x is on {device} and {name} on {tensor.device}: move one of them")
        own = tensor.dtype if lower is None or tensor.dtype == torch.float64 else lower
        dtype = own if dtype is None else torch.promote_types(dtype, own)
    return tuple(tensor.to(dtype) for tensor in tensors.values())


def _options(
    x: Tensor, stride: IntOrTuple, padding: Padding, dilation: IntOrTuple
) -> tuple[Shape, Shape, Shape]:
    """The options as the operators take them; they compute the padding "same" themselves."""
    dims = _dims(x)
    pads = () if padding == "same" else padding_per_axis(padding, (1,) * dims, (1,) * dims)
    return per_axis("stride", stride, 1, dims), pads, per_axis("dilation", dilation, 1, dims)


def _dims(x: Tensor) -> int:
    """The number of spatial dimensions of x, clipped to 1 to 3; the operators check it."""
    dims: int = min(max(x.ndim - 2, 1), 3)
    return dims


def _forward(x: Tensor, kernel: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """The sum over the taps in PyTorch's own operators: slower, with more memory."""
    # Lists are not looked up, which symbolic sizes could not be.
    options = list(stride), list(padding) or "same", list(dilation)
    g = Geometry.of(x.shape, kernel.shape, *options)  # type: ignore[arg-type]
    work = torch.promote_types(x.dtype, torch.float32)
    pads = tuple(pad for pad in reversed(g.padding) for _ in range(2))
    padded = nn.functional.pad(x.to(work), pads).unflatten(1, (g.groups, g.channels_per_group))
    out: Any = 0
    axes = list(zip(g.out, g.stride, g.dilation, strict=True))
    for taps in product(*map(range, g.kernel)):
        seen = tuple(
            slice(tap * d, tap * d + (n - 1) * s + 1, s)
            for tap, (n, s, d) in zip(taps, axes, strict=True)
        )
        out = out + kernel[(slice(None), slice(None), None, *taps)].to(work) * padded[(..., *seen)]
    result: Tensor = out.flatten(1, 2).to(x.dtype)
    return result


def _fused_forward(
    x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, size: Any, *options: Any
) -> Tensor:
    return _forward(x, operators.kernel_of(features, weight, bias, size), *options)


#: For ``torch.export``'s ``run_decompositions``: the operators in PyTorch's own, which every
#: program that reads exported graphs knows.
decompositions = {operators.forward: _forward, operators.fused_forward: _fused_forward}
