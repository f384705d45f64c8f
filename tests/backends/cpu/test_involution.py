"""The CPU backend: agreement with the reference, threads, the cache of compiled kernels, memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invocupy.backends.cpu import involution as cpu
from invocupy.backends.cpu import pool as workers
from invocupy.backends.cpu import threads
from invocupy.backends.cpu.jit import add, jit, load, next_task, pointer
from invocupy.backends.cpu.launch import GRAIN, launch
from invocupy.backends.reference import involution as reference
from invocupy.geometry import Geometry, output_size

FUNCTIONS = ["forward", "grad_x", "grad_kernel", "fused_forward", "fused_grad_x", "fused_grad_span"]


def geometry(
    batch, groups, per_group, image, kernel, stride=(1, 1), padding=(1, 1), dilation=(1, 1)
):
    sizes = zip(image, kernel, stride, padding, dilation, strict=True)
    out = tuple(output_size(*axis) for axis in sizes)
    return Geometry.of(
        (batch, groups * per_group, *image),
        (batch, groups, *kernel, *out),
        stride,
        padding,
        dilation,
    )


def arguments(name, g, features, dtype, seed=0):
    """Random arguments of one function and the shapes of its results."""
    rng = np.random.default_rng(seed)
    taps = g.groups * g.kernel_h * g.kernel_w
    shapes = {
        "x": g.x_shape,
        "grad": g.out_shape,
        "kernel": g.kernel_shape,
        "features": (g.batch, features, g.out_h, g.out_w),
        "weight": (taps, features),
        "bias": (taps,),
    }
    names, results = {
        "forward": ("x kernel", ["grad"]),
        "grad_x": ("grad kernel", ["x"]),
        "grad_kernel": ("grad x", ["kernel"]),
        "fused_forward": ("x features weight bias", ["grad"]),
        "fused_grad_x": ("grad features weight bias", ["x"]),
        "fused_grad_span": ("grad x features weight", ["features", "weight", "bias"]),
    }[name]
    given_arrays = [rng.standard_normal(shapes[n]).astype(dtype) for n in names.split()]
    return given_arrays, [shapes[n] for n in results]


def call(name, g, features=5, dtype=np.float32, seed=0, backend=cpu):
    """Results of one function, in arrays that held NaN."""
    given_arrays, shapes = arguments(name, g, features, dtype, seed)
    results = [np.full(shape, np.nan, dtype) for shape in shapes]
    getattr(backend, name)(*given_arrays, g, *results)
    return results


def longest_sum(name, g, features):
    """A bound on how many rounded products and sums one element of a result goes through."""
    taps, positions = g.kernel_h * g.kernel_w, g.batch * g.out_h * g.out_w
    return {
        "forward": taps,
        "grad_x": taps,
        "grad_kernel": g.channels_per_group,
        "fused_forward": taps + features + 2,
        "fused_grad_x": taps + features + 2,
        "fused_grad_span": g.channels_per_group + max(g.groups * taps, positions) + 1,
    }[name]


def check(name, g, features, dtype, seed=0):
    """|cpu - reference| <= 2 n u reference(|...|): n roundings on either side, both in ``dtype``.

    The reference works in float64 where that is wider.
    """
    given_arrays, shapes = arguments(name, g, features, dtype, seed)
    wide = [array.astype(np.float64) for array in given_arrays]
    expected, size = ([np.zeros(shape) for shape in shapes] for _ in range(2))
    getattr(reference, name)(*wide, g, *expected)
    getattr(reference, name)(*map(np.abs, wide), g, *size)
    bound = 2 * longest_sum(name, g, features) * np.finfo(dtype).eps / 2
    for result, right, magnitude in zip(
        call(name, g, features, dtype, seed), expected, size, strict=True
    ):
        assert np.all(np.abs(result - right) <= bound * magnitude), name


@pytest.fixture
def nothing_cached(monkeypatch):
    """Results of any size go past the caches, where the machine has vectors of whole lines."""
    jobs = cpu._gather_job, cpu._correlate_job
    for job in jobs:
        job.cache_clear()
    monkeypatch.setattr(cpu, "_CACHES", 0)
    yield
    for job in jobs:
        job.cache_clear()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 4])
@pytest.mark.parametrize(
    ("image", "kernel", "stride"),
    [((32, 32), (3, 3), 1), ((5, 48), (7, 7), 1), ((9, 16), (1, 3), 1), ((7, 40), (3, 3), 1),
     ((9, 64), (3, 3), 2), ((5, 700), (3, 3), 1)],
)  # fmt: skip
def test_results_past_the_caches_are_the_same(
    dtype, offset, image, kernel, stride, nothing_cached, monkeypatch
):
    padding = tuple(k // 2 for k in kernel)
    g = geometry(2, 2, 8, image, kernel, (stride, stride), padding)

    def results(name):
        given_arrays, shapes = arguments(name, g, 5, dtype)
        outs = []
        for shape in shapes:
            size = int(np.prod(shape))
            held = np.full(size + 32, np.nan, dtype)
            start = -held.ctypes.data % 64 // held.itemsize + offset  # from a line on, or not
            outs.append(held[start : start + size].reshape(shape))
        getattr(cpu, name)(*given_arrays, g, *outs)
        return outs

    names = ["forward", "grad_x", "grad_kernel", "fused_forward", "fused_grad_x"]
    past = [results(name) for name in names]
    for job in (cpu._gather_job, cpu._correlate_job):
        job.cache_clear()
    monkeypatch.undo()
    for name, first in zip(names, past, strict=True):
        for one, other in zip(first, results(name), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 4)])
def test_last_tile_of_a_row_of_any_width(dtype, kernel):
    """Nothing is left out, written twice as wide or past the end, whatever the last tile holds."""
    for width in range(1, 42):
        g = geometry(1, 1, 3, (kernel[0] + 1, width + kernel[1] - 1), kernel, (1, 1), (0, 0))
        given_arrays, (shape,) = arguments("grad_kernel", g, 5, dtype)
        size = int(np.prod(shape))
        held = np.full(size + 64, np.nan, dtype)
        out = held[32 : 32 + size].reshape(shape)
        cpu.grad_kernel(*given_arrays, g, out)
        expected = np.empty(shape)
        reference.grad_kernel(*(a.astype(np.float64) for a in given_arrays), g, expected)
        magnitude = np.empty(shape)
        reference.grad_kernel(*(abs(a.astype(np.float64)) for a in given_arrays), g, magnitude)
        # three multiply-adds, each rounds once, here and in the reference
        assert (abs(out - expected) <= 4 * np.finfo(dtype).eps * magnitude).all(), width
        assert np.isnan(held[:32]).all(), width
        assert np.isnan(held[32 + size :]).all(), width


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=25)
@given(data=st.data())
def test_agrees_with_reference(name, data):
    """Sizes that come in at run time: many positions, strips, bands, wide borders."""
    draw = data.draw
    image = draw(st.integers(9, 40)), draw(st.integers(17, 300))
    g = geometry(
        draw(st.integers(1, 2)), draw(st.integers(1, 3)), 9, image, (3, 3),
        padding=(draw(st.integers(0, 9)), draw(st.integers(0, 20))),
    )  # fmt: skip
    check(name, g, draw(st.integers(1, 20)), np.float32, draw(st.integers(0, 99)))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("g", "dtype"),
    [
        (geometry(2, 1, 4, (7, 20), (5, 3), (2, 3), (3, 1), (1, 2)), np.float32),
        (geometry(1, 2, 3, (8, 37), (2, 4), (1, 2), (0, 3), (2, 1)), np.float64),
        (geometry(1, 1, 16, (14, 61), (7, 7), padding=(3, 3)), np.float32),
        (geometry(1, 1, 17, (15, 131), (5, 3), (2, 2), (4, 2), (2, 2)), np.float32),
        (geometry(2, 3, 1, (1, 1), (1, 1), (3, 5), (0, 0)), np.float64),
        (geometry(1, 1, 2, (3, 5), (3, 3), (3, 2), (7, 9), (2, 3)), np.float32),
        (geometry(1, 1, 17, (2, 8), (1, 2), (5, 1), (1, 40), (1, 6)), np.float64),
        (geometry(1, 1, 1, (2, 3), (17, 14), padding=(9, 8)), np.float32),
    ],
    ids=["strided", "even", "seven", "dilated", "point", "padding", "wide padding", "large kernel"],
)
def test_agrees_with_reference_for_every_kind(name, g, dtype):
    check(name, g, 3, dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(0, 1, 3, (5, 5)), (1, 1, 0, (5, 5)), (2, 1, 3, (0, 5))])
def test_empty_arrays_give_zeros_or_nothing(name, shape):
    g = geometry(*shape, (3, 3))
    expected = call(name, g, backend=reference)
    for result, right in zip(call(name, g), expected, strict=True):
        np.testing.assert_array_equal(result, right)


@pytest.mark.parametrize("name", ["forward", "grad_x"])
def test_a_nan_reaches_exactly_what_sees_it(name):
    """Padding and lanes past the edge are not read, not even times zero."""
    g = geometry(1, 2, 9, (10, 37), (3, 3))
    (array, kernel), (shape,) = arguments(name, g, 1, np.float32)
    for i, j in [(0, 0), (0, 36), (9, 0), (9, 36), (4, 16)]:
        for bad in (array, kernel):
            kept = bad[..., i, j].copy()
            bad[..., i, j] = np.nan
            results = [np.empty(shape, np.float32) for _ in range(2)]
            for backend, result in zip((cpu, reference), results, strict=True):
                getattr(backend, name)(array, kernel, g, result)
            bad[..., i, j] = kept
            np.testing.assert_array_equal(*map(np.isnan, results))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_bits_for_any_number_of_threads(name):
    g = geometry(3, 2, 9, (50, 40), (3, 3))
    results = []
    try:
        for number in (1, 2, 3):
            threads.set_num_threads(number)
            results.append(call(name, g))
    finally:
        threads.set_num_threads(None)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_read_only_arrays_need_no_compilation_of_their_own(name):
    g = geometry(1, 2, 9, (12, 40), (3, 3))
    expected = call(name, g)
    given_arrays, shapes = arguments(name, g, 5, np.float32)
    for array in given_arrays:
        array.flags.writeable = False
    results = [np.empty(shape, np.float32) for shape in shapes]
    getattr(cpu, name)(*given_arrays, g, *results)
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, right)
    assert len(cpu._gather_job(g, 4, False, 0).kernel.signatures) <= 1


@pytest.mark.parametrize("name", ["fused_forward", "fused_grad_x", "fused_grad_span"])
def test_the_generated_kernel_is_never_whole(name):
    g = geometry(1, 1, 9, (300, 1000), (3, 3))
    given_arrays, shapes = arguments(name, g, 2, np.float32)
    results = [np.zeros(shape, np.float32) for shape in shapes]
    peaks = []

    def work():
        tracemalloc.start()
        getattr(cpu, name)(*given_arrays, g, *results)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    getattr(cpu, name)(*given_arrays, g, *results)  # compiles
    workers._reset()  # scratch memory is kept for the next call
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert 0 < peaks[0] < np.prod(g.kernel_shape) * 4 / 4


def test_number_of_threads():
    assert threads.get_num_threads() >= 1
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="number of threads must be an integer >= 1"):
            threads.set_num_threads(wrong)


def test_number_of_threads_from_the_environment(monkeypatch):
    for number, expected in [("1", 1), ("100000", len(os.sched_getaffinity(0)))]:
        monkeypatch.setenv("INVOCUPY_NUM_THREADS", number)
        monkeypatch.setattr(threads, "_limit", threads._limit.__wrapped__)
        assert threads._default.__wrapped__() == expected
        assert threads.is_set()
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("load", "free"),
    [
        (b"0.1 0.2 0.3 2/100 1234\n", 7),
        (b"0.1 0.2 0.3 5/100 1234\n", 4),
        (b"9 9 9 90/100 1234\n", 0),
        (b"", 7),
    ],
)
def test_cores_that_others_keep_busy(load, free, monkeypatch):
    monkeypatch.setattr(os, "pread", lambda *given: load)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads, "_cores", lambda: 8)
    monkeypatch.setattr(threads, "_looked", 0.0)
    assert threads.free_cores(100.0, 2) == free
    monkeypatch.setattr(os, "pread", lambda *given: b"0 0 0 3/9 1\n")
    assert threads.free_cores(100.001, 2) == free  # not looked again
    assert threads.free_cores(101.0, 2) == 6
    monkeypatch.setattr(threads, "_cores", lambda: 3)  # a part of the machine
    assert threads.free_cores(102.0, 2) == 2


@pytest.mark.parametrize(
    ("content", "cores"), [("150000 100000", 2), ("20000 100000", 1), ("max 100000", 6), (None, 6)]
)
def test_cores_of_a_container(content, cores, tmp_path, monkeypatch):
    if content is not None:
        (tmp_path / "cpu.max").write_text(content + "\n")
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    assert threads._cores.__wrapped__() == cores


def test_busy_cores_are_left_alone_unless_told(monkeypatch):
    monkeypatch.setattr(threads, "free_cores", lambda now, own: 0)
    monkeypatch.setattr(threads, "_default", lambda: 4)
    monkeypatch.setattr(threads, "_limit", lambda: None)
    for told in (False, True):
        threads.set_num_threads(4 if told else None)
        here = np.zeros(2, np.int64)
        launch(meet, 2, 1 << 30, 0, here, 1 << 32 if told else 10)
        assert here.tolist() == ([2, 2] if told else [2, 1])
    threads.set_num_threads(None)


@jit
def meet(tasks, scratch, counter, here, turns):
    """Each task waits for all others, and says if they came."""
    while next_task(counter) < tasks:
        add(here, 1)
        for _ in range(turns):
            if load(here) >= tasks:
                add(here + 8, 1)
                break


@jit
def count(tasks, scratch, counter, done):
    """How often each task was done, and by threads with how much scratch memory in common."""
    own = pointer(scratch, -64)
    while True:
        task = next_task(counter)
        if task >= tasks:
            return
        own[0] = task
        add(done + 8 * task, 1)
        if own[0] != task:
            add(done + 8 * task, 1 << 32)


@pytest.fixture
def four_threads():
    threads.set_num_threads(4)
    yield
    threads.set_num_threads(None)


def asleep():
    return workers._board[0].cast("q")[workers._SLEEPING // 8]


def test_helpers_work_at_the_same_time_awake_or_asleep(four_threads):
    for _ in range(2):
        for _ in range(3):
            here = np.zeros(2, np.int64)
            launch(meet, 4, 1 << 30, 0, here, 1 << 32)
            assert here.tolist() == [4, 4]
        until = time.monotonic() + 60
        while asleep() < workers._workers and time.monotonic() < until:
            time.sleep(0.01)
        assert asleep() == workers._workers  # they do not watch for ever


def test_every_task_is_done_once_whoever_calls(four_threads):
    """Short jobs one after another, by more callers than can have helpers at once."""

    def caller(seed):
        rng = np.random.default_rng(seed)
        for _ in range(300):
            done = np.zeros(rng.integers(2, 9), np.int64)
            launch(count, len(done), 1 << 30, 8, done)
            if (done != 1).any():
                wrong.append(done)

    wrong = []
    callers = [
        threading.Thread(target=caller, args=(seed,)) for seed in range(2 * workers._CALLERS)
    ]
    for worker in callers:
        worker.start()
    for worker in callers:
        worker.join()
    assert not wrong


def test_a_small_job_wakes_nobody(four_threads):
    launch(count, 8, 1 << 30, 8, np.zeros(8, np.int64))
    while asleep() < workers._workers:
        time.sleep(0.01)
    time.sleep(0.01)  # soon after another one they are woken for any job
    done = np.zeros(1000, np.int64)
    launch(count, len(done), 4 * GRAIN, 8, done)
    assert (done == 1).all()
    assert asleep() == workers._workers


def test_works_where_no_thread_can_start(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    workers._reset()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    g = geometry(3, 2, 9, (50, 40), (3, 3))
    threads.set_num_threads(4)
    try:
        (result,) = call("forward", g)
    finally:
        threads.set_num_threads(None)
    assert np.isfinite(result).all()


# What follows needs a process of its own.

SETUP = """
    import os, sys, threading
    import numpy as np
    from invocupy.backends.cpu import threads
    from invocupy.backends.cpu import involution as cpu
    from invocupy.backends.reference import involution as reference
    from invocupy.geometry import Geometry

    g = Geometry.of((4, 18, 40, 40), (4, 2, 3, 3, 40, 40))
    rng = np.random.default_rng(0)
    x = rng.standard_normal(g.x_shape).astype(np.float32)
    kernel = rng.standard_normal(g.kernel_shape).astype(np.float32)
    right = np.empty(g.out_shape, np.float32)
    reference.forward(x, kernel, g, right)
    threads.set_num_threads(3)

    def right_again():
        out = np.empty(g.out_shape, np.float32)
        cpu.forward(x, kernel, g, out)
        return bool(np.allclose(out, right, atol=1e-5))
