"""Four ways to mix neighbouring pixels: time and memory as image, window and channels grow.

``python benchmarks/family.py`` measures each as a layer, C channels to C, float32, one thread,
forward and backward, and writes ``benchmarks/results/family.json`` (takes a minute). A layer
computes its weights and applies them:

- convolution: K*K*C*C weights, learned;
- involution: the article's generator (C to C/4 to K*K*C/16, no norm), 16 channels per group;
- local attention: 1x1 convolutions to query, key and value, 16 channels per head, positions;
- attention: the same without a window and positions.
"""

from __future__ import annotations

import json
import os
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS":
    os.environ[name] = "1"

import numpy as np  # noqa: E402

from invocupy import Tensor, machine  # noqa: E402
from invocupy import functional as F  # noqa: E402, N812
from invocupy.backends import memory  # noqa: E402
from invocupy.backends.cpu import threads  # noqa: E402

BASE = {"size": 32, "kernel": 7, "channels": 64}
GROWING = {
    "size": (8, 16, 24, 32, 48, 64, 96, 128),
    "kernel": (3, 5, 7, 9, 11, 13),
    "channels": (16, 32, 64, 128, 256),
}
LARGEST_ATTENTION = 64  # pixels per side: (64 * 64)**2 weights per head
ROUNDS, PATIENCE = 7, 1.5  # repetitions, and seconds after which no further one starts

Layer = Callable[[Any, dict[str, Any]], Any]


def shapes(kind: str, kernel: int, channels: int) -> dict[str, tuple[int, ...]]:
    """The weights of a layer."""
    c, k, g = channels, kernel, max(channels // 16, 1)
    if kind == "convolution":
        return {"weight": (c, c, k, k)}
    if kind == "involution":
        return {"reduce": (c // 4, c, 1, 1), "span": (k * k * g, c // 4)}
    made = dict.fromkeys(("query", "key", "value"), (c, c, 1, 1))
    return made if kind == "attention" else made | {"positions": (g, k, k, c // g)}


def multiply_adds(kind: str, size: int, kernel: int, channels: int) -> int:
    """The multiply-adds of a forward pass."""
    p, c, k = size * size, channels, kernel
    g = max(c // 16, 1)
    return {
        "convolution": p * k * k * c * c,
        "involution": p * (c * (c // 4) + k * k * g * (c // 4) + k * k * c),
        "local attention": p * (3 * c * c + 3 * k * k * c),
        "attention": p * (3 * c * c + 2 * p * c),
    }[kind]


def forward(kind: str, x: Any, weights: dict[str, Any], kernel: int) -> Any:
    """The layer."""
    if kind == "convolution":
        return F.conv2d(x, weights["weight"], padding="same")
    if kind == "involution":
        features = F.relu(F.conv2d(x, weights["reduce"]))
        return F.fused_involution(x, features, weights["span"], kernel_size=kernel)
    made = [F.conv2d(x, weights[name]) for name in ("query", "key", "value")]
    heads = max(x.shape[1] // 16, 1)
    if kind == "attention":
        return F.self_attention(*made, heads=heads)
    return F.local_self_attention(*made, weights["positions"], kernel_size=kernel, heads=heads)


def measure(kind: str, size: int, kernel: int, channels: int) -> dict[str, Any]:
    """The best times (others may use the machine too) and the peak memory."""
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((1, channels, size, size), np.float32), requires_grad=True)
    weights = {
        name: Tensor(rng.standard_normal(shape, np.float32) * np.float32(0.1), requires_grad=True)
        for name, shape in shapes(kind, kernel, channels).items()
    }
    grad = np.ones(x.shape, np.float32)
    times: list[tuple[float, float]] = []
    begun = time.perf_counter()
    while len(times) <= ROUNDS and (len(times) < 3 or time.perf_counter() - begun < PATIENCE):
        start = time.perf_counter()
        out = forward(kind, x, weights, kernel)
        middle = time.perf_counter()
        out.backward(grad)
        times.append((middle - start, time.perf_counter() - middle))
        for tensor in (x, *weights.values()):
            tensor.grad = None
    del out
    memory.release_memory()
    tracemalloc.start()
    forward(kind, x, weights, kernel).backward(grad)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    first, second = np.min(times[1:], axis=0)  # the first one warms up
    return {
        "kind": kind, "size": size, "kernel": kernel, "channels": channels,
        "parameters": sum(int(np.prod(w.shape)) for w in weights.values()),
        "multiply_adds": multiply_adds(kind, size, kernel, channels),
        "forward_ms": round(1000 * float(first), 3), "backward_ms": round(1000 * float(second), 3),
        "peak_mb": round(peak / 1e6, 2),
    }  # fmt: skip


def main() -> None:
    """Measure all, and write one file."""
    threads.set_num_threads(1)
    begun, rows = time.time(), []
    for grows, values in GROWING.items():
        for value in values:
            for kind in "convolution", "involution", "local attention", "attention":
                sizes = BASE | {grows: value}
                if kind == "attention" and (sizes["size"] > LARGEST_ATTENTION or grows == "kernel"):
                    continue
                rows.append({"grows": grows} | measure(kind, **sizes))
                print(rows[-1], flush=True)
    about = machine.describe()
    about["python"] = platform.python_version()
    result = {
        "seconds": round(time.time() - begun), "threads": 1, "dtype": "float32", "batch": 1,
        "machine": about, "rows": rows,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / "family.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
