"""What NVIDIA's compiler makes of the CUDA source: it compiles everywhere, and gets no worse.

The PTX of every shipped kernel is run too, and its result checked. See ``cuda_proof/table.py``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from cuda_proof import nvrtc, table

import invocupy

AGAIN = "if this is meant: python tests/cuda_proof/table.py"


def test_every_cuda_file_is_covered() -> None:
    """A new kernel must be called in ``cases.py``, or none of this proves anything of it."""
    package = Path(invocupy.__file__).parent
    sources = "".join(source for _, source, _ in table.specialisations().values())
    used = set(re.findall(r'^#line 1 "invocupy/(.*)"', sources, re.M))
    assert used == {str(f.relative_to(package)) for f in package.rglob("*.cu*")}


def test_every_kernel_is_compiled_for_every_type() -> None:
    """And none twice under different names of the same call."""
    rows = table.specialisations()
    for name in {name for name, _, _ in rows.values()}:
        types = {key.rsplit(" ", 1)[1] for key, (of, _, _) in rows.items() if of == name}
        wanted = set(table.cases.DTYPES)
        if name in table.cases.CHANNELS:  # in the type of the arithmetic
            wanted = {"float32", "float64"}
        assert types == wanted, name


@pytest.mark.timeout(600)
def test_resources() -> None:
    """Registers, spills, shared memory and 16-byte loads, against the committed table.

    A kernel whose source is not the one that the table was made of is compiled for all
    architectures. Of the others, from which the pinned compiler makes the same code again, one in
    four is compiled for sm_80 and sm_90, or all with ALL_TESTS=1: the table is what it says.
    """
    committed, kernels = table.load(), table.specialisations()
    assert sorted(committed) == sorted(kernels), AGAIN
    same = {
        key: committed[key]["source"] == table.digest(source)
        for key, (_, source, _) in kernels.items()
    }
    sample = 1 if os.environ.get("ALL_TESTS") else 4
    sampled = [
        key for key in kernels if same[key] and int(committed[key]["source"], 16) % sample == 0
    ]
    assert len(sampled) > len(kernels) // 8 or not all(same.values())
    found = []
    for archs, keys in (
        (table.TUNED, sampled),
        (nvrtc.ARCHITECTURES, [key for key in kernels if not same[key]]),
    ):
        rows = table.measure([kernels[key] for key in keys], archs)
        for key, row in zip(keys, rows, strict=True):
            found += table.worse(key, committed[key], row)
    assert found == [], AGAIN


def test_the_table_itself() -> None:
    """The committed rows keep the absolute limits, on every architecture."""
    for key, row in table.load().items():
        assert {f"sm_{arch}" for arch in nvrtc.ARCHITECTURES} <= set(row)
        assert table.worse(key, row, row) == []


@pytest.mark.parametrize(("key", "problem"), [
    pytest.param(key, problem, id=problem.name) for key, problem in table.problems()
])  # fmt: skip
def test_ptx(key: str, problem: table.cases.Problem) -> None:
    """The result again, with fused multiply-adds and the device's conversions; and the counts."""
    committed = table.load()
    for kernel, figures in table.counted(problem, key).items():
        assert table.worse(kernel, committed[kernel], figures) == [], AGAIN


@pytest.mark.parametrize("arch", [75, 80])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_ptx_for_older_architectures(dtype: str, arch: int) -> None:
    """They convert half types by other instructions."""
    table.counted(table.cases.involution("forward", "k3", dtype), "", arch)


def test_design_goals() -> None:
    """No spills where we tune; K=7: 2.2 warp instructions for each multiply-add.

    In three dimensions not many more than in two. The kernel's gradient shows the small volume, in
    which many threads have nothing to add.
    """
    rows = table.load()
    for key, row in rows.items():
        assert [row[f"sm_{arch}"][1] for arch in table.TUNED] == [0, 0], key
    for key, row in rows.items():
        if key.endswith("k7 float32") and not key.startswith("sum_slices"):
            assert row["instructions_per_fma"] <= 2.2, key
            assert row["sectors_per_ideal"] <= 1.1, key
        if key.endswith("3d-k3 float32") and not key.startswith("sum_slices"):
            flat = rows[key.replace("3d-", "")]["instructions_per_fma"]
            assert row["instructions_per_fma"] <= 1.15 * flat, key
