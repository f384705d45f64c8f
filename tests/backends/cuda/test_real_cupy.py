"""The stand-in is held to the real CuPy: what it takes and what it refuses, as in ``cupy.json``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from cuda_proof import host, real_cupy

STAND_IN = str(host.HERE.parent / "stand_in")
OWN = {  # what the stand-in has for tests, and modules of CuPy that are objects there
    "cuda.Block", "cuda.GraphError", "cuda.MemoryPool.take", "cuda.Operation",
    "cuda.Stream.clock", "cuda.Stream.follows", "cuda.StreamError", "cuda.calls",
    "cuda.check_options", "cuda.done", "cuda.hold", "cuda.of_device",
    "cuda.on_host", "cuda.operation", "cuda.pool", "cuda.read", "cuda.recording", "cuda.room",
    "cuda.runtime", "cuda.wait", "cuda.waits", "cuda.wrote",
}  # fmt: skip
COMMITTED = json.loads(real_cupy.FILE.read_text())


def described(path: str) -> Any:
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, real_cupy.__file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def test_the_stand_in_takes_nothing_that_cupy_does_not() -> None:
    own, real = described(STAND_IN), COMMITTED["names"]
    assert own.keys() - real.keys() == OWN
    wrong = {
        name: found
        for name in set(own) - OWN
        if (found := real_cupy.differs(own[name], real[name]))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("own", "real", "found"),
    [
        ("(a, b)", "(a, b, c=1)", ""),
        ("(a, b=2, /)", "(*args, **more)", ""),
        ("(a, c)", "(a, b)", "takes c="),
        ("(b, a)", "(a, b)", "has b where"),
        ("(a, b=1)", "(a, b=2)", "has b=1"),
        ("(a, b)", "(a, *, b)", "takes b without its name"),
        ("(a, *b)", "(a, b)", "any number"),
        ("ufunc", "(a)", "is of kind"),
    ],
)
def test_what_differs_is_found(own: str, real: str, found: str) -> None:
    said = real_cupy.differs(own, real)
    assert (found in said) if found else said == ""


def test_kernels_refuse_what_cupy_refuses() -> None:
    code = (
        "import json, cupy, cuda_proof.real_cupy as real\n"
        'code = "struct S { int a[20]; }; extern \\"C\\" __global__ void one(S x) {}"\n'
        "kernel = cupy.RawModule(code=code).get_function('one')\n"
        "print(json.dumps(real.refused(lambda value: kernel((1,), (1,), (value,)))))"
    )
    path = os.pathsep.join([STAND_IN, str(host.HERE.parent), str(host.HERE.parents[1])])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert not done.returncode, done.stderr
    assert set(json.loads(done.stdout)) >= set(COMMITTED["refused"])


def test_the_file_is_of_the_installed_cupy() -> None:
    """Where there is one; it needs no GPU to be imported."""
    spec = importlib.util.find_spec("cupy")
    if spec is None or str(spec.origin).startswith(STAND_IN):
        pytest.skip("needs CuPy: pip install cupy-cuda13x==14.0.1")
    found = described("")
    if found["cupy"] != COMMITTED["cupy"]:
        pytest.skip(f"cupy.json is of CuPy {COMMITTED['cupy']}, not {found['cupy']}")
    assert found == COMMITTED
