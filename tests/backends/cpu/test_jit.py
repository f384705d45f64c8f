"""Compiled kernels that are kept: by whom, where, and for which processor."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from numba import config
from numba.core.registry import cpu_target
from processes import INVOLUTION, script, start

from invocupy.backends.cpu import jit

REPORT = """
    good = right_again()
    (job,) = [cpu._gather_job(g, 4, False, 0)]
    print(good, sum(job.body.stats.cache_hits.values()))
"""


def test_kernels_are_kept_and_damaged_files_replaced(tmp_path):
    where = {"INVOCUPY_CACHE_DIR": str(tmp_path / "kernels")}
    assert script(INVOLUTION, REPORT, **where) == "True 0"
    files = sorted((tmp_path / "kernels").iterdir())
    assert files
    assert script(INVOLUTION, REPORT, **where) == "True 1"
    whole = {file: file.read_bytes() for file in files}
    for damage in (lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-9] + b"\0" + b[-8:]):
        for file, content in whole.items():
            file.write_bytes(damage(content))
        assert script(INVOLUTION, REPORT, **where) == "True 0"
        assert script(INVOLUTION, REPORT, **where) == "True 1"
    assert sorted((tmp_path / "kernels").iterdir()) == files


def test_kernels_are_not_kept_where_others_could_write(tmp_path):
    tmp_path.chmod(0o777)
    assert script(INVOLUTION, REPORT, INVOCUPY_CACHE_DIR=str(tmp_path)) == "True 0"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "where",
    [
        {"INVOCUPY_CACHE_DIR": ""},
        {"INVOCUPY_CACHE_DIR": "/proc/nowhere"},
        {"INVOCUPY_CACHE_DIR": None, "HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"},
    ],
    ids=["switched off", "cannot be made", "no home"],
)
def test_works_without_a_place_for_kernels(where):
    assert script(INVOLUTION, REPORT, **where) == "True 0"


def test_a_kernel_of_a_record_with_other_fields_is_another(tmp_path):
    # an argument's type is known to the kernel's file by the names and order of its fields, too
    code = """
        import sys
        from collections import namedtuple
        from invocupy.backends.cpu.jit import jit
        @jit
        def second(pair):
            return pair.second
        print(second(namedtuple("Pair", sys.argv[1])(1, 2)))
    """
    file, where = tmp_path / "program.py", {"INVOCUPY_CACHE_DIR": str(tmp_path / "kernels")}
    file.write_text(textwrap.dedent(code))
    for fields, expected in (("first second", "2"), ("second first", "1")):
        found = subprocess.run(
            [sys.executable, file, fields], env=os.environ | where, capture_output=True, text=True
        )
        assert found.stdout.strip() == expected, found.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86-64")
@pytest.mark.parametrize(("processor", "features"), [("x86-64", {}), ("haswell", {"avx2": True})])
def test_works_on_lesser_processors(processor, features):
    """Vectors of 16 and 32 bytes, sixteen registers."""
    before = f"""
    from llvmlite import binding
    binding.get_host_cpu_features = lambda: {features}
    """
    body = """
    from invocupy.backends.cpu import plan as cpu_plan
    grad_x, grad_kernel = np.empty_like(x), np.empty_like(kernel)
    cpu.grad_x(right, kernel, g, grad_x)
    cpu.grad_kernel(right, x, g, grad_kernel)
    norm = np.vdot(right, right)
    adjoint = [np.vdot(x, grad_x), np.vdot(kernel, grad_kernel)]
    print(cpu_plan.VECTOR_BYTES, right_again(), np.allclose(adjoint, norm, rtol=1e-5))
    """
    where = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "+avx2,+fma" if features else ""}
    expected = "32" if features else "16"
    assert script(before, INVOLUTION, body, **where) == f"{expected} True True"


def test_two_processes_that_compile_at_once(tmp_path):
    where = {"INVOCUPY_CACHE_DIR": str(tmp_path / "kernels")}
    both = [start(INVOLUTION, REPORT, **where) for _ in range(2)]
    assert all(process.communicate(timeout=120)[0].startswith("True") for process in both)
    assert script(INVOLUTION, REPORT, **where) == "True 1"
    assert all(not Path(name).name.startswith("tmp") for name in (tmp_path / "kernels").iterdir())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory of kernels of its own."""
    monkeypatch.setenv("INVOCUPY_CACHE_DIR", str(tmp_path / "kernels"))
    jit._place.cache_clear()
    yield tmp_path / "kernels"
    monkeypatch.undo()
    jit._place.cache_clear()


def adding(number):
    def add(x):
        return x + number

    return jit.jit(add)


# ----------------------------------------------------------------------------- what a kernel reads


def file_of(kernel):
    codegen = cpu_target.target_context.codegen()
    return kernel._cache._path("(int64,)", codegen).name


@pytest.mark.parametrize(
    ("name", "value", "matters"),
    [("OPT", 0, True), ("LOOP_VECTORIZE", 0, True), ("BOUNDSCHECK", 1, True),
     ("DEBUGINFO_DEFAULT", 1, True), ("CPU_NAME", "generic", True), ("A_NEW_ONE", 1, True),
     ("DUMP_LLVM", 1, False), ("NUMBA_NUM_THREADS", 77, False), ("CACHE_DIR", "x", False)],
)  # fmt: skip
def test_numba_s_settings_are_in_the_key(name, value, matters, place, monkeypatch):
    kernel = adding(3)
    before = file_of(kernel)
    monkeypatch.setattr(config, name, value, raising=False)
    assert (file_of(kernel) != before) == matters


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe", "dangling link", "device"])
def test_what_is_no_file_in_place_of_a_kernel(kind, place, tmp_path):
    assert adding(7)(1) == 8
    (path,) = place.iterdir()
    path.unlink()
    os.mkfifo(tmp_path / "pipe")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        targets = {"link to a pipe": tmp_path / "pipe", "device": "/dev/zero"}
        path.symlink_to(targets.get(kind, "nowhere"))
    again = adding(7)
    assert again(1) == 8
    assert not again.stats.cache_hits
    assert list(place.iterdir()) == [path]
    third = adding(7)
    assert third(1) == 8
    assert sum(third.stats.cache_hits.values()) == (kind != "folder")


def test_a_full_disk_leaves_nothing_behind(place, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert adding(8)(1) == 9
    assert list(place.iterdir()) == []


def test_kernels_kept_by_different_processes_are_told_apart(tmp_path: Path) -> None:
    """Their object files may define equal symbols: the second loaded must not run the first."""
    code = (
        "import sys, numpy as np\n"
        "from invocupy.backends.cpu import pointwise as cpu\n"
        "for dtype in sys.argv[1:]:\n"
        "    grad, x = np.full((1, 1, 1), 2, dtype), np.full((1, 1, 1), 3, dtype)\n"
        "    out, bias = np.zeros((1, 1), dtype), np.zeros(1, dtype)\n"
        "    cpu.grad_weight(grad, x, out, bias)\n"
        "    assert (out[0, 0], bias[0]) == (6, 2), (dtype, out, bias)\n"
    )
    tmp_path.chmod(0o700)
    for dtypes in (["float32"], ["float64"], ["float32", "float64"]):
        subprocess.run(
            [sys.executable, "-c", code, *dtypes],
            check=True,
            env={**os.environ, "INVOCUPY_CACHE_DIR": str(tmp_path)},
        )
