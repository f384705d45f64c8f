"""Fill the marked blocks of README.md with the figures of ``benchmarks/results``.

``python docs/write_readme.py``; a test fails when README says something else. A block is a line
``<!-- results: NAME -->`` and all below it up to an empty line.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import evidence_page

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n)(?:.+\n)*")
NETWORKS = {  # the record of each, and its name
    "simple-50": "the article's network, 50 blocks",
    "simple-50-repaired": "the article's, with blocks that can also subtract",
    "involution-small": "`SmallNet`, involution",
    "depthwise-small": "`SmallNet`, depthwise convolution",
    "involution-60min": "`SmallNet`, involution, width 96, 20 epochs",
}


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def row(what: str, **facts: int) -> Any:
    """The row of ``cpu.json`` with these facts."""
    rows = [r for r in read("cpu")["rows"] if r["what"] == what]
    (found,) = (r for r in rows if facts.items() <= r.items())
    return found


def runs() -> dict[str, list[Any]]:
    """The recorded runs of each network, a seed each."""
    found = evidence_page.seeds(evidence_page.read(RESULTS / "evidence"))
    return {name: found[name] for name in NETWORKS if name in found}


def accuracy(of: list[Any]) -> str:
    return f"{100 * evidence_page.spread(of)[0]:.1f} %"


def minutes(of: list[Any]) -> str:
    return f"{sum(run['cpu_seconds'] for run in of) / len(of) / 60:.0f}"


def reasons() -> Iterator[str]:
    step = row("training step", layers=50)["ms"]
    memory = row("peak memory of a training step", layers=50)["MB"]
    times = step["PyTorch"]["median"] / step["invocupy"]["median"]
    first = row("first calls")["s"]
    yield (
        f"- **Fast.** On two CPU cores a training step of 50 blocks is {times:.0f}x as fast as in "
        f"eager PyTorch and takes {memory['invocupy']:.0f} MB instead of "
        f"{memory['PyTorch'] / 1000:.1f} GB ([benchmarks](docs/benchmarks.md))."
    )
    kernels = json.loads((ROOT / "tests" / "cuda_proof" / "table.json").read_text())["kernels"]
    builds = {arch for kernel in kernels.values() for arch in kernel if arch.startswith("sm_")}
    yield (
        f"- **Checked.** Every kernel is compared with a plain reference. The CUDA kernels are "
        f"compiled for {len(builds)} GPU architectures and run without a GPU on every change "
        "([how](docs/cuda.md))."
    )
    yield (
        f"- **Small.** No PyTorch, JAX or TensorFlow: `import invocupy` loads NumPy only and takes "
        f"{first['import']:.2f} s. Adapters serve [PyTorch](docs/pytorch.md), "
        "[JAX](docs/jax.md) and [dask](docs/dask.md)."
    )

    yield from limits()


def limits() -> Iterator[str]:
    depthwise, involution = (runs()[f"{kind}-small"] for kind in ("depthwise", "involution"))
    seeds = f" (means of {len(involution)} seeds)" if len(involution) > 1 else ""
    yield (
        "- **Not if a depthwise convolution will do.** With as many parameters and epochs on "
        f"CIFAR-10 it reached {accuracy(depthwise)} in {minutes(depthwise)} minutes of CPU time, "
        f"involution {accuracy(involution)} in {minutes(involution)} minutes{seeds}."
    )
    rates = {r["contender"]: r["images_per_second"] for r in read("gpu-network-h100")["rows"]}
    share = rates["invocupy"] / rates["PyTorch, compiled"]
    yield (
        "- **Not for large networks on a GPU.** On an H100, with earlier kernels, training ran "
        f"at {share:.2f}x the speed of `torch.compile`, though the operators alone were faster "
        "([GPU](docs/benchmarks.md#on-a-gpu))."
    )


def networks() -> Iterator[str]:
    yield "| network on CIFAR-10 | parameters | epochs | CPU minutes | seeds | test accuracy |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name, of in runs().items():
        yield (
            f"| {NETWORKS[name]} | {of[0]['parameters']:,} | {evidence_page.epochs(of[0])} "
            f"| {minutes(of)} | {len(of)} | {accuracy(of)} |"
        )


def install() -> Iterator[str]:
    size = read("install")["megabytes"]
    more = (size["cuda13x"] - size["none"]) / 1000
    yield "| you have | install | adds |"
    yield "| --- | --- | --- |"
    pictures = size["plots"] - size["none"]
    yield (
        "| a CPU | `pip install .`; for pictures also `'.[plots]'` "
        f"| NumPy, Numba, ...: {size['none']} MB; matplotlib, Pillow: {pictures} MB |"
    )
    both = "`pip install '.[cuda13x]'` or `'.[cuda12x]'`"
    yield f"| an NVIDIA GPU with CUDA 13 or 12 | {both} | CuPy and CUDA: about {more:.0f} GB |"


BLOCKS = {"reasons": reasons, "networks": networks, "install": install}


def filled(text: str) -> str:
    """README's text with its blocks as the results say."""
    return BLOCK.sub(
        lambda found: found[1] + "".join(f"{line}\n" for line in BLOCKS[found[2]]()),
        text,
    )


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
