"""``invocupy info``: versions, devices, and a check of the kernels on this machine."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from invocupy.cli.options import Commands, command, tell

_WARM = ((7, 1), (7, 2))  # kernel size and stride of RedNet's involutions


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "info", _run, help="versions, devices, and a check of the kernels")
    parser.add_argument(
        "--warm", action="store_true", help="compile the kernels of common models, and time it"
    )


def _run(arguments: argparse.Namespace) -> int:
    from invocupy import machine
    from invocupy.backends.cpu.jit import cache_directory, why_not_kept
    from invocupy.data.cifar import data_folder
    from invocupy.settings import folder

    about = machine.describe()
    devices, reason = machine.devices()
    cache, gpu_cache = cache_directory(), ""
    if reason is None:
        gpu_cache = str(folder("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    checks = {device: _self_check(device) for device in devices}
    result: dict[str, Any] = {
        **about,
        "cuda": reason or "ready",
        "data_cache": str(data_folder()),
        "kernel_cache": {"cpu": str(cache or ""), "cuda": gpu_cache},
        "self_check": checks,
    }
    packages = (f"{name} {number or '(none)'}" for name, number in about["packages"].items())
    lines = [
        f"invocupy {about['invocupy']}, Python {about['python']}",
        f"packages: {', '.join(packages)}",
    ]
    for device, description in devices.items():
        state = "kernels agree with the reference" if not checks[device] else "KERNELS ARE WRONG: "
        lines.append(f"{device}: {description}; {state}{', '.join(checks[device])}")
    if reason:
        lines.append(f"cuda: not used; {reason}")
    lines += [
        f"threads: {about['threads']} (INVOCUPY_NUM_THREADS)",
        f"data cache: {result['data_cache']} (INVOCUPY_DATA)",
        f"compiled CPU kernels: {cache or f'in memory only; {why_not_kept()}'} "
        "(INVOCUPY_CACHE_DIR)",
    ]
    if gpu_cache:
        lines.append(f"compiled CUDA kernels: {gpu_cache} (CUPY_CACHE_DIR)")
    if arguments.warm:
        warm = result["warm_seconds"] = {device: _warm(device) for device in devices}
        for device, seconds in warm.items():
            lines.append(f"{device}: kernels of common models compiled in {seconds:.1f} s")
    return tell(arguments, result, *lines, code=1 if any(checks.values()) else 0)


def _self_check(device: str) -> list[str]:
    """Names of the functions that differ from the reference; integers make all sums exact."""
    import numpy as np

    from invocupy import backends, ops, to_device
    from invocupy.arrays import on_device

    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return to_device(rng.integers(-3, 4, shape).astype(np.float32), device)

    x = draw(2, 8, 9, 20)  # a row is more than a vector, and a part of one
    kernel, few = draw(2, 2, 3, 3, 9, 20), draw(2, 2, 3, 3, 5, 10)
    fused = draw(2, 4, 9, 20), draw(18, 4), draw(18)
    weight, one, bias = draw(12, 8, 3, 3), draw(12, 8, 1, 1), draw(12)
    checks: dict[str, tuple[Any, ...]] = {
        "involution": (ops.involution, x, kernel),
        "fused_involution": (partial(ops.fused_involution, kernel_size=3), x, *fused),
        "involution (stride 2)": (partial(ops.involution, stride=2, dilation=2), x, few),
        "conv2d": (partial(ops.conv2d, padding=1), x, weight, bias),
        "conv2d (stride 2)": (partial(ops.conv2d, padding=1, stride=2), x, weight, bias),
        "conv2d (1x1)": (ops.conv2d, x, one, bias),
        "linear": (ops.linear, x[:, :, 0, 0], one[:, :, 0, 0], bias),
        "max_pool2d": (partial(ops.max_pool2d, kernel_size=3, stride=2, padding=1), x),
        "avg_pool2d": (partial(ops.avg_pool2d, kernel_size=2), x),
    }
    wrong = []
    for name, (op, *operands) in checks.items():
        with backends.plain():
            value, vjps = op(*operands)
            wanted = [vjp(value) for vjp in vjps]
        with on_device(x):
            found, vjps = op(*operands)
            gradients = [vjp(value) for vjp in vjps]
            same = [bool((a == b).all()) for a, b in zip(gradients, wanted, strict=True)]
            if not (found == value).all():
                wrong.append(name)
        if not all(same):
            wrong.append(name.replace("involution", "involution_backward"))
    return list(dict.fromkeys(wrong))


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
        to_device(x.grad, "cpu")  # waits for a GPU
    return time.perf_counter() - start
