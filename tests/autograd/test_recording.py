"""What is recorded: no_grad in blocks and as a decorator, in one thread and task."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, no_grad
from invocupy.autograd import is_recording

X = Tensor([1.0, 2.0], requires_grad=True)


class Awaited:
    """One step that waits, so that something else may run."""

    def __await__(self) -> Any:
        yield


def test_a_generator_records_between_its_steps_only() -> None:
    inside: list[bool] = []

    @no_grad()
    def steps(count: int) -> Any:
        """Documented."""
        sent = None
        try:
            for _ in range(count):
                inside.append(is_recording())
                try:
                    sent = yield X * 2, sent
                except KeyError as error:
                    sent = error.args
        finally:
            inside.append(is_recording())
        return "done"

    assert (steps.__name__, steps.__doc__) == ("steps", "Documented.")
    running = steps(4)
    y, _ = next(running)
    assert is_recording()
    assert not y.requires_grad
    assert running.send(5)[1] == 5
    assert is_recording()
    assert running.throw(KeyError("thrown"))[1] == ("thrown",)
    next(running)
    with pytest.raises(StopIteration) as end:
        next(running)
    assert end.value.value == "done"
    running = steps(4)
    next(running)
    running.close()
    assert is_recording()
    assert inside == [False] * 7

    @no_grad()
    def breaks() -> Any:
        yield
        raise ZeroDivisionError

    running = breaks()
    next(running)
    with pytest.raises(ZeroDivisionError):
        next(running)
    assert is_recording()


def test_a_coroutine_records_nothing_and_leaves_others_alone() -> None:
    @no_grad()
    async def inner() -> Any:
        await Awaited()
        await asyncio.sleep(0)
        return X * 2, is_recording()

    async def other() -> Any:
        results = []
        for _ in range(3):
            results.append(is_recording())
            await asyncio.sleep(0)
        return results

    async def both() -> Any:
        return await asyncio.gather(inner(), other(), inner())

    (y, inside), outside, _ = asyncio.run(both())
    assert not y.requires_grad
    assert not inside
    assert outside == [True] * 3
    stepping = inner()
    stepping.send(None)  # by hand, without a loop: the caller records in between
    assert is_recording()
    stepping.close()
    assert is_recording()

    cancelled: list[bool] = []

    @no_grad()
    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(is_recording())
            raise

    async def cancels() -> None:
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancels())
    assert cancelled == [False]


def test_an_asynchronous_generator_records_between_its_steps_only() -> None:
    inside: list[bool] = []

    @no_grad()
    async def steps() -> Any:
        sent = None
        try:
            for _ in range(3):
                await asyncio.sleep(0)
                inside.append(is_recording())
                try:
                    sent = yield X * 2, sent
                except KeyError as error:
                    sent = error.args
        finally:
            await asyncio.sleep(0)
            inside.append(is_recording())

    async def run() -> None:
        async for y, _ in steps():
            assert is_recording()
            assert not y.requires_grad
        running = steps()
        await anext(running)
        assert (await running.asend(5))[1] == 5
        assert (await running.athrow(KeyError("thrown")))[1] == ("thrown",)
        assert is_recording()
        await running.aclose()
        assert is_recording()

    asyncio.run(run())
    assert inside == [False] * 8


def test_no_grad_decorates_functions_only() -> None:
    with pytest.raises(TypeError, match=r"write @no_grad\(\)"):

        @no_grad  # type: ignore[arg-type]
        def function() -> None:
            """Without parentheses."""

    with pytest.raises(TypeError, match="decorate each method of a class"):

        @no_grad()
        class Model:
            """Not a function."""

    for wrapped in (staticmethod(print), classmethod(print), property(print)):
        with pytest.raises(TypeError, match="@staticmethod or @property above"):
            no_grad()(wrapped)  # type: ignore[type-var]

    class Works:
        @classmethod
        @no_grad()
        def make(cls) -> Any:
            return X * 2

        @staticmethod
        @no_grad()
        def make_too() -> Any:
            return X * 2

        @no_grad()
        def method(self) -> Any:
            return X * 2

    assert not any(y.requires_grad for y in (Works.make(), Works.make_too(), Works().method()))
    mode = no_grad()
    with mode, mode:
        assert not is_recording()
    assert is_recording()


def test_no_grad_looks_through_other_decorators_and_objects() -> None:
    def traced(function: Any) -> Any:
        return lambda *args: function(*args)

    @no_grad()
    @traced
    def steps() -> Any:
        yield X * 2
        yield X * 3

    @no_grad()
    @traced
    async def coroutine() -> Any:
        await Awaited()
        return X * 2

    @no_grad()
    @traced
    async def asynchronous() -> Any:
        await Awaited()
        yield X * 2

    class Steps:
        def __call__(self) -> Any:
            yield X * 2

    async def run() -> None:
        assert not (await coroutine()).requires_grad
        async for y in asynchronous():
            assert is_recording()
            assert not y.requires_grad

    for function in (steps, no_grad()(Steps()), no_grad()(lambda: (X * i for i in range(2)))):
        for y in function():
            assert is_recording()
            assert not y.requires_grad
    asyncio.run(run())
    assert inspect.isasyncgenfunction(no_grad()(kind_of_generator))


async def kind_of_generator() -> Any:
    """An asynchronous generator."""
    yield X * 2


def test_one_no_grad_serves_several_threads_and_tasks() -> None:
    shared, meet = no_grad(), threading.Barrier(2, timeout=10)

    def work(last: bool) -> list[bool]:
        seen = [is_recording()]
        with shared:
            meet.wait()  # both are in
            seen.append(is_recording())
            if last:
                meet.wait()
        if not last:
            meet.wait()
        return [*seen, is_recording()]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, [True, False])) == [[True, False, True]] * 2

    async def task() -> bool:
        with shared:
            await asyncio.sleep(0)
            inside = is_recording()
        return is_recording() and not inside

    async def run() -> list[bool]:
        return await asyncio.gather(task(), task(), task())

    assert asyncio.run(run()) == [True] * 3


def test_generators_may_leave_no_grad_in_any_order() -> None:
    def held() -> Any:
        with no_grad():
            yield

    first, second = held(), held()
    next(first), next(second)
    first.close()
    assert not is_recording()
    second.close()
    assert is_recording()
    left = held()
    next(left)
    contextvars.Context().run(left.close)  # as the collection of garbage may do
    assert not is_recording()
    no_grad().__exit__()
    assert is_recording()


def leaf(values: Any, dtype: str = "float64") -> Tensor:
    return Tensor(np.asarray(values, dtype), requires_grad=True)


# ---------------------------------------------------------------------------- recording


def test_no_grad() -> None:
    x = leaf([1.0])
    with no_grad():
        assert not is_recording()
        y = x * 2
        with no_grad():
            pass
        assert not is_recording()
    assert is_recording()
    assert not y.requires_grad
    assert y._parents == ()

    @no_grad()
    def twice(value: Tensor) -> Any:
        return value * 2

    assert not twice(x).requires_grad
    assert not twice(x).requires_grad  # a decorator works more than once
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert is_recording()


def test_no_grad_is_of_one_thread() -> None:
    seen: list[bool] = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((leaf([1.0]) * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_detach_cuts() -> None:
    x = leaf([2.0])
    (x.detach() * x).backward()
    assert x.grad.tolist() == [2.0]
    assert not x.detach().requires_grad


def test_constants_record_nothing() -> None:
    y = Tensor([1.0]) * Tensor([2.0])
    assert not y.requires_grad
    assert y._parents == ()
