"""Training the article's model on a GPU against PyTorch: one command, one results file.

    python benchmarks/gpu_network.py --out benchmarks/results/gpu-network-h100.json
    python benchmarks/gpu_network.py --table benchmarks/results/gpu-network-h100.json

A sample is the time of several whole steps (forward, backward, SGD with momentum) on one batch in
device memory, from one synchronisation to the next. The contenders take turns in each round; the
figures are the median and the quartiles over the rounds. The logits of both are compared first.
PyTorch computes in float32 as invocupy does (TF32 off, also in convolutions): eager, compiled, and
compiled with CUDA graphs. ``train.fit`` is timed separately, over an epoch of 20 steps. The file is
written before anything is compiled and after each compilation, with new times of all contenders.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


MODES = {  # modes of torch.compile, and the names of the contenders
    "PyTorch, compiled": None,
    "PyTorch, compiled with CUDA graphs": "reduce-overhead",
}


def contenders(layers: int, batch: int) -> tuple[dict[str, Callable[[], Any]], Callable[..., Any]]:
    """One training step of each, with the same weights and batch; and what compiles PyTorch's."""
    import cupy
    import peers
    import torch

    from invocupy import Tensor, nn, no_grad, optim, weights
    from invocupy import functional as F  # noqa: N812
    from invocupy.models import SimpleModel

    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 3, 32, 32), np.float32)
    labels = rng.integers(0, 10, batch)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    theirs = peers.SimpleModel(layers)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    theirs = theirs.cuda()
    tx, t_labels = torch.tensor(x, device="cuda"), torch.tensor(labels, device="cuda")
    cx, c_labels = cupy.asarray(x), cupy.asarray(labels)

    steps: dict[str, Callable[[], Any]] = {}
    for name, fused in (("invocupy", "auto"), ("invocupy, layer by layer", False)):
        ours = SimpleModel(num_layers=layers, fused=fused)  # type: ignore[arg-type]
        weights.import_state(ours, state)
        ours.to("cuda")
        # With the statistics of the batch: fresh running statistics would overflow in fifty blocks.
        with no_grad(), torch.no_grad():
            got, wanted = ours.logits(cx), theirs(tx).cpu().numpy()
        error = np.linalg.norm(cupy.asnumpy(got) - wanted) / np.linalg.norm(wanted)
        assert error < 1e-3, f"{name}: relative error of the logits {error:.1e}"
        sgd = optim.SGD(ours.parameters(), lr=1e-4, momentum=0.9)

        def step(ours: nn.Module = ours, sgd: optim.SGD = sgd) -> Any:
            sgd.zero_grad()
            loss = F.cross_entropy(ours.logits(Tensor(cx)), c_labels)  # type: ignore[attr-defined]
            loss.backward()
            sgd.step()
            return loss

        steps[name] = step

    def of_torch(mode: str | None, compiled: bool = True) -> Callable[[], Any]:
        model = torch.compile(theirs, mode=mode) if compiled else theirs
        t_sgd = torch.optim.SGD(theirs.parameters(), lr=1e-4, momentum=0.9)

        def step() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            peers.training_step(model, t_sgd, tx, t_labels)

        return step

    steps["PyTorch, eager"] = of_torch(None, compiled=False)
    return steps, of_torch


def trained(layers: int, batch: int) -> float:
    """Milliseconds per step of ``train.fit`` in its third epoch, with augmentation."""
    from invocupy.data import shapes10
    from invocupy.train import Config, fit

    images, labels = shapes10(20 * batch, 0)
    config = Config(layers=layers, batch_size=batch, epochs=3, device="cuda")
    with tempfile.TemporaryDirectory() as folder:
        data = images, labels, images[:batch], labels[:batch]
        rows = fit(config, Path(folder) / "run", data=data)
    return 1e3 * batch / rows[-1]["images_per_second"]


def timed(
    steps: dict[str, Callable[[], Any]], first: dict[str, float], rounds: int, repeat: int
) -> dict[str, list[float]]:
    """Milliseconds per step of each contender in each round; ``first`` gets those of the first."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():
        if name not in first:
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            first[name] = time.perf_counter() - start
            step()
    for _ in range(rounds):
        for name, step in steps.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeat):
                step()
            torch.cuda.synchronize()  # the whole device, with CuPy's stream
            times[name].append((time.perf_counter() - start) / repeat * 1e3)
    return times


def measure(
    layers: int, batch: int, rounds: int, repeat: int, compiled: bool
) -> Iterator[dict[str, Any]]:
    """The results without compiled contenders, then again after each compilation."""
    import cupy
    import torch

    steps, of_torch = contenders(layers, batch)
    first: dict[str, float] = {}
    driver = cupy.cuda.runtime.driverGetVersion()
    environment = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "driver_cuda": f"{driver // 1000}.{driver % 1000 // 10}",
        "cupy": cupy.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    whole = trained(layers, batch)
    for name, mode in ((None, None), *(MODES.items() if compiled else ())):
        if name is not None:
            steps[name] = of_torch(mode)
        times = timed(steps, first, rounds, repeat) | {"invocupy, train.fit": [whole]}
        yield {"environment": environment, "rows": rows_of(times, first, layers, batch)}


def rows_of(
    times: dict[str, list[float]], first: dict[str, float], layers: int, batch: int
) -> list[dict[str, Any]]:
    """Median and quartiles over the rounds."""
    rows = []
    for name, ms in times.items():
        low, median, high = (float(q) for q in np.quantile(ms, (0.25, 0.5, 0.75)))
        rows.append(
            {"contender": name, "layers": layers, "batch": batch, "first_step_s": first.get(name)}
            | {"ms": median, "ms_low": low, "ms_high": high}
            | {"images_per_second": batch / median * 1e3}
        )
    return rows


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    facts = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    lines = [
        f"Measured with `benchmarks/gpu_network.py`: {facts}.",
        "",
        "| layers | batch | contender | images/s | ms a step | quartiles | first step (s) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results["rows"]:
        first = f"{r['first_step_s']:.1f}" if r["first_step_s"] else ""
        lines.append(
            f"| {r['layers']} | {r['batch']} | {r['contender']} | {r['images_per_second']:,.0f} "
            f"| {r['ms']:.1f} | {r['ms_low']:.1f} to {r['ms_high']:.1f} | {first} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="results file to write")
    parser.add_argument("--table", type=Path, help="print an existing results file as Markdown")
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=5, help="steps timed together")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    sizes = arguments.layers, arguments.batch, arguments.rounds, arguments.repeat
    for results in measure(*sizes, not arguments.no_compile):
        if arguments.out:  # now: the next contender may be stopped
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
