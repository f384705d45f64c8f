"""Arrays that involution accepts and returns: layouts, dtypes, Tensors, many at once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import tracemalloc
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import SEEDS, host
from forms import (
    BIASED,
    PLAIN,
    Form,
    forms,
    taps,
)
from hypothesis import given
from hypothesis import strategies as st

import invocupy
from invocupy import Geometry, Tensor, functional, reference
from invocupy.testing import LAYOUTS, NUMPY_LAYOUTS, arrays, geometries, options


def whole(array: Any) -> Any:
    """The integers that a floating array holds."""
    numbers = host(array).astype(np.int64)
    assert (numbers == host(array)).all()
    return numbers


def memory(array: Any) -> bytes:
    """All bytes of the memory that an array looks at."""
    return host(array if array.base is None else array.base).tobytes()


# ---------------------------------------------------------------------------- layouts, dtypes


@forms
@given(g=geometries(max_width=40), data=st.data())
def test_layouts_do_not_matter(
    form: Form, g: Geometry, data: st.DataObject, xp: ModuleType
) -> None:
    layouts = NUMPY_LAYOUTS if xp is np else LAYOUTS
    grad, *operands = (
        data.draw(arrays(shape, layouts=layouts, xp=xp)) for shape in (g.out_shape, *form.shapes(g))
    )
    plain = [xp.array(a.astype(a.dtype.newbyteorder("=")), order="C") for a in (grad, *operands)]
    before = [memory(a) for a in (grad, *operands)]
    results = [
        form.forward(*operands, **form.options(g)),
        *form.backward(grad, *operands, **form.options(g)),
    ]
    expected = [
        form.forward(*plain[1:], **form.options(g)),
        *form.backward(*plain, **form.options(g)),
    ]
    for actual, right in zip(results, expected, strict=True):
        assert actual.dtype == right.dtype
        assert actual.flags.c_contiguous
        assert actual.tobytes() == right.tobytes()
    assert [memory(a) for a in (grad, *operands)] == before


def test_subclasses_are_stripped() -> None:
    class Named(np.ndarray):
        pass

    x, kernel = (np.ones(s).view(Named) for s in ((1, 1, 3, 3), (1, 1, 3, 3, 3, 3)))
    for result in (invocupy.involution(x, kernel), *invocupy.involution_backward(x, x, kernel)):
        assert type(result) is np.ndarray


FLOATS = ["float16", "float32", "float64"]


@given(
    g=geometries(max_size=5),
    dtypes=st.tuples(*[st.sampled_from(FLOATS)] * 3),
    seed=SEEDS,
)
def test_promotion(g: Geometry, dtypes: tuple[str, str, str], seed: int, xp: ModuleType) -> None:
    """NumPy's promotion; small integers are exact in all of the dtypes."""
    wide = PLAIN.draw(g, seed, "float64", xp)
    x, kernel, grad = (a.astype(dtype) for a, dtype in zip(wide, dtypes, strict=True))
    out = invocupy.involution(x, kernel, **options(g))
    assert out.dtype == np.result_type(x, kernel)
    assert (whole(out) == whole(reference.involution(*wide[:2], **options(g)))).all()
    grads = invocupy.involution_backward(grad, x, kernel, **options(g))
    expected = reference.involution_backward(wide[2], *wide[:2], **options(g))
    for actual, right, operand in zip(grads, expected, (x, kernel), strict=True):
        assert actual.dtype == operand.dtype
        assert (whole(actual) == whole(right)).all()


@forms
@given(g=geometries(max_size=5), seed=SEEDS)
def test_halves_are_computed_in_float32(form: Form, g: Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = (g.out_shape, *form.shapes(g))
    halves = [rng.standard_normal(shape).astype("float16") for shape in shapes]
    wide = [a.astype("float32") for a in halves]
    pairs = [
        (form.forward(*halves[1:], **form.options(g)), form.forward(*wide[1:], **form.options(g))),
        *zip(
            form.backward(*halves, **form.options(g)),
            form.backward(*wide, **form.options(g)),
            strict=True,
        ),
    ]
    for half, full in pairs:
        assert half.dtype == "float16"
        assert half.tobytes() == full.astype("float16").tobytes()


# ---------------------------------------------------------------------------- out=, empty, Tensors


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "padding"),
    [
        ((0, 4, 5, 5), (0, 2, 3, 3, 5, 5), 1),  # no image
        ((2, 4, 0, 5), (2, 2, 3, 3, 0, 5), 1),  # no row
        ((2, 4, 2, 5), (2, 2, 3, 3, 0, 3), 0),  # no result
        ((2, 0, 5, 5), (2, 2, 3, 3, 5, 5), 1),  # no channel
        ((1, 1, 0, 0), (1, 1, 3, 3, 2, 2), 2),  # results that see nothing
        ((1, 1, 1, 1), (1, 1, 7, 7, 1, 1), 3),  # a kernel larger than the image
    ],
)
@forms
def test_empty_and_tiny(
    form: Form, x_shape: Any, kernel_shape: Any, padding: int, xp: ModuleType
) -> None:
    g = Geometry.of(x_shape, kernel_shape, 1, padding)
    *operands, grad = form.draw(g, 0, "float32", xp)
    out = xp.full(g.out_shape, xp.nan, "float32")
    form.forward(*operands, out=out, **form.options(g))
    assert (out == form.forward(*operands, module=reference, **form.options(g))).all()
    grads = form.backward(grad, *operands, **form.options(g))
    expected = form.backward(grad, *operands, module=reference, **form.options(g))
    for actual, right in zip(grads, expected, strict=True):
        assert actual.shape == right.shape
        assert (actual == right).all()


