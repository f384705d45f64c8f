"""Common work of several vjps of one operator.

A vjp that is called alone computes everything that it needs. Within :func:`sharing` the vjps of an
operator are called with one gradient, and common work is done once. Nothing is kept afterwards, so
a gradient array may be overwritten and passed to another call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# The current gradient, and the results computed from it, by function.
Shared = tuple[Any, dict[Any, Any]]
current: ContextVar[Shared | None] = ContextVar("invocupy_shared", default=None)


@contextmanager
def sharing(grad: Any) -> Iterator[None]:
    """A context in which vjps that are called with this ``grad`` do their common work once."""
    token = current.set((grad, {}))
    try:
        yield
    finally:
        current.reset(token)


def once(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``make``, called at most once within :func:`sharing`."""

    def shared(grad: Any) -> Any:
        now = current.get()
        if now is None or now[0] is not grad:
            return make(grad)
        if make not in now[1]:  # not shared: a function that refers to itself lives for longer
            now[1][make] = make(grad)
        return now[1][make]

    return shared


def along(change: Callable[[Any], Any]) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """A decorator of vjps: they are called with ``change(grad)``, which is computed once."""
    changed = once(lambda grad: (change(grad), {}))

    def decorate(vjp: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(grad: Any) -> Any:
            shared = changed(grad)
            token = current.set(shared)
            try:
                return vjp(shared[0])
            finally:
                current.reset(token)

        return call

    return decorate


def each(make: Callable[[Any], Any]) -> Callable[[Any, int], Any]:
    """A function of the gradient and i: the i-th of the arrays that ``make`` returns.

    They are computed as by :func:`once`. Each is returned once, and the caller may write to it.
    """
    shared = once(lambda grad: list(make(grad)))

    def take(grad: Any, i: int) -> Any:
        arrays = shared(grad)
        array, arrays[i] = arrays[i], None
        return make(grad)[i] if array is None else array

    return take
