"""Whether operators record what backward needs."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

# How many no_grad are entered: one object may be entered by several threads and tasks at once.
_depth: ContextVar[int] = ContextVar("invocupy_no_grad", default=0)


class no_grad:  # noqa: N801
    """Context in which operators record nothing; also a decorator.

    ``@no_grad()`` decorates functions, generators, coroutines and asynchronous generators. A
    decorated generator runs each of its steps without recording; between two steps the caller
    records as before.

    Raises
    ------
    TypeError
        For ``@no_grad`` without parentheses, and for anything but a function.

    Examples
    --------
    >>> from invocupy import Tensor, no_grad
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> with no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    >>> @no_grad()
    ... def doubled():
    ...     yield x * 2
    >>> next(doubled()).requires_grad
    False
    """

    __slots__ = ()

    def __init__(self, *_function: Any) -> None:
        if _function:
            raise TypeError("no_grad takes no argument: write @no_grad() or `with no_grad():`")

    def __enter__(self) -> None:
        _depth.set(_depth.get() + 1)

    def __exit__(self, *error: object) -> None:
        _depth.set(max(_depth.get() - 1, 0))  # a generator may end in another context

    def __call__(self, function: _F) -> _F:
        if isinstance(function, (type, staticmethod)) or not callable(function):
            raise TypeError(
                f"@no_grad() decorates functions and methods, got {function!r}: "
                "decorate each method of a class, and write @classmethod, @staticmethod or "
                "@property above @no_grad()"
            )
        return functools.wraps(function)(_decorated(function))  # type: ignore[return-value]


def is_recording() -> bool:
    """Whether operators record what backward needs (see :class:`no_grad`)."""
    return not _depth.get()


def _decorated(function: Any) -> Any:
    """``function`` under :class:`no_grad`, of the same kind: generator, coroutine or plain."""

    def plain(*args: Any, **kwargs: Any) -> Any:
        with no_grad():
            result = function(*args, **kwargs)
        # Of other decorators' functions, and of objects with __call__, only the result shows it.
        if inspect.isgenerator(result):
            return _in_steps(result)
        if inspect.iscoroutine(result):
            return _coroutine(result)
        return _asynchronous(lambda: result)() if inspect.isasyncgen(result) else result

    def generator(*args: Any, **kwargs: Any) -> Any:
        return (yield from _in_steps(function(*args, **kwargs)))

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        return await _awaited(function(*args, **kwargs))

    if inspect.isgeneratorfunction(function):
        return generator
    if inspect.iscoroutinefunction(function):
        return coroutine
    return _asynchronous(function) if inspect.isasyncgenfunction(function) else plain


async def _coroutine(inner: Any) -> Any:
    return await _awaited(inner)


def _asynchronous(function: Any) -> Any:
    async def generator(*args: Any, **kwargs: Any) -> Any:
        inner = function(*args, **kwargs)
        step = inner.asend(None)
        try:
            while True:
                try:
                    value = await _awaited(step)
                except StopAsyncIteration:
                    return
                try:
                    step = inner.asend((yield value))
                except GeneratorExit:
                    raise
                except BaseException as error:
                    step = inner.athrow(error)
        finally:
            await _awaited(inner.aclose())

    return generator


def _in_steps(inner: Any) -> Generator[Any, Any, Any]:
    """Run a generator, or what is awaited, each step up to its next yield under no_grad."""
    run, argument = inner.send, None
    try:
        while True:
            try:
                with no_grad():
                    value = run(argument)
            except StopIteration as end:
                return end.value
            try:
                run, argument = inner.send, (yield value)
            except GeneratorExit:
                raise
            except BaseException as error:  # also what cancels a task
                run, argument = inner.throw, error
    finally:
        with no_grad():
            inner.close()


def _awaited(inner: Any) -> Awaitable[Any]:
    steps: Awaitable[Any] = _drive(inner.__await__())
    return steps


_drive: Any = types.coroutine(_in_steps)
