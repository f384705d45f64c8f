"""The buffers of the GPU benchmark, and the implementations that it compares on them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import cupy as cp
import numpy as np
import torch

import invocupy
from invocupy import Geometry, backends

PER_GROUP, REDUCTION = 16, 4
PAST_CACHE = 300e6  # the least bytes of all sets together
Calls = list[Callable[[], Any]]


class Problem:
    """Several sets of buffers of one shape and dtype, as arrays of CuPy and of PyTorch."""

    def __init__(self, shape: tuple[int, ...], k: int, dtype: str) -> None:
        batch, channels, *size = shape
        groups, count = channels // PER_GROUP, channels // REDUCTION
        self.dtype, self.k = dtype, k
        self.g = Geometry.of(shape, (batch, groups, *(k,) * len(size), *size))
        itemsize = np.dtype(dtype).itemsize
        x, kernel, features = prod(shape), prod(self.g.kernel_shape), batch * count * prod(size)
        self.bytes = {
            "forward": (2 * x + kernel) * itemsize,
            "grad_x": (2 * x + kernel) * itemsize,
            "grad_kernel": (2 * x + kernel) * itemsize,
            "all three": 3 * (2 * x + kernel) * itemsize,
            "layer forward": (2 * x + features) * itemsize,
            "layer backward": (3 * x + 2 * features) * itemsize,
        }
        sets = max(2, int(np.ceil(PAST_CACHE / self.bytes["forward"])))
        rng = cp.random.default_rng(0)

        def normal(*dims: int, scale: float = 1.0) -> Any:
            return (rng.standard_normal(dims, dtype=np.float32) * scale).astype(dtype)

        weight_shape = (groups * k ** len(size), count)
        self.sets = [
            {
                "x": normal(*self.g.x_shape),
                "kernel": normal(*self.g.kernel_shape),
                "grad": normal(*self.g.out_shape),
                "features": normal(batch, count, *size),
                "weight": normal(*weight_shape, scale=count**-0.5),
                "bias": normal(weight_shape[0]),
            }
            for _ in range(sets)
        ]
        # All contenders write their results to the same memory.
        self.out = cp.empty(self.g.out_shape, dtype)
        self.grad_x = cp.empty(self.g.x_shape, dtype)
        self.grad_kernel = cp.empty(self.g.kernel_shape, dtype)

    def each(self, call: Callable[[dict[str, Any]], Any]) -> Calls:
        """One call for each set of buffers."""
        return [lambda buffers=buffers: call(buffers) for buffers in self.sets]

    def torch_each(self, call: Callable[..., Any]) -> Calls:
        """The same with PyTorch's views of x, kernel and the gradient."""
        views = [
            [torch.from_dlpack(s[name]) for name in ("x", "kernel", "grad")] for s in self.sets
        ]
        return [lambda view=view: call(*view) for view in views]


def ours(p: Problem) -> dict[str, Calls]:
    """The kernels of this library, which write into given arrays."""
    b = backends.of("involution", p.out)
    rows, count = p.sets[0]["weight"].shape
    results = cp.empty_like(p.sets[0]["features"]), cp.empty((rows, count), p.dtype)
    bias = cp.empty(rows, p.dtype)

    def fused_backward(s: dict[str, Any]) -> Any:
        b.fused_grad_x(s["grad"], s["features"], s["weight"], s["bias"], p.g, p.grad_x)
        b.fused_grad_span(s["grad"], s["x"], s["features"], s["weight"], p.g, *results, bias)
        return p.grad_x, *results, bias

    def one(s: dict[str, Any]) -> Any:
        b.forward(s["x"], s["kernel"], p.g, p.out)
        return p.out

    def two(s: dict[str, Any]) -> Any:
        b.grad_x(s["grad"], s["kernel"], p.g, p.grad_x)
        return p.grad_x

    def three(s: dict[str, Any]) -> Any:
        b.grad_kernel(s["grad"], s["x"], p.g, p.grad_kernel)
        return p.grad_kernel

    def fused(s: dict[str, Any]) -> Any:
        b.fused_forward(s["x"], s["features"], s["weight"], s["bias"], p.g, p.out)
        return p.out

    return {
        "forward": p.each(one),
        "grad_x": p.each(two),
        "grad_kernel": p.each(three),
        "all three": p.each(lambda s: (one(s), two(s), three(s))),
        "layer forward": p.each(fused),
        "layer backward": p.each(fused_backward),
    }


