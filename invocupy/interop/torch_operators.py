"""The PyTorch operators ``torch.ops.invocupy.*``: backend functions with fakes and derivatives.

Each runs a backend function into new tensors; its fake makes the same tensors without the work.
With B(x, kernel) the involution, its gradients X(grad, kernel) and K(grad, x) are linear in both
arguments too, so the three are each other's gradients, and their tangents are they themselves.
The fused operators have one fused gradient; every other derivative of theirs, and ``vmap``, is
that of their formula, in which the kernel is made and stored.

Derivatives are registered below PyTorch's transforms (dispatch key "Autograd"), so that each level
of nested transforms meets them, eager or compiled. An empty ``padding`` stands for "same".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils._pytree import tree_map

from invocupy import backends
from invocupy.arrays import Array, contiguous, require_cupy
from invocupy.geometry import Geometry, fused_geometry

_Ints = Sequence[int]
_Plan = tuple[Geometry, tuple[_Ints, ...]]  # and the shapes of the results
_library = torch.library.Library("invocupy", "FRAGMENT")
_plans: dict[Any, Callable[..., _Plan]] = {}


def _operator(plan: Callable[..., _Plan]) -> Any:
    """Define ``invocupy::<name of the plan>``: its tensors and numbers to new tensors.

    The backend function of this name computes them, into arrays of the shapes of the plan.
    """
    name, parameters = plan.__name__, inspect.signature(plan).parameters.values()
    tensors = [p.name for p in parameters if p.annotation == "Tensor"]
    several = name == "fused_grad_span"

    def call(*args: Any, fill: bool) -> Any:
        g, shapes = plan(*args)
        if tensors[0] == "grad" and tuple(args[0].shape) != g.out_shape:
            raise ValueError(f"grad must have shape {g.out_shape}, got {tuple(args[0].shape)}")
        made = tuple(args[0].new_empty(shape) for shape in shapes)
        if fill:
            _run(name, args[: len(tensors)], g, made)
        return made if several else made[0]

    numbers = [p.name for p in parameters if p.annotation != "Tensor"][:-1]
    arguments = [f"Tensor {tensor}" for tensor in tensors]
    arguments += [f"SymInt[] {n}" for n in (*numbers, "stride", "padding", "dilation")]
    returned = "(Tensor, Tensor, Tensor)" if several else "Tensor"
    schema = f"{name}({', '.join(arguments)}) -> {returned}"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    run = torch._disable_dynamo(partial(call, fill=True))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"invocupy::{name}", partial(call, fill=False), lib=_library)
    operator = getattr(torch.ops.invocupy, name).default
    _plans[operator] = plan
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
def _arrays(device: torch.device) -> Iterator[Callable[[Tensor], Array]]:
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


def _geometry(make: Callable[..., Geometry], *shapes_and_options: Any) -> Geometry:
    *given, padding, dilation = shapes_and_options
    return make(*given, padding or "same", dilation)


@_operator
def forward(x: Tensor, kernel: Tensor, *options: _Ints) -> _Plan:
    g = _geometry(Geometry.of, x.shape, kernel.shape, *options)
    return g, (g.out_shape,)


@_operator
def grad_x(grad: Tensor, kernel: Tensor, size: _Ints, *options: _Ints) -> _Plan:
    g = _geometry(Geometry.of, (*grad.shape[:2], *size), kernel.shape, *options)
    return g, (g.x_shape,)


@_operator
def grad_kernel(grad: Tensor, x: Tensor, sizes: _Ints, *options: _Ints) -> _Plan:
    g = _geometry(Geometry.of, x.shape, (x.shape[0], *sizes, *grad.shape[2:]), *options)
    return g, (g.kernel_shape,)


@_operator
def fused_forward(
    x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, kernel_size: _Ints, *options: _Ints
) -> _Plan:
    shapes = x.shape, features.shape, weight.shape, bias.shape
    g = _geometry(fused_geometry, *shapes, kernel_size, *options)
    return g, (g.out_shape,)


@_operator
def fused_grad_x(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor,
    size: _Ints, kernel_size: _Ints, *options: _Ints,
) -> _Plan:  # fmt: skip
    shapes = (*grad.shape[:2], *size), features.shape, weight.shape, bias.shape
    g = _geometry(fused_geometry, *shapes, kernel_size, *options)
    return g, (g.x_shape,)


@_operator
def fused_grad_span(
    grad: Tensor, x: Tensor, features: Tensor, weight: Tensor, kernel_size: _Ints, *options: _Ints
) -> _Plan:
    shapes = x.shape, features.shape, weight.shape, None
    g = _geometry(fused_geometry, *shapes, kernel_size, *options)
    return g, (features.shape, weight.shape, weight.shape[:1])


def _derive(operator: Any, count: int, batched: int, backward: Any, formula: Any = None) -> None:
    """Register the derivatives of an operator of ``count`` tensors and its rule for ``vmap``.

    ``backward(wanted, grad, *arguments)`` gives the gradients of the tensors. Where the operator
    has a ``formula``, tangents come from that, and gradients too if ``backward`` is None. Where it
    has none, it is linear in each tensor. The first ``batched`` tensors have the batch axis of the
    results.
    """

    def below(keyset: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    class Differentiable(_SingleLevelFunction):
        @staticmethod
        def forward(keyset: Any, *args: Any) -> Any:
            # The levels of transforms below this one have derivatives of their own.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return below(keyset, *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs[1 : 1 + count])
            ctx.save_for_forward(*inputs[1 : 1 + count])
            ctx.options = inputs[1 + count :]

        @staticmethod
        @torch._disable_dynamo
        def backward(ctx: Any, *grads: Any) -> Any:
            wanted, arguments = ctx.needs_input_grad[1:], (*ctx.saved_tensors, *ctx.options)
            return None, *backward(wanted, *grads, *arguments), *(None for _ in ctx.options)

        @staticmethod
        def jvp(ctx: Any, _: Any, *given: Any) -> Any:
            with forward_ad._set_fwd_grad_enabled(True):
                tensors = [forward_ad.unpack_dual(saved, level=0)[0] for saved in ctx.saved_tensors]
                parts = [
                    operator(*tensors[:i], tangent, *tensors[i + 1 :], *ctx.options)
                    for i, tangent in enumerate(given[:count])
                    if tangent is not None
                ]
                return sum(parts[1:], parts[0])

    @torch._disable_dynamo
    def differentiate(keyset: Any, *args: Any) -> Any:
        tensors = args[:count]
        # There is one level of dual numbers, also where compiled code has entered it by itself.
        forwards = any(forward_ad.unpack_dual(t, level=0).tangent is not None for t in tensors)
        backwards = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if formula and (forwards or (backwards and not backward)):
            _plans[operator](*args)  # raises
            return formula(*args)
        if not (forwards or backwards):
            return below(keyset, *args)
        with enable_single_level_autograd_function():
            return Differentiable.apply(keyset, *args)

    @torch._disable_dynamo
    def batch(info: Any, in_dims: Any, *args: Any) -> Any:
        size, axes = info.batch_size, in_dims[:count]
        pairs, numbers = list(zip(args, axes, strict=False)), args[count:]
        if any(axis is not None for axis in axes[batched:]):
            # A sum over an axis of no entries has the shape that an entry would have.
            given = [
                [
                    tensor if axis is None else tensor.select(axis, i) if size else tensor.sum(axis)
                    for tensor, axis in pairs
                ]
                for i in range(max(size, 1))
            ]
            outs = [operator(*tensors, *numbers) for tensors in given]
            stacked = tree_map(lambda *entries: torch.stack(entries)[:size], *outs)
            return stacked, tree_map(lambda _: 0, stacked)
        # Mapped axes join the batch.
        whole = [
            tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
            for tensor, axis in pairs[:batched]
        ]
        out = operator(*(tensor.flatten(0, 1) for tensor in whole), *args[batched:])
        return out.unflatten(0, (size, whole[0].shape[1])), 0

    name = operator.name().removeprefix("invocupy::")
    _library.impl(name, differentiate, "Autograd", with_keyset=True)
    torch.library.register_vmap(operator, batch, lib=_library)


def _bilinear(operator: Any, of_first: Callable[..., Any], of_second: Callable[..., Any]) -> None:
    """Derive an operator of two tensors by ``(grad, first, second, *options)`` to a gradient."""

    def backward(wanted: Sequence[bool], grad: Tensor, *arguments: Any) -> tuple[Any, ...]:
        arguments = grad, *arguments[:2], *arguments[-3:]
        return (
            of_first(*arguments) if wanted[0] else None,
            of_second(*arguments) if wanted[1] else None,
        )

    _derive(operator, 2, 2, backward)


_bilinear(
    forward,
    lambda grad, x, kernel, *options: grad_x(grad, kernel, x.shape[2:], *options),
    lambda grad, x, kernel, *options: grad_kernel(grad, x, kernel.shape[1 : x.ndim], *options),
)
_bilinear(
    grad_x,
    lambda u, grad, kernel, *options: forward(u, kernel, *options),
    lambda u, grad, kernel, *options: grad_kernel(grad, u, kernel.shape[1 : u.ndim], *options),
)
_bilinear(
    grad_kernel,
    lambda v, grad, x, *options: forward(x, v, *options),
    lambda v, grad, x, *options: grad_x(grad, v, x.shape[2:], *options),
)


def _fused_backward(
    wanted: Sequence[bool], grad: Tensor, x: Tensor, features: Tensor, weight: Tensor, bias: Tensor,
    *options: Any,
) -> tuple[Any, ...]:  # fmt: skip
    of_x = of_span = None
    if wanted[0]:
        of_x = fused_grad_x(grad, features, weight, bias, x.shape[2:], *options)
    if any(wanted[1:4]):
        of_span = fused_grad_span(grad, x, features, weight, *options)
    return of_x, *(of_span or (None, None, None))


def kernel_of(features: Tensor, weight: Tensor, bias: Tensor, size: _Ints) -> Tensor:
    """The kernel (N, G, *K, *O) that the span makes of the features."""
    flat = torch.einsum("kf,nfp->nkp", weight, features.flatten(2)) + bias[:, None]
    return flat.unflatten(2, features.shape[2:]).unflatten(1, (len(weight) // prod(size), *size))


def _grad_span(
    grad: Tensor, x: Tensor, features: Tensor, weight: Tensor, size: _Ints, *options: _Ints
) -> tuple[Tensor, ...]:
    sizes = len(weight) // prod(size), *size
    flat = grad_kernel(grad, x, sizes, *options).flatten(1, len(size) + 1).flatten(2)
    return (
        torch.einsum("nkp,kf->nfp", flat, weight).unflatten(2, features.shape[2:]),
        torch.einsum("nkp,nfp->kf", flat, features.flatten(2)),
        flat.sum((0, 2)),
    )


_derive(fused_forward, 4, 2, _fused_backward, lambda x, features, weight, bias, size, *options: (
    forward(x, kernel_of(features, weight, bias, size), *options)
))  # fmt: skip
_derive(fused_grad_x, 4, 2, None, lambda grad, features, weight, bias, image, size, *options: (
    grad_x(grad, kernel_of(features, weight, bias, size), image, *options)
))  # fmt: skip
_derive(fused_grad_span, 4, 0, None, _grad_span)
