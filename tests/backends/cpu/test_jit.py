"""Compiling kernels: what they are kept under, signals, forks, and callbacks."""

from __future__ import annotations

import contextvars
import importlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numba import config
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from invocupy import backends
from invocupy.backends.cpu import compiling, content, jit, vector


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


def script(body, *arguments, cwd=None, **environment):
    """Standard output of Python code in a process of its own, which nothing interrupts or hangs."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(body), *map(str, arguments)],
        env={k: v for k, v in {**os.environ, **environment}.items() if v is not None},
        cwd=cwd, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ----------------------------------------------------------------------------- what a kernel reads

FACTOR = 2
TABLE = {1: (2.0, "a"), 2: (3.0, "b")}


def helper(x, more=1):
    return FACTOR * x + more


class Emitter:
    def emit(self, x):
        return x + 1

    @staticmethod
    def plain(x):
        return x

    @property
    def half(self):
        return 0.5


@intrinsic
def emitted(typing, x):
    def codegen(context, builder, signature, args):
        return Emitter().emit(args[0])

    return x(x), codegen


def reads(x):
    return helper(x) + emitted(x) + TABLE[1][0] + vector.LINE + max(x, *(y for y in (x, FACTOR)))


CHANGES = {
    "a constant": (__name__, "FACTOR", 3),
    "its type": (__name__, "FACTOR", 2.0),
    "an entry of a table": (__name__, "TABLE", {1: (2.0, "c"), 2: (3.0, "b")}),
    "a function's code": ("helper", "__code__", (lambda x, more=1: FACTOR * x - more).__code__),
    "a function's default": ("helper", "__defaults__", (2,)),
    "a method": ("Emitter", "emit", lambda self, x: x + 2),
    "a static method": ("Emitter", "plain", staticmethod(lambda x: -x)),
    "a property": ("Emitter", "half", property(lambda self: 0.25)),
    "a base class": ("Emitter", "more", 1),
    "a constant of another module": (vector, "LINE", 128),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_covers_all_that_a_function_reaches(change, monkeypatch):
    owner, name, value = CHANGES[change]
    space = reads.__globals__
    before = content.digest(reads)
    if owner == __name__:
        monkeypatch.setitem(space, name, value)
    else:
        target = space[owner] if isinstance(owner, str) else owner
        monkeypatch.setattr(target, name, value, raising=False)
    assert content.digest(reads) != before
    monkeypatch.undo()
    assert content.digest(reads) == before


def test_the_digest_of_closures_and_of_what_they_hold():
    def outer(inner, number):
        return jit.jit(lambda x: inner(x) + number).py_func

    one, two, same = adding(1), adding(2), adding(1)
    first = content.digest(outer(one, 1))
    assert content.digest(outer(same, 1)) == first
    others = [outer(two, 1), outer(one, 2), outer(one, True), outer(one, 1.0), outer(helper, 1)]
    assert len({first, *map(content.digest, others)}) == 6


def test_the_digest_does_not_depend_on_the_process():
    body = """
    import sys
    from importlib import import_module
    for name in sys.argv[1].split():
        import_module("invocupy.backends.cpu." + name)
    from invocupy.backends.cpu import content, pool as workers, products, planes
    from invocupy.backends.reference import involution
    from invocupy.backends.cpu.involution.gather import gather
    kernels = workers._lead, workers._help, products.product(32, 0, 1), planes.planes(64).lay
    print([content.digest(kernel.py_func) for kernel in kernels])
    """
    orders = "pool pooling", "pooling convolution perceptron planes pool"
    outputs = [script(body, o, PYTHONHASHSEED=str(i)) for i, o in enumerate(orders)]
    assert outputs[0] == outputs[1]
    assert outputs[0] != script(body, orders[0], NUMBA_CPU_NAME="generic")  # other vectors


def test_nothing_is_kept_of_what_was_loaded_again(tmp_path, monkeypatch, place):
    (tmp_path / "loaded_again.py").write_text(
        "from invocupy.backends.cpu.jit import jit\nNUMBER = 1\n"
        "@jit\ndef inner(x):\n    return x + NUMBER\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("loaded_again")
    inner = module.inner
    assert inner(1) == 2
    importlib.reload(module)
    module.NUMBER = 5

    def outer(x):
        return inner(x) * 2

    files = sorted(place.iterdir())
    assert jit.jit(outer)(1) == 4  # as compiled
    assert sorted(place.iterdir()) == files
    with pytest.raises(RuntimeError, match="loaded_again was loaded again"):
        content.digest(outer)


CHANGED = {
    "a constant": ("FACTOR = 5", "FACTOR = 2"),
    "a function": ("old, helper = helper, register_jitable(lambda x: x)", "helper = old"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_nothing_is_kept_of_what_has_changed_since_a_part_was_compiled(change, tmp_path, place):
    """A kernel goes on using the code of an inner one that was compiled before the change."""
    (tmp_path / "changing.py").write_text(
        textwrap.dedent("""
        from numba.extending import register_jitable
        from invocupy.backends.cpu.jit import jit
        FACTOR = 2

        @register_jitable
        def helper(x):
            return x * FACTOR

        @jit
        def inner(x):
            return helper(x)

        @jit
        def outer(x):
            return inner(x) + 1
        """)
    )
    body = """
    import sys
    import changing
    if len(sys.argv) > 1:
        exec(sys.argv[1], vars(changing))
        changing.inner(1)
        exec(sys.argv[2], vars(changing))
    print(changing.outer(1))
    """
    where = {"cwd": tmp_path, "INVOCUPY_CACHE_DIR": str(place)}
    assert script(body, *CHANGED[change], **where) != "3"  # as compiled
    assert script(body, **where) == "3"


@pytest.mark.parametrize("late", [False, True], ids=["before the change", "after the change"])
def test_sources_that_change_under_a_process(late, tmp_path):
    """Version A; imported before or after the change to B; compiled then; A again."""
    source = tmp_path / "kernels.py"
    version = "from invocupy.backends.cpu.jit import jit\n@jit\ndef add(x):\n    return x + {}\n"
    source.write_text(version.format(1000))
    body = """
    import sys
    from pathlib import Path
    import invocupy.backends.cpu.jit as jit
    jit.jit(lambda x: x)(1)  # in use before
    source = Path("kernels.py")
    if sys.argv[1] == "early": import kernels
    text = source.read_text()
    source.write_text(text.replace("1000", "20000"))
    import kernels
    print(kernels.add(1))
    source.write_text(text)
    """
    where = {"INVOCUPY_CACHE_DIR": str(tmp_path / "kept"), "PYTHONDONTWRITEBYTECODE": "1"}
    got = script(body, "late" if late else "early", cwd=tmp_path, **where)
    assert got == ("20001" if late else "1001")
    again = "import kernels; print(kernels.add(1), sum(kernels.add.stats.cache_hits.values()))"
    assert script(again, cwd=tmp_path, **where) == ("1001 0" if late else "1001 1")
    source.write_text(version.format(20000))
    assert script(again, cwd=tmp_path, **where) == ("20001 1" if late else "20001 0")


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


def test_vectors_are_those_that_numba_compiles_for():
    body = "from invocupy.backends.cpu import vector; print(vector.VECTOR_BYTES, vector.WIDE)"
    for environment in (
        {"NUMBA_CPU_NAME": "generic"},
        {"NUMBA_ENABLE_AVX": "0"},
        {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2,-avx2,-avx512vl"},
    ):
        assert script(body, **environment) == "16 False"
    wide = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    assert script(body, **wide) == "32 False"


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


# ---------------------------------------------------------------------------------------- signals


class AlarmError(Exception):
    pass


@pytest.fixture(params=[KeyboardInterrupt, AlarmError])
def alarm(request):
    """A signal's handler raises it."""

    def handler(number, frame):
        raise request.param

    before = signal.signal(signal.SIGALRM, handler)
    yield request.param
    signal.signal(signal.SIGALRM, before)


