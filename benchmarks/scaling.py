"""Measures training on 1, 2 and 4 ranks of this machine, and predicts 8 to 4,096 on a cluster.

    pip install 'invocupy[mpi]'
    python benchmarks/scaling.py --out benchmarks/results/scaling.json
    python benchmarks/scaling.py --table benchmarks/results/scaling.json --docs docs/cluster.md

The first command starts ``mpiexec`` itself and takes less than six minutes. It measures

- links: the time of a message between 2 and 4 ranks as a function of its size, with a fitted line;
- runs: a training step of the article's model, with a fixed number of images per rank and in all,
  in turns with the same step without messages, which each rank does by itself;
- networks: the time that one rank with all cores computes, and the messages that it would send.

The cost model (``scaling_model.py``) predicts the runs on this machine, and those on clusters.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import scaling_model  # noqa: E402

RANKS = (1, 2, 4)
SIZES = {  # of messages, in bytes
    "allgather": [8 << (2 * i) for i in range(9)],  # to 512 kB
    "allreduce_sum": [4 << (2 * i) for i in range(2, 12)],  # 64 B to 16 MB
}
IMAGES = {"weak": 32, "strong": 64}  # images on each rank, and in all
NETWORKS = {  # images per rank: few and many; pixels; rows of the prediction
    "SimpleModel": ((8, 32), 32), "RedNet-26": ((2, 8), 224), "RedNet-50": ((2, 8), 224),
}  # fmt: skip
PATIENCE = 6.0  # seconds for a row, but never fewer than 3 rounds of it
BEGIN, END = "<!-- scaling: made by benchmarks/scaling.py --docs -->\n", "<!-- end of scaling -->"


class Recorder:
    """A communicator that counts the messages through it."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.messages = {kind: {"count": 0, "bytes": 0, "seconds": 0.0} for kind in SIZES}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.comm, name)

    def allgather(self, array: Any) -> Any:
        return self._count("allgather", array)

    def allreduce_sum(self, buffer: Any) -> None:
        self._count("allreduce_sum", buffer)

    def _count(self, kind: str, array: Any) -> Any:
        start = time.perf_counter()
        result = getattr(self.comm, kind)(array)
        self.messages[kind]["seconds"] += time.perf_counter() - start
        self.messages[kind]["count"] += 1
        self.messages[kind]["bytes"] += array.nbytes
        return result

    def reset(self) -> None:
        """Forget what was counted."""
        self.__init__(self.comm)  # type: ignore[misc]


def network_of(name: str, layers: int = 50) -> Any:
    """A network of the table, with weights that are the same on all ranks."""
    from invocupy import models

    if name == "SimpleModel":
        return models.SimpleModel(num_layers=layers, rng=0)
    return getattr(models, name.replace("-", "").lower())(rng=0)


