"""Compiling: signals, forks, callbacks, and what else may happen meanwhile."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time

import numpy as np
import pytest
from numba import config
from processes import script

from invocupy import backends
from invocupy.backends.cpu import compiling, jit


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

# ------------------------------------------------------------------------------------------ forks


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
    # Of Python 3.11 the lock of logging complains where it is forked in the middle of an import.
    assert script(FORK + body + end, noisy=True, INVOCUPY_CACHE_DIR="") == "True\nTrue"


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
