"""The committed figures of every shipped kernel, and what counts as worse.

``python tests/cuda_proof/table.py`` measures what changed and writes ``table.json``: the pinned
compiler's registers, spills and shared memory on each architecture, the 16-byte loads of its
machine code, and what the PTX interpreter counts. All of it is deterministic; none of it is a time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from cuda_proof import block_cases, cases, expansion_cases, host, nvrtc, ptx, sgd_cases
from invocupy.backends import cuda

FILE = Path(__file__).with_name("table.json")
LOADS_ARCH = 90
NETWORKS = {  # sizes and element types of the layers of the article's network and of RedNet, ...
    "k3": ((56, 56), tuple(cases.DTYPES)),
    "k7": ((56, 56), tuple(cases.DTYPES)),
    "k7-few-even": ((14, 14), ("float32",)),
    "k7-few-odd": ((7, 7), ("float32",)),
    "k3-stride2": ((56, 56), ("float32",)),
    "k7-stride2": ((56, 56), ("float32", "float16")),
    # ... and of signals and volumes, which are as wide as in the benchmarks
    "1d-k9": ((1024,), ("float32",)),
    "3d-k3": ((3, 16, 40), tuple(cases.DTYPES)),
    "3d-k5": ((3, 8, 64), ("float32",)),
}
TUNED = (80, 90)  # not a byte more may spill on these; elsewhere 64 may come and go


def problems() -> Iterator[tuple[str, cases.Problem]]:
    """A call of every function at the sizes and options that the networks use."""
    for dtype in cases.DTYPES:
        for family, (size, dtypes) in NETWORKS.items():
            if dtype not in dtypes:
                continue
            *_, depth, height, width = (1, 1, *size)
            for function in cases.INVOLUTION:
                problem = cases.involution(
                    function, family, dtype, batch=1, groups=1, depth=depth, height=height,
                    units=width // cases.FAMILIES[family].unit,
                )  # fmt: skip
                yield f"{family} {dtype}", problem
        for function in cases.BATCH_NORM:
            yield f"bn {dtype}", cases.batch_norm(function, dtype, (8, 8, 16, 16))
        for function in cases.CHANNELS if dtype in ("float32", "float64") else ():
            yield f"bn {dtype}", cases.channels(function, dtype, 64)
        yield f"1x1 {dtype}", cases.pointwise("grad_weight", dtype, 16, 36, 16, 256)
        yield f"1x1 wider {dtype}", cases.pointwise("grad_weight", dtype, 16, 16, 36, 256)
        yield f"dense {dtype}", cases.pointwise("forward", dtype, 1, 64, 70, 66, bias=False)
        for nesterov in (False, True):
            name = f"sgd{' nesterov' if nesterov else ''} {dtype}"
            yield name, sgd_cases.sgd(dtype, ((64, 64), (64,)) * 9, nesterov=nesterov)
        for function in block_cases.FUNCTIONS:
            height = 32 if function == "forward" else 8  # two of its tiles
            problem = block_cases.block(function, "article", dtype, height=height, width=32)
            yield f"block {dtype}", problem
        for function in expansion_cases.FUNCTIONS:
            problem = expansion_cases.expansion(function, dtype, hidden=64, pixels=256)
            yield f"expand {dtype}", problem
        if dtype in ("float32", "float64"):
            yield f"block {dtype}", block_cases.running(dtype, 64, 16)
        yield f"sgd {dtype}", sgd_cases.average(dtype, ((64, 64), (64,)) * 9)
        yield f"sgd plain {dtype}", sgd_cases.sgd(dtype, ((64, 64), (64,)) * 9, momentum=0.0)


def specialisations() -> dict[str, tuple[str, str, cases.Problem]]:
    """Every kernel that those calls launch: (its name, its source, the call).

    What may be launched has no end (any kernel size, stride, padding); these are the ones that the
    networks use, and each kernel for each element type.
    """
    found = {}
    for key, problem in problems():

        def record(kernel: str, macros: Any) -> Callable[..., None]:
            name = cuda.name_of(kernel)
            found[f"{name} {key}"] = name, cuda.source(kernel, macros), problem  # noqa: B023
            return lambda *launch: None

        with host.installed(record):
            cases.run(problem)
    return found


def digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def measured(name: str, source: str, archs: Sequence[int]) -> dict[str, Any]:
    """What the compiler and disassembler say of one kernel, and of which source they say it."""
    row: dict[str, Any] = {"source": digest(source)}
    for arch in archs:
        row[f"sm_{arch}"], cubin = nvrtc.resources(name, source, arch)
        if arch == LOADS_ARCH:
            row["wide_loads"] = nvrtc.wide_loads(name, cubin)
    return row


def measure(kernels: Sequence[tuple[str, str, Any]], archs: Sequence[int]) -> list[dict[str, Any]]:
    """:func:`measured` on two cores, each kernel of a source once."""
    each = [(name, source) for name, source, _ in kernels]
    once = list(dict.fromkeys(each))
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        rows = pool.map(measured, *zip(*once, strict=True), [archs] * len(once), chunksize=2)
        found = dict(zip(once, rows, strict=True))
    return [dict(found[kernel]) for kernel in each]


def load() -> dict[str, dict[str, Any]]:
    """The committed rows; an error where they were made by another compiler, or otherwise."""
    table = json.loads(FILE.read_text())
    for what, mine in (("compiler", nvrtc.version()), ("options", list(cuda.OPTIONS))):
        if table[what] != mine:
            raise RuntimeError(f"{FILE.name} was made with {what} {table[what]}, not {mine}")
    return table["kernels"]


def counted(problem: cases.Problem, key: str, arch: int = 90) -> dict[str, dict[str, float]]:
    """Run one call in the PTX interpreter and check its result: the figures of its kernels."""
    kernels: dict[str, ptx.Kernel] = {}

    def compile_(kernel: str, macros: Any) -> ptx.Kernel:
        name = cuda.name_of(kernel)
        kernels[name] = ptx.Kernel(nvrtc.ptx(cuda.source(kernel, macros), arch), name)
        return kernels[name]

    with host.installed(compile_):
        cases.check(problem, cases.run(problem))
    return {
        f"{name} {key}": {
            "instructions_per_fma": round(32 * k.counts["warps"] / max(k.counts["fma"], 1), 3),
            "sectors_per_ideal": round(ptx.SECTOR * k.counts["sectors"] / k.counts["bytes"], 4),
        }
        for name, k in kernels.items()
    }


def worse(key: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What got worse than the committed row by more than compilers differ among each other."""
    found = []
    for arch in (a for a in new if a.startswith("sm_")):
        (registers, spilled, shared), (was, spilled_was, shared_was) = new[arch], old[arch]
        if spilled > max(spilled_was, 0 if int(arch[3:]) in TUNED else 64):
            found.append(f"{key}, {arch}: spills {spilled} bytes, was {spilled_was}")
        if registers > 1.1 * was:
            found.append(f"{key}, {arch}: {registers} registers, was {was}")
        if registers * cuda.BLOCK > 65536:
            found.append(f"{key}, {arch}: {registers} registers x {cuda.BLOCK} threads > 65,536")
        if shared > shared_was:
            found.append(f"{key}, {arch}: {shared} bytes of shared memory, was {shared_was}")
    if "wide_loads" in new and new["wide_loads"] < old["wide_loads"]:
        found.append(f"{key}: {new['wide_loads']} 16-byte loads, was {old['wide_loads']}")
    for figure in ("instructions_per_fma", "sectors_per_ideal"):
        if figure in new and new[figure] > 1.02 * old[figure]:
            found.append(f"{key}: {figure} {new[figure]}, was {old[figure]}")
    return found


def main() -> None:
    kernels = specialisations()
    old = load() if FILE.exists() else {}
    rows = {key: old.get(key, {}) for key in kernels}
    changed = [k for k, (_, text, _) in kernels.items() if rows[k].get("source") != digest(text)]
    measures = measure([kernels[key] for key in changed], nvrtc.ARCHITECTURES)
    rows |= zip(changed, measures, strict=True)
    again = {kernels[key][2].name for key in changed}
    for key, problem in problems():
        for kernel, figures in counted(problem, key).items() if problem.name in again else ():
            rows[kernel] |= figures
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
    made = f'"compiler": "{nvrtc.version()}", "options": {json.dumps(cuda.OPTIONS)}'
    FILE.write_text(f'{{{made}, "kernels": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
