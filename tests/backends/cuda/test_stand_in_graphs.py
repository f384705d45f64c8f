"""Graphs of the stand-in for CuPy: what a capture refuses, and what a launch does."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from cuda_proof import host

FOLDER = host.HERE.parent / "stand_in"

CODE = """
import numpy as np, cupy as cp

code = 'extern "C" __global__ void one(double *x) { x[threadIdx.x] += 1; }'
kernel = cp.RawModule(code=code).get_function("one")
stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
x = cp.asarray(np.arange(4.0))
cp.cuda.Stream.null.synchronize()

def attempt(name, work):
    try:
        work()
        print(name, "nothing")
    except Exception as error:
        print(name, type(error).__name__ + ":", error)

attempt("null", cp.cuda.Stream.null.begin_capture)
with stream:
    with cp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        double = x * 2
        total = (double + 1).sum()
        del double
        y = cp.zeros(4)
        y[1:3] = x[:2]
        y += 1
        cp.add(y, 1, out=y)
        kernel((1,), (4,), (x,))
        view = x.reshape(2, 2)[0]
        attempt("get", x.get)
        attempt("number", lambda: float(total))
        attempt("upload", lambda: cp.asarray([1.0]))
        attempt("set", lambda: x.set(np.ones(4)))
        attempt("addresses", lambda: cp.stack([x] * 9))
        attempt("few", lambda: cp.stack([x] * 8))
        attempt("cublas", lambda: x @ view)
        attempt("mask", lambda: x[x > 0])
        print("capturing", stream.is_capturing())
        graph = stream.end_capture()
    assert np.isnan(y.get()).all() and x.tolist() == [0, 1, 2, 3], "nothing is computed yet"
    for turn in (1, 2):
        with cp.cuda.recording() as operations:
            calls = cp.cuda.calls
            graph.launch()
            assert cp.cuda.calls == calls + 1
        assert [o.name for o in operations].count("one") == 1, operations
        assert x.tolist() == [turn, turn + 1, turn + 2, turn + 3]
        assert y.tolist() == [2, turn + 1, turn + 2, 2], "of the x that is there at the launch"
        assert float(total) == 2 * (6 + 4 * (turn - 1)) + 4
    del total, y, pool
    attempt("pool", graph.launch)
    stream.begin_capture()
    attempt("wait", stream.synchronize)
    attempt("invalidated", stream.end_capture)
    with cp.cuda.using_allocator(cp.cuda.MemoryPool().malloc):
        stream.begin_capture()
        z = x * 2
        graph = stream.end_capture()
    del x, view
    attempt("freed", graph.launch)
"""
SAID = {
    "null": "RuntimeError: cannot capture on the default",
    "get": "RuntimeError: .*D2H transfers are disallowed",
    "number": "RuntimeError: .*D2H transfers are disallowed",
    "upload": "RuntimeError: .*H2D transfers are disallowed",
    "set": "RuntimeError: .*H2D transfers are disallowed",
    "addresses": "RuntimeError: .*H2D transfers are disallowed",
    "few": "nothing",
    "cublas": "NotImplementedError: calling cuBLAS API during stream capture",
    "mask": "RuntimeError: .*D2H transfers are disallowed",
    "capturing": "True",
    "pool": r"GraphError: the graph's cupy\.\w+ uses memory that was freed since the capture",
    "wait": "_?CUDARuntimeError: cudaErrorStreamCaptureUnsupported",
    "invalidated": "_?CUDARuntimeError: cudaErrorStreamCaptureInvalidated",
    "freed": "GraphError: the graph's cupy.multiply uses memory that was freed",
}


def test_graphs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {"PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    for line, (name, wanted) in zip(done.stdout.splitlines(), SAID.items(), strict=True):
        assert re.match(f"{name} {wanted}", line), line