def training_step(model: Any, images: int, pixels: int, comm: Any) -> Callable[[], None]:
    """Forward, backward, the sum of the gradients, and SGD, on this rank's own images."""
    from invocupy import Tensor, optim
    from invocupy import functional as F  # noqa: N812
    from invocupy.distributed import synchronise
    from invocupy.train.replica import Message

    rng = np.random.default_rng(comm.rank)
    x = Tensor(rng.standard_normal((images, 3, pixels, pixels), np.float32))
    labels = rng.integers(0, 10, images)
    synchronise(model, comm)
    params = list(model.parameters())
    sgd, message = optim.SGD(params, lr=1e-4, momentum=0.9), Message(params, 1, comm)
    logits = getattr(model, "logits", model)

    def step() -> None:
        sgd.zero_grad()
        loss = F.cross_entropy(logits(x), labels) * (1 / comm.size)
        loss.backward()
        message.sum(loss.data)
        sgd.step()

    return step


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, and the 20 and 80 % quantiles."""
    low, median, high = (float(q) for q in np.quantile(seconds, (0.2, 0.5, 0.8)))
    return {"median": median, "low": low, "high": high, "rounds": len(seconds)}


def fit_line(sizes: list[int], seconds: list[float]) -> dict[str, float]:
    """The latency and bandwidth with the smallest sum of squared relative errors."""
    x, y = np.array(sizes, float), np.array(seconds)
    (latency, each), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones_like(y))
    latency = max(float(latency), float(y.min()) / 10)
    off = float(abs((latency + each * x) / y - 1).max())
    return {"latency": latency, "bandwidth": float(1 / each), "off": off}


def measure_links(comm: Any) -> dict[str, Any]:
    """Seconds of a message as a function of its size; all ranks call this."""
    found: dict[str, Any] = {}
    for kind, sizes in SIZES.items():
        seconds = []
        for size in sizes:
            array = np.zeros(size // 4, np.float32)
            call = getattr(comm, kind)

            def block(repeat: int, array: Any = array, call: Any = call) -> float:
                comm.exchange(0)
                start = time.perf_counter()
                for _ in range(repeat):
                    call(array)
                return (time.perf_counter() - start) / repeat

            block(3)
            repeat = comm.exchange(max(1, min(200, int(0.02 / block(3)))))[0]
            seconds.append(float(np.median([block(repeat) for _ in range(9)])))
        fit = fit_line(sizes, seconds)
        if kind == "allreduce_sum":  # as in the model: 2 (n-1)/n m/B + 2 log2(n) L
            fit["latency"] /= 2 * np.log2(comm.size)
            fit["bandwidth"] *= 2 * (comm.size - 1) / comm.size
        else:
            fit["latency"] /= np.log2(comm.size)
            fit["bandwidth"] *= comm.size - 1
        name = "allreduce" if kind == "allreduce_sum" else kind
        found[name] = fit | {"bytes": sizes, "seconds": seconds}
    return found


def measure_run(comm: Any, images: int) -> dict[str, Any]:
    """Steps of all ranks together, and of each alone, in turns."""
    from invocupy.backends.cpu.threads import get_num_threads
    from invocupy.distributed import Single

    recorder = Recorder(comm)
    together = training_step(network_of("SimpleModel", 10), images, 32, recorder)
    alone = training_step(network_of("SimpleModel", 10), images, 32, Single())
    times: dict[str, list[float]] = {name: [] for name in ("together", "alone", *SIZES)}
    begun = time.perf_counter()
    for turn in range(50):
        late = time.perf_counter() - begun > 2 * PATIENCE
        if comm.exchange(late)[0] and turn > 3:
            break
        for name, step in (("alone", alone), ("together", together)):
            recorder.reset()
            comm.exchange(0)
            start = time.perf_counter()
            step()
            # Alone, the slowest rank counts; together, all end with it.
            seconds = max(comm.exchange(time.perf_counter() - start))
            if turn:  # the first one warms up
                times[name].append(seconds)
        for kind in SIZES:
            times[kind].append(recorder.messages[kind]["seconds"])
    if comm.size == 1:
        recorder.reset()
    for kind in SIZES:
        recorder.messages[kind]["seconds"] = float(np.median(times[kind][1:]))
    return {
        "ranks": comm.size, "images": images, "threads": get_num_threads(),
        "together": spread(times["together"]), "alone": spread(times["alone"]),
        "messages": recorder.messages,
    }  # fmt: skip


def measure_network(name: str) -> dict[str, Any]:
    """Seconds of a step in a single process with all cores, and the messages that it would send."""
    from invocupy.distributed import Single

    sizes, pixels = NETWORKS[name]
    seconds = {}
    for images in sizes:
        recorder, times = Recorder(Single()), []
        step = training_step(network_of(name), images, pixels, recorder)
        step()
        begun = time.perf_counter()
        while len(times) < 3 or (time.perf_counter() - begun < PATIENCE and len(times) < 20):
            recorder.reset()
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        seconds[str(images)] = spread(times)
    return entry(name, f"{os.cpu_count()} cores", sizes[-1], seconds, recorder.messages)


def entry(name: str, on: str, images: int, seconds: Any, messages: Any) -> dict[str, Any]:
    """What the model needs to know of a network."""
    norms, gradients = messages["allgather"], messages["allreduce_sum"]
    return {
        "name": name, "on": on, "images": images, "seconds": seconds,
        "gradient_bytes": gradients["bytes"], "norm_messages": norms["count"],
        "norm_bytes": norms["bytes"],
    }  # fmt: skip


def measured_gpus(simple: dict[str, Any]) -> list[dict[str, Any]]:
    """The article's network on the GPU of an earlier measurement."""
    results = json.loads((ROOT / "benchmarks" / "results" / "gpu-network-h100.json").read_text())
    best = min(
        (row for row in results["rows"] if row["contender"].startswith("invocupy")),
        key=lambda row: row["ms"],
    )
    seconds = {
        "median": best["ms"] / 1e3,
        "low": best["ms_low"] / 1e3,
        "high": best["ms_high"] / 1e3,
    }
    about = {"on": "GPU (H100)", "images": best["batch"]}
    return [simple | about | {"seconds": {str(best["batch"]): seconds}}]


def work(task: str, out: Path) -> None:
    """The work of a rank that the first command has started."""
    from invocupy.distributed import start

    comm = start()
    if task == "links":
        result: Any = measure_links(comm)
    elif task == "runs":
        images = dict.fromkeys((IMAGES["weak"], IMAGES["strong"] // comm.size))
        result = [measure_run(comm, number) for number in images]
    else:
        result = measure_network(task)
    if comm.rank == 0:
        out.write_text(json.dumps(result))


def launch(ranks: int, task: str) -> Any:
    """Start ranks of this program, each with its share of the cores; returns rank 0's results."""
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        raise SystemExit("no mpiexec found: pip install mpi4py mpich")
    threads = str(max((os.cpu_count() or 1) // ranks, 1))
    blas = {f"{name}_NUM_THREADS": threads for name in ("OMP", "OPENBLAS", "MKL")}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        own = [sys.executable, __file__, "--work", task, "--out", str(out)]
        subprocess.run([mpiexec, "-n", str(ranks), *own], check=True, env=os.environ | blas)
        return json.loads(out.read_text())


def measure(note: str) -> dict[str, Any]:
    """Everything."""
    from importlib.metadata import version

    from invocupy import machine

    begun = time.time()
    links = {str(n): launch(n, "links") for n in RANKS[1:]}
    runs = [run for n in RANKS for run in launch(n, "runs")]
    runs.sort(key=lambda run: (run["ranks"], run["images"]))
    found = [launch(1, name) for name in NETWORKS]
    mpi = f"mpi4py {version('mpi4py')} with MPICH {version('mpich')}"
    return {
        "date": date.today().isoformat(), "note": note, "seconds": round(time.time() - begun),
        "machine": machine.describe(), "cores": os.cpu_count(), "mpi": mpi,
        "links": links, "runs": runs, "networks": found, "gpu": measured_gpus(found[0]),
    }  # fmt: skip


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--note", default="", help="what else runs on the machine meanwhile")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print results as Markdown")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="with --table: write into a page")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.out)
        return
    if arguments.table is None:
        results = measure(arguments.note)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    else:
        results = json.loads(arguments.table.read_text())
    text = scaling_model.table(results)
    if arguments.docs:
        before, _, rest = arguments.docs.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        arguments.docs.write_text(f"{before}{BEGIN}{text}\n{end}{after}")
    else:
        print(text)


if __name__ == "__main__":
    main()