"""


def run_script(body, before="", **environment):
    """Run Python in a fresh process; its standard output."""
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            textwrap.dedent(before + SETUP) + textwrap.dedent(body),
        ],
        env={k: v for k, v in {**os.environ, **environment}.items() if v is not None},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.strip()


def test_sixteen_callers_whose_first_call_is_at_once():
    body = """
    good, start = [], threading.Barrier(16)

    def caller():
        start.wait()
        good.extend(right_again() for _ in range(20))

    callers = [threading.Thread(target=caller) for _ in range(16)]
    for thread in callers: thread.start()
    for thread in callers: thread.join()
    print(len(good), all(good))
    """
    assert run_script(body) == "320 True"


def test_forked_child_has_workers_of_its_own():
    body = """
    assert right_again()
    child = os.fork()
    if not child:
        os._exit(0 if right_again() and right_again() else 1)
    print(os.waitpid(child, 0)[1], right_again())
    """
    assert run_script(body) == "0 True"


def test_works_while_the_interpreter_closes():
    body = """
    import atexit

    class Late:
        def __del__(self):
            os.write(1, b"%d " % right_again())

    assert right_again()
    late = Late()
    atexit.register(lambda: os.write(1, b"%d " % right_again()))
    """
    assert run_script(body) == "1 1"


REPORT = """
    good = right_again()
    (job,) = [cpu._gather_job(g, 4, False, 0)]
    print(good, sum(job.kernel.stats.cache_hits.values()))
