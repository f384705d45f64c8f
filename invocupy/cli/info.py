"""``invocupy info``: versions, devices, and a check of the kernels on this machine."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invocupy.cli.options import Commands, command, print_json

_WARM = ((7, 1), (7, 2))  # kernel size and stride of RedNet's involutions


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "info", _run, help="versions, devices, and a check of the kernels")
    parser.add_argument(
        "--warm", action="store_true", help="compile the usual kernels, and time it"
    )


def _run(arguments: argparse.Namespace) -> int:
    from invocupy import machine
    from invocupy.backends.cpu.jit import cache_directory, why_not_kept
    from invocupy.data.cifar import data_folder
    from invocupy.settings import folder

    about = machine.describe()
    devices, reason = machine.devices()
    cupy_cache = None
    if reason is None:
        cupy_cache = str(folder("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    checks = {device: _self_check(device) for device in devices}
    result: dict[str, Any] = {
        **about,
        "cuda": reason or "ready",
        "data_cache": str(data_folder()),
        "kernel_cache": {"cpu": str(cache_directory() or ""), "cuda": cupy_cache or ""},
        "self_check": checks,
    }
    if arguments.warm:
        result["warm_seconds"] = {device: _warm(device) for device in devices}
    good = all(faults == [] for faults in checks.values())
    if arguments.json:
        print_json(result)
        return 0 if good else 1
    print(f"invocupy {result['invocupy']}, Python {result['python']}")
    packages = about["packages"].items()
    print("packages:", ", ".join(f"{name} {number or '(none)'}" for name, number in packages))
    for device, description in devices.items():
        state = "kernels agree with the reference" if not checks[device] else "KERNELS ARE WRONG: "
        print(f"{device}: {description}; {state}{', '.join(checks[device])}")
    if reason:
        print(f"cuda: not used; {reason}")
    print(f"threads: {result['threads']} (INVOCUPY_NUM_THREADS)")
    print(f"data cache: {result['data_cache']} (INVOCUPY_DATA)")
    kept = result["kernel_cache"]
    place = kept["cpu"] or f"in memory only; {why_not_kept()}"
    print(f"compiled CPU kernels: {place} (INVOCUPY_CACHE_DIR)")
    if kept["cuda"]:
        print(f"compiled CUDA kernels: {kept['cuda']} (CUPY_CACHE_DIR)")
    for device, seconds in result.get("warm_seconds", {}).items():
        print(f"{device}: the usual kernels are compiled and ready after {seconds:.1f} s")
    return 0 if good else 1


def _self_check(device: str) -> list[str]:
    """Names of the functions that differ from the reference; integers make all sums exact."""
    import numpy as np

    import invocupy
    from invocupy import backends, ops
    from invocupy.arrays import on_device

    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return invocupy.to_device(rng.integers(-3, 4, shape).astype(np.float32), device)

    def op(function: Any, *operands: Any, **options: Any) -> Callable[[], tuple[Any, ...]]:
        def run() -> tuple[Any, ...]:
            value, vjps = function(*operands, **options)
            return value, *(vjp(value) for vjp in vjps)

        return run

    height, width = 9, 20  # more than a vector, and a part of one
    x, grad = draw(2, 8, height, width), draw(2, 8, height, width)
    kernel, few = draw(2, 2, 3, 3, height, width), draw(2, 2, 3, 3, 5, 10)
    grad_few = draw(2, 8, 5, 10)
    fused = draw(2, 4, height, width), draw(18, 4), draw(18)
    weight, one, bias = draw(12, 8, 3, 3), draw(12, 8), draw(12)
    checks: dict[str, Callable[[], Any]] = {
        "involution": lambda: invocupy.involution(x, kernel),
        "involution_backward": lambda: invocupy.involution_backward(grad, x, kernel),
        "fused_involution": lambda: invocupy.fused_involution(x, *fused, kernel_size=3),
        "fused_involution_backward": lambda: invocupy.fused_involution_backward(
            grad, x, *fused, kernel_size=3
        ),
        "involution (stride 2)": lambda: invocupy.involution(x, few, stride=2, dilation=2),
        "involution_backward (stride 2)": lambda: invocupy.involution_backward(
            grad_few, x, few, stride=2, dilation=2
        ),
        "conv2d": op(ops.conv2d, x, weight, bias, padding=1),
        "conv2d (stride 2)": op(ops.conv2d, x, weight, bias, padding=1, stride=2),
        "conv2d (1x1)": op(ops.conv2d, x, one[:, :, None, None], bias),
        "linear": op(ops.linear, x[:, :, 0, 0], one, bias),
        "max_pool2d": op(ops.max_pool2d, x, 3, stride=2, padding=1),
        "avg_pool2d": op(ops.avg_pool2d, x, 2),
    }
    wrong = []
    for name, run in checks.items():
        got = run()
        with backends.plain():
            want = run()
        got, want = ((r if isinstance(r, tuple) else (r,)) for r in (got, want))
        with on_device(x):
            if not all(bool((a == b).all()) for a, b in zip(got, want, strict=True)):
                wrong.append(name)
    return wrong


def _warm(device: str) -> float:
    """Compile what the models of this package run, by running it small; seconds."""
    import numpy as np

    from invocupy import Tensor, functional, nn, to_device
    from invocupy.arrays import on_device
    from invocupy.models import SimpleModel

    start = time.perf_counter()
    images = Tensor(to_device(np.ones((2, 3, 32, 32), np.float32), device))
    with on_device(images.data):
        model = SimpleModel(num_layers=1, rng=0)
        model.to(device)
        labels = to_device(np.zeros(2, np.int64), device)
        functional.cross_entropy(model.logits(images), labels).backward()
        model.eval().logits(images)
        x = Tensor(to_device(np.ones((2, 32, 9, 9), np.float32), device), requires_grad=True)
        for size, stride in _WARM:
            layer = nn.Involution(32, size, stride=stride, fused=False)
            layer.to(device)
            layer(x).sum().backward()
        if device != "cpu":
            import cupy

            cupy.cuda.get_current_stream().synchronize()
    return time.perf_counter() - start