def kernel_stored(p: Problem) -> dict[str, Calls]:
    """The layer in two steps: a 1x1 convolution by cuBLAS stores the kernel, our kernels use it.

    PyTorch calls cuBLAS, which adds the bias in the same pass; CuPy cannot capture it in a graph.
    """
    b = backends.of("involution", p.out)
    rows, count = p.sets[0]["weight"].shape
    flat = torch.from_dlpack(p.grad_kernel).view(p.g.batch, rows, -1)
    made = torch.empty_like(flat)
    kernel = cp.from_dlpack(made).reshape(p.g.kernel_shape)

    views = {id(s): {name: torch.from_dlpack(a) for name, a in s.items()} for s in p.sets}

    def on_torch_stream() -> Any:
        return cp.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)

    def forward(s: dict[str, Any]) -> Any:
        t = views[id(s)]
        features = t["features"].view(p.g.batch, count, -1)
        weight = t["weight"].expand(p.g.batch, rows, count)
        torch.baddbmm(t["bias"][None, :, None], weight, features, out=made)
        with on_torch_stream():
            b.forward(s["x"], kernel, p.g, p.out)
        return p.out

    def backward(s: dict[str, Any]) -> Any:
        with on_torch_stream():
            b.grad_x(s["grad"], kernel, p.g, p.grad_x)
            b.grad_kernel(s["grad"], s["x"], p.g, p.grad_kernel)
        weight, features = views[id(s)]["weight"], views[id(s)]["features"]
        grad_features = torch.matmul(weight.T, flat).view(features.shape)
        grad_weight = torch.bmm(flat, features.view(p.g.batch, count, -1).mT).sum(0)
        return p.grad_x, grad_features, grad_weight, flat.sum((0, 2))

    return {"layer forward": p.each(forward), "layer backward": p.each(backward)}


def one_thread_per_output(p: Problem) -> dict[str, Calls]:
    """The design of the authors' CUDA kernels: one thread per output. For images only."""
    g = p.g
    if g.dims != 2:
        return {}
    macros = {
        "SCALAR": {"float32": "float", "float16": "__half"}[p.dtype],
        "ACCUM": "float", "BATCH": g.batch, "CHANNELS": g.channels, "GROUPS": g.groups,
        "HEIGHT": g.size[0], "WIDTH": g.size[1], "KERNEL": p.k, "PAD": g.padding[0],
    }  # fmt: skip
    text = "#include <cuda_fp16.h>\n" + "".join(f"#define {k} {v}\n" for k, v in macros.items())
    text += (Path(__file__).parent / "one_thread_per_output.cu").read_text()
    module = cp.RawModule(code=text, options=("-std=c++17",))

    def launch(name: str, first: str, second: str, out: Any) -> Callable[[dict[str, Any]], Any]:
        function = module.get_function(name)

        def call(s: dict[str, Any]) -> Any:
            function((-(-out.size // 1024),), (1024,), (s[first], s[second], out))
            return out

        return call

    one = launch("forward", "x", "kernel", p.out)
    two = launch("grad_x", "grad", "kernel", p.grad_x)
    three = launch("grad_kernel", "grad", "x", p.grad_kernel)
    return {
        "forward": p.each(one),
        "grad_x": p.each(two),
        "grad_kernel": p.each(three),
        "all three": p.each(lambda s: (one(s), two(s), three(s))),
    }


def in_torch(p: Problem, form: Callable[..., Any]) -> dict[str, Calls]:
    """A PyTorch function, and its gradients by autograd, which are timed together."""

    def forward(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return form(x, kernel, p.k // 2)

    def step(x: torch.Tensor, kernel: torch.Tensor, grad: torch.Tensor) -> Any:
        x, kernel = x.detach().requires_grad_(), kernel.detach().requires_grad_()
        out = forward(x, kernel)
        return out.detach(), *torch.autograd.grad(out, (x, kernel), grad)

    def value(x: torch.Tensor, kernel: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return forward(x, kernel)

    return {"forward": p.torch_each(value), "all three": p.torch_each(step)}


def expected(p: Problem, images: int = 2) -> dict[str, Any]:
    """The first images' results in float64."""
    whole = "weight", "bias"
    s = {
        name: (a if name in whole else a[:images]).astype(np.float64)
        for name, a in p.sets[0].items()
    }
    kernel_size = p.k
    flat = s["features"].reshape(*s["features"].shape[:2], -1)
    span = s["weight"] @ flat + s["bias"][:, None]
    span = span.reshape(-1, *p.g.kernel_shape[1:])
    grad_x, grad_kernel = invocupy.reference.involution_backward(s["grad"], s["x"], s["kernel"])
    layer = invocupy.reference.fused_involution_backward(
        s["grad"], s["x"], s["features"], s["weight"], s["bias"], kernel_size=kernel_size
    )
    forward = invocupy.reference.involution(s["x"], s["kernel"])
    return {
        "forward": (forward,),
        "grad_x": (grad_x,),
        "grad_kernel": (grad_kernel,),
        "all three": (forward, grad_x, grad_kernel),
        "layer forward": (invocupy.reference.involution(s["x"], span),),
        "layer backward": layer[:2],  # the sums over all images are checked by the tests
    }
