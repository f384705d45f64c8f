"""``invocupy bench``: how fast the operator and a training step are on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from invocupy.cli.options import Commands, add_device, command, print_json, table

_SHAPES = {  # name: (N, C, H, W), G, K
    "article's layer": ((32, 64, 32, 32), 4, 3),
    "RedNet, 28 x 28": ((8, 128, 28, 28), 8, 7),
}
_LAYERS, _BATCH = 10, 32
_ROUNDS = 5
_LONGEST = 3600  # seconds
_COPIED = 1 << 27  # bytes: far beyond the caches
_RATES = {"gb_s": "GB/s", "gflop_s": "GFLOP/s", "images_per_second": "images/s"}

Call = Callable[[], Any]
Row = dict[str, Any]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(
        commands, "bench", _run, help="time the operator and a training step on this machine",
        description="In float32, each row a median over rounds in which all variants take turns. "
        "Next to them the machine's copy bandwidth (arrays that stay in a cache may be faster) and "
        "a matrix product of its BLAS. PyTorch's usual form of involution (unfold) runs too where "
        "PyTorch is installed.",
    )  # fmt: skip
    add_device(parser)
    parser.add_argument(
        "--seconds", metavar="X", type=float, default=1.0,
        help="for each timed variant (default %(default)s)",
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
    rows: list[Row] = []
    with tqdm(["machine", *_SHAPES, "network"], leave=False, disable=None, file=sys.stderr) as bar:
        for name in bar:
            bar.set_description(name)
            if name in _SHAPES:
                rows += _operator(device, name, seconds)
            else:
                rows += (_machine if name == "machine" else _network)(device, seconds)
    for row in rows[2:]:
        if "gb_s" in row:
            row["of_copy"] = row["gb_s"] / rows[0]["gb_s"]
    about = machine.describe()
    if arguments.json:
        print_json({"machine": about, "device": device, "rows": rows})
        return 0
    name = about["devices"].get(device) or next(iter(about["devices"].values()))
    print(f"invocupy {about['invocupy']} on {device}: {name}, {about['threads']} threads\n")
    cells: list[tuple[str, ...]] = [("what", "ms", "20 to 80 %", "rate", "of the copy")]
    for row in rows:
        rates = [f"{row[key]:,.0f} {unit}" for key, unit in _RATES.items() if key in row]
        share = f"{row['of_copy']:.0%}" if "of_copy" in row else ""
        what = ", ".join(filter(None, (row["what"], row["who"])))
        spread = f"{row['low']:.3g} to {row['high']:.3g}"
        cells.append((what, f"{row['ms']:.3g}", spread, *(rates or [""]), share))
    print(table(cells, "<>>>>"))
    return 0


def _timed(calls: dict[str, Call], device: str, seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds a call, by name: median and quantiles over rounds in which all take turns."""
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

    repeats, times = {}, dict[str, list[float]]()
    for name, call in calls.items():
        once(call, 1)  # compiles
        repeats[name] = max(round(seconds / _ROUNDS / max(once(call, 1), 1e-7)), 1)
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            times.setdefault(name, []).append(once(call, repeats[name]) * 1e3)
    quantiles = {name: np.quantile(t, (0.2, 0.5, 0.8)).tolist() for name, t in times.items()}
    return {name: dict(zip(("low", "ms", "high"), q, strict=True)) for name, q in quantiles.items()}


