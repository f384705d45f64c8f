"""The calls that benchmarks/cpu.py times, ours and PyTorch's; their results are compared first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import peers
import torch

import invocupy
from invocupy import Tensor, models, nn, no_grad, optim, weights
from invocupy import functional as F  # noqa: N812

CHANNELS_PER_GROUP = 16
Call = Callable[[], Any]


def agree(name: str, got: Any, expected: Any, limit: float = 1e-5) -> None:
    """Raise an error if the results differ."""
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    if not error < limit:
        raise SystemExit(f"{name}: relative difference {error:.1e} from PyTorch")


def operator_calls(
    shape: tuple[int, ...], k: int, stride: int, compiled: tuple[str, ...] = ()
) -> tuple[dict[str, Call], dict[str, Call]]:
    """Forward and both gradients of one shape, ours and PyTorch's, also ``compiled``."""
    n, c, *image = shape
    small = tuple(-(-size // stride) for size in image)
    taps = (k,) * len(image)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    kernel = rng.standard_normal((n, c // CHANNELS_PER_GROUP, *taps, *small), np.float32)
    grad = rng.standard_normal((n, c, *small), np.float32)
    tx, tk = (torch.tensor(a, requires_grad=True) for a in (x, kernel))
    tg = torch.tensor(grad)
    forms = {"unfold": peers.unfold_form, "shift": peers.shift_form}
    if compiled:
        config = import_module("torch._functorch.config")
        config.donated_buffer = False  # backward is run many times
        forms |= {f"{name}, compiled": torch.compile(forms[name]) for name in compiled}

    forward: dict[str, Call] = {"invocupy": lambda: invocupy.involution(x, kernel, stride=stride)}
    backward: dict[str, Call] = {
        "invocupy": lambda: invocupy.involution_backward(grad, x, kernel, stride=stride)
    }
    for name, form in forms.items():

        def value(form: Any = form) -> Any:
            with torch.no_grad():
                return form(tx, tk, k // 2, stride)

        graph = form(tx, tk, k // 2, stride)

        def gradients(graph: Any = graph) -> Any:
            return torch.autograd.grad(graph, (tx, tk), tg, retain_graph=True)

        agree(name, forward["invocupy"](), value().numpy())
        for ours, theirs in zip(backward["invocupy"](), gradients(), strict=True):
            agree(f"{name}, gradient", ours, theirs.numpy())
        forward[name], backward[name] = value, gradients
    if len(image) != 2:
        forward["2-D"], backward["2-D"] = as_image(x, kernel, grad)
        return forward, backward

    def conv(weight: Any, groups: int, padding: int) -> Call:
        def call() -> Any:
            with torch.no_grad():
                return torch.nn.functional.conv2d(tx, weight, None, stride, padding, 1, groups)

        return call

    forward["depthwise convolution"] = conv(torch.randn(c, 1, k, k), c, k // 2)
    forward["3x3 convolution"] = conv(torch.randn(c, c, 3, 3), 1, 1)
    return forward, backward


def as_image(x: Any, kernel: Any, grad: Any) -> tuple[Call, Call]:
    """Forward and gradients of an image with as many pixels and taps as the volume."""
    n, g, k = kernel.shape[:3]
    flat = x.reshape(*x.shape[:2], -1, x.shape[-1])
    taps = kernel.reshape(n, g, k if x.ndim == 5 else 1, -1, *flat.shape[2:])
    grads = grad.reshape(flat.shape), flat, taps
    return partial(invocupy.involution, flat, taps), partial(invocupy.involution_backward, *grads)


def layer_calls(shape: tuple[int, ...], k: int) -> dict[str, Call]:
    """The whole layer in evaluation: reduce, norm, ReLU, span, involution."""
    layers: dict[str, Any] = {
        f"invocupy, fused={fused}": nn.Involution(shape[1], k, fused=fused).eval()
        for fused in ("auto", True, False)
    }
    theirs = peers.Involution(shape[1], k).eval()
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    ours = {"weights0": "reduce", "BN": "norm", "weights1": "span"}
    for layer in layers.values():
        layer.load_state_dict(
            {
                f"{ours[part]}.{what}": value
                for (part, _, what), value in ((n.partition("."), v) for n, v in state.items())
                if part in ours
            }
        )
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    tx = torch.tensor(x)

    def theirs_call() -> Any:
        with torch.no_grad():
            return theirs(tx)

    def call(layer: Any) -> Call:
        def run() -> Any:
            with no_grad():
                return layer(x)

        agree("layer", run(), theirs_call().numpy())
        return run

    calls = {name: call(layer) for name, layer in layers.items()}
    calls["invocupy"] = calls.pop("invocupy, fused=auto")
    return {"invocupy": calls.pop("invocupy"), **calls, "unfold": theirs_call}


def network_calls(
    layers: int, batch: int, training: bool, compiled: bool = False
) -> dict[str, Call]:
    """One training step, or one evaluation, of the article's model."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 3, 32, 32), np.float32)
    labels = rng.integers(0, 10, batch)
    theirs, ours = peers.SimpleModel(layers), models.SimpleModel(num_layers=layers)
    tx, t_labels = torch.tensor(x), torch.tensor(labels)
    if not training:  # statistics must fit the weights: else values overflow
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            theirs(tx)
    weights.import_state(ours, theirs.state_dict())
    if training:
        t_sgd = torch.optim.SGD(theirs.parameters(), lr=1e-4, momentum=0.9)
        sgd = optim.SGD(ours.parameters(), lr=1e-4, momentum=0.9)

        def step(recompute: bool) -> None:
            for block in ours.blocks:
                block.recompute = recompute
            sgd.zero_grad()
            F.cross_entropy(ours.logits(Tensor(x)), labels).backward()
            sgd.step()

        calls = {
            "invocupy": partial(step, True),
            "invocupy, recompute=False": partial(step, False),
            "PyTorch": lambda: peers.training_step(theirs, t_sgd, tx, t_labels),
        }
        forms = {"unfold": peers.unfold_form, "shift": peers.shift_form} if compiled else {}
        for name, form in forms.items():
            model = peers.SimpleModel(layers, form)
            model.load_state_dict(theirs.state_dict())
            fast: Any = torch.compile(model)
            fast_sgd = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
            calls[f"PyTorch, {name}, compiled"] = partial(
                peers.training_step, fast, fast_sgd, tx, t_labels
            )
        return calls
    theirs.eval()
    ours.eval()

    def infer() -> Any:
        with no_grad():
            return ours.logits(x)

    def t_infer() -> Any:
        with torch.no_grad():
            return theirs(tx)

    agree("model", infer(), t_infer().numpy(), 1e-3)  # rounding errors grow from layer to layer
    return {"invocupy": infer, "PyTorch": t_infer}
