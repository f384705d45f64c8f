"""Time and memory on the CPU against PyTorch, interleaved in one process.

    python benchmarks/cpu.py --make-env .bench     # a virtual environment with PyTorch, once
    .bench/bin/python benchmarks/cpu.py --out benchmarks/results/cpu.json
    python benchmarks/cpu.py --table benchmarks/results/cpu.json

Every variant of one row runs in turn, round after round, so that a change of the machine's speed
hits all of them; a row quotes medians with the 20 and 80 % quantiles, and ratios of medians. Values
are checked against each other before they are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
CHANNELS_PER_GROUP = 16
OPERATOR = {  # name: (N, C, H, W), K
    "article": ((32, 64, 32, 32), 3),
    "article, batch 1": ((1, 64, 32, 32), 3),
    "RedNet stage 1": ((8, 64, 56, 56), 7),
    "RedNet stage 2": ((8, 128, 28, 28), 7),
    "RedNet stage 3": ((8, 256, 14, 14), 7),
    "RedNet stage 4": ((8, 512, 7, 7), 7),
    "one large image": ((1, 64, 224, 224), 7),
}
Call = Callable[[], Any]


def sample(call: Call, seconds: float) -> tuple[float, int]:
    """How often to repeat ``call`` for one sample of about ``seconds``; the first call warms up."""
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    return once, max(1, round(seconds / max(once, 1e-7)))


def interleave(calls: dict[str, Call], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Run all in turn; milliseconds a call as median, 20 % and 80 % quantile."""
    repeats = {name: sample(call, seconds)[1] for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            spin = time.perf_counter() + 0.005  # a core that slept is slow at first
            while time.perf_counter() < spin:
                pass
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name] * 1e3)
    return {
        name: dict(zip(("low", "median", "high"), np.quantile(t, (0.2, 0.5, 0.8)), strict=True))
        for name, t in times.items()
    }


def agree(name: str, got: Any, expected: Any) -> None:
    """Refuse to time what is wrong."""
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    if not error < 1e-5:
        raise SystemExit(f"{name}: relative difference {error:.1e} from PyTorch")


