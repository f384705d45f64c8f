"""The pool: how many threads work, and that each task is done once, by threads at the same time."""

from __future__ import annotations

import os
import threading
import time
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from bounds import draw, filled
from processes import INVOLUTION, script

from invocupy.backends.cpu import pointwise, threads
from invocupy.backends.cpu import pool as workers
from invocupy.backends.cpu.access import add, load, pointer, read
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.pool import GRAIN, launch


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
        launch(meet, 2, 1 << 30, 0, Meet(here, 2, 1 << 32 if told else 10))
        assert here.tolist() == ([2, 2] if told else [2, 1])
    threads.set_num_threads(None)


Meet = namedtuple("Meet", "here tasks looks")
Count = namedtuple("Count", "done")
Touch = namedtuple("Touch", "size")


@jit
def meet(task, turn, scratch, words):
    """Each task waits for all others, and says if they came."""
    call = read(words, Meet)
    add(call.here, 1)
    for _ in range(call.looks):
        if load(call.here) >= call.tasks:
            add(call.here + 8, 1)
            break


@jit
def count(task, turn, scratch, words):
    """How often each task was done, and by threads with how much scratch memory in common."""
    own, done = pointer(scratch, -64), read(words, Count).done
    own[0] = task
    add(done + 8 * task, 1)
    if own[0] != task:
        add(done + 8 * task, 1 << 32)


def asleep():
    return workers._board[0].cast("q")[workers._SLEEPING // 8]


def test_helpers_work_at_the_same_time_awake_or_asleep(four_threads):
    for _ in range(2):
        for _ in range(3):
            here = np.zeros(2, np.int64)
            launch(meet, 4, 1 << 30, 0, Meet(here, 4, 1 << 32))
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
            launch(count, len(done), 1 << 30, 8, Count(done))
            if (done != 1).any():
                wrong.append(done)

    wrong = []
    callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(2 * workers._SLOTS)]
    for worker in callers:
        worker.start()
    for worker in callers:
        worker.join()
    assert not wrong


def test_a_small_job_wakes_nobody(four_threads):
    launch(count, 8, 1 << 30, 8, Count(np.zeros(8, np.int64)))
    while asleep() < workers._workers:
        time.sleep(0.01)
    time.sleep(0.01)  # soon after another one they are woken for any job
    done = np.zeros(1000, np.int64)
    launch(count, len(done), 4 * GRAIN, 8, Count(done))
    assert (done == 1).all()
    assert asleep() == workers._workers


def test_works_where_no_thread_can_start(four_threads, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    workers._reset()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = np.zeros(8, np.int64)
    launch(count, len(done), 1 << 30, 8, Count(done))
    assert (done == 1).all()


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
    assert script(INVOLUTION, body) == "320 True"


def test_forked_child_has_workers_of_its_own():
    body = """
    assert right_again()
    child = os.fork()
    if not child:
        os._exit(0 if right_again() and right_again() else 1)
    print(os.waitpid(child, 0)[1], right_again())
    """
    assert script(INVOLUTION, body) == "0 True"


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
    assert script(INVOLUTION, body) == "1 1"


def test_two_threads_that_want_the_last_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(list[Any]):
        """Another thread takes what is there between the look and the grasp."""

        def __bool__(self) -> bool:
            return True

        def pop(self, index: Any = -1) -> Any:
            raise IndexError

    monkeypatch.setattr(workers, "_resting", Lost())
    x, weight = draw(0, "float32", (1, 3, 5), (2, 3))
    (result,) = filled(pointwise.forward, [x, weight, None], (1, 2, 5), dtype="float32")
    np.testing.assert_allclose(result, weight @ x, rtol=1e-5)


@jit
def touch(task, turn, scratch, words):
    held = pointer(scratch, -64)
    for i in range(read(words, Touch).size // 8):
        held[i] = i


def test_large_scratch_is_not_kept() -> None:
    for size, kept in ((1 << 16, True), (workers._KEPT + 1, False), (1 << 16, True)):
        workers._resting.clear()
        launch(touch, 1, 1, size, Touch(size))
        (job,) = workers._resting
        assert (len(job.room) > 0) == kept


def test_scratch_that_cannot_be_had_leaves_the_job_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers._resting.clear()
    with pytest.raises(MemoryError):
        launch(touch, 1, 1, 1 << 60, Touch(8))
    assert len(workers._resting) == 1
    launch(touch, 1, 1, 64, Touch(64))
    assert len(workers._resting) == 1
