"""Signals that come while a kernel is at work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import contextvars, os, signal, sys, threading, time, weakref
import numpy as np
import invocupy
from collections import namedtuple
from invocupy.backends.cpu import compiling
from invocupy.backends.cpu import pool as workers
from invocupy.backends.cpu.access import add, load, read, store
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.pool import LONG, launch

Wait = namedtuple("Wait", "done go")

@jit
def wait(task, turn, scratch, words):
    '''Task 0 waits until it may go on; all count what they did.'''
    call = read(words, Wait)
    add(call.done, 1)
    while task == 0 and load(call.go) == 0:
        pass

rng = np.random.default_rng(0)
x, kernel = rng.standard_normal((1, 4, 40, 40)), rng.standard_normal((1, 2, 3, 3, 40, 40))
right = invocupy.involution(x, kernel)
done, go = np.zeros(1, np.int64), np.ones(1, np.int64)
launch(wait, 3, LONG + 1, 0, Wait(done, go))
assert done == 3

class Stop(Exception):
    pass

def stop(number, frame):
    raise Stop

def interrupt():
    while done[0] < 1:  # until there is somebody to interrupt
        time.sleep(0.001)
    os.kill(os.getpid(), number)
    time.sleep(0.2)
    os.kill(os.getpid(), number)  # a person who does not wait
    time.sleep(0.2)
    assert not over
    go[0] = 1

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, stop)
for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stop)) * 2:
    done[0] = go[0] = over = 0
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        launch(wait, 10**12, LONG + 1, 0, Wait(done, go))
    except error:
        over = 1
    thread.join()
    assert over and go[0] and done[0] < 10**12, "returned before all threads had ended"
    assert len(workers._resting) == 1
    np.testing.assert_array_equal(invocupy.involution(x, kernel), right)
    done[0] = 0
    launch(wait, 5, LONG + 1, 0, Wait(done, go))
    assert done == 5

# signals so fast that the main thread gets no time to wait: what is written to stays
class Faster:
    def __init__(self, *given):
        raise Stop

compiling.suppress, patient = Faster, compiling.suppress
for _ in range(3):
    done, go, before = np.zeros(1, np.int64), np.zeros(1, np.int64), len(workers._resting)
    ends = weakref.ref(done)
    def kill(done=done):
        while done[0] < 1:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        launch(wait, 10**12, LONG + 1, 0, Wait(done, go))
    except Stop:
        assert len(workers._resting) == before - 1  # another thread is at work with it
    thread.join()
    del done, kill, thread
    assert ends() is not None
    np.testing.assert_array_equal(invocupy.involution(x, kernel), right)  # with another job
    go[0] = 1
    while ends() is not None:
        time.sleep(0.001)
    assert len(workers._resting) == 2
compiling.suppress = patient
done, go = np.zeros(1, np.int64), np.ones(1, np.int64)

# an error of a handler is not taken for one of the system
class Busy(RuntimeError):
    pass

def busy(number, frame):
    raise Busy

def start(*given):  # a signal comes before the thread has begun
    signal.raise_signal(signal.SIGTERM)

signal.signal(signal.SIGTERM, busy)
compiling.start_new_thread, real = start, compiling.start_new_thread
try:
    launch(wait, 5, LONG + 1, 0, Wait(done, go))
    raise AssertionError
except Busy:
    pass
compiling.start_new_thread = real
assert len(workers._resting) == 2 and done == 0

# a handler that raises nothing changes nothing
calls = []
signal.signal(signal.SIGTERM, lambda *given: calls.append(go.fill(1)))
done[0] = go[0] = over = 0
thread = threading.Thread(target=lambda: (time.sleep(0.1), os.kill(os.getpid(), signal.SIGTERM)))
thread.start()
launch(wait, 7, LONG + 1, 0, Wait(done, go))
thread.join()
assert done == 7 and len(calls) == 1

# other threads get no signals and work themselves
thread = threading.Thread(target=launch, args=(wait, 5, LONG + 1, 0, Wait(done, go)))
done[0], go[0] = 0, 1
thread.start()
thread.join()
assert done == 5

# where no thread can start, the caller works
context = contextvars.copy_context()
compiling.start_new_thread = context.run  # raises RuntimeError, being in use
done[0] = 0
context.run(launch, wait, 5, LONG + 1, 0, Wait(done, go))
assert done == 5
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_a_long_job_can_be_interrupted(threads: int) -> None:
    environment = {**os.environ, "INVOCUPY_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, "-c", CODE], check=True, env=environment, timeout=300)