def operator_calls(
    shape: tuple[int, ...], k: int, compiled: bool
) -> tuple[dict[str, Call], dict[str, Call]]:
    """Forward and both gradients of one shape, ours and the peers'."""
    import peers
    import torch

    import invocupy

    n, c, h, w = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    kernel = rng.standard_normal((n, c // CHANNELS_PER_GROUP, k, k, h, w), np.float32)
    grad = rng.standard_normal(shape, np.float32)
    tx, tk = (torch.tensor(a, requires_grad=True) for a in (x, kernel))
    tg = torch.tensor(grad)
    depthwise = torch.randn(c, 1, k, k)
    full = torch.randn(c, c, 3, 3)
    forms = {"unfold": peers.unfold_form, "shift": peers.shift_form}
    if compiled:
        forms["shift, compiled"] = torch.compile(peers.shift_form)

    forward: dict[str, Call] = {"invocupy": lambda: invocupy.involution(x, kernel)}
    backward: dict[str, Call] = {"invocupy": lambda: invocupy.involution_backward(grad, x, kernel)}
    for name, form in forms.items():

        def value(form: Any = form) -> Any:
            with torch.no_grad():
                return form(tx, tk, k // 2)

        graph = form(tx, tk, k // 2)

        def gradients(graph: Any = graph) -> Any:
            return torch.autograd.grad(graph, (tx, tk), tg, retain_graph=True)

        agree(name, forward["invocupy"](), value().numpy())
        for ours, theirs in zip(backward["invocupy"](), gradients(), strict=True):
            agree(f"{name}, gradient", ours, theirs.numpy())
        forward[name], backward[name] = value, gradients

    def conv(weight: Any, groups: int, padding: int) -> Call:
        def call() -> Any:
            with torch.no_grad():
                return torch.nn.functional.conv2d(tx, weight, padding=padding, groups=groups)

        return call

    forward["depthwise convolution"] = conv(depthwise, c, k // 2)
    forward["3x3 convolution"] = conv(full, 1, 1)
    out = np.empty_like(x)
    forward["copy of the arrays"] = lambda: (np.copyto(out, x), kernel.copy())
    return forward, backward


def network_calls(layers: int, batch: int, training: bool) -> dict[str, Call]:
    """One training step, or one evaluation, of the article's model."""
    import peers
    import torch

    from invocupy import Tensor, no_grad, optim, weights
    from invocupy import functional as F  # noqa: N812
    from invocupy.models import SimpleModel

    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 3, 32, 32), np.float32)
    labels = rng.integers(0, 10, batch)
    theirs, ours = peers.SimpleModel(layers), SimpleModel(num_layers=layers)
    weights.import_state(ours, theirs.state_dict())
    tx, t_labels = torch.tensor(x), torch.tensor(labels)
    if training:
        t_sgd = torch.optim.SGD(theirs.parameters(), lr=1e-4, momentum=0.9)
        sgd = optim.SGD(ours.parameters(), lr=1e-4, momentum=0.9)

        def step() -> None:
            sgd.zero_grad()
            F.cross_entropy(ours.logits(Tensor(x)), labels).backward()
            sgd.step()

        return {
            "invocupy": step,
            "PyTorch": lambda: peers.training_step(theirs, t_sgd, tx, t_labels),
        }
    theirs.eval()
    ours.eval()

    def infer() -> Any:
        with no_grad():
            return ours.logits(x)

    def t_infer() -> Any:
        with torch.no_grad():
            return theirs(tx)

    agree("model", infer(), t_infer().numpy())
    return {"invocupy": infer, "PyTorch": t_infer}


def peak_memory(which: str, layers: int, batch: int) -> float:
    """MB above the start that one training step reaches, in a process of its own."""
    code = (
        "import sys, resource; sys.path[:0] = sys.argv[1:3]; import cpu\n"
        "import torch, invocupy.models\n"
        "calls = cpu.network_calls(int(sys.argv[4]), int(sys.argv[5]), True)\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "calls[sys.argv[3]]()\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024)\n"
    )
    arguments = [str(ROOT), str(ROOT / "benchmarks"), which, str(layers), str(batch)]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    return float(result.stdout)


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    import llvmlite
    import numba
    import torch

    import invocupy

    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "invocupy": invocupy.__version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "torch": torch.__version__,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows asked for."""
    import torch

    from invocupy.backends import threads

    torch.set_num_threads(arguments.threads)
    threads.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []

    def row(what: str, calls: dict[str, Call], rounds: int, **facts: Any) -> None:
        rows.append({"what": what, **facts, "ms": interleave(calls, rounds, arguments.seconds)})
        print(*(format_row(rows[-1])), sep="\n", file=sys.stderr)

    if "operator" in arguments.only:
        for name, (shape, k) in OPERATOR.items():
            forward, backward = operator_calls(shape, k, arguments.compile)
            facts = {"name": name, "shape": shape, "K": k}
            row("forward", forward, arguments.rounds, **facts)
            row("both gradients", backward, arguments.rounds, **facts)
    if "network" in arguments.only:
        for layers, batch, training in ((10, 128, True), (50, 64, True), (50, 64, False)):
            what = "training step" if training else "inference"
            calls = network_calls(layers, batch, training)
            row(what, calls, arguments.network_rounds, layers=layers, batch=batch)
    if "memory" in arguments.only:
        facts = {"layers": 50, "batch": 64}
        rows.append(
            {"what": "peak memory of a training step", **facts}
            | {"MB": {name: peak_memory(name, 50, 64) for name in ("invocupy", "PyTorch")}}
        )
    return {"machine": machine(arguments.threads), "rows": rows}


def format_row(row: dict[str, Any]) -> list[str]:
    """Markdown lines of one row: a variant each, with its ratio to ours."""
    figures = row.get("ms") or {k: {"median": v} for k, v in row["MB"].items()}
    ours = figures["invocupy"]["median"]
    facts = ", ".join(
        f"{k} {tuple(v) if isinstance(v, list) else v}"
        for k, v in row.items()
        if k not in ("what", "ms", "MB", "name")
    )
    lines = []
    for name, figure in figures.items():
        spread = f"{figure['low']:.3g} to {figure['high']:.3g}" if "low" in figure else ""
        lines.append(
            f"| {row['what']} | {facts} | {name} | {figure['median']:.3g} | {spread} "
            f"| {figure['median'] / ours:.1f} |"
        )
    return lines


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    facts = ", ".join(f"{k} {v}" for k, v in results["machine"].items())
    lines = [
        f"Measured with `benchmarks/cpu.py`: {facts}.",
        "",
        "| what | size | variant | median (ms or MB) | 20 to 80 % | ratio to invocupy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join(lines + [line for row in results["rows"] for line in format_row(row)])


def make_env(folder: Path) -> None:
    """A virtual environment with this package and PyTorch."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", TORCH, "-e", str(ROOT)], check=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--make-env", type=Path, metavar="DIR")
    parser.add_argument("--table", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--network-rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.02, help="length of one sample")
    parser.add_argument("--compile", action="store_true", help="torch.compile too (minutes)")
    parts = ("operator", "network", "memory")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    arguments = parser.parse_args()
    if arguments.make_env:
        make_env(arguments.make_env)
    elif arguments.table:
        print(table(json.loads(arguments.table.read_text())))
    else:
        results = measure(arguments)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(table(results))


if __name__ == "__main__":
    main()
