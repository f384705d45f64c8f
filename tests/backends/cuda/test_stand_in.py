"""The stand-in for CuPy refuses what CuPy refuses: the test of what tests the CUDA side."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from cuda_proof import host

FOLDER = host.HERE.parent / "stand_in"

BEGIN = """
import numpy as np, cupy as cp, invocupy
from invocupy.arrays import contiguous
def fresh():
    return cp.asarray(np.arange(12.0).reshape(3, 4))

x = fresh()
kernel = cp.RawModule(code='extern "C" __global__ void one(double *x) { x[threadIdx.x] = 1; }')
kernel = kernel.get_function("one")
with cp.cuda.Device(1):
    far = cp.ones((3, 4))

def one_of_each(x, kernel):
    with cp.cuda.recording() as operations:
        x + 1
        kernel((1,), (4,), (x,))
        x += x
        x.reshape(4, 3).T.view()
        x.copy()
    return operations

def stream():
    return cp.cuda.Stream(non_blocking=True)

def two(order, then=None):
    # one stream makes what another reads, and writes it again
    a, b = stream(), stream()
    with a:
        y = cp.ones(4)
    order(a, b)
    with b:
        z = y * 2
    if then:
        then(a, b)
        with a:
            y += 1
    b.synchronize()
    return z.tolist() == [2.0] * 4

def nothing(a, b):
    pass

def event(a, b):
    b.wait_event(a.record())

def freed():
    a, b = stream(), stream()
    with a:
        y = cp.ones(4)
    event(a, b)
    with b:
        z = y * 2
    del y
    with a:
        cp.ones(4)

def null():
    a = cp.cuda.Stream()
    with a:
        y = cp.ones(4)
    y += 1
    with a:
        y += 1
    return y.tolist() == [3.0] * 4

def idle(x, kernel):
    with cp.cuda.recording(idle=True):
        kernel((1,), (4,), (x,))
    return x[0].tolist()
"""
REFUSED = {
    "NumPy operand": ("x + np.ones(4)", "TypeError: Unsupported type"),
    "NumPy operand, left": ("np.ones(4) * x", "TypeError: Unsupported type"),
    "NumPy function": ("np.asarray(x)", "TypeError: Implicit conversion to a NumPy array"),
    "NumPy value": ("x[...] = np.ones(4)", "TypeError: Unsupported type"),
    "NumPy array to a kernel": ("kernel((1,), (4,), (np.ones(4),))", "TypeError: You are trying"),
    "views to a kernel": ("kernel((1,), (3,), (x[:, 0],))", "LaunchError: .*not contiguous"),
    "past the last thread": ("kernel((1,), (2000,), (x,))", "LaunchError: .*beyond CUDA's limits"),
    "number without a size": ("kernel((1,), (4,), (1,))", "LaunchError"),
    "another device": ("x + far", "ValueError: The device where the array resides"),
    "no event between streams": ("two(nothing)", "StreamError: stream .* reads what .* writes"),
    "an event of another stream": (
        "two(lambda a, b: event(stream(), b))",
        "StreamError: stream .* reads what .* writes",
    ),
    "written while it is read": ("two(event, nothing)", "StreamError: .* writes what .* reads"),
    "freed while it is read": ("freed()", "StreamError: .* writes what .* reads"),
    "another device to a kernel": ("kernel((1,), (4,), (far,))", "ValueError: The device where"),
    "losing digits in place": ("cp.arange(3).__iadd__(0.5)", "UFuncTypeError"),
    "unknown parameter": ("x.max(initial=0)", "TypeError: .*unexpected keyword argument"),
    "unknown function": ("cp.nanmean(x)", "AttributeError: .*nanmean"),
    "dtype": ("cp.asarray(np.ones(2, np.longdouble).astype(object))", "ValueError: Unsupported"),
}
KEPT = {
    "reductions are arrays": "type(x.sum()) is cp.ndarray and x.sum().shape == ()",
    "new memory is not zero": "bool(cp.isnan(cp.empty(3)).all())",
    "views share memory": "cp.shares_memory(x[1:], x) and x.T.T.data.ptr == x.data.ptr",
    "views know whose memory it is": "x[1:][0].base is x and x.base is None",
    "waits are counted": "-cp.cuda.waits + (float(x.sum()) == 66.0) + cp.cuda.waits == 2",
    "indices wrap around": "x[cp.asarray([3, -1])].tolist() == x[[0, 2]].tolist()",
    "an axis for none": "cp.ascontiguousarray(cp.ones(())).shape == (1,)",
    "where it lies": "contiguous(far.T, None).device.id == 1 and cp.empty(1).device.id == 0",
    "operations are recorded": (
        "[o.name for o in one_of_each(x, kernel)] == ['cupy.add', 'one', 'cupy.__iadd__', "
        "'cupy.copy'] "
        "and [o.bytes for o in one_of_each(x, kernel)] == [192, 96, 288, 192] "
        "and one_of_each(x, kernel)[1].threads == 4"
    ),
    "events order streams": "two(event, lambda a, b: event(b, a))",
    "the host orders streams": "two(lambda a, b: a.synchronize())",
    "the null stream waits for blocking ones, and they for it": "null()",
    "idle devices do nothing": "idle(x, kernel) == x[0].tolist()",
    "kernels run": "[kernel((1,), (4,), (x,)), x[0].tolist()][1] == [1.0] * 4",
}


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(FOLDER)}
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code], env=environment, capture_output=True, text=True
    )


def test_what_it_refuses() -> None:
    lines = [
        f"try: {code}\nexcept Exception as e: print({name!r}, type(e).__name__ + ':', str(e)[:300])"
        f"\nelse: print({name!r}, 'nothing')"
        for name, (code, _) in REFUSED.items()
    ]
    done = run("\n".join(lines))
    assert not done.returncode, done.stderr
    for line, (name, (_, wanted)) in zip(done.stdout.splitlines(), REFUSED.items(), strict=True):
        assert re.match(f"{name} {wanted}", line), line


def test_what_it_keeps() -> None:
    lines = [f"x = fresh(); print({name!r}, {code})" for name, code in KEPT.items()]
    done = run("\n".join(lines))
    assert not done.returncode, done.stderr
    for line, name in zip(done.stdout.splitlines(), KEPT, strict=True):
        assert line == f"{name} True"
