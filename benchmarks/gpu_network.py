"""Training the article's model on a GPU against PyTorch: one command, one results file.

    python benchmarks/gpu_network.py --out benchmarks/results/gpu-network-h100.json
    python benchmarks/gpu_network.py --table benchmarks/results/gpu-network-h100.json

A figure is the time of several whole steps (forward, backward, SGD with momentum) on one batch that
lies on the device, from one synchronisation to the next. The contenders take turns round after
round; quoted are the median and the quartiles over the rounds. Logits of both are compared first.
PyTorch computes in float32 like we do (TF32 off, also in its convolutions), eager and compiled.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


def contenders(layers: int, batch: int, compiled: bool) -> dict[str, Callable[[], Any]]:
    """One training step of each, on the same weights and the same batch."""
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
    for name, fused in (
        ("invocupy", "auto"),
        ("invocupy, fused", True),
        ("invocupy, unfused", False),
    ):
        ours = SimpleModel(num_layers=layers, fused=fused)  # type: ignore[arg-type]
        weights.import_state(ours, state)
        ours.to("cuda")
        # With the batch's statistics: with fresh running ones, fifty blocks overflow.
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

    t_sgd = torch.optim.SGD(theirs.parameters(), lr=1e-4, momentum=0.9)
    steps["PyTorch, eager"] = lambda: peers.training_step(theirs, t_sgd, tx, t_labels)
    if compiled:
        fast = torch.compile(theirs)
        steps["PyTorch, compiled"] = lambda: peers.training_step(fast, t_sgd, tx, t_labels)
    return steps


def measure(layers: int, batch: int, rounds: int, repeat: int, compiled: bool) -> dict[str, Any]:
    """Milliseconds a step and images per second of each contender."""
    import cupy
    import torch

    steps = contenders(layers, batch, compiled)
    times: dict[str, list[float]] = {name: [] for name in steps}
    first: dict[str, float] = {}
    for name, step in steps.items():
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
            torch.cuda.synchronize()  # the whole device: CuPy's stream as well
            times[name].append((time.perf_counter() - start) / repeat * 1e3)
    rows = []
    for name, ms in times.items():
        low, median, high = (float(q) for q in np.quantile(ms, (0.25, 0.5, 0.75)))
        rows.append(
            {"contender": name, "layers": layers, "batch": batch, "first_step_s": first[name]}
            | {
                "ms": median,
                "ms_low": low,
                "ms_high": high,
                "images_per_second": batch / median * 1e3,
            }
        )
    driver = cupy.cuda.runtime.driverGetVersion()
    return {
        "environment": {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "device": torch.cuda.get_device_name(),
            "driver_cuda": f"{driver // 1000}.{driver % 1000 // 10}",
            "cupy": cupy.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "rows": rows,
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    facts = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    lines = [
        f"Measured with `benchmarks/gpu_network.py`: {facts}.",
        "",
        "| layers | batch | contender | images/s | ms a step | quartiles | first step (s) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['layers']} | {r['batch']} | {r['contender']} | {r['images_per_second']:,.0f} "
        f"| {r['ms']:.1f} | {r['ms_low']:.1f} to {r['ms_high']:.1f} | {r['first_step_s']:.1f} |"
        for r in results["rows"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the results here")
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
    results = measure(*sizes, not arguments.no_compile)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
