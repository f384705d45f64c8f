"""The memory of results and the scratch memory of kernels: used again, limited, given back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import invocupy
from invocupy import Tensor
from invocupy.autograd import apply
from invocupy.backends import memory
from invocupy.backends.cpu import pool as workers
from invocupy.ops.ranks import allreduce_sum

LIKE = np.ones(1)
MB = 1 << 20


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A pool of which 4 MB may lie idle."""
    memory.release_memory()
    monkeypatch.setattr(memory._pool, "limit", 4 * MB)
    yield memory._pool
    memory.release_memory()


def take(size: int) -> tuple[Any, Any]:
    """An array of so many bytes, and whether its memory is still there."""
    array = memory.empty((size,), np.uint8, LIKE)
    return array, weakref.ref(array.base.memory[0])


def test_no_more_lies_idle_than_the_limit(pool: Any) -> None:
    arrays, alive = zip(*(take(MB) for _ in range(10)), strict=True)
    del arrays
    assert 2 <= sum(memory() is not None for memory in alive) <= 4
    array, large = take(5 * MB)
    del array
    assert large() is None


def test_a_request_that_finds_nothing_empties_a_pool_beyond_its_limit(pool: Any) -> None:
    array, alive = take(3 * MB)
    del array
    pool.limit = 2 * MB
    memory.empty((MB // 2,), np.uint8, LIKE)
    assert alive() is None


@pytest.fixture
def fresh(pool: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that the pool did not have, counted in the last element."""
    counts: list[int] = []
    make = memory.patiently

    def count(*arguments: Any) -> Any:
        counts[-1] += 1
        return make(*arguments)

    monkeypatch.setattr(memory, "patiently", count)
    return counts


def step(sizes: tuple[float, ...], grads: tuple[float, ...], training: bool = True) -> None:
    """Arrays of so many MB, which backward frees one by one, with two gradients at a time."""
    arrays = [memory.empty((int(size * MB),), np.uint8, LIKE) for size in sizes]
    if training:
        memory.backward_begins()
    grad = None
    for size in grads:
        grad = memory.empty((int(size * MB),), np.uint8, LIKE), grad and grad[0]
        arrays.pop()


@pytest.mark.parametrize("grads", [(), (2.3, 1.2, 4.7, 0.6, 3.3)])
@pytest.mark.parametrize("training", [True, False])
def test_training_steps_find_their_memory_again(
    pool: Any, fresh: list[int], training: bool, grads: tuple[float, ...]
) -> None:
    """What two steps had in use when their backward passes began is kept for the third."""
    for _ in range(7):
        fresh.append(0)
        step((1, 2, 3, 4, 5), grads, training)
    assert fresh[0] >= 5
    assert (fresh[3:] == [0, 0, 0, 0]) == training
    memory.empty((MB // 2,), np.uint8, LIKE)  # of another size: the training is over
    assert pool.count() <= 4 * MB


def test_memory_of_steps_of_ever_new_sizes_is_not_kept(pool: Any, fresh: list[int]) -> None:
    for number in range(8, 40):
        fresh.append(0)
        step((number / 8,) * 4, ())
        assert pool.count() <= 4 * MB + number / 8 * MB * 4 * 1.5 * 9 / 8
    for _ in range(5):
        fresh.append(0)
        step((1.1,) * 4, ())
    assert fresh[-1] == 0
    assert pool.count() <= 4 * MB + 1.1 * MB * 4 * 1.5 * 9 / 8


def test_a_single_backward_pass_keeps_no_more_than_the_limit(pool: Any) -> None:
    x = Tensor(np.ones((1, 1, 1500, 1500)), requires_grad=True)  # 18 MB
    y = invocupy.involution(x, np.ones((1, 1, 1, 1, 1500, 1500)))
    (y * y).sum().backward()
    del x, y
    gc.collect()
    assert pool.count() <= 4 * MB


def test_release_memory_gives_everything_back(pool: Any) -> None:
    array, alive = take(2 * MB)
    del array
    job = workers._Descriptor()
    job.scratch(MB)
    workers._resting.append(job)
    invocupy.release_memory()
    assert alive() is None
    assert pool.count() == 0
    assert all(len(job.room) == 0 for job in workers._resting)
    result = invocupy.involution(np.ones((1, 1, 300, 300)), np.ones((1, 1, 1, 1, 300, 300)))
    assert (result == 1).all()


def test_memory_comes_back_before_a_memory_error(pool: Any) -> None:
    tried = []

    def make(*given: Any, **options: Any) -> Any:
        tried.append((given, options, pool.count()))
        if len(tried) == 1:
            raise MemoryError
        return "made"

    array = memory.empty((MB,), np.uint8, LIKE)
    del array
    assert memory.patiently(make, 1, size=2) == "made"
    (*first, held), (*second, left) = tried
    assert first == second == [(1,), {"size": 2}]
    assert held > 0 == left
    with pytest.raises(MemoryError):  # once more, not again and again
        memory.patiently(np.empty, 1 << 60, np.uint8)


def test_operators_and_gradients_try_once_more() -> None:
    failing = []

    def op(x: Any) -> Any:
        def partial(grad: Any) -> Any:
            if failing.pop():
                raise MemoryError
            return 2 * grad

        if failing.pop():
            raise MemoryError
        return 2 * x, (partial,)

    failing[:] = [False, True]
    x = Tensor(np.ones(3), requires_grad=True)
    y = apply(op, x)
    failing[:] = [False, True]
    y.backward(np.ones(3))
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad, [2, 2, 2])


def test_what_has_sent_a_message_to_other_ranks_is_not_tried_again() -> None:
    class Comm:
        sent = 0

        def allgather(self, array: Any) -> Any:
            self.sent += 1
            return array[None]

    comm = Comm()

    def op(x: Any) -> Any:
        allreduce_sum(comm, x)
        raise MemoryError

    with pytest.raises(MemoryError):
        apply(op, np.ones(2))
    assert comm.sent == 1


CODE = """
import resource
import numpy as np
import invocupy

def pages(place):
    with open("/proc/self/statm") as file:
        return int(file.read().split()[place]) * resource.getpagesize()

def run(side, number):
    x = np.ones((1, 8, side, side), np.float32)
    kernel = np.ones((1, 1, 1, 1, side, side), np.float32)
    out = [invocupy.involution(x, kernel) for _ in range(number)]

run(9, 1)
before = pages(1)
run(1600, 3)  # 82 MB each
assert pages(1) - before > 200e6
invocupy.release_memory()
assert pages(1) - before < 60e6, pages(1) - before
run(1600, 3)
resource.setrlimit(resource.RLIMIT_AS, (pages(0) + (150 << 20),) * 2)
run(2000, 1)  # 128 MB twice
"""


def test_resident_memory_falls() -> None:
    environment = {**os.environ, "INVOCUPY_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", CODE], check=True, env=environment)


def test_memory_is_used_again_but_never_while_it_is_in_use() -> None:
    like = np.ones(1)
    first = memory.empty((100, 1000), np.float32, like)
    place = first.ctypes.data
    assert place % 64 == 0
    assert first.flags.c_contiguous
    assert first.flags.writeable
    view = first[3:5].T
    del first
    other = memory.empty((100, 1000), np.float32, like)
    assert not np.shares_memory(view, other)
    del view
    assert memory.empty((1000, 99), np.float32, like).ctypes.data == place
    assert memory.empty((0, 3), np.float64, like).shape == (0, 3)


def test_threads_share_the_memory_without_mixing_it_up() -> None:
    problems: list[str] = []

    def work(number: int) -> None:
        like = np.ones(1)
        for turn in range(200):
            array = memory.empty((20000 + turn % 3,), np.float64, like)
            array[...] = number
            if not (array == number).all():
                problems.append(f"thread {number} found another's values")

    running = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not problems
