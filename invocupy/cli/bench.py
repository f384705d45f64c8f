"""``invocupy bench``: time the operator and a training step on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from invocupy.cli.options import Commands, add_device, command, table, tell

_SHAPES = {  # name: (N, C, H, W), G, K
    "article's layer": ((32, 64, 32, 32), 4, 3),
    "RedNet, 28 x 28": ((8, 128, 28, 28), 8, 7),
}
_LAYERS, _BATCH = 10, 32
_ROUNDS = 5
_LONGEST = 3600  # seconds
_COPIED = 1 << 27  # bytes: far beyond the caches
_RATES = {  # of an amount per millisecond: the unit for people, and its size
    "gb_s": ("GB/s", 1e6), "gflop_s": ("GFLOP/s", 1e6), "images_per_second": ("images/s", 1e-3),
}  # fmt: skip
_PEER = "PyTorch, unfold"

Call = Callable[[], Any]
Case = tuple[str, dict[str, Call], str, float]
"""What is timed, calls that take turns by who computes, the rate, and the amount in a call."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(
        commands, "bench", _run, help="time the operator and a training step on this machine",
        description="Time float32 calls; each row is the median of rounds in which all variants "
        "alternate. The machine's copy bandwidth (arrays in cache may be faster) and a BLAS matrix "
        "product are measured for comparison, and, if PyTorch is installed, its usual form of "
        "involution (unfold).",
    )  # fmt: skip
    add_device(parser)
    parser.add_argument(
        "--seconds", metavar="X", type=float, default=1.0,
        help="time for each variant (default %(default)s)",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from invocupy import machine
    from invocupy.train import ConfigError, pick_device

    seconds = arguments.seconds
    if not 0 < seconds <= _LONGEST:
        raise ConfigError(
            f"seconds must be a finite number above 0 and at most {_LONGEST}, got {seconds}"
        )
    device = pick_device(arguments.device)
    about = machine.describe()
    name = about["devices"].get(device) or next(iter(about["devices"].values()))
    rows: list[dict[str, Any]] = []
    cells: list[tuple[str, ...]] = [("what", "ms", "20 to 80 %", "rate", "of the copy")]
    with tqdm(_cases(device), leave=False, disable=None, file=sys.stderr) as bar:
        for what, calls, rate, amount in bar:
            bar.set_description(what)
            for who, (low, ms, high) in _timed(calls, device, seconds).items():
                row = {"what": what, "who": who, "low": low, "ms": ms, "high": high}
                speed = share = ""
                if who != _PEER:
                    unit, size = _RATES[rate]
                    row[rate] = amount / ms / size
                    speed = f"{row[rate]:,.0f} {unit}"
                    if rate == "gb_s" and rows:  # the first row is the copy
                        row["of_copy"] = row[rate] / rows[0][rate]
                        share = f"{row['of_copy']:.0%}"
                rows.append(row)
                title = ", ".join(filter(None, (what, who)))
                cells.append((title, f"{ms:.3g}", f"{low:.3g} to {high:.3g}", speed, share))
    head = f"invocupy {about['invocupy']} on {device}: {name}, {about['threads']} threads\n"
    result = {"machine": about, "device": device, "rows": rows}
    return tell(arguments, result, head, table(cells, "<>>>>"))


def _timed(calls: dict[str, Call], device: str, seconds: float) -> dict[str, list[float]]:
    """Milliseconds per call, by name: quantiles 0.2, 0.5, 0.8 of rounds in which all take turns."""
    import numpy as np

    if device != "cpu":
        import cupy

    def once(call: Call, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        if device != "cpu":
            cupy.cuda.get_current_stream().synchronize()
        return (time.perf_counter() - start) / repeats

    repeats = {}
    for name, call in calls.items():
        once(call, 1)  # compiles
        repeats[name] = max(round(seconds / _ROUNDS / max(once(call, 1), 1e-7)), 1)
    times = [[once(call, repeats[name]) for name, call in calls.items()] for _ in range(_ROUNDS)]
    quantiles = np.quantile(times, (0.2, 0.5, 0.8), axis=0) * 1e3
    return dict(zip(calls, quantiles.T.tolist(), strict=True))


def _cases(device: str) -> Iterator[Case]:
    """What is timed, one after another, so that each case's arrays go before the next ones come."""
    import numpy as np

    from invocupy import to_device

    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return to_device(rng.standard_normal(shape, np.float32), device)

    yield from _machine(device, draw)
    for name, (shape, groups, size) in _SHAPES.items():
        yield from _operator(
            name, draw(*shape), draw(shape[0], groups, size, size, *shape[2:]), draw(*shape)
        )
    yield from _network(device, draw)


def _machine(device: str, draw: Callable[..., Any]) -> Iterator[Case]:
    """The copy bandwidth, reading and writing, with all threads; a product of 1024 x 1024."""
    from concurrent.futures import ThreadPoolExecutor

    from invocupy.arrays import namespace
    from invocupy.backends.cpu.threads import get_num_threads

    source = draw(_COPIED // 4)
    xp = namespace(source)
    target = xp.empty_like(source)
    threads = get_num_threads()
    pieces = xp.array_split(target, threads), xp.array_split(source, threads)
    with ThreadPoolExecutor(threads) as pool:
        cpu, gpu = lambda: list(pool.map(xp.copyto, *pieces)), lambda: xp.copyto(target, source)
        yield "copy", {"": cpu if device == "cpu" else gpu}, "gb_s", 2 * _COPIED
    matrix = draw(1024, 1024)
    yield "matrix product, 1024", {"": lambda: matrix @ matrix}, "gflop_s", 2 * 1024**3


def _operator(name: str, x: Any, kernel: Any, grad: Any) -> Iterator[Case]:
    """Forward, and both gradients, of one shape."""
    import numpy as np

    import invocupy

    forward: dict[str, Call] = {"invocupy": lambda: invocupy.involution(x, kernel)}
    backward: dict[str, Call] = {"invocupy": lambda: invocupy.involution_backward(grad, x, kernel)}
    torch = _torch()
    if torch is not None and isinstance(x, np.ndarray):
        forward[_PEER], backward[_PEER] = _unfold(torch, x, kernel, grad)
        want, got = forward["invocupy"](), forward[_PEER]().numpy()
        if not np.allclose(got, want, rtol=1e-4, atol=1e-3):  # never time what is wrong
            raise RuntimeError(f"{name}: the forms differ")
    yield f"{name}, forward", forward, "gb_s", 2 * x.nbytes + kernel.nbytes
    yield f"{name}, gradients", backward, "gb_s", 3 * x.nbytes + 2 * kernel.nbytes


def _network(device: str, draw: Callable[..., Any]) -> Iterator[Case]:
    """A training step and an evaluation of the article's network."""
    import numpy as np

    from invocupy import Tensor, no_grad, optim, to_device
    from invocupy import functional as F  # noqa: N812
    from invocupy.models import SimpleModel

    model = SimpleModel(num_layers=_LAYERS, rng=0).to(device)
    sgd = optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    x, labels = draw(_BATCH, 3, 32, 32), to_device(np.arange(_BATCH) % 10, device)

    def step() -> None:
        sgd.zero_grad()
        F.cross_entropy(model.train().logits(Tensor(x)), labels).backward()
        sgd.step()

    def evaluate() -> None:
        with no_grad():
            model.eval().logits(x)

    name = f"SimpleModel, {_LAYERS} blocks, {_BATCH} images"
    for what, call in ("training step", step), ("evaluation", evaluate):
        yield f"{name}, {what}", {"invocupy": call}, "images_per_second", _BATCH


def _torch() -> Any:
    """PyTorch if it is installed; looked up by name, since nothing here depends on it."""
    from importlib import import_module
    from importlib.util import find_spec

    return import_module("torch") if find_spec("torch") is not None else None


def _unfold(torch: Any, x: Any, kernel: Any, grad: Any) -> tuple[Call, Call]:
    """Involution as it is usually written in PyTorch: K*K copies of the image, product, sum."""
    n, c, h, w = x.shape
    g, size = kernel.shape[1:3]
    tx, tk = (torch.from_numpy(array).requires_grad_() for array in (x, kernel))

    def form() -> Any:
        patches = torch.nn.functional.unfold(tx, size, padding=size // 2)
        patches = patches.view(n, g, c // g, size * size, h, w)
        return (tk.view(n, g, 1, size * size, h, w) * patches).sum(dim=3).view(n, c, h, w)

    backward = partial(torch.autograd.grad, form(), (tx, tk), torch.from_numpy(grad))
    return torch.no_grad()(form), partial(backward, retain_graph=True)