def _machine(device: str, seconds: float) -> list[Row]:
    """The copy bandwidth, reading and writing, with all threads; a product of 1024 x 1024."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from invocupy import to_device
    from invocupy.arrays import namespace
    from invocupy.backends.cpu.threads import get_num_threads

    source = to_device(np.ones(_COPIED, np.uint8), device)
    xp = namespace(source)
    target = xp.empty_like(source)
    matrix = to_device(np.ones((1024, 1024), np.float32), device)
    parts = get_num_threads() if device == "cpu" else 1
    pieces = list(zip(xp.array_split(target, parts), xp.array_split(source, parts), strict=True))
    with ThreadPoolExecutor(parts) as pool:
        calls: dict[str, Call] = {
            "copy": (lambda: list(pool.map(lambda piece: xp.copyto(*piece), pieces)))
            if device == "cpu"
            else (lambda: xp.copyto(target, source)),
            "product": lambda: matrix @ matrix,
        }
        copy, product = _timed(calls, device, seconds).values()
    copied, flops = 2 * _COPIED / copy["ms"] / 1e6, 2 * 1024**3 / product["ms"] / 1e6
    return [
        {"what": "copy", "who": "", **copy, "gb_s": copied},
        {"what": "matrix product, 1024", "who": "", **product, "gflop_s": flops},
    ]


def _operator(device: str, name: str, seconds: float) -> list[Row]:
    """Forward, and both gradients, of one shape."""
    import numpy as np

    import invocupy

    shape, groups, size = _SHAPES[name]
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return invocupy.to_device(rng.standard_normal(shape, np.float32), device)

    x, grad = draw(*shape), draw(*shape)
    kernel = draw(shape[0], groups, size, size, *shape[2:])
    forward: dict[str, Call] = {"invocupy": lambda: invocupy.involution(x, kernel)}
    backward: dict[str, Call] = {"invocupy": lambda: invocupy.involution_backward(grad, x, kernel)}
    torch = _torch()
    if torch is not None and device == "cpu":
        forward["PyTorch, unfold"], backward["PyTorch, unfold"] = _unfold(torch, x, kernel, grad)
        want, got = forward["invocupy"](), forward["PyTorch, unfold"]().numpy()
        if not np.allclose(got, want, rtol=1e-4, atol=1e-3):  # never time what is wrong
            raise RuntimeError(f"{name}: the forms differ")
    rows = []
    for what, calls, moved in (
        ("forward", forward, 2 * x.nbytes + kernel.nbytes),
        ("gradients", backward, 3 * x.nbytes + 2 * kernel.nbytes),
    ):
        for who, times in _timed(calls, device, seconds).items():
            rows.append({"what": f"{name}, {what}", "who": who, **times})
            if who == "invocupy":
                rows[-1]["gb_s"] = moved / times["ms"] / 1e6
    return rows


def _network(device: str, seconds: float) -> list[Row]:
    """A training step and an evaluation of the article's network."""
    import numpy as np

    from invocupy import Tensor, no_grad, optim, to_device
    from invocupy import functional as F  # noqa: N812
    from invocupy.models import SimpleModel

    model = SimpleModel(num_layers=_LAYERS, rng=0).to(device)
    sgd = optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    rng = np.random.default_rng(0)
    x = to_device(rng.standard_normal((_BATCH, 3, 32, 32), np.float32), device)
    labels = to_device(rng.integers(0, 10, _BATCH), device)

    def step() -> None:
        sgd.zero_grad()
        F.cross_entropy(model.train().logits(Tensor(x)), labels).backward()
        sgd.step()

    def evaluate() -> None:
        with no_grad():
            model.eval().logits(x)

    rows = []
    for what, call in (("training step", step), ("evaluation", evaluate)):
        times = _timed({what: call}, device, seconds)[what]
        name = f"SimpleModel, {_LAYERS} blocks, {_BATCH} images, {what}"
        rate = _BATCH / times["ms"] * 1e3
        rows.append({"what": name, "who": "invocupy", **times, "images_per_second": rate})
    return rows


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
    tg = torch.from_numpy(grad)

    def form() -> Any:
        patches = torch.nn.functional.unfold(tx, size, padding=size // 2)
        patches = patches.view(n, g, c // g, size * size, h, w)
        return (tk.view(n, g, 1, size * size, h, w) * patches).sum(dim=3).view(n, c, h, w)

    def forward() -> Any:
        with torch.no_grad():
            return form()

    graph = form()
    return forward, lambda: torch.autograd.grad(graph, (tx, tk), tg, retain_graph=True)