def test_a_signal_ends_the_waiting_and_not_the_work(alarm):
    raised, done = threading.Event(), threading.Event()

    def work():
        os.kill(os.getpid(), signal.SIGALRM)  # the main thread handles it
        assert raised.wait(60)
        done.set()

    with pytest.raises(alarm):
        compiling.whole(work)
    raised.set()  # at once, before the work is done
    assert done.wait(60)
    assert compiling.whole(lambda: 5) == 5  # after it


def test_signals_while_real_code_is_compiled(alarm, monkeypatch, place):
    seen = []

    def interrupt(name, done):
        if not seen:
            os.kill(os.getpid(), signal.SIGALRM)
        seen.append((name, done, threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr(backends, "on_compile", interrupt)
    kernel = adding(9)
    with pytest.raises(alarm):
        kernel(1)
    assert kernel(1) == 10
    assert seen == [("add", False, False), ("add", True, False)]  # once, and elsewhere


def test_all_doors_to_the_compiler_are_guarded(monkeypatch, place):
    threads_seen = []

    def note(*_):
        threads_seen.append(threading.current_thread())

    jit.machine_code("nothing", 1, note)
    monkeypatch.setattr(backends, "on_compile", note)
    adding(10)(1)
    monkeypatch.setattr(backends, "import_module", note)
    backends._module.__wrapped__("some", "cpu")
    assert len(threads_seen) == 4
    assert threading.main_thread() not in threads_seen


def test_work_in_work_errors_and_context():
    number = contextvars.ContextVar("number", default=0)
    number.set(3)

    def outer():
        here = threading.current_thread()
        return number.get(), compiling.whole(threading.current_thread) is here

    assert compiling.whole(outer) == (3, True)  # which would wait for itself elsewhere
    with pytest.raises(ZeroDivisionError):
        compiling.whole(divmod, 1, 0)
    with compiling._compiler_lock():  # of a caller that compiles
        assert compiling.whole(threading.current_thread) is threading.current_thread()


def test_works_where_no_thread_can_start(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert compiling.whole(divmod, 7, 2) == (3, 1)
    assert adding(11)(1) == 12


def test_threads_of_the_user_keep_the_size_of_their_stacks(monkeypatch):
    begin, before = threading.Thread.start, threading.stack_size()

    def start(self):
        if self.name == "invocupy compiling":
            time.sleep(0.01)  # in which others start theirs
        begin(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    users = [threading.Thread(target=compiling.whole, args=(divmod, 7, 2)) for _ in range(5)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert threading.stack_size() == before


def test_compiles_while_the_interpreter_closes():
    body = """
    import atexit, os
    from invocupy.backends.cpu.jit import jit
    jit(lambda x: x)(1)
    atexit.register(lambda: os.write(1, b"%d" % jit(lambda x: x + 41)(1)))
    """
    assert script(body, INVOCUPY_CACHE_DIR="") == "42"


@pytest.mark.slow
def test_interrupted_at_any_time():
    """Ctrl-C in the first call, at times that reach from the import of Numba to the last kernel."""
    body = """
    import signal, sys
    import numpy as np, invocupy
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    x, kernel, count = np.ones((1, 4, 9, 9), "f4"), np.ones((1, 1, 3, 3, 9, 9), "f4"), 0
    for attempt in range(60):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01 * 1.05**attempt)
            invocupy.involution_backward(invocupy.involution(x, kernel), x, kernel)
            signal.setitimer(signal.ITIMER_REAL, 0)
            break
        except KeyboardInterrupt:
            count += 1
        height = 9 + attempt
        x, kernel = np.ones((1, 4, height, 9), "f4"), np.ones((1, 1, 3, 3, height, 9), "f4")
    signal.setitimer(signal.ITIMER_REAL, 0)
    out = invocupy.involution(x, kernel)
    print(count > 3, out.max())
    """
    assert script(body, INVOCUPY_CACHE_DIR="") == "True 9.0"


# ------------------------------------------------------------------------------------------ forks

FORK = """
    import os, signal, sys, threading, time
    import numpy as np
    from invocupy import backends

    def call():
        backends.of("involution", np.ones(1))  # imports Numba
        from invocupy.backends.cpu.jit import jit
        return jit(lambda x: x + 1)(1) == 2

    def fork(generations=1):
        child = os.fork()
        if not child:
            signal.alarm(60)
            good = fork(generations - 1) if generations > 1 else call()
            os._exit(0 if good else 1)
        return os.waitpid(child, 0)[1] == 0

    signal.alarm(100)
    begun = threading.Event()
    thread = threading.Thread(target=call)
"""


@pytest.mark.parametrize(
    "body",
    [
        """
    backends.on_compile = lambda name, done: begun.set()
    thread.start()
    begun.wait()
    print(fork(2))
    """,
        """
    class Slow:
        def find_spec(self, name, *_):
            if name == "invocupy.backends.cpu.compiling":
                begun.set()
                time.sleep(0.2)

    sys.meta_path.insert(0, Slow())
    thread.start()
    begun.wait()
    print(fork())
    """,
        """
    thread.start()
    while "numba" not in sys.modules: time.sleep(1e-4)
    print(fork())
    """,
        """
    def callback(name, done):
        if not begun.is_set():
            begun.set()
            print(fork())  # which compiles in the middle of compiling

    backends.on_compile = callback
    thread.start()
    """,
    ],
    ids=["while compiling", "before importing", "while importing", "in a callback"],
)
def test_forks(body):
    """A child that compiles as well, in what another thread of its parent was doing."""
    end = """
    thread.join()
    print(call())
    """
    assert script(FORK + body + end, INVOCUPY_CACHE_DIR="") == "True\nTrue"


def test_a_fork_waits_for_the_end_of_what_is_compiled():
    body = """
    import signal, os, threading, time
    from invocupy.backends.cpu.compiling import whole
    import logging

    signal.alarm(60)
    begun, done = threading.Event(), []

    def work():
        begun.set()
        time.sleep(0.3)
        logging.getLogger("new").debug("takes a lock, as Numba does, that forks hold")
        done.append(1)

    thread = threading.Thread(target=whole, args=(work,))
    thread.start()
    begun.wait()
    child = os.fork()
    if not child:
        os._exit(0 if done else 1)
    print(os.waitpid(child, 0)[1])
    thread.join()
    """
    assert script(body) == "0"


# ------------------------------------------------------------------------------- other conditions


def test_numba_s_switch_for_debugging_leaves_kernels_alone(monkeypatch, place):
    monkeypatch.setattr(config, "DISABLE_JIT", 1)

    def kernel(n):
        return np.zeros(n).sum() + len(np.ones(n))

    assert jit.jit(kernel)(3) == 3
    assert config.DISABLE_JIT == 1
    body = """
    import numpy as np
    from invocupy import ops
    print(ops.avg_pool2d(np.ones((1, 1, 4, 4)), 2)[0].sum())
    """
    assert script(body, NUMBA_DISABLE_JIT="1") == "4.0"


def test_a_callback_that_fails_breaks_nothing(monkeypatch, capsys, place):
    calls = []

    def fails(name, done):
        calls.append(name)
        raise ValueError("of the callback")

    monkeypatch.setattr(backends, "on_compile", fails)
    assert adding(12)(1) == 13
    assert adding(13)(1) == 14
    assert calls == ["add"]
    assert "ValueError: of the callback" in capsys.readouterr().err
    assert len(list(place.iterdir())) == 2
