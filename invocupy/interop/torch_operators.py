"""The PyTorch operators ``torch.ops.invocupy.*``: backend functions with fakes and gradients.

Each runs a backend function into new tensors; its fake makes the same tensors without the work.
With B(x, kernel) the involution, its gradients X(grad, kernel) and K(grad, x) are linear in both
arguments too, so the three are each other's gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from invocupy import backends
from invocupy.arrays import contiguous, require_cupy
from invocupy.geometry import Geometry, fused_geometry

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


forward = _operator("forward", "Tensor x, Tensor kernel", _plan)
grad_x = _operator("grad_x", "Tensor grad, Tensor kernel, SymInt[] size", _plan_grad_x)
grad_kernel = _operator("grad_kernel", "Tensor grad, Tensor x, SymInt[] sizes", _plan_grad_kernel)
fused_forward = _operator(
    "fused_forward",
    "Tensor x, Tensor features, Tensor weight, Tensor bias, SymInt[] kernel_size",
    _plan_fused,
)
fused_grad_x = _operator(
    "fused_grad_x",
    "Tensor grad, Tensor features, Tensor weight, Tensor bias, SymInt[] size, SymInt[] kernel_size",
    _plan_fused_grad_x,
)
fused_grad_span = _operator(
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
        grad_x(grad, kernel, x.shape[2:], *ctx.options) if want_x else None,
        grad_kernel(grad, x, kernel.shape[1:4], *ctx.options) if want_kernel else None,
        *(None for _ in ctx.options),
    )


def _backward_of_grad_x(ctx: Any, u: Tensor) -> tuple[Any, ...]:
    (grad, kernel), options = ctx.saved_tensors, ctx.options[1:]
    want_grad, want_kernel = ctx.needs_input_grad[:2]
    return (
        forward(u, kernel, *options) if want_grad else None,
        grad_kernel(grad, u, kernel.shape[1:4], *options) if want_kernel else None,
        *(None for _ in ctx.options),
    )


def _backward_of_grad_kernel(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    (grad, x), options = ctx.saved_tensors, ctx.options[1:]
    want_grad, want_x = ctx.needs_input_grad[:2]
    return (
        forward(x, v, *options) if want_grad else None,
        grad_x(grad, v, x.shape[2:], *options) if want_x else None,
        *(None for _ in ctx.options),
    )


def _fused_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, features, weight, bias = ctx.saved_tensors
    want_x, *want_span = ctx.needs_input_grad[:4]
    of_x = of_span = None
    if want_x:
        of_x = fused_grad_x(grad, features, weight, bias, x.shape[2:], *ctx.options)
    if any(want_span):
        of_span = fused_grad_span(grad, x, features, weight, *ctx.options)
    return of_x, *(of_span or (None, None, None)), *(None for _ in ctx.options)


def _no_second(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "fused_involution can be differentiated once only: use involution, with the kernel made "
        "by a 1x1 convolution, for gradients of gradients"
    )


forward.register_autograd(_backward, setup_context=_save(2))
grad_x.register_autograd(_backward_of_grad_x, setup_context=_save(2))
grad_kernel.register_autograd(_backward_of_grad_kernel, setup_context=_save(2))
fused_forward.register_autograd(_fused_backward, setup_context=_save(4))
fused_grad_x.register_autograd(_no_second)
fused_grad_span.register_autograd(_no_second)