@forms
def test_a_tensor_in_gives_a_tensor(form: Form, xp: ModuleType) -> None:
    g = Geometry.of((2, 4, 6, 5), (2, 2, 3, 3, 6, 5))
    *operands, grad = form.draw(g, 0, "float32", xp)
    plain = form.forward(*operands, **form.options(g))
    assert isinstance(plain, xp.ndarray)
    expected = form.backward(grad, *operands, **form.options(g))
    for i, operand in enumerate(operands):
        tensor = Tensor(operand, requires_grad=True)
        out = form.forward(*operands[:i], tensor, *operands[i + 1 :], **form.options(g))
        assert isinstance(out, Tensor)
        assert (out.data == plain).all()
        out.backward(grad)
        assert (tensor.grad == expected[i]).all()
    assert functional.involution is invocupy.involution
    assert functional.fused_involution is invocupy.fused_involution


# ---------------------------------------------------------------------------- many at once


@forms
def test_the_same_call_gives_the_same_bits(form: Form, xp: ModuleType) -> None:
    g = Geometry.of((3, 8, 33, 35), (3, 2, 3, 3, 33, 35))
    rng = np.random.default_rng(0)
    grad, *operands = (
        xp.asarray(rng.standard_normal(shape).astype("float32"))
        for shape in (g.out_shape, *form.shapes(g))
    )
    results = {
        b"".join(
            a.tobytes()
            for a in (
                form.forward(*operands, **form.options(g)),
                *form.backward(grad, *operands, **form.options(g)),
            )
        )
        for _ in range(20)
    }
    assert len(results) == 1


def test_sixteen_threads_at_once() -> None:
    """Mixed sizes and operators, equal to one call after the other."""

    def everything(seed: int) -> list[bytes]:
        results = []
        for form in (PLAIN, BIASED):
            size = 3 + seed % 5 * 15
            g = Geometry.of((2, 4, size, size), (2, 2, 3, 3, size, size))
            *operands, grad = form.draw(g, seed, "float32", np)
            results += [
                form.forward(*operands, **form.options(g)),
                *form.backward(grad, *operands, **form.options(g)),
            ]
        return [result.tobytes() for result in results]

    serial = [everything(seed) for seed in range(16)]
    results: list[Any] = [None] * 16
    start = threading.Barrier(16)

    def work(seed: int) -> None:
        start.wait()
        for _ in range(10):
            results[seed] = everything(seed)
            if results[seed] != serial[seed]:
                return

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == serial


FIRST_CALL_AND_FORK = """
    import os, signal, threading
    import numpy as np
    import invocupy

    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 16, 40, 40)).astype("float32")
    kernel = rng.standard_normal((4, 1, 3, 3, 40, 40)).astype("float32")
    expected = invocupy.reference.involution(x, kernel)

    results = []
    start = threading.Barrier(16)

    def first_call():
        start.wait()
        results.append(invocupy.involution(x, kernel))

    threads = [threading.Thread(target=first_call) for _ in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(results) == 16 and all((r == results[0]).all() for r in results)
    assert abs(results[0] - expected).max() < 1e-4

    def answers_in_a_child():
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a child that waits for ever is killed
            same = (invocupy.involution(x, kernel) == results[0]).all()
            os._exit(0 if same else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert answers_in_a_child()
    busy = threading.Thread(target=lambda: [invocupy.involution(x, kernel) for _ in range(50)])
    busy.start()
    assert all(answers_in_a_child() for _ in range(3)), "while another thread computes"
    busy.join()
    assert (invocupy.involution(x, kernel) == results[0]).all()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_first_call_in_sixteen_threads_and_forked_children() -> None:
    script = textwrap.dedent(FIRST_CALL_AND_FORK)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def test_neither_patches_nor_the_generated_kernel_are_stored() -> None:
    g = Geometry.of((1, 32, 48, 48), (1, 16, 7, 7, 48, 48))

    def peak(form: Form, module: Any) -> int:
        *operands, grad = form.draw(g, 0, "float32", np)
        form.forward(*operands, module=module, **form.options(g))  # compiling takes memory, too
        if form is BIASED:
            form.backward(grad, *operands, module=module, **form.options(g))
        tracemalloc.start()
        form.forward(*operands, module=module, **form.options(g))
        forward = tracemalloc.get_traced_memory()[1]
        if form is BIASED:
            form.backward(grad, *operands, module=module, **form.options(g))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return max(forward, highest)

    kernel_bytes = 4 * int(np.prod(g.kernel_shape))
    patches_bytes = 4 * taps(g) * int(np.prod(g.x_shape))
    assert peak(PLAIN, invocupy) < patches_bytes / 4
    assert peak(BIASED, invocupy) < kernel_bytes / 4
    assert peak(BIASED, reference) > kernel_bytes  # what the limit would catch