"""


def test_kernels_are_kept_and_damaged_files_replaced(tmp_path):
    where = {"INVOCUPY_CACHE_DIR": str(tmp_path / "kernels")}
    assert run_script(REPORT, **where) == "True 0"
    files = sorted((tmp_path / "kernels").iterdir())
    assert files
    assert run_script(REPORT, **where) == "True 1"
    whole = {file: file.read_bytes() for file in files}
    for damage in (lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-9] + b"\0" + b[-8:]):
        for file, content in whole.items():
            file.write_bytes(damage(content))
        assert run_script(REPORT, **where) == "True 0"
        assert run_script(REPORT, **where) == "True 1"
    assert sorted((tmp_path / "kernels").iterdir()) == files


def test_kernels_are_not_kept_where_others_could_write(tmp_path):
    tmp_path.chmod(0o777)
    assert run_script(REPORT, INVOCUPY_CACHE_DIR=str(tmp_path)) == "True 0"
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
    assert run_script(REPORT, **where) == "True 0"


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
    assert run_script(body, before, **where) == f"{expected} True True"


def test_two_processes_that_compile_at_once(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(SETUP) + textwrap.dedent(REPORT)]
    environment = {**os.environ, "INVOCUPY_CACHE_DIR": str(tmp_path / "kernels")}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert all(process.communicate(timeout=120)[0].startswith("True") for process in both)
    assert run_script(REPORT, INVOCUPY_CACHE_DIR=str(tmp_path / "kernels")) == "True 1"
    assert all(not Path(name).name.startswith("tmp") for name in (tmp_path / "kernels").iterdir())
